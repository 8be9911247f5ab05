"""One sink's share of the stream: its shaping, its queue, its spill, its task.

Theory of operation
-------------------
`put` shapes a batch for the sink and lets it wait; a task takes one batch after another
and writes it. What waits has an order: the batch being written, then what is parked on
disk (`logagg.spill`), then the queue in memory (`logagg.lane_queue`).

A full queue need not mean trouble: reading is faster than writing, so in a burst every
sink is full for moments, and to wait for it is right: nothing is dropped. So a lane that
is full *blocks* reading while it keeps pace. How long it may do so is a credit in
seconds that bytes written earn back: a sink that takes 2 MB/s or more never runs out of
it; one that fails, hangs or is slower than that runs out after a second in all, and is
*overrun* from then until nothing waits. Overrun, its policy decides:

    block       reading goes on waiting: nothing is lost, everything stands still
    spool       what waits is parked on disk; when there is no room either, as drop_old
    drop_old    the oldest records of the lowest severity are dropped, as many as needed
    drop_new    the newest ones of the lowest severity

So no sink delays another one for more than that second, unless `block` was asked for.

A batch is *done with* when it is written, dropped and counted, or parked: what is parked
of a durable sink survives us. `done` is the number of the last batch up to which all
are. At any moment, in records:

    offered + recovered + made = filtered + sampled + collapsed + duplicates
                                 + written + dropped + queued + parked

A write that fails is tried again with the same batch, after 0.1 s at first and 5 s at
most, for ever; one alarm an interval says so in the stream and on stderr.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any

from logagg import failpoints, wire
from logagg.abc import Batch, Policy, Sink
from logagg.errors import SinkUnavailable
from logagg.lane_queue import Entry, LaneQueue, levels_of
from logagg.lane_troubles import Alarm, Troubles
from logagg.sinks import Built
from logagg.spill import Spill

__all__ = ["Lane"]

FIRST_RETRY = 0.1
LAST_RETRY = 5.0
CREDIT = 1.0
EARNED_PER_BYTE = 0.5e-6  # two megabytes a second
CLOSE_TIMEOUT = 10.0

_SMALL_TALK = b'debug","worker":"consumer"'


class Lane:
    """One sink's queue and the task that empties it.

    Attributes:
        sink: The sink.
        done: The number of the last batch up to which this lane is done with all.
        offered: Records that came, before shaping.
        made: Records that shaping added (what sampling has left out).
        written: Records written.
        bytes_written: How long they were.
        duplicates: Records that were not written again after a consumer's death.
        recalled: Identities of what the sink had when it was last asked.
        troubles: What failed, and what was dropped.
    """

    def __init__(
        self,
        built: Built,
        alarm: Alarm,
        finished: Callable[[], None],
        spill: Spill,
    ) -> None:
        self.sink: Sink = built.sink
        self.common = built.common
        self.policy = built.common.policy
        self.done = 0
        self.offered = 0
        self.made = 0
        self.written = 0
        self.bytes_written = 0
        self.retries = 0
        self.duplicates = 0
        self.troubles = Troubles(built.sink.url, alarm)
        self.recalled: frozenset[bytes] = frozenset()
        self._asked: list[bytes] = []
        self._recalling = asyncio.Lock()
        self.shaper = built.shaper()
        self.spill = spill
        self._for_people = built.sink.scheme in ("stdout", "stderr")
        self._finished = finished
        self._queue = LaneQueue()
        self._last = 0
        self._writing: Entry | None = None
        self._pausing = False
        self._parked_writing = False
        self._overrun = False
        self._spilled_at = 0.0
        self._credit = CREDIT
        self._blocking_since = 0.0
        self._spill_known: frozenset[bytes] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._reopen = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The sink's URL without secrets."""
        return self.sink.url

    @property
    def queued_records(self) -> int:
        """How many records wait in memory, the batch being written included."""
        writing = self._writing
        return self._queue.records + (len(writing.batch) if writing else 0)

    @property
    def queued_bytes(self) -> int:
        """How long they are."""
        writing = self._writing
        return self._queue.size_bytes + (writing.size_bytes if writing else 0)

    @property
    def full(self) -> bool:
        """Whether the queue is at one of its bounds."""
        return (
            self.queued_records >= self.common.queue_records
            or self.queued_bytes >= self.common.queue_bytes
        )

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return self._writing is None and not self._queue and not self.spill.records

    def blocks(self) -> bool:
        """Whether reading must wait for this lane now; ask it every cycle."""
        if not self.full or self._closing:
            self._stop_blocking()
            return False
        if self.policy is Policy.BLOCK:
            return True
        if self._overrun:
            return False
        now = clock_gettime(CLOCK_MONOTONIC)
        if self._blocking_since:
            self._credit -= now - self._blocking_since
        self._blocking_since = now
        if self._credit > 0 and not self.troubles.error:
            return True
        self._overrun = True
        self._blocking_since = 0.0
        self._relieve()
        return False

    def _stop_blocking(self) -> None:
        if self._blocking_since:
            self._credit -= clock_gettime(CLOCK_MONOTONIC) - self._blocking_since
            self._blocking_since = 0.0

    # ---- life ---------------------------------------------------------------------

    async def start(self) -> None:
        """Open the sink and begin, with what an earlier consumer left for the sink.

        Raises what the sink's `open` does.
        """
        await self.sink.open()
        await self._recover()
        self._task = asyncio.create_task(self._run(), name=f"lane {self.name}")

    def begin_at(self, number: int) -> None:
        """Nothing up to this batch is its business."""
        self.done = self._last = number

    @property
    def all_safe(self) -> bool:
        """Whether it is done with all that came, or need not be waited for."""
        return not self.sink.durable or self.done >= self._last

    def start_after(self, number: int, other: Awaitable[Any]) -> None:
        """Begin behind a batch, but open only when another lane has let go.

        For a sink whose options have changed: what comes waits meanwhile.
        """
        self.begin_at(number)
        self._task = asyncio.create_task(self._follow(other), name=f"lane {self.name}")

    async def _follow(self, other: Awaitable[Any]) -> None:
        await other
        wait = FIRST_RETRY
        while True:
            try:
                await self.sink.open()
                break
            except (OSError, ValueError) as error:
                self.troubles.failed(error, "cannot open")
                await asyncio.sleep(wait)
                wait = min(wait * 2, LAST_RETRY)
        self.troubles.error = ""
        await self._recover()
        await self._run()

    async def _recover(self) -> None:
        try:
            await asyncio.to_thread(self.spill.recover)
            if self.spill.records:
                self._spilled_at = clock_gettime(CLOCK_MONOTONIC)
                self._spill_known = await self.sink.recall(self.spill.first_key())
                # Asked for later, they may be on their way from here to the sink.
                found = await asyncio.to_thread(self.spill.identities, b"")
                self.recalled |= found
        except OSError as error:
            self.troubles.tell("sink_error", f"cannot read what it parked: {error}")

    # ---- what comes ---------------------------------------------------------------

    def put(self, number: int, batch: Batch, suspects: frozenset[bytes]) -> None:
        """Offer a batch. Never blocks; what the policy drops is counted.

        Args:
            number: The batch's number.
            batch: The batch.
            suspects: Identities of lines that a consumer before us may have written.
        """
        if self._for_people:
            # That a worker ended well is no news on a terminal.
            at = wire.LEVEL_START
            lines = [
                each for each in batch.lines if not each.startswith(_SMALL_TALK, at)
            ]
            batch = batch.select(lines)
        self.offered += len(batch)
        known = suspects & self.recalled
        if known:
            lines = [line for line in batch.lines if wire.identity(line) not in known]
            self.duplicates += len(batch) - len(lines)
            batch = batch.select(lines)
        now = clock_gettime(CLOCK_MONOTONIC)
        self._last = number
        self._accept(self.shaper.apply(batch, now), now)

    def tick(self, now_ns: int, *, final: bool = False) -> None:
        """Let records go that shaping has held back, when their time has come."""
        now = clock_gettime(CLOCK_MONOTONIC)
        due = self.shaper.due
        if not final and (due is None or due > now):
            return
        held = self.shaper.counters.get("collapsed", 0)
        stamp, closing = wire.timestamp(now_ns), wire.closing(now_ns)
        batch = self.shaper.flush(stamp, closing, now, final=final)
        freed = held - self.shaper.counters.get("collapsed", 0)
        self.made += len(batch) - freed
        self._accept(batch, now)

    def _accept(self, batch: Batch, now: float) -> None:
        if len(batch):
            self._queue.append(self._last, batch, now)
            parked = self.policy is Policy.SPOOL and self.spill.records
            if self._overrun or parked:
                self._relieve()
            self._wake.set()
        self._settle()

    def _relieve(self) -> None:
        """Bring the queue within its bounds, as the policy says."""
        reason = "queue_full"
        if self.policy is Policy.SPOOL:
            reason = "spool_full"
            self._park()
        newest = self.policy is Policy.DROP_NEW
        levels = self._queue.enforce(
            self.common.queue_records, self.common.queue_bytes, newest=newest
        )
        if levels:
            self.troubles.drop(reason, levels)
        self._settle()

    def _park(self) -> None:
        """Put what waits on disk, in order, as far as there is room."""
        spill = self.spill
        if not spill.records:
            self._spilled_at = clock_gettime(CLOCK_MONOTONIC)
        writing = self._writing
        before = spill.records
        if self._pausing and writing is not None:
            if not spill.prepend(writing.batch):
                return
            self._parked_writing = True
            self._writing = None
        while self._queue and spill.append(self._queue.first.batch):
            self._queue.pop()
        if spill.records and not before:
            self.troubles.tell("sink_slow", "is behind: records are parked")

    def _settle(self) -> None:
        """Find out up to which batch all are done with."""
        if self._writing is not None and self._writing.number:
            self.done = self._writing.number - 1
        elif self._queue:
            self.done = self._queue.first.number - 1
        else:
            self.done = self._last

    # ---- what goes ----------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            if self._reopen:
                await self._reopened()
            if self.spill.records:
                await self._write_parked()
            elif self._queue:
                await self._write_next()
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()
            if self.idle:
                self._overrun = False
                self._credit = CREDIT

    async def _write_next(self) -> None:
        entry = self._writing = self._queue.pop()
        if failpoints.ACTIVE:
            failpoints.hit("before_write")
        await self._write(entry.batch)
        if failpoints.ACTIVE:
            failpoints.hit("after_write")
        self._writing = None
        self._settle()
        self._finished()

    async def _write_parked(self) -> None:
        batch, size = self.spill.peek()
        fresh = batch
        if self._spill_known:
            known = self._spill_known
            lines = [line for line in batch.lines if wire.identity(line) not in known]
            self.duplicates += len(batch) - len(lines)
            fresh = batch.select(lines)
        if len(fresh):
            await self._write(fresh)
        self.spill.advance(len(batch), size)
        if not self.spill.records:
            self._spill_known = None
            self._finished()

    async def _write(self, batch: Batch) -> None:
        """Write a batch, however often it takes; or until it was parked meanwhile."""
        wait = FIRST_RETRY
        while True:
            try:
                await self.sink.write(batch)
            except OSError as error:
                self.retries += 1
                self.troubles.failed(error, "cannot write")
                after = getattr(error, "retry_after", None) or 0.0
                longer = isinstance(error, SinkUnavailable)
                self._pausing = True
                if self._overrun or self.policy is Policy.SPOOL:
                    self._overrun = True  # parked is safe: nobody need wait for it
                    self._relieve()
                await asyncio.sleep(max(wait, after) if longer else wait)
                self._pausing = False
                if self._parked_writing:
                    self._parked_writing = False
                    return
                wait = min(wait * 2, LAST_RETRY)
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
                self.troubles.note(error)
                self.troubles.drop("sink_bug", levels_of(batch.lines))
                sys.excepthook(type(error), error, error.__traceback__)
                return
            else:
                self.troubles.error = ""
                self.written += len(batch)
                size = batch.size_bytes
                self.bytes_written += size
                self._credit = min(self._credit + size * EARNED_PER_BYTE, CREDIT)
                return

    def reopen(self) -> None:
        """Have the sink open its target anew before its next batch."""
        self._reopen = True
        self._wake.set()

    async def _reopened(self) -> None:
        self._reopen = False
        try:
            await self.sink.reopen()
        except OSError as error:
            self.troubles.failed(error, "cannot reopen")

    async def recall(self, since: bytes) -> None:
        """Learn which records since a sort key the sink has, or will have from disk.

        Those who ask while it answers another one are answered together.
        """
        self._asked.append(since)
        async with self._recalling:
            if self._asked:  # else one that began behind our question has answered it
                oldest, self._asked = min(self._asked), []
                try:
                    found = await self.sink.recall(oldest)
                except BaseException:
                    self._asked.append(oldest)  # of others, too: they ask again
                    raise
                self.recalled |= found
        if self.spill.records:
            found = await asyncio.to_thread(self.spill.identities, since)
            self.recalled |= found

    # ---- the end ------------------------------------------------------------------

    async def close(self, grace: float | None, now_ns: int) -> int:
        """Write what waits, within `grace` seconds (None: however long); close the sink.

        What a durable sink with the policy `spool` has not taken by then is parked for
        the next consumer.

        Returns:
            How many records are lost; they are counted as dropped.
        """
        self.tick(now_ns, final=True)
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace)
            await self.give_up()
        lost = self._leave()
        try:
            timeout = CLOSE_TIMEOUT if grace is None else max(grace, 1.0)
            await asyncio.wait_for(self.sink.close(), timeout)
        except (OSError, TimeoutError) as error:
            print(f"sink {self.name} cannot close: {error}", file=sys.stderr)
        return lost

    async def give_up(self) -> None:
        """Stop trying."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _leave(self) -> int:
        """Park what is left, where it can be found again; count the rest as lost."""
        spill, writing = self.spill, self._writing
        stays = self.policy is Policy.SPOOL and bool(spill.name)
        if stays and writing is not None and spill.prepend(writing.batch):
            self._writing = writing = None
        while stays and writing is None and self._queue:
            if not spill.append(self._queue.first.batch):
                break
            self._queue.pop()
        lost: Counter[str] = Counter()
        if writing is not None:
            lost.update(levels_of(writing.batch.lines))
            self._writing = None
        lost.update(self._queue.enforce(0, 0, newest=False))
        if not spill.name:
            while spill.records:
                batch, size = spill.peek()
                lost.update(levels_of(batch.lines))
                spill.advance(len(batch), size)
        if lost:
            self.troubles.count("shutdown", lost)
        if spill.records:
            print(
                f"logagg: {spill.records} records for {self.name} wait in "
                f"{spill.folder}; the next consumer writes them",
                file=sys.stderr,
            )
        spill.close()
        return lost.total()

    def statistics(self) -> dict[str, Any]:
        """Counters for status and metrics."""
        from logagg.lane_statistics import statistics

        return statistics(self)
