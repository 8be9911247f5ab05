"""How long records have waited in a spool. Pure: it is told positions and times.

One mark stands for all records that came within an eighth of the age, so there are few.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Ages"]


class Ages:
    """Says when the first record that waits has waited long enough.

    Args:
        age: How long that is, in seconds.
    """

    def __init__(self, age: float) -> None:
        self._age = age
        self._marks: deque[tuple[int, float]] = deque()  # (end of what came, when)

    def note(self, end: int, now: float) -> None:
        """Records came; the last one ends at this position."""
        if not self._marks or self._marks[-1][1] + self._age / 8 < now:
            self._marks.append((end, now))

    def left(self, start: int, end: int, now: float) -> float:
        """Seconds until the record at `start` has waited long enough; or none.

        A record that no mark stands for came while others filled a batch by
        themselves: it has waited long enough.
        """
        while self._marks and self._marks[0][0] <= start:
            marked, at = self._marks.popleft()
            if not self._marks and marked < end:
                self._marks.append((end, at))
        return self._marks[0][1] + self._age - now if self._marks else 0.0
