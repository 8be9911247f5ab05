"""Captured stdout and stderr of a worker of `logagg run`: raw bytes become records here.

Each thread's lines are made by themselves (`logagg.dialects.output_lines`), so
that a print of one thread is whole though others print meanwhile: what threads write is
framed with their key, except for the worker's first thread. All that has no frame (that
thread, C code, other programs) is one text.

A line of JSON, or one that a logger formatted, has its own level and fields (see
`logagg.dialects.printed`). A traceback becomes one record, of level error, with an
`exception` as records of `logging` have it.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from logagg.client.context_fields import given_names
from logagg.client.sink_urls import redaction_wanted
from logagg.consumer.source import (
    CHUNK_BYTES,
    Clock,
    SourceEnded,
    file_identity,
    stamped_line,
)
from logagg.core.merge import AsStamped
from logagg.core.record import worker_text
from logagg.dialects.output_lines import OutputLines, split_threads
from logagg.dialects.printed import (
    indented_traceback,
    printed_fields,
    printed_traceback,
)
from logagg.ipc.protocol import StreamHello

__all__ = ["OutputSource"]

MOST_THREADS = 256
"""Threads whose unfinished lines are held; a further one ends the oldest one's line."""


class OutputSource:
    """One captured stream: a `Source`.

    Args:
        pipe: The read end; closed with the source.
        hello: Names the worker and the stream.
        clock: Stamps lines, and converts the stamps that lines carry.
        last_lines: Receives the last lines, for the record of the worker's death.

    Attributes:
        name: The worker's slot, in a project with the program's name before it.
        cut: How many lines were too long for one record.
    """

    readable = True
    is_flushing = False
    shows_delay = False
    stamps = AsStamped()
    bytes_taken = 0

    def __init__(
        self, pipe: int, hello: StreamHello, clock: Clock, last_lines: deque[str]
    ) -> None:
        self.pipe = pipe
        self.name = worker_text(hello.app, hello.slot)
        self.pid = hello.pid
        self.stream = hello.stream
        self.identity = file_identity(pipe)
        self.drained = False
        self.hold_key = b""
        self._clock = clock
        self._last_lines = last_lines
        self._seq = 0
        self._last = 0
        self._level = "warning" if self.stream == "stderr" else "info"
        self._redact = redaction_wanted(None)
        self._names = given_names()
        if hello.app:
            self._names["app"] = hello.app
        self._lines = {
            b"": OutputLines(self._offset_ns, self._record)
        }  # by a thread's key
        self._rest = b""  # the beginning of a frame
        self._cut = 0  # of threads that are gone
        os.set_blocking(pipe, False)

    @property
    def pending(self) -> bool:
        """Whether a traceback, or what one call has printed, waits for its end."""
        return any(each.pending for each in self._lines.values())

    @property
    def cut(self) -> int:
        """How many lines were too long for one record."""
        return self._cut + sum(each.cut for each in self._lines.values())

    def start_reading(self, *, if_gone: bool = False) -> None:
        """It is readable from the start."""

    def read(self, budget: int) -> tuple[list[bytes], bool]:
        """Take whole lines as records; see `Source.read`."""
        now_ns = self._clock.now_ns()
        found: list[bytes] = []
        while budget > 0:
            try:
                chunk = os.read(self.pipe, CHUNK_BYTES)
            except BlockingIOError:
                return found + self._release(now_ns), True
            if not chunk:
                return self._read_end(found, now_ns), False
            budget -= len(chunk)
            found += self._feed(chunk, now_ns)
            if len(chunk) < CHUNK_BYTES:
                if len(self._lines) > 1:
                    found += self._release(now_ns)
                return found, True
        return found, False

    def _feed(self, chunk: bytes, now_ns: int) -> list[bytes]:
        pieces, self._rest = split_threads(self._rest + chunk)
        found = []
        for key, text in pieces:
            lines = self._lines.get(key)
            if lines is None:
                found += self._make_room(now_ns)
                lines = self._lines[key] = OutputLines(self._offset_ns, self._record)
            found += lines.feed(text, now_ns)
        return found

    def _make_room(self, now_ns: int) -> list[bytes]:
        """Forget threads that hold nothing; else end what the oldest one holds."""
        if len(self._lines) <= MOST_THREADS:
            return []
        threads = [key for key in self._lines if key]
        gone = [key for key in threads if self._lines[key].idle] or threads[:1]
        found = []
        for key in gone:
            lines = self._lines.pop(key)
            found += lines.end(now_ns)
            self._cut += lines.cut
        return found

    def _offset_ns(self) -> int:
        return self._clock.offset_ns

    def _release(self, now_ns: int) -> list[bytes]:
        found = []
        for each in self._lines.values():
            found += each.release(now_ns)
        return found

    def _read_end(self, found: list[bytes], now_ns: int) -> list[bytes]:
        if self._rest:
            rest, self._rest = self._rest, b""
            found += self._lines[b""].feed(rest, now_ns)
        for each in self._lines.values():
            found += each.end(now_ns)
        if not found:
            raise SourceEnded("end of stream")
        return found

    def _record(
        self, text: str, now_ns: int, *, whole: bool = False, **marks: bool
    ) -> bytes:
        self._last = max(now_ns, self._last + 1)
        self._seq += 1
        fields: dict[str, Any] = {"logger": self.stream, "message": text}
        redact = self._redact
        if "\n" not in text:
            level, found = printed_fields(text, redact=redact)
        elif whole:
            level, found = indented_traceback(text, redact=redact) or printed_fields(
                text, redact=redact
            )
        else:
            level, found = printed_traceback(text, redact=redact)
        fields.update(found)
        level = level or self._level
        for name, given in self._names.items():
            fields.setdefault(name, given)
        fields.update(pid=self.pid, stream=self.stream)
        fields.update({name: True for name, given in marks.items() if given})
        self._last_lines.append(str(fields["message"])[:500])
        return stamped_line(self._last, level, self.name, self._seq, fields)

    def take_possible_duplicates(self) -> list[bytes]:
        """None: the bytes of a pipe are read once."""
        return []

    def finish(self, reason: str) -> bool:  # noqa: ARG002 - of the protocol
        """Close the pipe."""
        self.close()
        return True

    def close(self) -> None:
        """Close the pipe. May be called twice."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
