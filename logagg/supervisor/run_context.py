"""State that the parts of one supervisor share: loop, workers, listeners, events."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from logagg.core.event import Event
from logagg.errors import ReloadFailed, StartFailed
from logagg.supervisor.messaging.event_handlers import EventHandlers
from logagg.supervisor.process.worker_process import WorkerProcess
from logagg.supervisor.run_options import RunOptions
from logagg.supervisor.sockets.listeners import Listeners
from logagg.supervisor.supervisor_events import SupervisorEvents

__all__ = ["ENDED", "EVENTS", "EndedWorker", "RunContext"]

logger = logging.getLogger("logagg.supervisor")

EVENTS = ("fork", "online", "ready", "listening", "message", "request", "unresponsive",
          "disconnect", "exit")  # fmt: skip


@dataclass(slots=True)
class EndedWorker:
    """The worker whose "exit" handlers run.

    Attributes:
        forked: A handler has started another for it.
    """

    worker: WorkerProcess
    forked: bool = False


ENDED: ContextVar[EndedWorker | None] = ContextVar("ENDED", default=None)
"""Set in handlers of "exit", also in coroutines that they start."""


class RunContext:
    """State of a run that several parts use, and its background tasks.

    Attributes:
        workers: All workers that are alive, by id.
        serves: Whether a worker has listened: then all are expected to.
        started: Whether a worker was ready: the program can start.
    """

    def __init__(
        self,
        options: RunOptions,
        handlers: EventHandlers,
        events: SupervisorEvents,
        listeners: Listeners,
    ) -> None:
        self.options = options
        self.handlers = handlers
        self.events = events
        self.listeners = listeners
        self.workers: dict[int, WorkerProcess] = {}
        self.serves = False
        self.started = False
        self.loop = asyncio.get_running_loop()
        self._background: set[asyncio.Task[Any]] = set()

    def emit(self, event: str, *arguments: Any) -> None:
        """Call the program's handlers of one of `EVENTS`."""
        for call in self.handlers.get(event, *arguments):
            try:
                result = call()
            except Exception as error:
                logger.exception("a handler failed")
                text = f"{event} handler failed: {error!r}"
                self.events.record("error", Event.HANDLER_FAILED, text)
                continue
            if inspect.isawaitable(result):
                self.spawn(result)

    def emit_exit(self, worker: WorkerProcess) -> None:
        """Call the handlers of "exit"."""
        token = ENDED.set(EndedWorker(worker))
        try:
            self.emit("exit", worker, worker.exit)
        finally:
            ENDED.reset(token)

    def make_ready(self, worker: WorkerProcess) -> None:
        """Note that a worker can do its work."""
        if worker.become_ready():
            self.started = True
            self.emit("ready", worker)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine in the background; its error is recorded."""
        task = self.start(work)
        task.add_done_callback(self._record_failure)
        return task

    def start(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine in the background; its error is the caller's to handle."""

        async def run() -> Any:
            return await work

        # Not in another one: cancelled before it begins, it would never be awaited.
        coroutine = work if inspect.iscoroutine(work) else run()
        task: asyncio.Task[Any] = self.loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def cancel_all(self) -> None:
        """Cancel what runs in the background, but not the caller."""
        for task in self._background - {asyncio.current_task()}:
            task.cancel()

    def _record_failure(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        # Failed reloads and starts have been recorded where they happened.
        if error is not None and not isinstance(error, (ReloadFailed, StartFailed)):
            logger.error("a handler failed", exc_info=error)
            text = f"a handler failed: {error!r}"
            self.events.record("error", Event.HANDLER_FAILED, text)
