"""One program of a project: it waits for its turn, then its supervisor runs.

Its states: waiting (for programs that it comes after) → starting → running (all workers
were ready) → stopping → stopped; or ended or failed, by itself. A program that is over
can be started again, as another object. Used on the project's loop.
"""

from __future__ import annotations

import asyncio
import enum
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from logagg.core.event import Event
from logagg.errors import ExitStatus, LogaggError, ReloadFailed
from logagg.ipc.protocol import printable
from logagg.platform.terminal_text import complain
from logagg.supervisor.control import status as status_of_run
from logagg.supervisor.messaging.event_handlers import EventHandlers
from logagg.supervisor.process.run_parts import RunParts
from logagg.supervisor.programs.program_spec import ProgramSpec
from logagg.supervisor.run_context import EVENTS
from logagg.supervisor.supervisor import Supervisor

__all__ = ["Changes", "ProgramState", "RunningProgram"]


class ProgramState(enum.StrEnum):
    """The states of a program, in their order."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"  # as it was asked to
    ENDED = "ended"
    FAILED = "failed"


_OVER = (ProgramState.STOPPED, ProgramState.ENDED, ProgramState.FAILED)


class Changes:
    """Wakes those that wait for a condition of programs, after each change of a state."""

    def __init__(self) -> None:
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def notify(self) -> None:
        """Check all conditions."""
        for condition, waiter in self._waiters:
            if not waiter.done() and condition():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        if condition():
            return
        waiter = (condition, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)


class RunningProgram:
    """A program from its first wait to its end.

    Args:
        spec: What it is.
        parts: The consumer and guard of the project.
        changes: Notified of each change of its state.

    Attributes:
        spec: What it is now; see `change`.
        state: One of `ProgramState`.
        status: Its exit status, once it is over.
        supervisor: Its supervisor, once it has started.
    """

    def __init__(self, spec: ProgramSpec, parts: RunParts, changes: Changes) -> None:
        self.spec = spec
        self.state = ProgramState.WAITING
        self.status = ExitStatus.OK
        self.supervisor: Supervisor | None = None
        self._parts = parts
        self._changes = changes
        self._unwanted = False
        self._since = time.monotonic()

    @property
    def name(self) -> str:
        """Its name in the project."""
        return self.spec.name

    @property
    def is_over(self) -> bool:
        """Whether it has stopped, ended or failed."""
        return self.state in _OVER

    @property
    def is_done(self) -> bool:
        """Whether those after it may start."""
        well = self.state is ProgramState.ENDED and self.status is ExitStatus.OK
        if self.spec.is_one_shot:
            return well
        return well or self.state is ProgramState.RUNNING

    def _move(self, state: ProgramState) -> None:
        self.state = state
        self._since = time.monotonic()
        self._changes.notify()

    def record(self, level: str, event: Event, message: str) -> None:
        """Put a record about this program into the log."""
        self._parts.logs.send_event(
            {"level": level, "event": event, "message": message, "app": self.name}
        )

    async def live(self, before: Sequence[RunningProgram]) -> None:
        """Wait for other programs, then run to the end. Raises nothing."""
        try:
            await self._changes.until(
                lambda: (
                    self._unwanted
                    or all(each.is_done or each.is_over for each in before)
                )
            )
            failed = [each.name for each in before if not each.is_done]
            if self._unwanted:
                state = ProgramState.STOPPED
            elif failed:
                names = ", ".join(failed)
                text = f"{self.name} is not started: it comes after {names}"
                state = self._fail(text)
            else:
                state = await self._run()
        except (LogaggError, OSError) as error:
            state = self._fail(f"{self.name}: {error}", error)
        except BaseException:
            self._move(ProgramState.FAILED)
            raise
        self._move(state)

    def _fail(self, text: str, error: Exception | None = None) -> ProgramState:
        status = getattr(error, "exit_status", ExitStatus.CANNOT_START)
        self.status = ExitStatus(status)
        complain(f"logagg: {text}")
        self.record("critical", Event.CANNOT_START, text)
        return ProgramState.FAILED

    async def _run(self) -> ProgramState:
        handlers = EventHandlers(EVENTS)
        handlers.add("ready", self._worker_ready)
        options = self.spec.options
        self.supervisor = Supervisor(
            options,
            handlers,
            own_process=False,
            lasting=False,
            parts=self._parts.shared(),
        )
        self._move(ProgramState.STARTING)
        count = f"{options.workers} worker{'s' * (options.workers != 1)}"
        text = f"{self.name} starts: {options.program}, {count}"
        self.record("info", Event.PROGRAM_START, text)
        self.status, _ = await self.supervisor.run()
        failed = self.status is not ExitStatus.OK and not self._unwanted
        how = "failed" if failed else "ended"
        self.record(
            "error" if failed else "info",
            Event.PROGRAM_END,
            f"{self.name} {how}: status {int(self.status)}",
        )
        if failed:
            return ProgramState.FAILED
        return ProgramState.STOPPED if self._unwanted else ProgramState.ENDED

    def _worker_ready(self) -> None:
        assert self.supervisor is not None
        workers = self.supervisor.slots.workers()
        if self.state is ProgramState.STARTING and all(w.was_ready for w in workers):
            self._move(ProgramState.RUNNING)

    # ---- what users ask -----------------------------------------------------------

    def stop(self, why: str) -> None:
        """Let it end; `is_over` follows."""
        if self.is_over or self._unwanted:
            return
        self._unwanted = True
        if self.supervisor is not None:
            self._move(ProgramState.STOPPING)
            self.supervisor.stop(why)
        else:
            self._changes.notify()

    def kill(self) -> None:
        """End its workers now."""
        self._unwanted = True
        if self.supervisor is not None and not self.is_over:
            self.supervisor.slots.kill_all("killed by a second signal")
        self._changes.notify()

    def running(self) -> Supervisor:
        """Its supervisor.

        Raises:
            LogaggError: It does not run.
        """
        if self.supervisor is None or self.is_over or self._unwanted:
            raise LogaggError(f"{self.name} is {self.state}; start it: logagg up")
        return self.supervisor

    async def scale(self, workers: int) -> int:
        """Have so many workers; returns how many there are.

        Raises:
            LogaggError: It does not run, or there is no room for so many.
        """
        supervisor = self.running()
        await supervisor.scale(workers)
        return len(supervisor.slots.by_number)

    async def change(self, spec: ProgramSpec) -> str:
        """Take over another configuration without an end, where that is possible.

        Returns:
            Words about it; "" when only a new start can do it.
        """
        supervisor, before, options = self.running(), self.spec, spec.options
        if before.options == options:
            self.spec = spec
            return "is unchanged"
        fixed = ("bind", "policy", "sticky", "directory", "restart")
        if any(getattr(options, n) != getattr(before.options, n) for n in fixed):
            return ""
        scaled = before.options.workers != options.workers
        supervisor.change(options)
        self.spec, notes = spec, []
        if not _same_program(before, spec):
            try:
                count = await supervisor.reload()
            except ReloadFailed:
                supervisor.change(before.options)
                self.spec = before
                raise
            notes.append(f"reloaded, {count} workers replaced")
        if scaled:
            await supervisor.scale(options.workers)
            notes.append(f"scaled to {options.workers}")
        return ", ".join(notes)

    def describe(self) -> dict[str, Any]:
        """Its state, for `logagg ps` and `logagg status`."""
        options = self.spec.options
        found: dict[str, Any] = {
            "pid": os.getpid(), "program": printable(options.program),
            "uptime": round(time.monotonic() - self._since, 1),
            "reloads": 0, "slots": [], "listeners": [], "tasks": {},
        }  # fmt: skip
        if self.supervisor is not None and not self.is_over:
            found = status_of_run(self.supervisor)
        exits = self.supervisor.slots.finished if self.supervisor else []
        for row in found["slots"]:
            row["slot"] = f"{self.name}.{row['slot']}"
        return {
            **found,
            "name": self.name,
            "state": str(self.state),
            "status": int(self.status) if self.is_over else None,
            "last_exit": f"{exits[-1].how}, {exits[-1].reason}" if exits else None,
        }


def _same_program(before: ProgramSpec, after: ProgramSpec) -> bool:
    """Whether both differ in the number of workers alone."""
    return all(
        getattr(before.options, name) == getattr(after.options, name)
        for name in before.options.__struct_fields__
        if name != "workers"
    )
