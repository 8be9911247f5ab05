"""Runner of one sink: shapes, queues and writes the stream for it, and retries.

Theory of operation
-------------------
`put` shapes a batch and adds it to the backlog (`logagg.fanout.backlog`), from which a
task writes batch after batch. The table of its states: `logagg.fanout.runner_state`.

A full queue need not mean trouble: reading is faster than writing, so in a burst every
sink is full for moments, and waiting for it drops nothing. So a runner that is full
*blocks* reading while it keeps pace. How long it may do so is a credit in seconds that
bytes written earn back: a sink that takes 2 MB/s or more never runs out of it; one that
fails, hangs or is slower runs out after a second in all. From then until nothing waits
its policy decides what is spooled or dropped; only under `block` reading goes on
waiting. So no sink delays another one for more than that second, unless `block` was
asked for.

A write that fails is tried again with the same batch, after 0.1 s at first and 5 s at
most; one event an interval announces it. A failed runner makes no more attempts: its
records are spooled for the next consumer, where there is a spool that lasts, or dropped
and counted. If the sink is `required`, the service then ends with an error.

A batch is *done* when it is written, dropped and counted, or spooled. A sink that only
buffers what it is given is flushed first, when a worker waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any

from logagg.abc import Batch, Policy, Sink
from logagg.core.event import Event
from logagg.core.line import received_suffix, timestamp_bytes
from logagg.errors import ConfigError
from logagg.fanout.backlog import Backlog
from logagg.fanout.counters import Alarm, SinkCounters, delivery_health, print_error
from logagg.fanout.duplicates import KnownRecords
from logagg.fanout.memory_queue import QueuedBatch, levels_of
from logagg.fanout.runner_state import (
    ENDING,
    OVERRUN,
    Attempts,
    BlockingCredit,
    GaveUpError,
    RunnerState,
    following,
)
from logagg.fanout.sink_calls import CANCEL_TIMEOUT, SinkCalls, open_within
from logagg.fanout.sink_spool import SinkSpool
from logagg.fanout.transforms import Transform, for_people
from logagg.fanout.watched_tasks import WatchedTasks, is_cancelled
from logagg.ipc import failpoints
from logagg.sinks import ConfiguredSink

__all__ = ["RunnerState", "SinkRunner"]


class SinkRunner:
    """One sink's backlog and the task that writes it.

    Args:
        built: The sink and its common options.
        alarm: Puts an event into the stream.
        finished: Called when batches are done.
        spool: The place for records that the sink does not take.
        tasks: Starts its task.
        failed: Called when the sink has failed for good.

    Attributes:
        sink: The sink.
        state: Its state; changed by `_enter` only.
        done: The number of the last batch up to which all are done.
        known: The records that the sink has already.
        counters: Its counts and its last error.
    """

    def __init__(
        self,
        built: ConfiguredSink,
        alarm: Alarm,
        finished: Callable[[], None],
        spool: SinkSpool,
        tasks: WatchedTasks,
        failed: Callable[[SinkRunner], None] = lambda _: None,
    ) -> None:
        self.sink: Sink = built.sink
        self.common = built.common
        self.policy = built.common.policy
        self.state = RunnerState.OPENING
        self.done = 0
        self.counters = SinkCounters(built.sink, alarm)
        self.known = KnownRecords(built.sink, spool, self.counters)
        self.transform = Transform(built.common)
        self.spool = spool
        self._tasks, self._finished, self._on_failed = tasks, finished, failed
        self._backlog = Backlog(built.common, spool, self.counters)
        self._last = 0
        self._credit = BlockingCredit()
        self._attempts = Attempts(built.common.failure_timeout)
        self._calls = SinkCalls(built.sink, self.counters)
        self._reopen, self._flush_at = False, 0
        self._predecessor: asyncio.Future[Any] | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _enter(self, state: RunnerState) -> None:
        self.state = following(self.state, state)

    @property
    def name(self) -> str:
        """The sink's URL without secrets."""
        return self.sink.url

    @property
    def idle(self) -> bool:
        """Whether nothing waits that this consumer may still write."""
        return self.state is RunnerState.FAILED or self._backlog.empty

    @property
    def need_not_wait(self) -> bool:
        """Whether all that came is done, or need not be waited for."""
        return not self.sink.durable or self.done >= self._last

    def blocks(self) -> bool:
        """Whether reading must wait for this runner now; call it every cycle."""
        full = self._backlog.full
        if full and self.policy is Policy.BLOCK:
            return self.state not in ENDING
        now = clock_gettime(CLOCK_MONOTONIC)
        if full and self.state not in (*OVERRUN, *ENDING):
            if self._credit.spend(now) and not self.counters.error:
                return True
            self._overrun()
        self._credit.stop(now)
        return False

    def _overrun(self) -> None:
        spools = self.policy is Policy.SPOOL
        self._enter(RunnerState.SPOOLING if spools else RunnerState.DROPPING)
        self._backlog.relieve()
        self._finalize()

    # ---- life ---------------------------------------------------------------------

    async def start(self, *, at_once: bool = False) -> None:
        """Open the sink and begin; see `open_within` for `at_once` and what it raises."""
        opening = await open_within(self._begin(None), at_once=at_once)
        if not opening.done():
            self.counters.announce(Event.SINK_SLOW, "takes long to open")
        self._task = self._tasks.start(self._guarded(opening), f"sink {self.name}")

    def begin_at(self, number: int) -> None:
        """Regard the batches up to this one as done."""
        self.done = self._last = number

    def start_after(self, number: int, other: asyncio.Future[Any]) -> None:
        """Begin after a batch, but open the target only when `other` is over."""
        self.begin_at(number)
        self._predecessor = other
        first = self._guarded(self._begin(other))
        self._task = self._tasks.start(first, f"sink {self.name}")

    async def _begin(self, other: asyncio.Future[Any] | None) -> None:
        if other is not None:
            await asyncio.wait([other])  # however it ends
        await self.known.take_over(self._backlog.recover)
        await self.sink.open()
        await self.known.compare(self._backlog.recover)

    async def _guarded(self, opening: Awaitable[None]) -> None:
        """The task: whatever ends it for good makes the runner a failed one."""
        try:
            await self._open(opening)
            self._enter(RunnerState.RUNNING)
            await self._run()
        except BaseException as error:  # a plug-in may raise anything
            if is_cancelled():
                raise
            if not isinstance(error, (ConfigError, GaveUpError)):
                print_error(error)
            self._fail(error)

    async def _open(self, opening: Awaitable[None]) -> None:
        while True:
            try:
                await opening
                return self._recovered_from_failure()
            except OSError as error:
                await self._pause(error, "cannot open")
                opening = self._begin(None)

    def _fail(self, error: BaseException) -> None:
        """Make no more attempts."""
        self._enter(RunnerState.FAILED)
        if not isinstance(error, GaveUpError):
            self.counters.note(error)
        self.counters.announce(
            Event.SINK_FAILED,
            f"failed for good: {error}",
            level="error",
            required=self.common.required,
        )
        self._set_aside("sink_failed")
        self._on_failed(self)
        self._finished()

    # ---- what comes ---------------------------------------------------------------

    def put(self, number: int, batch: Batch, suspects: frozenset[bytes]) -> None:
        """Offer a batch with its number. Never blocks; what the policy drops is counted.

        `suspects` are ids of lines that an earlier consumer may have written.
        """
        if self.sink.interactive:
            batch = for_people(batch)
        self.counters.offered += len(batch)
        batch = self.known.fresh_of_stream(batch, suspects)
        now = clock_gettime(CLOCK_MONOTONIC)
        self._last = number
        self._accept(self.transform.apply(batch, now), now)

    def tick(self, now_ns: int, *, final: bool = False) -> None:
        """Release records that shaping has held back, when their time has come."""
        now = clock_gettime(CLOCK_MONOTONIC)
        due = self.transform.due
        if final or (due is not None and due <= now):
            stamp, suffix = timestamp_bytes(now_ns), received_suffix(now_ns)
            self._accept(self.transform.flush(stamp, suffix, now, final=final), now)

    def _accept(self, batch: Batch, now: float) -> None:
        if len(batch):
            self._backlog.append(self._last, batch, now)
            if self.state is RunnerState.FAILED:
                self._set_aside("sink_failed")
            elif self.state in OVERRUN:
                self._backlog.relieve()
            self._wake.set()
        self._finalize()

    def _finalize(self) -> None:
        """Determine up to which batch all are done."""
        first = self._backlog.first_number
        self.done = first - 1 if first else self._last
        if self._flush_at:
            self.done = min(self.done, self._flush_at - 1)

    # ---- what goes ----------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if self._reopen:
                self._reopen = False
                await self._calls.reopen()
            if self.spool.records:
                await self._write_spooled()
            elif (number := self._backlog.next_number) and (
                not self._flush_at or number <= self._flush_at
            ):
                await self._write_next()
            elif self._flush_at:
                await self._flush()
            elif self.state is RunnerState.CLOSING:
                return
            else:
                self._wake.clear()
                await self._wake.wait()
            if self.idle:
                self.known.waiting = frozenset()
                if self.state in OVERRUN:
                    self._enter(RunnerState.RUNNING)
                self._credit.restore()

    async def _write_next(self) -> None:
        entry = self._backlog.take()
        if failpoints.ACTIVE:
            failpoints.hit("before_write")
        fresh = self.known.fresh(entry.batch, self.known.waiting)
        written = not len(fresh) or await self._write(fresh, entry)
        if failpoints.ACTIVE:
            failpoints.hit("after_write")
        self._backlog.finish(written=written)
        self._finalize()
        self._finished()

    async def _write_spooled(self) -> None:
        try:
            batch = self.spool.peek()
        except OSError as error:
            await self._pause(error, "cannot read its spool")
            return
        if batch is None:
            self.counters.drop("spool_removed", {"unknown": self.spool.drop()})
            return
        fresh = self.known.fresh(batch, self.known.waiting)
        if len(fresh):
            await self._write(fresh)
        self.spool.advance(batch)
        if not self.spool.records:
            self._finished()

    async def _write(self, batch: Batch, entry: QueuedBatch | None = None) -> bool:
        """Write a batch, however often it takes.

        Returns:
            False when it failed and was spooled meanwhile.
        """
        while True:
            try:
                await self.sink.write(batch)
            except OSError as error:
                await self._pause(error, "cannot write")
                if entry is not None and self._backlog.writing is not entry:
                    return False
            except ConfigError:
                raise
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
                self.counters.note(error)
                self.counters.drop("sink_bug", levels_of(batch.lines))
                print_error(error)
                return True
            else:
                self._recovered_from_failure()
                self._calls.unflushed = True
                self.counters.written += len(batch)
                self.counters.bytes_written += batch.size_bytes
                self._credit.earn(batch.size_bytes)
                return True

    def _recovered_from_failure(self) -> None:
        self.counters.succeeded(self.sink.warning)
        self._attempts.succeeded()
        if self.state is RunnerState.RETRYING:
            self._enter(RunnerState.RUNNING)

    async def _pause(self, error: OSError, what: str) -> None:
        """Note a failed attempt and wait before the next one.

        Raises:
            GaveUpError: There is none.
        """
        self.counters.retries += 1
        self.counters.failed(error, what)
        if self.policy is Policy.SPOOL:
            self._overrun()  # spooled is safe: nothing need wait for it
        else:
            self._enter(RunnerState.RETRYING)
            if self.state in OVERRUN:
                self._backlog.relieve()
                self._finalize()
        self._release_spooled()
        now = clock_gettime(CLOCK_MONOTONIC)
        await asyncio.sleep(self._attempts.failed(now, error, what))
        self._release_spooled()

    def _release_spooled(self) -> None:
        """Nothing is being written: what is spooled as well is done."""
        if self._backlog.moved:
            self._backlog.finish(written=False)
            self._finalize()
            self._finished()

    def reopen(self) -> None:
        """Have the sink open its target anew before its next batch."""
        self._reopen = True
        self._wake.set()

    def request_flush(self) -> None:
        """Flush the sink once all that has come is written; `done` waits for it.

        A durable sink need not be flushed: what it accepted is safe.
        """
        if self.sink.durable or self._flush_at or self.state in ENDING:
            return
        if self._calls.unflushed or not self.idle:
            self._flush_at = self._last
            self._finalize()
            self._wake.set()

    async def _flush(self) -> None:
        await self._calls.flush()
        self._flush_at = 0
        self._finalize()
        self._finished()

    # ---- the end ------------------------------------------------------------------

    async def close(
        self, grace: float | None, now_ns: int, *, failing: bool = False
    ) -> int:
        """Write what waits, and close the sink.

        Records that a durable sink with the policy `spool` has not taken by then are
        spooled for its successor.

        Args:
            grace: Seconds for that; None: however long it takes.
            now_ns: The clock of records.
            failing: They count only for a sink whose last attempt failed.

        Returns:
            How many records are lost; they are counted as dropped.
        """
        self.tick(now_ns, final=True)
        self._enter(RunnerState.CLOSING)
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace)
            while failing and not (self._task.done() or self.counters.error):
                await asyncio.wait([self._task], timeout=grace)
        await self.give_up()
        if self._predecessor is not None:  # what it spools is older
            await asyncio.wait([self._predecessor])
        lost = self._set_aside("shutdown", announced=False)
        self._backlog.close(self.name, lost)
        await self._calls.close(grace)
        self._enter(RunnerState.CLOSED)
        return lost

    async def give_up(self) -> None:
        """Make no more attempts."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_TIMEOUT)

    def _set_aside(self, reason: str, *, announced: bool = True) -> int:
        """Spool what is left, if that lasts; count the rest as dropped."""
        lost = self._backlog.set_aside()
        self._flush_at = 0
        if lost:
            (self.counters.drop if announced else self.counters.count)(reason, lost)
        if announced or not lost:  # else their workers send them to the next consumer
            self._finalize()
        return lost.total()

    def statistics(self) -> dict[str, Any]:
        """Counters for status and metrics."""
        return {
            "url": self.name,
            "durable": self.sink.durable,
            "required": self.common.required,
            "policy": self.policy.value,
            "state": self.state.value,
            **self.counters.statistics(),
            **self._backlog.statistics(),
            **self.transform.statistics(),
            "counters": dict(self.sink.counters),
            "delivery": delivery_health(self.sink),
        }
