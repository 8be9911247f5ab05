"""Slots: a stable number, whose worker is kept alive, replaced, and in the end stopped.

One task per slot (`keep`) waits for its worker's end and decides what follows. Others
may put a fresh worker into the slot (`Slots.replace`: the fresh one must be ready
first); the keeper notices and watches the fresh one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logagg.errors import LogaggError, StartFailed
from logagg.supervisor.backoff import LONGEST_DELAY, Backoff
from logagg.supervisor.member import Exit, Member
from logagg.supervisor.options import OnFailure, Restart, RunOptions

if TYPE_CHECKING:
    from logagg.supervisor.events import Reporter

__all__ = ["ReloadFailed", "Slot", "Slots", "within"]

PROVEN_UPTIME = 10.0
"""A worker that never says that it is ready, and lived so long, could start."""


class ReloadFailed(LogaggError, RuntimeError):
    """A fresh worker did not become ready; the old ones serve on.

    Attributes:
        trace: The traceback that ended the fresh worker; empty when there was none.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


@dataclass(slots=True, eq=False)
class Slot:
    """One place for a worker.

    Attributes:
        number: 1…N.
        worker: Its worker; None between two.
        restarts: How often a worker was started again because one had ended.
        last_exit: How the last one ended.
        retired: No further worker is to be started.
        result: The exit that ended the slot for good.
        refused: Why the system had no room for a worker at the last try.
    """

    number: int
    worker: Member | None = None
    restarts: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    last_exit: Exit | None = None
    retired: bool = False
    starts_at: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    result: Exit | None = None
    refused: str = ""
    task: asyncio.Task[None] | None = None


class Slots:
    """All slots of a run.

    Args:
        launch: Starts a worker for a slot number.
        prepare_stop: Awaited before a worker gets its signal: connections that are on
            their way to it are let through.
        gave_up: Called when the program cannot start.
        changed: Called whenever a slot has ended for good.
    """

    def __init__(
        self,
        options: RunOptions,
        report: Reporter,
        *,
        launch: Callable[[int], Member],
        prepare_stop: Callable[[Member], Awaitable[None]],
        gave_up: Callable[[Slot], None],
        changed: Callable[[], None],
    ) -> None:
        self.options = options
        self.by_number: dict[int, Slot] = {}
        self.finished: list[Exit] = []
        self.deaf: list[Member] = []
        self.fresh: set[Member] = set()
        self.stopping = False
        self._report = report
        self._launch = launch
        self._prepare_stop = prepare_stop
        self._gave_up = gave_up
        self._changed = changed
        self._replacing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()

    def members(self) -> list[Member]:
        """The current worker of each slot that has one."""
        return [s.worker for s in self.by_number.values() if s.worker is not None]

    def open(self, number: int | None = None) -> Slot:
        """Make a slot, by default with the lowest free number, and keep it filled.

        Raises:
            StartFailed: The system has no room for its worker; there is no slot then.
        """
        if number is None:
            number = next(n for n in range(1, 10**6) if n not in self.by_number)
        slot = Slot(number)
        self.by_number[number] = slot
        try:
            self._fill(slot)
        except StartFailed:
            del self.by_number[number]
            raise
        slot.task = self._loop.create_task(self._keep(slot), name=f"slot {number}")
        return slot

    def _fill(self, slot: Slot) -> Member:
        slot.starts_at = 0.0
        slot.worker = self._launch(slot.number)
        slot.refused = ""
        return slot.worker

    async def _refill(self, slot: Slot) -> Member | None:
        """Start the next worker; None when the slot is to end.

        That the system has no room now says nothing about the program: it is tried for
        as long as it takes.
        """
        while slot.worker is None:
            try:
                return self._fill(slot)
            except StartFailed as error:
                slot.refused = str(error)
            delay = slot.backoff.next_delay()
            message = f"{slot.refused}; next try in {delay:.1f} s"
            self._report.say("error", "start_failed", message, slot=slot.number)
            if not await self._pause(slot, delay):
                return None
        return slot.worker

    async def _pause(self, slot: Slot, delay: float) -> bool:
        """Wait until the slot's next start is due; whether there is to be one."""
        slot.starts_at = self._loop.time() + delay
        slot.wake.clear()
        await within(slot.wake, delay)
        return not (slot.retired or self.stopping)

    async def _keep(self, slot: Slot) -> None:
        while True:
            member = slot.worker or await self._refill(slot)
            if member is None:
                break
            await member.over.wait()
            if slot.worker is not member:
                continue  # it was replaced: watch the fresh one
            slot.worker = None
            slot.last_exit = member.exit
            delay = self._verdict(slot, member)
            if delay is None:
                break
            if not await self._pause(slot, delay):
                break
            slot.restarts += 1
        slot.result = slot.last_exit
        if self.by_number.get(slot.number) is slot:
            del self.by_number[slot.number]
        if slot.result is not None:
            self.finished.append(slot.result)
        self._changed()

    def _verdict(self, slot: Slot, member: Member) -> float | None:
        """Seconds until the next worker starts; None when the slot is done."""
        end = member.exit
        assert end is not None
        again = 1
        if slot.retired or self.stopping or (end.voluntary and not member.recycle):
            self._report.exited(member, what_next="", again=again)
            return None
        restart = self.options.restart
        proven = member.listened or member.said_ready or end.uptime >= PROVEN_UPTIME
        if end.code == 0 and not member.recycle:
            done = restart is not Restart.ALWAYS and not member.listened
            done = done or restart is Restart.NEVER
            delay = 0.0 if end.uptime > 1.0 else 0.5
        elif member.recycle:
            done, delay = False, 0.0
        else:
            done = restart is Restart.NEVER
            delay = slot.backoff.failed(
                self._loop.time(), uptime=end.uptime, ready=proven
            )
        if done:
            self._report.exited(member, what_next="", again=member.crash_count)
            return None
        exhausted = slot.backoff.exhausted
        if exhausted and self.options.on_failure is OnFailure.EXIT:
            self._report.exited(member, what_next="", again=member.crash_count)
            self._gave_up(slot)
            return None
        if exhausted:
            delay = LONGEST_DELAY
        what_next = f"; next start in {delay:.1f} s" if delay else "; started again"
        self._report.exited(member, what_next=what_next, again=member.crash_count)
        return delay

    # ---- replacing ----------------------------------------------------------------

    async def reload(self) -> int:
        """Replace all workers, one at a time, each fresh one ready first.

        Returns:
            How many were replaced.

        Raises:
            ReloadFailed: A fresh worker failed; the remaining old ones serve on.
        """
        async with self._replacing:
            count = 0
            for number in sorted(self.by_number):
                slot = self.by_number.get(number)
                if slot is None or slot.retired:
                    continue
                await self._replace(slot, "replaced by a reload")
                count += 1
            return count

    async def replace(self, slot: Slot, why: str) -> None:
        """Replace one slot's worker, the fresh one ready first.

        Raises:
            ReloadFailed: The fresh worker failed; the old one serves on.
        """
        async with self._replacing:
            if self.by_number.get(slot.number) is slot and not slot.retired:
                await self._replace(slot, why)

    async def _replace(self, slot: Slot, why: str) -> None:
        old = slot.worker
        if old is None:
            slot.backoff.reset()
            slot.refused = ""
            slot.wake.set()
            while (  # noqa: ASYNC110
                slot.worker is None
                and not slot.refused
                and slot.task
                and not slot.task.done()
            ):
                await asyncio.sleep(0.01)
            fresh = slot.worker
            if fresh is None:
                raise ReloadFailed(slot.refused or f"slot {slot.number} has ended")
        else:
            try:
                fresh = self._launch(slot.number)
            except StartFailed as error:
                message = f"{error}; the old worker serves on"
                self._report.say("error", "reload_failed", message, slot=slot.number)
                raise ReloadFailed(message) from error
            self.fresh.add(fresh)
        try:
            await asyncio.wait_for(
                fresh.settled.wait(), self.options.ready_timeout or None
            )
        except TimeoutError:
            pass
        finally:
            self.fresh.discard(fresh)
        if self.stopping or slot.retired:
            await self.stop(fresh, why)
            raise ReloadFailed("the run is stopping")
        if fresh.state != "ready":
            raise await self._refuse(slot, fresh, old)
        if old is None:
            return
        if old.state == "dead" and slot.worker is not old:
            # The keeper has started another one meanwhile: the fresh one stays.
            other = slot.worker
            slot.worker = fresh
            if other is not None:
                await self.stop(other, why)
            return
        slot.worker = fresh
        slot.backoff.reset()
        await self.stop(old, why)
        self._report.exited(old, what_next=f"; pid {fresh.pid} took over", again=1)
        slot.last_exit = old.exit

    async def _refuse(
        self, slot: Slot, fresh: Member, old: Member | None
    ) -> ReloadFailed:
        if fresh.state != "dead":
            fresh.why = f"not ready within {self.options.ready_timeout} s"
            fresh.signal(signal.SIGKILL, group=True)
            await fresh.over.wait()
        if old is not None:
            self._report.exited(fresh, what_next="", again=fresh.crash_count)
        assert fresh.exit is not None
        left = "the old worker serves on" if old else "the slot goes on trying"
        if not fresh.trace:
            left += "; what it said is in the log"
        message = (
            f"slot {slot.number}: the fresh worker (pid {fresh.pid}) did not become "
            f"ready: {fresh.exit.how}, {fresh.exit.reason}; {left}"
        )
        self._report.say("error", "reload_failed", message, slot=slot.number)
        return ReloadFailed(message, fresh.trace)

    # ---- stopping -----------------------------------------------------------------

    async def stop(
        self,
        member: Member,
        why: str,
        timeout: float | None = None,  # noqa: ASYNC109 - bounds several waits
    ) -> None:
        """Ask one worker to end: hooks, one TERM, the deadline, then KILL."""
        limit = self.options.stop_timeout if timeout is None else timeout
        if member.state == "dead":
            return
        deadline = self._loop.time() + limit
        first = member.state != "stopping"
        member.state, member.voluntary = "stopping", True
        member.why = member.why or why
        member.settled.set()
        if first:
            await self._prepare_stop(member)
            member.tell({"k": "shutdown", "timeout": limit})
            if member.hooks:
                await within(member.hooks_done, deadline - self._loop.time())
            member.signal(signal.SIGTERM)
        if await within(member.over, deadline - self._loop.time()):
            return
        if member.state != "dead":
            self.deaf.append(member)
            self._report.say(
                "error",
                "deaf",
                f"worker {member.slot} (pid {member.pid}) did not end within {limit:g} s "
                "after TERM: killed",
                slot=member.slot,
                of_pid=member.pid,
            )
            member.why = f"did not end within {limit:g} s after TERM"
            member.signal(signal.SIGKILL, group=True)
            await member.over.wait()

    async def retire(self, slot: Slot, why: str, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Stop a slot for good."""
        slot.retired = True
        slot.wake.set()
        if slot.worker is not None:
            await self.stop(slot.worker, why, timeout)
        if slot.task is not None:
            await asyncio.wait([slot.task])

    async def scale(self, count: int) -> None:
        """Have so many slots: open further ones, or retire those with high numbers."""
        while len(self.by_number) < count:
            self.open()
        surplus = sorted(self.by_number)[count:]
        await asyncio.gather(
            *(self.retire(self.by_number[n], "scaled down") for n in surplus)
        )

    async def stop_all(self, why: str) -> None:
        """Stop all workers together."""
        self.stopping = True
        fresh = list(self.fresh)
        await asyncio.gather(
            *(self.retire(slot, why) for slot in list(self.by_number.values())),
            *(self.stop(member, why) for member in fresh),
        )

    def kill_all(self, why: str) -> None:
        """End all workers now."""
        for member in [*self.members(), *self.fresh]:
            member.voluntary = True
            member.why = member.why or why
            member.signal(signal.SIGKILL, group=True)


async def within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; whether it came in so many seconds."""
    try:
        await asyncio.wait_for(event.wait(), max(seconds, 0.0))
    except TimeoutError:
        return False
    return True
