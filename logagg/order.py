"""Merge the workers' lines into one stream, in the order of time. Pure.

Theory of operation
-------------------
The consumer works in cycles. It takes now = T, then reads every worker's pipe, and
gives what it read to `Merger.add`, then calls `Merger.release(T)`, which returns all
lines that no later read can precede, in order.

Why a line may be released: a pipe that was read empty after T holds nothing stamped
before T, except what was stamped but not yet written when it was read (a thread is
suspended between taking its time and its write). The *window* is how long we wait for
those. A pipe that was not read empty may still hold lines later than the last one read
from it. So the watermark is the least of T - window and the last key read from each
pipe that was not read empty.

Cause and effect never depend on the window: if B logs because of what A logged before,
A's line was in its pipe before B took its time. Whenever B's line was read while A's
was not, A's pipe had been read before A wrote, hence before B's stamp: B's stamp is
after T, and B's line waits for the next cycle, which reads A's. So a line can be late
(stamped before what was already released, when its writer was suspended for longer
than the window), but an effect never stands before its cause.

Late lines are released at once, in front of their batch, marked with `"late":true` and
counted. The window adapts: it follows twice the worst delay seen lately between a stamp
and its arrival, between MIN_WINDOW and MAX_WINDOW, so a quiet machine has short delays
and a loaded one few late lines.

All lines share their first bytes (see `logagg.wire`), so plain list sort of the bytes
objects sorts by time; the input is a handful of sorted runs, which timsort merges
at C speed with galloping. One look at the first and the last line after the sort
proves that all of them carry the prefix: anything that does not sorts before or behind.
"""

from __future__ import annotations

from bisect import bisect_left

from logagg import wire

__all__ = ["LATE_MARK", "MAX_WINDOW_NS", "MIN_WINDOW_NS", "Merger"]

MIN_WINDOW_NS = 10_000_000
MAX_WINDOW_NS = 250_000_000
START_DELAY_NS = 25_000_000  # believed until observed: processes that start are slow
LATE_MARK = b',"late":true'

_DECAY = 0.99  # of the observed delay, a cycle: half of it is forgotten in about 0.7 s


class Merger:
    """A merge of sorted runs with a watermark.

    State: `_pending` holds lines read and not yet released; outside `add` it is sorted.
    `_released` is the key of the last line released in order. One owner, no threads.

    Attributes:
        late: Lines released out of order since the start.
        window_ns: The current wait for stamped but unwritten lines.
        horizon: All lines that were added and sort before it have been released.
    """

    def __init__(self, min_window_ns: int = MIN_WINDOW_NS) -> None:
        self.late = 0
        self.window_ns = max(min_window_ns, 2 * START_DELAY_NS)
        self.horizon = b""
        self._min_window_ns = min_window_ns
        self._delay_ns = float(START_DELAY_NS)
        self._pending: list[bytes] = []
        self._sorted = True
        self._released = b""
        self._hold = b""

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, lines: list[bytes], *, drained: bool) -> None:
        """Take lines that were read from one pipe, oldest first.

        Args:
            lines: Wire lines without their newline; all must pass `wire.is_line`, or at
                least begin with `wire.PREFIX` (checked by the caller or `strangers`).
            drained: Whether the pipe was read empty.
        """
        if not lines:
            return
        if self._pending:
            self._pending += lines
        else:
            self._pending = lines
        self._sorted = False
        if not drained:
            self.hold(wire.key(lines[-1]))

    def hold(self, key: bytes) -> None:
        """In this cycle, release nothing that sorts behind a key."""
        if not self._hold or key < self._hold:
            self._hold = key

    def strangers(self, ceiling_ns: int) -> list[bytes]:
        """Remove and return the lines that are none, or come from the future.

        Costs a comparison or two unless there are some.

        Args:
            ceiling_ns: The latest stamp that is believed.
        """
        self._sort()
        pending = self._pending
        if not pending:
            return []
        ceiling = wire.sort_key(ceiling_ns)
        if pending[0].startswith(wire.PREFIX) and pending[-1] < ceiling:
            return []
        first = bisect_left(pending, wire.PREFIX)
        last = bisect_left(pending, ceiling, first)
        found = pending[:first] + pending[last:]
        self._pending = pending[first:last]
        return found

    def observe(self, line: bytes, read_ns: int) -> None:
        """Learn from the first line of a pipe that was read empty at `read_ns`.

        A line that was stamped before that, and yet came only now, was that long under
        way: its writer was suspended between stamp and write.
        """
        if line >= wire.sort_key(read_ns):
            return
        delay_ns = read_ns - wire.key_ns(line)
        if delay_ns > self._delay_ns:
            self._delay_ns = delay_ns
            self._adapt()

    def release(self, now_ns: int, *, all_ended: bool = False) -> list[bytes]:
        """Return what is final, in order, late lines first; keep the rest.

        Args:
            now_ns: The instant before the first pipe of this cycle was read.
            all_ended: No more lines can come from anyone: release everything.
        """
        self._sort()
        ready = self._ready(now_ns, all_ended=all_ended)
        self._hold = b""
        self.horizon = self._pending[0][: wire.KEY_END] if self._pending else b"~"
        self._delay_ns *= _DECAY
        self._adapt()
        if not ready:
            return ready
        count = 0
        if ready[0][: wire.KEY_END] < self._released:
            count = self._late_count(ready)
            self.late += count
            ready[:count] = [line + LATE_MARK for line in ready[:count]]
        if count < len(ready):
            self._released = ready[-1][: wire.KEY_END]
        return ready

    def _ready(self, now_ns: int, *, all_ended: bool) -> list[bytes]:
        pending = self._pending
        if all_ended or not pending:
            self._pending = []
            return pending
        watermark = wire.sort_key(now_ns - self.window_ns)
        if self._hold and self._hold < watermark:
            watermark = self._hold
        count = bisect_left(pending, watermark)
        if pending[0][: wire.KEY_END] < self._released:
            count = max(count, self._late_count(pending))  # late ones never wait
        if count == len(pending):
            self._pending = []
            return pending
        ready, self._pending = pending[:count], pending[count:]
        return ready

    def _late_count(self, lines: list[bytes]) -> int:
        return bisect_left(lines, self._released)

    def _adapt(self) -> None:
        window = max(self._min_window_ns, int(2 * self._delay_ns))
        self.window_ns = min(window, MAX_WINDOW_NS)

    def _sort(self) -> None:
        if not self._sorted:
            self._pending.sort()
            self._sorted = True
