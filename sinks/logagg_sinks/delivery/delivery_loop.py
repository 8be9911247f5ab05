"""The loop that empties a sink's spools into its target, one batch after the other.

Theory of operation
-------------------
The records that `write` accepted are in the sink's own spool; spools of processes that
died come before it. The loop takes the first spool in which something is due, makes one
batch from its beginning, and goes on when every record of the batch is final: taken by
the target, or a dead letter. So the order is kept, memory holds one batch, and the
spool's start is always the first record that is not final.

Everything mutable here is touched by the asyncio loop's thread only, except spools and
dead letters, which are touched by the sink's own thread only (`run`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from logagg.segment_log import SegmentLog
from logagg.wireformat import key_ns
from logagg_sinks.delivery.batch_work import BatchWork, StoppedError
from logagg_sinks.delivery.batching import Ages
from logagg_sinks.delivery.condition import Health, SinkCondition
from logagg_sinks.delivery.delivery_options import DeliveryOptions
from logagg_sinks.delivery.loader import Loader, Runtime
from logagg_sinks.delivery.retry import Action
from logagg_sinks.delivery.verdict import Verdict

__all__ = ["Delivery"]

log = logging.getLogger("logagg.network")

_INBOX_INTERVAL = 10.0


class Delivery:
    """The loop that delivers the records in spools.

    Args:
        name: The sink, for messages.
        condition: The sink's state.
        loader: Makes batches.
        work: Sends them.
        options: The sink's options.
        spools: Spools to empty; the last one is the sink's own.
        inboxes: Finds further spools; called on the sink's thread.
        runtime: The sink's thread, counters and clocks.
    """

    def __init__(
        self,
        *,
        name: str,
        condition: SinkCondition,
        loader: Loader,
        work: Callable[[Callable[[], None]], BatchWork],
        options: DeliveryOptions,
        spools: list[SegmentLog],
        inboxes: Callable[[], Sequence[SegmentLog]],
        runtime: Runtime,
    ) -> None:
        self._name = name
        self._options = options
        self._spools = spools
        self._own = spools[-1]
        self._inboxes = inboxes
        self._run = runtime.run
        self._count = runtime.count
        self._clock = runtime.clock
        self._loader = loader
        self._condition = condition
        self._work = work(self._changed)
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._asleep = False  # nothing waits, so nothing will be due by age
        self._flush_to = 0
        self._ages = Ages(options.batch_age)  # of what waits in the own spool
        self._polled_at = 0.0
        for spool in spools:
            if spool.records:
                self._count("recovered", spool.records)

    # Calls of the sink

    async def accept(self, data: bytes, records: int) -> None:
        """Put records into the spool; wait while it is full. Raises OSError."""
        counted = False
        while True:
            if await self._run(lambda: self._own.append(data, records)):
                break
            if not counted:
                counted = True
                self._count("spool_full", 1)
                log.warning("sink %s: the spool is full", self._name)
            await self._change()
        self._count("accepted", records)
        if self._own.records < self._options.batch_records:
            self._ages.note(self._own.end, self._time())
        if self._is_due(self._own) or self._asleep:
            self._wake.set()

    async def flush(self) -> None:
        """Wait until what was accepted is delivered, or an attempt has failed."""
        goal = self._own.end
        self._flush_to = max(self._flush_to, goal)
        self._wake.set()
        while not self._condition.failing and (
            len(self._spools) > 1 or (self._own.start < goal and self._own.records)
        ):
            await self._change()

    def retry_now(self) -> None:
        """Make the next attempt, and poll the inboxes, now."""
        self._polled_at = 0.0
        self._work.hurry.set()
        self._wake.set()

    def finish(self) -> None:
        """Make last attempts, and end `run`."""
        self._work.closing = True
        self.retry_now()

    def health(self) -> Health:
        """The sink's condition."""
        age = 0.0
        if self._work.first:
            age = max(0.0, self._clock() - key_ns(self._work.first) / 1e9)
        elif self._own.records:
            age = max(0.0, self._options.batch_age - self._age_left())
        return Health(
            state=self._condition.state,
            until=self._condition.until,
            last_error=self._condition.last_error,
            queued_records=sum(spool.records for spool in self._spools),
            queued_bytes=sum(spool.size_bytes for spool in self._spools),
            in_flight=self._work.in_flight,
            oldest_age=age,
        )

    @property
    def spools(self) -> list[SegmentLog]:
        """The spools that are still open; the last one is the sink's own."""
        return self._spools

    # The loop

    async def run(self) -> None:
        """Deliver until `finish` was called and nothing more can be done."""
        try:
            while await self._guarded():
                pass
        except StoppedError:
            return

    async def _guarded(self) -> bool:
        """Make a step; no error ends the loop."""
        try:
            return await self._step()
        except StoppedError:
            raise
        except Exception as error:
            log.exception("sink %s: it cannot deliver", self._name)
            why = f"{type(error).__name__}: {error}"
            verdict = Verdict(Action.RETRY, why)
            await self._work.pause(verdict, last=self._work.closing)
            return True

    async def _step(self) -> bool:
        """Deliver a batch, or wait for one; return whether there may be more."""
        await self._poll_inboxes()
        spool = self._spools[0]
        if self._is_due(spool):
            await self._work.batch(spool)
        elif spool is not self._own:
            await self._run(spool.close)
            self._spools.pop(0)
            self._changed()
        elif self._work.closing:
            return False
        else:
            await self._wait()
        return True

    def _is_due(self, spool: SegmentLog) -> bool:
        if not spool.records:
            return False
        if spool is not self._own or self._work.closing or spool.start < self._flush_to:
            return True
        if (
            spool.records >= self._options.batch_records
            or spool.size_bytes >= self._loader.size.limit
        ):
            return True
        return self._age_left() <= 0

    def _age_left(self) -> float:
        """Seconds until the first record of the own spool has waited long enough."""
        return self._ages.left(self._own.start, self._own.end, self._time())

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()

    async def _wait(self) -> None:
        self._asleep = not self._own.records
        left = _INBOX_INTERVAL if self._asleep else self._age_left()
        self._wake.clear()
        self._work.first = b""
        try:
            async with asyncio.timeout(max(left, 0.001)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _poll_inboxes(self) -> None:
        now = self._time()
        if self._polled_at and now < self._polled_at + _INBOX_INTERVAL:
            return
        self._polled_at = now
        try:
            found = await self._run(self._inboxes)
        except OSError as error:
            log.warning("sink %s: cannot read its inboxes: %s", self._name, error)
            return
        for spool in found:
            self._count("recovered", spool.records)
            self._spools.insert(0, spool)

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter
