"""The takeover after a consumer that died, and records that nothing sends any more.

`Takeover`: workers hand over their pipes and what was not acknowledged. Before anything
is released, RESTART_HOLD gives them the time to attach, so that the order goes on. What
they kept may be written already: the durable sinks report which of it they have
(`Sink.written_since`), and that is not written to them again. Then what dead processes
left on disk is read. Each of these waits has a bound; when it has passed, records may
be written twice or late, and none is lost.

`OrphanSource`: records that processes left on disk before they and their consumer ended.
The consumer of an address takes them in at its start: segments that no living process
holds or will announce itself, one stream after the other, each in the order of its seqs.
Their stamps are old, so they are released at once, marked as late. A segment is removed
when all durable sinks have its records, not before: until then this consumer may die
too.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Self

from logagg.client.spool_writer import orphans, stream_of
from logagg.consumer.segment_reader import (
    SegmentReader,
    remove_segment,
    with_descriptor,
)
from logagg.consumer.source import CHUNK_BYTES, SourceEnded, SourceSet
from logagg.consumer.worker_source import WorkerSource
from logagg.core.line import seq_of
from logagg.core.merge import OfTheDead
from logagg.core.sequence import Sequence
from logagg.fanout.fanout import Fanout
from logagg.fanout.watched_tasks import WatchedTasks
from logagg.ipc.paths import identifier_of
from logagg.ipc.protocol import ConsumerConfig

__all__ = ["OrphanSource", "Takeover"]

RESTART_HOLD = 0.4
ORPHANS_TIMEOUT = 30.0


class Takeover:
    """The time in which a new consumer takes over.

    Args:
        config: Whether there was one, and the address, which names the directories of
            segments.
        fanout: The sinks.
        tasks: Starts the search for what is on disk.
        found: Called with records that were found there.
    """

    def __init__(
        self,
        config: ConsumerConfig,
        fanout: Fanout,
        tasks: WatchedTasks,
        found: Callable[[OrphanSource], None],
    ) -> None:
        self._identifiers = {identifier_of(config.socket), config.spool} - {""}
        self._fanout = fanout
        self._tasks = tasks
        self._found = found
        self._restarted = config.restarted
        self._due = RESTART_HOLD if config.restarted else 0.0
        self._searching = False
        self._attached: set[str] = set()  # streams that were, at any time in the search

    def holds(self, age: float, workers: Iterable[WorkerSource]) -> bool:
        """Whether the release waits for workers, for orphans, or for the first sink.

        Args:
            age: Seconds since the consumer's start.
            workers: Those that are attached; they read their own segments.
        """
        has_sinks = bool(self._fanout.runners)
        if age >= self._due and has_sinks:
            self._due = float("inf")
            self._searching = True
            self._tasks.start(self._search(), "the search for spooled records")
        if self._searching:  # one that attaches now may have ended when files are found
            self._attached.update(worker.stream for worker in workers)
        attaching = self._restarted and age < RESTART_HOLD
        return attaching or not has_sinks or self._searching

    async def _search(self) -> None:
        """Find what processes that are gone have left on disk."""
        try:
            async with asyncio.timeout(ORPHANS_TIMEOUT):
                addresses = self._identifiers | self._fanout.identifiers
                find = partial(OrphanSource.find, addresses, self._attached)
                orphaned = await with_descriptor(find)
                if orphaned is not None:
                    try:
                        key = await with_descriptor(orphaned.oldest_key)
                        await self._fanout.recall(key)
                    finally:
                        self._found(orphaned)
        finally:
            self._searching = False

    async def check(self, worker: WorkerSource) -> None:
        """Learn which of a worker's kept records the durable sinks have."""
        worker.resumed |= self._restarted
        if worker.resumed:
            key = await with_descriptor(worker.segments.oldest_key)
            if key:
                await self._fanout.recall(worker.stamps.earliest(key))

    def forget(self, sources: SourceSet, workers: Iterable[WorkerSource]) -> None:
        """Let the sinks' answers go once nothing is left that they are for."""
        if self._fanout.knows_written and not (
            self._searching
            or self._due < float("inf")
            or sources.possible_duplicates
            or any(isinstance(source, OrphanSource) for source in sources)
            or any(each.resumed and each.segments.unread for each in workers)
            or any(not source.readable for source in sources)
        ):
            self._fanout.forget_written()


class OrphanSource:
    """Segments without an owner: a `Source` and an `AckedSource`.

    Attributes:
        pipe: A descriptor that is always readable, as the cycle polls one.
        marks: See `AckedSource`; the numbers count lines from the first one on.
    """

    pid = 0
    identity = None
    readable = True
    pending = True
    is_flushing = False
    shows_delay = False
    bytes_taken = 0
    stamps: OfTheDead

    def __init__(self, paths: list[str]) -> None:
        self.stamps = OfTheDead(0)
        self.drained = False
        self.hold_key = b""
        self.pipe, write = os.pipe()
        os.close(write)  # at its end, hence always readable
        self.marks: list[tuple[bytes, int]] = []
        self._paths = paths
        self._segment: SegmentReader | None = None
        self._sequence = Sequence()
        self._stream = ""
        self._count = 0
        self._safe = 0
        self._ends: deque[tuple[int, str]] = deque()  # how many lines up to its end
        self._possible_duplicates: list[bytes] = []

    @classmethod
    def find(cls, identifiers: set[str], attached: set[str]) -> Self | None:
        """The orphans of some addresses, without those of streams that are attached.

        Raises:
            OSError: No descriptor is free, or the disk cannot be read now.
        """
        found = [path for each in sorted(identifiers) for path in orphans(each)]
        paths = [path for path in found if stream_of(path) not in attached]
        return cls(paths) if paths else None

    def oldest_key(self) -> bytes:
        """The sort key of the oldest line; empty when there is none.

        Raises:
            OSError: No descriptor is free, or the disk cannot be read now.
        """
        keys = [SegmentReader(path, 0).first_key() for path in self._paths]
        return min(filter(None, keys), default=b"")

    def take_possible_duplicates(self) -> list[bytes]:
        """All lines since the last call."""
        found, self._possible_duplicates = self._possible_duplicates, []
        return found

    def start_reading(self, *, if_gone: bool = False) -> None:
        """It is readable from the start."""

    def read(self, budget: int) -> tuple[list[bytes], bool]:
        """Take lines; see `Source.read`."""
        found: list[bytes] = []
        while budget > 0:
            if self._segment is None:
                if not self._paths:
                    if found:
                        break
                    raise SourceEnded("end of orphaned segments")
                if found and stream_of(self._paths[0]) != self._stream:
                    break
                self._next()
                continue
            budget -= CHUNK_BYTES
            if not self._segment.pull():
                if self._segment.blocked:
                    break
                path = "" if self._segment.is_lost else self._segment.path
                self._ends.append((self._count + len(found), path))
                self._segment = None
                continue
            lines, self._segment.lines = self._segment.lines, []
            while lines:
                chosen, lines = self._sequence.accept(lines)
                found += chosen
                if lines:
                    self._sequence.give_up_before(seq_of(lines[0]))
        if found:
            self._possible_duplicates += found
            self._count += len(found)
            self.marks.append((self.stamps.highest(found), self._count))
        return found, False

    def _next(self) -> None:
        path = self._paths.pop(0)
        stream = stream_of(path)
        first = int(os.path.basename(path).rpartition("-")[2].partition(".")[0])
        if stream != self._stream:
            self._stream = stream
            self._sequence = Sequence(first)
            self.stamps.next_stream()
        self._segment = SegmentReader(path, 0)

    def acknowledge(self, number: int) -> None:
        """So many lines, from the first on, are safe: remove their segments."""
        self._safe = max(self._safe, number)
        while self._ends and self._ends[0][0] <= self._safe:
            path = self._ends.popleft()[1]
            if path:
                remove_segment(path)

    def send_ack(self, now_ns: int) -> None:
        """Nothing: the process that wrote them is gone."""

    def finish(self, reason: str) -> bool:  # noqa: ARG002 - of the protocol
        """Read nothing more; what is not safe yet is still to be acknowledged."""
        self.acknowledge(0)  # segments without a line
        self.close()
        return True

    @property
    def finished(self) -> bool:
        """Whether everything was read and is safe."""
        return self.pipe < 0 and not self._ends

    def close(self) -> None:
        """Release the descriptors. May be called twice."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
