"""Every sink gets its own copy of the stream, so that none waits for another.

Theory of operation
-------------------
Each sink has a `SinkRunner`: what waits for it, and a task that writes it. `Fanout.put`
numbers a batch and offers it to all runners. A runner shapes the batch for its sink when
it comes, so what waits is what will be written.

A batch is *safe* when every durable sink is done with it (or every sink, where none is
durable): written, spooled on disk, or dropped by the sink's policy and counted. Runners
are done with batches in order, so `safe` is the least of their numbers, and the consumer
acknowledges to workers up to there.

Sinks come and go while the stream runs. One that goes is offered nothing more, writes
what waits, and is closed; until then `safe` does not pass its records. One whose
options have changed is followed by its new form, which gets the stream from the next
batch on and opens the target only when the old one has closed it: nothing is written
twice and nothing left out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from itertools import count
from typing import Any, cast

from logagg.abc import Batch, Policy, Sink
from logagg.core.event import Event
from logagg.errors import TargetOwned
from logagg.fanout.counters import Alarm
from logagg.fanout.memory_queue import levels_of
from logagg.fanout.runner_state import FIRST_RETRY, RunnerState, may_pass
from logagg.fanout.sink_calls import OPEN_TIMEOUT
from logagg.fanout.sink_runner import SinkRunner
from logagg.fanout.sink_spool import SinkSpool
from logagg.fanout.watched_tasks import WatchedTasks
from logagg.ipc.paths import file_identity
from logagg.ownership import GuardedSink, TargetOwners
from logagg.sinks import ConfiguredSink

__all__ = ["Fanout", "spool_of"]

HANDOVER = 5.0
RECALL_TIMEOUT = 30.0


class Fanout:
    """All sinks of a consumer.

    Args:
        alarm: Puts an event into the stream.
        finished: Called when batches are done.
        now_ns: The clock of records.
        failed: Called when a required sink has failed for good.
        tasks: Starts the tasks; their deaths become events otherwise.
        owners: The paths that this consumer owns; None: sinks own none.

    Attributes:
        alarm: As given.
        runners: The runners by the names of their targets.
        retiring: Runners that are offered nothing more and write what waits.
        opened: What lets a sink begin that is open and waits for the others of a reload.
        number: The number of the newest batch.
        failed: The first required sink that has failed for good; empty: none has.
    """

    def __init__(
        self,
        alarm: Alarm,
        finished: Callable[[], None],
        now_ns: Callable[[], int] = time.time_ns,
        failed: Callable[[], None] = lambda: None,
        tasks: WatchedTasks | None = None,
        owners: TargetOwners | None = None,
    ) -> None:
        self.runners: dict[str, SinkRunner] = {}
        self.retiring: dict[SinkRunner, asyncio.Task[int]] = {}
        self.opened: dict[str, Callable[[], None]] = {}
        self.number = 0
        self._numbers = count(1)
        self._places: dict[str, int] = {}
        self._dropped = 0  # by sinks that are gone
        self.failed = ""
        self.alarm = alarm
        self._finished = finished
        self._now_ns = now_ns
        self._on_failed = failed
        self._tasks = tasks or WatchedTasks(self._part_failed)
        self._report = self._tasks.report
        self._owners = owners

    def _part_failed(self, name: str, error: BaseException) -> None:
        details = {"event": Event.TASK_FAILED, "level": "error", "part": name}
        self.alarm(f"{name} has failed: {type(error).__name__}: {error}", details)

    def _runner(self, key: str, built: ConfiguredSink) -> SinkRunner:
        spool = spool_of(key, built)
        if self._owners is not None:
            guarded = GuardedSink(built.sink, self._owners)
            built = dataclasses.replace(built, sink=cast("Sink", guarded))
        return SinkRunner(
            built, self.alarm, self._finished, spool, self._tasks, self._sink_failed
        )

    def _sink_failed(self, runner: SinkRunner) -> None:
        if runner.common.required:
            self.failed = self.failed or runner.name
            self._on_failed()

    async def add(
        self,
        key: str,
        built: ConfiguredSink,
        *,
        at_once: bool = False,
        waits: bool = False,
    ) -> None:
        """Add a sink; it gets the stream from the next batch on.

        Args:
            key: Its name here.
            built: The sink.
            at_once: One that takes long to open is refused, and the stream comes only
                after `begin`.
            waits: Another consumer owns its file, and may do so for long.

        One that cannot be opened for a reason that may pass is added all the same: it
        is tried again, and what comes waits by its policy.

        Raises what the sink's `open` does, and TimeoutError.
        """
        runner = self._runner(key, built)
        place = next(self._numbers)
        before: asyncio.Future[Any] | None
        before = self._retiring_to(runner)
        if before is None:
            try:
                await runner.start(at_once=at_once)
            except BaseException as error:
                owned = isinstance(error, TargetOwned) and not waits
                if owned or not (isinstance(error, OSError) and may_pass(error)):
                    runner.spool.close()
                    raise
                runner.counters.failed(error, "cannot open")
                before = asyncio.ensure_future(asyncio.sleep(FIRST_RETRY))

        def begin() -> None:
            if before is None:
                runner.begin_at(self.number)  # batches may have come while it opened
            else:
                runner.start_after(self.number, before)
            self._insert(key, runner, place)

        self.opened[key] = begin
        if not at_once:
            self.begin(key)

    def begin(self, key: str) -> None:
        """Let the stream come to a sink that `add` has opened, if it does not yet."""
        begin = self.opened.pop(key, None)
        if begin is not None:
            begin()

    def _insert(self, key: str, runner: SinkRunner, place: int) -> None:
        """Add a runner in the order in which sinks were wanted, not opened."""
        self._places[key] = place
        found = sorted(
            [*self.runners.items(), (key, runner)],
            key=lambda each: self._places[each[0]],
        )
        self.runners.clear()
        self.runners.update(found)

    def _retiring_to(self, runner: SinkRunner) -> asyncio.Task[int] | None:
        """The end of a sink to the same target that was removed and still writes."""
        name = runner.spool.name
        ends = [task for each, task in self.retiring.items() if each.spool.name == name]
        return ends[-1] if name and ends else None

    def remove(self, key: str) -> asyncio.Task[int]:
        """Offer a sink nothing more; it writes what waits and is closed."""
        return self._retire(key, None)

    def _retire(self, key: str, grace: float | None) -> asyncio.Task[int]:
        runner = self.runners.pop(key)
        closing = runner.close(grace, self._now_ns(), failing=True)
        task = self._tasks.start(closing, f"the end of sink {runner.name}")
        self.retiring[runner] = task
        task.add_done_callback(lambda _: self._retired(runner))
        return task

    def _retired(self, runner: SinkRunner) -> None:
        self.retiring.pop(runner, None)
        self._dropped += runner.counters.dropped.total()
        self._finished()

    def replace(self, old: str, key: str, built: ConfiguredSink) -> None:
        """Let a sink to the same target follow another one, from the next batch on.

        One that fails is given HANDOVER seconds where what waits for it can be spooled:
        the follower takes that over, and its options may be what was wrong.
        """
        spools = self.runners[old].spool.name and built.common.policy is Policy.SPOOL
        gone = self._retire(old, HANDOVER if spools else None)
        runner = self._runner(key, built)
        runner.start_after(self.number, gone)
        self._insert(key, runner, next(self._numbers))

    def put(self, batch: Batch, suspects: frozenset[bytes]) -> None:
        """Number a batch and offer it to every sink; see `SinkRunner.put`."""
        self.number += 1
        for runner in self.runners.values():
            if runner.state is RunnerState.CLOSED:
                continue
            try:
                runner.put(self.number, batch, suspects)
            except Exception as error:  # noqa: BLE001 - no sink's options end the others
                self._report(f"the shaping for sink {runner.name}", error)
                runner.counters.drop("shaping_bug", levels_of(batch.lines))
                runner.put(self.number, batch.select([]), suspects)

    def tick(self) -> None:
        """Release records that shaping has held back; call it every cycle."""
        for runner in self.runners.values():
            if runner.transform.due is not None:
                runner.tick(self._now_ns())

    async def recall(self, since: bytes) -> None:
        """Ask the durable sinks what they have written since a sort key.

        Waits RECALL_TIMEOUT seconds at most, and OPEN_TIMEOUT for one that is not open.
        A sink that is not open by then is asked once it is; what another one does not
        report is written to it again.
        """
        durable = [each for each in self.runners.values() if each.sink.durable]
        await asyncio.gather(*(self._recall(each, since) for each in durable))

    async def _recall(self, runner: SinkRunner, since: bytes) -> None:
        try:
            timeout = RECALL_TIMEOUT if runner.known.is_open else OPEN_TIMEOUT
            async with asyncio.timeout(timeout):
                await _insistently(lambda: runner.known.extend(since))
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            if not runner.known.is_open:
                runner.known.postpone()
                return
            text = f"sink {runner.name} cannot read what it has written"
            details = {"event": Event.SINK_ERROR, "sink": runner.name}
            reason = str(error) or type(error).__name__
            self.alarm(f"{text}: {reason}", details)

    @property
    def knows_written(self) -> bool:
        """Whether sinks remember records that an earlier consumer may have written."""
        return any(runner.known.ids for runner in self.runners.values())

    def forget_written(self) -> None:
        """Nothing can come any more that an earlier consumer may have written."""
        for runner in self.runners.values():
            runner.known.forget()

    def reopen(self) -> None:
        """Have every sink flush and open its target anew, after what is queued."""
        for runner in self.runners.values():
            runner.reopen()

    def flush(self) -> None:
        """Have sinks hand on what they only buffer: a worker waits for it."""
        for runner in self.runners.values():
            runner.request_flush()

    @property
    def identifiers(self) -> set[str]:
        """The addresses that the files of its sinks have by their names."""
        found = (each.sink.owned_paths() for each in self.runners.values())
        return {file_identity(path) for owned in found for path in owned}

    @property
    def blocked(self) -> bool:
        """Whether reading must wait for a sink; see `logagg.fanout.sink_runner`."""
        answers = [runner.blocks() for runner in self.runners.values()]  # ask each
        return any(answers)

    @property
    def safe(self) -> int:
        """The number of the last batch that every durable sink is done with."""
        counted = [runner.done for runner in self._deciding()]
        counted += [each.done for each in self.retiring if not each.need_not_wait]
        return min(counted, default=self.number)

    def _deciding(self) -> list[SinkRunner]:
        """The sinks that decide on `safe`."""
        runners = list(self.runners.values())
        return [each for each in runners if each.sink.durable] or runners

    @property
    def dropped(self) -> int:
        """How many records the sinks that decide on `safe` have dropped; it may fall."""
        deciding = [*self._deciding(), *self.retiring]
        return self._dropped + sum(each.counters.dropped.total() for each in deciding)

    @property
    def idle(self) -> bool:
        """Whether every sink has finished everything."""
        return not self.retiring and all(each.idle for each in self.runners.values())

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed of every sink that has not finished."""
        runners = (*self.runners.values(), *self.retiring)
        return all(each.idle or each.counters.error for each in runners)

    def statistics(self) -> list[dict[str, Any]]:
        """Counters of all sinks; those that go last."""
        return [each.statistics() for each in (*self.runners.values(), *self.retiring)]

    async def close(
        self, grace: float, last_words: Callable[[], None] = lambda: None
    ) -> int:
        """Close all sinks side by side, and then those that write files.

        Args:
            grace: Seconds to write what waits, for each half.
            last_words: Called in between: puts what is to be recorded of the others.

        Returns:
            How many records were lost.
        """
        for key in list(self.opened):
            self.begin(key)
        runners = self.runners.values()
        files = [each for each in runners if each.sink.owned_paths()]
        lost = await self._close([each for each in runners if each not in files], grace)
        await asyncio.sleep(0)  # warnings of other threads are passed on
        last_words()
        return lost + await self._close(files, grace)

    async def _close(self, runners: list[SinkRunner], grace: float) -> int:
        now_ns = self._now_ns()
        retiring = dict(self.retiring)
        closing = [
            self._tasks.start(runner.close(grace, now_ns), f"the end of {runner.name}")
            for runner in runners
        ]
        if retiring:
            await asyncio.wait(retiring.values(), timeout=grace)
            for runner in retiring:
                await runner.give_up()
        ends = [*closing, *retiring.values()]
        found = await asyncio.gather(*ends, return_exceptions=True)
        return sum(lost if isinstance(lost, int) else 1 for lost in found)


def spool_of(key: str, built: ConfiguredSink) -> SinkSpool:
    """Where a sink's records are spooled: by its target's name, if it is durable."""
    name = ""
    if built.sink.durable:
        target = key.partition("?")[0] + owner_of(built.sink)
        digest = sha256(target.encode("utf-8", "surrogateescape")).hexdigest()
        name = f"{built.sink.scheme}-{digest[:20]}"
    spool = SinkSpool(name, built.common.queue_spool_bytes, built.url)

    def must_sync(batch: Batch) -> bool:
        return built.sink.must_sync(batch)

    spool.must_sync = must_sync
    return spool


def owner_of(sink: Sink) -> str:
    """Those whose records a sink's are, where its target does not name them."""
    try:
        owner = sink.owner()
    except OSError:  # its secret cannot be read now
        owner = "unknown"
    return f" {owner}" if owner else ""


async def _insistently(call: Callable[[], Awaitable[None]]) -> None:
    """Call until it succeeds or fails for a reason that does not pass."""
    while True:
        try:
            return await call()
        except OSError as error:
            if not may_pass(error):
                raise
        await asyncio.sleep(FIRST_RETRY)
