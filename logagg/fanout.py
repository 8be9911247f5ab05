"""Give every sink its own copy of the stream, so that none waits for another.

Theory of operation
-------------------
Each sink has a `Lane` (`logagg.lane`): a bounded queue and a task that takes batches out
of it and writes them. `Fanout.put` numbers a batch and offers it to all lanes. A lane
applies the sink's shaping when the batch comes, so what waits is what will be written.

A batch is *safe* when every durable sink is done with it (or every sink, where none is
durable): written, parked on disk, or dropped by the lane's policy and counted. Lanes are
done with batches in order, so `safe` is the least of their numbers, and the consumer
acknowledges to workers up to there.

Sinks come and go while the stream runs. One that goes is offered nothing more, writes
what waits, and is closed; what of it is not safe holds `safe` back until then. One whose
options have changed is followed by its new form, which gets the stream from the next
batch on and opens the target only when the old one has let go of it: nothing is written
twice and nothing left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from logagg.abc import Batch
from logagg.lane import Lane
from logagg.lane_troubles import Alarm
from logagg.sinks import Built
from logagg.spill import Spill

__all__ = ["Fanout", "Lane"]


class Fanout:
    """All lanes of a consumer.

    Attributes:
        lanes: The lanes by the URL that asked for them.
        retiring: Lanes that are offered nothing more and write what waits.
        number: The number of the newest batch.
    """

    def __init__(
        self,
        alarm: Alarm,
        finished: Callable[[], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.lanes: dict[str, Lane] = {}
        self.retiring: dict[Lane, asyncio.Task[int]] = {}
        self.number = 0
        self._alarm = alarm
        self._finished = finished
        self._now_ns = now_ns

    def _lane(self, key: str, built: Built) -> Lane:
        return Lane(built, self._alarm, self._finished, spill_of(key, built))

    async def add(self, key: str, built: Built) -> None:
        """Add a sink; it gets the stream from the next batch on.

        Raises:
            ConfigError, OSError: It cannot be opened.
        """
        lane = self._lane(key, built)
        await lane.start()
        lane.begin_at(self.number)  # nothing before it is its business
        self.lanes[key] = lane

    def remove(self, key: str) -> asyncio.Task[int]:
        """Offer a sink nothing more; it writes what waits and is closed."""
        lane = self.lanes.pop(key)
        task = asyncio.create_task(lane.close(None, self._now_ns()))
        self.retiring[lane] = task
        task.add_done_callback(lambda _: self._retired(lane))
        return task

    def _retired(self, lane: Lane) -> None:
        self.retiring.pop(lane, None)
        self._finished()

    def replace(self, old: str, key: str, built: Built) -> None:
        """Have a sink followed by one to the same target, from the next batch on."""
        gone = self.remove(old)
        lane = self._lane(key, built)
        lane.start_after(self.number, gone)
        self.lanes[key] = lane

    def put(self, batch: Batch, suspects: frozenset[bytes]) -> None:
        """Number a batch and offer it to every lane; see `Lane.put`."""
        self.number += 1
        for lane in self.lanes.values():
            lane.put(self.number, batch, suspects)

    def tick(self) -> None:
        """Let records go that lanes have held back; call it every cycle."""
        for lane in self.lanes.values():
            if lane.shaper.due is not None:
                lane.tick(self._now_ns())

    async def recall(self, since: bytes) -> None:
        """Ask the durable sinks what they have written since a sort key."""
        for lane in list(self.lanes.values()):
            if lane.sink.durable:
                try:
                    await lane.recall(since)
                except OSError as error:
                    message = f"sink {lane.name} cannot tell what it holds: {error}"
                    self._alarm(message, {"event": "sink_error", "sink": lane.name})

    def reopen(self) -> None:
        """Have every sink open its target anew, behind what is queued."""
        for lane in self.lanes.values():
            lane.reopen()

    @property
    def blocked(self) -> bool:
        """Whether reading must wait for a sink; see `logagg.lane`."""
        answers = [lane.blocks() for lane in self.lanes.values()]  # ask every one
        return any(answers)

    @property
    def safe(self) -> int:
        """The number of the last batch that every durable sink is done with."""
        lanes = self.lanes.values()
        counted = [lane.done for lane in lanes if lane.sink.durable]
        if not counted:
            counted = [lane.done for lane in lanes]
        counted += [lane.done for lane in self.retiring if not lane.all_safe]
        return min(counted, default=self.number)

    @property
    def idle(self) -> bool:
        """Whether every lane has finished everything."""
        return not self.retiring and all(lane.idle for lane in self.lanes.values())

    def statistics(self) -> list[dict[str, Any]]:
        """Counters of all lanes; those that go last."""
        return [lane.statistics() for lane in (*self.lanes.values(), *self.retiring)]

    async def close(self, grace: float) -> int:
        """Close all lanes side by side; return how many records were lost."""
        retiring = dict(self.retiring)
        now_ns = self._now_ns()
        closing = [
            asyncio.create_task(lane.close(grace, now_ns))
            for lane in self.lanes.values()
        ]
        if retiring:
            await asyncio.wait(retiring.values(), timeout=grace)
            for lane in retiring:
                await lane.give_up()
        return sum(await asyncio.gather(*closing, *retiring.values()))


def spill_of(key: str, built: Built) -> Spill:
    """Where a sink's records are parked: by its target's name, if it is durable."""
    name = ""
    if built.sink.durable:
        target = key.partition("?")[0].encode("utf-8", "surrogateescape")
        name = sha256(target).hexdigest()[:20]
    return Spill(name, built.common.park_bytes)
