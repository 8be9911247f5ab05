"""The worker's side of sharing a port: a patched `socket`, so that any server works.

Theory of operation
-------------------
In a worker, some methods of `socket.socket` are replaced by functions that do what the
original does, but for stream sockets of addresses that the supervisor owns or may own:

- `bind` asks the supervisor. *kernel*: the supervisor's bound socket is put (`dup2`) in
  the place of the program's own, whose number stays. *reuseport*: `SO_REUSEPORT` is set
  and the program binds its own. *rr*: a *hand-off channel* is put there, a packet socket
  through which the supervisor passes accepted connections. Event loops and selectors
  poll it as they poll a listening socket: readable means that `accept` will not block.
- `listen` on a channel opens it (the supervisor starts to hand off) instead.
- `accept` on a channel receives a connection and acknowledges it. Only then does the
  supervisor drop its copy and hand this worker another: a worker that is stuck holds
  at most one, and the connection of one that dies goes to a sibling.
- `close` of the last copy is passed on: a port that no worker has open any more refuses
  clients until one listens again, and a channel gets no connections.
- `getsockname`, `family`, `type` and the socket options of a channel are those of the
  address that clients use: servers read them, and set TCP's options.

A channel is known by the inode of its socket, not by its number, so `dup`, `fromfd` and
an `SSLSocket` around it work too. Forked children inherit all of it.

A worker that is to stop first *drains* its shared listeners: its siblings take what
comes, and what it has accepted has a moment to become a request; a server that got its
TERM closes connections on which none has begun.

Servers that accept without Python's `socket` cannot be handed connections: uvloop
(libuv accepts in C) is noticed by the running loop and gets the shared socket with one
warning; for others the supervisor misses the acknowledgement and changes the policy.
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

from logagg.integrations.import_hooks import when_imported
from logagg.platform.system import SO_DOMAIN
from logagg.supervisor.child.launch_spec import SharedListener
from logagg.supervisor.child.open_listeners import OpenListeners, copies, replace
from logagg.supervisor.sockets.bind_address import BindAddress, numeric_host
from logagg.supervisor.sockets.handoff import packet, receive_packet

__all__ = ["ParentRpc", "install"]

logger = logging.getLogger("logagg")

_INET = (socket.AF_INET, socket.AF_INET6)
_raw: Any = socket.socket.__mro__[1]  # the C class below
_Socket = socket.socket  # gevent may put its own there
_real_family: Any = vars(socket.socket)["family"].fget
_real_type: Any = vars(socket.socket)["type"].fget
_real_close: Any = vars(socket.socket)["_real_close"]


class ParentRpc(Protocol):
    """The worker object, as the patched socket uses it."""

    share: bool
    policy: str
    limited: bool
    on_drain: Callable[[], None] | None

    def ask(self, question: dict[str, Any], fd: int = -1) -> tuple[dict[str, Any], int]:
        """Ask the supervisor and block until it has answered; a refusal is OSError."""

    def listening(self, host: str, port: int) -> None:
        """Announce that the program listens there now."""

    def closed(self, host: str, port: int) -> None:
        """Announce that it does so no more."""

    def accepted(self) -> None:
        """Count a connection."""


class _SharedListeners:
    def __init__(self, listeners: list[SharedListener], parent: ParentRpc) -> None:
        self.parent = parent
        self.pid = os.getpid()
        self.listeners = {(d.family, d.host, d.port): d for d in listeners}
        self.channels: dict[int, SharedListener] = {}
        self.open = OpenListeners()
        for listener in listeners:
            if listener.policy == "rr":
                self.channels[os.fstat(listener.fd).st_ino] = listener

    def channel(self, sock: socket.socket) -> SharedListener | None:
        """The listener whose channel this socket is, if it is one."""
        if not self.channels:
            return None
        try:
            return self.channels.get(os.fstat(sock.fileno()).st_ino)
        except OSError:
            return None

    def owned(self, sock: socket.socket, name: Any) -> SharedListener | None:
        """The listener of an address that the program binds."""
        for listener in self.listeners.values():
            address = BindAddress(listener.family, listener.host, listener.port)
            if address.covers(sock.family, name):
                return listener
        return None

    # ---- bind ---------------------------------------------------------------------

    def bind(self, sock: socket.socket, name: Any) -> None:
        if sock.type != socket.SOCK_STREAM:
            _raw.bind(sock, name)
            return
        self.bind_stream(sock, name)
        if _runs_uvloop():
            # It listens in C, unseen, directly after binding.
            self.announce(sock, name)
            if self.parent.limited and sock.family in _INET:
                self.warn_uncounted()

    def announce(self, sock: socket.socket, name: Any) -> None:
        """Announce that the program listens, but not on a Unix socket of its own."""
        if isinstance(name, tuple):
            self.parent.listening(str(name[0]), int(name[1]))
        elif self.owned(sock, name) is not None:
            self.parent.listening(os.fsdecode(name), 0)

    def warn_uncounted(self) -> None:
        """Warn once that the limit of connections has no effect."""
        self.parent.limited = False
        logger.warning(
            "slot %s: uvloop accepts connections itself, so they are not counted: "
            "--max-connections does nothing here; start the server on the asyncio loop "
            "(uvicorn: --loop asyncio), or limit its age with --max-age",
            os.environ.get("LOGAGG_SLOT"),
        )

    def bind_stream(self, sock: socket.socket, name: Any) -> None:
        listener = self.owned(sock, name)
        if listener is None:
            self.bind_unowned(sock, name)
        elif listener.policy == "reuseport":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _raw.bind(sock, name)
        elif listener.policy == "rr" and _runs_uvloop():
            self.share_instead(sock, listener)
        else:
            self.put(sock, listener.fd)

    def put(self, sock: socket.socket, fd: int) -> None:
        """Let the program's socket be `fd`, under its own number.

        What is put there never blocks, whatever the program's socket does: the mode
        belongs to the open file, which all workers share, and a sibling's event loop
        that accepts what another has taken would be held up. See `accept`.
        """
        replace(sock.fileno(), fd)
        os.set_blocking(sock.fileno(), False)
        self.open.add(sock.fileno())

    def drain(self) -> None:
        """Take no more connections. Called in the channel's thread.

        Hand-off channels are left alone: the supervisor sends nothing more there, and
        if this came between a connection and its acknowledgement, a sibling would get
        it as well.
        """
        self.open.silence(but=self.channels)

    def bind_unowned(self, sock: socket.socket, name: Any) -> None:
        """Bind through the supervisor, so that all workers share what one binds."""
        if self.parent.policy == "reuseport" and sock.family in _INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _raw.bind(sock, name)
            return
        if (
            not self.parent.share
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
        host = numeric_host(sock.family, name)
        if host is None:
            _raw.bind(sock, name)
            return
        question = {"k": "bind", "family": int(sock.family), "host": host}
        question["port"] = name[1]
        answer, fd = self.parent.ask(question, sock.fileno())
        if fd < 0:
            self.open.add(sock.fileno())
            return  # the supervisor has bound this very socket
        listener = SharedListener(
            "", int(sock.family), host, name[1], answer["policy"], fd
        )
        if listener.policy == "rr":
            self.channels[os.fstat(listener.fd).st_ino] = listener
        self.listeners[int(sock.family), host, name[1]] = listener
        if listener.policy == "rr" and _runs_uvloop():
            self.share_instead(sock, listener)
        else:
            self.put(sock, listener.fd)

    def share_instead(self, sock: socket.socket, listener: SharedListener) -> None:
        """Use the shared socket where connections cannot be handed off."""
        logger.warning(
            "slot %s: uvloop accepts connections itself, so they cannot be handed off "
            "in turn: %s:%s falls back to policy kernel here; for rr start the server "
            "on the asyncio loop (uvicorn: --loop asyncio)",
            os.environ.get("LOGAGG_SLOT"),
            listener.host,
            listener.port,
        )
        question = {"k": "real", "host": listener.host, "port": listener.port}
        _, fd = self.parent.ask(question)
        self.put(sock, fd)
        os.close(fd)

    def note_passed(self, sock: socket.socket) -> None:
        """Note a listener that the program took by its descriptor."""
        inode = os.fstat(sock.fileno()).st_ino
        for listener in self.listeners.values():
            with contextlib.suppress(OSError):  # the program may have closed it
                if (
                    listener.policy == "kernel"
                    and os.fstat(listener.fd).st_ino == inode
                ):
                    self.open.add(sock.fileno())

    # ---- close --------------------------------------------------------------------

    def close(self, sock: socket.socket, *base: Any) -> None:
        """Close a socket of Python's."""
        self.closing(sock)
        _real_close(sock, *base)

    def close_raw(self, sock: socket.socket) -> None:
        """Close a socket of C's class; gevent's close ends there."""
        self.closing(sock)
        _raw.close(sock)

    def closing(self, sock: socket.socket) -> None:
        """Pass on that this process will have the shared port open no more."""
        with contextlib.suppress(OSError):  # the supervisor is gone
            if os.getpid() == self.pid and self.is_last(sock):
                listener = self.channel(sock)
                if listener is not None:
                    _raw.send(sock, packet(b"shut"))
                name = self.getsockname(sock)
                if isinstance(name, tuple):
                    self.parent.closed(str(name[0]), int(name[1]))
        self.open.discard(sock.fileno())

    def is_last(self, sock: socket.socket) -> bool:
        """Whether it is a shared listener and the program's only copy of it."""
        if sock.fileno() not in self.open and self.channel(sock) is None:
            return False
        ours = {listener.fd for listener in self.listeners.values()}
        return copies(sock.fileno()) - ours == {sock.fileno()}

    # ---- listen, accept, getsockname ----------------------------------------------

    def listen(self, sock: socket.socket, *backlog: int) -> None:
        listener = self.channel(sock)
        if listener is None:
            _raw.listen(sock, *backlog)
            if os.getpid() == self.pid and sock.fileno() not in self.open:
                self.note_passed(sock)
            self.announce(sock, _raw.getsockname(sock))
            return
        _raw.send(sock, packet(b"open"))
        self.parent.listening(listener.host, listener.port)

    def accept(self, sock: socket.socket) -> tuple[int, Any]:
        """As `_socket.socket._accept`: a descriptor and the client's address.

        A program's socket that blocks (has no timeout) waits here.
        """
        while True:
            try:
                return self.accept_now(sock)
            except BlockingIOError:
                if sock.gettimeout() is not None:
                    raise
            waiting = select.poll()
            waiting.register(sock, select.POLLIN)
            waiting.poll()

    def accept_now(self, sock: socket.socket) -> tuple[int, Any]:
        listener = self.channel(sock)
        if listener is None:
            pair: tuple[int, Any] = _raw._accept(sock)
            self.parent.accepted()
            return pair
        data, fds = receive_packet(sock)
        if not fds:
            if data == b"call":
                _raw.send(sock, packet(b"here"))
            elif data:
                # No descriptor is free: it goes to another.
                _raw.send(sock, packet(b"full"))
            else:
                self.silence(sock)
            raise BlockingIOError(11, "no connection was handed off")
        try:
            _raw.send(sock, packet(b"ack"))
        except OSError:  # another thread has closed it, or the supervisor is gone
            with contextlib.suppress(OSError):
                if self.channels.get(os.fstat(listener.fd).st_ino) is listener:
                    os.write(listener.fd, packet(b"ack"))
        self.parent.accepted()
        connection = _Socket(fileno=fds[0])
        connection.setblocking(True)
        try:
            peer = connection.getpeername()
        except OSError:
            inet = listener.family == socket.AF_INET
            peer = ("0.0.0.0", 0) if inet else ("::", 0, 0, 0)  # noqa: S104
        return connection.detach(), peer

    def prepare_uvloop(self, sock: socket.socket | None) -> None:
        """Replace a channel by the shared socket before uvloop listens on it."""
        listener = None if sock is None else self.channel(sock)
        if sock is not None and listener is not None:
            self.share_instead(sock, listener)
            self.announce(sock, (listener.host, listener.port))

    def silence(self, sock: socket.socket) -> None:
        """Put a descriptor there that never becomes readable: the supervisor is gone."""
        self.channels.pop(os.fstat(sock.fileno()).st_ino, None)
        quiet = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        replace(sock.fileno(), quiet.fileno())
        quiet.close()

    def getsockname(self, sock: socket.socket) -> Any:
        listener = self.channel(sock)
        if listener is None:
            return _raw.getsockname(sock)
        if listener.family == socket.AF_UNIX:
            return listener.host
        name = (listener.host, listener.port)
        return (*name, 0, 0) if listener.family == socket.AF_INET6 else name

    def setsockopt(self, sock: socket.socket, level: int, *rest: Any) -> None:
        if level == socket.SOL_SOCKET or self.channel(sock) is None:
            _raw.setsockopt(sock, level, *rest)

    def getsockopt(self, sock: socket.socket, level: int, *rest: Any) -> Any:
        listener = self.channel(sock)
        if listener is None:
            value = _raw.getsockopt(sock, level, *rest)
            if (level, rest[0], value) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN, 1):
                # A server that asks this (gunicorn) will not call `listen`.
                self.announce(sock, _raw.getsockname(sock))
            return value
        if level != socket.SOL_SOCKET:
            return bytes(rest[1]) if len(rest) > 1 else 0
        if rest[0] == socket.SO_TYPE:
            return int(socket.SOCK_STREAM)
        if rest[0] == SO_DOMAIN:
            return int(listener.family)
        return _raw.getsockopt(sock, level, *rest)

    def family(self, sock: socket.socket) -> socket.AddressFamily:
        listener = self.channel(sock)
        return (
            _real_family(sock)
            if listener is None
            else socket.AddressFamily(listener.family)
        )

    def type(self, sock: socket.socket) -> socket.SocketKind:
        listener = self.channel(sock)
        return _real_type(sock) if listener is None else socket.SOCK_STREAM


def _runs_uvloop() -> bool:
    asyncio = sys.modules.get("asyncio")  # not imported: then no loop runs
    loop = None if asyncio is None else asyncio._get_running_loop()
    return loop is not None and type(loop).__module__.partition(".")[0] == "uvloop"


def install(listeners: list[SharedListener], parent: ParentRpc) -> None:
    """Replace the methods of `socket.socket` in this process, and of gevent's sockets."""
    state = _SharedListeners(listeners, parent)
    parent.on_drain = state.drain
    replacement: dict[str, Callable[..., Any]] = {
        "bind": state.bind,
        "listen": state.listen,
        "_accept": state.accept,
        "getsockname": state.getsockname,
        "setsockopt": state.setsockopt,
        "getsockopt": state.getsockopt,
    }
    for name, function in {**replacement, "_real_close": state.close}.items():
        setattr(socket.socket, name, _method(name, function))
    for name, read in (("family", state.family), ("type", state.type)):
        setattr(socket.socket, name, property(read))

    def patch_gevent(module: Any) -> None:
        # Its class is put in the place of Python's own, and wraps a subclass of C's.
        for name, function in replacement.items():
            method = _method(name, function, lambda sock: sock._sock)
            setattr(module.socket, name, method)
            setattr(module.socket._gevent_sock_class, name, _method(name, function))
        module.socket._gevent_sock_class.close = _method("close", state.close_raw)

    def patch_uvloop(module: Any) -> None:
        create = module.Loop.create_server

        async def create_server(loop: Any, *args: Any, **options: Any) -> Any:
            state.prepare_uvloop(options.get("sock"))
            return await create(loop, *args, **options)

        module.Loop.create_server = create_server

    when_imported("gevent._socket3", patch_gevent)
    when_imported("uvloop", patch_uvloop)


def _itself(sock: Any) -> Any:
    return sock


def _method(
    name: str, function: Callable[..., Any], raw: Callable[[Any], Any] = _itself
) -> Callable[..., Any]:
    """A plain function, since a bound method is no method of another class."""

    def method(self: socket.socket, *arguments: Any) -> Any:
        return function(raw(self), *arguments)

    method.__name__ = name
    method.__doc__ = getattr(socket.socket, name).__doc__
    return method
