"""The task queue: who gets a task, and how each ends; no real process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from logagg.errors import ClosedError, TaskFailed, WireError, WorkerDied, WouldBlock
from logagg.supervisor.child.task_runner import TaskInfo
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.process.worker_process import Exit
from logagg.supervisor.tasks import TaskQueue

INFO = TaskInfo("work")


class Worker:
    """A worker that notes its questions."""

    def __init__(self, slot: int) -> None:
        self.slot = self.pid = slot
        self.name = str(slot)
        self.asked: list[AwaitableFuture[Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.exit: Exit | None = None
        self.is_reachable = True
        self.tasks_done = self.max_tasks = 0
        self.peer = SimpleNamespace(ask=self.ask, send=self.sent.append)

    @property
    def is_active(self) -> bool:
        """Whether it is alive."""
        return self.exit is None

    def ask(self, _question: dict[str, Any]) -> AwaitableFuture[Any]:
        """Note a task."""
        answer: AwaitableFuture[Any] = AwaitableFuture()
        answer.number = len(self.asked) + 1
        self.asked.append(answer)
        return answer

    def answer(self, **content: Any) -> None:
        """Answer the latest task."""
        self.asked[-1].resolve((content, -1))

    def hang_up(self) -> None:
        """Close the channel and live on, as an `exec` does."""
        self.is_reachable = False
        for answer in self.asked:
            answer.fail(WorkerDied("gone"))

    def die(self, queue: TaskQueue) -> None:
        """End as a process does: its questions fail, then it is reaped."""
        self.exit = Exit(None, 9, False, "killed from outside", 1.0, 0)
        for answer in self.asked:
            answer.fail(WorkerDied("gone"))
        queue.died(self)  # type: ignore[arg-type]


def play(
    scene: Callable[[TaskQueue, Callable[..., Any], list[Any]], Awaitable[None]],
    max_pending: int = 0,
) -> None:
    """Run a scene with a queue, a `submit`, and what was recycled or aborted."""

    async def run() -> None:
        noted: list[Any] = []
        queue = TaskQueue(
            asyncio.get_running_loop(),
            max_pending,
            lambda worker, why: noted.append((worker.slot, why)),
            lambda worker: noted.append((worker.slot, "abort")),
        )

        def submit(info: TaskInfo = INFO, *args: Any) -> AwaitableFuture[Any]:
            return queue.submit(info, args, {}, block=False)

        await scene(queue, submit, noted)

    asyncio.run(run())


def test_an_idle_worker_pulls_and_its_answer_asks_for_the_next() -> None:
    """Each task goes to one worker; results and errors come to their callers."""

    async def scene(queue: TaskQueue, submit: Any, _noted: list[Any]) -> None:
        first, second, third = submit(), submit(), submit()
        worker: Any = Worker(1)
        await asyncio.sleep(0)
        queue.idle(worker)
        assert len(worker.asked) == 1
        worker.answer(b=[1])
        assert first.result(0) == [1]
        assert len(worker.asked) == 2
        worker.answer(type="KeyError", message="'x'", trace="Traceback …")
        with pytest.raises(TaskFailed, match="KeyError"):
            second.result(0)
        worker.answer()
        assert third.result(0) is None
        assert queue.progress() == {
            "waiting": 0, "running": 0, "idle_workers": 1, "done": 2, "failed": 1,
            "retried": 0, "cancelled": 0, "timed_out": 0,
        }  # fmt: skip

    play(scene)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_dead_worker_costs_its_own_task_at_most(retries: int) -> None:
    """It fails, or runs again elsewhere; those that wait are not touched."""

    async def scene(queue: TaskQueue, submit: Any, _noted: list[Any]) -> None:
        first, second = submit(TaskInfo("work", retries)), submit()
        one, two = Worker(1), Worker(2)
        await asyncio.sleep(0)
        queue.idle(one)  # type: ignore[arg-type]
        one.die(queue)
        queue.idle(two)  # type: ignore[arg-type]
        two.answer(b="a")
        if retries:
            assert first.result(0) == "a"
            two.answer(b="b")
            assert second.result(0) == "b"
        else:
            error = first.exception(0)
            assert isinstance(error, WorkerDied)
            assert (error.slot, error.signal) == (1, 9)
            assert second.result(0) == "a"

    play(scene)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_that_closes_its_channel_costs_its_own_task_at_most(
    retries: int,
) -> None:
    """Though it lives on; an idle one gets no task any more."""

    async def scene(queue: TaskQueue, submit: Any, _noted: list[Any]) -> None:
        first, second, third = Worker(1), Worker(2), Worker(3)
        for worker in (first, second, third):
            queue.idle(worker)  # type: ignore[arg-type]
        second.hang_up()
        future = submit(TaskInfo("work", retries))
        await asyncio.sleep(0)
        first.hang_up()
        await asyncio.sleep(0)
        if retries:
            third.answer(b=2)
            assert await future == 2
        else:
            with pytest.raises(WorkerDied, match="closed its channel while it ran"):
                await future
        assert not second.asked

    play(scene)


def test_a_task_that_was_given_up_is_cancelled_in_its_worker() -> None:
    """By a time limit or the caller; its late answer only asks for the next task."""

    async def scene(queue: TaskQueue, submit: Any, _noted: list[Any]) -> None:
        slow, cancelled = submit(TaskInfo("work", timeout=0.01)), submit()
        worker: Any = Worker(1)
        await asyncio.sleep(0)
        queue.idle(worker)
        await asyncio.sleep(0.05)
        assert isinstance(slow.exception(0), TimeoutError)
        assert worker.sent == [{"k": "cancel", "q": 1}]
        await queue.finished(worker)
        worker.answer(cancelled=True)
        finished = asyncio.ensure_future(queue.finished(worker))
        await asyncio.sleep(0.05)
        assert not finished.done()
        cancelled.cancel()
        await finished
        await asyncio.sleep(0)
        assert worker.sent[1:] == [{"k": "cancel", "q": 2}]

    play(scene)


def test_a_worker_that_did_its_share_gets_no_further_task() -> None:
    """Unless it could not be replaced: then it goes on."""

    async def scene(queue: TaskQueue, submit: Any, noted: list[Any]) -> None:
        for _ in range(3):
            submit()
        worker: Any = Worker(1)
        worker.max_tasks = 1
        await asyncio.sleep(0)
        queue.idle(worker)
        worker.answer(b=1)
        assert len(worker.asked) == 1
        assert noted == [(1, "did its number of tasks")]
        queue.go_on(worker)
        assert len(worker.asked) == 2
        queue.abandon()

    play(scene)


def test_what_cannot_be_done_is_refused_or_fails_at_the_end() -> None:
    """Too many pending, arguments that are not JSON, a queue that is closed."""

    async def scene(queue: TaskQueue, submit: Any, _noted: list[Any]) -> None:
        with pytest.raises(WireError, match="NaN"):
            submit(INFO, float("nan"))
        waiting = submit()
        with pytest.raises(WouldBlock, match="1 tasks are pending"):
            submit()
        await asyncio.sleep(0)
        queue.abandon()
        with pytest.raises(ClosedError):
            waiting.result(0)
        with pytest.raises(ClosedError):
            submit()

    play(scene, max_pending=1)
