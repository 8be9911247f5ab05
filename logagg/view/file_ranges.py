"""The lines of a series from an instant to another, oldest first, in bounded memory.

Records that are not marked late stand in the order of their time. So the rotated files,
and the part of a plain one, that can hold records of a range are found without reading
all. A late record is written a moment after its time: reading goes on for LATENESS after
the end of the range.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

from logagg.core.line import TIMESTAMP, is_wire
from logagg.core.merge import LATE_MARK
from logagg.core.units import wire_time
from logagg.view import files, parallel
from logagg.view.files import Select, Series

__all__ = ["FileRange", "all_lines", "bounds", "needed", "start_place"]

_LATENESS = 60_000_000_000  # ns
_PROBE_BYTES = 1 << 16
_LAST_KEY = b"~"  # after every time


def all_lines(
    series: Series, select: Select, since: bytes = b""
) -> Iterator[list[bytes]]:
    """The matching lines of a series, oldest first, chunk by chunk.

    Args:
        series: The files.
        select: The filter.
        since: The wire time (30 bytes) before which nothing matches; b"" for none.
    """
    yield from FileRange(series, since).read(select)


class FileRange:
    """The part of a series that can hold the records of a range of time.

    Attributes:
        older: The rotated files of them, oldest first.
        total: Bytes of the files to read, as they are on disk.
        done: Those of them that were read or need not be.
    """

    def __init__(
        self, series: Series, since: bytes = b"", until_ns: int | None = None
    ) -> None:
        """Find the files.

        Args:
            series: The files.
            since: The wire time before which nothing matches; b"" for none.
            until_ns: The instant after which nothing matches; None for none.
        """
        self._series = series
        self._since = since
        self._stop = _stop_key(until_ns)
        self.older = [p for p in needed(series, since) if not self._begins_after(p)]
        self.total = sum(map(_size, self.older))
        if series.current is not None:
            self.total += series.end
        self.done = 0

    def read(self, select: Select) -> Iterator[list[bytes]]:
        """The matching lines, chunk by chunk; `done` grows with each."""
        for path in self.older:
            before = self.done
            with contextlib.suppress(OSError), files.open_regular(path) as stream:
                yield from self._lines(stream, path, None, select)
            self.done = before + _size(path)
        series = self._series
        if series.current is not None:
            yield from self._lines(series.current, series.path, series.end, select)
        self.done = self.total

    def _begins_after(self, path: str) -> bool:
        if not self._stop:
            return False
        with contextlib.suppress(OSError), files.open_regular(path) as stream:
            key = first_key(stream, path)
            return key != _LAST_KEY and key > self._stop
        return False

    def _lines(
        self, stream: IO[bytes], path: str, end: int | None, select: Select
    ) -> Iterator[list[bytes]]:
        before = self.done
        if not files.is_packed(stream):
            place = start_place(stream, self._since)
            if self._stop:
                last = _end_place(stream, self._stop)
                end = last if end is None else min(last, end)
            for lines, done in _part(stream, place, end, select):
                self.done = before + done
                yield lines
            return
        stream.seek(0)
        for data in files.forward(files.unpacked(stream, path)):
            self.done = before + stream.tell()
            yield select(data)


def bounds(stream: IO[bytes], since: bytes, until_ns: int | None) -> tuple[int, int]:
    """Where in a plain file the lines of a range of time begin and end."""
    stop = _stop_key(until_ns)
    end = _end_place(stream, stop) if stop else os.fstat(stream.fileno()).st_size
    return start_place(stream, since), end


def _stop_key(until_ns: int | None) -> bytes:
    return b"" if until_ns is None else wire_time(until_ns + _LATENESS).encode()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _part(
    stream: IO[bytes], place: int, end: int | None, select: Select
) -> Iterator[tuple[list[bytes], int]]:
    """The matching lines of a plain file from a line's start to `end` or its end.

    With each chunk's lines comes the place up to which the file was read.
    """
    if select.spread:
        size = os.fstat(stream.fileno()).st_size
        stop = files.end_of_line(stream, size if end is None else min(end, size))
        if stop - place >= parallel.LEAST_BYTES and parallel.helpers() > 1:
            try:
                pieces = parallel.select(stream.fileno(), place, stop, select)
                for number, lines in enumerate(pieces, 1):
                    yield lines, min(place + number * parallel.PIECE_BYTES, stop)
                place = stop
            except parallel.Early as early:
                place = early.place
    stream.seek(place)
    for data in files.forward(stream, None if end is None else end - place):
        place += len(data)
        yield select(data), place


def needed(series: Series, since: bytes) -> list[str]:
    """The rotated files that can hold a record since then, oldest first."""
    if not since:
        return series.older
    current = series.current
    key = first_key(current, series.path) if current is not None else _LAST_KEY
    kept: list[str] = []
    for path in reversed(series.older):
        # A file's first record in order is younger than all in the files before it,
        # late ones apart: those hold nothing since then.
        if key < since:
            break
        kept.append(path)
        key = _LAST_KEY
        with contextlib.suppress(OSError), files.open_regular(path) as stream:
            key = first_key(stream, path)
    return kept[::-1]


def first_key(stream: IO[bytes], path: str) -> bytes:
    """The time of the first record that is in order, or the greatest possible."""
    stream.seek(0)
    for data in files.forward(files.unpacked(stream, path)):
        for line in data.split(b"\n"):
            if is_wire(line) and LATE_MARK not in line:
                return line[TIMESTAMP]
        break
    return _LAST_KEY


def start_place(stream: IO[bytes], since: bytes) -> int:
    """Where in a plain file to start reading: all lines before are older."""
    if not since:
        return 0
    size = os.fstat(stream.fileno()).st_size
    low, _ = _bisect(stream, since, size)
    while 0 < low < size:  # to the end of this line
        data = os.pread(stream.fileno(), _PROBE_BYTES, low)
        cut = data.find(b"\n") + 1
        if cut:
            return low + cut
        low += len(data)
    return low


def _end_place(stream: IO[bytes], until: bytes) -> int:
    """Where in a plain file to stop reading: all lines after, but late ones, are later.

    An unfinished last line is within.
    """
    size = os.fstat(stream.fileno()).st_size
    _, high = _bisect(stream, until, size)
    if high + _PROBE_BYTES >= size:
        return size
    return files.end_of_line(stream, high + _PROBE_BYTES)


def _bisect(stream: IO[bytes], key: bytes, size: int) -> tuple[int, int]:
    """Two places: lines that end before the first are older than a time, and those that
    begin _PROBE_BYTES after the second are not.

    It bisects on the newest record in order of a probe, which rises through the file. A
    probe without such a record, as in other programs' files, ends the search at the
    last places found.
    """
    low, high = 0, size
    while high - low > 4 * _PROBE_BYTES:
        middle = (low + high) // 2
        data = os.pread(stream.fileno(), _PROBE_BYTES, middle)
        keys = [
            line[TIMESTAMP]
            for line in data.split(b"\n")[1:-1]
            if is_wire(line) and LATE_MARK not in line
        ]
        if not keys:
            break
        if max(keys) < key:
            low = middle
        else:
            high = middle
    return low, high
