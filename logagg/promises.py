"""Which of a worker's records are safe once which batch is: the acknowledgements.

A batch that went to the lanes carries, for each worker, the seq up to which all of its
records are in it or in one before it. When the durable lanes are done with the batch,
that seq is acknowledged, and a worker that waits in `flush` is told at once. The same
goes for the records that tell of a worker's drops, and for what dead processes left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from time import CLOCK_MONOTONIC, clock_gettime_ns

from logagg.intake import Worker
from logagg.leftovers import Leftovers

__all__ = ["Promises"]

Giver = Worker | Leftovers
Told = list[tuple[Worker, int]]


class Promises:
    """What is to be acknowledged, batch by batch; true while there is anything."""

    def __init__(self) -> None:
        self._open: deque[tuple[int, list[tuple[Giver, int]], Told]] = deque()

    def __bool__(self) -> bool:
        return bool(self._open)

    def note(
        self, number: int, horizon: bytes, givers: Iterable[Giver], told: Told
    ) -> None:
        """Find out whose lines went with a batch, and up to which seq or count.

        Args:
            number: The newest batch's number.
            horizon: The sort key up to which all that was read has been released.
            givers: Whoever must hear what is safe.
            told: Whose drops the batch tells of, and how many in all.
        """
        found = []
        for giver in givers:
            if giver.marks:
                seq = giver.released(horizon)
                if seq:
                    found.append((giver, seq))
        if found or told:
            self._open.append((number, found, told))

    def keep(self, safe: int) -> None:
        """Acknowledge what went with batches up to the number `safe`."""
        while self._open and self._open[0][0] <= safe:
            _, found, told = self._open.popleft()
            for worker, total in told:
                worker.tell({"told": total})
            for giver, seq in found:
                giver.acknowledge(seq)
                if isinstance(giver, Worker) and giver.flush_to:
                    giver.tell_safe(clock_gettime_ns(CLOCK_MONOTONIC))
