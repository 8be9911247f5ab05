"""Log files: plain, compressed, rotated, read from either end in bounded memory.

A *series* is a file and what was rotated away from it (`app.log.2.gz`, `app.log.1`,
`app.log`), oldest first. At most a few chunks, and the longest line, are in memory.

`logagg.view.file_ranges` reads from the oldest line on, this module the last lines.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import importlib
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from logagg.core.line import MAX_LINE_BYTES, is_wire
from logagg.dialects.foreign import conversion
from logagg.errors import ConfigError
from logagg.filters.matcher import Match

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 200
LONGEST_BYTES = MAX_LINE_BYTES + (1 << 20)  # a longer line is cut into several

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ROTATED = re.compile(r"\.(\d{1,9})(\.gz|\.zst)?")


@dataclass(frozen=True, slots=True)
class Select:
    """A function that selects from whole lines, and takes their newlines away.

    Attributes:
        lines: The function.
        spread: It is slow enough to use all cores for a big file.
    """

    lines: Callable[[bytes], list[bytes]]
    spread: bool = False

    def __call__(self, data: bytes) -> list[bytes]:
        return self.lines(data)


WHOLE = Select(lambda data: [data])
"""The chunk as it is."""


def selector(match: Match) -> Select:
    """Select the lines that match, those of other programs converted."""

    def select(data: bytes) -> list[bytes]:
        if is_wire(data[:64]):
            return match.select(data)
        lines = [conversion.convert(line) for line in data.split(b"\n") if line.strip()]
        return match.lines(lines)

    return Select(select, spread=not match.everything)


@dataclass(slots=True)
class Series:
    """One name's files, opened so that later rotations change nothing.

    Attributes:
        path: The name.
        older: Rotated files, oldest first.
        current: The file itself, open, or None when it is missing.
        end: The end of the current file, or of its last whole line, at opening; later
            lines are read by following.
        head: The file's first bytes then.
    """

    path: str
    older: list[str] = field(default_factory=list)
    current: IO[bytes] | None = None
    end: int = 0
    head: bytes = b""

    def close(self) -> None:
        """Close the current file."""
        if self.current is not None:
            self.current.close()
            self.current = None


def open_series(path: str, *, follow: bool = False) -> Series:
    """Open a name for reading.

    Args:
        path: The name.
        follow: It will be followed: it need not exist yet, and an unfinished last line
            is left for later.

    Raises:
        ConfigError: It cannot be read; the message has the reason.
    """
    series = Series(path)
    try:
        series.current = open_regular(path)
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
        series.end = end_of_line(series.current, series.end)
    # Listed after opening: a file rotated in between is the open one.
    for other in rotated(path):
        with contextlib.suppress(OSError):
            found = os.stat(other)
            if (found.st_dev, found.st_ino) != (status.st_dev, status.st_ino):
                series.older.append(other)
    return series


def open_regular(path: str) -> IO[bytes]:
    """Open a file for reading, without waiting for a writer as a FIFO would.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return open(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is not a regular file (`-` reads a pipe)", path)


def head_of(stream: IO[bytes]) -> bytes:
    """The first line of a file, as much of it as identifies the file."""
    data = os.pread(stream.fileno(), HEAD_BYTES, 0)
    return data[: data.find(b"\n") + 1] or data


def end_of_line(stream: IO[bytes], place: int) -> int:
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
        with os.scandir(folder or ".") as listed:
            entries = [each.name for each in listed if _is_file(each)]
    except OSError:
        return []
    for entry in sorted(entries):  # "x.1" before "x.1.gz": only the first is read
        if entry.startswith(name):
            match = _ROTATED.fullmatch(entry[len(name) :])
            if match:
                found.setdefault(int(match[1]), os.path.join(folder, entry))
    return [found[number] for number in sorted(found, reverse=True)]


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def unpacked(stream: IO[bytes], path: str) -> Any:
    """The stream, decompressed if it begins as gzip or zstd does.

    Raises:
        ConfigError: It is zstd, which this installation cannot read.
    """
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == _GZIP_MAGIC:
        return gzip.GzipFile(fileobj=stream)
    if magic == _ZSTD_MAGIC:
        return _zstd(stream, path)
    return stream


def is_packed(stream: IO[bytes]) -> bool:
    """Whether the file is compressed."""
    magic = os.pread(stream.fileno(), 4, 0)
    return magic[:2] == _GZIP_MAGIC or magic == _ZSTD_MAGIC


def _zstd(stream: IO[bytes], path: str) -> Any:
    # The sinks that write such files choose between the same two modules. They may
    # import only public modules, and two small choices do not make one.
    module = _zstd_module()
    if module is None:
        raise ConfigError(
            f"{path}: reading zstd needs Python 3.14 or the package zstandard: "
            "pip install 'logagg-service[zstd]', or zstd -dc FILE | logagg tail -"
        )
    if hasattr(module, "ZstdFile"):
        return module.ZstdFile(stream)
    reader = module.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    return io.BufferedReader(reader)


@functools.cache
def _zstd_module() -> Any:
    """Python 3.14's own, else the package zstandard, else None."""
    for name in ("compression.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


def _damaged() -> tuple[type[Exception], ...]:
    """The errors of reading a damaged file."""
    errors = (EOFError, zlib.error, gzip.BadGzipFile)
    module = _zstd_module()
    return errors if module is None else (*errors, module.ZstdError)


def forward(stream: Any, limit: int | None = None) -> Iterator[bytes]:
    """Chunks of whole lines from the stream's place on; the last may have no newline.

    A compressed file that is damaged or still being written ends early.

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
            # `read1` returns what a pipe holds instead of waiting for a full chunk.
            data = stream.read1(size) if hasattr(stream, "read1") else stream.read(size)
        except _damaged():
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
    tail: list[bytes] = []  # pieces of a line that begins further up, reversed
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
