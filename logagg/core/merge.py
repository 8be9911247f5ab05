"""Merge of the workers' lines into one stream, in the order of time. Pure.

Theory of operation
-------------------
The consumer works in cycles. It takes now = T, then reads every worker's pipe, and
gives what it read to `Merger.add`, then calls `Merger.release(T)`, which returns all
lines that no later read can precede, in order.

Why a line may be released: a pipe that was read empty after T holds nothing stamped
before T, except lines that were stamped but not yet written when it was read (a thread
is suspended between taking its time and its write). The *window* is the wait for those.
A pipe that was not read empty may still hold lines later than the last one read from
it. So the watermark is the least of T - window and the last key read from each pipe
that was not read empty.

Cause and effect never depend on the window: if B logs because of what A logged before,
A's line was in its pipe before B took its time. Whenever B's line was read while A's
was not, A's pipe had been read before A wrote, hence before B's stamp: B's stamp is
after T, and B's line waits for the next cycle, which reads A's. So a line can be late
(stamped before what was already released, when its writer was suspended for longer
than the window), but an effect never stands before its cause.

While every worker waits in `flush` for this consumer, the wait for lines stamped and not
yet written is left out, and no more: a worker's other threads go on logging, so only what
was stamped before T is known to stand after its causes.

What is held back is bounded: a merge that is `full` is read into only from pipes that
hold it back (see `logagg.consumer.source`), so the others' lines wait in their pipes.

A line stamped in the future is one from before a step back of the wall clock, which this
consumer has followed and an earlier one had not (or a process that makes stamps up). It
is no less a record: it is released at once as well, as if it were late, and those that
follow it are not judged by its stamp.

A step of the wall clock is followed when the next consumer starts. Then a worker has
lines stamped by the clock before, and goes on with the new one, so its stamps may go
back. Its hello has the offset of all its lines so far, so the place of each by this
consumer's clock is known (`Stamps`): the order of a thread, and of cause and effect,
holds. Such a line comes with the sort key of its place (`add_placed`) and is marked as
late; otherwise it stays as it is.

Late lines are released at once, in front of their batch, marked with `"late":true` and
counted. The window adapts: it follows twice the worst delay seen lately between a stamp
and its arrival, between MIN_WINDOW and MAX_WINDOW, so a quiet machine has short delays
and a loaded one few late lines.

All lines share their first bytes (see `logagg.core.line`), so a plain sort of the bytes
objects sorts by time; the input is a handful of sorted runs, which timsort merges at C
speed with galloping, and `logagg._native.blocks` without an object for each line. Lines
without the prefix sort before or after all others, so the first and the last line after
the sort prove that there are none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import takewhile
from operator import itemgetter

from logagg._native import blocks
from logagg.core.line import (
    KEY_END,
    PREFIX,
    is_line,
    key_ns,
    key_of,
    seq_of,
    sort_key,
)

__all__ = [
    "LATE_MARK", "MAX_WINDOW_NS", "MIN_WINDOW_NS", "AsStamped", "Merger", "OfTheDead",
    "Placed", "Stamps",
]  # fmt: skip

MAX_PENDING_BYTES = 64 * 1024 * 1024

MIN_WINDOW_NS = 10_000_000
MAX_WINDOW_NS = 250_000_000
START_DELAY_NS = 25_000_000  # believed until observed: processes that start are slow
LATE_MARK = b',"late":true'
LEAST_SHIFT_NS = 1_000_000  # two measurements of one clock differ by less

_DECAY = 0.99  # of the observed delay, a cycle: half of it is forgotten in about 0.7 s


class Merger:
    """A merge of sorted runs with a watermark.

    State: `_pending` holds lines read and not yet released, sorted; `_added` those that
    came since it was. `_released` is the key of the last line released in order. One
    owner, no threads.

    Attributes:
        late: Lines released out of order since the start.
        window_ns: The current wait for stamped but unwritten lines.
        released_before: All lines that were added and sort before it have been released.
    """

    def __init__(self, min_window_ns: int = MIN_WINDOW_NS) -> None:
        self.late = 0
        self.window_ns = max(min_window_ns, 2 * START_DELAY_NS)
        self.released_before = b""
        self._min_window_ns = min_window_ns
        self._delay_ns = float(START_DELAY_NS)
        self._early: list[bytes] = []  # stamped in the future
        self._placed: list[tuple[bytes, bytes]] = []  # sort key and line, sorted
        self._pending: list[bytes] = []
        self._added: list[list[bytes]] = []  # since the last sort
        self._pending_bytes = 0  # at least; counted anew when it is too much
        self._released = b""
        self._hold_key = b""

    def __len__(self) -> int:
        waiting = len(self._pending) + sum(map(len, self._added))
        return waiting + len(self._early) + len(self._placed)

    @property
    def has_early(self) -> bool:
        """Whether lines stamped in the future are to be released next."""
        return bool(self._early)

    @property
    def full(self) -> bool:
        """Whether what is held back takes so much memory that no more should come."""
        return self._pending_bytes > MAX_PENDING_BYTES

    def add(self, lines: list[bytes], *, drained: bool, size_bytes: int = 0) -> None:
        """Take lines that were read from one pipe, oldest first.

        Args:
            lines: Wire lines without their newline; all must pass `is_line`, or at
                least begin with `PREFIX` (checked by the caller or `reject_foreign`).
            drained: Whether the pipe was read empty.
            size_bytes: Their length, or more.
        """
        if not lines:
            return
        self._pending_bytes += size_bytes
        self._added.append(lines)
        if not drained:
            self.hold_back(key_of(lines[-1]))

    def add_placed(self, lines: Placed) -> None:
        """Take lines of one source with the sort keys of their places, which rise."""
        self._placed = sorted([*self._placed, *lines], key=itemgetter(0))
        self._pending_bytes += sum(len(line) for _, line in lines)

    def hold_back(self, key: bytes) -> None:
        """In this cycle, release nothing that sorts after a key."""
        if not self._hold_key or key < self._hold_key:
            self._hold_key = key

    def reject_foreign(self, ceiling_ns: int) -> list[bytes]:
        """Remove and return what is no line; have the future's lines released at once.

        Costs a comparison or two unless there are some.

        Args:
            ceiling_ns: The latest stamp that is believed.
        """
        self._sort()
        pending = self._pending
        if not pending:
            return []
        ceiling = sort_key(ceiling_ns)
        if pending[0].startswith(PREFIX) and pending[-1] < ceiling:
            return []
        first = bisect_left(pending, PREFIX)
        last = bisect_left(pending, ceiling, first)
        future = pending[last:]
        self._early += filter(is_line, future)
        self._pending = pending[first:last]
        return pending[:first] + [line for line in future if not is_line(line)]

    def observe(self, line: bytes, read_ns: int) -> None:
        """Learn from the first line of a pipe that was read empty at `read_ns`.

        A line that was stamped before that and came only now was delayed by the
        difference: its writer was suspended between stamp and write.
        """
        if line >= sort_key(read_ns):
            return
        delay_ns = read_ns - key_ns(line)
        if delay_ns > self._delay_ns:
            self._delay_ns = delay_ns
            self._adapt()

    def release(
        self, now_ns: int, *, flushing: bool = False, all_ended: bool = False
    ) -> list[bytes]:
        """Return what is final, in order, late lines first; keep the rest.

        Args:
            now_ns: The instant before the first pipe of this cycle was read.
            flushing: Every worker waits for this consumer: do without the window.
            all_ended: No more lines can come: release everything.
        """
        self._sort()
        before_ns = now_ns if flushing else now_ns - self.window_ns
        watermark = b"~" if all_ended else sort_key(before_ns)
        if self._hold_key and self._hold_key < watermark and not all_ended:
            watermark = self._hold_key
        ready = self._ready(watermark)
        placed = self._take_placed(watermark)
        self._hold_key = b""
        if not self._pending and not self._placed:
            self._pending_bytes = 0
        elif self.full:
            self._pending_bytes = blocks.size_of(self._pending)
            self._pending_bytes += sum(len(line) for _, line in self._placed)
        keys = [key for key, _ in self._placed[:1]]
        keys += [line[:KEY_END] for line in self._pending[:1]]
        self.released_before = min(keys, default=b"~")
        self._delay_ns *= _DECAY
        self._adapt()
        early, self._early = [line + LATE_MARK for line in self._early], []
        self.late += len(early)
        if not ready:
            return early + self._mingle(ready, placed)
        count = 0
        if ready[0][:KEY_END] < self._released:
            count = self._late_count(ready)
            self.late += count
            ready = [*(line + LATE_MARK for line in ready[:count]), *ready[count:]]
        if count < len(ready):
            self._released = ready[-1][:KEY_END]
        ready = self._mingle(ready, placed)
        return early + ready if early else ready

    def _take_placed(self, watermark: bytes) -> list[tuple[bytes, bytes]]:
        """Take what is final of the lines that sort by another key; mark it."""
        if not self._placed:
            return []
        until = max(watermark, self._released)
        count = bisect_left(self._placed, until, key=itemgetter(0))
        placed, self._placed = self._placed[:count], self._placed[count:]
        self.late += count
        return [(key, line + LATE_MARK) for key, line in placed]

    def _mingle(
        self, ready: list[bytes], placed: list[tuple[bytes, bytes]]
    ) -> list[bytes]:
        """Put lines in their places among those that sort by their stamps."""
        if not placed:
            return ready
        self._released = max(self._released, placed[-1][0])
        both = sorted([*placed, *zip(ready, ready, strict=True)], key=itemgetter(0))
        return [line for _, line in both]

    def _ready(self, watermark: bytes) -> list[bytes]:
        pending = self._pending
        if not pending:
            return pending
        count = bisect_left(pending, watermark)
        if pending[0][:KEY_END] < self._released:
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
        if self._added:
            self._pending = blocks.merged([self._pending, *self._added])
            self._added = []


Placed = list[tuple[bytes, bytes]]
"""Lines that do not sort by their stamps: sort key and line."""


class AsStamped:
    """A source whose lines all sort by their stamps."""

    def highest(self, lines: list[bytes]) -> bytes:
        """The highest sort key of the lines that `place` gets next."""
        return key_of(lines[-1])

    def place(self, lines: list[bytes]) -> tuple[list[bytes], Placed]:
        """Part lines, in the order of their source, into usual ones and others.

        Returns:
            Those that sort by their stamps, and those with a key of their own; the
            keys of all rise.
        """
        return lines, []

    def earliest(self, key: bytes) -> bytes:
        """The lowest stamp that any line may have.

        Args:
            key: The lowest one among the first lines of its files.
        """
        return key


class Stamps(AsStamped):
    """Those of a worker.

    Args:
        clocks: Up to which seq its lines have which offset, in nanoseconds.
        offset_ns: The offset of this consumer.
    """

    def __init__(self, clocks: Sequence[tuple[int, int]], offset_ns: int) -> None:
        shifts = [(seq, offset_ns - offset) for seq, offset in clocks]
        self._shifts = (
            shifts if any(abs(by) >= LEAST_SHIFT_NS for _, by in shifts) else []
        )
        offsets = [offset_ns, *(offset for _, offset in clocks)]
        self._span_ns = max(offsets) - min(offsets)
        self._last = b""

    def earliest(self, key: bytes) -> bytes:
        """See `AsStamped`."""
        if not key or not self._shifts:
            return key
        return sort_key(key_ns(key) - self._span_ns)

    def highest(self, lines: list[bytes]) -> bytes:
        """See `AsStamped`."""
        if not self._shifts:
            return key_of(lines[-1])
        return max(map(self._key_of, lines))

    def _key_of(self, line: bytes) -> bytes:
        seq = seq_of(line)
        by_ns = next((by for until, by in self._shifts if seq <= until), 0)
        own = sort_key(key_ns(line) + by_ns) if by_ns else key_of(line)
        return max(own, self._last)

    def place(self, lines: list[bytes]) -> tuple[list[bytes], Placed]:
        """See `AsStamped`."""
        if not self._shifts:
            return lines, []
        until = self._shifts[-1][0]
        placed: Placed = []
        for line in takewhile(lambda each: self._is_early(each, until), lines):
            if not is_line(line):
                break  # the merge rejects it
            self._last = self._key_of(line)
            placed.append((self._last, line))
        rest = lines[len(placed) :]
        if rest:
            self._shifts = []
        return rest, placed

    def _is_early(self, line: bytes, until: int) -> bool:
        return seq_of(line) <= until or key_of(line) < self._last


class OfTheDead(AsStamped):
    """Those of processes that are gone: by which clock is not known.

    None of their lines is from after the start of this consumer.

    Args:
        now_ns: The time of this consumer's clock.
    """

    def __init__(self, now_ns: int) -> None:
        self._latest = sort_key(now_ns)
        self._last = b""

    def highest(self, lines: list[bytes]) -> bytes:
        """See `AsStamped`."""
        return self._key_of(max(lines))

    def _key_of(self, line: bytes) -> bytes:
        return max(min(key_of(line), self._latest), self._last)

    def place(self, lines: list[bytes]) -> tuple[list[bytes], Placed]:
        """See `AsStamped`."""
        usual: list[bytes] = []
        placed: Placed = []
        for line in lines:
            self._last = self._key_of(line)
            if line[:KEY_END] == self._last or not is_line(line):
                usual.append(line)
            else:
                placed.append((self._last, line))
        return usual, placed

    def next_stream(self) -> None:
        """The lines that follow are another process's."""
        self._last = b""
