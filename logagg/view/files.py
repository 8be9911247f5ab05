"""Reading log files: plain, compressed, rotated, from either end, in bounded memory.

A *series* is what one name stands for: the file and what was rotated away from it
(`app.log.2.gz`, `app.log.1`, `app.log`), oldest first. Memory never grows with a file:
at most a few chunks, and the longest line, are held.

Which rotated files, and which part of a plain one, can hold records since some instant
is found without reading all of it, by what the order of the stream guarantees: but for
those marked late, records stand in the order of their time.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from logagg.errors import ConfigError
from logagg.view import foreign, parallel
from logagg.view.match import Match

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 200
LONGEST_BYTES = 64 << 20  # a line longer than this is cut into several

_ROTATED = re.compile(r"\.(\d{1,9})(\.gz|\.zst)?")


@dataclass(frozen=True, slots=True)
class Select:
    """From whole lines to those that are wanted, without their newlines.

    Attributes:
        lines: Does it.
        spread: It takes long enough to be done on all cores for a big file.
    """

    lines: Callable[[bytes], list[bytes]]
    spread: bool = False

    def __call__(self, data: bytes) -> list[bytes]:
        return self.lines(data)


WHOLE = Select(lambda data: [data])
"""The chunk as it is: for a reader that needs to see every line."""


def selector(match: Match) -> Select:
    """What selects the lines that match, other programs' adopted."""

    def select(data: bytes) -> list[bytes]:
        if foreign.is_wire(data[:64]):
            return match.select(data)
        lines = [foreign.convert(line) for line in data.split(b"\n") if line.strip()]
        return match.lines(lines)

    return Select(select, spread=not match.everything)


@dataclass(slots=True)
class Series:
    """One name's files, opened so that a rotation from now on cannot confuse us.

    Attributes:
        path: The name.
        older: Rotated files, oldest first.
        current: The file itself, open, or None when it is not there.
        end: Where the current file ended when it was opened, or its last whole line;
            what comes then is for whoever follows the file.
        head: The file's first bytes then.
    """

    path: str
    older: list[str] = field(default_factory=list)
    current: IO[bytes] | None = None
    end: int = 0
    head: bytes = b""

    def close(self) -> None:
        """Let go of the file."""
        if self.current is not None:
            self.current.close()
            self.current = None


def open_series(path: str, *, follow: bool = False) -> Series:
    """Open a name for reading.

    Args:
        path: The name.
        follow: It will be followed: it need not be there yet, and a line that is not
            finished yet is left for later.

    Raises:
        ConfigError: Nothing can be read there; the message names the reason.
    """
    series = Series(path)
    try:
        series.current = open(path, "rb")  # noqa: SIM115 - the series closes it
    except FileNotFoundError:
        series.older = rotated(path)
        if not series.older and not follow:
            raise ConfigError(f"{path}: there is no such file") from None
        return series
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    status = os.fstat(series.current.fileno())
    series.head = head_of(series.current)
    series.end = status.st_size
    if follow:
        series.end = _end_of_line(series.current, series.end)
    # Listed after opening: what was rotated in between is the file we hold.
    for other in rotated(path):
        with contextlib.suppress(OSError):
            found = os.stat(other)
            if (found.st_dev, found.st_ino) != (status.st_dev, status.st_ino):
                series.older.append(other)
    return series


def head_of(stream: IO[bytes]) -> bytes:
    """The first line of a file, as much of it as tells it apart from others."""
    data = os.pread(stream.fileno(), HEAD_BYTES, 0)
    return data[: data.find(b"\n") + 1] or data


def _end_of_line(stream: IO[bytes], place: int) -> int:
    """Where the last whole line before a place ends."""
    while place > 0:
        size = min(place, 1 << 16)
        cut = os.pread(stream.fileno(), size, place - size).rfind(b"\n") + 1
        place -= size
        if cut:
            return place + cut
    return 0


def rotated(path: str) -> list[str]:
    """The numbered files beside a file, oldest first: `.2.gz`, `.1`."""
    folder, name = os.path.split(path)
    found: dict[int, str] = {}
    try:
        entries = os.listdir(folder or ".")
    except OSError:
        return []
    for entry in sorted(entries):  # "x.1" before "x.1.gz": one of them is enough
        if entry.startswith(name):
            match = _ROTATED.fullmatch(entry[len(name) :])
            if match:
                found.setdefault(int(match[1]), os.path.join(folder, entry))
    return [found[number] for number in sorted(found, reverse=True)]


def unpacked(stream: IO[bytes], path: str) -> Any:
    """The stream, decompressed when its first bytes say gzip or zstd."""
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=stream)
    if magic == b"\x28\xb5\x2f\xfd":
        return _zstd(stream, path)
    return stream


def is_packed(stream: IO[bytes]) -> bool:
    """Whether the file is compressed; its place is at the start afterwards."""
    magic = os.pread(stream.fileno(), 4, 0)
    return magic[:2] == b"\x1f\x8b" or magic == b"\x28\xb5\x2f\xfd"


def _zstd(stream: IO[bytes], path: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            f"{path}: reading zstd needs the package zstandard: "
            "pip install 'logagg-service[zstd]', or zstd -dc FILE | logagg tail -"
        ) from None
    reader: Any = zstandard.ZstdDecompressor().stream_reader(
        stream, read_across_frames=True
    )
    return io.BufferedReader(reader)


def forward(stream: Any, limit: int | None = None) -> Iterator[bytes]:
    """Chunks of whole lines from the stream's place on; the last may lack its newline.

    A compressed file that is damaged or still being written ends early, quietly.

    Args:
        stream: What to read.
        limit: Read at most so many bytes.
    """
    carry: list[bytes] = []
    held = 0
    left = limit
    while left is None or left > 0:
        try:
            size = CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
            # `read1` gives what a pipe holds now instead of waiting for a full chunk.
            data = stream.read1(size) if hasattr(stream, "read1") else stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            break
        if not data:
            break
        if left is not None:
            left -= len(data)
        cut = data.rfind(b"\n") + 1
        if not cut:
            carry.append(data)
            held += len(data)
            if held < LONGEST_BYTES:
                continue
            cut = len(data)
            carry.pop()
        yield b"".join([*carry, data[:cut]])
        carry, held = ([data[cut:]], len(data) - cut) if cut < len(data) else ([], 0)
    if carry:
        yield b"".join(carry)


def backward(stream: IO[bytes], end: int, begin: int = 0) -> Iterator[bytes]:
    """Chunks of whole lines of a plain file, the last chunk first."""
    tail: list[bytes] = []  # pieces of a line whose beginning is further up, reversed
    place = end
    while place > begin:
        size = min(CHUNK_BYTES, place - begin)
        place -= size
        data = os.pread(stream.fileno(), size, place)
        cut = data.find(b"\n") + 1
        if place == begin:
            cut = 0
        elif not cut and sum(map(len, tail)) < LONGEST_BYTES:
            tail.append(data)
            continue
        whole = b"".join([data[cut:], *reversed(tail)])
        tail = [data[:cut]]
        if whole:
            yield whole


def all_lines(
    series: Series, select: Select, since: bytes = b""
) -> Iterator[list[bytes]]:
    """The matching lines of a series, oldest first, chunk by chunk.

    Args:
        series: The files.
        select: What matches.
        since: The wire time (30 bytes) before which nothing matches; b"" for none.
    """
    for path in needed(series, since):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
            if is_packed(stream):
                for data in forward(unpacked(stream, path)):
                    yield select(data)
            else:
                yield from _part(stream, _start(stream, since), None, select)
    current = series.current
    if current is None:
        return
    if is_packed(current):
        current.seek(0)
        for data in forward(unpacked(current, series.path)):
            yield select(data)
        return
    yield from _part(current, _start(current, since), series.end, select)


def _part(
    stream: IO[bytes], place: int, end: int | None, select: Select
) -> Iterator[list[bytes]]:
    """What matches of a plain file from a line's start on, up to `end` or its end."""
    if select.spread:
        size = os.fstat(stream.fileno()).st_size
        stop = _end_of_line(stream, size if end is None else min(end, size))
        if stop - place >= parallel.LEAST_BYTES and parallel.helpers() > 1:
            try:
                yield from parallel.select(stream.fileno(), place, stop, select)
                place = stop
            except parallel.Early as early:
                place = early.place
    stream.seek(place)
    for data in forward(stream, None if end is None else end - place):
        yield select(data)


def needed(series: Series, since: bytes) -> list[str]:
    """The rotated files that can hold a record since then, oldest first."""
    if not since:
        return series.older
    newer: IO[bytes] | None = series.current
    kept: list[str] = []
    for path in reversed(series.older):
        # Records before a file's first are older than it, but for late ones, and
        # those are never the first: the file before then has nothing to give.
        if newer is not None and _first_key(newer, path) < since:
            break
        kept.append(path)
        if newer is not None and newer is not series.current:
            newer.close()
        try:
            newer = open(path, "rb")  # noqa: SIM115 - closed below
        except OSError:
            newer = None
    if newer is not None and newer is not series.current:
        newer.close()
    return kept[::-1]


def _first_key(stream: IO[bytes], path: str) -> bytes:
    """The time of the first record that is in order, or the greatest possible."""
    place = stream.tell()
    stream.seek(0)
    try:
        for data in forward(unpacked(stream, path)):
            for line in data.split(b"\n"):
                if foreign.is_wire(line) and b'"late":true' not in line:
                    return line[14:44]
            break
    finally:
        stream.seek(place)
    return b"~"


def last_lines(series: Series, select: Select, count: int) -> list[bytes]:
    """The last matching lines of a series, at most so many, oldest first."""
    parts: list[list[bytes]] = []
    need = count

    def take(found: list[bytes]) -> None:
        nonlocal need
        found = found[-need:]
        parts.append(found)
        need -= len(found)

    if series.current is not None and need and not is_packed(series.current):
        for data in backward(series.current, series.end):
            take(select(data))
            if not need:
                break
    elif series.current is not None and need:
        series.current.seek(0)
        take(_last_of(unpacked(series.current, series.path), select, need))
    for path in reversed(series.older):
        if not need:
            break
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
            if is_packed(stream):
                take(_last_of(unpacked(stream, path), select, need))
                continue
            for data in backward(stream, os.fstat(stream.fileno()).st_size):
                take(select(data))
                if not need:
                    break
    return [line for part in reversed(parts) for line in part]


def _last_of(stream: Any, select: Select, count: int) -> list[bytes]:
    kept: deque[bytes] = deque(maxlen=count)
    for data in forward(stream):
        kept.extend(select(data))
    return list(kept)


_PROBE_BYTES = 1 << 16


def _start(stream: IO[bytes], since: bytes) -> int:
    """Where in a plain file to start reading: all lines before are too old.

    Bisects on the newest ordered record of a probe, which rises through the file. A
    probe without such a record, as in other programs' files, ends the search: then all
    from the last sure place on is read.
    """
    if not since:
        return 0
    size = os.fstat(stream.fileno()).st_size
    low, high = 0, size  # all lines that end before `low` are too old
    while high - low > 4 * _PROBE_BYTES:
        middle = (low + high) // 2
        data = os.pread(stream.fileno(), _PROBE_BYTES, middle)
        keys = [
            line[14:44]
            for line in data.split(b"\n")[1:-1]
            if foreign.is_wire(line) and b'"late":true' not in line
        ]
        if not keys:
            break
        if max(keys) < since:
            low = middle
        else:
            high = middle
    while 0 < low < size:  # to the end of the line that we are in
        data = os.pread(stream.fileno(), _PROBE_BYTES, low)
        cut = data.find(b"\n") + 1
        if cut:
            return low + cut
        low += len(data)
    return low
