"""Records that a sink has already: a consumer's death writes none of them twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from time import monotonic

from logagg.abc import Batch, Sink
from logagg.core.event import Event
from logagg.core.line import KEY_END, record_id
from logagg.fanout.counters import SinkCounters
from logagg.fanout.runner_state import FIRST_RETRY, may_pass
from logagg.fanout.sink_spool import SinkSpool

__all__ = ["KnownRecords"]


TAKEOVER_TIMEOUT = 5.0


class KnownRecords:
    """Ids of records that the sink has, or will have from its spool.

    Args:
        sink: The sink, which is asked.
        spool: The records that wait for it on disk.
        counters: Counts the records that are left out.

    Attributes:
        ids: The ids that are known, of all that was asked for; each until its record
            has come.
        of_spool: Ids of a predecessor's spool that the sink has already.
    """

    def __init__(self, sink: Sink, spool: SinkSpool, counters: SinkCounters) -> None:
        self.ids: set[bytes] = set()
        self.of_spool: frozenset[bytes] = frozenset()
        self._sink = sink
        self._spool = spool
        self._counters = counters
        self._spooled: frozenset[bytes] = frozenset()
        self._wanted: list[bytes] = []
        self._lock = asyncio.Lock()

    async def take_over(self, recover: Callable[[], None]) -> None:
        """Take over what predecessors have spooled by now, before the sink is opened.

        Records that come while it cannot be opened are compared with these too, and
        wait after them. A disk that fails is waited for, TAKEOVER_TIMEOUT seconds:
        records that are written meanwhile would stand before older ones. Then the spool
        is left to the next consumer.

        Args:
            recover: Opens it; runs in a thread.
        """
        before = self._spool.recovered
        try:
            await _retried(recover)
            if self._spool.recovered > before:
                self._spooled = await asyncio.to_thread(self._spool.record_ids, b"")
                self.ids |= self._spooled
        except OSError as error:
            what = f"cannot read its spool: {error}"
            self._counters.announce(Event.SINK_ERROR, what)

    async def compare(self) -> None:
        """Find which of those records the sink has, once it is open."""
        if self._spooled:
            # The lowest stamp of all: late records wait after younger ones.
            oldest = min(self._spooled)[:KEY_END]
            try:
                written = await self._sink.written_since(oldest)
            except OSError as error:
                what = f"cannot compare its spool with what it has: {error}"
                self._counters.announce(Event.SINK_ERROR, what)
            else:
                self.of_spool = self._spooled & written
            self._spooled = frozenset()

    async def extend(self, since: bytes) -> None:
        """Add the records since a sort key. Raises what the sink does.

        Calls that come while the sink answers another one are answered together.
        """
        self._wanted.append(since)
        if self._spool.records:  # first: records go from there to the sink
            self.ids |= await asyncio.to_thread(self._spool.record_ids, since)
        async with self._lock:
            if self._wanted:  # else a call that began later has answered it
                oldest, self._wanted = min(self._wanted), []
                try:
                    found = await self._sink.written_since(oldest)
                except BaseException:
                    self._wanted.append(oldest)  # others' as well: they retry
                    raise
                self.ids |= found

    def forget(self) -> None:
        """No record can come any more that an earlier consumer may have written."""
        self.ids.clear()

    def fresh_of_stream(self, batch: Batch, suspects: frozenset[bytes]) -> Batch:
        """The batch less the records that are known, of those under suspicion."""
        known = suspects & self.ids
        self.ids -= known
        return self.fresh(batch, known)

    def fresh(self, batch: Batch, known: AbstractSet[bytes]) -> Batch:
        """The batch less the records with these ids."""
        if not known:
            return batch
        lines = [line for line in batch.lines if record_id(line) not in known]
        self._counters.duplicates += len(batch) - len(lines)
        return batch.select(lines)


async def _retried(call: Callable[[], None]) -> None:
    """Call in a thread; for TAKEOVER_TIMEOUT seconds again, after what may pass."""
    deadline = monotonic() + TAKEOVER_TIMEOUT
    while True:
        try:
            return await asyncio.to_thread(call)
        except OSError as error:
            if not may_pass(error) or monotonic() > deadline:
                raise
        await asyncio.sleep(FIRST_RETRY)
