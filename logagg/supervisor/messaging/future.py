"""One future for threads and for event loops."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Generator
from typing import Any, TypeVar

__all__ = ["AwaitableFuture"]

T = TypeVar("T")


class AwaitableFuture(concurrent.futures.Future[T]):
    """A result that is to come: `await future`, or `future.result(timeout)`.

    It is a `concurrent.futures.Future`, so `wait` and `as_completed` take it, and it
    can be awaited on any running event loop. It need not be waited for: an error that
    is not retrieved is dropped silently.

    Attributes:
        number: What it is the answer to; for the peer that made it.
    """

    number = 0

    def __init__(self, on_cancel: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._on_cancel = on_cancel

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio  # a worker without a loop does not pay for it

        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Give up on the result; unlike the parent's, also when work has begun."""
        with self._condition:
            if self.done():
                return self.cancelled()
            # A running future refuses to be cancelled; put it back to be cancellable.
            self._state = "PENDING"
        cancelled = super().cancel()
        if cancelled and self._on_cancel is not None:
            self._on_cancel()
        return cancelled

    def resolve(self, value: T) -> None:
        """Set the result, unless the future is done."""
        self._finish(self.set_result, value)

    def fail(self, error: BaseException) -> None:
        """Set the error, unless the future is done."""
        self._finish(self.set_exception, error)

    def _finish(self, setter: Callable[[Any], None], outcome: Any) -> None:
        try:
            if not self.done():
                setter(outcome)
        except concurrent.futures.InvalidStateError:
            pass  # done meanwhile, by another thread
