"""The task queue: idle workers pull, a dead worker costs only its own task.

All state belongs to the supervisor's loop, except `_room`, which bounds how much may
be pending and is what callers of `submit` wait for. Answers are matched by number; one
that comes after its caller gave up is dropped.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from logagg.errors import ClosedError, LogaggError, WorkerDied, WouldBlock
from logagg.supervisor.channel import Frame, encode
from logagg.supervisor.member import Member
from logagg.supervisor.pending import Pending
from logagg.supervisor.taskwork import TaskInfo

__all__ = ["TaskFailed", "TaskQueue"]

CANCEL_GRACE = 5.0


class TaskFailed(LogaggError, RuntimeError):
    """A task raised, or returned what JSON cannot carry.

    Attributes:
        type: The name of the exception's class in the worker.
        message: Its text.
        traceback: The worker's traceback, as text.
    """

    def __init__(self, type: str, message: str, traceback: str) -> None:  # noqa: A002
        super().__init__(f"{type}: {message}")
        self.type = type
        self.message = message
        self.traceback = traceback
        self.add_note(f"in the worker:\n{traceback.rstrip()}")


@dataclass(slots=True, eq=False)
class _Job:
    number: int
    info: TaskInfo
    data: bytes
    future: Pending[Any]
    retries: int
    worker: Member | None = None
    timer: asyncio.TimerHandle | None = None
    given_up: bool = False


@dataclass(slots=True)
class _Counts:
    done: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    timed_out: int = 0


@dataclass(slots=True)
class _State:
    waiting: deque[_Job] = field(default_factory=deque)
    running: dict[int, _Job] = field(default_factory=dict)
    idle: deque[Member] = field(default_factory=deque)
    counts: _Counts = field(default_factory=_Counts)


class TaskQueue:
    """The tasks of one run.

    Args:
        max_pending: How many may be submitted and not done; 0: any number.
        recycle: Called with a worker that has done its share.
        abort: Called with a worker whose cancelled task does not end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        max_pending: int,
        recycle: Callable[[Member], None],
        abort: Callable[[Member], None],
    ) -> None:
        self._loop = loop
        self._max_pending = max_pending
        self._recycle = recycle
        self._abort = abort
        self._state = _State()
        self._room = threading.Condition()
        self._pending = 0
        self._next = 0
        self._closed = False

    # ---- for callers, any thread --------------------------------------------------

    def submit(
        self,
        info: TaskInfo,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        block: bool,
    ) -> Pending[Any]:
        """Queue a task.

        Raises:
            WireError: The arguments are not JSON.
            WouldBlock: `max_pending` are pending, and `block` is false.
            ClosedError: The queue takes no more.
        """
        with self._room:
            self._next += 1
            number = self._next
            frame = {"k": "task", "task": number, "name": info.name}
            data = encode({**frame, "args": list(args), "kwargs": kwargs})
            if self._max_pending and self._pending >= self._max_pending:
                if not block:
                    raise WouldBlock(f"{self._pending} tasks are pending, the limit")
                self._room.wait_for(
                    lambda: self._pending < self._max_pending or self._closed
                )
            if self._closed:
                raise ClosedError("the cluster takes no more tasks: it is shut down")
            self._pending += 1
        job_box: list[_Job] = []
        future: Pending[Any] = Pending(
            lambda: self._loop.call_soon_threadsafe(self._cancelled, job_box[0])
        )
        job = _Job(number, info, data, future, info.retries)
        job_box.append(job)
        future.add_done_callback(self._one_less)
        self._loop.call_soon_threadsafe(self._queued, job)
        return future

    def _one_less(self, _future: object) -> None:
        with self._room:
            self._pending -= 1
            self._room.notify_all()

    def wait_until_empty(self) -> None:
        """Block until no task is pending."""
        with self._room:
            self._room.wait_for(lambda: self._pending == 0)

    # ---- on the loop --------------------------------------------------------------

    def _queued(self, job: _Job) -> None:
        if self._closed and not job.future.done():
            job.future.fail(ClosedError("the cluster has ended"))
            return
        self._state.waiting.append(job)
        self._match()

    def _match(self) -> None:
        state = self._state
        while state.waiting and state.idle:
            job = state.waiting.popleft()
            if job.future.done():
                continue
            worker = state.idle.popleft()
            if worker.state not in ("starting", "ready"):
                state.waiting.appendleft(job)
                continue
            job.worker = worker
            state.running[job.number] = job
            if job.info.timeout is not None:
                job.timer = self._loop.call_later(
                    job.info.timeout, self._timed_out, job
                )
            if worker.link is not None:
                worker.link.transmit(job.data, [])

    def idle(self, worker: Member) -> None:
        """A worker asks for a task."""
        if worker.max_tasks and worker.tasks_done >= worker.max_tasks:
            self._recycle(worker)
            return
        if worker not in self._state.idle:
            self._state.idle.append(worker)
        self._match()

    def go_on(self, worker: Member) -> None:
        """A worker that has done its share could not be replaced: it goes on."""
        if worker.max_tasks and worker.tasks_done >= worker.max_tasks:
            worker.max_tasks = 0
            self.idle(worker)

    def result(self, worker: Member, frame: Frame) -> None:
        """A worker has an answer."""
        worker.tasks_done += 1
        job = self._state.running.pop(int(frame["task"]), None)
        if job is None:
            return
        if job.timer is not None:
            job.timer.cancel()
        if job.given_up or job.future.done():
            return
        if "type" in frame:
            self._state.counts.failed += 1
            job.future.fail(TaskFailed(frame["type"], frame["message"], frame["trace"]))
        else:
            self._state.counts.done += 1
            job.future.settle(frame.get("value"))

    def died(self, worker: Member) -> None:
        """A worker is dead: its task fails with `WorkerDied`, or runs again."""
        state = self._state
        if worker in state.idle:
            state.idle.remove(worker)
        for job in [job for job in state.running.values() if job.worker is worker]:
            del state.running[job.number]
            if job.timer is not None:
                job.timer.cancel()
            if job.future.done() or job.given_up:
                continue
            if job.retries > 0:
                job.retries -= 1
                state.counts.retried += 1
                state.waiting.appendleft(job)
                continue
            state.counts.failed += 1
            assert worker.exit is not None
            error = WorkerDied(
                f"worker {worker.slot} (pid {worker.pid}) ended with {worker.exit.how} "
                f"while it ran {job.info.name}"
            )
            error.slot = worker.slot
            error.signal = worker.exit.signal
            job.future.fail(error)
        self._match()

    def _timed_out(self, job: _Job) -> None:
        self._state.counts.timed_out += 1
        job.future.fail(
            TimeoutError(f"task {job.info.name} took longer than {job.info.timeout} s")
        )
        self._give_up(job)

    def _cancelled(self, job: _Job) -> None:
        self._state.counts.cancelled += 1
        if job in self._state.waiting:
            self._state.waiting.remove(job)
        else:
            self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        """Nobody waits for the answer now: ask the worker to stop, then make it."""
        worker = job.worker
        if worker is None or job.number not in self._state.running or job.given_up:
            return
        job.given_up = True
        if job.timer is not None:
            job.timer.cancel()
        worker.tell({"k": "cancel", "task": job.number})
        self._loop.call_later(CANCEL_GRACE, self._insist, job, worker)

    def _insist(self, job: _Job, worker: Member) -> None:
        if job.number in self._state.running and worker.state != "dead":
            self._abort(worker)

    def close(self, *, cancel_futures: bool) -> None:
        """Take no more tasks; those that wait are cancelled or still run."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        if cancel_futures:
            while self._state.waiting:
                self._state.waiting.popleft().future.cancel()

    def abandon(self) -> None:
        """The run is over: nothing that is left can be done any more."""
        self.close(cancel_futures=False)
        error = ClosedError("the cluster ended before the task was done")
        for job in [*self._state.waiting, *self._state.running.values()]:
            job.future.fail(error)
        self._state.waiting.clear()
        self._state.running.clear()

    def running_on(self, worker: Member) -> bool:
        """Whether the worker has a task now that somebody waits for."""
        running = self._state.running.values()
        return any(job.worker is worker and not job.given_up for job in running)

    def progress(self) -> dict[str, int]:
        """Counts for `status`."""
        counts = self._state.counts
        return {
            "waiting": len(self._state.waiting),
            "running": len(self._state.running),
            "idle_workers": len(self._state.idle),
            "done": counts.done,
            "failed": counts.failed,
            "retried": counts.retried,
            "cancelled": counts.cancelled,
            "timed_out": counts.timed_out,
        }
