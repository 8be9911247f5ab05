"""A seeded simulation of a run: requests, signals, messages, crashes, pauses in any order.

At every step each living worker is supervised; when all is calm, what is wanted is there
and each receipt has come; a stop ends within its bound and leaves none. See `run_world`.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from run_world import STOP_TIMEOUT, Connection, JumpingLoop, World

from logagg.errors import ClosedError, ReloadFailed, StartFailed
from logagg.supervisor.messaging import outbox
from logagg.supervisor.process import worker_process
from logagg.supervisor.process.worker_process import WorkerState
from logagg.supervisor.run_options import Restart

STEPS = 25
QUICK = 40


async def _play(seed: int) -> None:
    world = World(seed)
    slots = world.slots
    world.ask(slots.scale(world.wanted))
    for _ in range(world.chance.randint(0, STEPS)):
        await world.step()
    if world.chance.random() < 0.5:
        await _is_calm(world)
    started = world.loop.time()
    launched = len(world.launched)
    slots.stop_all("TERM")
    if world.chance.random() < 0.3:  # a second signal
        await asyncio.sleep(world.chance.choice([0.0, 0.5]))
        slots.kill_all("killed")
        bound = 1.0
    else:
        bound = STOP_TIMEOUT + 0.1
    with pytest.raises(ClosedError):
        slots.open()
    await slots.ended()
    assert world.loop.time() - started <= bound
    world.tasks.abandon()
    world.judge()
    assert len(world.launched) == launched
    assert all(worker.exit is not None for worker in world.launched)
    for outcome in await asyncio.gather(*world.asked, return_exceptions=True):
        known = (asyncio.CancelledError, ReloadFailed, StartFailed, ClosedError)
        assert not isinstance(outcome, BaseException) or isinstance(outcome, known)
    assert sorted(w.pid for w in world.exits) == [w.pid for w in world.launched]


async def _is_calm(world: World) -> None:
    """From now nothing fails: every request is answered and every slot is filled."""
    world.calm = True
    for worker in world.launched:
        worker.feed()
        hung_up = worker.program.connection.closed  # it cannot become ready any more
        if worker.paused or not worker.obeys or (hung_up and not worker.was_ready):
            worker.end(None, 9)
        worker.program.after(0.5, worker.program.ready)
    await asyncio.wait([*world.asked, asyncio.ensure_future(asyncio.sleep(30.0))])
    await world.slots.scale(4)
    await asyncio.sleep(200.0)
    for worker in world.slots.workers():
        world.send(worker)  # type: ignore[arg-type]
        worker.program.talk()  # type: ignore[attr-defined]
    world.broadcast()
    for worker in world.slots.workers():
        if world.chance.random() < 0.3:
            worker.hang_up()  # type: ignore[attr-defined]
    for _ in range(5):
        world.submit()
    await asyncio.sleep(200.0)
    if any(worker.is_reachable for worker in world.slots.workers()):
        assert all(task.done() for _, _, task in world.submitted)
    assert all(each.receipt.done() for each in world.sent)
    for worker in world.launched:
        if worker.exit is None:
            assert all(receipt.done() for receipt in worker.program.receipts)
    assert world.slots.count == len(world.slots.by_number)
    if world.slots.options.restart is Restart.ALWAYS:
        assert world.slots.count == 4
    for slot in world.slots.by_number.values():
        assert slot.worker is not None
        assert slot.worker.state is WorkerState.READY
        assert slot.fresh is None
    assert world.slots.living == set(world.slots.workers())


@pytest.mark.parametrize("first", [0, pytest.param(QUICK, marks=pytest.mark.slow)])
def test_nothing_in_any_order_breaks_a_run(
    request: Any, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """So many seeds as `--seeds` says; the one that fails is printed."""
    monkeypatch.setattr(worker_process, "FrameConnection", Connection)
    monkeypatch.setattr(outbox, "WINDOW_MESSAGES", 4)
    monkeypatch.setattr(outbox, "WINDOW_BYTES", 4000)
    monkeypatch.setattr(outbox, "WAITING_BYTES", 8000)
    first = request.config.getoption("--first-seed") or first
    count = request.config.getoption("--seeds") or 300 - first
    descriptors = len(os.listdir("/proc/self/fd"))
    for seed in range(first, first + count if first else QUICK):
        random.seed(seed)
        loop = JumpingLoop()
        failures: list[Any] = []  # of callbacks: the loop swallows what they raise
        loop.set_exception_handler(lambda _, found, to=failures: to.append(found))
        try:
            with asyncio.Runner(loop_factory=lambda loop=loop: loop) as runner:
                runner.run(_play(seed))
            assert not failures
        except BaseException:
            print(f"seed {seed}")
            raise
    assert len(os.listdir("/proc/self/fd")) == descriptors
