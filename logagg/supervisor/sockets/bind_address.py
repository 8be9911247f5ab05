"""Addresses to listen on (`--bind`) and their sockets."""

from __future__ import annotations

import enum
import os
import socket
import stat
from dataclasses import dataclass
from typing import Any

from logagg.errors import ConfigError

__all__ = ["BindAddress", "PortPolicy", "bound_socket", "numeric_host"]

BACKLOG = 2048
"""The queue of connections not yet accepted; uvicorn's and gunicorn's own default."""


class PortPolicy(enum.Enum):
    """How workers share a listening address.

    Attributes:
        KERNEL: All workers accept from one shared socket. Cheapest; the kernel wakes
            any of them, so long-lived connections spread unevenly.
        REUSEPORT: Each worker has a socket of its own, the kernel hashes connections
            over them. Even, but what waits in a dying worker's queue is reset.
        RR: The supervisor accepts and hands connections off in turn, with
            acknowledgement. Even, and a connection whose worker dies goes to another.
    """

    KERNEL = "kernel"
    REUSEPORT = "reuseport"
    RR = "rr"


@dataclass(frozen=True, slots=True)
class BindAddress:
    """A place to listen: a host and port, or the path of a Unix socket.

    Attributes:
        family: `socket.AF_INET`, `AF_INET6` or `AF_UNIX`.
        host: The numeric host, with `%` and the interface where an IPv6 address is one
            of a link only; or the path for a Unix socket.
        port: The port; 0 for a Unix socket.
    """

    family: int
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> BindAddress:
        """Read `HOST:PORT`, `:PORT` (all IPv4 addresses), `[V6]:PORT` or `unix:PATH`.

        Raises:
            ConfigError: It is none of these, or the host is not known.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path or "\0" in path:
                raise ConfigError(f"--bind {text!r}: name a path, as in unix:app.sock")
            return cls(socket.AF_UNIX, os.path.abspath(path))
        host, colon, port = text.rpartition(":")
        if colon and port.isdecimal() and int(port) > 65535:
            raise ConfigError(f"--bind {text!r}: ports end at 65535")
        if not colon or not port.isdecimal():
            raise ConfigError(
                f"--bind {text!r}: expected HOST:PORT, :PORT, [IPV6]:PORT or unix:PATH"
            )
        host = host.strip("[]") or "0.0.0.0"  # noqa: S104  all addresses were asked for
        try:
            found = socket.getaddrinfo(
                host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise ConfigError(f"--bind {text!r}: {host}: {error.strerror}") from error
        family, _, _, _, name = found[0]
        return cls(int(family), _scoped(name), int(name[1]))

    @property
    def sockaddr(self) -> str | tuple[str, int] | tuple[str, int, int, int]:
        """The argument of `socket.bind`.

        Raises:
            OSError: There is no such interface.
        """
        host, _, interface = self.host.partition("%")
        if self.family == socket.AF_INET6 and interface:
            return host, self.port, 0, socket.if_nametoindex(interface)
        return self.host if self.family == socket.AF_UNIX else (self.host, self.port)

    def covers(self, family: int, sockaddr: object) -> bool:
        """Whether a program that binds `sockaddr` means this address.

        The port decides, together with the family; a host matches when it is the same
        or when either side means all addresses.
        """
        if family != self.family:
            return False
        if family == socket.AF_UNIX:
            return isinstance(sockaddr, (str, bytes)) and (
                os.path.abspath(os.fsdecode(sockaddr)) == self.host
            )
        if not isinstance(sockaddr, tuple) or len(sockaddr) < 2:
            return False
        host = _scoped(sockaddr)
        host = {"": "0.0.0.0", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104  compared only
        return sockaddr[1] == self.port and (
            host == self.host or bool({"0.0.0.0", "::"} & {host, self.host})  # noqa: S104
        )

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return f"unix:{self.host}"
        host = f"[{self.host}]" if self.family == socket.AF_INET6 else self.host
        return f"{host}:{self.port}"


def bound_socket(address: BindAddress, *, reuse_port: bool = False) -> socket.socket:
    """Make a socket that is bound to the address and does not listen yet.

    `TCP_NODELAY` is set on it, and Linux hands that down to accepted connections: a
    server that takes the descriptor for a Unix socket (uvicorn's `--fd`) would leave
    Nagle's algorithm on.

    Raises:
        ConfigError: The address is in use, not of this host, or not allowed.
    """
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        if address.family == socket.AF_UNIX:
            _clear_stale(address.host)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if address.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address.sockaddr)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot bind {address}: {error.strerror}") from error
    return sock


def numeric_host(family: int, name: tuple[Any, ...]) -> str | None:
    """The numeric host of an address that a program binds; None when it is unknown."""
    host = _scoped(name)
    if host == "":
        return "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104
    try:
        found = socket.getaddrinfo(host, name[1], family, socket.SOCK_STREAM)
    except OSError:
        return None
    return _scoped(found[0][4])


def _scoped(name: tuple[Any, ...]) -> str:
    """The host of an address, with its interface where the address states one."""
    host, scope = str(name[0]), name[3] if len(name) == 4 else 0
    if not scope or "%" in host:
        return host
    try:
        return f"{host}%{socket.if_indextoname(scope)}"
    except OSError:  # there is no such interface
        return host


def _clear_stale(path: str) -> None:
    """Remove a Unix socket that no process listens on."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
