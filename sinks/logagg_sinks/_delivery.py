"""The loop that empties a spool into a target: batches, retries, halves, dead letters.

Theory of operation
-------------------
What `write` accepted stands in the sink's own spool; spools that others left behind
stand before it. The loop takes the first spool that has something due, makes one batch
from its beginning, and does not go on before every record of the batch is settled:
taken, or a dead letter. So the order is kept, memory holds one batch, and the spool's
start is always the first record that is not settled.

A batch is worked off as a stack of pieces, the first on top. A piece that is too large,
or that holds something the target refuses, is replaced by its halves; a single record
that is still refused is a dead letter. Records of a piece that the target wants again
(Elasticsearch) make a smaller piece.

A piece that fails is sent again after a pause (`Backoff`), or, where nothing would be
taken anyway (wrong token), after `probe_interval`. At the end a pause is cut short, one
more attempt is made, and what then is left stays in the spool.

Everything mutable here is touched by the asyncio loop's thread only, except spools and
dead letters, which are touched by the sink's own thread only (`run`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from logagg import wire
from logagg_sinks._ages import Ages
from logagg_sinks._batching import Item, Load, cut, is_older, load, shorten
from logagg_sinks._exchange import Exchange, Run
from logagg_sinks._health import Health, State
from logagg_sinks._ledger import Ledger, Letters, Refused
from logagg_sinks._retry import Action, Backoff
from logagg_sinks._spool import Spool, SpoolFullError
from logagg_sinks._target import HttpOptions, Target, Verdict

__all__ = ["Delivery"]

log = logging.getLogger("logagg.network")

_INBOX_INTERVAL = 10.0
_CUT_OFF_LIMIT = 3  # so many resets in a row, for so many bytes, mean: too large
_CUT_OFF_BYTES = 64 * 1024
_SMALLEST_LIMIT = 1024


class _StoppedError(Exception):
    """The end has come, and the last attempt has failed."""


class Delivery:
    """Delivers what is in spools.

    Args:
        name: The sink, for messages and dead letters.
        target: What is particular about the target.
        exchange: Sends a batch.
        options: The sink's options.
        spools: Spools to empty; the last one is the sink's own.
        letters: Where dead letters go; None throws them away, counted.
        inboxes: Finds further spools; called on the sink's thread.
        run: Runs what blocks on the sink's thread.
        count: Adds to a counter.
        clock: Seconds since the epoch.
        sleep: Waits so many seconds.
        chance: A random number from 0 to 1.
    """

    def __init__(
        self,
        *,
        name: str,
        target: Target,
        exchange: Exchange,
        options: HttpOptions,
        spools: list[Spool],
        letters: Letters | None,
        inboxes: Callable[[], Sequence[Spool]],
        run: Run,
        count: Callable[[str, int], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[Any]],
        chance: Callable[[], float],
    ) -> None:
        self._name = name
        self._target = target
        self._exchange = exchange
        self._options = options
        self._spools = spools
        self._own = spools[-1]
        self._letters = letters
        self._inboxes = inboxes
        self._run = run
        self._count = count
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._backoff = Backoff(options.retry_max)
        self._limit = options.batch_bytes
        self._state = State.OK
        self._until = 0.0
        self._last_error = ""
        self._failing = False
        self._in_flight = 0
        self._first: bytes = b""  # the oldest record that is not settled
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()  # cuts a pause short
        self._waiters: list[asyncio.Future[None]] = []
        self._closing = False
        self._asleep = False  # nothing waits, so nothing will be due by age
        self._flush_to = 0
        self._ages = Ages(options.batch_age)  # of what waits in the own spool
        self._looked = 0.0
        self._ledger = Ledger()
        for spool in spools:
            if spool.records:
                count("recovered", spool.records)

    # What the sink calls

    async def accept(self, data: bytes, records: int) -> None:
        """Put records into the spool; wait while it is full. Raises OSError."""
        told = False
        while True:
            try:
                await self._run(lambda: self._own.append(data, records))
            except SpoolFullError:
                if not told:
                    told = True
                    self._count("spool_full", 1)
                    log.warning("sink %s: the spool is full", self._name)
                await self._change()
            else:
                break
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
        while not self._failing and (
            len(self._spools) > 1 or (self._own.start < goal and self._own.records)
        ):
            await self._change()

    def hurry(self) -> None:
        """Try again now; look for inboxes now."""
        self._looked = 0.0
        self._hurry.set()
        self._wake.set()

    def finish(self) -> None:
        """Make `run` end: it makes last attempts."""
        self._closing = True
        self.hurry()

    def health(self) -> Health:
        """How the sink is."""
        age = 0.0
        if self._first:
            age = max(0.0, self._clock() - wire.key_ns(self._first) / 1e9)
        elif self._own.records:
            age = max(0.0, self._options.batch_age - self._age_left())
        return Health(
            state=self._state,
            until=self._until,
            last_error=self._last_error,
            queued_records=sum(spool.records for spool in self._spools),
            queued_bytes=sum(spool.end - spool.start for spool in self._spools),
            in_flight=self._in_flight,
            oldest_age=age,
        )

    @property
    def spools(self) -> list[Spool]:
        """The spools that are still open; the last one is the sink's own."""
        return self._spools

    # The loop

    async def run(self) -> None:
        """Deliver until `finish` was called and nothing more can be done."""
        try:
            while True:
                await self._look_for_inboxes()
                spool = self._spools[0]
                if self._is_due(spool):
                    await self._batch(spool)
                elif spool is not self._own:
                    await self._run(spool.close)
                    self._spools.pop(0)
                    self._changed()
                elif self._closing:
                    return
                else:
                    await self._wait()
        except _StoppedError:
            return

    def _is_due(self, spool: Spool) -> bool:
        if not spool.records:
            return False
        if spool is not self._own or self._closing or spool.start < self._flush_to:
            return True
        if (
            spool.records >= self._options.batch_records
            or spool.end - spool.start >= self._limit
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
        self._first = b""
        try:
            async with asyncio.timeout(max(left, 0.001)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _look_for_inboxes(self) -> None:
        now = self._time()
        if self._looked and now < self._looked + _INBOX_INTERVAL:
            return
        self._looked = now
        for spool in await self._run(self._inboxes):
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

    # One batch

    def _load(self, spool: Spool) -> Load:
        """Make the next batch; on the sink's thread."""
        until = spool.until if spool.until > spool.start else None
        most = self._options.batch_bytes
        if until is not None:
            most = max(most, until - spool.start)
        position, data = spool.read(spool.start, most)
        found = load(
            data,
            position,
            self._encode,
            records=self._options.batch_records,
            body_bytes=self._limit,
            oldest=self._oldest(),
            until=until,
        )
        spool.begin(found.end)
        return found

    def _encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        if len(line) > self._options.record_bytes:
            line = shorten(line, self._options.record_bytes)
            self._count("truncated", 1)
        return self._target.encode(line)

    def _oldest(self) -> bytes:
        if not self._options.max_age:
            return b""
        return wire.timestamp(int((self._clock() - self._options.max_age) * 1e9))

    async def _batch(self, spool: Spool) -> None:
        found = await self._run(lambda: self._load(spool))
        ends = [item.end for item in found.items] + [end for end, *_ in found.refused]
        self._ledger = Ledger(ends)
        if not ends:  # files vanished
            lost = spool.records
            self._count("dropped", lost)
            await self._run(lambda: spool.done(spool.end, lost))
            return
        if found.refused:
            await self._refuse(spool, found.refused)
        stack = [found.items] if found.items else []
        self._first = found.items[0].line if found.items else b""
        while stack:
            await self._piece(spool, stack)

    async def _piece(self, spool: Spool, stack: list[list[Item]]) -> None:
        piece = stack.pop()
        size = sum(item.size for item in piece)
        if len(piece) > 1 and size > 2 * self._limit:
            stack += reversed(cut(piece))  # what was learnt about the target since
            return
        piece, verdict = await self._settle(spool, piece)
        if not piece:
            return
        if verdict.action is Action.OK:
            await self._taken(spool, piece, verdict)
            if verdict.again:
                stack.append([piece[index] for index in verdict.again])
        elif verdict.action in (Action.SPLIT, Action.BISECT) and len(piece) > 1:
            self._count("splits", 1)
            if verdict.action is Action.SPLIT:
                self._limit = max(min(self._limit, size // 2), _SMALLEST_LIMIT)
            stack += reversed(cut(piece))
        else:
            await self._dead(spool, piece, verdict.reason, verdict)

    async def _settle(
        self, spool: Spool, piece: list[Item]
    ) -> tuple[list[Item], Verdict]:
        """Send a piece until there is nothing to wait for; return what is left of it.

        Raises:
            _StoppedError: The end has come.
        """
        failures = cut_off = 0
        while True:
            piece = await self._expire(spool, piece)
            if not piece:
                return piece, Verdict(Action.OK)
            self._in_flight = len(piece)
            name = f"{spool.id}-{piece[0].end}-{piece[-1].end}-{len(piece)}"
            last = self._closing
            verdict = await self._exchange.send(piece, name)
            self._in_flight = 0
            failures += 1
            verdict.attempts = failures
            if verdict.action is Action.OK and verdict.again and not verdict.at_once:
                await self._taken(spool, piece, verdict)
                piece = [piece[index] for index in verdict.again]
                verdict = Verdict(Action.RETRY, verdict.reason, asked=verdict.asked)
            cut_off = cut_off + 1 if verdict.cut_off else 0
            if cut_off >= _CUT_OFF_LIMIT and len(piece) > 1 and _is_large(piece):
                verdict.action = Action.SPLIT
            if verdict.action not in (Action.RETRY, Action.HOLD):
                self._recovered()
                return piece, verdict
            if verdict.action is Action.RETRY and failures == self._options.attempts:
                verdict.action = Action.DEAD
                verdict.reason = f"gave up after {failures} attempts: {verdict.reason}"
                self._recovered()
                return piece, verdict
            if verdict.ambiguous:
                self._count("ambiguous_retries", 1)
            await self._pause(verdict, last=last)
            self._count("retried", len(piece))

    async def _expire(self, spool: Spool, piece: list[Item]) -> list[Item]:
        oldest = self._oldest()
        old = [item for item in piece if is_older(item.line, oldest)]
        if not old:
            return piece
        await self._dead(spool, old, "expired")
        return [item for item in piece if not is_older(item.line, oldest)]

    async def _pause(self, verdict: Verdict, *, last: bool) -> None:
        """Wait before the next attempt. Raises `_StoppedError` when there is none."""
        if verdict.action is Action.HOLD:
            seconds = max(self._options.probe_interval, verdict.asked or 0.0)
            state = State.SUSPENDED
        else:
            seconds = self._backoff.next(self._chance(), verdict.asked)
            state = State.RETRYING if verdict.asked is None else State.THROTTLED
        self._tell(state, verdict.reason)
        self._until = self._clock() + seconds
        self._failing = True
        self._changed()
        if last:
            raise _StoppedError
        if not self._closing:
            self._hurry.clear()
            await _first_of(self._sleep(seconds), self._hurry.wait())
        self._until = 0.0

    def _tell(self, state: State, reason: str) -> None:
        """Say it once when the state changes; a suspension is an alarm."""
        self._last_error = reason
        if state is self._state:
            return
        if state is State.SUSPENDED:
            log.error(
                "sink %s is suspended, records are parked: %s", self._name, reason
            )
        elif self._state in (State.OK, State.SUSPENDED):
            log.warning("sink %s fails, records are parked: %s", self._name, reason)
        self._state = state

    def _recovered(self) -> None:
        self._backoff.reset()
        self._failing = False
        self._until = 0.0
        if self._state is not State.OK:
            self._state = State.OK
            log.info("sink %s has recovered", self._name)

    # Settling records

    async def _taken(
        self, spool: Spool, piece: Sequence[Item], verdict: Verdict
    ) -> None:
        """Settle what a success says about a piece; `again` is left."""
        if verdict.refused:
            refused = [
                (piece[index].end, piece[index].line, reason)
                for index, reason in sorted(verdict.refused.items())
            ]
            await self._refuse(spool, refused, verdict)
        rest = {*verdict.refused, *verdict.again}
        good = [item.end for index, item in enumerate(piece) if index not in rest]
        uncounted = min(verdict.uncounted, len(good))
        if uncounted:
            self._count("rejected_partial", uncounted)
            log.warning(
                "sink %s: the target refused %d records: %s",
                self._name,
                uncounted,
                verdict.text,
            )
        elif verdict.warning:
            log.warning("sink %s: the target says: %s", self._name, verdict.text)
        self._count("acked", len(good) - uncounted)
        await self._settle_in(spool, good)

    async def _settle_in(self, spool: Spool, ends: Sequence[int]) -> None:
        settled = self._ledger.settle(ends)
        if settled is not None:
            position, records = settled
            await self._run(lambda: spool.done(position, records))
        self._changed()

    async def _dead(
        self,
        spool: Spool,
        items: Sequence[Item],
        reason: str,
        verdict: Verdict | None = None,
    ) -> None:
        lines = [(item.end, item.line, reason) for item in items]
        await self._refuse(spool, lines, verdict)

    async def _refuse(
        self,
        spool: Spool,
        lines: Sequence[Refused],
        verdict: Verdict | None = None,
    ) -> None:
        """Make dead letters; for as long as the disk refuses them, try again."""
        letters = self._letters
        attempt = 0
        while letters is not None:
            try:
                await self._run(lambda: letters.write(lines, verdict))
                break
            except OSError as error:
                why = f"cannot write dead letters: {error.strerror or error}"
                attempt += 1
                await self._pause(
                    Verdict(Action.RETRY, why), last=self._closing and attempt > 1
                )
        self._count("dropped" if letters is None else "dead_lettered", len(lines))
        await self._settle_in(spool, [end for end, *_ in lines])


def _is_large(piece: Sequence[Item]) -> bool:
    return sum(item.size for item in piece) > _CUT_OFF_BYTES


async def _first_of(*calls: Awaitable[Any]) -> None:
    """Wait for the first of these; cancel the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
