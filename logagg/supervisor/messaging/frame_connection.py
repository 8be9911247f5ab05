"""The supervisor's end of a worker's channel: the transport of its peer, on the loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from logagg.errors import WireError
from logagg.supervisor.messaging.frames import Decoder, Frame, receive
from logagg.supervisor.messaging.peer import Peer

__all__ = ["FrameConnection"]


class FrameConnection:
    """Host of the peer that talks with one worker (see `PeerHost`); never blocks.

    Everything belongs to the loop, except `transmit` and `alarm`, which a peer calls
    from whatever thread uses it.

    Args:
        sock: The supervisor's end of the pair; owned by the connection from now on.
        other: The worker's name, for errors.
        handle: Called with each frame for the supervisor and its descriptor (or -1),
            which it then owns.
        start: Runs a handler's coroutine.
        report: Called with the errors of handlers and frames.
        disconnected: Called once, when the other end has closed or broken the protocol.
    """

    def __init__(
        self,
        sock: socket.socket,
        other: str,
        *,
        handle: Callable[[Frame, int], None],
        start: Callable[[Any], Any],
        report: Callable[[str, BaseException], None],
        disconnected: Callable[[], None],
    ) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self.handle, self.start, self.report = handle, start, report
        self._disconnected = disconnected
        self._decoder = Decoder()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self.closed = False
        self.peer = Peer(self, other)

    def transmit(self, data: memoryview, fd: int) -> int:
        """Send as much as the socket takes now; see `PeerHost`."""
        try:
            if fd >= 0:
                return socket.send_fds(self._socket, [data], [fd])
            return self._socket.send(data)
        except BlockingIOError:
            self._on_loop(self._await_room)
            return 0

    def alarm(self, seconds: float) -> None:
        """Have the peer's questions expire in time."""
        self._on_loop(self._loop.call_later, seconds, self._expire)

    def _on_loop(self, function: Callable[..., object], *arguments: Any) -> None:
        if asyncio._get_running_loop() is self._loop:
            function(*arguments)
        else:
            self._loop.call_soon_threadsafe(function, *arguments)

    def _expire(self) -> None:
        left = self.peer.expire()
        if left is not None:
            self._loop.call_later(left, self._expire)

    def _await_room(self) -> None:
        if not self.closed:
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket.fileno())
        self.peer.writable()

    def _readable(self) -> None:
        try:
            ended = self._receive()
        except BlockingIOError:
            return
        except (OSError, WireError):
            ended = True
        if ended:
            self.close()

    def _receive(self) -> bool:
        data, fds = receive(self._socket)
        for frame, fd in self._decoder.feed(data, fds):
            self.peer.receive(frame, fd)
        return not data

    def drain(self) -> None:
        """Handle all that a dead worker has sent, up to the end, and close."""
        try:
            while not self.closed and not self._receive():
                pass
        except (OSError, WireError):
            pass
        self.close()

    def close(self) -> None:
        """Close the channel. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._decoder.close()
        self._disconnected()
