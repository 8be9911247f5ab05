"""The supervisor's side of a hand-off channel: its state, and the way back."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from dataclasses import dataclass, field

from logagg.supervisor.sockets.handoff import packet, receive_packet
from logagg.supervisor.sockets.head_peeker import Connection

__all__ = ["HandoffChannel"]


@dataclass(slots=True, eq=False)
class HandoffChannel:
    """A worker's channel."""

    slot: int
    worker: int
    sock: socket.socket  # the supervisor's end
    worker_sock: socket.socket  # the worker's end
    opened: bool = False  # the worker listens
    doubted: bool = False  # it has listened; whether it still does it is to answer
    closing: bool = False  # it gets no more connections
    given: Connection | None = None  # what it has not acknowledged
    given_at: float = 0.0
    named: bool = False  # it has been named in the log
    called: bool = False  # it has not answered its call yet
    paused: bool = False  # it has refused a connection a moment ago
    slow: bool = False  # it is passed over until it acknowledges
    acknowledged: int = 0  # how many connections it took
    queue: deque[Connection] = field(default_factory=deque)  # sticky ones that wait

    @property
    def free(self) -> bool:
        """Whether it can be given a connection now."""
        return self.given is None and not (self.called or self.paused)

    def take_back(self) -> bool:
        """Read the connection back that was given, unless the worker has done so.

        The worker is called in its place. A call that waits there is no connection.
        """
        if self.called:
            return False
        try:
            _, fds = receive_packet(self.worker_sock, socket.MSG_DONTWAIT)
        except OSError:
            return False
        self.call()
        for fd in fds:
            os.close(fd)
        self.given = None
        return True

    def call(self) -> None:
        """Have the worker answer before it is given a connection again."""
        if not self.called:
            self.called = True
            with contextlib.suppress(OSError):
                self.sock.send(packet(b"call"))
