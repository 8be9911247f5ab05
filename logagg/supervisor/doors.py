"""The worker's side of sharing a port: `socket` answered so that any server works.

Theory of operation
-------------------
In a worker, some methods of `socket.socket` are replaced by functions that do what the
original does, but for stream sockets of addresses that the supervisor owns or may own:

- `bind` asks. *kernel*: the supervisor's bound socket is put (`dup2`) in the place of
  the program's own, whose number stays. *reuseport*: `SO_REUSEPORT` is set and the
  program binds its own. *rr*: a *hand-over channel* is put there, a packet socket
  through which the supervisor passes accepted connections. Event loops and selectors
  poll it as they poll a listening socket: readable means that `accept` will not block.
- `listen` on a channel opens it (the supervisor starts to hand over) instead.
- `accept` on a channel receives a connection and acknowledges it. Only then does the
  supervisor drop its copy and hand this worker another: a worker that is stuck holds
  at most one, and the connection of one that dies goes to a sibling.
- `getsockname`, `family`, `type` and the socket options of a channel are those of the
  address that clients use: servers look at them, and set TCP's options.

A channel is known by the inode of its socket, not by its number, so `dup`, `fromfd` and
an `SSLSocket` around it work too. Forked children inherit all of it.

A worker that is to stop first *drains* its shared listeners: its siblings take what
comes, and what it has accepted has a moment to become a request; a server that got its
TERM closes connections on which none has begun.

Servers that accept without Python's `socket` cannot be handed connections: uvloop
(libuv accepts in C) is noticed by the running loop and gets the shared socket with one
line that says so; for what is not noticed the supervisor misses the acknowledgement.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, Protocol

from logagg.supervisor.start import Door

__all__ = ["Asker", "install"]

logger = logging.getLogger("logagg")

_INET = (socket.AF_INET, socket.AF_INET6)
_raw: Any = socket.socket.__mro__[1]  # the C class below
_real_accept = socket.socket.accept
_real_family: Any = vars(socket.socket)["family"].fget
_real_type: Any = vars(socket.socket)["type"].fget


class Asker(Protocol):
    """What the doors need of the worker object."""

    share: bool
    limited: bool
    on_drain: Callable[[], None] | None

    def ask(
        self, question: dict[str, Any], fds: list[int]
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask the supervisor and block until it has answered."""

    def listening(self, host: str, port: int) -> None:
        """Tell that the program listens there now."""

    def accepted(self) -> None:
        """Count a connection."""


class _Doors:
    def __init__(self, doors: list[Door], asker: Asker) -> None:
        self.asker = asker
        self.pid = os.getpid()
        self.doors = {(d.family, d.host, d.port): d for d in doors}
        self.channels: dict[int, Door] = {}
        self.listening: dict[int, int] = {}  # descriptor: inode, of shared listeners
        for door in doors:
            if door.policy == "rr":
                self.channels[os.fstat(door.fd).st_ino] = door

    def channel(self, sock: socket.socket) -> Door | None:
        """The door whose channel this socket is, if it is one."""
        if not self.channels:
            return None
        try:
            return self.channels.get(os.fstat(sock.fileno()).st_ino)
        except OSError:
            return None

    def owned(self, sock: socket.socket, name: Any) -> Door | None:
        """The door of an address that the program binds."""
        from logagg.supervisor.address import Address

        for door in self.doors.values():
            if Address(door.family, door.host, door.port).covers(sock.family, name):
                return door
        return None

    # ---- bind ---------------------------------------------------------------------

    def bind(self, sock: socket.socket, name: Any) -> None:
        if sock.type != socket.SOCK_STREAM:
            _raw.bind(sock, name)
            return
        self.bind_stream(sock, name)
        if _runs_uvloop():
            # It listens in C, unseen, directly after binding.
            self.tell_listening(sock, name)
            if self.asker.limited and sock.family in _INET:
                self.tell_uncounted()

    def tell_listening(self, sock: socket.socket, name: Any) -> None:
        """Tell that the program listens; a Unix socket of its own concerns nobody."""
        if isinstance(name, tuple):
            self.asker.listening(str(name[0]), int(name[1]))
        elif self.owned(sock, name) is not None:
            self.asker.listening(os.fsdecode(name), 0)

    def tell_uncounted(self) -> None:
        """Say once that a limit of connections is not kept."""
        self.asker.limited = False
        logger.warning(
            "slot %s: uvloop accepts connections itself, so they are not counted: "
            "--max-connections does nothing here; start the server on the asyncio loop "
            "(uvicorn: --loop asyncio), or limit its age with --max-age",
            os.environ.get("LOGAGG_SLOT"),
        )

    def bind_stream(self, sock: socket.socket, name: Any) -> None:
        door = self.owned(sock, name)
        if door is None:
            self.bind_unowned(sock, name)
        elif door.policy == "reuseport":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _raw.bind(sock, name)
        elif door.policy == "rr" and _runs_uvloop():
            self.share_instead(sock, door)
        else:
            self.put(sock, door.fd)

    def put(self, sock: socket.socket, fd: int) -> None:
        """Let the program's socket be `fd`, under its own number.

        What is put there never blocks, whatever the program's socket does: the mode
        belongs to the open file, which all workers share, and a sibling's event loop
        that accepts what another has taken would be held up. See `accept`.
        """
        os.dup2(fd, sock.fileno(), inheritable=False)
        os.set_blocking(sock.fileno(), False)
        self.remember(sock.fileno())

    def remember(self, fd: int) -> None:
        """Note a listener, for `drain`."""
        self.listening[fd] = os.fstat(fd).st_ino

    def drain(self) -> None:
        """Take no more connections, in whatever language the server accepts them.

        A listener that nobody connects to is put in the place of each shared one, under
        its number. The event loop is still woken for the shared one, finds nothing, and
        leaves what came to the siblings. Called in the channel's thread. Blocking
        listeners are left alone: in `accept` already, they would not notice. So are
        hand-over channels: the supervisor sends nothing more there, and if this came
        between a connection and its acknowledgement, a sibling would get it as well.
        """
        quiet = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _raw.bind(quiet, "")  # an abstract address of the kernel's choice
        _raw.listen(quiet, 1)
        quiet.setblocking(False)
        for fd, inode in list(self.listening.items()):  # the program may add some
            if inode in self.channels:
                continue
            try:
                if os.fstat(fd).st_ino == inode and not os.get_blocking(fd):
                    os.dup2(quiet.fileno(), fd, inheritable=False)
            except OSError:
                pass  # closed meanwhile
        quiet.close()

    def bind_unowned(self, sock: socket.socket, name: Any) -> None:
        """Bind through the supervisor, so that all workers share what one binds."""
        if (
            not self.asker.share
            or os.getpid() != self.pid
            or sock.family not in _INET
            or not isinstance(name, tuple)
            or len(name) < 2
            or not isinstance(name[1], int)
            or name[1] == 0
            or sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        ):
            _raw.bind(sock, name)
            return
        host = _numeric(sock.family, name)
        if host is None:
            _raw.bind(sock, name)
            return
        question = {"k": "bind", "family": int(sock.family), "host": host}
        question["port"] = name[1]
        answer, fds = self.asker.ask(question, [sock.fileno()])
        if "errno" in answer:
            code = int(answer["errno"])
            raise OSError(code, os.strerror(code))
        if not fds:
            self.remember(sock.fileno())
            return  # the supervisor has bound this very socket
        door = Door("", int(sock.family), host, name[1], answer["policy"], fds[0])
        if door.policy == "rr":
            self.channels[os.fstat(door.fd).st_ino] = door
        self.doors[int(sock.family), host, name[1]] = door
        if door.policy == "rr" and _runs_uvloop():
            self.share_instead(sock, door)
        else:
            self.put(sock, door.fd)

    def share_instead(self, sock: socket.socket, door: Door) -> None:
        """Use the shared socket where connections cannot be handed over."""
        logger.warning(
            "slot %s: uvloop accepts connections itself, so they cannot be handed over "
            "in turn: %s:%s falls back to policy kernel here; for rr start the server "
            "on the asyncio loop (uvicorn: --loop asyncio)",
            os.environ.get("LOGAGG_SLOT"),
            door.host,
            door.port,
        )
        _, fds = self.asker.ask({"k": "real", "host": door.host, "port": door.port}, [])
        self.put(sock, fds[0])
        os.close(fds[0])

    def note_passed(self, sock: socket.socket) -> None:
        """Note a listener that the program took by its descriptor."""
        inode = os.fstat(sock.fileno()).st_ino
        for door in self.doors.values():
            if door.policy == "kernel" and os.fstat(door.fd).st_ino == inode:
                self.remember(sock.fileno())

    # ---- listen, accept, getsockname ----------------------------------------------

    def listen(self, sock: socket.socket, *backlog: int) -> None:
        door = self.channel(sock)
        if door is None:
            _raw.listen(sock, *backlog)
            if os.getpid() == self.pid and sock.fileno() not in self.listening:
                self.note_passed(sock)
            self.tell_listening(sock, _raw.getsockname(sock))
            return
        _raw.send(sock, b"open")
        self.asker.listening(door.host, door.port)

    def accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept; a program's socket that blocks (has no timeout) waits here."""
        while True:
            try:
                return self.accept_now(sock)
            except BlockingIOError:
                if sock.gettimeout() is not None:
                    raise
            waiting = select.poll()
            waiting.register(sock, select.POLLIN)
            waiting.poll()

    def accept_now(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        door = self.channel(sock)
        if door is None:
            pair = _real_accept(sock)
            self.asker.accepted()
            return pair
        data, fds, _, _ = socket.recv_fds(sock, 16, 1)
        if not fds:
            if not data:
                self.silence(sock)
            raise BlockingIOError(11, "no connection was handed over")
        connection = socket.socket(fileno=fds[0])
        connection.setblocking(True)
        if socket.getdefaulttimeout() is not None:
            connection.settimeout(socket.getdefaulttimeout())
        try:
            _raw.send(sock, b"ack")
        except OSError:  # another thread has closed it, or the supervisor is gone
            with contextlib.suppress(OSError):
                if self.channels.get(os.fstat(door.fd).st_ino) is door:
                    os.write(door.fd, b"ack")
        self.asker.accepted()
        try:
            peer = connection.getpeername()
        except OSError:
            peer = ("0.0.0.0", 0) if door.family == socket.AF_INET else ("::", 0, 0, 0)  # noqa: S104
        return connection, peer

    def silence(self, sock: socket.socket) -> None:
        """The supervisor is gone: put something there that never becomes readable."""
        self.channels.pop(os.fstat(sock.fileno()).st_ino, None)
        quiet = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        os.dup2(quiet, sock.fileno(), inheritable=False)
        os.close(quiet)

    def getsockname(self, sock: socket.socket) -> Any:
        door = self.channel(sock)
        if door is None:
            return _raw.getsockname(sock)
        if door.family == socket.AF_UNIX:
            return door.host
        name = (door.host, door.port)
        return (*name, 0, 0) if door.family == socket.AF_INET6 else name

    def setsockopt(self, sock: socket.socket, level: int, *rest: Any) -> None:
        if level == socket.SOL_SOCKET or self.channel(sock) is None:
            _raw.setsockopt(sock, level, *rest)

    def getsockopt(self, sock: socket.socket, level: int, *rest: Any) -> Any:
        door = self.channel(sock)
        if door is None:
            value = _raw.getsockopt(sock, level, *rest)
            if (level, rest[0], value) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN, 1):
                # Who asks that (gunicorn) will not call `listen` on a shared socket.
                self.tell_listening(sock, _raw.getsockname(sock))
            return value
        if level != socket.SOL_SOCKET:
            return bytes(rest[1]) if len(rest) > 1 else 0
        if rest[0] == socket.SO_TYPE:
            return int(socket.SOCK_STREAM)
        if rest[0] == socket.SO_DOMAIN:
            return int(door.family)
        return _raw.getsockopt(sock, level, *rest)

    def family(self, sock: socket.socket) -> socket.AddressFamily:
        door = self.channel(sock)
        return _real_family(sock) if door is None else socket.AddressFamily(door.family)

    def type(self, sock: socket.socket) -> socket.SocketKind:
        door = self.channel(sock)
        return _real_type(sock) if door is None else socket.SOCK_STREAM


def _numeric(family: int, name: tuple[Any, ...]) -> str | None:
    host = str(name[0])
    if host == "":
        return "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104
    try:
        found = socket.getaddrinfo(host, name[1], family, socket.SOCK_STREAM)
    except OSError:
        return None
    return str(found[0][4][0])


def _runs_uvloop() -> bool:
    asyncio = sys.modules.get("asyncio")  # not imported: then no loop runs
    loop = None if asyncio is None else asyncio._get_running_loop()
    return loop is not None and type(loop).__module__.partition(".")[0] == "uvloop"


def install(doors: list[Door], asker: Asker) -> None:
    """Replace the methods of `socket.socket` in this process."""
    state = _Doors(doors, asker)
    asker.on_drain = state.drain
    replacement: dict[str, Callable[..., Any]] = {
        "bind": state.bind,
        "listen": state.listen,
        "accept": state.accept,
        "getsockname": state.getsockname,
        "setsockopt": state.setsockopt,
        "getsockopt": state.getsockopt,
    }
    for name, function in replacement.items():
        setattr(socket.socket, name, _method(name, function))
    for name, read in (("family", state.family), ("type", state.type)):
        setattr(socket.socket, name, property(read))


def _method(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function, since a bound method is no method of another class."""

    def method(self: socket.socket, *arguments: Any) -> Any:
        return function(self, *arguments)

    method.__name__ = name
    method.__doc__ = getattr(socket.socket, name).__doc__
    return method
