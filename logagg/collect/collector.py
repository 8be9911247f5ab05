"""The collector: reads a stream, orders the records of all hosts, and fans them out.

Theory of operation
-------------------
One loop: read messages (`logagg.fleet.stream_reader`), leave out what has come before and
count what is missing (`RecordNumbers`), merge (`FleetMerge`), offer the released lines to
the sinks as a batch (`logagg.fanout`). A message is done when the durable sinks have all
of its lines; the *floor* is the message up to which all are done. It is written, with the
record numbers at it, as the state of the collector (`logagg.fleet.lease`).

A collector that follows begins after the floor. What was written of the messages there is
known to the durable sinks, which are asked for it (`Fanout.recall`) before a line of a
message is offered that the predecessor may have written. So each record is written once,
whichever process is killed when.

Without the lease nothing is offered to the sinks. While it cannot be renewed (servers
away) the collector waits; when another one has it, this one ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from logagg.abc import Batch
from logagg.collect.collect_options import CollectOptions, SourceOptions
from logagg.collect.fleet_merge import FleetMerge
from logagg.collect.poison_file import PoisonFile
from logagg.collect.record_numbers import RecordNumbers
from logagg.core.event import Event
from logagg.core.line import (
    dump_line,
    key_of,
    received_suffix,
    record_id,
    timestamp_bytes,
)
from logagg.core.record import own_record
from logagg.errors import ExitStatus
from logagg.fanout.fanout import Fanout
from logagg.fleet.jetstream import stream_info
from logagg.fleet.lease import CollectorState, Lease, LeaseLostError
from logagg.fleet.message import decode
from logagg.fleet.nats_connection import NatsAddress, NatsConnection, NatsError
from logagg.fleet.stream_reader import StoredMessage, StreamReader
from logagg.ownership import TargetOwners
from logagg.sinks import build

__all__ = ["FleetCollector"]

_CLOSING = b"}\n"
_FETCH_WAIT = 0.2
_BLOCKED_WAIT = 0.01
_SAVE_INTERVAL = 1.0
_RETRY = 0.5
_GRACE = 10.0


class FleetCollector:
    """The life of one collector.

    Args:
        address: The servers and the stream.
        source: How the stream is read.
        options: Where records go.
        poison: Where messages go that cannot be read.
        show: Shows a line of text to people.
    """

    def __init__(
        self,
        address: NatsAddress,
        source: SourceOptions,
        options: CollectOptions,
        poison: PoisonFile,
        show: Any,
    ) -> None:
        self._address = address
        self._source = source
        self._options = options
        self._poison = poison
        self._show = show
        self._stop = asyncio.Event()
        self._connection = NatsConnection(
            address, source, f"logagg collect {source.name}"
        )
        self._reader = StreamReader(self._connection, address.stream, source.filter)
        self._merge = FleetMerge(
            int(source.delay * 1e9), int(source.wait * 1e9), source.max_held
        )
        owners = TargetOwners("", lambda: False, self._not_locked)
        self._fanout = Fanout(self._event, lambda: None, owners=owners)
        self._numbers = RecordNumbers()
        self._floor = RecordNumbers()
        self._state = CollectorState()
        self._lease = Lease(
            NatsConnection(address, source, f"logagg lease {source.name}"),
            source.name,
            source.lease,
        )
        self._lost: LeaseLostError | None = None
        self._open: dict[int, tuple[str, int]] = {}  # messages in order, until done
        self._done: set[int] = set()
        self._offered: deque[tuple[int, list[int]]] = deque()  # batches, their messages
        self._suspect_until = 0
        self._suspects = 0  # messages held that a predecessor may have written
        self._oldest = self._recalled = b"~"  # of their lines; before all: none

    def stop(self) -> None:
        """End in good order."""
        self._stop.set()

    async def run(self) -> int:
        """Collect until `stop`; return the exit status."""
        try:
            if not await self._begin():
                return ExitStatus.OK
            renewal = asyncio.ensure_future(self._renew())
            try:
                return await self._collect()
            finally:
                renewal.cancel()
                await asyncio.gather(renewal, return_exceptions=True)
                if self._lost is None:
                    await self._hand_over()
        finally:
            await self._connection.close()
            await self._lease.close()

    async def _collect(self) -> int:
        for url in self._options.sinks:
            await self._fanout.add(url, build(url))
        self._show("collecting")
        try:
            while not self._stop.is_set() and not self._fanout.failed:
                await self._cycle()
            await self._offer(final=True)
        except LeaseLostError as error:
            self._show(f"logagg: {error}; this collector ends")
            await self._fanout.close(0.0)
            return ExitStatus.FAILED
        lost = await self._fanout.close(_GRACE)
        if not lost:
            self._advance()
        if self._fanout.failed:
            return ExitStatus.FAILED
        return ExitStatus.UNWRITTEN if lost else ExitStatus.OK

    # ---- begin and end ------------------------------------------------------------

    async def _begin(self) -> bool:
        """Wait for the stream and the lease; return False when `stop` came before."""
        work = asyncio.ensure_future(self._take_over())
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not work.done():
            work.cancel()
            return False
        work.result()
        return True

    async def _take_over(self) -> None:
        shown = ""
        while True:
            try:
                return await self._take_over_once()
            except NatsError as error:
                if str(error) != shown:
                    shown = str(error)
                    self._show(f"logagg: waiting: {shown}")
                await self._connection.close()
                await asyncio.sleep(_RETRY)

    async def _take_over_once(self) -> None:
        info = await stream_info(self._connection, self._address.stream)
        if info is None:
            raise NatsError(f"there is no stream {self._address.stream}")
        self._show(f"waiting for the lease {self._source.name}")
        state = await self._lease.acquire(info.config.num_replicas or 1)
        info = await stream_info(self._connection, self._address.stream) or info
        if state.created not in ("", str(info.created)):
            state.floor = 0  # another stream of this name; the spools are the same
        state.created = str(info.created)
        self._state = state
        self._numbers = RecordNumbers(state.numbers)
        self._floor = RecordNumbers(state.numbers)
        self._reader.after = state.floor
        self._suspect_until = info.state.last_seq

    async def _hand_over(self) -> None:
        """Let another collector take over at once."""
        try:
            await self._lease.release(self._snapshot())
        except (NatsError, LeaseLostError) as error:
            self._show(f"logagg: the state was not written: {error}")

    async def _renew(self) -> None:
        """Write the state each second, for as long as the lease can be renewed."""
        while True:
            await asyncio.sleep(_SAVE_INTERVAL)
            try:
                await self._lease.save(self._snapshot())
            except NatsError:  # `_hold_lease` waits until it can be renewed again
                await self._lease.close()
            except LeaseLostError as error:
                self._lost = error
                return

    async def _hold_lease(self) -> None:
        """Wait while another collector might have taken over.

        Raises:
            LeaseLostError: One has; or `stop` was called, and nothing may be written.
        """
        while not self._lease.held or self._lost is not None:
            if self._lost is not None:
                raise self._lost
            if self._stop.is_set():
                raise LeaseLostError("the lease cannot be renewed: servers are away")
            await asyncio.sleep(_BLOCKED_WAIT)

    # ---- the loop -----------------------------------------------------------------

    async def _cycle(self) -> None:
        self._advance()
        await self._hold_lease()
        try:
            await self._read()
        except NatsError as error:
            text = f"the stream cannot be read: {error}"
            self._event(text, {"event": Event.STREAM_ERROR})
            await self._reader.close()
            await asyncio.sleep(_RETRY)
        await self._offer()

    async def _read(self) -> None:
        if self._fanout.blocked or self._merge.size_bytes > 2 * self._source.max_held:
            await asyncio.sleep(_BLOCKED_WAIT)
            return
        for message in await self._reader.fetch(self._source.fetch, _FETCH_WAIT):
            self._take(message)

    def _take(self, stored: StoredMessage) -> None:
        try:
            message = decode(stored.subject, stored.headers, stored.data)
        except ValueError as error:
            self._poison.add(stored, str(error))
            text = (
                f"message {stored.number} on {stored.subject} is not readable: {error}"
            )
            self._event(text, {"event": Event.POISON, "number": stored.number})
            self._open[stored.number] = ("", 0)
            self._done.add(stored.number)
            return
        lines, missing = self._numbers.accept(message)
        if missing:
            text = f"{missing} records of {message.host} are missing from the stream"
            details = {"event": Event.LOST, "number": missing, "host": message.host}
            self._event(text, {**details, "app": message.app, "spool": message.spool})
        self._open[stored.number] = (message.spool, message.following)
        if not lines:
            self._done.add(stored.number)
            return
        if stored.number <= self._suspect_until:
            self._suspects += 1
            self._oldest = min(self._oldest, key_of(min(lines)))
        self._merge.add(message.spool, stored.number, lines, stored.stored_ns)

    async def _offer(self, *, final: bool = False) -> None:
        """Release lines, and offer them to the sinks."""
        if self._oldest < self._recalled:
            self._recalled = self._oldest
            await self._fanout.recall(self._oldest)
            runners = self._fanout.runners.values()
            ids = (each for runner in runners for each in runner.known.ids)
            self._merge.resume_after(key_of(max(ids, default=b"")))
        await self._hold_lease()
        lines, messages = self._merge.release(self._reader.now_ns, final=final)
        if not lines:
            return
        suspects: frozenset[bytes] = frozenset()
        if self._suspects:
            suspects = frozenset(map(record_id, lines))
            self._suspects -= sum(one <= self._suspect_until for one in messages)
        elif self._fanout.knows_written and self._reader.after > self._suspect_until:
            self._fanout.forget_written()
        self._fanout.put(Batch(lines, _CLOSING), suspects)
        self._offered.append((self._fanout.number, messages))
        self._fanout.tick()

    def _advance(self) -> None:
        """Raise the floor over the messages whose records the durable sinks have."""
        safe = self._fanout.safe
        while self._offered and self._offered[0][0] <= safe:
            self._done.update(self._offered.popleft()[1])
        for number in list(self._open):
            if number not in self._done:
                break
            spool, following = self._open.pop(number)
            self._done.discard(number)
            self._state.floor = number
            if spool and following > self._floor.known.get(spool, 0):
                self._floor.note(spool, following)

    def _snapshot(self) -> CollectorState:
        self._state.numbers = self._floor.known
        return self._state

    # ---- own records --------------------------------------------------------------

    def _event(self, text: str, details: dict[str, Any]) -> None:
        """Put a record of the collector itself into the stream."""
        now_ns = time.time_ns()
        fields = {key: each for key, each in details.items() if key != "event"}
        record = own_record(
            timestamp_bytes(now_ns).decode(), str(details["event"]), text, **fields
        )
        self._merge.add_own(dump_line(record) + received_suffix(now_ns)[:-2])

    def _not_locked(self, text: str) -> None:
        self._event(text, {"event": Event.NO_LOCK})
