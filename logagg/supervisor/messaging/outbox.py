"""Frames on their way out: whole, in order, and messages in a bounded window.

At most `WINDOW_MESSAGES` or `WINDOW_BYTES` of messages are unacknowledged; those beyond
that wait here, up to `WAITING_BYTES`, then `post` raises `WouldBlock`. So a slow receiver
slows its senders and loses nothing, and other frames do not wait for messages that wait.

Any thread may call, and a signal handler that interrupts a call of its own thread. The
lock is re-entrant, numbers come from `itertools.count`, and what an interrupted call may
have half done is changed by `_pump` only, which does not run twice at a time: a nested
call appends to a deque and returns, and the outer call sends it.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from logagg.errors import WouldBlock
from logagg.supervisor.messaging.frames import Frame, encode, without_descriptor
from logagg.supervisor.messaging.future import AwaitableFuture

__all__ = ["Outbox", "close_descriptor"]

WINDOW_MESSAGES = 1024
WINDOW_BYTES = 8 * 1024 * 1024
WAITING_BYTES = 64 * 1024 * 1024


class _Message(NamedTuple):
    number: int
    data: memoryview
    fd: int
    receipt: AwaitableFuture[None]


class Outbox:
    """One direction of one channel.

    Args:
        transmit: See `PeerHost.transmit`. Called with the lock held.
    """

    def __init__(self, transmit: Callable[[memoryview, int], int]) -> None:
        self._transmit = transmit
        self._changed = threading.Condition()  # its lock is re-entrant
        self._numbers = itertools.count(1)
        self._posted: deque[_Message] = deque()  # not yet counted in _waiting_bytes
        self._waiting: deque[_Message] = deque()
        self._waiting_bytes = 0
        self._unacknowledged: dict[int, tuple[int, AwaitableFuture[None]]] = {}
        self._unacknowledged_bytes = 0
        self._acknowledged_sizes: deque[int] = deque()
        self._out: deque[tuple[memoryview, int]] = deque()
        self._pumping = False
        self._full = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        """How many messages have no receipt yet."""
        return len(self._unacknowledged) + len(self._waiting) + len(self._posted)

    def send(self, frame: Frame, fd: int = -1) -> None:
        """Send a frame that is not counted; dropped when the channel has closed.

        Args:
            frame: Its "fd" is set here.
            fd: A descriptor to pass along; a duplicate is sent, the caller keeps it.

        Raises:
            OSError: No descriptor is free for the duplicate.
        """
        data, copy = _encoded(frame, fd)
        with self._changed:
            if self._error is None:
                self._out.append((data, copy))
                self._pump()
                return
        close_descriptor(copy)

    def post(
        self, kind: str, value: Any, fd: int = -1, *, wait: bool = False
    ) -> AwaitableFuture[None]:
        """Send a message, at once or when its turn comes; returns the receipt.

        Args:
            kind: "message" or "broadcast".
            value: The result of `encode_value`.
            fd: As for `send`, which also names the errors.
            wait: Block while the window is full; a nested call never does.

        Raises:
            WouldBlock: More than `WAITING_BYTES` wait already.
        """
        receipt: AwaitableFuture[None] = AwaitableFuture()
        number = next(self._numbers)
        data, copy = _encoded({"k": kind, "id": number, "b": value}, fd)
        with self._changed:
            if wait and not self._pumping:
                self._changed.wait_for(self._has_room)
            error = self._error
            if error is None and self._waiting_bytes + len(data) <= WAITING_BYTES:
                self._posted.append(_Message(number, data, copy, receipt))
                self._pump()
                return receipt
        close_descriptor(copy)
        if error is None:
            raise WouldBlock(
                f"{len(self)} messages wait for a receiver that does not take them; "
                "await the receipts that send() returns to slow down"
            )
        receipt.fail(error)
        return receipt

    def _has_room(self) -> bool:
        waits = self._waiting or self._posted
        return self._error is not None or (not waits and self._window_is_open())

    def _window_is_open(self) -> bool:
        return (
            len(self._unacknowledged) < WINDOW_MESSAGES
            and self._unacknowledged_bytes < WINDOW_BYTES
        )

    def _pump(self) -> None:
        """Send all that may be sent now. The lock is held.

        It checks again after each round: a signal handler may have queued something
        after the round's own last check.
        """
        while not self._pumping and (
            self._posted or self._acknowledged_sizes or (self._out and not self._full)
        ):
            self._pumping = True
            try:
                self._admit()
                self._push()
            finally:
                self._pumping = False

    def _admit(self) -> None:
        """Move messages from the queue to the wire as far as the window allows."""
        while self._acknowledged_sizes:
            self._unacknowledged_bytes -= self._acknowledged_sizes.popleft()
        while self._posted:
            message = self._posted.popleft()
            self._waiting.append(message)
            self._waiting_bytes += len(message.data)
        while self._waiting and self._window_is_open():
            number, data, fd, receipt = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._unacknowledged[number] = (len(data), receipt)
            self._unacknowledged_bytes += len(data)
            self._out.append((data, fd))

    def _push(self) -> None:
        while self._out and not self._full:
            data, fd = self._out[0]
            try:
                sent = self._transmit(data, fd)
            except OSError as error:
                if fd >= 0 and error.errno == errno.ETOOMANYREFS:
                    # Too many descriptors are on their way: without its own the frame
                    # is refused at the other end, as when that has none free.
                    self._out[0] = (memoryview(without_descriptor(data)), -1)
                    close_descriptor(fd)
                    continue
                sent = len(data)  # the host's reader notices the end and calls close()
            if not sent:
                self._full = True
                return
            if sent < len(data):
                self._out[0] = (data[sent:], -1)
            else:
                self._out.popleft()
            close_descriptor(fd)

    def writable(self) -> None:
        """Go on sending: there is room again."""
        with self._changed:
            self._full = False
            self._pump()

    def acknowledged(self, number: int, refusal: str | None) -> None:
        """Resolve a message's receipt, and send messages that wait."""
        with self._changed:
            size, receipt = self._unacknowledged.pop(number, (0, None))
            self._acknowledged_sizes.append(size)
            self._pump()
            self._changed.notify_all()
        if receipt is not None and refusal is None:
            receipt.resolve(None)
        elif receipt is not None:
            receipt.fail(WouldBlock(refusal))

    def close(self, error: Exception) -> None:
        """Fail every receipt, and all that is posted from now."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            messages = [*self._posted, *self._waiting]
            receipts = [receipt for _, receipt in self._unacknowledged.values()]
            receipts += [message.receipt for message in messages]
            fds = [message.fd for message in messages] + [fd for _, fd in self._out]
            for queue in (self._posted, self._waiting, self._out, self._unacknowledged):
                queue.clear()
            self._changed.notify_all()
        for fd in fds:
            close_descriptor(fd)
        for receipt in receipts:
            receipt.fail(error)


def _encoded(frame: Frame, fd: int) -> tuple[memoryview, int]:
    if fd < 0:
        return memoryview(encode(frame)), -1
    return memoryview(encode({**frame, "fd": True})), os.dup(fd)


def close_descriptor(fd: int) -> None:
    """Close a descriptor, unless there is none."""
    if fd >= 0:
        os.close(fd)
