"""The thread of a worker that runs the program's handlers of messages and requests.

They run one after the other in the order in which the frames came; only a request may
overtake messages that wait for a handler to be registered. A plain function runs in
this thread, a coroutine function on the program's event loop. `sys.exit` in either ends
the process.

`_changed` guards the inbox and the loop. The sender's window bounds the inbox.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from logagg.supervisor.messaging.event_handlers import EventHandlers

__all__ = ["HandlerThread"]

logger = logging.getLogger("logagg")

_LOOP_WARNING_AFTER = 1.0


class HandlerThread:
    """The inbox and its thread, which starts with the first handler.

    Attributes:
        loop: The program's event loop, once it has been seen.
    """

    def __init__(self, handlers: EventHandlers) -> None:
        self.loop: Any = None
        self._handlers = handlers
        self._inbox: list[tuple[str, Callable[[], None]]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, event: str, work: Callable[[], None]) -> None:
        """Queue the handling of a "message" or "request"."""
        with self._changed:
            self._inbox.append((event, work))
            self._changed.notify_all()

    def adopt(self, loop: Any) -> None:
        """Run coroutine handlers on that event loop from now on."""
        with self._changed:
            self.loop = loop
            self._changed.notify_all()

    def adopt_running(self) -> bool:
        """Adopt the running loop of the calling thread; whether there is one."""
        asyncio = sys.modules.get("asyncio")
        loop = None if asyncio is None else asyncio._get_running_loop()
        if loop is not None and loop is not self.loop:
            self.adopt(loop)
        return loop is not None

    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Start the thread; when it runs, have it check for new handlers."""
        with self._changed:
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="logagg-messages", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next() is not None)
                index = self._next()
                assert index is not None
                _, work = self._inbox.pop(index)
            try:
                work()
            except SystemExit as error:
                _end_process(error)
            except BaseException:  # noqa: BLE001, S110  reported
                pass

    def _next(self) -> int | None:
        """The first that can be handled: messages wait until they have a handler."""
        handled = "message" in self._handlers
        for index, (event, _) in enumerate(self._inbox):
            if handled or event == "request":
                return index
        return None

    def run_on_loop(self, awaitable: Any) -> Any:
        """Start a handler's coroutine on the program's loop; waits for one if need be.

        Returns:
            A `concurrent.futures.Future`.

        Raises:
            RuntimeError: The loop is closed.
        """
        import asyncio  # only programs with coroutine handlers pay for it

        with self._changed:
            if not self._changed.wait_for(lambda: self.loop, _LOOP_WARNING_AFTER):
                logger.warning(
                    "an async handler waits: no event loop of this program has been seen "
                    "yet; register it while the loop runs, or call worker.adopt_loop()"
                )
                self._changed.wait_for(lambda: self.loop)

        async def run() -> Any:
            return await awaitable

        work = run()
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            if hasattr(awaitable, "close"):
                awaitable.close()
            raise


def _end_process(error: SystemExit) -> None:
    """End the process as `sys.exit` in its main thread would; that may be blocked."""
    code = error.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit((code or 0) & 0xFF)
