"""Captured stdout and stderr of a worker of `logagg run`: raw bytes become records here.

Whole lines become records; a line without its end (the last one, or one longer than
MAX_CAPTURED_BYTES) is marked `partial`. Nothing is lost: every byte comes out, invalid
UTF-8 as escapes. A line that a worker's Python code printed carries its time (see
`logagg.supervisor.stamped`), which is taken off; any other gets the time of its reading.

A traceback on stderr becomes one record, of level error, with an `exception` as
records of `logging` have it. Its end shows only by what follows, so its last lines are
held for a next line, HELD seconds, or the stream's end.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from logagg.intake import CHUNK_BYTES, Ended, number, stamped_line
from logagg.supervisor.capture import Tracebacks

__all__ = ["Stream"]

MAX_CAPTURED_BYTES = 256 * 1024
"""A longer raw line is cut into records of this length (256 KiB)."""

HELD_NS = 100_000_000
LAST_LINES = 5

STAMP = b"\x00@"
_STAMP_BYTES = len(STAMP) + 20


class Stream:
    """One captured stream: a source for the consumer's cycle.

    Attributes:
        pipe: The descriptor that it is read from.
        name: The worker's slot.
        pid: The worker's pid.
        cut: How many lines were too long for one record.
        last_lines: What was written last, for the notice of the worker's death.
    """

    def __init__(self, pipe: int, hello: dict[str, Any]) -> None:
        self.pipe = pipe
        self.name = str(hello["slot"])
        self.pid = number(hello["pid"])
        self.stream = str(hello["stream"])
        self.cut = 0
        self.drained = False
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._seq = 0
        self._tail = b""
        self._last = 0
        self._fed = 0
        is_error = self.stream == "stderr"
        self._level = "warning" if is_error else "info"
        self._tracebacks = Tracebacks() if is_error else None
        os.set_blocking(pipe, False)

    @property
    def pending(self) -> bool:
        """Whether a traceback waits for its end."""
        return self._tracebacks is not None and self._tracebacks.held

    def read(
        self, budget: int, now_ns: int, offset_ns: int
    ) -> tuple[list[bytes], bool]:
        """Take whole lines as records, up to about `budget` bytes.

        Args:
            budget: How many bytes.
            now_ns: The common clock, for lines that carry no time.
            offset_ns: The common clock's offset, for those that do.

        Returns:
            Wire lines, and whether nothing that was written before is left unread.

        Raises:
            Ended: The stream is at its end and its last line was returned.
        """
        found: list[bytes] = []
        while budget > 0:
            try:
                chunk = os.read(self.pipe, CHUNK_BYTES)
            except BlockingIOError:
                if self.pending and now_ns - self._fed > HELD_NS:
                    found += self._flushed(now_ns)
                return found, True
            budget -= len(chunk)
            if not chunk:
                found += self._flushed(now_ns)
                if self._tail:
                    tail, self._tail = self._tail, b""
                    found += self._line(tail, now_ns, offset_ns, partial=True)
                    found += self._flushed(now_ns)
                if found:
                    return found, False
                raise Ended("end of stream")
            for line in self._split(chunk):
                found += self._pieces(line, now_ns, offset_ns)
            while len(self._tail) > MAX_CAPTURED_BYTES:
                self.cut += 1
                piece = self._tail[:MAX_CAPTURED_BYTES]
                self._tail = self._tail[MAX_CAPTURED_BYTES:]
                found += self._line(piece, now_ns, offset_ns, partial=True)
            if len(chunk) < CHUNK_BYTES:
                return found, True
        return found, False

    def _split(self, chunk: bytes) -> list[bytes]:
        lines = chunk.split(b"\n")
        lines[0] = self._tail + lines[0]
        self._tail = lines.pop()
        return lines

    def _pieces(self, line: bytes, now_ns: int, offset_ns: int) -> list[bytes]:
        pieces = []
        while len(line) > MAX_CAPTURED_BYTES + _STAMP_BYTES:
            self.cut += 1
            piece, line = line[:MAX_CAPTURED_BYTES], line[MAX_CAPTURED_BYTES:]
            pieces += self._line(piece, now_ns, offset_ns, partial=True)
        return pieces + self._line(line, now_ns, offset_ns, partial=False)

    def _line(
        self, line: bytes, now_ns: int, offset_ns: int, *, partial: bool
    ) -> list[bytes]:
        """The records that a line makes: itself, a traceback before it, or none yet."""
        if line[-_STAMP_BYTES:-20] == STAMP and line[-20:].isdigit():
            stamp = int(line[-20:]) + offset_ns
            line = line[:-_STAMP_BYTES]
            if now_ns - 60_000_000_000 < stamp < now_ns + 1_000_000_000:
                now_ns = stamp
        text = line.rstrip(b"\r").decode("utf-8", "backslashreplace")
        if self._tracebacks is None or partial:
            return [*self._flushed(now_ns), self._record(text, now_ns, partial=partial)]
        self._fed = now_ns
        return [self._record(each, now_ns) for each in self._tracebacks.feed(text)]

    def _flushed(self, now_ns: int) -> list[bytes]:
        """What was held back of a traceback; the time is that of its release."""
        if self._tracebacks is None:
            return []
        return [self._record(each, now_ns) for each in self._tracebacks.flush()]

    def _record(self, text: str, now_ns: int, *, partial: bool = False) -> bytes:
        self._last = max(now_ns, self._last + 1)
        self._seq += 1
        level = self._level
        fields: dict[str, Any] = {
            "logger": self.stream,
            "message": text,
            "pid": self.pid,
            "stream": self.stream,
        }
        if "\n" in text:
            level = "error"
            last = text.rstrip().rpartition("\n")[2].strip()
            kind, _, message = last.partition(": ")
            fields["message"] = last
            fields["exception"] = {"type": kind, "message": message, "stack": text}
        if partial:
            fields["partial"] = True
        self.last_lines.append(str(fields["message"])[:500])
        return stamped_line(self._last, level, self.name, self._seq, fields)

    def close(self) -> None:
        """Let go of the pipe."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
