"""One daemon thread that runs a sink's blocking calls, one after the other.

Unlike the executors of the standard library it never delays the end of the process: a
call that hangs in the kernel (a stopped terminal, a dead network file system) is
abandoned.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

__all__ = ["SerialExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_Job = Callable[[], None]


class SerialExecutor(Executor):
    """Runs calls in the order of `submit`, one at a time.

    The thread starts with the first call.

    Args:
        name: The thread's name.
        niceness: How much to lower the thread's priority.
    """

    def __init__(self, name: str, niceness: int = 0) -> None:
        self._name = name
        self._niceness = niceness
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the two below
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Queue a call.

        Raises:
            RuntimeError: It was shut down.
        """
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  # raised where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=self._name, daemon=True
                )
                self._thread.start()
            self._jobs.put(job)
        return future

    def call(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Queue a call and return its result for the running event loop."""
        return asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; accepted ones are run, and with `wait` waited for."""
        del cancel_futures
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
            thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        if self._niceness:
            _be_nice(self._niceness)
        while (job := self._jobs.get()) is not None:
            job()
            del job  # a job holds a batch, which must not live until the next job


def _be_nice(niceness: int) -> None:
    """Lower this thread's priority: on Linux it is the thread's own."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    except OSError:
        pass
