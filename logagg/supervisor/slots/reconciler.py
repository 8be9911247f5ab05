"""Slots: stable numbers whose workers are kept alive, replaced and stopped.

Theory of operation
-------------------
*Wanted* is which slots there are (`open`, `scale`, `retire`, `stop_all`) and which
workers are to be replaced (`reload`, `replace`). *Observed* is the state of each worker.
`_converge` compares both and does what is missing: it launches, begins to stop, lets a
fresh worker take over, waits for a time. It is called after every change of either, does
nothing where nothing is missing, and waits for nothing; so requests and ends may come in
any order and at once. A caller that wants something waits until it is so (`_until`).

A slot has at most two workers that are to live: the one that serves, and beside it a
fresh one that will take over when it is ready. One slot is replaced at a time.

Nothing here does I/O but through the workers; time is the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

from logagg.core.event import Event
from logagg.errors import ClosedError, StartFailed
from logagg.supervisor.process.worker_process import Exit, WorkerProcess
from logagg.supervisor.run_options import OnFailure, RunOptions
from logagg.supervisor.slots.drain import within
from logagg.supervisor.slots.replacements import Replacements
from logagg.supervisor.slots.slot import Slot, restart_delay
from logagg.supervisor.supervisor_events import SupervisorEvents

__all__ = ["Slots"]


class Slots:
    """All slots of a run.

    Args:
        launch: Starts a worker for a slot number.
        prepare_stop: Awaited before a worker gets its TERM: it ends what is under way.
            Called with whether the whole run stops.
        gave_up: Called when the program cannot start, with the last one's traceback.
        changed: Called when slots or workers may have changed.

    Attributes:
        living: The workers that have not ended.
        finished: The exits that ended slots for good.
        killed: Workers that did not end in time.
        stopping: No worker is wanted any more.
    """

    def __init__(
        self,
        options: RunOptions,
        events: SupervisorEvents,
        *,
        launch: Callable[[int], WorkerProcess],
        prepare_stop: Callable[[WorkerProcess, bool], Awaitable[None]],
        gave_up: Callable[[Slot, str], None],
        changed: Callable[[], None],
    ) -> None:
        self.options = options
        self.by_number: dict[int, Slot] = {}
        self.living: set[WorkerProcess] = set()
        self.finished: list[Exit] = []
        self.killed: list[WorkerProcess] = []
        self.stopping = False
        self._started = False  # a worker was ready: the program can start
        self.events = events
        self._launch = launch
        self._prepare_stop = prepare_stop
        self._gave_up = gave_up
        self._changed = changed
        self._replacements = Replacements(self)
        self._stops: dict[asyncio.Task[None], WorkerProcess] = {}
        self._scalings = 0
        self._goal: int | None = None  # while slots are opened one by one
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._converging = self._again = False
        self.loop = asyncio.get_running_loop()

    # ---- what is wanted ----------------------------------------------------------

    @property
    def count(self) -> int:
        """How many slots there are that are not being retired."""
        return sum(not slot.retired for slot in self.by_number.values())

    @property
    def wanted(self) -> int:
        """How many slots there will be: those that are still to be opened count too."""
        return self.count if self._goal is None else self._goal

    def workers(self) -> list[WorkerProcess]:
        """The current worker of each slot that has one."""
        return [s.worker for s in self.by_number.values() if s.worker is not None]

    def open(self) -> Slot:
        """Make a slot with the lowest free number, and keep it filled.

        Raises:
            StartFailed: The system has no room for its worker; there is no slot then.
            ClosedError: The workers are being stopped.
        """
        if self.stopping:
            raise ClosedError("the workers are being stopped: none is started")
        number = next(n for n in range(1, 10**6) if n not in self.by_number)
        slot = Slot(number)
        slot.worker = self.launch(slot)
        self.by_number[number] = slot
        self._converge()
        return slot

    async def scale(self, count: int) -> None:
        """Have so many slots: open further ones, or retire those with high numbers.

        Returns when that is so, or something else is wanted meanwhile. Slots are opened
        one by one, and what else comes in is handled between two.

        Raises:
            StartFailed: See `open`; the slots that were opened stay.
        """
        self._scalings += 1
        latest = self._scalings
        self._goal = count
        try:
            await self._open_until(count, latest)
        finally:
            if latest == self._scalings:
                self._goal = None
        if latest == self._scalings:
            staying = [slot for slot in self._in_order() if not slot.retired]
            await self._gone(staying[count:], "scaled down")

    async def _open_until(self, count: int, latest: int) -> None:
        for slot in self._in_order():
            if slot.retired and self.count < count and not self.stopping:
                self._want_again(slot)
        for _ in range(count - self.count):
            if latest == self._scalings and not self.stopping:
                self.open()
                await asyncio.sleep(0)

    def _in_order(self) -> list[Slot]:
        return sorted(self.by_number.values(), key=lambda slot: slot.number)

    def _want_again(self, slot: Slot) -> None:
        """Let a slot stay that is leaving; its worker, if it ends yet, is replaced."""
        slot.retired, slot.why = False, ""
        slot.backoff.reset()
        for worker in (slot.worker, slot.fresh):
            if worker is not None and not worker.is_active:
                worker.recycle = True
        self._converge()

    async def retire(self, slot: Slot, why: str, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Stop a slot for good; returns when it has ended, or is wanted again."""
        await self._gone([slot], why, timeout)

    async def _gone(
        self,
        slots: list[Slot],
        why: str,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        for slot in slots:
            slot.retired, slot.why = True, why
            for worker in (slot.worker, slot.fresh):
                if worker is not None:
                    self.stop(worker, why, timeout)
        self._converge()
        await self._until(lambda: not any(map(self._leaves, slots)))

    def _leaves(self, slot: Slot) -> bool:
        return slot.retired and self.by_number.get(slot.number) is slot

    def stop_all(self, why: str) -> None:
        """Want no worker any more; `ended` waits until there is none."""
        self.stopping = True
        for slot in self.by_number.values():
            slot.retired, slot.why = True, slot.why or why
        self._converge()

    async def ended(self) -> None:
        """Wait until there is no slot and no worker."""
        await self._until(lambda: not self.by_number and not self.living)

    def kill_all(self, why: str) -> None:
        """End all workers now."""
        for worker in list(self.living):
            worker.voluntary = True
            worker.why = worker.why or why
            worker.signal(signal.SIGKILL, group=True)

    async def reload(self) -> int:
        """Replace all workers, one at a time, each fresh one ready first.

        Returns:
            How many were replaced.

        Raises:
            ReloadFailed: A fresh worker failed; the remaining old ones serve on.
        """
        count = 0
        for number in sorted(self.by_number):
            slot = self.by_number.get(number)
            if slot is not None and not slot.retired:
                count += await self.replace(slot, "replaced by a reload")
        return count

    async def replace(self, slot: Slot, why: str) -> bool:
        """Replace one slot's worker, the fresh one ready first.

        Returns:
            False when the slot ended meanwhile.

        Raises:
            ReloadFailed: The fresh worker failed; the old one serves on.
        """
        done = self._replacements.add(slot, why)
        self._converge()
        return await done

    # ---- from observed to wanted --------------------------------------------------

    def observe(self, worker: WorkerProcess) -> None:
        """Note that a worker has become ready or has ended."""
        self._started = self._started or worker.was_ready
        self._converge()

    def _converge(self) -> None:
        """Do what is missing; a nested call, from what is called here, follows."""
        self._again = True
        if self._converging:
            return
        self._converging = True
        try:
            while self._again:
                self._again = False
                self.living = {w for w in self.living if w.exit is None}
                for slot in list(self.by_number.values()):
                    self._converge_slot(slot)
                self._replacements.converge()
        finally:
            self._converging = False
        self._set_timer()
        self._changed()
        for condition, waiter in self._waiters:
            if condition() and not waiter.done():
                waiter.set_result(None)

    def _set_timer(self) -> None:
        slots = self.by_number.values()
        times = [s.starts_at for s in slots if s.worker is None and not s.retired]
        if self._replacements.deadline():
            times.append(self._replacements.deadline())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(min(times), self._converge) if times else None

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; it is checked after each change."""
        if condition():
            return
        waiter = (condition, self.loop.create_future())
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)

    def _converge_slot(self, slot: Slot) -> None:
        fresh = slot.fresh
        if fresh is not None and fresh.exit is not None:
            slot.fresh = None
            self.events.record_exit(fresh, again=fresh.crash.again)
        if slot.worker is not None and slot.worker.exit is not None:
            self._succeed(slot, slot.worker)
        if slot.retired:
            for worker in (slot.worker, slot.fresh):
                if worker is not None and worker not in self._stops.values():
                    self.stop(worker, slot.why)
            if slot.worker is None and slot.fresh is None:
                del self.by_number[slot.number]
                if slot.last_exit is not None:
                    self.finished.append(slot.last_exit)
        elif slot.worker is None and self.loop.time() >= slot.starts_at:
            self.refill(slot)

    def _succeed(self, slot: Slot, ended: WorkerProcess) -> None:
        """Decide what follows the end of a slot's worker."""
        slot.worker, slot.last_exit = None, ended.exit
        delay = self._delay_after(slot, ended)
        if delay is None:
            slot.retired, slot.why = True, slot.why or "its slot has ended"
            return
        slot.starts_at = self.loop.time() + delay
        if slot.fresh is not None:
            slot.worker, slot.fresh = slot.fresh, None
            slot.restarts += 1

    def launch(self, slot: Slot) -> WorkerProcess:
        """Start a worker.

        Raises:
            StartFailed: The system has no room for it.
        """
        worker = self._launch(slot.number)
        self.living.add(worker)
        slot.refused = ""
        return worker

    def refill(self, slot: Slot) -> None:
        """Start the next worker.

        While the system has no room it is tried again without limit: that is no fault
        of the program.
        """
        try:
            slot.worker = self.launch(slot)
            slot.restarts += 1
        except StartFailed as error:
            slot.refused = str(error)
            delay = slot.failed(self.loop.time())
            slot.starts_at = self.loop.time() + delay
            message = f"{slot.refused}; next try in {delay:.1f} s"
            self.events.record("error", Event.START_FAILED, message, slot=slot.number)

    def _delay_after(self, slot: Slot, worker: WorkerProcess) -> float | None:
        """Record a worker's end; seconds until the next one starts, None for never."""
        end = worker.exit
        assert end is not None
        if slot.retired or (end.voluntary and not worker.recycle):
            self.events.record_exit(worker)
            return None
        again = worker.crash.again
        delay = restart_delay(slot, worker, self.options.restart, self.loop.time())
        hopeless = worker.crash.is_final and not self._started
        if delay is not None and (slot.backoff.exhausted or hopeless):
            delay = slot.backoff.most
            if self.options.on_failure is OnFailure.EXIT:
                self.events.record_exit(worker, again=again)
                self._gave_up(slot, worker.crash.trace)
                return None
        following = ""
        if delay is not None and slot.fresh is not None:
            following = f"; pid {slot.fresh.pid} takes over"
        elif delay is not None:
            following = f"; next start in {delay:.1f} s" if delay else "; started again"
        self.events.record_exit(worker, following, again=again)
        return delay

    # ---- stopping -----------------------------------------------------------------

    def stop(
        self, worker: WorkerProcess, why: str, timeout: float | None = None
    ) -> None:
        """Begin to end one worker: hooks, one TERM, the deadline, then KILL.

        Called again, the earlier deadline counts.
        """
        limit = self.options.stop_timeout if timeout is None else timeout
        if worker.exit is None:
            first = worker.begin_stop(why)
            task = self.loop.create_task(self._stop(worker, limit, first=first))
            self._stops[task] = worker
            task.add_done_callback(self._stops.pop)

    async def _stop(self, worker: WorkerProcess, limit: float, *, first: bool) -> None:
        deadline = self.loop.time() + limit
        if first:
            with contextlib.suppress(TimeoutError):
                preparing = self._prepare_stop(worker, self.stopping)
                await asyncio.wait_for(preparing, limit)
            worker.peer.send({"k": "shutdown", "timeout": limit})
            if worker.hooks:
                await within(worker.hooks_done, deadline - self.loop.time())
            worker.terminate()
        if await within(worker.reaped, deadline - self.loop.time()):
            return
        if worker.exit is None:
            self.killed.append(worker)
            worker.why = f"did not end within {limit:g} s after TERM"
            self.events.record(
                "error",
                Event.STOP_TIMEOUT,
                f"worker {worker.name} (pid {worker.pid}) {worker.why}: killed",
                slot=worker.slot,
                of_pid=worker.pid,
            )
            worker.signal(signal.SIGKILL, group=True)
