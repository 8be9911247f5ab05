"""Records that processes parked on disk before they and their consumer ended.

The consumer of an address takes them in at its start: segments that no living process
holds or will tell of itself, one stream after the other, each in the order of its seqs.
Their stamps are old, so they stand in the log where they came in, marked as late.
A segment is removed when all durable sinks are done with its records, not before: until
then its consumer may die too.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Self

from logagg import failpoints
from logagg.intake import CHUNK_BYTES, Ended, Segment, released
from logagg.sequence import Sequence
from logagg.spool import open_segment, orphans
from logagg.wire import KEY_END, seq_of

__all__ = ["Leftovers"]


class Leftovers:
    """A source for the consumer's cycle, made of segments without an owner.

    Attributes:
        pipe: A descriptor that is always readable, as the cycle wants one.
        marks: How many lines had been returned with lines up to a sort key.
    """

    def __init__(self, paths: list[str]) -> None:
        self.pid = 0
        self.pending = True
        self.drained = False
        self.pipe, write = os.pipe()
        os.close(write)  # at its end, hence always readable
        self._paths = paths
        self._segment: Segment | None = None
        self._sequence = Sequence()
        self._stream = ""
        self._count = 0
        self._safe = 0
        self._ends: deque[tuple[int, str]] = deque()  # how many lines up to its end
        self.marks: list[tuple[bytes, int]] = []
        self._suspects: list[bytes] = []

    @classmethod
    def find(cls, identifier: str, present: set[str]) -> Self | None:
        """The leftovers of an address, without those of streams that are attached."""
        paths = []
        for path in orphans(identifier):
            stream = _stream(path)
            if stream not in present and not _is_alive(stream):
                paths.append(path)
        return cls(paths) if paths else None

    def oldest_key(self) -> bytes:
        """The sort key of the oldest line; empty when there is none."""
        keys = []
        for path in self._paths:
            segment = Segment(open_segment(path), path, 0)
            keys.append(segment.first_key())
            segment.close()
        return min(filter(None, keys), default=b"")

    def take_suspects(self) -> list[bytes]:
        """Lines read since the last call: all of them may be written already."""
        suspects, self._suspects = self._suspects, []
        return suspects

    def read(self, budget: int) -> tuple[list[bytes], bool]:
        """Take lines, up to about `budget` bytes.

        Raises:
            Ended: There are no more.
        """
        found: list[bytes] = []
        while budget > 0:
            if self._segment is None:
                if not self._paths:
                    if found:
                        break
                    self.acknowledge(0)  # those that hold no line
                    raise Ended("end of leftovers")
                self._next()
                continue
            budget -= CHUNK_BYTES
            if not self._segment.pull():
                self._ends.append((self._count + len(found), self._segment.path))
                self._segment = None
                continue
            lines, self._segment.lines = self._segment.lines, []
            while lines:
                chosen, lines = self._sequence.admit(lines)
                found += chosen
                if lines:
                    self._sequence.skip_to(seq_of(lines[0]))
        if found:
            self._suspects += found
            self._count += len(found)
            self.marks.append((max(found)[:KEY_END], self._count))
        return found, False

    def _next(self) -> None:
        path = self._paths.pop(0)
        stream = _stream(path)
        first = int(os.path.basename(path).rpartition("-")[2].partition(".")[0])
        if stream != self._stream:
            self._stream = stream
            self._sequence = Sequence(first)
        self._segment = Segment(open_segment(path), path, 0)

    def acknowledge(self, count: int) -> None:
        """So many lines, from the first on, are safe: remove what they stood in."""
        self._safe = max(self._safe, count)
        while self._ends and self._ends[0][0] <= self._safe:
            _, path = self._ends.popleft()
            if failpoints.ACTIVE:
                failpoints.hit("unlink")
            try:
                os.unlink(path)
            except OSError:
                pass

    def released(self, horizon: bytes) -> int:
        """How many lines the merger has released; 0 when there is no news."""
        return released(self.marks, horizon)

    def close(self) -> None:
        """Nothing more is read; what is not safe yet is still to be acknowledged."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


def _stream(path: str) -> str:
    return os.path.basename(path).rpartition("-")[0]


def _is_alive(stream: str) -> bool:
    """Whether the process of a stream lives: it will tell of its segments itself."""
    pid = stream.partition("-")[0]
    return pid.isdigit() and os.path.exists(f"/proc/{pid}")
