"""The last lines of files, however long they are: bounded by their number and bytes.

An archive of a megabyte can have lines of a gigabyte. Where the lines that are wanted
have more bytes than `most_bytes`, the newest of them are found, at least one.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO

from logagg.view.files import (
    Select,
    Series,
    backward,
    forward,
    is_packed,
    open_regular,
    unpacked,
)

__all__ = ["Newest", "last_lines", "most_bytes"]

_MOST_BYTES = 32 << 20
_ORDINARY_BYTES = 4 << 10


def most_bytes(count: int, files: int = 1) -> int:
    """How many bytes so many lines of each of so many files may have."""
    return _MOST_BYTES // files + count * _ORDINARY_BYTES


class Newest:
    """The newest lines of those that are added, in order.

    Args:
        count: How many at most.
        most: How many bytes at most, where it is more than one line.

    Attributes:
        lines: The lines.
        is_cut: One was left out because of the bytes.
    """

    def __init__(self, count: int, most: int) -> None:
        self.lines: deque[bytes] = deque()
        self.is_cut = False
        self._count = count
        self._most = most
        self._held = 0

    def alike(self) -> Newest:
        """An empty one with the same bounds."""
        return Newest(self._count, self._most)

    @property
    def is_full(self) -> bool:
        """Whether nothing older has room."""
        return self.is_cut or len(self.lines) >= self._count

    def extend(self, lines: Iterable[bytes]) -> None:
        """Add newer lines; the oldest go where there are too many."""
        for line in lines:
            self.lines.append(line)
            self._held += len(line)
            while len(self.lines) > self._count or self._is_over():
                self.is_cut = self.is_cut or len(self.lines) <= self._count
                self._held -= len(self.lines.popleft())

    def extend_left(self, lines: list[bytes]) -> None:
        """Add older lines, as many as there is room for."""
        for line in reversed(lines):
            if self.is_full:
                return
            self.lines.appendleft(line)
            self._held += len(line)
            if self._is_over():
                self._held -= len(self.lines.popleft())
                self.is_cut = True

    def _is_over(self) -> bool:
        return self._held > self._most and len(self.lines) > 1


def last_lines(series: Series, select: Select, newest: Newest) -> None:
    """Add the last matching lines of a series to lines of which there are none yet."""
    parts = _newest_first(series, select, newest)
    while not newest.is_full and (part := next(parts, None)) is not None:
        lines, is_cut = part
        newest.extend_left(lines)
        newest.is_cut = newest.is_cut or is_cut


def _newest_first(
    series: Series, select: Select, newest: Newest
) -> Iterator[tuple[list[bytes], bool]]:
    """The matching lines in parts, the newest first; whether one was left out."""
    if series.current is not None:
        end = series.end
        yield from _backward(series.current, series.path, end, select, newest)
    for path in reversed(series.older):
        with contextlib.suppress(OSError), open_regular(path) as stream:
            end = os.fstat(stream.fileno()).st_size
            yield from _backward(stream, path, end, select, newest)


def _backward(
    stream: IO[bytes], path: str, end: int, select: Select, newest: Newest
) -> Iterator[tuple[list[bytes], bool]]:
    if not is_packed(stream):
        for data in backward(stream, end):
            yield select(data), False
        return
    stream.seek(0)
    kept = newest.alike()
    for data in forward(unpacked(stream, path)):
        kept.extend(select(data))
    yield list(kept.lines), kept.is_cut
