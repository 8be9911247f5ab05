"""Live viewers: each gets the stream through a pipe of its own, and hurts nobody.

A viewer passes the write end of its pipe. What it is sent waits in a bounded buffer of
its own; when that is full, the newest lines are dropped for this viewer only, counted,
and told to it in a control line. Writes never block.

A control line is a JSON object that does not begin as a record does: `{"run": …,
"workers": N}` first, `{"live": true}` behind the past lines, `{"dropped": N}`, and
`{"loss": "…"}` for the notice of a loss that the viewer's filter would have hidden.

`Ring` keeps the stream's last lines by reference, so it costs nothing a record.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import orjson

from logagg.wire import LEVEL_START

__all__ = ["Ring", "Viewer"]

RING_BYTES = 8 * 1024 * 1024
BUFFER_BYTES = 8 * 1024 * 1024
LOSSES = ("lost", "dropped", "damaged")
_OURS = tuple(
    f'{level}","worker":"consumer","seq":'.encode() for level in ("warning", "error")
)


class Ring:
    """The last batches of the stream, at most RING_BYTES of them."""

    def __init__(self) -> None:
        self._batches: deque[tuple[list[bytes], bytes, int]] = deque()
        self._bytes = 0

    def add(self, lines: list[bytes], closing: bytes, size_bytes: int) -> None:
        """Keep a batch; forget the oldest."""
        self._batches.append((lines, closing, size_bytes))
        self._bytes += size_bytes
        while self._bytes > RING_BYTES and len(self._batches) > 1:
            self._bytes -= self._batches.popleft()[2]

    def finished(self) -> list[bytes]:
        """All kept lines, finished, oldest first."""
        return [line + closing for lines, closing, _ in self._batches for line in lines]


class Viewer:
    """One viewer's filter, buffer and pipe.

    Raises:
        ValueError: Its filter is wrong; the message says how.
    """

    def __init__(self, pipe: int, hello: dict[str, Any]) -> None:
        self.pipe = pipe
        self.gone = False
        self.dropped = 0
        self.sent = 0
        self._told = 0
        self._buffer: deque[memoryview] = deque()
        self._buffered = 0
        self._match = _matcher(hello)
        os.set_blocking(pipe, False)

    def greet(self, head: dict[str, Any], ring: Ring, hello: dict[str, Any]) -> None:
        """Send the first line and what the viewer wants of the past."""
        self._put(orjson.dumps(head) + b"\n")
        wanted = hello.get("lines")
        after = hello.get("after")
        lines = ring.finished()
        if isinstance(after, list) and len(after) == 3:
            lines = _behind(lines, after)
        lines = self._chosen(lines, b"")
        if isinstance(wanted, int) and not after:
            lines = lines[-wanted:] if wanted else []
        self._put(b"".join(lines) + b'{"live":true}\n')
        self.push()

    def offer(self, lines: list[bytes], closing: bytes) -> None:
        """Give it a batch: what matches is buffered, or dropped and counted."""
        chosen = self._chosen(lines, closing)
        if not self._match.everything:
            self._tell_losses(lines, closing, chosen)
        if not chosen:
            return
        if self._buffered > BUFFER_BYTES:
            self.dropped += len(chosen)
            return
        self._tell_dropped()
        self._put(closing.join([*chosen, b""]) if closing else b"".join(chosen))

    def _tell_losses(
        self, lines: list[bytes], closing: bytes, chosen: list[bytes]
    ) -> None:
        for line in lines:
            if line.startswith(_OURS, LEVEL_START) and line not in chosen:
                record = orjson.loads(line + closing)
                if record.get("event") in LOSSES:
                    self._put(orjson.dumps({"loss": record.get("message")}) + b"\n")

    def _tell_dropped(self) -> None:
        if self.dropped > self._told:
            self._put(b'{"dropped":%d}\n' % (self.dropped - self._told))
            self._told = self.dropped

    def _chosen(self, lines: list[bytes], closing: bytes) -> list[bytes]:
        found: list[bytes] = self._match.lines(lines, closing)
        return found

    def _put(self, data: bytes) -> None:
        if data:
            self._buffer.append(memoryview(data))
            self._buffered += len(data)

    def push(self) -> bool:
        """Write what the pipe takes; True when something is left."""
        while self._buffer and not self.gone:
            data = self._buffer[0]
            try:
                done = os.write(self.pipe, data[:65536])
            except BlockingIOError:
                return True
            except OSError:
                self.gone = True
                return False
            self.sent += done
            self._buffered -= done
            if done == len(data):
                self._buffer.popleft()
            else:
                self._buffer[0] = data[done:]
            if not self._buffer:
                self._tell_dropped()
        return False

    def close(self) -> None:
        """Close the pipe."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


def _matcher(hello: dict[str, Any]) -> Any:
    from logagg.view import match

    return match.from_message(hello)


def _behind(lines: list[bytes], after: list[Any]) -> list[bytes]:
    """The lines behind the one that a viewer has seen last.

    Late lines stand behind lines with later stamps, so the very line is looked for; when
    it has left the ring, its time decides.
    """
    key = str(after[0]).encode()
    mark = b'"worker":"%b","seq":%b,' % tuple(str(each).encode() for each in after[1:3])
    for place in range(len(lines) - 1, -1, -1):
        if lines[place][14:44] == key and mark in lines[place][:400]:
            return lines[place + 1 :]
    return [line for line in lines if line[14:44] > key]
