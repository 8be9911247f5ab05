"""The addresses that the supervisor owns, and what a new worker gets of each."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from logagg.supervisor.address import BACKLOG, Address, Policy, bound_socket
from logagg.supervisor.handover import Handover, Lane
from logagg.supervisor.start import Door
from logagg.supervisor.sticky import Sticky

__all__ = ["Listener", "Listeners"]


class Listener:
    """One owned address.

    Attributes:
        address: Where it is.
        policy: Who decides which worker gets a connection; rr may fall back to kernel.
        sock: The bound socket.
        handover: The handing over, with policy rr.
    """

    def __init__(
        self, name: str, address: Address, policy: Policy, sock: socket.socket
    ) -> None:
        self.name = name
        self.address = address
        self.policy = policy
        self.sock = sock
        self.handover: Handover | None = None
        self._spare = ""
        if address.family == socket.AF_UNIX:
            self._spare = f"{address.host}.{os.getpid()}"
            os.link(address.host, self._spare)

    def keep_path(self) -> None:
        """Put a Unix socket's name back: servers remove it when they start and end."""
        if self._spare and not os.path.exists(self.address.host):
            os.link(self._spare, self.address.host)

    def close(self) -> None:
        """Stop listening, and remove a Unix socket's names."""
        if self.handover is not None:
            self.handover.close()
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
        policy: Policy,
        *,
        sticky: Sticky | None,
        choose: Callable[..., Any] | None,
        unfit: Callable[[Handover, Lane], None],
    ) -> None:
        self.all: list[Listener] = []
        self._policy = policy
        self._sticky = sticky
        self._choose = choose
        self._unfit = unfit

    def bind(self, address: Address) -> Listener:
        """Own an address that the user named.

        Raises:
            ConfigError: It cannot be bound.
        """
        policy = self._policy
        if policy is Policy.REUSEPORT and address.family == socket.AF_UNIX:
            policy = Policy.KERNEL
        sock = bound_socket(address, reuse_port=policy is Policy.REUSEPORT)
        if address.port == 0 and address.family != socket.AF_UNIX:
            address = Address(address.family, address.host, sock.getsockname()[1])
        return self._add(address, policy, sock)

    def share(self, family: int, host: str, port: int, sock: socket.socket) -> Listener:
        """Own an address that a worker binds, with the worker's own socket.

        Raises:
            OSError: It cannot be bound.
        """
        sock.bind((host, port))
        policy = self._policy
        if policy is Policy.REUSEPORT:
            policy = Policy.KERNEL  # the program's own socket was not made for it
        return self._add(Address(family, host, port), policy, sock, listen=False)

    def _add(
        self,
        address: Address,
        policy: Policy,
        sock: socket.socket,
        *,
        listen: bool = True,
    ) -> Listener:
        number = len(self.all) + 1
        name = "web" if number == 1 else f"web{number}"
        listener = Listener(name, address, policy, sock)
        if policy is Policy.KERNEL and listen:
            # As systemd does: who connects before the first worker is up waits.
            sock.listen(BACKLOG)
        elif policy is Policy.RR:
            listener.handover = Handover(
                address,
                sock,
                sticky=self._sticky,
                choose=self._choose,
                unfit=self._unfit,
            )
        self.all.append(listener)
        return listener

    def find(self, family: int, host: str, port: int) -> Listener | None:
        """The listener of an address, if it is owned."""
        for listener in self.all:
            if listener.address.covers(family, (host, port)):
                return listener
        return None

    def doors(self, worker: int, slot: int) -> list[Door]:
        """What a new worker gets; descriptors are valid until `started` is called."""
        doors = []
        for listener in self.all:
            fd = -1
            if listener.handover is not None:
                lane = listener.handover.lane(worker, slot)
                assert lane.theirs is not None
                fd = lane.theirs.fileno()
            elif listener.policy is Policy.KERNEL:
                fd = listener.sock.fileno()
            address = listener.address
            doors.append(
                Door(
                    listener.name,
                    address.family,
                    address.host,
                    address.port,
                    listener.policy.value,
                    fd,
                )
            )
        return doors

    def handovers(self) -> list[Handover]:
        """The handing over of all listeners with policy rr."""
        return [each.handover for each in self.all if each.handover is not None]

    def close(self) -> None:
        """Let go of all addresses."""
        for listener in self.all:
            listener.close()
        self.all.clear()
