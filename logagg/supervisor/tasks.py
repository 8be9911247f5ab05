"""The task queue: idle workers pull, a dead worker costs only its own task.

A task is a question of the worker's peer; its answer is the task's result, and asks for
the next task. All state belongs to the supervisor's loop, except `_room`, which bounds
how many may be pending and is what callers of `submit` wait for. An answer that comes
after its caller gave up is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from logagg.errors import ClosedError, TaskFailed, WorkerDied, WouldBlock
from logagg.supervisor.child.task_runner import TaskInfo
from logagg.supervisor.messaging.frames import encode_value
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.process.worker_process import WorkerProcess

__all__ = ["TaskQueue"]

CANCEL_GRACE = 5.0


@dataclass(slots=True, eq=False)
class _Task:
    info: TaskInfo
    call: Any
    future: AwaitableFuture[Any]
    retries: int
    worker: WorkerProcess | None = None
    answer: AwaitableFuture[Any] | None = None
    timer: asyncio.TimerHandle | None = None
    given_up: bool = False


class TaskQueue:
    """The tasks of one run.

    Args:
        max_pending: How many may be submitted and not done; 0: any number.
        recycle: Called with a worker that has done its share, and with that reason.
        abort: Called with a worker whose cancelled task does not end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        max_pending: int,
        recycle: Callable[[WorkerProcess, str], None],
        abort: Callable[[WorkerProcess], None],
    ) -> None:
        self._loop = loop
        self._max_pending = max_pending
        self._recycle = recycle
        self._abort = abort
        self._waiting: deque[_Task] = deque()
        self._running: set[_Task] = set()
        self._idle: deque[WorkerProcess] = deque()
        self._counts: Counter[str] = Counter()
        self._room = threading.Condition()
        self._empty: list[asyncio.Future[None]] = []
        self._pending = 0
        self._closed = False

    # ---- for callers, any thread --------------------------------------------------

    def submit(
        self,
        info: TaskInfo,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        block: bool,
    ) -> AwaitableFuture[Any]:
        """Queue a task.

        Raises:
            WireError: The arguments are not JSON.
            WouldBlock: `max_pending` are pending, and `block` is false.
            ClosedError: The queue takes no more.
        """
        call = {"name": info.name, "args": list(args), "kwargs": kwargs}
        encoded = encode_value(call)
        with self._room:
            if self._max_pending and self._pending >= self._max_pending:
                if not block:
                    raise WouldBlock(f"{self._pending} tasks are pending, the limit")
                self._room.wait_for(
                    lambda: self._pending < self._max_pending or self._closed
                )
            if self._closed:
                raise ClosedError("the cluster takes no more tasks: it is shut down")
            self._pending += 1
        job_box: list[_Task] = []
        future: AwaitableFuture[Any] = AwaitableFuture(
            lambda: self._loop.call_soon_threadsafe(self._cancelled, job_box[0])
        )
        job = _Task(info, encoded, future, info.retries)
        job_box.append(job)
        future.add_done_callback(self._one_less)
        self._loop.call_soon_threadsafe(self._queued, job)
        return future

    def _one_less(self, _future: object) -> None:
        with self._room:
            self._pending -= 1
            self._room.notify_all()
        if self._empty:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._check_empty)

    # ---- on the loop --------------------------------------------------------------

    async def shut_down(self, *, cancel_futures: bool) -> None:
        """Take no more tasks, and wait until none is pending."""
        self.close(cancel_futures=cancel_futures)
        empty = self._loop.create_future()
        self._empty.append(empty)
        self._check_empty()
        await empty

    def _check_empty(self) -> None:
        while self._empty and not self._pending:
            waiter = self._empty.pop()
            if not waiter.done():
                waiter.set_result(None)

    def _queued(self, job: _Task) -> None:
        if self._closed and not job.future.done():
            job.future.fail(ClosedError("the cluster has ended"))
            return
        self._waiting.append(job)
        self._match()

    def _match(self) -> None:
        while self._waiting and self._idle:
            job = self._waiting.popleft()
            if job.future.done():
                continue
            worker = self._idle.popleft()
            if not (worker.is_active and worker.is_reachable):
                self._waiting.appendleft(job)
                continue
            self._run_on(worker, job)

    def _run_on(self, worker: WorkerProcess, job: _Task) -> None:
        job.worker = worker
        self._running.add(job)
        if job.info.timeout is not None:
            job.timer = self._loop.call_later(job.info.timeout, self._timed_out, job)
        job.answer = worker.peer.ask({"k": "task", "b": job.call})
        job.answer.add_done_callback(lambda done: self._answered(worker, job, done))

    def idle(self, worker: WorkerProcess) -> None:
        """Give a worker that has none a task, now or later."""
        if worker.max_tasks and worker.tasks_done >= worker.max_tasks:
            self._recycle(worker, "did its number of tasks")
            return
        if worker not in self._idle:
            self._idle.append(worker)
        self._match()

    def go_on(self, worker: WorkerProcess) -> None:
        """A worker that has done its share could not be replaced: it goes on."""
        if worker.max_tasks and worker.tasks_done >= worker.max_tasks:
            worker.max_tasks = 0
            self.idle(worker)

    def _answered(self, worker: WorkerProcess, job: _Task, answer: Any) -> None:
        """Pass a task's result to its caller, and the next task to the worker."""
        if answer.exception() is not None:
            self._lost(worker, job)
            self._match()
            return
        frame, _ = answer.result()
        worker.tasks_done += 1
        self._running.discard(job)
        if job.timer is not None:
            job.timer.cancel()
        if not job.given_up and not job.future.done():
            if "type" in frame:
                self._counts["failed"] += 1
                error = TaskFailed(frame["type"], frame["message"], frame["trace"])
                job.future.fail(error)
            else:
                self._counts["done"] += 1
                job.future.resolve(frame.get("b"))
        self.idle(worker)

    def died(self, worker: WorkerProcess) -> None:
        """Note that a worker is dead: its task fails with `WorkerDied`, or runs again."""
        if worker in self._idle:
            self._idle.remove(worker)
        for job in [job for job in self._running if job.worker is worker]:
            self._lost(worker, job)
        self._match()

    def _lost(self, worker: WorkerProcess, job: _Task) -> None:
        """Run a task again, or fail it: its worker is dead or has closed its channel."""
        self._running.discard(job)
        if job.timer is not None:
            job.timer.cancel()
        if job.future.done() or job.given_up:
            return
        if job.retries > 0:
            job.retries -= 1
            self._counts["retried"] += 1
            self._waiting.appendleft(job)
            return
        self._counts["failed"] += 1
        end = worker.exit
        how = "closed its channel" if end is None else f"ended with {end.how}"
        error = WorkerDied(
            f"worker {worker.name} (pid {worker.pid}) {how} while it ran "
            f"{job.info.name}"
        )
        error.slot = worker.slot
        error.signal = None if end is None else end.signal
        job.future.fail(error)

    def _timed_out(self, job: _Task) -> None:
        self._counts["timed_out"] += 1
        job.future.fail(
            TimeoutError(f"task {job.info.name} took longer than {job.info.timeout} s")
        )
        self._give_up(job)

    def _cancelled(self, job: _Task) -> None:
        self._counts["cancelled"] += 1
        if job in self._waiting:
            self._waiting.remove(job)
        else:
            self._give_up(job)

    def _give_up(self, job: _Task) -> None:
        """Cancel a task that is running; `_insist` when the worker does not end it."""
        worker = job.worker
        if worker is None or job not in self._running or job.given_up:
            return
        job.given_up = True
        if job.timer is not None:
            job.timer.cancel()
        assert job.answer is not None
        worker.peer.send({"k": "cancel", "q": job.answer.number})
        self._loop.call_later(CANCEL_GRACE, self._insist, job, worker)

    def _insist(self, job: _Task, worker: WorkerProcess) -> None:
        if job in self._running and worker.exit is None:
            self._abort(worker)

    def close(self, *, cancel_futures: bool) -> None:
        """Take no more tasks; those that wait are cancelled or still run."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        if cancel_futures:
            while self._waiting:
                self._waiting.popleft().future.cancel()

    def abandon(self) -> None:
        """The run is over: nothing that is left can be done any more."""
        self.close(cancel_futures=False)
        error = ClosedError("the cluster ended before the task was done")
        for job in [*self._waiting, *self._running]:
            job.future.fail(error)
        self._waiting.clear()
        self._running.clear()

    async def finished(self, worker: WorkerProcess) -> None:
        """Wait until no caller waits for a task that the worker runs."""
        for job in [job for job in self._running if job.worker is worker]:
            done = asyncio.Event()

            def ended(_future: object, done: asyncio.Event = done) -> None:
                self._loop.call_soon_threadsafe(done.set)

            job.future.add_done_callback(ended)
            await done.wait()

    def progress(self) -> dict[str, int]:
        """Counts for `status`."""
        outcomes = ("done", "failed", "retried", "cancelled", "timed_out")
        return {
            "waiting": len(self._waiting),
            "running": len(self._running),
            "idle_workers": len(self._idle),
            **{outcome: self._counts[outcome] for outcome in outcomes},
        }
