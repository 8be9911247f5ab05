"""Replacing workers, one slot at a time: the fresh one is ready before the old stops."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from logagg.core.event import Event
from logagg.errors import ReloadFailed, StartFailed
from logagg.supervisor.process.worker_process import WorkerProcess, WorkerState
from logagg.supervisor.run_options import RunOptions
from logagg.supervisor.slots.slot import Slot
from logagg.supervisor.supervisor_events import SupervisorEvents

__all__ = ["Replacements"]


@dataclass(slots=True, eq=False)
class _Replacement:
    """One slot's change of workers, under way or waiting for its turn."""

    slot: Slot
    why: str
    done: asyncio.Future[bool]
    fresh: WorkerProcess | None = None
    deadline: float = 0.0
    old: WorkerProcess | None = None  # it was there when the fresh one began
    taken_over: bool = False


class SlotOwner(Protocol):
    """The slots, as replacing needs them."""

    options: RunOptions
    events: SupervisorEvents
    by_number: dict[int, Slot]
    stopping: bool
    loop: asyncio.AbstractEventLoop

    def launch(self, slot: Slot) -> WorkerProcess:
        """Start a worker, or raise `StartFailed`."""

    def refill(self, slot: Slot) -> None:
        """Start the worker of a slot that has none, if there is room."""

    def stop(self, worker: WorkerProcess, why: str) -> None:
        """Begin to end a worker."""


class Replacements:
    """The replacements of a run, in the order in which they were asked for."""

    def __init__(self, slots: SlotOwner) -> None:
        self._slots = slots
        self._queue: deque[_Replacement] = deque()

    def add(self, slot: Slot, why: str) -> asyncio.Future[bool]:
        """Ask for a slot's worker to be replaced; see `Slots.replace`."""
        change = _Replacement(slot, why, self._slots.loop.create_future())
        self._queue.append(change)
        return change.done

    def deadline(self) -> float:
        """When the fresh worker is to be ready; 0 when none is waited for."""
        return self._queue[0].deadline if self._queue else 0.0

    def converge(self) -> None:
        """Advance the first replacement; the next one begins when it is over."""
        while self._queue:
            first = self._queue[0]
            try:
                outcome = self._advance(first)
            except ReloadFailed as error:
                if not first.done.done():
                    first.done.set_exception(error)
            else:
                if outcome is None:
                    return
                if not first.done.done():
                    first.done.set_result(outcome)
            self._queue.popleft()

    def _advance(self, change: _Replacement) -> bool | None:
        """Whether the worker was replaced; None: not yet known.

        Raises:
            ReloadFailed: It was not, and the slot goes on with what it has.
        """
        slot, slots = change.slot, self._slots
        if change.taken_over:
            return self._has_taken_over(change)
        if slots.stopping:
            raise ReloadFailed("the run is stopping")
        if slots.by_number.get(slot.number) is not slot:
            return False
        if change.fresh is None:
            if slot.retired:
                return False
            change.fresh = self._start_fresh(change)
            change.deadline = slots.loop.time() + (slots.options.ready_timeout or 1e9)
        fresh = change.fresh
        if fresh.exit is not None:
            if fresh.exit.voluntary:
                return False
            raise self._failed(change, fresh)
        if fresh.state is WorkerState.READY and not slot.retired:
            self._take_over(change, fresh)
            return self._has_taken_over(change)
        if 0 < change.deadline <= slots.loop.time():
            change.deadline = 0.0
            fresh.why = f"not ready within {slots.options.ready_timeout:g} s"
            fresh.signal(signal.SIGKILL, group=True)
        return None

    def _start_fresh(self, change: _Replacement) -> WorkerProcess:
        """Start the worker that is to take over, at once in a slot that has none."""
        slot, slots = change.slot, self._slots
        change.old = slot.worker
        if slot.worker is None:
            slot.backoff.reset()
            slots.refill(slot)
            if slot.worker is None:
                raise ReloadFailed(slot.refused)
            return slot.worker
        try:
            slot.fresh = slots.launch(slot)
        except StartFailed as error:
            message = f"{error}; the old worker serves on"
            slots.events.record("error", Event.RELOAD_FAILED, message, slot=slot.number)
            raise ReloadFailed(message) from error
        return slot.fresh

    def _take_over(self, change: _Replacement, fresh: WorkerProcess) -> None:
        """Let a fresh worker that is ready have the slot, and stop the old one."""
        slot, slots = change.slot, self._slots
        change.taken_over, change.deadline = True, 0.0
        change.old = None
        if slot.fresh is fresh:  # or the old one has died, and it has the slot already
            change.old, slot.worker, slot.fresh = slot.worker, fresh, None
            slot.backoff.reset()
        if change.old is not None:
            slots.stop(change.old, change.why)

    def _has_taken_over(self, change: _Replacement) -> bool | None:
        old, fresh = change.old, change.fresh
        if old is None:
            return True
        if old.exit is None:
            return None
        assert fresh is not None
        self._slots.events.record_exit(old, f"; pid {fresh.pid} took over")
        if change.slot.worker is fresh:
            change.slot.last_exit = old.exit
        return True

    def _failed(self, change: _Replacement, fresh: WorkerProcess) -> ReloadFailed:
        assert fresh.exit is not None
        serves = change.old is not None and change.old.exit is None
        left = "the old worker serves on" if serves else "the slot goes on trying"
        if not fresh.crash.trace:
            left += "; its output is in the log"
        message = (
            f"slot {change.slot.number}: the fresh worker (pid {fresh.pid}) did not "
            f"become ready: {fresh.exit.how}, {fresh.exit.reason}; {left}"
        )
        number = change.slot.number
        self._slots.events.record("error", Event.RELOAD_FAILED, message, slot=number)
        return ReloadFailed(message, fresh.crash.trace)
