"""The watch over the wall clock: its steps away from the log's common clock.

The common clock is the monotonic one plus an offset that all processes share. A step
of the wall clock forward is followed by all at one instant, NOTICE_NS after it was
announced to all, so it reorders nothing. A step back is reported and not followed:
stamps never go back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from time import CLOCK_MONOTONIC, clock_gettime_ns

from logagg.consumer.event_log import EventLog
from logagg.consumer.worker_source import WorkerSource
from logagg.core.event import Event
from logagg.ipc.clock import STEP_NS, measure_offset, write_offset
from logagg.ipc.protocol import ConsumerPacket

__all__ = ["ClockWatch"]

CHECK_NS = 1_000_000_000
NOTICE_NS = 1_000_000_000


class ClockWatch:
    """Keeps the offset of the common clock.

    Args:
        path: The consumer's socket; the offset stands in a file of its name, for
            workers that attach.
        offset_ns: The offset to begin with.

    Attributes:
        offset_ns: Common time minus CLOCK_MONOTONIC.
    """

    def __init__(self, path: str, offset_ns: int) -> None:
        self.offset_ns = offset_ns
        self._path = path
        self._switch: tuple[int, int] | None = None
        self._next_check = 0
        self._reported_step = 0

    def now_ns(self) -> int:
        """Common time."""
        return clock_gettime_ns(CLOCK_MONOTONIC) + self.offset_ns

    @property
    def ahead_ns(self) -> int:
        """How far a worker that has changed already may be ahead of this process."""
        return max(0, self._switch[1] - self.offset_ns) if self._switch else 0

    def check(self, workers: Iterable[WorkerSource], events: EventLog) -> None:
        """Change the offset when it is due; check for a step once a second."""
        monotonic = clock_gettime_ns(CLOCK_MONOTONIC)
        if self._switch is not None:
            if monotonic < self._switch[0]:
                return
            self.offset_ns, self._switch = self._switch[1], None
            self._reported_step = 0
        elif monotonic < self._next_check:
            return
        self._next_check = monotonic + CHECK_NS
        step = measure_offset() - self.offset_ns
        if abs(step - self._reported_step) < STEP_NS:
            return
        self._reported_step = step
        if step > 0:
            self._switch = (monotonic + NOTICE_NS, self.offset_ns + step)
            with contextlib.suppress(OSError):  # those that attach measure it then
                write_offset(self._path, self.offset_ns, self._switch)
            for worker in workers:
                worker.send(ConsumerPacket(switch=self._switch))
        reaction = "follows" if step > 0 else "does not follow: stamps never go back"
        events.event(
            f"the wall clock was stepped by {step / 1e9:+.3f} s; "
            f"the log's clock {reaction}",
            {"event": Event.CLOCK_STEP, "step_seconds": step / 1e9},
        )
