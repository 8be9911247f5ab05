"""The two ways from a worker to the consumer: the pipe and the control connection.

Plain parts without policy: what to do when a pipe is full or a connection is gone is
decided by `logagg.client.transport`. Nothing here blocks without a timeout.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import CLOCK_MONOTONIC, clock_gettime_ns

from logagg.ipc.descriptors import OwnDescriptor, no_fork
from logagg.platform import packets
from logagg.platform.system import (
    NO_SIGNAL,
    pipe_bytes,
    reopen_terminal,
    set_pipe_bytes,
)

__all__ = [
    "PacketConnection", "Pipe", "StderrNotices", "check_pipe", "is_connecting",
    "send_last", "send_packet", "standard_streams",
]  # fmt: skip

_PIPE_SIZES = (1 << 20, 1 << 18, 1 << 16)
_SECOND = 1_000_000_000
_NOTICE_NS = 10 * _SECOND


class Pipe:
    """A process's own pipe; it holds both ends, so the content outlives the consumer.

    Raises:
        OSError: No descriptor is free.
    """

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        with no_fork:
            read, write = os.pipe()
            self._read = OwnDescriptor(read)
            self._write = OwnDescriptor(write)
        os.set_blocking(self.write, False)
        set_pipe_bytes(self.write, *_PIPE_SIZES)

    @property
    def read(self) -> int:
        """The descriptor whose duplicate the consumer gets."""
        return self._read.number

    @property
    def write(self) -> int:
        """The non-blocking end to write to."""
        return self._write.number

    @property
    def is_own(self) -> bool:
        """Whether both numbers still lead to this pipe."""
        return self._read.is_own and self._write.is_own

    def push(
        self, line: bytes, done: int, timeout: float | None, check: Callable[[], bool]
    ) -> int:
        """Write the rest of a line, waiting for room.

        Args:
            line: The whole line.
            done: How much of it is in the pipe already.
            timeout: Seconds to wait for room, None for as long as it takes.
            check: Called every 0.2 s without room; False ends the wait.

        Returns:
            How much of the line is in the pipe.
        """
        poll = select.poll()
        poll.register(self.write, select.POLLOUT)
        start = clock_gettime_ns(CLOCK_MONOTONIC)
        while done < len(line):
            waited = (clock_gettime_ns(CLOCK_MONOTONIC) - start) / _SECOND
            left = 0.2 if timeout is None else min(timeout - waited, 0.2)
            if left <= 0:
                break
            if not poll.poll(left * 1000):
                if not check():
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
        size = pipe_bytes(self.write)
        if struct.unpack("i", waiting)[0] * 2 > size:
            return False
        poll = select.poll()
        poll.register(self.write, select.POLLOUT)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close both ends. May be called twice."""
        self._read.close()
        self._write.close()


class PacketConnection:
    """The connection to the consumer: packets of JSON, both ways, never waiting.

    Args:
        connection: A connected socket, which is taken over.
    """

    __slots__ = ("_own",)

    def __init__(self, connection: socket.socket) -> None:
        with no_fork:
            self._own = OwnDescriptor(connection.detach())

    @property
    def number(self) -> int:
        """Its descriptor, -1 when it is closed."""
        return self._own.number

    @property
    def is_own(self) -> bool:
        """Whether its number still leads to this connection."""
        return self._own.is_own

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send a packet; False when the consumer is gone or its queue is full."""
        try:
            packets.send_at(self._own.number, packet, descriptors)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[list[bytes], bool]:
        """Return all packets that have arrived, and whether the consumer is there."""
        found: list[bytes] = []
        try:
            while packet := packets.receive_at(self._own.number, 65536):
                found.append(packet)
        except BlockingIOError:
            return found, True
        except OSError:
            pass
        return found, False

    def wait(self, timeout: float) -> None:
        """Wait for a packet from the consumer, `timeout` seconds at most."""
        poll = select.poll()
        descriptor = self._own.number
        if descriptor >= 0:
            poll.register(descriptor, select.POLLIN)
        poll.poll(max(timeout, 0.001) * 1000)

    def close(self) -> None:
        """Hang up. May be called twice."""
        self._own.close()


def send_packet(connection: socket.socket, packet: bytes) -> bool:
    """Send one packet on a non-blocking connection.

    Returns:
        False when the peer is gone, or cannot receive now.
    """
    try:
        packets.send(connection, packet)
    except OSError:
        return False
    return True


def check_pipe(descriptor: int, access: int) -> None:
    """Refuse what is not an end of a pipe that can be read, or written, without harm.

    Args:
        descriptor: What a peer has sent.
        access: `os.O_RDONLY` or `os.O_WRONLY`.

    Raises:
        ValueError: It is not.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode) or (
        flags & os.O_ACCMODE not in (access, os.O_RDWR)
    ):
        raise ValueError("the descriptor is not the expected end of a pipe")


def send_last(connection: socket.socket, packet: bytes) -> None:
    """Send a packet if that is possible at once, and close the connection."""
    send_packet(connection, packet)
    connection.close()


def is_connecting(listener: socket.socket) -> bool:
    """Whether a connection waits in a listening socket's queue; no for a closed one."""
    if listener.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def standard_streams(*, captured: bool = False) -> Iterator[list[int]]:
    """Descriptors to pass for stdout and stderr, for sinks that write there.

    A terminal that this process can read, too, is opened again to be written only: its
    keys are the application's. The null device stands for closed ones, and for both
    where they are captured: what is written there is in the log already.
    """
    fresh: list[OwnDescriptor] = []
    try:
        yield [_null() if captured else _writable(stream, fresh) for stream in (1, 2)]
    finally:
        for each in fresh:
            each.close()


def _writable(stream: int, fresh: list[OwnDescriptor]) -> int:
    try:
        os.fstat(stream)
    except OSError:
        return _null()
    with no_fork:
        terminal = reopen_terminal(stream)
        if terminal is None:
            return stream
        fresh.append(OwnDescriptor(terminal))
    return fresh[-1].number


def _null() -> int:
    global _null_device
    if _null_device is None or not _null_device.is_own:
        with no_fork:
            number = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            _null_device = OwnDescriptor(number)
    return _null_device.number


_null_device: OwnDescriptor | None = None


class StderrNotices:
    """Notices of a process for its stderr, the last resort: one in 10 seconds.

    A notice is noted wherever its cause is found, and written by `write`, with no lock
    held. A stderr that takes nothing costs the notice, never a wait; the next one that
    is written has their number.

    Attributes:
        waiting: Notices that are not written yet.
    """

    __slots__ = ("_missed", "_next", "waiting")

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self._next = 0
        self._missed = 0

    def note(self, text: str, *, anyway: bool = False) -> None:
        """Note a line of text.

        Args:
            text: The line, without the service's name.
            anyway: Also within 10 seconds of another one.
        """
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if now >= self._next or anyway:
            self._next = now + _NOTICE_NS
            self.waiting += [text]

    def write(self) -> None:
        """Write what was noted. Does not wait, does not raise."""
        while self.waiting:
            text = self.waiting[0]
            del self.waiting[0]
            if not text.isprintable():  # it may quote another process
                text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
            missed = f" (after {self._missed} unwritten)" if self._missed else ""
            if _write_stderr(f"logagg{missed}: {text}\n"):
                self._missed = 0
            else:
                self._missed += 1


def _write_stderr(text: str) -> bool:
    """Write to stderr without ever waiting for its reader.

    The flags of descriptor 2 are shared with other processes and stay as they are: a
    pipe or a terminal is opened once more, non-blocking.

    Returns:
        Whether the text was written: False where nothing can be written now.
    """
    data = text.encode("utf-8", "backslashreplace")
    try:
        mode = os.fstat(2).st_mode
        if stat.S_ISREG(mode):
            return os.write(2, data) == len(data)
        if stat.S_ISSOCK(mode):
            flags = socket.MSG_DONTWAIT | NO_SIGNAL
            with no_fork, socket.socket(fileno=os.dup(2)) as duplicate:
                return duplicate.send(data, flags) == len(data)
        return _write_apart(data)
    except OSError:
        return False


def _write_apart(data: bytes) -> bool:
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with no_fork:
        try:
            stderr = os.open("/dev/fd/2", flags)
        except OSError:  # another user's pipe or terminal, or not shown
            poll = select.poll()
            poll.register(2, select.POLLOUT)
            # So much fits into a pipe that is ready.
            ready = poll.poll(0) == [(2, select.POLLOUT)]
            return ready and os.write(2, data[: select.PIPE_BUF]) > 0
        try:
            return os.write(stderr, data) == len(data)
        finally:
            os.close(stderr)
