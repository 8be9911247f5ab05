"""`logagg.Cluster`: workers, messages and tasks under a program of your own.

It is Node's `cluster` for Python: the program that makes a Cluster is the primary, the
workers run a script (often the same file, which asks `logagg.is_primary`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from logagg.errors import ClosedError, LogaggError, StartFailed
from logagg.supervisor.child.task_runner import task_info
from logagg.supervisor.control import RunControlServer, RunRequests, status
from logagg.supervisor.messaging.event_handlers import EventHandlers
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.process.page_process import PageProcess
from logagg.supervisor.process.worker_launcher import no_room
from logagg.supervisor.process.worker_process import WorkerProcess
from logagg.supervisor.run_context import ENDED, EVENTS
from logagg.supervisor.run_options import RunOptions, run_options
from logagg.supervisor.supervisor import Supervisor

__all__ = ["Cluster"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class Cluster:
    """Workers that run a program, and the primary's side of messages and tasks.

    Use it in one of three ways:

        cluster.serve_forever()          # until a signal or stop(); in the main thread
        with cluster: …                  # beside your code; stopped at the end
        async with cluster: …            # the same in asyncio

    Args:
        target: A script, or a command as a list of words; None: workers that only run
            tasks (functions of importable modules).
        options: The options of `logagg run`, as keywords (`workers=4`,
            `stop_timeout="10s"`, `max_rss="500MB"`; plain numbers are seconds and
            bytes), and three that only a program can use: `choose` (a callback
            `(slots, connection) -> slot or None`), `env` (a dict) and `max_pending`
            (how many tasks may wait). `RunOptions` is the list.

    Raises:
        ConfigError: An option is wrong; the message names it.
    """

    def __init__(
        self,
        target: str | Path | Sequence[str] | RunOptions | None = None,
        **options: Any,
    ) -> None:
        self.options = (
            target if isinstance(target, RunOptions) else run_options(target, **options)
        )
        # Without this, those that are forked before the start are all there are.
        self._counts_workers = isinstance(target, RunOptions) or "workers" in options
        self._handlers = EventHandlers(EVENTS)
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._started: AwaitableFuture[None] = AwaitableFuture()
        self._forks = 0  # before the start
        self._to_stop = False
        self._ended = False
        self._unanswered: set[AwaitableFuture[Any]] = set()
        self.exit_status: int | None = None
        self._signal = 0

    # ---- life ---------------------------------------------------------------------

    def serve_forever(self, *, adopt_orphans: bool = False) -> int:
        """Supervise until a signal, `stop()`, or until no worker is left.

        Call it in the main thread: it handles TERM, INT, HUP, USR1, TTIN, TTOU and TSTP.
        Children that the program started otherwise, and their exit statuses, are left
        to it.

        Args:
            adopt_orphans: Become the parent of what workers leave running, and reap it;
                for a process that starts no other children, such as PID 1.

        Returns:
            The exit status that `logagg run` would end with.
        """
        lasting = self.options.workers == 0 and not self._forks
        asyncio.run(self._live(own_process=True, adopt=adopt_orphans, lasting=lasting))
        assert self.exit_status is not None
        return 128 + self._signal if self._signal else self.exit_status

    @property
    def ended_by(self) -> int:
        """The signal that ended `serve_forever`, or 0."""
        return self._signal

    async def _live(
        self, *, own_process: bool, lasting: bool, adopt: bool = False
    ) -> None:
        options = self.options
        if self._forks:
            count = self._forks + (options.workers if self._counts_workers else 0)
            options = msgspec.structs.replace(options, workers=count)
        control: RunControlServer | None = None
        watching: asyncio.Task[None] | None = None
        page: PageProcess | None = None
        try:
            page = PageProcess(options.web) if options.web else None
            supervisor, control = await self._begin(
                options, page, own_process=own_process, adopt=adopt, lasting=lasting
            )
            self._supervisor = supervisor
            if self._to_stop:
                supervisor.stop()
            life = asyncio.ensure_future(supervisor.run())
            begun = asyncio.ensure_future(supervisor.ready.wait())
            await asyncio.wait([life, begun], return_when="FIRST_COMPLETED")
            begun.cancel()
            if self.options.watch and not life.done():
                from logagg.supervisor.reloader import watch  # only with --watch

                watching = supervisor.context.spawn(watch(supervisor))
            if supervisor.ready.is_set():
                self._started.resolve(None)
            status_, self._signal = await life
            self.exit_status = int(status_)
        except BaseException as error:
            self._started.fail(error)
            raise
        finally:
            self._end()
            if watching is not None:
                watching.cancel()
            if control is not None:
                control.close()
            if page is not None:
                await asyncio.to_thread(page.end)

    async def _begin(
        self,
        options: RunOptions,
        page: PageProcess | None,
        *,
        own_process: bool,
        adopt: bool,
        lasting: bool,
    ) -> tuple[Supervisor, RunControlServer]:
        try:
            supervisor = Supervisor(
                options,
                self._handlers,
                own_process=own_process,
                adopt=adopt,
                lasting=lasting,
            )
            control = RunControlServer(RunRequests(supervisor).answer)
            await control.start()
            if page is not None:
                page.start(supervisor.logs.path)
        except LogaggError:
            raise
        except OSError as error:
            raise StartFailed(f"cannot start: {no_room(error)}") from error
        return supervisor, control

    def _end(self) -> None:
        self._ended = True
        for answer in list(self._unanswered):
            answer.fail(ClosedError("the cluster has ended"))

    def __enter__(self) -> Self:
        def live() -> None:
            try:
                asyncio.run(self._live(own_process=False, lasting=True))
            except BaseException:
                if not self._started.done():
                    raise

        self._thread = threading.Thread(target=live, name="logagg-cluster")
        self._thread.start()
        try:
            self._started.result()
        except BaseException:  # Ctrl-C too: nothing would stop it later
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        assert self._thread is not None
        self._thread.join()

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._live(own_process=False, lasting=True))
        try:
            await self._started
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.stop()
        assert self._task is not None
        await self._task

    def stop(self) -> None:
        """Stop all workers gracefully; the life methods return when they have ended.

        Called again, or after the end, it does nothing more.
        """
        self._to_stop = True
        run = self._supervisor
        if run is not None and not self._ended:
            with contextlib.suppress(RuntimeError):  # it ends just now
                run.loop.call_soon_threadsafe(run.stop)

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise ClosedError(
                "the cluster does not run yet: use serve_forever() or a with block"
            )
        if self._ended:
            raise ClosedError("the cluster has ended")
        return self._supervisor

    # ---- workers ------------------------------------------------------------------

    @property
    def workers(self) -> list[WorkerProcess]:
        """The living workers, by slot."""
        workers = self._running().slots.workers()
        return sorted(workers, key=lambda worker: worker.slot)

    def fork(self, count: int = 1) -> AwaitableFuture[None]:
        """Open further slots; each is kept filled like the first ones.

        Before the start it sets how many workers there will be: in addition to
        `workers=`, or, without that, alone. In a handler of "exit" it opens none for a
        worker that is started again anyway. When the cluster stops, the result is
        `ClosedError`.
        """
        if self._supervisor is None and not self._ended:
            self._forks += count
            return self._started
        run = self._running()
        ended = ENDED.get()
        run.forking += 1  # a run whose last worker has ended waits for this one
        return self._call(lambda run: run.fork(count, ended))

    def scale(self, count: int) -> AwaitableFuture[Any]:
        """Have so many workers; resolved when surplus ones have ended.

        When the cluster stops, the result is `ClosedError`.
        """
        return self._do(lambda run: run.scale(count))

    def reload(self) -> AwaitableFuture[Any]:
        """Replace all workers one at a time, each fresh one ready first.

        The result is how many were replaced, or `ReloadFailed`: the old ones serve on.
        """
        return self._do(lambda run: run.reload())

    def disconnect(
        self, worker: WorkerProcess, timeout: float | None = None
    ) -> AwaitableFuture[Any]:
        """Stop one worker for good: hooks, TERM, the deadline, KILL."""

        async def retire(run: Supervisor) -> None:
            slot = run.slots.by_number.get(worker.slot)
            if slot is not None and slot.worker is worker:
                await run.slots.retire(slot, "disconnected", timeout)

        return self._do(retire)

    def status(self) -> dict[str, Any]:
        """The run's state, as `logagg status --json` shows it."""
        return status(self._running())

    # ---- events and messages ------------------------------------------------------

    def on(self, event: str) -> Callable[[F], F]:
        """Register a handler, as a decorator: `@cluster.on("exit")`.

        Events and what handlers get: fork, online, ready, disconnect, unresponsive
        (worker); listening (worker, address); exit (worker, exit); message (worker,
        message, sock); request (worker, message), whose return value is the answer. A
        handler may take fewer arguments. All run on the cluster's event loop: be
        brief, or be a coroutine function.
        """

        def register(function: F) -> F:
            self._handlers.add(event, function)
            return function

        return register

    def broadcast(self, message: Any) -> AwaitableFuture[None]:
        """Send a message to every worker; resolved when all their handlers have run."""
        return self._do(lambda run: _wait(run.router.broadcast(message)))

    # ---- tasks --------------------------------------------------------------------

    def submit(
        self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any
    ) -> AwaitableFuture[Any]:
        """Have an idle worker run a task.

        Args:
            function: A function decorated with `@logagg.task()`, a task's name, or a
                function at the top of a module that workers can import.
            args: Plain JSON values.
            kwargs: Plain JSON values.

        Returns:
            A future, also awaitable. Its errors: `TaskFailed` (it raised), `WorkerDied`
            (its worker died), `TimeoutError`.

        Raises:
            ConfigError: Workers could not find the function.
            WireError: An argument is not JSON.
            WouldBlock: `max_pending` is reached and an event loop runs here; outside of
                one the call waits.
            ClosedError: The cluster was shut down.
        """
        block = asyncio._get_running_loop() is None
        queue = self._running().tasks
        return queue.submit(task_info(function), args, kwargs, block=block)

    def map(
        self,
        function: Callable[..., Any] | str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """As `concurrent.futures.Executor.map`: results in order, first error raised."""
        end = None if timeout is None else time.monotonic() + timeout
        futures = [
            self.submit(function, *args) for args in zip(*iterables, strict=False)
        ]

        def results() -> Iterator[Any]:
            try:
                for future in futures:
                    left = None if end is None else end - time.monotonic()
                    yield future.result(left)
            finally:
                for future in futures:
                    future.cancel()

        return results()

    async def run(
        self,
        function: Callable[..., Any] | str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109  piscina's and asyncio's way
        **kwargs: Any,
    ) -> Any:
        """Have an idle worker run a task and wait for its result.

        Raises:
            TimeoutError: It took longer than `timeout` seconds, waiting included; the
                task is cancelled.
        """
        future = self.submit(function, *args, **kwargs)
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout)

    def shutdown(
        self, wait: bool = True, *, cancel_futures: bool = False
    ) -> AwaitableFuture[None]:
        """Take no more tasks, as `concurrent.futures.Executor.shutdown`.

        Workers stay until the cluster is stopped. With `wait` it blocks until no task
        is left; inside an event loop it never does: await the result for that.
        """
        done = self._do(lambda run: run.tasks.shut_down(cancel_futures=cancel_futures))
        if wait and asyncio._get_running_loop() is None:
            done.result()
        return done

    # ---- to the loop --------------------------------------------------------------

    def _call(self, function: Callable[[Supervisor], Any]) -> AwaitableFuture[Any]:
        async def call(run: Supervisor) -> Any:
            return function(run)

        return self._do(call)

    def _do(self, function: Callable[[Supervisor], Any]) -> AwaitableFuture[Any]:
        run = self._running()
        answer: AwaitableFuture[Any] = AwaitableFuture()

        async def work() -> None:
            try:
                answer.resolve(await function(run))
            except Exception as error:  # noqa: BLE001  the caller's to handle
                answer.fail(error)

        self._unanswered.add(answer)
        answer.add_done_callback(self._unanswered.discard)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            run.loop.call_soon_threadsafe(lambda: run.context.spawn(work()))
        if self._ended:  # perhaps after it has failed what was asked before
            self._end()
        return answer


async def _wait(pending: AwaitableFuture[T]) -> T:
    return await pending


def end_by_signal(signum: int) -> None:
    """End this process by the signal that stopped the run, so that callers see it."""
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signal.Signals(signum))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])  # see `run_signals.hold`
    sys.exit(128 + signum)  # PID 1 is not ended by a signal's default action
