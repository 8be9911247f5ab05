"""What a worker keeps until the consumer has it safe. No I/O but an anonymous file.

Records are kept in generations, one a look, so that an acknowledgement costs a
comparison a generation and nothing a record. A generation goes when its last record is
acknowledged; what is handed over to a new consumer may therefore hold some records that
were acknowledged already, and the consumer drops them by their seq.
"""

from __future__ import annotations

import os

__all__ = ["Kept"]


class Kept:
    """Sealed generations of unacknowledged lines, oldest first.

    Attributes:
        size_bytes: The length of all lines together.
    """

    __slots__ = ("_generations", "size_bytes")

    def __init__(self) -> None:
        self._generations: list[tuple[int, int, list[bytes]]] = []
        self.size_bytes = 0

    def seal(self, lines: list[bytes], size_bytes: int, last: int) -> None:
        """Add a generation whose newest record has the seq `last`."""
        self._generations.append((last, size_bytes, lines))
        self.size_bytes += size_bytes

    def unseal(self) -> list[bytes]:
        """Take the newest generation out again."""
        _, size_bytes, lines = self._generations.pop()
        self.size_bytes -= size_bytes
        return lines

    def acknowledge(self, seq: int) -> None:
        """Forget the generations that are safe up to their last record."""
        while self._generations and self._generations[0][0] <= seq:
            self.size_bytes -= self._generations.pop(0)[1]

    def lines(self) -> list[bytes]:
        """All lines, oldest first."""
        return [line for _, _, lines in self._generations for line in lines]

    def file(self) -> int | None:
        """All lines in an anonymous file, to be passed on; None when there are none."""
        if not self._generations:
            return None
        file = os.memfd_create("logagg-kept", os.MFD_CLOEXEC)
        view = memoryview(b"".join(self.lines()))
        while view:
            view = view[os.write(file, view) :]
        os.lseek(file, 0, os.SEEK_SET)
        return file
