"""`logagg.Cluster`: workers, messages and tasks under a program of your own.

It is Node's `cluster` for Python: the program that makes a Cluster is the primary, the
workers run a script (often the same file, which asks `logagg.is_primary`).
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from logagg.errors import ClosedError, ConfigError, LogaggError, StartFailed
from logagg.supervisor.address import Address, Policy
from logagg.supervisor.control import Control, status
from logagg.supervisor.cores import usable_cores
from logagg.supervisor.handlers import Handlers
from logagg.supervisor.member import Member
from logagg.supervisor.options import OnFailure, Program, Restart, RunOptions
from logagg.supervisor.pending import Pending
from logagg.supervisor.sticky import Sticky
from logagg.supervisor.supervisor import EVENTS, Supervisor, no_room
from logagg.supervisor.taskwork import task_info

__all__ = ["Cluster", "run_options"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def run_options(
    target: str | Path | Sequence[str] | None = None,
    *,
    workers: int | str | None = None,
    module: bool = False,
    sinks: Sequence[str] = (),
    level: str | None = None,
    bind: str | Sequence[str] = (),
    policy: str = "kernel",
    sticky: str | None = None,
    restart: str = "failure",
    on_failure: str = "exit",
    **rest: Any,
) -> RunOptions:
    """Turn what users write into checked options.

    Raises:
        ConfigError: Something is wrong; the message names it.
    """
    words = (str(target),) if isinstance(target, (str, Path)) else tuple(target or ())
    program = Program.of(words, module=module) if words else Program("tasks")
    if workers in (None, "max"):
        count = usable_cores()
    else:
        try:
            count = int(str(workers))
        except ValueError:
            raise ConfigError(
                f"workers {workers!r}: expected a number or max"
            ) from None
    binds = (bind,) if isinstance(bind, str) else tuple(bind)
    extra: dict[str, Any] = {}
    if sinks:
        extra["sinks"] = tuple(sinks)
    if level is not None:
        extra["level"] = level
    return RunOptions(
        program=program,
        workers=count,
        binds=tuple(Address.parse(text) for text in binds),
        policy=_enum(Policy, "policy", policy),
        sticky=None if sticky is None else Sticky.parse(sticky),
        restart=_enum(Restart, "restart", restart),
        on_failure=_enum(OnFailure, "on_failure", on_failure),
        **extra,
        **rest,
    )


def _enum(kind: type[T], name: str, value: str) -> T:
    try:
        return kind(value)  # type: ignore[call-arg]
    except ValueError:
        known = ", ".join(str(each.value) for each in kind)  # type: ignore[attr-defined]
        raise ConfigError(f"{name} {value!r}: expected one of {known}") from None


class Cluster:
    """Workers that run a program, and the primary's side of messages and tasks.

    Use it in one of three ways:

        cluster.serve_forever()          # until a signal or stop(); in the main thread
        with cluster: …                  # beside your code; stopped at the end
        async with cluster: …            # the same in asyncio

    Args:
        target: A script, or a command as a list of words; None: workers that only run
            tasks (functions of importable modules).
        workers: How many; "max" or None: all usable cores.
        module: `target` names a module, as in `python -m`.
        sinks: Sink URLs; the console on stdout by default.
        level: The level of the workers' root loggers, INFO by default.
        bind: Addresses to listen on and share: ":8000", "unix:app.sock", …
        policy: "kernel", "reuseport" or "rr".
        sticky: "ip", "cookie:NAME", "header:NAME", "query:NAME"; implies rr.
        restart: "failure", "always" or "never".
        on_failure: "exit" or "keep", when the program cannot start.
        rest: `choose` (a callback `(slots, connection) -> slot or None`), `env`,
            `stop_timeout` (30 s), `ready_timeout` (60 s), `unresponsive_timeout` (60 s,
            0: off), `max_rss_bytes`, `max_age`, `max_connections`, `max_tasks`,
            `max_pending`; 0 means no limit.

    Raises:
        ConfigError: An option is wrong; the message names it.
    """

    def __init__(
        self,
        target: str | Path | Sequence[str] | None = None,
        *,
        workers: int | str | None = None,
        **rest: Any,
    ) -> None:
        try:
            self.options = run_options(target, workers=workers, **rest)
        except TypeError as error:
            raise ConfigError(f"Cluster: {error}") from None
        self._handlers = Handlers(EVENTS)
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._started: Pending[None] = Pending()
        self.exit_status: int | None = None
        self._signal = 0

    # ---- life ---------------------------------------------------------------------

    def serve_forever(self) -> int:
        """Supervise until a signal, `stop()`, or until no worker is left.

        Call it in the main thread: it handles TERM, INT, HUP, USR1, TTIN and TTOU.

        Returns:
            The exit status that `logagg run` would end with.
        """
        asyncio.run(self._live(own_process=True, lasting=self.options.workers == 0))
        assert self.exit_status is not None
        return 128 + self._signal if self._signal else self.exit_status

    @property
    def ended_by(self) -> int:
        """The signal that ended `serve_forever`, or 0."""
        return self._signal

    async def _live(self, *, own_process: bool, lasting: bool) -> None:
        control: Control | None = None
        watching: asyncio.Task[None] | None = None
        try:
            try:
                supervisor = Supervisor(
                    self.options,
                    self._handlers,
                    own_process=own_process,
                    lasting=lasting,
                )
                control = Control(supervisor)
                await control.start()
            except LogaggError:
                raise
            except OSError as error:
                raise StartFailed(f"cannot start: {no_room(error)}") from error
            self._supervisor = supervisor
            life = asyncio.ensure_future(supervisor.run())
            begun = asyncio.ensure_future(supervisor.ready.wait())
            await asyncio.wait([life, begun], return_when="FIRST_COMPLETED")
            begun.cancel()
            if self.options.watch and not life.done():
                from logagg.supervisor.watch import watch

                watching = supervisor.spawn(watch(supervisor))
            if supervisor.ready.is_set():
                self._started.settle(None)
            status_, self._signal = await life
            self.exit_status = int(status_)
        except BaseException as error:
            self._started.fail(error)
            raise
        finally:
            if watching is not None:
                watching.cancel()
            if control is not None:
                control.close()

    def __enter__(self) -> Self:
        def live() -> None:
            try:
                asyncio.run(self._live(own_process=False, lasting=True))
            except BaseException:
                if not self._started.done():
                    raise

        self._thread = threading.Thread(target=live, name="logagg-cluster")
        self._thread.start()
        self._started.result()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
        assert self._thread is not None
        self._thread.join()

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._live(own_process=False, lasting=True))
        await self._started
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.stop()
        assert self._task is not None
        await self._task

    def stop(self) -> None:
        """Stop all workers gracefully; the life methods return when they have ended."""
        run = self._running()
        run.loop.call_soon_threadsafe(run.stop)

    def _running(self) -> Supervisor:
        if self._supervisor is None:
            raise ClosedError(
                "the cluster does not run yet: use serve_forever() or a with block"
            )
        return self._supervisor

    # ---- workers ------------------------------------------------------------------

    @property
    def workers(self) -> list[Member]:
        """The living workers, by slot."""
        members = self._running().slots.members()
        return sorted(members, key=lambda member: member.slot)

    def fork(self, count: int = 1) -> Pending[None]:
        """Open further slots; each is kept filled like the first ones."""
        return self._call(lambda run: [run.slots.open() for _ in range(count)])

    def scale(self, count: int) -> Pending[Any]:
        """Have so many workers; settled when surplus ones have ended."""
        return self._do(lambda run: run.scale(count))

    def reload(self) -> Pending[Any]:
        """Replace all workers one at a time, each fresh one ready first.

        The result is how many were replaced, or `ReloadFailed`: the old ones serve on.
        """
        return self._do(lambda run: run.reload())

    def disconnect(self, worker: Member, timeout: float | None = None) -> Pending[Any]:
        """Stop one worker for good: hooks, TERM, the deadline, KILL."""

        async def retire(run: Supervisor) -> None:
            slot = run.slots.by_number.get(worker.slot)
            if slot is not None and slot.worker is worker:
                await run.slots.retire(slot, "disconnected", timeout)

        return self._do(retire)

    def status(self) -> dict[str, Any]:
        """What `logagg status --json` shows."""
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

    def broadcast(self, message: Any) -> Pending[None]:
        """Send a message to every worker; settled when all their handlers have run."""
        return self._do(lambda run: _wait(run.router.broadcast(message)))

    # ---- tasks --------------------------------------------------------------------

    def submit(
        self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
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
        import time

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

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, as `concurrent.futures.Executor.shutdown`.

        Workers stay until the cluster is stopped.
        """
        run = self._running()
        closed = self._call(lambda r: r.tasks.close(cancel_futures=cancel_futures))
        if wait:
            closed.result()
            run.tasks.wait_until_empty()

    # ---- to the loop --------------------------------------------------------------

    def _call(self, function: Callable[[Supervisor], Any]) -> Pending[Any]:
        async def call(run: Supervisor) -> Any:
            return function(run)

        return self._do(call)

    def _do(self, function: Callable[[Supervisor], Any]) -> Pending[Any]:
        run = self._running()
        answer: Pending[Any] = Pending()

        async def work() -> None:
            try:
                answer.settle(await function(run))
            except Exception as error:  # noqa: BLE001  the caller's to handle
                answer.fail(error)

        run.loop.call_soon_threadsafe(run.spawn, work())
        return answer


async def _wait(pending: Pending[T]) -> T:
    return await pending


def end_by_signal(signum: int) -> None:
    """End this process by the signal that stopped the run, so that callers see it."""
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signal.Signals(signum))
    sys.exit(128 + signum)  # PID 1 is not ended by a signal's default action
