"""A deterministic world of processes: one scheduler, one clock, one list of decisions.

Theory of operation
-------------------
Every simulated process is a set of greenlets of this one process ("threads"). Exactly
one runs at a time. It gives the processor away only in calls to the operating system,
which `seam` redirects to `World.step` and `World.block`. Pipes, sockets, locks and files
are the kernel's own, so their semantics are real; a process that is killed loses exactly
its descriptors.

Time is virtual: a step costs STEP_NS, and when nobody can run the clock jumps to the
next deadline.

Whatever is left to chance (who runs next, whether a call fails, when a process dies) is
one call of `decide`, numbered in its order. 0 means "nothing unusual", so a run is wholly
described by its few decisions that are not 0: the *schedule*. A schedule that fails is
made shorter by leaving decisions out as long as it fails still.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import greenlet

__all__ = ["Killed", "Process", "Schedule", "Thread", "Violation", "World"]

STEP_NS = 2_000
START_NS = 5_000 * 1_000_000_000
WALL_NS = 1_790_000_000 * 1_000_000_000
MAX_STEPS = 200_000
MAX_SECONDS = 600


Schedule = dict[int, tuple[str, int]]
"""Decisions that are not 0 by their number: what was decided, and the choice."""


class Killed(BaseException):
    """Ends every thread of a process that was killed, without its cooperation."""


class Violation(Exception):
    """A promise of the product was broken."""


class Thread:
    """One flow of control; parked while it waits for `ready` or until `deadline`."""

    def __init__(self, process: Process, work: Callable[[], object], name: str) -> None:
        self.process = process
        self.name = name
        self.ready: Callable[[], object] | None = None
        self.deadline: int | None = None
        self.signals: list[Callable[[], None]] = []
        self.loop: Any = None
        self._work = work
        self.greenlet = greenlet.greenlet(self._run, process.world.hub)

    def _run(self) -> None:
        try:
            self._work()
        except (Killed, greenlet.GreenletExit):
            pass
        except BaseException as error:  # noqa: BLE001 - judged below
            self.process.crashed(self, error)
        finally:
            self.process.threads.discard(self)
            self.process.world.threads.remove(self)


class Process:
    """A simulated process.

    Attributes:
        pid: Beyond every real pid, so that /proc knows nothing of it.
        number: As its pid, but never another process's.
        alive: It was neither killed nor has ended.
        descriptors: The raw descriptors that it has opened and not closed.
        sockets: Its sockets, and other objects that own a descriptor.
        suspended_until: While it is stopped as by SIGSTOP; virtual time.
    """

    def __init__(self, world: World, name: str) -> None:
        world.pids += 1
        self.world = world
        self.name = name
        self.pid = self.number = world.pids
        self.alive = True
        self.descriptors: set[int] = set()
        self.owners: list[Any] = []
        self.threads: set[Thread] = set()
        self.suspended_until = 0
        self.on_end: list[Callable[[], None]] = []
        self.error: BaseException | None = None

    def start(self, work: Callable[[], object], name: str = "main") -> Thread:
        """Start a thread."""
        thread = Thread(self, work, name)
        self.threads.add(thread)
        self.world.threads.append(thread)
        return thread

    def own(self, *descriptors: int) -> None:
        """Note raw descriptors that are new. Whoever had those numbers has closed them."""
        for descriptor in descriptors:
            for each in self.world.processes:
                each.descriptors.discard(descriptor)
            self.descriptors.add(descriptor)

    def hold(self, owner: Any) -> None:
        """Note an object that owns a descriptor and closes it."""
        self.own(owner.fileno())
        self.descriptors.discard(owner.fileno())
        self.owners.append(owner)

    def crashed(self, thread: Thread, error: BaseException) -> None:
        """A thread has ended by an exception that nobody caught."""
        if self.alive:
            self.error = error
            self.world.errors.append((self.name, thread.name, error))

    def kill(self) -> None:
        """End it as SIGKILL does: its descriptors are closed, nothing of its code runs."""
        if not self.alive:
            return
        self.alive = False
        here = self.world.current
        for thread in list(self.threads):
            if thread is not here and thread.greenlet:
                self.world.enter(thread, lambda t=thread: t.greenlet.throw(Killed))
            elif not thread.greenlet and not thread.greenlet.dead:
                self.threads.discard(thread)
                self.world.threads.remove(thread)
        self.release()

    def release(self) -> None:
        """Close what it has open."""
        self.alive = False
        for owner in list(self.owners):  # a socket that is closed leaves the list
            try:
                owner.close()
            except (OSError, ValueError):
                pass
        self.owners.clear()
        for descriptor in self.descriptors:
            try:
                os.close(descriptor)
            except OSError:
                pass
        self.descriptors.clear()
        for each in self.on_end:
            each()


class World:
    """All processes, their scheduler and their clock.

    Args:
        seed: Makes all decisions, unless there is a schedule.
        schedule: The decisions that are not 0, by their number.
        rates: By the kind of a decision, how often it is not 0.
    """

    def __init__(
        self,
        seed: int,
        schedule: Schedule | None = None,
        rates: dict[str, float] | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.schedule: Schedule = {} if schedule is None else dict(schedule)
        self.replays = schedule is not None
        self.rates = rates or {}
        self.now = START_NS
        self.wall_offset = WALL_NS
        self.steps = 0
        self.decisions = 0
        self.calm = False
        self.pids = 10_000_000
        self.threads: list[Thread] = []
        self.processes: list[Process] = []
        self.current: Thread | None = None
        self.hub = greenlet.getcurrent()
        self.chaos: Callable[[], None] = lambda: None
        self.at_step: Callable[[Thread], None] = lambda _: None
        self.stderr = -1
        self.stderr_is_full = self.hung = False
        self.full_until = 0
        self.errors: list[tuple[str, str, BaseException]] = []
        self.log: list[str] = []

    # ---- chance ---------------------------------------------------------------------

    def decide(self, kind: str, choices: int = 1) -> int:
        """0 mostly; else 1 … choices."""
        if self.calm or choices < 1:
            return 0
        self.decisions += 1
        number = self.decisions
        if self.replays:
            planned, found = self.schedule.get(number, (kind, 0))
            found = min(found, choices) if planned == kind else 0
        elif self.random.random() < self.rates.get(kind, 0.0):
            found = self.random.randint(1, choices)
            self.schedule[number] = (kind, found)
        else:
            found = 0
        return found

    def note(self, text: str) -> None:
        """Add a line to the story that a violation prints."""
        who = self.current.process.name if self.current else "-"
        self.log.append(f"{self.seconds:10.6f} {who:>10}  {text}")

    @property
    def seconds(self) -> float:
        """Virtual time since the start."""
        return (self.now - START_NS) / 1e9

    # ---- processes ------------------------------------------------------------------

    def process(self, name: str) -> Process:
        """Make a process without threads."""
        made = Process(self, name)
        self.processes.append(made)
        return made

    @property
    def here(self) -> Process:
        """The process that runs."""
        assert self.current is not None
        return self.current.process

    def step(self) -> None:
        """A call to the operating system: time passes, and others may run."""
        thread = self.current
        if thread is None:
            return
        if not thread.process.alive:
            raise Killed
        self.steps += 1
        self.now += STEP_NS
        if self.steps > MAX_STEPS:
            raise Violation(f"no end: {MAX_STEPS} steps")
        if self.decide("delay"):
            self.now += 1 + self.random_time()
        self.at_step(thread)
        self._deliver(thread)
        if self.decide("switch"):
            thread.ready = None
            thread.deadline = self.now
            self._leave(thread)

    def random_time(self) -> int:
        """Some time up to 40 ms, which the schedule does not store: drawn by step."""
        return (self.steps * 7_919) % 40_000_000

    def _deliver(self, thread: Thread) -> None:
        while thread.signals and thread.process.alive:
            thread.signals.pop(0)()

    def block(self, ready: Callable[[], object] | None, timeout_ns: int | None) -> bool:
        """Wait until something is true; whether it is.

        Args:
            ready: What is waited for; None: only time passes.
            timeout_ns: How long at most; None: for ever.
        """
        thread = self.current
        assert thread is not None
        if not thread.process.alive:
            raise Killed
        self.steps += 1
        self.now += STEP_NS
        thread.ready = ready
        thread.deadline = None if timeout_ns is None else self.now + timeout_ns
        self._leave(thread)
        self._deliver(thread)
        return bool(ready()) if ready is not None else True

    def _leave(self, thread: Thread) -> None:
        self.hub.switch()
        if not thread.process.alive:
            raise Killed

    def enter(self, thread: Thread, go: Callable[[], object]) -> None:
        """Run a thread until it waits or ends."""
        before, self.current = self.current, thread
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(thread.loop)
        try:
            go()
        finally:
            if not thread.greenlet.dead:
                thread.loop = asyncio._get_running_loop()
            asyncio._set_running_loop(outer)
            self.current = before

    def run(self, until: Callable[[], bool]) -> None:
        """Let everybody run until something is true.

        Raises:
            Violation: It does not come true: nobody can run, or it takes too long.
        """
        began = self.now
        while not until():
            if self.now - began > MAX_SECONDS * 1_000_000_000:
                raise Violation(f"no end: {MAX_SECONDS} s of virtual time")
            self.chaos()
            if until():
                return
            runnable = [each for each in self.threads if self._can_run(each)]
            if not runnable:
                if not self._jump():
                    waiting = [f"{t.process.name}/{t.name}" for t in self.threads]
                    raise Violation(f"nobody can run: {waiting}")
                continue
            chosen = runnable[self.decide("next", len(runnable) - 1)]
            # Round robin is what happens without a decision.
            self.threads.remove(chosen)
            self.threads.append(chosen)
            self.enter(chosen, chosen.greenlet.switch)
            if self.errors:
                name, thread, error = self.errors[0]
                if isinstance(error, Violation):
                    raise error
                raise Violation(f"uncaught: {name}/{thread}: {error!r}") from error

    def _can_run(self, thread: Thread) -> bool:
        if self.now < thread.process.suspended_until:
            return False
        if thread.signals:
            return True
        if thread.deadline is not None and self.now >= thread.deadline:
            return True
        if thread.ready is None:
            return thread.deadline is None
        return bool(thread.ready())

    def _jump(self) -> bool:
        """Advance the clock to the next instant at which somebody can run."""
        times = []
        for thread in self.threads:
            until = thread.process.suspended_until
            if until > self.now:
                times.append(until)
            elif thread.deadline is not None:
                times.append(thread.deadline)
        if not times:
            return False
        self.now = max(self.now + 1, min(times))
        return True

    def close(self) -> None:
        """End everything that is left."""
        for process in self.processes:
            process.kill()
