"""One worker's lines in the order of their seqs, each once. Pure.

Theory of operation
-------------------
A worker's lines come by several ways: its pipe, the records it resends to a new
consumer, spool segments. Each way is in order; together they overlap or leave gaps that
another way fills. `Sequence.accept` gets lines of one way and knows the seq it expects:

- a line below that came already: a duplicate, dropped and counted;
- a line above it means a gap, which another way may fill: `accept` returns the lines
  before the gap and those after it apart;
- `give_up_before` gives a gap up: its records are counted as lost.

The usual case, a chunk without a gap, costs the first and the last seq and a comparison
with the number of lines.
"""

from __future__ import annotations

from logagg._native import blocks
from logagg.core.line import PREFIX, is_line, seq_of

__all__ = ["Sequence"]


class Sequence:
    """The state of one worker's stream of lines.

    Attributes:
        expected: The seq that must come next.
        torn: Seqs of lines that their worker announced as truncated.
        accepted: Lines that were let through.
        duplicates: Lines that came before and were dropped.
        lost: Records that never arrived.
        damaged: Lines truncated without a word, and lines that are not records.
    """

    __slots__ = (
        "_excused", "accepted", "damaged", "duplicates", "expected", "lost", "tail",
        "torn",
    )  # fmt: skip

    def __init__(self, expected: int = 1) -> None:
        self.expected = expected
        self.tail = b""
        self.torn: set[int] = set()
        self.accepted = 0
        self.duplicates = 0
        self.lost = 0
        self.damaged = 0
        self._excused: list[tuple[int, int]] = []

    def split(self, chunk: bytes) -> list[bytes]:
        """Cut a chunk of the pipe into whole lines; the rest waits for the next."""
        lines, self.tail = blocks.split(chunk, self.tail)
        return lines

    def accept(
        self, lines: list[bytes], *, pipe: bool = True
    ) -> tuple[list[bytes], list[bytes]]:
        """Return the lines that are next, in order, and those after a gap.

        Args:
            lines: Lines of one way, in its order.
            pipe: Whether that is the pipe: only there a line can be truncated.
        """
        if not lines:
            return lines, []
        first = self.expected
        if seq_of(lines[0]) == first and not (pipe and self.torn):
            after = first + len(lines)
            if seq_of(lines[-1]) + 1 == after and lines[0].startswith(PREFIX):
                self.expected = after
                self.accepted += len(lines)
                return lines, []
        chosen, after_gap = self._accept_slowly(lines, self.torn if pipe else set())
        if pipe and self.torn and not after_gap:
            # A part stands before all later lines: what is passed will not come.
            newest = seq_of(lines[-1])
            self.torn = {seq for seq in self.torn if seq > newest}
        return chosen, after_gap

    def _accept_slowly(
        self, lines: list[bytes], torn: set[int]
    ) -> tuple[list[bytes], list[bytes]]:
        chosen = []
        after_gap: list[bytes] = []
        for index, line in enumerate(lines):
            seq = seq_of(line)
            if seq < 0 or not is_line(line):
                if torn:
                    torn.discard(min(torn))  # announced, and cut before its seq
                else:
                    self.damaged += 1
            elif seq in torn and seq <= self.expected:
                torn.discard(seq)  # announced: the whole line comes another way
            elif seq == self.expected:
                chosen.append(line)
                self.expected += 1
            elif seq < self.expected:
                self.duplicates += 1
            else:
                after_gap = lines[index:]
                break
        self.accepted += len(chosen)
        return chosen, after_gap

    def excuse(self, first: int, last: int) -> None:
        """Exempt seqs that an earlier consumer read: their absence is no loss."""
        self._excused.append((first, last))

    def give_up_before(self, seq: int) -> None:
        """Give up the records missing before a seq; count them as lost."""
        missing = seq - self.expected
        for first, last in self._excused:
            missing -= max(0, min(last + 1, seq) - max(first, self.expected))
        self.lost += max(missing, 0)
        self.expected = seq

    def end(self) -> None:
        """Note the worker's end: the rest of a line is truncated."""
        if self.tail:
            seq = seq_of(self.tail)
            # No damage: the whole line came another way, or is announced to come. Without
            # a seq: an earlier consumer has read the start.
            whole = seq < self.expected if seq >= 0 else bool(self.torn)
            self.damaged += not whole and seq not in self.torn
            self.tail = b""
