"""When a slot's next worker may start, and when to give up. Pure: the clock is passed.

Two different questions, kept apart because one answer to both is what users of other
supervisors complain about:

- *How long to wait* grows with every failure (0.5 s, doubled, at most 30 s, with
  jitter) and starts anew after 30 s of good running. Precedent: Pebble's numbers; a
  cap of 15 s, as elsewhere, is too short for a dependency that restarts.
- *Whether to give up* looks only at failures *before ready*: five of them within 60 s
  mean that the program cannot start. A worker that served and then crashed is never
  given up on.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

__all__ = ["Backoff"]

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
GOOD_UPTIME = 30.0
CRASH_LIMIT = 5
CRASH_WINDOW = 60.0
JITTER = 0.1


@dataclass(slots=True)
class Backoff:
    """The failures of one slot. Times are seconds of any one monotonic clock."""

    rng: random.Random = field(default_factory=random.Random)
    failures: int = 0
    early: deque[float] = field(default_factory=deque)

    def failed(self, now: float, *, uptime: float, ready: bool) -> float:
        """Note a failure and return the seconds to wait before the next start."""
        if uptime >= GOOD_UPTIME:
            self.failures = 0
        if ready:
            self.early.clear()
        else:
            self.early.append(now)
            while self.early[0] < now - CRASH_WINDOW:
                self.early.popleft()
        return self.next_delay()

    def next_delay(self) -> float:
        """Count a failure and return the seconds to wait before the next start."""
        delay = min(FIRST_DELAY * 2.0 ** min(self.failures, 16), LONGEST_DELAY)
        self.failures += 1
        return delay * (1 + self.rng.uniform(-JITTER, JITTER))

    @property
    def exhausted(self) -> bool:
        """Whether the program failed so often before ready that it cannot start."""
        return len(self.early) >= CRASH_LIMIT

    def reset(self) -> None:
        """Forget all failures: a new release, or a request of the user, starts anew."""
        self.failures = 0
        self.early.clear()
