"""Acknowledgements: which records of which source are safe once a batch is durable.

Each batch that goes to the sinks is recorded with the number, for each source, up to
which all of its records are in that batch or in one before it. When the durable sinks
have the batch, those numbers are acknowledged. The same goes for the records that
announce a worker's drops: the worker learns that they are safe, so that the next
consumer does not announce the same drops again.

A worker may attach a second time under its stream, with another pipe: an exception came
in the middle of a write, or its application has closed its descriptors. Then all that
was not acknowledged comes again, and `StreamSuccession` lets each record through once.
"""

from __future__ import annotations

import asyncio
from collections import deque

from logagg.consumer.source import AckedSource
from logagg.consumer.worker_source import SourceState, WorkerSource
from logagg.ipc.protocol import ConsumerPacket

__all__ = ["AckTracker", "StreamSuccession", "take_released"]

TAKE_OVER_CHECK = 0.01
MOST_ENDED = 10_000
"""Streams of which it is known how far they came; their processes may attach again."""

Announced = list[tuple[WorkerSource, int]]


class AckTracker:
    """Acknowledgements that are due, batch by batch; false while there are none.

    Attributes:
        sources: Whose records are acknowledged; departed ones until all is safe.
    """

    def __init__(self) -> None:
        self.sources: list[AckedSource] = []
        self._open: deque[tuple[int, list[tuple[AckedSource, int]], Announced]] = (
            deque()
        )

    def __bool__(self) -> bool:
        return bool(self._open)

    def record(
        self,
        batch: int,
        released_before: bytes,
        announced: Announced,
    ) -> None:
        """Note how far each source has come with a batch.

        Args:
            batch: The newest batch's number.
            released_before: All lines that were read and sort before it are in this
                batch or an earlier one.
            announced: Workers whose drops the batch announces, and how many in all.
        """
        found = []
        for source in self.sources:
            if source.marks:
                number = take_released(source.marks, released_before)
                if number:
                    found.append((source, number))
        if found or announced:
            self._open.append((batch, found, announced))

    def limit_marks(self, latest: bytes) -> None:
        """Let marks beyond a sort key count from there on: their lines are released."""
        for source in self.sources:
            if source.marks:
                source.marks[:] = [(min(k, latest), n) for k, n in source.marks]

    def release(self, safe: int) -> None:
        """Acknowledge what went with batches up to number `safe`."""
        while self._open and self._open[0][0] <= safe:
            _, found, announced = self._open.popleft()
            for worker, total in announced:
                worker.send(ConsumerPacket(drops_announced=total))
            for source, number in found:
                source.acknowledge(number)

    def send(self, now_ns: int) -> bool:
        """Send what is due; forget sources of which all is safe.

        Returns:
            Whether there was such a one.
        """
        for source in self.sources:
            source.send_ack(now_ns)
        finished = [each for each in self.sources if each.finished]
        for source in finished:
            self.sources.remove(source)
            source.close()
        return bool(finished)


def take_released(marks: list[tuple[bytes, int]], released_before: bytes) -> int:
    """Take the first marks that sort before a key; the number of the last, or 0.

    In their order: a mark whose key is empty counts only after all that precede it.
    """
    number = 0
    count = 0
    for key, marked in marks:
        if key >= released_before:
            break
        number = marked
        count += 1
    del marks[:count]
    return number


class StreamSuccession:
    """The newest source of each stream; a later one goes on where it has ended."""

    def __init__(self) -> None:
        self._newest: dict[str, WorkerSource] = {}
        self._before: dict[WorkerSource, WorkerSource] = {}
        self._ended: dict[str, int] = {}  # by stream, the next seq
        self._sweep_at = 100

    def add(self, worker: WorkerSource) -> None:
        """Note a source before it is read."""
        stream = worker.stream
        before = self._newest.get(stream)
        if before is not None and before.pid == worker.pid:
            self._before[worker] = before
            before.successor = worker
            if before.state is not SourceState.DEPARTED:
                for notice in worker.hello.segments:
                    before.segments.add(notice)
            worker.resumed = False
        elif stream in self._ended:
            _go_on(worker, self._ended[stream], self._ended[stream] - 1)
        self._newest[stream] = worker
        if len(self._newest) > self._sweep_at:
            self._sweep()

    def forget(self, worker: WorkerSource) -> None:
        """Another consumer reads it."""
        self._before.pop(worker, None)
        self._newest.pop(worker.stream, None)

    async def take_over(self, worker: WorkerSource) -> None:
        """Wait until the stream's earlier source has nothing more; go on after it."""
        before = self._before.get(worker)
        if before is None:
            return
        # It departs within a cycle or two.
        while before.state is not SourceState.DEPARTED:  # noqa: ASYNC110
            await asyncio.sleep(TAKE_OVER_CHECK)
        _go_on(worker, before.sequence.expected, before.safe)
        self._before.pop(worker, None)

    def _sweep(self) -> None:
        """Keep of finished sources their numbers, of those that may attach again."""
        for stream, worker in list(self._newest.items()):
            if worker.finished:
                del self._newest[stream]
                if not worker.goodbye:
                    self._ended[stream] = worker.sequence.expected
        for stream in list(self._ended)[: max(len(self._ended) - MOST_ENDED, 0)]:
            del self._ended[stream]
        self._sweep_at = 2 * len(self._newest) + 100


def _go_on(worker: WorkerSource, expected: int, safe: int) -> None:
    worker.sequence.expected = max(worker.sequence.expected, expected)
    worker.safe = max(worker.safe, safe)
