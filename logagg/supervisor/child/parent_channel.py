"""The worker's end of its channel to the supervisor: the transport of its peer.

One daemon thread reads. It answers the supervisor's own questions at once, so a worker
whose main thread computes still counts as present, and it notices the supervisor's
death as the end of the channel.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from logagg.errors import ClosedError, WireError
from logagg.supervisor.messaging.frames import Decoder, Frame, receive
from logagg.supervisor.messaging.peer import Peer

__all__ = ["ASYNCHRONOUS_SIGNALS", "ParentChannel"]

logger = logging.getLogger("logagg")

ASYNCHRONOUS_SIGNALS = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCHLD,
}
"""Signals that the reading thread leaves to the program's own threads.

The frame that announces a stop wakes that thread just when TERM comes, and a thread that
wakes may be the one to get it. A main thread that waits for an event, a lock or a queue
would then not be interrupted, and Python's handler, which only it can run, never would.
"""


class ParentChannel:
    """Host of the peer that talks with the supervisor (see `PeerHost`).

    Args:
        fd: The worker's end of the socket pair.
        handle: Called in the reading thread with each frame and its descriptor (or -1).
        start: Runs a handler's coroutine on the program's loop.
        closed: Called in the reading thread when the supervisor is gone, after all
            receipts have failed.
    """

    def __init__(
        self,
        fd: int,
        *,
        handle: Callable[[Frame, int], None],
        start: Callable[[Any], Any],
        closed: Callable[[], None],
    ) -> None:
        self._socket = socket.socket(fileno=fd)
        self._inode = os.fstat(fd).st_ino
        self._wake, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self.handle = handle
        self.start = start
        self._closed = closed
        self.peer = Peer(self, "the supervisor")
        os.register_at_fork(after_in_child=self._forked)

    def open(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, name="logagg-channel", daemon=True).start()

    def _is_open(self) -> bool:
        """Whether the program has not closed it: a daemon closes all it has open."""
        try:
            return os.fstat(self._socket.fileno()).st_ino == self._inode
        except OSError:
            return False

    def transmit(self, data: memoryview, fd: int) -> int:
        """Send; blocks while the supervisor does not read. See `PeerHost`."""
        if not self._is_open():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if fd >= 0:
            return socket.send_fds(self._socket, [data], [fd])
        return self._socket.send(data)

    def report(self, what: str, error: BaseException) -> None:
        """Log the error of a handler or frame; `sys.exit` in a handler is none."""
        if isinstance(error, SystemExit):
            return
        logger.error("a %s handler failed", what, exc_info=error)

    def alarm(self, _seconds: float) -> None:
        """Have the reading thread check the peer's deadlines again."""
        with contextlib.suppress(BlockingIOError):  # it is to wake already
            if self._is_open():
                os.write(self._wake_write, b"x")

    def _read(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ASYNCHRONOUS_SIGNALS)
        decoder = Decoder()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        data = b"x"
        while data:
            left = self.peer.expire()
            ready = poll.poll(None if left is None else left * 1000 + 1)
            if not self._is_open():
                self._abandon()
                return
            if any(fd == self._wake for fd, _ in ready):
                os.read(self._wake, 1024)
            if all(fd == self._wake for fd, _ in ready):
                continue
            try:
                data, fds = receive(self._socket)
                for frame, fd in decoder.feed(data, fds):
                    self.peer.receive(frame, fd)
            except (OSError, WireError):
                break
        self.peer.close(ClosedError("the supervisor is gone"))
        self._closed()

    def _abandon(self) -> None:
        """Live on without a channel; the numbers belong to the program now."""
        self._socket.detach()
        self.peer.close(ClosedError("the program has closed the channel"))

    def _forked(self) -> None:
        """Drop what belongs to the parent; its lock may be held by a lost thread."""
        if self._is_open():
            self._socket.close()
            os.close(self._wake)
            os.close(self._wake_write)
        else:  # a fork of the fork, or the program closed it: the numbers are its own
            self._socket.detach()
        self.peer = Peer(self, "the supervisor")
        self.peer.close(ClosedError("a forked child has no channel to the supervisor"))
