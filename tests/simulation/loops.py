"""Event loops and writing threads of simulated processes."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from world import Killed, Process, World

__all__ = ["Executor", "Loop"]

SECOND = 1_000_000_000


class _Selector(selectors.EpollSelector):
    """Waiting is the scheduler's matter."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def select(self, timeout: float | None = None) -> Any:
        self._world.step()
        found = super().select(0)
        if not found and timeout != 0:
            limit = None if timeout is None else int(max(timeout, 0) * SECOND) + 1
            self._world.block(lambda: super(_Selector, self).select(0), limit)
            found = super().select(0)
        return sorted(found, key=lambda each: each[0].fd)


class Loop(asyncio.SelectorEventLoop):
    """An event loop on the world's clock and scheduler.

    Attributes:
        handlers: By signal, what the process does about it.
    """

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        super().__init__(_Selector(world))
        self._clock_resolution = 1e-9
        self.handlers: dict[int, Callable[[], None]] = {}
        self.set_exception_handler(self._uncaught)
        for each in (self._selector, self._ssock, self._csock):  # type: ignore[attr-defined]
            process.own(each.fileno())
            process.descriptors.discard(each.fileno())
        process.owners.append(_Closer(self))

    def time(self) -> float:
        return self._world.now / SECOND

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        self.handlers[sig] = lambda: callback(*args)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        used = executor if executor is not None else Executor(self._process, "default")
        return asyncio.wrap_future(used.submit(func, *args), loop=self)

    def signal(self, number: int) -> None:
        """Deliver a signal from outside."""
        self.call_soon_threadsafe(self.handlers[number])

    def _uncaught(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self._process.alive or isinstance(error, Killed):
            return
        error = error or RuntimeError(context.get("message"))
        self._world.errors.append((self._process.name, "task", error))


class _Closer:
    """Closes what an event loop has open, without a word of its code."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def close(self) -> None:
        loop = self._loop
        if not loop.is_closed() and not loop.is_running():
            loop.close()
        else:
            loop._selector.close()  # type: ignore[attr-defined]
            loop._ssock.close()  # type: ignore[attr-defined]
            loop._csock.close()  # type: ignore[attr-defined]


class Executor:
    """Runs calls one after the other in a thread of the simulated process."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._name = name
        self._jobs: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._runs = False

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue a call."""
        future: Future[Any] = Future()
        self._jobs.append((future, lambda: fn(*args, **kwargs)))
        if not self._runs:
            self._runs = True
            self._process.start(self._run, self._name)
        return future

    def _run(self) -> None:
        while self._jobs:
            future, job = self._jobs.pop(0)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)
        self._runs = False


def serial_submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
    """Stands in for `SerialExecutor.submit`."""
    from seam import _process

    process = _process()
    assert process is not None
    mine = getattr(self, "_simulated", None)
    if mine is None:
        mine = self._simulated = Executor(process, self._name)
    if self._closed:
        raise RuntimeError(f"{self._name} is closed")
    return mine.submit(fn, *args, **kwargs)


def serial_shutdown(self: Any, wait: bool = True, **_: Any) -> None:
    """Stands in for `SerialExecutor.shutdown`."""
    self._closed = True
