"""The two ways from a worker to the consumer: the pipe and the control connection.

Plain parts without policy: what to do when a pipe is full or a connection is gone is
decided by `logagg.attach`. Nothing here blocks longer than it is told to.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable, Sequence
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

import orjson

__all__ = ["Control", "Pipe", "standard_streams"]

_PIPE_SIZES = (1 << 20, 1 << 18, 1 << 16)
_F_SETPIPE_SZ = 1031
_F_GETPIPE_SZ = 1032
_SECOND = 1_000_000_000


class Pipe:
    """A process's own pipe; it holds both ends, so the content outlives the consumer.

    Attributes:
        read: The descriptor whose duplicate the consumer gets.
        write: The non-blocking end to write to.
    """

    __slots__ = ("read", "write")

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        os.set_blocking(self.write, False)
        for size in _PIPE_SIZES:
            try:
                fcntl.fcntl(self.write, _F_SETPIPE_SZ, size)
            except OSError:  # more than this user may have in all
                continue
            break

    def push(
        self, line: bytes, done: int, patience: float | None, look: Callable[[], bool]
    ) -> int:
        """Write the rest of a line, waiting for room.

        Args:
            line: The whole line.
            done: How much of it is in the pipe already.
            patience: Seconds to wait for room, None for as long as it takes.
            look: Called each time there was no room for a while; False ends the wait.

        Returns:
            How much of the line is in the pipe.
        """
        poll = select.poll()
        poll.register(self.write, select.POLLOUT)
        start = clock_gettime_ns(CLOCK_MONOTONIC)
        while done < len(line):
            waited = (clock_gettime_ns(CLOCK_MONOTONIC) - start) / _SECOND
            left = 0.2 if patience is None else min(patience - waited, 0.2)
            if left <= 0:
                break
            if not poll.poll(left * 1000):
                if not look():
                    break
                continue
            try:
                done += os.write(self.write, line[done:])
            except BlockingIOError:
                # There is room for a page, and a small line goes in whole or not.
                select.poll().poll(1)
        return done

    def has_room(self) -> bool:
        """Whether the pipe is at least half empty."""
        waiting = fcntl.ioctl(self.read, termios.FIONREAD, b"\0\0\0\0")
        size = fcntl.fcntl(self.write, _F_GETPIPE_SZ)
        if struct.unpack("i", waiting)[0] * 2 > size:
            return False
        poll = select.poll()
        poll.register(self.write, select.POLLOUT)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close both ends. May be called twice."""
        for end in (self.read, self.write):
            if end >= 0:
                os.close(end)
        self.read = self.write = -1


class Control:
    """The connection to the consumer: packets of JSON, both ways, never waiting."""

    __slots__ = ("_socket",)

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
        """Say something; False when the consumer is gone or cannot hear now."""
        packet = orjson.dumps(message)
        try:
            if descriptors:
                socket.send_fds(self._socket, [packet], list(descriptors))
            else:
                self._socket.send(packet)
        except OSError:
            return False
        return True

    def hear(self) -> tuple[list[dict[str, Any]], bool]:
        """Return all that the consumer has said, and whether it is still there."""
        heard: list[dict[str, Any]] = []
        while True:
            try:
                packet = self._socket.recv(65536)
            except BlockingIOError:
                return heard, True
            except OSError:
                return heard, False
            if not packet:
                return heard, False
            message = orjson.loads(packet)
            if isinstance(message, dict):
                heard.append(message)

    def wait(self, timeout: float) -> None:
        """Wait until the consumer says something, `timeout` seconds at most."""
        poll = select.poll()
        descriptor = self._socket.fileno()
        if descriptor >= 0:
            poll.register(descriptor, select.POLLIN)
        poll.poll(max(timeout, 0.001) * 1000)

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._socket.close()


def standard_streams(*, captured: bool = False) -> list[int]:
    """Descriptors to pass for stdout and stderr, for sinks that write there.

    The null device stands for closed ones, and for both where they are captured: what
    is written there is in the log already.
    """
    if captured:
        return [_null(), _null()]
    found = []
    for stream in (1, 2):
        try:
            os.fstat(stream)
            found.append(stream)
        except OSError:
            found.append(_null())
    return found


def _null() -> int:
    global _null_descriptor
    if _null_descriptor < 0:
        _null_descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return _null_descriptor


_null_descriptor = -1
