"""Slots and their workers: states, restarts, replacing, scaling; no real process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from logagg.core.backoff import Backoff
from logagg.errors import ReloadFailed
from logagg.supervisor.process.worker_process import (
    Crash,
    Exit,
    WorkerProcess,
    WorkerState,
)
from logagg.supervisor.run_options import OnFailure, Restart
from logagg.supervisor.slots.reconciler import Slots


class Worker(WorkerProcess):
    """A worker without a process: it ends by `end` or by a signal."""

    pids = itertools.count(1000)

    def __init__(
        self,
        slot: int,
        changed: Callable[[Any], None] = lambda _worker: None,
        *,
        obeys: bool = True,
    ) -> None:
        self.slot, self.pid = slot, next(self.pids)
        self.state, self.exit = WorkerState.STARTING, None
        self.voluntary = self.recycle = self.listened = self.was_ready = False
        self.why, self.hooks, self.crash = "", 0, Crash()
        self.hooks_done, self.reaped = asyncio.Event(), asyncio.Event()
        self._owner = SimpleNamespace(changed=changed)  # type: ignore[assignment]
        self.peer = SimpleNamespace(send=lambda _frame: None)  # type: ignore[assignment]
        self.obeys = obeys
        self.killed = False

    def end(self, code: int = 0, uptime: float = 2.0) -> None:
        """Let the process end."""
        if self.exit is None:
            self.exit = Exit(code, None, self.voluntary, self.why, uptime, 0)
            self._move("reaped")
            self.reaped.set()
            self._owner.changed(self)

    def signal(self, signum: int, *, group: bool = False) -> None:
        """End, at TERM only when the worker obeys."""
        self.killed = self.killed or signum == 9
        if self.obeys or signum == 9:
            self.end()


class Scene:
    """Slots with a launcher that notes its workers."""

    def __init__(self, restart: Restart = Restart.FAILURE, count: int = 1) -> None:
        self.launched: list[Worker] = []
        self.events: list[tuple[str, str]] = []
        self.obeys = True
        self.slots = Slots(
            SimpleNamespace(  # type: ignore[arg-type]
                restart=restart,
                on_failure=OnFailure.EXIT,
                ready_timeout=5.0,
                stop_timeout=5.0,
            ),
            SimpleNamespace(  # type: ignore[arg-type]
                record=lambda _l, event, text, **_: self.events.append((event, text)),
                record_exit=lambda worker, following="", **_: self.events.append(
                    ("exit", f"{worker.pid}{following}")
                ),
            ),
            launch=self.launch,
            prepare_stop=self.prepare_stop,
            gave_up=lambda slot, _trace: self.events.append(
                ("gave_up", str(slot.number))
            ),
            changed=lambda: None,
        )
        for _ in range(count):
            self.slots.open()
            self.launched[-1].become_ready()

    def launch(self, slot: int) -> Worker:
        """Make a worker."""
        worker = Worker(slot, self.slots.observe, obeys=self.obeys)
        self.launched.append(worker)
        return self.launched[-1]

    async def prepare_stop(self, _worker: WorkerProcess, _run_stops: bool) -> None:
        """End nothing first."""

    async def over(self) -> None:
        """Stop all workers."""
        self.slots.stop_all("over")
        await self.slots.ended()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the loop run until something is so."""
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene on a loop of its own."""

    async def run() -> None:
        await scene()

    asyncio.run(run())


# ---- states -----------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["ready", "stop", "term", "reaped"])
@pytest.mark.parametrize("state", list(WorkerState))
def test_states_follow_the_table(state: WorkerState, event: str) -> None:
    """Ready once, stopped once, then dead for good; each end of a start is noticed."""

    async def scene() -> None:
        worker = Worker(1)
        worker.state = state
        following = {
            ("starting", "ready"): "ready",
            ("starting", "stop"): "draining",
            ("ready", "stop"): "draining",
            ("draining", "term"): "stopping",
        }.get((state.value, event), "dead" if event == "reaped" else None)
        assert worker._move(event) == (following is not None)
        assert worker.state == (following or state)

    play(scene)


def test_a_worker_that_is_to_stop_does_not_become_ready() -> None:
    """Nor does it begin to stop twice."""

    async def scene() -> None:
        worker = Worker(1)
        assert worker.begin_stop("scaled down")
        assert not worker.become_ready()
        assert not worker.begin_stop("again")
        assert worker.why == "scaled down"
        assert not worker.is_active

    play(scene)


# ---- scaling ----------------------------------------------------------------------------


def test_one_more_than_what_is_being_opened_is_one_more_than_was_wanted() -> None:
    """Slots are opened one by one; a step that comes meanwhile adds to the goal."""

    async def scene() -> None:
        scene = Scene()
        slots = scene.slots
        opening = asyncio.ensure_future(slots.scale(5))
        while slots.count < 2:
            await asyncio.sleep(0)
        assert slots.count < slots.wanted == 5
        await slots.scale(slots.wanted + 1)
        await opening
        assert slots.count == slots.wanted == 6
        await slots.scale(2)
        assert slots.count == slots.wanted == 2
        await scene.over()

    play(scene)


# ---- restarts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restart", "code", "listened", "again"),
    [
        (Restart.FAILURE, 0, False, False),
        (Restart.FAILURE, 0, True, True),
        (Restart.FAILURE, 1, False, True),
        (Restart.ALWAYS, 0, False, True),
        (Restart.NEVER, 1, False, False),
        (Restart.NEVER, 0, True, False),
    ],
)
def test_what_ends_is_started_again_as_the_policy_has_it(
    restart: Restart, code: int, listened: bool, again: bool
) -> None:
    """A script that is done ends its slot; a server and a failure do not."""

    async def scene() -> None:
        scene = Scene(restart)
        scene.launched[0].listened = listened
        scene.launched[0].end(code)
        if again:
            await scene.until(lambda: len(scene.launched) == 2)
            assert scene.slots.by_number[1].restarts == 1
        else:
            await scene.until(lambda: not scene.slots.by_number)
            assert [e.code for e in scene.slots.finished] == [code]
        await scene.over()

    play(scene)


@pytest.mark.parametrize("was_ready", [True, False])
def test_only_failures_before_ready_mean_that_the_program_cannot_start(
    was_ready: bool,
) -> None:
    """A worker that was ready and failed is restarted with back-off, without limit."""

    async def scene() -> None:
        scene = Scene()
        scene.slots.by_number[1].backoff = Backoff(0.001, 0.001, limit=5, window=60.0)
        for count in range(1, 6):
            await scene.until(lambda count=count: len(scene.launched) == count)
            worker = scene.launched[-1]
            worker.was_ready = False
            if was_ready:
                worker.state = WorkerState.STARTING
                worker.become_ready()
            worker.end(1, uptime=3.0)
        await scene.until(
            lambda: len(scene.launched) == 6 or ("gave_up", "1") in scene.events
        )
        assert (("gave_up", "1") in scene.events) == (not was_ready)
        await scene.over()

    play(scene)


# ---- replacing --------------------------------------------------------------------------


def test_the_old_worker_works_until_the_fresh_one_is_ready() -> None:
    """Then it is stopped, and the slot keeps the fresh one."""

    async def scene() -> None:
        scene = Scene()
        old = scene.launched[0]
        reload = asyncio.ensure_future(scene.slots.reload())
        await scene.until(lambda: len(scene.launched) == 2)
        assert old.exit is None
        scene.launched[1].become_ready()
        assert await reload == 1
        assert old.exit is not None
        assert scene.slots.by_number[1].worker is scene.launched[1]
        await scene.over()

    play(scene)


def test_a_fresh_worker_that_fails_leaves_the_old_one() -> None:
    """The error says so."""

    async def scene() -> None:
        scene = Scene()
        reload = asyncio.ensure_future(scene.slots.reload())
        await scene.until(lambda: len(scene.launched) == 2)
        scene.launched[1].end(1)
        with pytest.raises(ReloadFailed, match="old worker serves on"):
            await reload
        assert scene.slots.by_number[1].worker is scene.launched[0]
        await scene.over()

    play(scene)


def test_a_slot_that_ends_during_a_reload_keeps_no_worker() -> None:
    """The old one is done: the fresh one is stopped, not left without supervision."""

    async def scene() -> None:
        scene = Scene()
        reload = asyncio.ensure_future(scene.slots.reload())
        await scene.until(lambda: len(scene.launched) == 2)
        old, fresh = scene.launched
        old.end(0)
        await scene.until(lambda: not scene.slots.by_number)
        assert await reload == 0
        assert fresh.exit is not None

    play(scene)


def test_an_old_worker_that_dies_during_a_reload_is_succeeded() -> None:
    """By the fresh one that starts already; no third is started."""

    async def scene() -> None:
        scene = Scene()
        reload = asyncio.ensure_future(scene.slots.reload())
        await scene.until(lambda: len(scene.launched) == 2)
        old, fresh = scene.launched
        old.end(1)
        assert scene.slots.by_number[1].worker is fresh
        fresh.become_ready()
        assert await reload == 1
        await scene.over()
        assert len(scene.launched) == 2

    play(scene)


def test_a_fresh_worker_that_dies_while_the_old_one_stops_is_replaced() -> None:
    """At once: nobody waits for the old one's end first."""

    async def scene() -> None:
        scene = Scene()
        old = scene.launched[0]
        old.obeys = False
        reload = asyncio.ensure_future(scene.slots.reload())
        await scene.until(lambda: len(scene.launched) == 2)
        scene.launched[1].become_ready()
        await scene.until(lambda: old.state == "stopping")
        scene.launched[1].end(1)
        await scene.until(lambda: len(scene.launched) == 3)
        assert old.exit is None
        old.end()
        assert await reload == 1
        await scene.over()

    play(scene)


def test_a_second_signal_kills_a_worker_that_is_being_replaced() -> None:
    """It is in no slot any more, and still part of the run."""

    async def scene() -> None:
        scene = Scene()
        old = scene.launched[0]
        old.obeys = False
        reload = asyncio.ensure_future(scene.slots.reload())
        await scene.until(lambda: len(scene.launched) == 2)
        scene.launched[1].become_ready()
        await scene.until(lambda: old.state == "stopping")
        scene.slots.kill_all("second signal")
        await reload
        assert old.killed

    play(scene)


# ---- scaling ----------------------------------------------------------------------------


def test_slots_that_are_leaving_can_be_wanted_again() -> None:
    """4, then 2, then 4 again before the two have ended: 4, numbered as before."""

    async def scene() -> None:
        scene = Scene(count=4)
        leaving = scene.launched[2:4]
        for worker in leaving:
            worker.obeys = False
        down = asyncio.ensure_future(scene.slots.scale(2))
        await scene.until(lambda: leaving[0].state == "stopping")
        assert scene.slots.count == 2
        await scene.slots.scale(4)
        await down
        assert scene.slots.count == 4
        assert len(scene.launched) == 4
        for worker in leaving:
            worker.end()
        assert sorted(scene.slots.by_number) == [1, 2, 3, 4]
        await scene.until(lambda: len(scene.launched) == 6)
        await scene.over()

    play(scene)


def test_a_stop_while_workers_are_started_starts_no_more() -> None:
    """What comes in between two starts is handled there."""

    async def scene() -> None:
        scene = Scene(count=0)
        up = asyncio.ensure_future(scene.slots.scale(100))
        await asyncio.sleep(0)
        scene.slots.stop_all("TERM")
        await asyncio.gather(up, scene.slots.ended())
        assert len(scene.launched) <= 2

    play(scene)


def test_a_worker_that_does_not_end_is_killed_and_noted() -> None:
    """After the time limit of the stop."""

    async def scene() -> None:
        scene = Scene()
        worker = scene.launched[0]
        worker.obeys = False
        await scene.slots.retire(scene.slots.by_number[1], "scaled down", 0.05)
        assert worker.killed
        assert scene.slots.killed == [worker]
        assert scene.events[0][0] == "stop_timeout"

    play(scene)
