"""Messages on their way out: numbered, in order, bounded, and never dropped.

Used by both sides of a channel, so what is promised is the same in both directions:

- messages arrive in the order in which they were posted;
- a receipt (`Pending`) is settled when the other side's handler has run, and fails
  with `WorkerDied` or `ClosedError` when that can no longer happen;
- at most `WINDOW_MESSAGES` / `WINDOW_BYTES` are unacknowledged; what is posted beyond
  waits here, up to `WAITING_BYTES`, then `post` raises `WouldBlock`: await receipts.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from threading import Condition

from logagg.errors import WouldBlock
from logagg.supervisor.channel import (
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    Frame,
    encode,
)
from logagg.supervisor.pending import Pending

__all__ = ["Outbox"]

WAITING_BYTES = 64 * 1024 * 1024


class Outbox:
    """One direction of one channel. Safe to use from any thread.

    `_changed` guards everything. `transmit` is called with it held, so that order is
    kept; it must not call back.
    """

    def __init__(self, transmit: Callable[[bytes, list[int]], None]) -> None:
        self._transmit = transmit
        self._changed = Condition()
        self._next = 0
        self._unacknowledged: dict[int, tuple[int, Pending[None]]] = {}
        self._unacknowledged_bytes = 0
        self._waiting: deque[tuple[int, bytes, list[int], Pending[None]]] = deque()
        self._waiting_bytes = 0
        self._error: Exception | None = None

    def __len__(self) -> int:
        """How many messages have no receipt yet."""
        return len(self._unacknowledged) + len(self._waiting)

    def post(
        self, frame: Frame, fds: list[int], *, wait: float | None = None
    ) -> Pending[None]:
        """Send the message, or let it wait for its turn.

        Args:
            frame: What to send; its number is added.
            fds: Descriptors to send with it; duplicates are made, the caller keeps its
                own.
            wait: Seconds to block at most while the window is full; None: never block.

        Raises:
            WireError: It is not JSON or too long.
            WouldBlock: More than `WAITING_BYTES` wait already.
        """
        receipt: Pending[None] = Pending()
        with self._changed:
            self._next += 1
            number = self._next
            data = encode({**frame, "id": number, **({"fds": len(fds)} if fds else {})})
            if self._error is not None:
                receipt.fail(self._error)
                return receipt
            if wait is not None:
                self._changed.wait_for(self._has_room, wait)
            if self._waiting_bytes + len(data) > WAITING_BYTES:
                raise WouldBlock(
                    f"{len(self)} messages wait for a receiver that does not take them; "
                    "await the receipts that send() returns to slow down"
                )
            self._waiting.append((number, data, [os.dup(fd) for fd in fds], receipt))
            self._waiting_bytes += len(data)
            self._advance()
        return receipt

    def _has_room(self) -> bool:
        return self._error is not None or (not self._waiting and self._window_open())

    def _window_open(self) -> bool:
        return (
            len(self._unacknowledged) < WINDOW_MESSAGES
            and self._unacknowledged_bytes < WINDOW_BYTES
        )

    def _advance(self) -> None:
        while self._waiting and self._window_open():
            number, data, fds, receipt = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._unacknowledged[number] = (len(data), receipt)
            self._unacknowledged_bytes += len(data)
            try:
                self._transmit(data, fds)
            except OSError:
                pass  # the channel is gone; whoever reads it notices and calls fail()
            finally:
                for fd in fds:
                    os.close(fd)

    def acknowledged(self, numbers: list[int]) -> None:
        """Settle the receipts of these messages and send what waited."""
        settled: list[Pending[None]] = []
        with self._changed:
            for number in numbers:
                size, receipt = self._unacknowledged.pop(number, (0, None))
                self._unacknowledged_bytes -= size
                if receipt is not None:
                    settled.append(receipt)
            self._advance()
            self._changed.notify_all()
        for receipt in settled:
            receipt.settle(None)

    def fail(self, error: Exception) -> None:
        """The channel is gone: fail every receipt, and all that is posted from now."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            failed = [receipt for _, receipt in self._unacknowledged.values()]
            for _, _, fds, receipt in self._waiting:
                failed.append(receipt)
                for fd in fds:
                    os.close(fd)
            self._unacknowledged.clear()
            self._waiting.clear()
            self._changed.notify_all()
        for receipt in failed:
            receipt.fail(error)
