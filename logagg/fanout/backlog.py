"""Batches that wait for one sink, in order, and the drop of those that are too many.

Theory of operation
-------------------
The order is: the batch being written, then those spooled on disk
(`logagg.fanout.sink_spool`), then the queue in memory (`logagg.fanout.memory_queue`).
When the queue must be brought within its bounds, the sink's policy decides:

    spool       what waits is spooled; when there is no room either, as drop_old
    drop_old    the oldest records of the lowest severity are dropped, as many as needed
    drop_new    the newest ones of the lowest severity

The batch being written is spooled in front of those that came after it, so that nothing
ever needs to be put before what is on disk; if the write succeeds it is consumed there.
"""

from __future__ import annotations

from collections import Counter
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any

from logagg.abc import Batch, Policy
from logagg.core.event import Event
from logagg.fanout.counters import SinkCounters
from logagg.fanout.memory_queue import MemoryQueue, QueuedBatch, levels_of
from logagg.fanout.sink_spool import SinkSpool
from logagg.platform.terminal_text import complain
from logagg.sinks import CommonOptions

__all__ = ["Backlog"]


class Backlog:
    """The batches that wait for one sink.

    Args:
        common: Bounds and policy.
        spool: Where batches wait that do not fit into memory.
        counters: Counts and announces what is dropped.

    Attributes:
        spool: As given.
        writing: The batch being written, if it came from memory.
    """

    def __init__(
        self, common: CommonOptions, spool: SinkSpool, counters: SinkCounters
    ) -> None:
        self.spool = spool
        self.writing: QueuedBatch | None = None
        self._writing_spooled = False
        self._common = common
        self._spools = common.policy is Policy.SPOOL
        self._counters = counters
        self._queue = MemoryQueue()
        self._spooled_at = 0.0

    @property
    def _in_memory(self) -> QueuedBatch | None:
        """The batch being written, unless it is spooled as well."""
        return None if self._writing_spooled else self.writing

    @property
    def records(self) -> int:
        """How many records wait in memory, the batch being written included."""
        writing = self._in_memory
        return self._queue.records + (len(writing.batch) if writing else 0)

    @property
    def size_bytes(self) -> int:
        """Their length."""
        writing = self._in_memory
        return self._queue.size_bytes + (writing.size_bytes if writing else 0)

    @property
    def full(self) -> bool:
        """Whether the queue is at one of its bounds."""
        return (
            self.records >= self._common.queue_records
            or self.size_bytes >= self._common.queue_bytes
        )

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return self.writing is None and not self._queue and not self.spool.records

    @property
    def first_number(self) -> int:
        """The number of the first batch in memory; 0 when there is none."""
        if self.writing is not None:
            return self.writing.number
        return self._queue.first.number if self._queue else 0

    @property
    def next_number(self) -> int:
        """The number of the batch that `take` gives next; 0 when there is none."""
        return self._queue.first.number if self._queue else 0

    def statistics(self) -> dict[str, Any]:
        """The counters, for status and metrics; `oldest` is the age of the first."""
        return {
            "recovered": self.spool.recovered,
            "queued_records": self.records,
            "queued_bytes": self.size_bytes,
            "spool_records": self.spool.records,
            "spool_bytes": self.spool.size_bytes,
            "oldest": self._oldest_age(),
        }

    def _oldest_age(self) -> float:
        now = clock_gettime(CLOCK_MONOTONIC)
        since = [self._spooled_at] if self.spool.records else []
        if self.writing is not None:
            since.append(self.writing.since)
        if self._queue:
            since.append(self._queue.first.since)
        return now - min(since, default=now)

    def recover(self) -> None:
        """Take over what an earlier consumer left on disk. Raises OSError."""
        self.spool.recover()
        self._spooled_at = clock_gettime(CLOCK_MONOTONIC)

    def append(self, number: int, batch: Batch, now: float) -> None:
        """Add a batch, in memory or after what waits on disk already."""
        self._queue.append(number, batch, now)
        if self._spools and self.spool.records:
            self.relieve()

    def take(self) -> QueuedBatch:
        """Take the first batch in memory to be written."""
        self.writing = self._queue.pop()
        return self.writing

    @property
    def moved(self) -> bool:
        """Whether the batch being written waits on disk as well."""
        return self._writing_spooled

    def finish(self, *, written: bool) -> None:
        """Give up the batch that was taken: it is written, or it waits on disk."""
        if written and self._writing_spooled and self.writing is not None:
            self.spool.advance(self.writing.batch)
        self.writing, self._writing_spooled = None, False

    def relieve(self) -> None:
        """Bring the queue within its bounds, by the sink's policy."""
        if self._spools:
            self._move_to_disk()
        levels = self._queue.enforce(
            self._common.queue_records,
            self._common.queue_bytes,
            newest=self._common.policy is Policy.DROP_NEW,
        )
        if levels:
            self._counters.drop("spool_full" if self._spools else "queue_full", levels)

    def _move_to_disk(self) -> None:
        """Spool what waits in memory, in order, as far as there is room."""
        spool = self.spool
        before = spool.records
        if not before:
            self._spooled_at = clock_gettime(CLOCK_MONOTONIC)
            if self.writing is not None:
                self._writing_spooled = spool.append(self.writing.batch)
        while self._queue and spool.append(self._queue.first.batch):
            self._queue.pop()
        if spool.records and not before:
            self._counters.announce(Event.SINK_SLOW, "is slow: records are spooled")

    def set_aside(self) -> Counter[str]:
        """Spool what is left where a successor finds it; drop and return the rest.

        Returns:
            What is dropped, by level; it is not counted yet.
        """
        spool = self.spool
        lost: Counter[str] = Counter()
        if self._spools and spool.name:
            self._move_to_disk()
        if self._in_memory is not None:
            lost.update(levels_of(self._in_memory.batch.lines))
        self.finish(written=False)
        lost.update(self._queue.enforce(0, 0, newest=False))
        while not spool.name and spool.records:
            batch = spool.peek()
            if batch is None:
                break
            lost.update(levels_of(batch.lines))
            spool.advance(batch)
        return lost

    def close(self, name: str, lost: int) -> None:
        """Release the spool; report what waits in it, and what is lost."""
        if lost:
            error = self._counters.error or "the time is over"
            self._report(f"{lost} records for {name} were not written: {error}", lost)
        left = self.spool.records
        if left:
            text = f"{left} records for {name} wait in {self.spool.folder}"
            self._report(f"{text}; the next consumer writes them", left)
        self.spool.close()

    def _report(self, text: str, number: int) -> None:
        complain(f"logagg: {text}")
        self._counters.record(text, {"event": Event.UNDELIVERED, "number": number})
