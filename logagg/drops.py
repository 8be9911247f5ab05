"""What a process has dropped, and the holes that leaves in its seqs. Pure.

A record that is dropped had got its seq, so the consumer sees a hole, and must be able
to tell it from a loss that nobody has counted. It is told how many were dropped. A new
consumer begins to count seqs behind the acknowledged one and does not see the holes
before that, so it is told how many drops are `settled` there.
"""

from __future__ import annotations

__all__ = ["Drops"]


class Drops:
    """The drops of one process.

    Attributes:
        count: Records that could be neither sent nor parked.
        told: How many of them the present consumer knows of.
        shown: How many a consumer has told of in records that are safe.
    """

    def __init__(self) -> None:
        self.count = 0
        self.told = 0
        self.shown = 0
        self._holes: list[list[int]] = []  # first and last seq, of those not settled

    def add(self, seq: int) -> None:
        """Count a drop; seqs must rise."""
        self.count += 1
        if self._holes and self._holes[-1][1] == seq - 1:
            self._holes[-1][1] = seq
        else:
            self._holes.append([seq, seq])

    def acknowledge(self, seq: int) -> None:
        """Forget the holes up to a seq: they are settled for good."""
        while self._holes and self._holes[0][1] <= seq:
            del self._holes[0]

    def settled(self, acknowledged: int) -> int:
        """How many drops stand up to the acknowledged seq."""
        begin = acknowledged + 1
        open_ = sum(last + 1 - max(first, begin) for first, last in self._holes)
        return self.count - open_
