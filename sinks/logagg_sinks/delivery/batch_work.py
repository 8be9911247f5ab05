"""Work on one batch: send pieces of it until every record is final.

A batch is a stack of pieces, the first on top. A piece that is too large, or that holds
something the target refuses, is replaced by its halves; a single record that is still
refused is a dead letter. Records of a piece that the target wants again (Elasticsearch)
make a smaller piece.

A piece that fails is sent again after a pause (`RetryDelay`), or after `probe_interval`
if the target refuses everything (wrong token). Neither may every record become a dead
letter: after ten refused in a row (`Refusals`) the sink is suspended, and each
`probe_interval` one record is tried alone. On closing, a pause is cut short, one more
attempt is made, and the rest stays in the spool.

The spool's cursor has the end of the piece that is in flight, so a successor sends the
same piece under the same name first, also when this process was killed amid halving.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from logagg.segment_log import SegmentLog
from logagg_sinks.delivery.batching import Item, Ledger, Refused, cut, is_older
from logagg_sinks.delivery.condition import Refusals, SinkCondition, SinkState
from logagg_sinks.delivery.dead_letters import Letters
from logagg_sinks.delivery.delivery_options import DeliveryOptions
from logagg_sinks.delivery.loader import Loader, Runtime
from logagg_sinks.delivery.retry import Action, RetryDelay
from logagg_sinks.delivery.verdict import Verdict

__all__ = ["BatchWork", "PieceIdentity", "Send", "StoppedError"]

T = TypeVar("T")


class PieceIdentity(NamedTuple):
    """The identity of the records of a request, the same whenever they are sent again.

    Attributes:
        name: A name that no other records have.
        log: The id of the spool that they are from.
        first: How many records of that spool were before them.
        following: The same for the record after them.
    """

    name: str
    log: str
    first: int
    following: int


Send = Callable[[Sequence[Item], PieceIdentity], Awaitable[Verdict]]
"""Sends records as one request, and judges its outcome."""

_CUT_OFF_LIMIT = 3  # so many resets in a row, for so many bytes, mean: too large
_CUT_OFF_BYTES = 64 * 1024


class StoppedError(Exception):
    """The sink is being closed, and the last attempt has failed."""


class BatchWork:
    """Sends the batches of a sink's spools, one piece at a time.

    Args:
        condition: The sink's state.
        loader: Makes batches.
        send: Sends a piece.
        options: The sink's options.
        letters: The file of dead letters; None drops them, counted.
        runtime: The sink's thread, counters and clocks.
        changed: Called when records became final, or an attempt has failed.

    Attributes:
        closing: Attempts that fail now are the last ones.
        hurry: Cuts a pause short.
        in_flight: How many records are in the request at hand.
        first: The oldest record that is not final.
    """

    def __init__(
        self,
        *,
        condition: SinkCondition,
        loader: Loader,
        send: Send,
        options: DeliveryOptions,
        letters: Letters | None,
        runtime: Runtime,
        changed: Callable[[], None],
    ) -> None:
        self.closing = False
        self.hurry = asyncio.Event()
        self.in_flight = 0
        self.first = b""
        self._condition = condition
        self._loader = loader
        self._exchange = send
        self._options = options
        self._letters = letters
        self._run = runtime.run
        self._count = runtime.count
        self._clock = runtime.clock
        self._sleep = runtime.sleep
        self._chance = runtime.chance
        self._changed = changed
        self._backoff = RetryDelay(options.retry_max)
        self._refusals = Refusals()
        self._probing = False  # the next piece is one of those records, alone
        self._ledger = Ledger()
        self._ends: list[int] = []  # of the records of the batch
        self._consumed = 0  # records of the spool before it

    async def batch(self, spool: SegmentLog) -> None:
        """Make a batch from the beginning of a spool, and make its records final.

        Raises:
            StoppedError: The end has come; some are not final.
        """
        found = await self._run(lambda: self._loader.load(spool))
        ends = [item.end for item in found.items] + [end for end, *_ in found.refused]
        self._ledger = Ledger(ends)
        self._ends, self._consumed = sorted(ends), spool.consumed
        if not ends:  # its files were removed
            lost = spool.records
            self._count("dropped", lost)
            await self._run(lambda: spool.done(spool.end, lost))
            return
        if found.refused:
            await self._refuse(spool, found.refused)
        stack = [found.items] if found.items else []
        self.first = found.items[0].line if found.items else b""
        while stack:
            await self._piece(spool, stack)

    async def _piece(self, spool: SegmentLog, stack: list[list[Item]]) -> None:
        piece = stack.pop()
        if len(piece) > 1 and _size(piece) > 2 * self._loader.size.limit:
            stack += reversed(cut(piece))  # the limit is lower by now
            return
        piece, verdict = await self._send(spool, piece)
        if not piece:
            return
        if verdict.action in (Action.SPLIT, Action.BISECT) and len(piece) > 1:
            self._count("splits", 1)
            if verdict.action is Action.SPLIT:
                self._loader.size.lower(_size(piece) // 2)
            stack += reversed(cut(piece))
            return
        if self._is_suspicious(piece, verdict):
            if not verdict.final:
                await self._suspend(verdict)
                self._probing = True
                stack += [piece[1:], piece[:1]] if len(piece) > 1 else [piece]
                return
            await self._finish(spool, piece, verdict)
            await self._suspend(verdict)
            return
        await self._finish(spool, piece, verdict)
        if verdict.again:
            stack.append([piece[index] for index in verdict.again])

    async def _finish(
        self, spool: SegmentLog, piece: Sequence[Item], verdict: Verdict
    ) -> None:
        if verdict.action is Action.OK:
            await self._taken(spool, piece, verdict)
        else:
            await self._dead(spool, piece, verdict.reason, verdict)

    def _is_suspicious(self, piece: Sequence[Item], verdict: Verdict) -> bool:
        """Note what became of a piece; return whether too much is refused in a row."""
        if verdict.gave_up:
            return False
        probing, self._probing = self._probing, False
        bad = verdict.lost(len(piece))
        if bad + len(verdict.again) < len(piece):
            self._refusals.taken()
            self._loader.size.succeeded()
        elif self._refusals.suspicious(bad):
            if probing or verdict.final:
                self._refusals.refused(bad)
            return not probing
        else:
            self._refusals.refused(bad)
        self._condition.good()
        return False

    async def _suspend(self, verdict: Verdict) -> None:
        self._refusals.exhaust()
        why = verdict.reason or next(iter(verdict.refused.values()), verdict.text)
        text = f"the target refuses every record: {why}"
        await self.pause(Verdict(Action.HOLD, text), last=self.closing)

    async def _send(
        self, spool: SegmentLog, piece: list[Item]
    ) -> tuple[list[Item], Verdict]:
        """Send a piece until there is nothing to wait for; return what is left of it.

        Raises:
            StoppedError: The end has come.
        """
        failures = cut_off = 0
        while True:
            piece = await self._expire(spool, piece)
            if not piece:
                return piece, Verdict(Action.OK)
            verdict, last = await self._attempt(spool, piece)
            failures += 1
            verdict.attempts = failures
            if verdict.action is Action.OK and verdict.again and not verdict.at_once:
                piece, verdict = await self._retry_some(spool, piece, verdict)
            cut_off = cut_off + 1 if verdict.cut_off else 0
            large = len(piece) > 1 and _size(piece) > _CUT_OFF_BYTES
            if cut_off >= _CUT_OFF_LIMIT and large:
                verdict.action = Action.SPLIT
            if verdict.action not in (Action.RETRY, Action.HOLD):
                self._backoff.reset()
                return piece, verdict
            if verdict.action is Action.RETRY and failures == self._options.attempts:
                verdict.action = Action.DEAD
                verdict.gave_up = True
                verdict.reason = f"gave up after {failures} attempts: {verdict.reason}"
                return piece, verdict
            if verdict.ambiguous:
                self._count("ambiguous_retries", 1)
            await self.pause(verdict, last=last)
            self._count("retried", len(piece))

    async def _attempt(
        self, spool: SegmentLog, piece: list[Item]
    ) -> tuple[Verdict, bool]:
        """Send a piece once; return its verdict, and whether it was the last attempt."""
        end = piece[-1].end
        if spool.until != end:
            await self._run(lambda: self._loader.begin(spool, end))
        sent = PieceIdentity(
            f"{spool.id}-{piece[0].end}-{end}-{len(piece)}",
            spool.id,
            self._consumed + bisect_left(self._ends, piece[0].end),
            self._consumed + bisect_left(self._ends, end) + 1,
        )
        last = self.closing
        self.in_flight = len(piece)
        try:
            return await self._exchange(piece, sent), last
        finally:
            self.in_flight = 0

    async def _retry_some(
        self, spool: SegmentLog, piece: list[Item], verdict: Verdict
    ) -> tuple[list[Item], Verdict]:
        """Finalize what is final of a piece; the rest is to be sent again later."""
        bad = verdict.lost(len(piece))
        if bad + len(verdict.again) < len(piece):
            self._refusals.taken()
        if not (bad and self._refusals.suspicious(bad)):
            self._refusals.refused(bad)
            await self._taken(spool, piece, verdict)
            piece = [piece[index] for index in verdict.again]
        action = Action.HOLD if verdict.hold else Action.RETRY
        return piece, Verdict(action, verdict.reason, asked=verdict.asked)

    async def _expire(self, spool: SegmentLog, piece: list[Item]) -> list[Item]:
        oldest = self._loader.oldest()
        old = [item for item in piece if is_older(item.line, oldest)]
        if not old:
            return piece
        await self._dead(spool, old, "expired")
        return [item for item in piece if not is_older(item.line, oldest)]

    async def pause(self, verdict: Verdict, *, last: bool) -> None:
        """Wait before the next attempt. Raises `StoppedError` when there is none."""
        if verdict.action is Action.HOLD:
            seconds = max(self._options.probe_interval, verdict.asked or 0.0)
            state = SinkState.SUSPENDED
        else:
            seconds = self._backoff.next(self._chance(), verdict.asked)
            state = SinkState.RETRYING if verdict.asked is None else SinkState.THROTTLED
        self._condition.bad(state, verdict.reason, self._clock() + seconds)
        self._changed()
        if last:
            raise StoppedError
        if not self.closing:
            self.hurry.clear()
            await _first_of(self._sleep(seconds), self.hurry.wait())
        self._condition.until = 0.0

    # Records that are final

    async def _taken(
        self, spool: SegmentLog, piece: Sequence[Item], verdict: Verdict
    ) -> None:
        """Finalize the records that a success is about; `again` is left."""
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
            self._condition.warn(f"lost {uncounted} records: refused: {verdict.text}")
        elif verdict.warning:
            self._condition.warn(f"was answered: {verdict.text}")
        if verdict.aside:
            self._count("failure_stored", verdict.aside)
            text = f"{verdict.aside} records went to the failure store: {verdict.text}"
            self._condition.warn(text)
        self._count("acked", len(good) - uncounted - verdict.aside)
        await self._finalize(spool, good)

    async def _finalize(self, spool: SegmentLog, ends: Sequence[int]) -> None:
        moved = self._ledger.finalize(ends)
        if moved:
            self._note_failure(await self._whole(lambda: _done(spool, moved)))
        self._changed()

    async def _whole(self, call: Callable[[], T]) -> T:
        """Run a call on the sink's thread, also when it must not be waited for.

        The end of the sink's grace cancels what it waits for. What is counted as final
        must be noted in the spool all the same.
        """
        return await asyncio.shield(asyncio.ensure_future(self._run(call)))

    def _note_failure(self, error: OSError | None) -> None:
        if error is not None:  # at worst a successor sends them again
            self._condition.warn(f"cannot note what is final: {error}")

    async def _dead(
        self,
        spool: SegmentLog,
        items: Sequence[Item],
        reason: str,
        verdict: Verdict | None = None,
    ) -> None:
        lines = [(item.end, item.line, reason) for item in items]
        await self._refuse(spool, lines, verdict)

    async def _refuse(
        self,
        spool: SegmentLog,
        lines: Sequence[Refused],
        verdict: Verdict | None = None,
    ) -> None:
        """Make dead letters; for as long as the disk refuses them, try again.

        Letters and the spool's new start are one call: no letter is written twice
        because the end came between them.
        """
        letters = self._letters
        moved = self._ledger.finalize([end for end, *_ in lines])

        def settle() -> OSError | None:
            if letters is not None:
                letters.write(lines, verdict)
            self._count("dropped" if letters is None else "dead_lettered", len(lines))
            return _done(spool, moved)

        attempt = 0
        while True:
            try:
                self._note_failure(await self._whole(settle))
                break
            except OSError as error:
                why = f"cannot write dead letters: {error.strerror or error}"
                attempt += 1
                await self.pause(
                    Verdict(Action.RETRY, why), last=self.closing and attempt > 1
                )
        self._changed()


def _done(spool: SegmentLog, moved: tuple[int, int] | None) -> OSError | None:
    try:
        if moved is not None:
            spool.done(*moved)
    except OSError as error:
        return error
    return None


def _size(piece: Sequence[Item]) -> int:
    return sum(item.size for item in piece)


async def _first_of(*calls: Awaitable[Any]) -> None:
    """Wait for the first of these; cancel the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
