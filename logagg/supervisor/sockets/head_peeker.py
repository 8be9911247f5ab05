"""Peeking at the first request of connections, without taking a byte of it.

A proxy's header before the request (PROXY protocol, version 1 or 2) is passed over, or is
all that is waited for; the worker gets it all the same.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from logagg.supervisor.sockets.sticky import HEAD_BYTES

__all__ = ["Connection", "HeadPeeker", "proxied_client", "request_of"]

PEEK_TIMEOUT = 1.0
_PROXY_1 = b"PROXY "
_PROXY_2 = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY_2_HEAD = struct.Struct(">12xBBH")


@dataclass(slots=True, eq=False)
class Connection:
    """A connection on its way to a worker, as `choose` callbacks see it.

    Attributes:
        sock: The connection; read it only with `MSG_PEEK`.
        peer: The client's address.
        head: What was peeked of the first request; empty when nothing was.
        client: The address in a proxy's header before it; empty when there is none.
        key: The client's key for sticky connections, if it was found.
    """

    sock: socket.socket
    peer: Any
    head: bytes = b""
    client: bytes = b""
    key: bytes | None = None
    timer: asyncio.TimerHandle | None = None
    peeked: int = 0  # bytes
    refusals: int = 0  # by workers without a free descriptor


class HeadPeeker:
    """Waits for the heads of connections, each for `PEEK_TIMEOUT` seconds at most.

    Args:
        peeked: Called with each connection once its head is there, or will not come.
        proxy_only: A proxy's header is enough.
    """

    def __init__(
        self, peeked: Callable[[Connection], None], *, proxy_only: bool
    ) -> None:
        self._peeked = peeked
        self._proxy_only = proxy_only
        self._waiting: set[Connection] = set()
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        """How many connections are waited for."""
        return len(self._waiting)

    def add(self, connection: Connection) -> None:
        """Check the bytes that have arrived; wait for more unless they suffice."""
        try:
            data = connection.sock.recv(HEAD_BYTES, socket.MSG_PEEK)
            ended = not data
        except BlockingIOError:
            data, ended = b"", False
        except OSError:
            data, ended = b"", True
        waits = connection in self._waiting
        # Woken again without more bytes: the client has closed its side for writing.
        ended = ended or (waits and len(data) == connection.peeked)
        connection.peeked = len(data)
        connection.head = request_of(data)
        client = proxied_client(data)
        connection.client = client or b""
        # A key at the very end of the bytes may be half a key: wait for the head's end.
        whole = b"\r\n\r\n" in connection.head
        if self._proxy_only:
            whole = client is not None
        if whole or len(data) >= HEAD_BYTES or ended:
            self._done(connection)
            return
        if not waits:
            self._waiting.add(connection)
            connection.timer = self._loop.call_later(
                PEEK_TIMEOUT, self._timed_out, connection
            )
            self._loop.add_reader(connection.sock.fileno(), self.add, connection)
        # Be woken only by more than what is there, or the loop would spin.
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)

    def _timed_out(self, connection: Connection) -> None:
        connection.head = b""
        self._done(connection)

    def _done(self, connection: Connection) -> None:
        if connection in self._waiting:
            self._forget(connection)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._peeked(connection)

    def _forget(self, connection: Connection) -> None:
        self._waiting.discard(connection)
        self._loop.remove_reader(connection.sock.fileno())
        if connection.timer is not None:
            connection.timer.cancel()

    def close(self) -> list[Connection]:
        """Wait no more; returns the connections that were waited for."""
        left = list(self._waiting)
        for connection in left:
            self._forget(connection)
        return left


def proxied_client(data: bytes) -> bytes | None:
    """The address in a proxy's header; empty without one, None while it may yet come."""
    if data.startswith(_PROXY_1):
        line, end, _ = data.partition(b"\r\n")
        words = line.split(b" ")  # PROXY TCP4 client server port port
        return None if not end else words[2] if len(words) == 6 else b""
    if data.startswith(_PROXY_2):
        if len(data) < _PROXY_2_HEAD.size:
            return None
        command, family, length = _PROXY_2_HEAD.unpack_from(data)
        if len(data) < _PROXY_2_HEAD.size + length:
            return None
        size = {1: 4, 2: 16}.get(family >> 4, 0) if command & 15 else 0
        return data[_PROXY_2_HEAD.size :][: min(size, length)]
    begins = _PROXY_1.startswith(data) or _PROXY_2.startswith(data)
    return None if begins else b""


def request_of(data: bytes) -> bytes:
    """The bytes after a proxy's header, if there is one; none while it is not whole."""
    if data.startswith(_PROXY_1):
        return data.partition(b"\r\n")[2]
    if data.startswith(_PROXY_2):
        if len(data) < _PROXY_2_HEAD.size:
            return b""
        *_, length = _PROXY_2_HEAD.unpack_from(data)
        return data[_PROXY_2_HEAD.size + length :]
    return b"" if data and _PROXY_2.startswith(data) else data
