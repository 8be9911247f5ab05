"""Tasks of the consumer, none of which can end without notice.

Every task of the consumer is started here. One that ends with an exception, or is
cancelled by anything but a request of its owner, is reported: that becomes a record and
stands in the status. Its owner has made sure, by `finally`, that nothing waits for it
any more. And no search for a pattern holds them up (`limit_searches`).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from logagg.filters.regex import check_time

__all__ = ["WatchedTasks", "is_cancelled", "limit_searches"]

SEARCH_TIME = 0.05
"""Seconds of the process's own time: a pattern gets one to two of these for a text."""

_Result = TypeVar("_Result")

Report = Callable[[str, BaseException], None]


class WatchedTasks:
    """Starts tasks and holds them until they end.

    Args:
        report: Called with a task's name and the exception that ended it.

    Attributes:
        report: As given.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(
        self, work: Coroutine[Any, Any, _Result], name: str
    ) -> asyncio.Task[_Result]:
        """Run a coroutine as a task; `name` is for people."""
        task = asyncio.get_running_loop().create_task(self._run(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        try:
            return await work
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise RuntimeError("it was cancelled from inside") from None
        except (SystemExit, KeyboardInterrupt) as error:  # they would end the loop
            raise RuntimeError(f"it raised {type(error).__name__}") from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.report(task.get_name(), error)


def is_cancelled() -> bool:
    """Whether this task's cancellation was requested by its owner."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def limit_searches() -> Iterator[None]:
    """Stop each search for a pattern that takes too long; see `logagg.filters.regex`.

    By SIGVTALRM, in the main thread. The timer is stopped at the end: an interpreter that
    ends puts back the signal's default, which would end the process with that signal.
    """
    signal.signal(signal.SIGVTALRM, lambda *_: check_time())
    signal.setitimer(signal.ITIMER_VIRTUAL, SEARCH_TIME, SEARCH_TIME)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
