"""Addresses to listen on: what `--bind` takes, and the sockets made from it."""

from __future__ import annotations

import enum
import os
import socket
import stat
from dataclasses import dataclass

from logagg.errors import ConfigError

__all__ = ["Address", "Policy", "bound_socket"]

BACKLOG = 2048
"""The queue of connections not yet accepted; uvicorn's and gunicorn's own default."""


class Policy(enum.Enum):
    """Who decides which worker gets a connection.

    Attributes:
        KERNEL: All workers accept from one shared socket. Cheapest; the kernel wakes
            who it likes, so long-lived connections spread unevenly.
        REUSEPORT: Each worker has a socket of its own, the kernel hashes connections
            over them. Even, but what waits in a dying worker's queue is reset.
        RR: The supervisor accepts and hands connections over in turn, with
            acknowledgement. Even, and a connection whose worker dies goes to another.
    """

    KERNEL = "kernel"
    REUSEPORT = "reuseport"
    RR = "rr"


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen: a host and port, or the path of a Unix socket.

    Attributes:
        family: `socket.AF_INET`, `AF_INET6` or `AF_UNIX`.
        host: The numeric host, or the path for a Unix socket.
        port: The port; 0 for a Unix socket.
    """

    family: int
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
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
        if not colon or not port.isdigit() or int(port) > 65535:
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
        return cls(int(family), str(name[0]), int(name[1]))

    @property
    def sockaddr(self) -> str | tuple[str, int]:
        """What `socket.bind` takes."""
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
        host = {"": "0.0.0.0", "localhost": "127.0.0.1"}.get(  # noqa: S104  compared only
            str(sockaddr[0]), str(sockaddr[0])
        )
        return sockaddr[1] == self.port and (
            host == self.host or bool({"0.0.0.0", "::"} & {host, self.host})  # noqa: S104
        )

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return f"unix:{self.host}"
        host = f"[{self.host}]" if self.family == socket.AF_INET6 else self.host
        return f"{host}:{self.port}"


def bound_socket(address: Address, *, reuse_port: bool = False) -> socket.socket:
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


def _clear_stale(path: str) -> None:
    """Remove a Unix socket that nobody listens on any more."""
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
