"""A project: several programs in one process, with one consumer and one ordered log.

Theory of operation
-------------------
Each program has a supervisor of its own (`running_program`), on the loop of this
process; they share the consumer and the guard, so all records are in one order. A
program starts when those that it comes after are ready, or, for one-shot programs, have
ended well; one that fails keeps those after it from starting, and no other. All are
stopped in the reverse order: none ends before those that come after it.

The project is over when all its programs are, or when it is stopped. Signals, orphans
and the control socket are the project's, not the supervisors'.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from logagg.abc import shown_url
from logagg.errors import ConfigError, ExitStatus, LogaggError, ReloadFailed
from logagg.ipc.protocol import printable
from logagg.platform.processes import become_subreaper
from logagg.platform.terminal_text import complain
from logagg.supervisor.process.orphans import reap_orphans
from logagg.supervisor.process.run_parts import RunParts
from logagg.supervisor.programs.program_spec import ProgramSpec, known
from logagg.supervisor.programs.project_plan import ProjectPlan
from logagg.supervisor.programs.running_program import Changes, RunningProgram
from logagg.supervisor.run_signals import RunActions, RunSignals
from logagg.supervisor.supervisor import void

__all__ = ["Project"]


class Project:
    """All programs of a project. Made and run on one event loop, in the main thread."""

    def __init__(self, plan: ProjectPlan) -> None:
        self.plan = plan
        self.programs: dict[str, RunningProgram] = {}
        self._changes = Changes()
        self._parts = RunParts(plan.sinks, self._consumer_failed, plan.metrics)
        self._started = time.time()
        self._signal = 0
        self._stopping = False
        self._status = ExitStatus.OK
        self._tasks: set[asyncio.Task[Any]] = set()
        self._configuring = asyncio.Lock()
        self._signals = RunSignals(
            RunActions(
                stop=self.stop,
                reload=lambda: void(self._spawn(self._reload_all())),
                reopen=self._parts.logs.reopen,
                scale_by=lambda _number: None,
                signal_workers=self._signal_workers,
                reap=self._reap,
            )
        )

    # ---- life ---------------------------------------------------------------------

    async def run(self) -> tuple[ExitStatus, int]:
        """Run all programs until they are over.

        Returns:
            The exit status, and the signal that ended the project or 0.

        Raises:
            ConfigError: A sink was refused.
            ConsumerGone: The consumer did not come up.
        """
        try:
            self._signals.take()
            with contextlib.suppress(OSError):  # then orphans go to PID 1
                become_subreaper()
            await self._parts.opened()
            for spec in self.plan.programs:
                self._start(spec)
            await self._changes.until(self._all_over)
        finally:
            await self._finish()
        return self._outcome(), self._signal

    def _all_over(self) -> bool:
        over = all(each.is_over for each in self.programs.values())
        return over and not self._configuring.locked()

    def _outcome(self) -> ExitStatus:
        found = [each.status for each in self.programs.values()]
        return max([self._status, *found])

    async def _finish(self) -> None:
        for each in self.programs.values():
            each.kill()
        await self._changes.until(self._all_over)
        if not await self._parts.drain():
            self._status = max(self._status, ExitStatus.UNWRITTEN)
        self._parts.close()
        for task in self._tasks:
            task.cancel()
        self._signals.restore()

    def _start(self, spec: ProgramSpec) -> RunningProgram:
        program = RunningProgram(spec, self._parts, self._changes)
        self.programs[spec.name] = program
        before = [self.programs[name] for name in spec.after if name in self.programs]
        self._spawn(program.live(before))
        return program

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _consumer_failed(self, message: str, status: ExitStatus) -> None:
        complain(f"logagg: {message}")
        self._status = status
        self.stop(message)

    # ---- signals ------------------------------------------------------------------

    def stop(self, why: str = "asked to stop", signum: int = 0) -> None:
        """Stop all programs in order; a second call with a signal ends them now."""
        if self._stopping:
            if signum:
                for each in self.programs.values():
                    each.kill()
            return
        self._stopping, self._signal = True, signum
        self._spawn(self._stop_in_order(list(self.programs.values()), why))

    async def _stop_in_order(self, programs: list[RunningProgram], why: str) -> None:
        """Stop programs, each once those after it are over; returns at the end."""
        await asyncio.gather(*(self._stop_after_others(p, why) for p in programs))

    async def _stop_after_others(self, program: RunningProgram, why: str) -> None:
        later = [p for p in self.programs.values() if program.name in p.spec.after]
        if self._stopping:
            await self._changes.until(lambda: all(each.is_over for each in later))
        program.stop(why)
        await self._changes.until(lambda: program.is_over)

    def _signal_workers(self, signum: int) -> None:
        for worker in self._workers():
            worker.signal(signum, group=True)

    def _workers(self) -> list[Any]:
        supervisors = (each.supervisor for each in self.programs.values())
        return [w for s in supervisors if s for w in s.context.workers.values()]

    def _reap(self) -> None:
        owned = {worker.pid for worker in self._workers()}
        reap_orphans({*owned, self._parts.logs.pid, self._parts.guard.pid})

    async def _reload_all(self) -> None:
        """Reload every program that runs; a failure is in the log."""
        for each in list(self.programs.values()):
            with contextlib.suppress(LogaggError):
                await each.running().reload()

    # ---- what users ask -----------------------------------------------------------

    def program(self, name: str) -> RunningProgram:
        """A program by its name.

        Raises:
            ConfigError: There is none.
        """
        known(name, self.programs, f"project {self.plan.name}: ")
        return self.programs[name]

    async def restart(self, name: str) -> None:
        """End a program, if it runs, and start it as it is configured now.

        Raises:
            ConfigError: There is none, or the configuration is wrong.
        """
        async with self._configuring:
            self._refuse_when_stopping()
            before = self.program(name)
            specs = {each.name: each for each in self.plan.read([name], {})}
            await self._replace(before, specs.get(name, before.spec))

    async def _replace(self, before: RunningProgram, spec: ProgramSpec) -> None:
        before.stop("restarted")
        await self._changes.until(lambda: before.is_over)
        self._start(spec)

    async def stop_program(self, name: str) -> None:
        """Stop one program; the others go on. Returns at its end.

        Raises:
            ConfigError: There is none.
        """
        await self._stop_in_order([self.program(name)], "logagg stop")

    async def up(
        self, names: Sequence[str], formation: Mapping[str, int]
    ) -> dict[str, str]:
        """Start what is missing, change what is configured in another way.

        Returns:
            By program, what has become of it.

        Raises:
            ConfigError: The configuration is wrong; nothing is changed.
        """
        async with self._configuring:
            self._refuse_when_stopping()
            notes: dict[str, str] = {}
            specs = self.plan.read(names, formation)
            for spec in specs:
                try:
                    notes[spec.name] = await self._bring_up(spec)
                except ReloadFailed as error:
                    notes[spec.name] = f"stays as it was: {error}"
            if not names:
                gone = self.programs.keys() - notes.keys()
                notes |= {n: self._without_entry(n) for n in sorted(gone)}
        self._changes.notify()
        return {name: text for name, text in notes.items() if text}

    def _refuse_when_stopping(self) -> None:
        if self._stopping or self._all_over_but_configuring():
            raise ConfigError(f"project {self.plan.name} is ending; try again")

    def _all_over_but_configuring(self) -> bool:
        return all(each.is_over for each in self.programs.values())

    async def _bring_up(self, spec: ProgramSpec) -> str:
        present = self.programs.get(spec.name)
        if present is None:
            self._start(spec)
            return "started"
        if present.is_over:
            done = present.is_done and present.spec == spec and spec.is_one_shot
            if not done:
                self._start(spec)
            return "has ended well" if done else "started"
        if present.supervisor is None:
            present.spec = spec
            return "waits for its turn"
        text = await present.change(spec)
        if text:
            return text
        await self._replace(present, spec)
        return "restarted"

    def _without_entry(self, name: str) -> str:
        if self.programs[name].is_over:
            return ""
        return f"is not configured any more and runs on; end it: logagg stop {name}"

    def describe(self) -> dict[str, Any]:
        """The state of all programs, in the form of a run's with `programs` beside it."""
        programs = [each.describe() for each in self.programs.values()]
        logs, plan = self._parts.logs, self.plan
        return {
            "pid": os.getpid(),
            "program": ", ".join(self.programs),
            "project": printable(plan.name),
            "file": printable(plan.file),
            "directory": printable(os.path.dirname(plan.file)),
            "uptime": round(time.time() - self._started, 1),
            "reloads": sum(each["reloads"] for each in programs),
            "slots": [row for each in programs for row in each["slots"]],
            "listeners": [one for each in programs for one in each["listeners"]],
            "tasks": {},
            "programs": programs,
            "consumer": {
                "pid": logs.pid,
                "restarts": logs.restarts,
                "socket": logs.path,
                "sinks": [printable(shown_url(sink)) for sink in plan.sinks],
            },
        }
