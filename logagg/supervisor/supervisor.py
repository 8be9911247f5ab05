"""The supervisor: one event loop that starts, watches and stops workers.

Theory of operation
-------------------
Everything mutable belongs to one asyncio loop; nothing here blocks it and no log byte
passes it (see `consumer_process`). Its parts, each in a module of its own: `slots`
decides when a worker starts and ends, `worker_launcher` starts it, `worker_process` is
one worker, `listeners` and `round_robin` share ports, `tasks` is the queue, `router`
handles the frames of workers, `health_checks` polls, `control` serves users.

Order of events for one worker: fork, online, [listening, ready, message …],
disconnect, exit. Before `exit` the worker's channel has been read to its end.

Nothing outlives a run: workers end with their process groups; orphans among their
children become children of this process (subreaper) and are reaped; the guard process
covers the supervisor's own death. See `orphans`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from logagg.core.event import Event
from logagg.errors import (
    ClosedError,
    ConfigError,
    ExitStatus,
    LogaggError,
    ReloadFailed,
    StartFailed,
)
from logagg.platform.processes import become_subreaper
from logagg.platform.terminal_text import complain
from logagg.supervisor.health_checks import HealthChecks
from logagg.supervisor.messaging.event_handlers import EventHandlers
from logagg.supervisor.process.orphans import ProcessGroups, reap_orphans
from logagg.supervisor.process.run_parts import RunParts
from logagg.supervisor.process.worker_launcher import WorkerLauncher
from logagg.supervisor.process.worker_process import (
    WorkerOwner,
    WorkerProcess,
    WorkerState,
)
from logagg.supervisor.router import Router
from logagg.supervisor.run_context import EndedWorker, RunContext
from logagg.supervisor.run_options import DEFAULT_SINKS, RunOptions, check_room
from logagg.supervisor.run_signals import RunActions, RunSignals
from logagg.supervisor.slots.drain import Drain
from logagg.supervisor.slots.reconciler import Slots
from logagg.supervisor.slots.slot import Slot
from logagg.supervisor.sockets.listeners import Listeners
from logagg.supervisor.supervisor_events import SupervisorEvents
from logagg.supervisor.tasks import TaskQueue

__all__ = ["Supervisor"]

KILL_TIME = 5.0
"""For the kernel to end what was killed."""
ABORT_TIME = 2.0
"""For a worker to end whose cancelled task did not."""


class Supervisor:
    """One run. Make it and `run` it on the same event loop.

    Args:
        options: What was asked for.
        handlers: Called with each event (`run_context.EVENTS`).
        own_process: The process serves this run only: handle its signals.
        adopt: It has no children but the run's: become the parent of their orphans.
        lasting: Go on when no slot is left (a program may fork more).
        parts: Those of the project that it is a program of.
    """

    reloads = 0
    forking = 0  # calls of `fork` that are on their way here
    _paused = False  # scaled to no worker, for now
    _signal = 0  # that ended it
    _last_words = ""  # for the terminal, after all that the sinks write to it

    def __init__(
        self,
        options: RunOptions,
        handlers: EventHandlers,
        *,
        own_process: bool,
        adopt: bool = False,
        lasting: bool,
        parts: RunParts | None = None,
    ) -> None:
        self.options = options
        self.started = time.time()
        self.ready = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._own_process = own_process
        self._adopt = adopt
        self._lasting = lasting
        self._over = asyncio.Event()
        self._status: ExitStatus | None = None
        self._stop_task: asyncio.Task[None] | None = None
        self._next_reload: asyncio.Task[int] | None = None
        self._reloading = asyncio.Lock()
        self._parts = parts or RunParts(
            options.sinks, self._consumer_failed, options.metrics
        )
        self.logs, self._guard = self._parts.logs, self._parts.guard
        self.events = SupervisorEvents(self.logs.send_event, options.level, options.app)
        self.listeners = Listeners(
            options.policy, options.sticky, options.choose, self.events.record_untaken
        )
        self.context = RunContext(options, handlers, self.events, self.listeners)
        self.tasks = TaskQueue(
            self.loop, options.max_pending, self.recycle, self._abort
        )
        self.router = Router(self.context, self.tasks, self.recycle)
        self._groups = ProcessGroups(self._guard)
        self._launcher = WorkerLauncher(
            options,
            self.listeners,
            self.logs.address,
            self._owner(),
            own_process=own_process,
        )
        self.slots = Slots(
            options,
            self.events,
            launch=self._launch,
            prepare_stop=Drain(self.tasks, self.listeners, options.stop_timeout),
            gave_up=self._give_up,
            changed=self._slots_changed,
        )
        self._health_checks = HealthChecks(self.context, self.recycle)
        self._signals = RunSignals(self._actions())

    def _owner(self) -> WorkerOwner:
        return WorkerOwner(
            handle=self.router.handle,
            start=self.context.start,
            report=self.router.report,
            ended=self._ended,
            disconnected=self.router.disconnected,
            changed=self._changed,
        )

    # ---- life ---------------------------------------------------------------------

    async def run(self) -> tuple[ExitStatus, int]:
        """Supervise until it is over.

        Returns:
            The exit status, and the signal that ended the run or 0.

        Raises:
            ConfigError: An address cannot be bound.
            StartFailed: The system has no room for so many workers.
        """
        try:
            for address in self.options.bind:
                self.listeners.bind(address)
            self._take_signals()
            await self._parts.opened()
            if self.options.note:
                self.events.record(
                    "warning", Event.UNSUPPORTED_POLICY, self.options.note
                )
            self._health_checks.start()
            try:
                await self.slots.scale(self.options.workers)
            except StartFailed as error:
                self.events.record("critical", Event.CANNOT_START, str(error))
                raise
            self.ready.set()
            self._slots_changed()
            if self._status is None:
                await self._over.wait()
        finally:
            await self._finish()
            if self._last_words:
                complain(self._last_words.rstrip())
        return self._outcome(), self._signal

    def _outcome(self) -> ExitStatus:
        if self._status is not None:
            return self._status
        if self.slots.killed:
            return ExitStatus.KILLED
        failed = any(e.code != 0 and not e.voluntary for e in self.slots.finished)
        if self._stop_task is None and failed:
            return ExitStatus.FAILED
        return ExitStatus.OK

    async def _finish(self) -> None:
        self._over.set()
        self._health_checks.stop()
        self.slots.kill_all("the run is over")
        self.slots.stop_all("the run is over")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.slots.ended(), KILL_TIME)
        self.tasks.abandon()
        await self._groups.ended()
        self.listeners.close()
        self.context.cancel_all()
        if not await self._parts.drain() and self._status is None:
            self._status = ExitStatus.UNWRITTEN
        self._parts.close()
        self._launcher.close()
        self._signals.restore()

    def stop(self, why: str = "asked to stop", signum: int = 0) -> None:
        """Stop all workers gracefully; a second call with a signal ends them now."""
        if self._over.is_set():
            return
        if self._stop_task is None:
            self._signal = signum
            self.events.record("debug", Event.STOPPING, f"stopping: {why}")
            self._stop_all(why)
        elif signum:
            self.slots.kill_all("killed by a second signal")

    def _stop_all(self, why: str) -> None:
        self._stop_task = self.context.spawn(self._stopped())
        self.slots.stop_all(why)

    async def _stopped(self) -> None:
        await self.slots.ended()
        self._over.set()

    def _consumer_failed(self, message: str, status: ExitStatus) -> None:
        complain(f"logagg: {message}")
        self._status = status
        self.stop(message)

    # ---- signals ------------------------------------------------------------------

    def _actions(self) -> RunActions:
        return RunActions(
            stop=self.stop,
            reload=lambda: void(self.context.spawn(self.reload())),
            reopen=self.logs.reopen,
            scale_by=lambda number: void(self.context.spawn(self.scale_by(number))),
            signal_workers=self._signal_workers,
            reap=self._reap,
        )

    def _take_signals(self) -> None:
        if self._adopt:
            with contextlib.suppress(OSError):  # then orphans go to PID 1
                become_subreaper()
        if self._own_process:
            self._signals.take()

    def _signal_workers(self, signum: int) -> None:
        for worker in self.slots.living:
            worker.signal(signum, group=True)

    def _reap(self) -> None:
        """Reap orphans that were adopted; workers and helpers are reaped elsewhere."""
        if self._adopt:
            owned = {worker.pid for worker in self.context.workers.values()}
            reap_orphans({*owned, self.logs.pid, self._guard.pid})

    # ---- workers ------------------------------------------------------------------

    def _launch(self, number: int) -> WorkerProcess:
        """Start a worker process for a slot.

        Raises:
            StartFailed: The system has no room for it; nothing is left of the try.
        """
        worker = self._launcher.launch(number)
        self.context.workers[worker.id] = worker
        self._guard.add(worker.pid)
        self.logs.adopt(worker)
        self.context.emit("fork", worker)
        if worker.channel is None:
            self.context.emit("online", worker)
            worker.online_since = self.loop.time()
        return worker

    def _changed(self, worker: WorkerProcess) -> None:
        self.slots.observe(worker)

    def _ended(self, worker: WorkerProcess) -> None:
        for listener in self.listeners.all:
            if listener.round_robin is not None:
                listener.round_robin.remove(worker.id)
            listener.sharing.discard(worker.id)
            listener.users.discard(worker.id)
            listener.keep_path()
        self.context.workers.pop(worker.id, None)
        self.tasks.died(worker)
        self._groups.end(worker.pid)
        self.context.emit_exit(worker)

    def recycle(self, worker: WorkerProcess, why: str) -> None:
        """Replace a worker that is to be replaced as a matter of routine."""
        slot = self.slots.by_number.get(worker.slot)
        if slot is None or slot.worker is not worker or worker.recycle:
            return
        worker.recycle = True
        self.events.record(
            "info", Event.RECYCLE, f"worker {worker.name}: {why}", slot=worker.slot
        )
        self.context.spawn(self._recycle(slot, worker, why))

    async def _recycle(self, slot: Slot, worker: WorkerProcess, why: str) -> None:
        """Replace; when the fresh one fails, the old one works on until the next try."""
        while slot.worker is worker:
            try:
                await self.slots.replace(slot, why)
            except ReloadFailed:
                if worker.state is not WorkerState.READY:
                    return
                self.tasks.go_on(worker)
                await asyncio.sleep(slot.backoff.most)
            else:
                return

    def _abort(self, worker: WorkerProcess) -> None:
        worker.recycle = True
        worker.why = "its cancelled task did not end"
        self.slots.stop(worker, worker.why, ABORT_TIME)

    def fork(self, count: int, ended: EndedWorker | None) -> None:
        """Open slots, but none for an ended worker that is started again anyway.

        Raises:
            StartFailed: The system has no room for so many; those that are there stay.
            ClosedError: The run is stopping.
        """
        try:
            if ended is not None and not ended.forked:
                slot = self.slots.by_number.get(ended.worker.slot)
                ended.forked = True
                count -= slot is not None and not slot.retired
            for _ in range(count):
                self.slots.open()
        finally:
            self.forking -= 1
            self._slots_changed()

    def _give_up(self, slot: Slot, trace: str) -> None:
        end = slot.last_exit
        why = "" if end is None else f": {end.how}, {end.reason}"
        if self.options.bind and "ddress already in use" in why:
            why += "; a server that binds in C or Rust needs --policy reuseport"
        times = slot.backoff.failures
        failed = f"failed {times} times" if times > 1 else "ended"
        message = (
            f"the program cannot start: slot {slot.number} {failed} before it was "
            f"ready{why}"
        )
        self._last_words = f"logagg: {message}\n{trace}"
        self.events.record("critical", Event.CANNOT_START, message, slot=slot.number)
        self._status = ExitStatus.CANNOT_START
        if self._stop_task is None:
            self._stop_all(message)

    def _slots_changed(self) -> None:
        """End the run when all workers have ended by themselves."""
        left = self.slots.by_number or self.slots.living or self.forking
        lasting = self._lasting or self._paused
        if self.ready.is_set() and not (left or lasting or self._stop_task):
            self._over.set()

    def change(self, options: RunOptions) -> None:
        """Start workers by other options from now on; addresses stay as they are."""
        self.options = self.context.options = self.slots.options = options
        self._launcher.change(options)

    # ---- what users ask -----------------------------------------------------------

    async def _reread_sinks(self) -> None:
        options = self.options
        if options.reread is None:
            return
        try:
            await self.logs.reconfigure(options.reread() or DEFAULT_SINKS)
        except LogaggError as error:
            self.events.record("error", Event.RELOAD_FAILED, str(error))
            raise ReloadFailed(str(error)) from error

    async def reload(self) -> int:
        """Read the sinks again; replace all workers one at a time. See `Slots.reload`.

        A mistake in the configuration is refused before any worker is replaced. A
        request that comes while another waits for its turn shares its outcome.
        """
        if self._next_reload is None:
            self._next_reload = self.context.start(self._reload_in_turn())
        return int(await asyncio.shield(self._next_reload))

    async def _reload_in_turn(self) -> int:
        async with self._reloading:
            self._next_reload = None
            return await self._reload()

    async def _reload(self) -> int:
        if self.slots.stopping:
            raise ReloadFailed("the run is stopping")
        self.events.record("info", Event.RELOAD, "reloading")
        await self._reread_sinks()
        count = await self.slots.reload()
        self.reloads += 1
        self.events.record(
            "info", Event.RELOADED, f"reloaded: {count} workers replaced"
        )
        return count

    async def scale(self, count: int) -> None:
        """Have so many workers.

        Raises:
            ConfigError: It is negative.
            StartFailed: The system has no room for so many; those that are there stay.
            ClosedError: The run is stopping.
        """
        if count < 0:
            raise ConfigError(f"scale: {count} is less than 0")
        if self.slots.stopping:
            raise ClosedError("the run is stopping: no worker is wanted any more")
        check_room(count)
        text = f"scaling to {count} workers"
        if count == 0:
            text += "; the run goes on, and a later scale starts workers"
        self._paused = count == 0
        self.events.record("info", Event.SCALE, text)
        try:
            await self.slots.scale(count)
        except StartFailed as error:
            self.events.record("error", Event.START_FAILED, str(error))
            raise

    async def scale_by(self, difference: int) -> None:
        """Have more or fewer workers; at least one is left."""
        if not self.slots.stopping:
            await self.scale(max(self.slots.wanted + difference, 1))


def void(_value: object) -> None:
    """Take a value and return nothing: for callbacks that must not return one."""
