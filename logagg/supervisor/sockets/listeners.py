"""The addresses that the supervisor owns and shares with workers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from logagg.supervisor.child.launch_spec import SharedListener
from logagg.supervisor.sockets.bind_address import (
    BACKLOG,
    BindAddress,
    PortPolicy,
    bound_socket,
)
from logagg.supervisor.sockets.handoff_channel import HandoffChannel
from logagg.supervisor.sockets.round_robin import RoundRobin
from logagg.supervisor.sockets.sticky import Sticky

__all__ = ["Listener", "Listeners"]


class Listener:
    """One owned address.

    Attributes:
        address: Where it is.
        policy: How connections are shared; rr may fall back to kernel.
        sock: The bound socket.
        round_robin: The handing over, with policy rr.
        sharing: Workers that accept from the shared socket, since they cannot be handed
            connections.
        users: Workers whose program listens there.
        named: The user named it (`--bind`): it stays open while no worker listens.
    """

    def __init__(
        self, name: str, address: BindAddress, policy: PortPolicy, sock: socket.socket
    ) -> None:
        self.name = name
        self.address = address
        self.policy = policy
        self.sock = sock
        self.round_robin: RoundRobin | None = None
        self.sharing: set[int] = set()
        self.users: set[int] = set()
        self.named = False
        self._spare = ""
        if address.family == socket.AF_UNIX:
            self._spare = f"{address.host}.{os.getpid()}"
            os.link(address.host, self._spare)

    def is_at(self, host: str, port: int) -> bool:
        """Whether a worker that names this place means this listener."""
        return self.address.covers(self.address.family, (host, port))

    def refuse(self) -> None:
        """Refuse clients until a worker listens again; the port stays this run's.

        Those that wait are let go too.
        """
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        if self.round_robin is not None:
            self.round_robin.refuse()

    def inode(self, worker: int, slot: int) -> int:
        """The inode of what a worker has open to listen here."""
        sock = self.sock
        if self.round_robin is not None and worker not in self.sharing:
            sock = self.round_robin.channel(worker, slot).worker_sock
        return os.fstat(sock.fileno()).st_ino

    def keep_path(self) -> None:
        """Put a Unix socket's name back: servers remove it when they start and end."""
        if self._spare and not os.path.exists(self.address.host):
            with contextlib.suppress(OSError):  # its directory is gone, or read-only
                os.link(self._spare, self.address.host)

    def close(self) -> None:
        """Stop listening, and remove a Unix socket's names."""
        if self.round_robin is not None:
            self.round_robin.close()
        self.sock.close()
        if self._spare:
            for path in (self._spare, self.address.host):
                try:
                    os.unlink(path)
                except OSError:
                    pass


class Listeners:
    """All owned addresses: those of `--bind`, and those that workers asked to share."""

    def __init__(
        self,
        policy: PortPolicy,
        sticky: Sticky | None,
        choose: Callable[..., Any] | None,
        silent: Callable[[RoundRobin, HandoffChannel], None],
    ) -> None:
        self.all: list[Listener] = []
        self._policy = policy
        self._sticky = sticky
        self._choose = choose
        self._silent = silent

    def bind(self, address: BindAddress) -> Listener:
        """Own an address that the user named.

        Raises:
            ConfigError: It cannot be bound.
        """
        policy = self._policy
        if policy is PortPolicy.REUSEPORT and address.family == socket.AF_UNIX:
            policy = PortPolicy.KERNEL
        sock = bound_socket(address, reuse_port=policy is PortPolicy.REUSEPORT)
        if address.port == 0 and address.family != socket.AF_UNIX:
            address = BindAddress(address.family, address.host, sock.getsockname()[1])
        listener = self._add(address, policy, sock)
        listener.named = True
        return listener

    def share(self, family: int, host: str, port: int, sock: socket.socket) -> Listener:
        """Own an address that a worker binds, with the worker's own socket.

        Raises:
            OSError: It cannot be bound.
        """
        address = BindAddress(family, host, port)
        sock.bind(address.sockaddr)
        return self._add(address, self._policy, sock, listen=False)

    def _add(
        self,
        address: BindAddress,
        policy: PortPolicy,
        sock: socket.socket,
        *,
        listen: bool = True,
    ) -> Listener:
        number = len(self.all) + 1
        name = "web" if number == 1 else f"web{number}"
        listener = Listener(name, address, policy, sock)
        if policy is PortPolicy.KERNEL and listen:
            # As systemd does: clients that connect before the first worker is up wait.
            sock.listen(BACKLOG)
        elif policy is PortPolicy.RR:
            listener.round_robin = RoundRobin(
                address,
                sock,
                sticky=self._sticky,
                choose=self._choose,
                silent=self._silent,
            )
        self.all.append(listener)
        return listener

    def find(self, family: int, host: str, port: int) -> Listener | None:
        """The listener of an address, if it is owned."""
        for listener in self.all:
            if listener.address.covers(family, (host, port)):
                return listener
        return None

    def shared_with(self, worker: int, slot: int) -> list[SharedListener]:
        """The addresses for a new worker; descriptors stay this process's."""
        shared = []
        for listener in self.all:
            fd = -1
            if listener.round_robin is not None:
                channel = listener.round_robin.channel(worker, slot)
                fd = channel.worker_sock.fileno()
            elif listener.policy is PortPolicy.KERNEL:
                fd = listener.sock.fileno()
            address = listener.address
            shared.append(
                SharedListener(
                    listener.name,
                    address.family,
                    address.host,
                    address.port,
                    listener.policy.value,
                    fd,
                )
            )
        return shared

    def round_robins(self) -> list[RoundRobin]:
        """The handing over of all listeners with policy rr."""
        return [each.round_robin for each in self.all if each.round_robin is not None]

    def close(self) -> None:
        """Close all addresses."""
        for listener in self.all:
            listener.close()
        self.all.clear()
