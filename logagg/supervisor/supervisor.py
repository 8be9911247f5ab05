"""The supervisor: one event loop that starts, watches and stops workers.

Theory of operation
-------------------
Everything mutable belongs to one asyncio loop; nothing here blocks it and no log byte
passes it (see `logside`). Its parts, each in a module of its own: `slots` decides when a
worker starts and ends, `member` is one worker process, `listeners` and `handover` share
ports, `tasks` the queue, `routing` what workers say, `watching` what must be looked at
now and then, `control` what users ask from outside.

Order of events for one worker: fork, online, [listening, ready, message …],
disconnect, exit. Before `exit` the worker's channel has been read to its end.

Nothing outlives a run: workers end with their process groups; orphans among their
children become ours (subreaper) and are reaped; the guard process covers our own death.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from logagg.errors import ConfigError, LogaggError, StartFailed
from logagg.supervisor.address import Policy
from logagg.supervisor.backoff import LONGEST_DELAY
from logagg.supervisor.crashes import Crashes
from logagg.supervisor.events import Reporter
from logagg.supervisor.groups import Groups
from logagg.supervisor.guardian import Guardian
from logagg.supervisor.handlers import Handlers
from logagg.supervisor.handover import Handover, Lane
from logagg.supervisor.layers import (
    allow_open_files,
    become_subreaper,
    limit_open_files,
    open_files,
)
from logagg.supervisor.listeners import Listeners
from logagg.supervisor.logside import LogSide
from logagg.supervisor.member import Member
from logagg.supervisor.options import DEFAULT_SINKS, RunOptions, Status
from logagg.supervisor.routing import Router
from logagg.supervisor.slots import ReloadFailed, Slot, Slots, within
from logagg.supervisor.start import Start
from logagg.supervisor.tasks import TaskQueue
from logagg.supervisor.watching import Watcher

__all__ = ["EVENTS", "Supervisor", "no_room"]

logger = logging.getLogger("logagg.supervisor")

EVENTS = (
    "fork",
    "online",
    "ready",
    "listening",
    "message",
    "request",
    "unresponsive",
    "disconnect",
    "exit",
)
CONSUMER_GRACE = 20.0
HAND_OVER_GRACE = 1.0
KILL_TIME = 5.0
"""For the kernel to end what was killed."""
TERM_TIME = 5.0
"""What is left of the stop timeout, at least half, when a task does not end."""
DRAIN_TIME = 1.0
"""For what a stopping server has accepted to become a request; many round trips."""


class Supervisor:
    """One run. Make it and `run` it on the same event loop.

    Args:
        options: What was asked for.
        handlers: Called with each event (`EVENTS`).
        own_process: The process is ours alone: handle signals, reap orphans.
        lasting: Go on when no slot is left (a program may fork more).
    """

    def __init__(
        self,
        options: RunOptions,
        handlers: Handlers,
        *,
        own_process: bool,
        lasting: bool,
    ) -> None:
        self.options = options
        self.handlers = handlers
        self.own_process = own_process
        self.started = time.time()
        self.reloads = 0
        self.worker_ids = 0
        self.serves = False
        self.crashes = Crashes()
        self.loop = asyncio.get_running_loop()
        self._lasting = lasting
        self._over = asyncio.Event()
        self._status: Status | None = None
        self._signal = 0
        self._stop_task: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self.ready = asyncio.Event()
        self._open_files = allow_open_files() if own_process else 0
        self.router = Router(self)
        self.logs = LogSide(options.sinks, self._consumer_failed, options.metrics)
        self.report = Reporter(self.logs.event)
        self.guard = Guardian()
        self.groups = Groups(self.guard)
        self.listeners = Listeners(
            options.policy,
            sticky=options.sticky,
            choose=options.choose,
            unfit=self._unfit,
        )
        self.tasks = TaskQueue(
            self.loop,
            max_pending=options.max_pending,
            recycle=lambda member: self.recycle(member, "did its number of tasks"),
            abort=self._abort,
        )
        self.slots = Slots(
            options,
            self.report,
            launch=self.launch,
            prepare_stop=self._prepare_stop,
            gave_up=self._give_up,
            changed=self._slot_ended,
        )
        self.watcher = Watcher(self)

    # ---- life ---------------------------------------------------------------------

    async def run(self) -> tuple[Status, int]:
        """Supervise until it is over.

        Returns:
            The exit status, and the signal that ended the run or 0.

        Raises:
            ConfigError: An address cannot be bound.
            StartFailed: The system has no room for so many workers.
        """
        try:
            for address in self.options.binds:
                self.listeners.bind(address)
            self._take_signals()
            await self.logs.opened()
            if self.options.note:
                self.report.say("warning", "unfit", self.options.note)
            self.watcher.start()
            try:
                for _ in range(self.options.workers):
                    self.slots.open()
            except StartFailed as error:
                self.report.say("critical", "cannot_start", str(error))
                raise
            self.ready.set()
            if self._status is None:
                await self._over.wait()
        finally:
            await self._finish()
        return self._outcome(), self._signal

    def _outcome(self) -> Status:
        if self._status is not None:
            return self._status
        if self.slots.deaf:
            return Status.KILLED
        if self._stop_task is None and any(e.code != 0 for e in self.slots.finished):
            return Status.FAILED
        return Status.OK

    async def _finish(self) -> None:
        self.watcher.stop()
        self.slots.kill_all("the run is over")
        for slot in list(self.slots.by_number.values()):
            await self.slots.retire(slot, "the run is over", KILL_TIME)
        self.tasks.abandon()
        await self.groups.ended()
        self.listeners.close()
        for task in list(self._background):
            if task is not asyncio.current_task():
                task.cancel()
        if not await self._drain_logs() and self._status is None:
            self._status = Status.CONSUMER
        self.guard.close()
        if self._open_files:
            limit_open_files(self._open_files)
        if self.own_process and threading.current_thread() is threading.main_thread():
            for signum in self._signals():
                self.loop.remove_signal_handler(signum)

    async def _drain_logs(self) -> bool:
        try:
            return await self.logs.close(CONSUMER_GRACE)
        except LogaggError:
            return False

    def stop(self, why: str = "asked to stop", signum: int = 0) -> None:
        """Stop all workers gracefully; a second call ends them now."""
        if self._stop_task is not None:
            self.slots.kill_all("killed by a second signal")
            return
        self._signal = signum
        self.report.say("info", "stopping", f"stopping: {why}")
        self._stop_task = self.spawn(self._stop(why))

    async def _stop(self, why: str) -> None:
        await self.slots.stop_all(why)
        self._over.set()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine beside; its error is logged, not lost."""
        task: asyncio.Task[Any] = self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            if isinstance(error, (ReloadFailed, StartFailed)):
                return  # reported where it happened
            logger.error("a handler failed", exc_info=error)
            self.report.say("error", "handler_failed", f"a handler failed: {error!r}")

    def _consumer_failed(self, message: str) -> None:
        print(f"logagg: {message}", file=sys.stderr)
        self._status = Status.CONSUMER
        self.stop(message)

    # ---- signals ------------------------------------------------------------------

    def _signals(self) -> dict[int, Callable[[], None]]:
        return {
            signal.SIGTERM: lambda: self.stop("SIGTERM", signal.SIGTERM),
            signal.SIGINT: lambda: self.stop("SIGINT", signal.SIGINT),
            signal.SIGHUP: lambda: void(self.spawn(self.reload())),
            signal.SIGUSR1: self.logs.reopen,
            signal.SIGTTIN: lambda: void(self.spawn(self.scale_by(1))),
            signal.SIGTTOU: lambda: void(self.spawn(self.scale_by(-1))),
            signal.SIGCHLD: self._children,
        }

    def _take_signals(self) -> None:
        if not self.own_process:
            return
        try:
            become_subreaper()
        except OSError:
            pass  # then orphans go to PID 1, as without us
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._signals().items():
                self.loop.add_signal_handler(signum, handler)

    def _children(self) -> None:
        """Reap whoever ended: our workers by their own way, orphans here."""
        ours = {self.logs.pid, self.guard.pid}
        known = {member.pid: member for member in self.router.members.values()}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in known:
                known.pop(found.si_pid).reap()
            elif found.si_pid in ours:
                # Theirs are reaped by their owners; do not look at them again here.
                self.loop.call_later(0.01, self._children)
                return
            else:
                try:
                    os.waitpid(found.si_pid, os.WNOHANG)
                except ChildProcessError:
                    pass

    # ---- workers ------------------------------------------------------------------

    def launch(self, number: int) -> Member:
        """Start a worker process for a slot.

        Raises:
            StartFailed: The system has no room for it; nothing is left of the try.
        """
        self.worker_ids += 1
        identifier = self.worker_ids
        try:
            member = self._member(number, identifier)
        except OSError as error:
            for handover in self.listeners.handovers():
                handover.remove(identifier)
            raise StartFailed(
                f"worker {number} cannot be started: {no_room(error)}"
            ) from error
        for handover in self.listeners.handovers():
            handover.started(identifier)
        options = self.options
        if options.max_age:
            member.max_age = options.max_age * random.uniform(0.9, 1.1)  # noqa: S311
        member.max_tasks = _about(options.max_tasks)
        self.router.members[identifier] = member
        self.guard.add(member.pid)
        self.logs.adopt(member)
        self.emit("fork", member)
        if member.link is None:
            self.emit("online", member)
            member.online_since = self.loop.time()
        return member

    def _member(self, number: int, identifier: int) -> Member:
        options = self.options
        start = Start(
            parent=os.getpid(),
            slot=number,
            id=identifier,
            channel=-1,
            kind=options.program.kind,
            argv=list(options.program.argv),
            level=options.level,
            doors=self.listeners.doors(identifier, number),
            max_connections=_about(options.max_connections),
            open_files=self._open_files,
        )
        env = {
            **options.env,
            "LOGAGG_SOCKET": self.logs.path,
            "LOGAGG_SLOT": str(number),
            "LOGAGG_WORKER_ID": str(identifier),
            "LOGAGG_LEVEL": options.level,
        }
        if options.policy is Policy.RR and "UVICORN_LOOP" not in os.environ:
            env["UVICORN_LOOP"] = "asyncio"  # uvloop cannot be handed connections
        return Member(
            start,
            env=env,
            heard=self.router.heard,
            ended=self._ended,
            disconnected=lambda m: self.emit("disconnect", m),
        )

    def _ended(self, member: Member) -> None:
        for listener in self.listeners.all:
            if listener.handover is not None:
                listener.handover.remove(member.id)
            listener.keep_path()
        self.router.members.pop(member.id, None)
        self.tasks.died(member)
        self.groups.end(member.pid)
        self.emit("exit", member, member.exit)

    async def _prepare_stop(self, member: Member) -> None:
        """Let what is under way at a worker end, and give it no more, before its TERM.

        Connections that are on their way to a server are taken by it, unless the whole
        run stops; so is the running task finished, as far as time allows.
        """
        if not self.slots.stopping:
            limit = self.options.stop_timeout
            deadline = self.loop.time() + limit - min(limit / 2, TERM_TIME)
            while self.tasks.running_on(member) and self.loop.time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        if not member.listened or member.link is None:
            return
        handovers = self.listeners.handovers()
        for handover in handovers:
            handover.stop(member.id)
        if not self.slots.stopping:
            # Others serve on: they take what comes from now.
            member.tell({"k": "drain"})
            await within(member.over, DRAIN_TIME)
        deadline = self.loop.time() + HAND_OVER_GRACE
        while self.loop.time() < deadline and member.state != "dead":
            if all(handover.settled(member.id) for handover in handovers):
                return
            await asyncio.sleep(0.002)

    def recycle(self, member: Member, why: str) -> None:
        """Replace a worker that is to be replaced as a matter of routine."""
        slot = self.slots.by_number.get(member.slot)
        if slot is None or slot.worker is not member or member.recycle:
            return
        member.recycle = True
        self.report.say(
            "info", "recycle", f"worker {member.slot}: {why}", slot=member.slot
        )
        self.spawn(self._recycle(slot, member, why))

    async def _recycle(self, slot: Slot, member: Member, why: str) -> None:
        """Replace; when the fresh one fails, the old one works on until the next try."""
        while slot.worker is member:
            try:
                await self.slots.replace(slot, why)
            except ReloadFailed:
                if member.state != "ready":
                    return
                self.tasks.go_on(member)
                await asyncio.sleep(LONGEST_DELAY)
            else:
                return

    def _abort(self, member: Member) -> None:
        member.recycle = True
        member.why = "its cancelled task did not end"
        self.spawn(self.slots.stop(member, member.why, 2.0))

    def _give_up(self, slot: Slot) -> None:
        end = slot.last_exit
        why = "" if end is None else f": {end.how}, {end.reason}"
        if self.options.binds and "ddress already in use" in why:
            why += "; a server that binds in C or Rust needs --policy reuseport"
        message = (
            f"the program cannot start: slot {slot.number} failed "
            f"{slot.backoff.failures} times before it was ready{why}"
        )
        self.report.say("critical", "cannot_start", message, slot=slot.number)
        self._status = Status.CANNOT_START
        if self._stop_task is None:
            self._stop_task = self.spawn(self._stop(message))

    def _slot_ended(self) -> None:
        if self.slots.by_number or self._lasting or self._stop_task is not None:
            return
        self._over.set()

    def _unfit(self, handover: Handover, lane: Lane) -> None:
        """A live worker does not take handed connections: share the socket instead."""
        for listener in self.listeners.all:
            if listener.handover is not handover:
                continue
            self.report.say(
                "error",
                "unfit",
                f"slot {lane.slot} listens on {handover.address} but does not take "
                "connections that are handed over (uvloop and granian accept by "
                "themselves): falling back to policy kernel; for rr use the asyncio "
                "loop (uvicorn: --loop asyncio)",
                slot=lane.slot,
            )
            listener.policy = Policy.KERNEL
            listener.handover = None
            handover.close(keep_listener=True)
            self.spawn(self.reload())

    # ---- what users ask -----------------------------------------------------------

    async def _reread_sinks(self) -> None:
        options = self.options
        if options.reread is None:
            return
        try:
            await self.logs.reconfigure(options.reread() or DEFAULT_SINKS)
        except LogaggError as error:
            self.report.say("error", "reload_failed", str(error))
            raise ReloadFailed(str(error)) from error

    async def reload(self) -> int:
        """Read the sinks again; replace all workers one at a time. See `Slots.reload`.

        A mistake in the configuration is refused before any worker is replaced.
        """
        self.report.say("info", "reload", "reloading")
        await self._reread_sinks()
        count = await self.slots.reload()
        self.reloads += 1
        self.report.say("info", "reloaded", f"reloaded: {count} workers replaced")
        return count

    async def scale(self, count: int) -> None:
        """Have so many workers.

        Raises:
            ConfigError: It is negative.
            StartFailed: The system has no room for so many; those that are there stay.
        """
        if count < 0:
            raise ConfigError(f"scale: {count} is less than 0")
        self.report.say("info", "scale", f"scaling to {count} workers")
        try:
            await self.slots.scale(count)
        except StartFailed as error:
            self.report.say("error", "start_failed", str(error))
            raise

    async def scale_by(self, difference: int) -> None:
        """Have more or fewer workers; at least one is left."""
        await self.scale(max(len(self.slots.by_number) + difference, 1))

    # ---- events -------------------------------------------------------------------

    def emit(self, event: str, *arguments: Any) -> None:
        """Call the handlers of an event."""
        for call in self.handlers.get(event, *arguments):
            try:
                result = call()
            except Exception as error:
                logger.exception("a handler failed")
                self.report.say(
                    "error", "handler_failed", f"{event} handler failed: {error!r}"
                )
                continue
            if inspect.isawaitable(result):
                self.spawn(result)


def no_room(error: OSError) -> str:
    """What the system refused, and which limit to raise."""
    limit, most = open_files()
    command = "ulimit -Hn" if limit == most else "ulimit -n"
    hint = {
        errno.EMFILE: f" (the limit is {limit}: {command})",
        errno.ENFILE: " (in the whole system: sysctl fs.file-max)",
        errno.EAGAIN: " (the limit of processes: ulimit -u, or the container's)",
        errno.ENOMEM: " (memory)",
    }
    return f"{error.strerror}{hint.get(error.errno or 0, '')}"


def _about(count: int) -> int:
    """The number ±10 %, so that workers do not come to it together; exact below 10."""
    return count + random.randint(-(count // 10), count // 10)  # noqa: S311


def void(_value: object) -> None:
    """Take a value and return nothing: for callbacks that must not return one."""
