"""Give every sink its own copy of the stream, so that none waits for another.

Theory of operation
-------------------
Each sink has a `Lane`: a bounded queue and a task that takes batches out of it and
writes them. `Fanout.put` numbers a batch and offers it to all lanes. A lane applies the
sink's level and shaping when the batch comes, so what waits is what will be written.

A batch is *safe* when every durable sink is done with it (or every sink, where none is
durable): written, or dropped by the lane's policy and counted. Batches are done in
order in each lane, so `safe` is the least of the lanes' last finished numbers, and the
consumer acknowledges to workers up to there.

When a lane is full, its policy decides: `block` makes `full` true, and the consumer
stops reading pipes until there is room; `drop_old` and `drop_new` drop whole batches of
the lane and count their records; with both the stream goes on for all others.

A write that fails is tried again with the same batch, after 0.1 s at first and 5 s at
most (that is the time within which a sink resumes by itself), for ever; one alarm
an interval says so, in the stream of the other sinks and on the consumer's stderr.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any

from logagg import failpoints
from logagg.abc import Batch, Policy, Sink
from logagg.errors import SinkUnavailable
from logagg.shaping import select_level
from logagg.sinks import Built
from logagg.wire import identity

__all__ = ["Fanout", "Lane"]

FIRST_RETRY = 0.1
LAST_RETRY = 5.0
ALARM_INTERVAL = 10.0

_SMALL_TALK = b'debug","worker":"consumer"'

Alarm = Callable[[str, dict[str, Any]], None]


class Lane:
    """One sink's queue and the task that empties it.

    Attributes:
        sink: The sink.
        done: The number of the last batch that this lane is finished with.
        dropped: Records dropped here, by reason.
        written: Records written.
        duplicates: Records that were not written again after a consumer's death.
        recalled: Identities of what the sink had when it was last asked.
        error: What the last failed write said; empty when the last one succeeded.
    """

    def __init__(
        self, built: Built, alarm: Alarm, finished: Callable[[], None]
    ) -> None:
        self.sink: Sink = built.sink
        self.common = built.common
        self.policy = built.common.policy
        self.done = 0
        self.dropped: dict[str, int] = {}
        self.written = 0
        self.bytes_written = 0
        self.retries = 0
        self.error = ""
        self.duplicates = 0
        self.recalled: frozenset[bytes] = frozenset()
        self.queued_records = 0
        self.queued_bytes = 0
        self._for_people = built.sink.scheme in ("stdout", "stderr")
        self._alarm = alarm
        self._finished = finished
        self._alarm_at = 0.0
        self._queue: deque[tuple[int, Batch | None, int]] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._busy = False
        self._reopen = False
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The sink's URL without secrets."""
        return self.sink.url

    @property
    def full(self) -> bool:
        """Whether the queue is at one of its bounds."""
        return (
            self.queued_records >= self.common.queue_records
            or self.queued_bytes >= self.common.queue_bytes
        )

    @property
    def blocks(self) -> bool:
        """Whether reading must wait for this lane."""
        return self.full and self.policy in (Policy.BLOCK, Policy.SPOOL)

    async def start(self) -> None:
        """Open the sink and begin. Raises what the sink's `open` raises."""
        await self.sink.open()
        self._task = asyncio.create_task(self._run(), name=f"lane {self.name}")

    def put(self, number: int, batch: Batch, suspects: frozenset[bytes]) -> None:
        """Offer a batch. Never blocks; what the policy drops is counted.

        Args:
            number: The batch's number.
            batch: The batch.
            suspects: Identities of lines that a consumer before us may have written.
        """
        known = suspects & self.recalled
        if known:
            self.duplicates += len(known)
            lines = [line for line in batch.lines if identity(line) not in known]
            batch = batch.select(lines)
        lines = select_level(batch.lines, self.common.level)
        if self._for_people:
            # That a worker ended well is no news on a terminal.
            lines = [line for line in lines if not line.startswith(_SMALL_TALK, 55)]
        chosen = batch.select(lines)
        if not len(chosen):
            self._append(number, None)
            return
        if self.full and self.policy is Policy.DROP_NEW:
            self._drop("queue_full", len(chosen))
            self._append(number, None)
            return
        while self.full and self.policy is Policy.DROP_OLD and self._drop_oldest():
            pass
        self._append(number, chosen)

    def _append(self, number: int, batch: Batch | None) -> None:
        if batch is None:
            if not self._queue and not self._busy:
                self.done = number
                return
            self._queue.append((number, None, 0))
        else:
            size = batch.size_bytes
            self._queue.append((number, batch, size))
            self.queued_records += len(batch)
            self.queued_bytes += size
        self._wake.set()

    def _drop_oldest(self) -> bool:
        for index, (number, batch, size) in enumerate(self._queue):
            if batch is not None:
                self._drop("queue_full", len(batch))
                self.queued_records -= len(batch)
                self.queued_bytes -= size
                self._queue[index] = (number, None, 0)
                return True
        return False

    def _drop(self, reason: str, records: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + records
        self._tell("dropped", f"sink {self.name} dropped records: {reason}")

    def _tell(self, event: str, message: str) -> None:
        now = clock_gettime(CLOCK_MONOTONIC)
        if now < self._alarm_at:
            return
        self._alarm_at = now + ALARM_INTERVAL
        total = sum(self.dropped.values())
        details: dict[str, Any] = {"event": event, "sink": self.name, "dropped": total}
        self._alarm(message, details)

    async def _run(self) -> None:
        while True:
            while not self._queue:
                if self._reopen:
                    await self._reopened()
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
            if self._reopen:
                await self._reopened()
            number, batch, size = self._queue.popleft()
            self._busy = True
            if batch is not None:
                if failpoints.ACTIVE:
                    failpoints.hit("before_write")
                await self._write(batch)
                if failpoints.ACTIVE:
                    failpoints.hit("after_write")
                self.queued_records -= len(batch)
                self.queued_bytes -= size
            self._busy = False
            self.done = number
            self._finished()

    async def _write(self, batch: Batch) -> None:
        wait = FIRST_RETRY
        while True:
            try:
                await self.sink.write(batch)
            except OSError as error:
                self.retries += 1
                self.error = f"{type(error).__name__}: {error}"
                self._tell("sink_error", f"sink {self.name} cannot write: {error}")
                after = getattr(error, "retry_after", None)
                pause = (
                    max(wait, after or 0)
                    if isinstance(error, SinkUnavailable)
                    else wait
                )
                await self._pause(pause)
                wait = min(wait * 2, LAST_RETRY)
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
                self.error = f"{type(error).__name__}: {error}"
                self._drop("sink_bug", len(batch))
                sys.excepthook(type(error), error, error.__traceback__)
                return
            else:
                self.error = ""
                self.written += len(batch)
                return

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def reopen(self) -> None:
        """Have the sink open its target anew before its next batch."""
        self._reopen = True
        self._wake.set()

    async def _reopened(self) -> None:
        self._reopen = False
        try:
            await self.sink.reopen()
        except OSError as error:
            self._tell("sink_error", f"sink {self.name} cannot reopen: {error}")

    async def flush(self) -> None:
        """Hand on what the sink has buffered; a failure is told, not raised."""
        try:
            await self.sink.flush()
        except OSError as error:
            self._tell("sink_error", f"sink {self.name} cannot flush: {error}")

    async def close(self, grace: float) -> int:
        """Write what is queued, within `grace` seconds; close the sink.

        Returns:
            How many records were left unwritten; they are counted as dropped.
        """
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace)
            if not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task])
        left = self.queued_records
        if left:
            self.dropped["shutdown"] = self.dropped.get("shutdown", 0) + left
        try:
            await asyncio.wait_for(self.sink.close(), max(grace, 1.0))
        except (OSError, TimeoutError) as error:
            print(f"sink {self.name} cannot close: {error}", file=sys.stderr)
        return left

    def statistics(self) -> dict[str, Any]:
        """Counters for status and metrics."""
        return {
            "url": self.name,
            "durable": self.sink.durable,
            "policy": self.policy.value,
            "written": self.written,
            "queued_records": self.queued_records,
            "queued_bytes": self.queued_bytes,
            "retries": self.retries,
            "duplicates": self.duplicates,
            "dropped": dict(self.dropped),
            "error": self.error,
            "counters": dict(self.sink.counters),
        }


class Fanout:
    """All lanes of a consumer.

    Attributes:
        lanes: The lanes by the URL that asked for them.
        number: The number of the newest batch.
    """

    def __init__(self, alarm: Alarm, finished: Callable[[], None]) -> None:
        self.lanes: dict[str, Lane] = {}
        self.number = 0
        self._alarm = alarm
        self._finished = finished

    async def add(self, key: str, built: Built) -> None:
        """Add a sink; it gets the stream from the next batch on.

        Raises:
            ConfigError, OSError: It cannot be opened.
        """
        lane = Lane(built, self._alarm, self._finished)
        lane.done = self.number
        await lane.start()
        lane.done = self.number  # nothing before it is its business
        self.lanes[key] = lane

    def put(self, batch: Batch, suspects: frozenset[bytes]) -> None:
        """Number a batch and offer it to every lane; see `Lane.put`."""
        self.number += 1
        for lane in self.lanes.values():
            lane.put(self.number, batch, suspects)

    async def recall(self, since: bytes) -> None:
        """Ask the durable sinks what they have written since a sort key."""
        for lane in list(self.lanes.values()):
            if lane.sink.durable:
                try:
                    lane.recalled |= await lane.sink.recall(since)
                except OSError as error:
                    message = f"sink {lane.name} cannot tell what it holds: {error}"
                    self._alarm(message, {"event": "sink_error", "sink": lane.name})

    def reopen(self) -> None:
        """Have every sink open its target anew, behind what is queued."""
        for lane in self.lanes.values():
            lane.reopen()

    @property
    def blocked(self) -> bool:
        """Whether reading must wait for a sink that may not drop."""
        return any(lane.blocks for lane in self.lanes.values())

    @property
    def safe(self) -> int:
        """The number of the last batch that every durable sink is done with."""
        lanes = self.lanes.values()
        counted = [lane.done for lane in lanes if lane.sink.durable]
        if not counted:
            counted = [lane.done for lane in lanes]
        return min(counted, default=self.number)

    @property
    def idle(self) -> bool:
        """Whether every lane has finished everything."""
        return all(lane.done == self.number for lane in self.lanes.values())

    async def close(self, grace: float) -> int:
        """Close all lanes side by side; return how many records were left over."""
        left = await asyncio.gather(
            *(lane.close(grace) for lane in self.lanes.values())
        )
        return sum(left)
