"""The watch over the wall clock: its steps away from the log's common clock.

The common clock is the monotonic one plus an offset that all processes share. A step
of the wall clock forward is followed by all at one instant, a second after all were
told, so it reorders nothing. A step back is announced and not followed: stamps never
go back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import CLOCK_MONOTONIC, clock_gettime_ns

from logagg import launch
from logagg.clock import STEP_NS, measure_offset
from logagg.intake import Worker
from logagg.report import Reporter

__all__ = ["ClockWatch"]

CHECK_NS = 1_000_000_000
NOTICE_NS = 1_000_000_000


class ClockWatch:
    """Keeps the offset of the common clock.

    Args:
        path: The consumer's socket, beside which the offset stands for newcomers.
        offset_ns: The offset to begin with.

    Attributes:
        offset_ns: What the monotonic clock needs to be the common clock.
    """

    def __init__(self, path: str, offset_ns: int) -> None:
        self.offset_ns = offset_ns
        self._path = path
        self._switch: tuple[int, int] | None = None
        self._check_at = 0
        self._told_step = 0

    def now_ns(self) -> int:
        """The common clock now."""
        return clock_gettime_ns(CLOCK_MONOTONIC) + self.offset_ns

    @property
    def ahead_ns(self) -> int:
        """How far a worker that has changed already may be ahead of us."""
        return max(0, self._switch[1] - self.offset_ns) if self._switch else 0

    def look(self, workers: Callable[[], Iterable[Worker]], report: Reporter) -> None:
        """Change the offset when its time has come; look for a step once a second."""
        monotonic = clock_gettime_ns(CLOCK_MONOTONIC)
        if self._switch is not None:
            if monotonic < self._switch[0]:
                return
            self.offset_ns, self._switch = self._switch[1], None
            self._told_step = 0
        elif monotonic < self._check_at:
            return
        self._check_at = monotonic + CHECK_NS
        step = measure_offset() - self.offset_ns
        if abs(step - self._told_step) < STEP_NS:
            return
        self._told_step = step
        if step > 0:
            self._switch = (monotonic + NOTICE_NS, self.offset_ns + step)
            launch.write_offset(self._path, self.offset_ns, self._switch)
            for worker in workers():
                worker.tell({"switch": self._switch})
        what = "follows" if step > 0 else "does not follow: stamps never go back"
        report.event(
            f"the wall clock was stepped by {step / 1e9:+.3f} s; the log's clock {what}",
            {"event": "clock_step", "step_seconds": step / 1e9},
        )
