"""The host's common clock: one time for all processes, which reads as wall time.

`CLOCK_MONOTONIC` is one clock for the whole system on Linux, agrees with cause and
effect between processes and never steps. The common clock is that clock plus one
offset, measured once by the process that starts a consumer and shared by all its workers,
so that a step of the wall clock reorders nothing.

`clock_gettime_ns` is used by name throughout: freezegun does not replace it, so a test
that freezes time freezes `LogRecord.created` but never the order of the log.
"""

from __future__ import annotations

import os
from time import CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime_ns

from logagg.ipc import failpoints
from logagg.ipc.users import allowed_users, open_note, read_trusted

__all__ = [
    "STEP_NS", "StampClock", "measure_offset", "monotonic_ns", "read_offset",
    "shared_offset", "stored_offset", "write_offset",
]  # fmt: skip

Offsets = tuple[int, tuple[int, int] | None]
"""An offset, and where one is announced, from when on which other one holds."""

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


class StampClock:
    """The clock by which a process stamps its lines: the offset, in nanoseconds.

    A consumer has another offset than its predecessor when the wall clock was stepped.
    It sorts the lines that it gets from before by its own offset, so that those of one
    thread, and those of several processes, keep their order. So it is noted which lines
    have which.

    An exception (of a signal handler) may come between any two calls; a change may then
    be noted twice, which does no harm.

    Attributes:
        offset: The offset; 0 before there is one.
        switch: The monotonic instant from which another one holds, and that one.
    """

    __slots__ = ("_changes", "offset", "switch")

    def __init__(self) -> None:
        self.offset = 0
        self.switch: tuple[int, int] | None = None
        self._changes: list[tuple[int, int]] = []  # newest seq, and its offset

    def use(self, offsets: Offsets | None, newest: int) -> int:
        """Stamp by a consumer's clock from now on; return the offset.

        Args:
            offsets: As the consumer shares them; None: they cannot be read, and then
                the offset stays, or is measured if there is none.
            newest: The seq of the newest line.
        """
        offset, switch = offsets or (self.offset or measure_offset(), None)
        if self.offset and offset != self.offset:
            self._changes = [*self._changes, (newest, self.offset)]
        self.offset, self.switch = offset, switch
        return offset

    def follow(self, newest: int) -> tuple[int, int]:
        """Change to the announced offset when its time has come.

        Returns:
            The monotonic clock, and the instant of a change to come, or 0.
        """
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if self.switch is None:
            return now, 0
        if now < self.switch[0]:
            return now, self.switch[0]
        self.use((self.switch[1], None), newest)
        return now, 0

    def acknowledge(self, seq: int) -> None:
        """Forget what holds for acknowledged lines only."""
        if self._changes:
            self._changes = [each for each in self._changes if each[0] > seq]

    def describe(self, newest: int) -> list[tuple[int, int]]:
        """For a hello: up to which seq lines have which offset, the newest line last."""
        return [*self._changes, (newest, self.offset)] if self.offset else []


def read_offset(path: str) -> Offsets | None:
    """The clock offset that the consumer at a socket path shares, if it is known.

    Returns:
        The offset in nanoseconds, and where one is announced the change to come: from
        which monotonic instant on, and the offset from then.
    """
    try:
        numbers = [int(each) for each in read_trusted(path + ".lock", 128).split()]
    except (OSError, ValueError):
        return None
    if len(numbers) >= 3 and numbers[1]:
        return numbers[0], (numbers[1], numbers[2])
    return (numbers[0], None) if numbers else None


def write_offset(
    path: str, offset_ns: int, switch: tuple[int, int] | None = None
) -> None:
    """Write the clock offset into the lock file, in one call of fixed length.

    The file is made when it is missing: directories of temporary files are cleaned.
    """
    at, then = switch or (0, 0)
    file = open_note(path + ".lock", os.O_WRONLY)
    try:
        if allowed_users():
            os.fchmod(file, 0o644)  # they read it
        os.pwrite(file, b"%+024d %+024d %+024d\n" % (offset_ns, at, then), 0)
    finally:
        os.close(file)


def stored_offset(path: str) -> int | None:
    """The offset that applies now by a lock file, maybe of a consumer that died."""
    found = read_offset(path)
    if found is None:
        return None
    offset, switch = found
    if switch is not None and monotonic_ns() >= switch[0]:
        return switch[1]
    return offset
