"""The supervisor's end of a worker's channel, on its event loop; never blocks."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable

from logagg.errors import WireError
from logagg.supervisor.channel import Decoder, Frame, encode, receive

__all__ = ["Link"]


class Link:
    """Frames to and from one worker.

    Frames are sent in the order of the calls. What the socket does not take at once
    waits here; user messages are bounded before they come here (`Outbox`), the other
    frames are few and small.

    Args:
        sock: The supervisor's end of the pair; owned by the link from now on.
        heard: Called with each frame and its descriptors, which it then owns.
        gone: Called once, when the other side has closed or sent nonsense.
    """

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[[Frame, list[int]], None],
        gone: Callable[[], None],
    ) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._heard = heard
        self._gone = gone
        self._decoder = Decoder()
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self.closed = False

    def tell(self, frame: Frame, fds: list[int] | None = None) -> None:
        """Send a frame; nothing happens when the other side is gone."""
        passed = fds or []
        head = {**frame, "fds": len(passed)} if passed else frame
        self.transmit(encode(head), passed)

    def transmit(self, data: bytes, fds: list[int]) -> None:
        """Send encoded bytes with descriptors; duplicates are kept while they wait."""
        if self.closed:
            return
        rest = memoryview(data)
        if not self._waiting:
            rest = self._send(rest, fds)
            if not rest:
                return
            if len(rest) < len(data):
                fds = []
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._waiting.append((rest, [os.dup(fd) for fd in fds]))

    def _send(self, data: memoryview, fds: list[int]) -> memoryview:
        try:
            if fds:
                return data[socket.send_fds(self._socket, [data], fds) :]
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return data[:0]  # the reader's side notices the end and tells

    def _writable(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            rest = self._send(data, fds)
            if len(rest) < len(data):
                for fd in fds:
                    os.close(fd)
                fds = []
            if rest:
                self._waiting[0] = (rest, fds)
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            data, fds = receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        try:
            frames = self._decoder.feed(data, fds)
        except WireError:
            data, frames = b"", []
        for frame, passed in frames:
            self._heard(frame, passed)
        if not data:
            self.close()

    def drain(self) -> None:
        """Read all that a dead worker has sent, up to the end."""
        while not self.closed:
            try:
                data, fds = receive(self._socket)
                frames = self._decoder.feed(data, fds)
            except (OSError, WireError):
                break
            for frame, passed in frames:
                self._heard(frame, passed)
            if not data:
                break
        self.close()

    def close(self) -> None:
        """Let go of the channel. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._decoder.close()
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
        self._gone()
