"""Bounded in-memory queue of one sink with severity-aware eviction. Pure.

Theory of operation
-------------------
A queue of batches in order. While it is within its bounds no line is read: a batch
goes in and comes out as it is. Only when the bounds must be enforced are the levels of
the lines read (from their fixed place) and lines dropped: of all that waits those below
warning first, then warnings, then the rest; among equals the oldest or the newest, as
many as needed and no more. Records that stay keep their order.

To make each drop cheap, a batch is cut into pieces of PIECE lines from the first
enforcement on until the queue is empty again, and each rank has its own line of the
pieces that hold lines of it. A piece stands in each of them until it is met there
without a line of that rank.
"""

from __future__ import annotations

from collections import Counter, deque

from logagg.abc import Batch
from logagg.core import levels
from logagg.core.line import level_of, load_line

__all__ = ["MemoryQueue", "QueuedBatch", "levels_of"]

PIECE = 1000


class QueuedBatch:
    """A batch that waits.

    Attributes:
        number: Its number in the stream.
        batch: Its lines.
        size_bytes: How long they are, finished.
        since: When it came, in seconds of the caller's clock.
    """

    __slots__ = ("batch", "counts", "number", "since", "size_bytes")

    def __init__(self, number: int, batch: Batch, since: float) -> None:
        self.number = number
        self.batch = batch
        self.size_bytes = batch.size_bytes
        self.since = since
        self.counts: list[int] = []


class MemoryQueue:
    """Batches in order, within bounds when `enforce` is called.

    Attributes:
        records: How many records wait.
        size_bytes: How long they are together.
    """

    def __init__(self) -> None:
        self.records = 0
        self.size_bytes = 0
        self._entries: deque[QueuedBatch] = deque()
        self._ranks: tuple[deque[QueuedBatch], ...] = ()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> QueuedBatch:
        """The entry that is next; there must be one."""
        return self._entries[0]

    def append(self, number: int, batch: Batch, since: float) -> None:
        """Add a batch that has lines."""
        self.records += len(batch)
        if not self._ranks:
            entry = QueuedBatch(number, batch, since)
            self.size_bytes += entry.size_bytes
            self._entries.append(entry)
            return
        for entry in _pieces(number, batch, since):
            self.size_bytes += entry.size_bytes
            self._add(entry)

    def _add(self, entry: QueuedBatch) -> None:
        entry.counts = [0, 0, 0]
        for line in entry.batch.lines:
            entry.counts[_rank(line)] += 1
        self._entries.append(entry)
        for rank, entries in enumerate(self._ranks):
            if entry.counts[rank]:
                entries.append(entry)

    def pop(self) -> QueuedBatch:
        """Take the first entry."""
        entry = self._entries.popleft()
        entry.counts = []  # gone, for the ranks
        self.records -= len(entry.batch)
        self.size_bytes -= entry.size_bytes
        self._trim()
        return entry

    def _trim(self) -> None:
        """Let the first entry be one that has lines."""
        while self._entries and not len(self._entries[0].batch):
            self._entries.popleft()
        if not self._entries:
            self._ranks = ()

    def enforce(
        self, most_records: int, most_bytes: int, *, newest: bool
    ) -> dict[str, int]:
        """Drop as many records as are too many, the lowest severity first.

        Args:
            most_records: How many may stay.
            most_bytes: How long they may be together.
            newest: Among records of the same rank drop the newest, not the oldest.

        Returns:
            How many were dropped, by level.
        """
        dropped: Counter[bytes] = Counter()
        if self.records <= most_records and self.size_bytes <= most_bytes:
            return {}
        if not self._ranks:
            self._classify()
        while self.records > most_records or self.size_bytes > most_bytes:
            found = self._next_victim(newest=newest)
            if found is None:
                break
            self._evict(*found, most_records, most_bytes, dropped, newest=newest)
        self._trim()
        return {name.decode("ascii", "replace"): dropped[name] for name in dropped}

    def _classify(self) -> None:
        entries, self._entries = self._entries, deque()
        self._ranks = (deque(), deque(), deque())
        for entry in entries:
            for piece in _pieces(entry.number, entry.batch, entry.since):
                self._add(piece)

    def _next_victim(self, *, newest: bool) -> tuple[QueuedBatch, int] | None:
        place = -1 if newest else 0
        for rank, entries in enumerate(self._ranks):
            while entries:
                entry = entries[place]
                if entry.counts and entry.counts[rank]:
                    return entry, rank
                del entries[place]
        return None

    def _evict(
        self,
        entry: QueuedBatch,
        rank: int,
        most_records: int,
        most_bytes: int,
        dropped: Counter[bytes],
        *,
        newest: bool,
    ) -> None:
        """Take lines of a rank out of an entry until all fits, or none is left."""
        kept: list[bytes] = []
        closing = len(entry.batch.closing)
        lines = reversed(entry.batch.lines) if newest else iter(entry.batch.lines)
        for line in lines:
            fits = self.records <= most_records and self.size_bytes <= most_bytes
            if fits or _rank(line) != rank:
                kept.append(line)
                continue
            size = len(line) + closing
            self.records -= 1
            self.size_bytes -= size
            entry.size_bytes -= size
            entry.counts[rank] -= 1
            dropped[level_of(line)] += 1
        if newest:
            kept.reverse()
        entry.batch = entry.batch.select(kept)


def _pieces(number: int, batch: Batch, since: float) -> list[QueuedBatch]:
    if len(batch) <= PIECE:
        return [QueuedBatch(number, batch, since)]
    lines = batch.lines
    return [
        QueuedBatch(number, batch.select(lines[start : start + PIECE]), since)
        for start in range(0, len(lines), PIECE)
    ]


def _rank(line: bytes) -> int:
    rank = _RANKS.get(level_of(line))
    if rank is not None:
        return rank
    number = levels.number_in(load_line(line + b"}") or {})
    return 2 if number is None else _rank_of(number)  # when in doubt it is severe


def _rank_of(number: float) -> int:
    return 0 if number < 30 else 1 if number < 40 else 2


_RANKS = {name.encode(): _rank_of(number) for name, number in levels.NUMBERS.items()}


def levels_of(lines: list[bytes]) -> dict[str, int]:
    """How many lines there are of each level."""
    counts = Counter(map(level_of, lines))
    return {name.decode("ascii", "replace"): counts[name] for name in counts}
