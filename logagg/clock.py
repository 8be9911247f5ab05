"""The host's common clock: one time for all processes, which reads as wall time.

`CLOCK_MONOTONIC` is one clock for the whole system on Linux, agrees with cause and
effect between processes and never steps. The common clock is that clock plus one
offset, measured once by whoever starts a consumer and shared by all that attach to it,
so that a step of the wall clock reorders nothing.

`clock_gettime_ns` is used by name throughout: freezegun does not replace it, so a test
that freezes time freezes `LogRecord.created` but never the order of the log.
"""

from __future__ import annotations

from time import CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime_ns

from logagg import failpoints

__all__ = ["STEP_NS", "measure_offset", "monotonic_ns", "shared_offset"]

STEP_NS = 250_000_000
"""A wall clock that is this far from the common clock has been stepped (0.25 s).

NTP slews smaller errors away (ntpd's step threshold is 0.128 s, chrony's examples
use 0.1 to 1 s), and slewing moves CLOCK_MONOTONIC along.
"""


def monotonic_ns() -> int:
    """Nanoseconds of the system-wide monotonic clock."""
    return clock_gettime_ns(CLOCK_MONOTONIC)


def measure_offset() -> int:
    """Measure wall time minus monotonic time, in nanoseconds.

    The tightest of five bracketed readings, so that being preempted between two
    readings does not count.
    """
    best: tuple[int, int] | None = None
    for _ in range(5):
        before = clock_gettime_ns(CLOCK_MONOTONIC)
        wall = clock_gettime_ns(CLOCK_REALTIME)
        after = clock_gettime_ns(CLOCK_MONOTONIC)
        reading = (after - before, wall - (before + after) // 2)
        best = reading if best is None else min(best, reading)
    assert best is not None
    shift = failpoints.shift_ns("wall") if failpoints.ACTIVE else 0
    return best[1] + shift


def shared_offset(stored: int | None) -> int:
    """Choose the offset for a new consumer: the stored one unless time has stepped."""
    measured = measure_offset()
    if stored is not None and abs(measured - stored) < STEP_NS:
        return stored
    return measured
