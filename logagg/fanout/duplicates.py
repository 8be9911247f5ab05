"""Records that a sink has already: a consumer's death writes none of them twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from time import monotonic

from logagg.abc import Batch, Sink
from logagg.core.event import Event
from logagg.core.line import KEY_END, record_id
from logagg.errors import TargetOwned
from logagg.fanout.counters import SinkCounters
from logagg.fanout.runner_state import FIRST_RETRY, may_pass
from logagg.fanout.sink_spool import SinkSpool

__all__ = ["KnownRecords"]


TAKEOVER_TIMEOUT = 5.0

MOST_UNCHECKED = 500_000
"""Ids of records that are kept until the sink can be asked for them: about 100 MB."""


class KnownRecords:
    """Ids of records that the sink has, or will have from its spool.

    Args:
        sink: The sink, which is asked.
        spool: The records that wait for it on disk.
        counters: Counts the records that are left out.

    Attributes:
        ids: The ids that are known, of all that was asked for; each until its record
            has come.
        is_open: Whether the sink was opened, so that it can be asked.
        waiting: Ids of records that the sink has already, though they wait for it: in a
            predecessor's spool, or since it could not be asked when they came.
    """

    def __init__(self, sink: Sink, spool: SinkSpool, counters: SinkCounters) -> None:
        self.ids: set[bytes] = set()
        self.is_open = False
        self.waiting: frozenset[bytes] = frozenset()
        self._sink = sink
        self._spool = spool
        self._counters = counters
        self._spooled: frozenset[bytes] = frozenset()
        self._wanted: list[bytes] = []
        self._is_postponed = False  # until the sink is open
        self._unchecked: set[bytes] = set()  # what came meanwhile
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

    async def compare(self, recover: Callable[[], None]) -> None:
        """Find which records the sink has of those that wait for it, once it is open.

        Among them is what the owner of the target has spooled that ended while opening
        the sink waited for that: it is taken over as before.
        """
        await self.take_over(recover)
        while waiting := self._spooled | self._unchecked:  # more may come meanwhile
            self._spooled, self._unchecked = frozenset(), set()
            # The lowest stamp of all: late records wait after younger ones.
            oldest = min(waiting)[:KEY_END]
            try:
                written = await self._sink.written_since(oldest)
            except OSError as error:
                what = f"cannot compare its spool with what it has: {error}"
                self._counters.announce(Event.SINK_ERROR, what)
            else:
                self.waiting |= waiting & written
        self._is_postponed, self.is_open = False, True

    async def extend(self, since: bytes) -> None:
        """Add the records since a sort key. Raises what the sink does.

        Calls that come while the sink answers another one are answered together. While
        another consumer owns the target, the question is put off: see `postpone`.
        """
        self._wanted.append(since)
        if self._spool.records:  # first: records go from there to the sink
            self.ids |= await asyncio.to_thread(self._spool.record_ids, since)
        async with self._lock:
            if self._wanted:  # else a call that began later has answered it
                oldest, self._wanted = min(self._wanted), []
                try:
                    found = await self._sink.written_since(oldest)
                except TargetOwned:
                    self.postpone()
                except BaseException:
                    self._wanted.append(oldest)  # others' as well: they retry
                    raise
                else:
                    self.ids |= found

    def postpone(self) -> None:
        """Ask for the records that come from now on when the sink is open.

        At most MOST_UNCHECKED of them; those beyond may be written twice.
        """
        self._is_postponed = True

    def forget(self) -> None:
        """No record can come any more that an earlier consumer may have written."""
        self.ids.clear()

    def fresh_of_stream(self, batch: Batch, suspects: frozenset[bytes]) -> Batch:
        """The batch less the records that are known, of those under suspicion."""
        known = suspects & self.ids
        self.ids -= known
        if self._is_postponed and len(self._unchecked) < MOST_UNCHECKED:
            self._unchecked |= suspects - known
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
