"""Connections of an HTTP endpoint: of strangers few, short, and not too many in a time.

Any user of the host may connect, and it is the server's own loop that accepts.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from logagg.ipc.descriptors import free_descriptors

__all__ = ["Gate"]

MOST_CONNECTIONS = 16
LIFETIME = 15.0
ACCEPTS = 10
ACCEPT_INTERVAL = 0.1


class Gate:
    """Accepts connections: a few at once, none for long, and none without need.

    Any user of the host may connect. When there are MOST_CONNECTIONS the oldest is
    closed for a new one, so a client that asks at once is always served; each is closed
    after LIFETIME. In ACCEPT_INTERVAL seconds ACCEPTS are accepted at most. None is
    accepted while the descriptors of the server's own work would not be free.

    Args:
        listener: Where clients connect to.
        protocol: Makes the protocol of a connection.
        tls: The server's certificate, or None.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._open: dict[socket.socket, asyncio.Task[None]] = {}
        self._strangers: dict[asyncio.BaseTransport, asyncio.Event] = {}
        self._accepts = 0
        self._until = 0.0  # when the count of accepted connections begins anew
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        now = self._loop.time()
        if now >= self._until:
            self._accepts, self._until = 0, now + ACCEPT_INTERVAL
        self._accepts += 1
        if self._accepts > ACCEPTS:
            self._pause(self._until - now)
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            self._pause(1.0)
            return
        if free_descriptors() < 0:
            connection.close()
            self._pause(1.0)
            return
        while len(self._open) >= MOST_CONNECTIONS:
            self._open.pop(next(iter(self._open))).cancel()
        task = self._loop.create_task(self._serve(connection))
        self._open[connection] = task

    def _pause(self, seconds: float) -> None:
        """Leave those that connect in the queue for so long."""
        self._loop.remove_reader(self._listener)
        self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def admit(self, transport: asyncio.BaseTransport) -> None:
        """Count a connection no more, and leave it open: its client is known."""
        known = self._strangers.get(transport)
        if known is not None:
            known.set()

    async def _serve(self, connection: socket.socket) -> None:
        transport: asyncio.BaseTransport | None = None
        known = asyncio.Event()
        try:
            connection.setblocking(False)
            async with asyncio.timeout(LIFETIME):
                transport, _ = await self._loop.connect_accepted_socket(
                    self._protocol, connection, ssl=self._tls
                )
                self._strangers[transport] = known
                await known.wait()
        except OSError:  # it is gone again, or was there for LIFETIME
            pass
        finally:
            self._open.pop(connection, None)
            if transport is not None:
                self._strangers.pop(transport, None)
            if not known.is_set():
                if isinstance(transport, asyncio.WriteTransport):
                    transport.abort()
                connection.close()

    def close(self) -> None:
        """Accept nothing more, and close all connections."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for task in self._open.values():
            task.cancel()
