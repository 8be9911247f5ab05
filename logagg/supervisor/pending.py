"""One future for both worlds: wait for it in a thread, or await it on a loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator
from typing import Any, TypeVar

__all__ = ["Pending"]

T = TypeVar("T")


class Pending(concurrent.futures.Future[T]):
    """An answer that is to come: `await pending`, or `pending.result(timeout)`.

    It is a `concurrent.futures.Future`, so `wait` and `as_completed` take it, and it
    can be awaited on any running event loop. Nobody has to wait for it: an error that
    is never asked for is dropped in silence.
    """

    def __init__(self, on_cancel: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Give up on the answer; unlike the parent's, also when work has begun."""
        with self._condition:
            if self.done():
                return self.cancelled()
            # A running future refuses to be cancelled; put it back to be cancellable.
            self._state = "PENDING"
        cancelled = super().cancel()
        if cancelled and self._on_cancel is not None:
            self._on_cancel()
        return cancelled

    def settle(self, value: T) -> None:
        """Set the result unless it is settled already."""
        if not self.done():
            try:
                self.set_result(value)
            except concurrent.futures.InvalidStateError:
                pass

    def fail(self, error: BaseException) -> None:
        """Set the error unless it is settled already."""
        if not self.done():
            try:
                self.set_exception(error)
            except concurrent.futures.InvalidStateError:
                pass
