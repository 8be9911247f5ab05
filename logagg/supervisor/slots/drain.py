"""Before a worker gets its TERM: what is under way ends, and it is given no more."""

from __future__ import annotations

import asyncio
import contextlib

from logagg.errors import LogaggError
from logagg.supervisor.process.worker_process import WorkerProcess
from logagg.supervisor.sockets.listeners import Listeners
from logagg.supervisor.tasks import TaskQueue

__all__ = ["Drain", "within"]

HAND_OFF_GRACE = 1.0
TERM_TIME = 5.0
"""Kept of the stop timeout, at most half, for the time after TERM."""
DRAIN_TIME = 1.0
"""For what a stopping server has accepted to become a request; many round trips."""


class Drain:
    """Called with a worker that is to stop, and whether the whole run does.

    Connections that are on their way to a server are taken by it, unless the whole run
    stops; so is the running task finished, as far as time allows.
    """

    def __init__(
        self, tasks: TaskQueue, listeners: Listeners, stop_timeout: float
    ) -> None:
        self._tasks = tasks
        self._listeners = listeners
        self._stop_timeout = stop_timeout

    async def __call__(self, worker: WorkerProcess, run_stops: bool) -> None:
        """Return when the worker can get its TERM."""
        loop = asyncio.get_running_loop()
        limit = self._stop_timeout
        deadline = loop.time() + limit - min(limit / 2, TERM_TIME)
        if not run_stops:
            waits = [
                loop.create_task(self._tasks.finished(worker)),
                loop.create_task(worker.reaped.wait()),
            ]
            left = deadline - loop.time()
            await asyncio.wait(waits, timeout=left, return_when="FIRST_COMPLETED")
            for wait in waits:
                wait.cancel()
        if not worker.listened or worker.channel is None:
            return
        round_robins = self._listeners.round_robins()
        for round_robin in round_robins:
            round_robin.stop(worker.id)
        if not run_stops:
            # Others serve on: they take what comes from now. One that is suspended
            # answers later, and has its time then.
            with contextlib.suppress(LogaggError, TimeoutError):
                await worker.peer.ask({"k": "drain"}, timeout=deadline - loop.time())
            await within(worker.reaped, DRAIN_TIME)
        deadline = loop.time() + HAND_OFF_GRACE
        while loop.time() < deadline and worker.exit is None:
            if all(each.has_acknowledged(worker.id) for each in round_robins):
                return
            await asyncio.sleep(0.002)


async def within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; whether it was set within so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), max(seconds, 0.0))
    except TimeoutError:
        return False
    return True
