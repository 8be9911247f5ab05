"""Waits: exponential back-off, and a budget of many waits. Pure: the clock is passed.

Two questions, answered apart:

- *How long to wait* doubles with every failure, from `first` up to `most`, times a
  factor from the range `jitter`; it starts anew after a success, or after a failure
  that came after `good_uptime`.
- *Whether to give up* counts only failures *before ready*: `limit` of them within
  `window` mean that it cannot work. Something that worked and then failed is never
  given up.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Backoff", "WaitBudget"]


class Backoff:
    """The waits of one thing that is tried again, in the unit of the caller's clock.

    Args:
        first: The first wait.
        most: The longest wait.
        jitter: The range of the factor that a wait is multiplied with.
        good_uptime: A failure after so long starts the waits anew; 0: never.
        limit: So many failures before ready exhaust it; 0: never.
        window: They count when they are within this time.

    Attributes:
        failures: Failures since the waits started anew.
        due_at: When the next try is due; 0 when nothing has failed.
    """

    __slots__ = (
        "_early", "_first", "_good_uptime", "_jitter", "_limit", "_window",
        "due_at", "failures", "most",
    )  # fmt: skip

    def __init__(
        self,
        first: float,
        most: float,
        *,
        jitter: tuple[float, float] | None = None,
        good_uptime: float = 0,
        limit: int = 0,
        window: float = 0,
    ) -> None:
        self.most = most
        self.failures = 0
        self.due_at: float = 0
        self._first = first
        self._jitter = jitter
        self._good_uptime = good_uptime
        self._limit = limit
        self._window = window
        self._early: deque[float] = deque()

    def failed(
        self,
        now: float,
        chance: float = 0.5,
        *,
        uptime: float = 0,
        ready: bool | None = None,
    ) -> float:
        """Count a failure and return how long to wait before the next try.

        Args:
            now: The time.
            chance: A random number from 0 to 1: the place in the range of jitter.
            uptime: How long it had worked.
            ready: Whether it had become ready; None does not bear on giving up.
        """
        if self._good_uptime and uptime >= self._good_uptime:
            self.failures = 0
        if ready:
            self._early.clear()
        elif ready is False:
            self._early.append(now)
            while self._early[0] < now - self._window:
                self._early.popleft()
        wait = min(self._first * (1 << min(self.failures, 30)), self.most)
        self.failures += 1
        if self._jitter is not None:
            low, high = self._jitter
            wait *= low + (high - low) * chance
        self.due_at = now + wait
        return wait

    @property
    def exhausted(self) -> bool:
        """Whether it failed so often before it was ready that it cannot work."""
        return 0 < self._limit <= len(self._early)

    def reset(self) -> None:
        """Note a success, or a request of the user: all starts anew."""
        self.failures = 0
        self.due_at = 0
        self._early.clear()


class WaitBudget:
    """How long may be waited in all. What was spent comes back as time passes.

    Args:
        most: The budget, in the unit of the caller's clock.
    """

    __slots__ = ("_at", "_left", "_most")

    def __init__(self, most: float) -> None:
        self._most = most
        self._left = most
        self._at = 0.0

    def left(self, now: float) -> float:
        """The time that may be waited now."""
        return min(self._most, self._left + max(now - self._at, 0.0))

    def spend(self, start: float, end: float) -> None:
        """Take a wait from the budget."""
        self._left = max(self.left(start) - (end - start), 0.0)
        self._at = end
