"""Unix sockets that carry packets, and descriptors with them.

On Linux they are of a kind of their own (SOCK_SEQPACKET). The portable form is a stream
with the length before each packet. A packet of which the stream took only a part is
finished within SEND_TIMEOUT, or the connection is shut; its reader waits as long.
"""

from __future__ import annotations

import _socket  # its class is never gevent's, whose calls wait for others
import array
import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence

from logagg.platform.system import LINUX, NO_SIGNAL

__all__ = [
    "KIND", "bind_nowhere", "packet_socket", "receive", "receive_at",
    "receive_descriptors", "refuse_more", "send", "send_at",
]  # fmt: skip

SEND_TIMEOUT = 1.0
KIND = socket.SOCK_SEQPACKET if LINUX else socket.SOCK_STREAM
"""The kind of these sockets."""

_LENGTH = struct.Struct("<I")
_BUFFER_BYTES = 1 << 18  # a whole packet is to fit into a stream; macOS gives it 8 KiB
_CLOSE_ON_EXEC = socket.MSG_CMSG_CLOEXEC if LINUX else 0
_INT_BYTES = array.array("i").itemsize

Received = tuple[bytes, list[int], bool]
"""Data (none at the end), descriptors (not inheritable), whether some were lost."""


def packet_socket() -> socket.socket:
    """A new socket, not connected."""
    made = socket.socket(socket.AF_UNIX, KIND)
    if not LINUX:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    return made


def send(sock: _socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a packet. Waits as the socket does.

    Raises:
        BlockingIOError: There is no room; nothing was sent.
        OSError: The peer is gone.
    """
    passed = array.array("i", descriptors)
    attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []
    data = packet if LINUX else _LENGTH.pack(len(packet)) + packet
    sent = sock.sendmsg([data], attached, NO_SIGNAL)
    if sent < len(data):
        _send_rest(sock, memoryview(data)[sent:])


def _send_rest(sock: _socket.socket, data: memoryview) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    try:
        while data:
            if not poll.poll(SEND_TIMEOUT * 1000):
                raise BrokenPipeError("the peer does not read")
            try:
                data = data[sock.send(data, NO_SIGNAL) :]
            except BlockingIOError:
                continue
    except BaseException:
        sock.shutdown(socket.SHUT_RDWR)
        raise


def receive(sock: _socket.socket, size: int, most: int = 0) -> Received:
    """Receive one packet. Waits as the socket does.

    Args:
        sock: The socket.
        size: The most bytes that a packet has.
        most: The most descriptors that come with one; more are closed.

    Raises:
        BlockingIOError: There is none yet.
        OSError: The connection is broken, or the packet is longer.
    """
    if LINUX:
        return receive_descriptors(sock, size, most)
    left = _arrived(sock, size)
    data, fds, lost = receive_descriptors(sock, left, most)
    while left > len(data) > 0:
        data += sock.recv(left - len(data))
    return data[_LENGTH.size :], fds, lost


def send_at(number: int, packet: bytes, descriptors: Sequence[int] = ()) -> None:
    """As `send`, on a socket of which only the descriptor is there."""
    # An object for this call only: one that is left would close the number.
    borrowed = _socket.socket(socket.AF_UNIX, KIND, 0, number)
    try:
        send(borrowed, packet, descriptors)
    finally:
        borrowed.detach()


def receive_at(number: int, size: int) -> bytes:
    """As `receive`, likewise, without descriptors."""
    if LINUX:
        return os.read(number, size)
    borrowed = _socket.socket(socket.AF_UNIX, KIND, 0, number)
    try:
        return receive(borrowed, size)[0]
    finally:
        borrowed.detach()


def _arrived(sock: _socket.socket, size: int) -> int:
    """The bytes of a packet that has arrived whole, its length included; 0 at the end."""
    start = time.monotonic()
    while True:
        head = sock.recv(_LENGTH.size, socket.MSG_PEEK)
        if not head:
            return _LENGTH.size
        if len(head) == _LENGTH.size:
            wanted = _LENGTH.size + int.from_bytes(head, "little")
            if wanted > size + _LENGTH.size:
                raise OSError("a packet is too long")
            waiting = fcntl.ioctl(sock, termios.FIONREAD, bytes(_INT_BYTES))
            if struct.unpack("i", waiting)[0] >= wanted:
                return wanted
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            raise ConnectionResetError("the peer ended in the middle of a packet")
        if not os.get_blocking(sock.fileno()):
            raise BlockingIOError("the rest of a packet is to come")
        if time.monotonic() - start > SEND_TIMEOUT:
            raise TimeoutError("the rest of a packet did not come")
        time.sleep(0.001)


def receive_descriptors(
    sock: _socket.socket, size: int, most: int, flags: int = 0
) -> Received:
    """Receive from a socket of any kind, up to `size` bytes and `most` descriptors.

    `socket.recv_fds` takes flags and does not use them.
    """
    space = socket.CMSG_LEN(most * _INT_BYTES) if most else 0
    data, ancillary, came, _ = sock.recvmsg(size, space, flags | _CLOSE_ON_EXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % _INT_BYTES])
    if not _CLOSE_ON_EXEC:
        for fd in fds:
            os.set_inheritable(fd, False)
    return data, list(fds), bool(came & socket.MSG_CTRUNC)


def refuse_more(listener: socket.socket) -> None:
    """Let no further connection into a listening socket's queue.

    Not where the system is BSD: one that comes before the close finds itself closed.
    """
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RD)


def bind_nowhere(
    sock: socket.socket, bind: Callable[[socket.socket, str], object]
) -> None:
    """Bind a Unix socket where no client finds it.

    Args:
        sock: The socket.
        bind: `socket.socket.bind`.
    """
    if LINUX:
        bind(sock, "")  # an abstract address of the kernel's choice
        return
    import tempfile  # few workers need it, at their end

    with tempfile.TemporaryDirectory() as folder:
        bind(sock, os.path.join(folder, "s"))
