"""The lines that the page's server holds: the last ones, bounded by bytes.

Each line has a number, from 1, in the order in which it came. A note of the viewer (a
reconnection, records that were skipped) has one too and stands in its place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from logagg.view.page.page_filter import Counts, counts_of

__all__ = ["RecordRing", "RingBatch"]

MOST_BYTES = 64 << 20
MOST_BATCHES = 100_000
_SMALL = 256  # lines up to which a batch takes more
_LINE_OVERHEAD = 60  # bytes of memory of a line besides its text


@dataclass(slots=True)
class RingBatch:
    """Lines that came together, or one note.

    Attributes:
        first: The number of the first line.
        lines: The lines; none of a note.
        note: The note's text; "" for lines.
        counts: Of all the lines.
        size: Bytes of memory.
    """

    first: int
    lines: list[bytes]
    note: str = ""
    counts: Counts = field(default_factory=dict)
    size: int = 0

    @property
    def next(self) -> int:
        """The number that follows."""
        return self.first + (len(self.lines) or 1)

    def numbered(self, kept: list[bytes]) -> list[tuple[int, bytes]]:
        """Some of its lines, in order and the same objects, with their numbers."""
        if len(kept) == len(self.lines):
            return list(enumerate(kept, self.first))
        found = []
        wanted = iter(kept)
        line = next(wanted, None)
        for number, each in enumerate(self.lines, self.first):
            if each is line:
                found.append((number, each))
                line = next(wanted, None)
        return found


class RecordRing:
    """The last batches. Not safe for threads: it belongs to the server's loop.

    Attributes:
        next: The number that the next line gets.
        records: How many lines have come in all.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._batches: deque[RingBatch] = deque()
        self._bytes = 0
        self._most = most_bytes
        self.next = 1
        self.records = 0

    @property
    def first(self) -> int:
        """The number of the oldest line that is held; `next` when none is."""
        return self._batches[0].first if self._batches else self.next

    def add(self, lines: list[bytes], counts: Counts | None = None) -> None:
        """Take lines; forget the oldest."""
        if not lines:
            return
        size = sum(map(len, lines)) + _LINE_OVERHEAD * len(lines)
        counts = counts_of(lines) if counts is None else counts
        self.records += len(lines)
        last = self._batches[-1] if self._batches else None
        if last is None or last.note or len(last.lines) + len(lines) > _SMALL:
            self._put(RingBatch(self.next, lines, "", counts, size))
            return
        last.lines = [*last.lines, *lines]  # readers hold the old list
        for cell, number in counts.items():
            last.counts[cell] = last.counts.get(cell, 0) + number
        last.size += size
        self._bytes += size
        self.next = last.next

    def add_note(self, text: str) -> None:
        """Take a note."""
        self._put(RingBatch(self.next, [], text, {}, len(text) + _LINE_OVERHEAD))

    def _put(self, batch: RingBatch) -> None:
        self._batches.append(batch)
        self._bytes += batch.size
        self.next = batch.next
        while len(self._batches) > 1 and (
            self._bytes > self._most or len(self._batches) > MOST_BATCHES
        ):
            self._bytes -= self._batches.popleft().size

    def since(self, number: int) -> list[RingBatch]:
        """The lines from a number on."""
        found = []
        for batch in reversed(self._batches):
            if batch.next <= number:
                break
            found.append(_cut(batch, number, batch.next))
        return found[::-1]

    def before(self, number: int) -> Iterator[RingBatch]:
        """The lines before a number, the newest batch first."""
        held = list(self._batches)  # more may come while these are read
        for batch in reversed(held):
            if batch.first < number:
                yield _cut(batch, batch.first, number)

    def line(self, number: int) -> bytes | None:
        """The line of a number; None when it is gone, or is a note."""
        place = bisect_right(self._batches, number, key=_first) - 1
        if place < 0:
            return None
        batch = self._batches[place]
        index = number - batch.first
        return batch.lines[index] if index < len(batch.lines) else None


def _cut(batch: RingBatch, start: int, end: int) -> RingBatch:
    """The part of a batch between two numbers, unchanged by what comes later."""
    if batch.note:
        return batch
    if start <= batch.first and end >= batch.next:
        return RingBatch(batch.first, batch.lines, "", batch.counts, batch.size)
    first = max(start, batch.first)
    lines = batch.lines[first - batch.first : end - batch.first]
    return RingBatch(first, lines, "", counts_of(lines))


def _first(batch: RingBatch) -> int:
    return batch.first
