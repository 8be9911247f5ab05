"""Records that a consumer has not made safe yet, and those that were dropped.

`ResendBuffer` holds the lines that are not acknowledged: they are sent again when the
consumer dies. `DropLedger` counts dropped records and the gaps they leave. The only I/O
is an anonymous file in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from logagg.core.line import seq_of
from logagg.ipc import client_messages
from logagg.platform.system import memory_file

__all__ = ["DropLedger", "ResendBuffer"]


class ResendBuffer:
    """Unacknowledged lines, oldest first, in generations.

    The log call appends to `open_lines`. Each check of the connection seals them as one
    generation, so that an acknowledgement costs a comparison per generation and nothing
    per record. A generation goes when its last record is acknowledged. A resend may
    therefore contain lines that were acknowledged; the consumer drops them by their seq.

    An exception (of a signal handler) may come between any two calls, so every method
    makes what is new first and then stores it, without a call in between.

    Attributes:
        open_lines: The lines since the last check.
        open_bytes: Their length together; to be raised with every append.
        sealed_bytes: The length of all sealed generations.
    """

    __slots__ = ("_generations", "open_bytes", "open_lines", "sealed_bytes")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all lines."""
        self.open_lines: list[bytes] = []
        self.open_bytes = 0
        self.sealed_bytes = 0
        self._generations: list[tuple[int, int, list[bytes]]] = []  # seq, bytes, lines

    def __bool__(self) -> bool:
        """Whether it holds any line."""
        return bool(self.open_lines or self._generations)

    @property
    def newest(self) -> int:
        """The seq of the newest line; 0 when there is none."""
        if self.open_lines:
            return seq_of(self.open_lines[-1])
        return self._generations[-1][0] if self._generations else 0

    def seal(self) -> None:
        """Make one generation of the open lines."""
        lines = self.open_lines
        if lines:
            generation = (seq_of(lines[-1]), self.open_bytes, lines)
            self._generations = [*self._generations, generation]
            self.open_lines = []
            self.sealed_bytes += self.open_bytes
            self.open_bytes = 0

    def remove_newest(self) -> None:
        """Forget the newest line, which goes another way."""
        if not self.open_lines:  # sealed by a check while its write waited
            *older, (_, size, lines) = self._generations
            self._generations = older
            self.open_lines = lines
            self.sealed_bytes -= size
            self.open_bytes = size
        size = len(self.open_lines[-1])
        del self.open_lines[-1]
        self.open_bytes -= size

    def acknowledge(self, seq: int) -> None:
        """Forget the generations that are safe up to their last record."""
        while self._generations and self._generations[0][0] <= seq:
            size = self._generations[0][1]
            del self._generations[0]
            self.sealed_bytes -= size

    def lines(self) -> list[bytes]:
        """All lines, oldest first; seals the open ones."""
        self.seal()
        return [line for _, _, lines in self._generations for line in lines]

    def file(self) -> int | None:
        """Copy all lines to an anonymous file, to pass its descriptor on.

        Returns:
            The descriptor, positioned at the start; None when there are no lines.
        """
        lines = self.lines()
        if not lines:
            return None
        file = memory_file("logagg-resend")
        view = memoryview(b"".join(lines))
        while view:
            view = view[os.write(file, view) :]
        os.lseek(file, 0, os.SEEK_SET)
        return file


class DropLedger:
    """The records that a process has dropped, and the gaps they leave in its seqs.

    A dropped record has taken its seq, so the consumer finds a gap and must be able to
    distinguish it from a loss that was not counted: the worker reports `count`. A new
    consumer counts from the acknowledged seq and does not find the gaps before it, so
    its hello also contains how many drops those are (`up_to`).

    Attributes:
        count: Records dropped so far.
        lost: The newest seq of which it is known that it, or one before it, was dropped
            here or by a sink.
        reported: The count that the connected consumer has received.
        announced: How many drops stand in the stream as records that are safe.
    """

    __slots__ = ("_gaps", "announced", "count", "lost", "reported")

    def __init__(self) -> None:
        self.count = 0
        self.lost = 0
        self.reported = 0
        self.announced = 0
        self._gaps: list[list[int]] = []  # first and last seq, beyond the acknowledged

    @property
    def newest(self) -> int:
        """The newest seq that was dropped, unless it is acknowledged; else 0."""
        return self._gaps[-1][1] if self._gaps else 0

    def add(self, seq: int) -> None:
        """Count a drop; seqs must rise."""
        if self._gaps and self._gaps[-1][1] == seq - 1:
            self._gaps[-1][1] = seq
        else:
            self._gaps += [[seq, seq]]
        self.count += 1
        self.lost = seq

    def add_lines(self, lines: list[bytes]) -> None:
        """Count lines that nothing has taken, at the end: later ones may be counted."""
        self.count += len(lines)
        if lines:
            self.lost = max(self.lost, seq_of(lines[-1]))

    def note_answer(self, seq: int, *, incomplete: bool) -> None:
        """Note whether sinks have dropped records, up to a seq that was flushed."""
        if incomplete:
            self.lost = max(self.lost, seq)

    def acknowledge(self, seq: int) -> None:
        """Forget the gaps that end at or before an acknowledged seq."""
        while self._gaps and self._gaps[0][1] <= seq:
            del self._gaps[0]

    def report(self, send: Callable[[bytes], bool]) -> None:
        """Send the count, unless the consumer has it."""
        count = self.count
        if count != self.reported and send(client_messages.dropped(count)):
            self.reported = count

    def describe(self, hello: client_messages.Hello) -> None:
        """Put the counts into a hello, which has its acknowledged seq already."""
        hello.drops = self.count
        hello.drops_acknowledged = self.up_to(hello.acknowledged)
        hello.drops_announced = self.announced

    def up_to(self, acknowledged: int) -> int:
        """How many of the dropped records have seqs up to the acknowledged one."""
        begin = acknowledged + 1
        beyond = sum(max(0, last + 1 - max(first, begin)) for first, last in self._gaps)
        return self.count - beyond
