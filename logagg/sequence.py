"""Put one worker's lines into the order of their seqs, each once. Pure.

Theory of operation
-------------------
A worker's lines come by several ways: its pipe, the records it kept for a new consumer,
spool segments. Each way is in order; together they overlap or leave holes that another
way fills. `Sequence.admit` is given lines of one way and knows the seq it expects next:

- a line below that came already: a duplicate, dropped and counted;
- a line above it means a hole, which another way may fill: `admit` returns what is
  before the hole, and what is behind it apart;
- `skip_to` gives a hole up: its records are counted as lost.

The usual case, a chunk without surprise, costs two looks (first and last seq) and a
comparison with the number of lines.
"""

from __future__ import annotations

from logagg.wire import PREFIX, is_line, seq_of

__all__ = ["Sequence"]


class Sequence:
    """The state of one worker's stream of lines.

    Attributes:
        expected: The seq that must come next.
        torn: Seqs of lines that their worker announced as torn.
        admitted: Lines that were let through.
        duplicates: Lines that came before and were dropped.
        lost: Records that never came.
        damaged: Lines that were torn or never were records.
    """

    __slots__ = (
        "_forgiven", "admitted", "damaged", "duplicates", "expected", "lost", "tail",
        "torn",
    )  # fmt: skip

    def __init__(self, expected: int = 1) -> None:
        self.expected = expected
        self.tail = b""
        self.torn: set[int] = set()
        self.admitted = 0
        self.duplicates = 0
        self.lost = 0
        self.damaged = 0
        self._forgiven: list[tuple[int, int]] = []

    def split(self, chunk: bytes) -> list[bytes]:
        """Cut a chunk of the pipe into whole lines; the rest waits for the next."""
        lines = chunk.split(b"\n")
        if self.tail:
            lines[0] = self.tail + lines[0]
        self.tail = lines.pop()
        return lines

    def admit(
        self, lines: list[bytes], *, pipe: bool = True
    ) -> tuple[list[bytes], list[bytes]]:
        """Return the lines that are next, in order, and those behind a hole.

        Args:
            lines: Lines of one way, in its order.
            pipe: Whether that is the pipe: only there a line can be torn.
        """
        if not lines:
            return lines, []
        first = self.expected
        if seq_of(lines[0]) == first and not (pipe and self.torn):
            after = first + len(lines)
            if seq_of(lines[-1]) + 1 == after and lines[0].startswith(PREFIX):
                self.expected = after
                self.admitted += len(lines)
                return lines, []
        chosen, behind = self._admit_slowly(lines, self.torn if pipe else set())
        if pipe and self.torn and not behind:
            # A part stands before all later lines: what is passed will not come.
            newest = seq_of(lines[-1])
            self.torn = {seq for seq in self.torn if seq > newest}
        return chosen, behind

    def _admit_slowly(
        self, lines: list[bytes], torn: set[int]
    ) -> tuple[list[bytes], list[bytes]]:
        chosen = []
        behind: list[bytes] = []
        for index, line in enumerate(lines):
            seq = seq_of(line)
            if seq < 0 or not is_line(line):
                self.damaged += 1
            elif seq in torn and seq <= self.expected:
                torn.discard(seq)
                self.damaged += 1
            elif seq == self.expected:
                chosen.append(line)
                self.expected += 1
            elif seq < self.expected:
                self.duplicates += 1
            else:
                behind = lines[index:]
                break
        self.admitted += len(chosen)
        return chosen, behind

    def forgive(self, first: int, last: int) -> None:
        """These seqs came in an earlier life: their absence is no loss."""
        self._forgiven.append((first, last))

    def skip_to(self, seq: int) -> None:
        """Give up what is missing before a seq; count it."""
        missing = seq - self.expected
        for first, last in self._forgiven:
            missing -= max(0, min(last + 1, seq) - max(first, self.expected))
        self.lost += max(missing, 0)
        self.expected = seq

    def end(self) -> None:
        """The worker is gone: what is left of a line is torn."""
        if self.tail:
            self.damaged += 1
            self.tail = b""
