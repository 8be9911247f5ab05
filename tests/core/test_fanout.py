"""Every sink for itself: who waits for whom, what is dropped, what comes and goes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import support

from logagg import wire
from logagg.abc import Batch, Policy, Sink
from logagg.errors import SinkUnavailable
from logagg.fanout import Fanout
from logagg.sinks import wrap

NOTHING = frozenset[bytes]()


class Target(Sink):
    """A sink whose target can be down, hang, or be slow; it remembers what it took."""

    scheme = "target"
    default_policy: ClassVar[Policy] = Policy.SPOOL
    durable = True

    def __init__(self, name: str = "target") -> None:
        super().__init__()
        self.name = name
        self.taken: list[bytes] = []
        self.down = False
        self.go = asyncio.Event()
        self.go.set()
        self.opened = 0
        self.reopened = 0
        self.closed = 0

    @classmethod
    def from_url(cls, url: Any) -> Target:
        return cls(url.target)

    @property
    def url(self) -> str:
        return f"target:{self.name}"

    async def open(self) -> None:
        self.opened += 1

    async def write(self, batch: Batch) -> None:
        await self.go.wait()
        if self.down:
            raise SinkUnavailable("it is down")
        self.taken += batch.lines

    async def reopen(self) -> None:
        self.reopened += 1

    async def close(self) -> None:
        self.closed += 1

    @property
    def seqs(self) -> list[int]:
        return [wire.seq_of(line) for line in self.taken]


class Stream:
    """A fan-out with a stream that is put into it as the consumer does."""

    def __init__(self) -> None:
        self.seq = 0
        self.told: list[str] = []
        self.fanout = Fanout(lambda message, _: self.told.append(message), self._done)

    def _done(self) -> None:
        pass

    def put(self, records: int = 10, level: str = "info", body: bytes = b"") -> None:
        lines = []
        for _ in range(records):
            self.seq += 1
            text = b'"logger":"l","message":"m%b"' % body
            lines.append(
                support.wire_line(10**18 + self.seq, self.seq, level=level, body=text)
            )
        self.fanout.put(Batch(lines, wire.closing(10**18 + self.seq)), NOTHING)

    async def flow(self, batches: int, records: int = 10) -> float:
        """Put so many batches, as fast as the sinks allow; how long it took."""
        start = time.monotonic()
        for _ in range(batches):
            while self.fanout.blocked:
                await asyncio.sleep(0.002)
            self.put(records)
            await asyncio.sleep(0)
        return time.monotonic() - start


async def until(condition: Callable[[], Any], timeout: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.005)


def balanced(statistics: dict[str, Any]) -> None:
    """What came is what went, where it waits, and what was dropped."""
    s = statistics
    came = s["offered"] + s["recovered"] + s["made"]
    shaped = s["filtered"] + s["sampled"] + s["collapsed"] + s["duplicates"]
    dropped = sum(s["dropped"].values())
    assert dropped == sum(s["dropped_levels"].values())
    waits = s["queued_records"] + s["spool_records"]
    assert came == shaped + s["written"] + dropped + waits, s


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_a_sink_that_keeps_pace_is_waited_for() -> None:
    """A burst far beyond the queue's bound drops and parks nothing."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add(
            "a", wrap(target, queue_records=100, policy=Policy.DROP_NEW)
        )
        await stream.flow(300, 50)
        await stream.fanout.close(5)

        assert target.seqs == list(range(1, 15001))
        assert stream.told == []

    run(main)


def test_a_sink_that_is_busy_for_long_but_keeps_pace_is_waited_for() -> None:
    """Beyond a second, too: what it writes earns it the patience."""

    class Busy(Target):
        async def write(self, batch: Batch) -> None:
            await asyncio.sleep(0.02)
            self.taken += batch.lines

    async def main() -> None:
        stream = Stream()
        target = Busy()
        built = wrap(target, queue_records=60, policy=Policy.DROP_NEW)
        await stream.fanout.add("a", built)
        for _ in range(120):
            while stream.fanout.blocked:
                await asyncio.sleep(0.002)
            stream.put(50, body=b"x" * 4000)
        await stream.fanout.close(5)

        assert target.seqs == list(range(1, 6001))

    run(main)


def test_a_dead_sink_delays_the_others_by_a_second_at_most() -> None:
    """With each policy but block the stream goes on, and the other sink has it all."""

    async def main(policy: Policy, how: str) -> None:
        stream = Stream()
        dead, well = Target("dead"), Target("well")
        if how == "hangs":
            dead.go.clear()
        dead.down = True
        await stream.fanout.add("dead", wrap(dead, queue_records=100, policy=policy))
        await stream.fanout.add("well", wrap(well))

        took = await stream.flow(500)

        await until(lambda: well.seqs == list(range(1, 5001)))
        assert took < 2.0
        (statistics,) = (s for s in stream.fanout.statistics() if "dead" in s["url"])
        balanced(statistics)
        await stream.fanout.close(0.1)

    for policy in (Policy.DROP_OLD, Policy.DROP_NEW, Policy.SPOOL):
        for how in ("fails", "hangs"):
            run(lambda policy=policy, how=how: main(policy, how))


def test_block_waits_for_ever() -> None:
    """An explicit `block` stops the reading and loses nothing."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        target.down = True
        await stream.fanout.add("a", wrap(target, queue_records=50, policy="block"))
        for _ in range(10):
            stream.put()
        deadline = time.monotonic() + 1.3
        while time.monotonic() < deadline:
            assert stream.fanout.blocked
            await asyncio.sleep(0.05)
        target.down = False
        await until(lambda: not stream.fanout.blocked)
        await stream.fanout.close(5)

        assert target.seqs == list(range(1, 101))

    run(main)


def test_what_is_parked_comes_back_in_order_and_once() -> None:
    """A sink that was down for a while gets everything, in order."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add("a", wrap(target, queue_records=50))
        await stream.flow(20)
        target.down = True
        await stream.flow(100)
        assert stream.fanout.statistics()[0]["spool_records"] > 500
        assert stream.fanout.safe == stream.fanout.number
        target.down = False
        await stream.flow(20)
        await until(lambda: stream.fanout.idle)

        assert target.seqs == list(range(1, 1401))
        balanced(stream.fanout.statistics()[0])
        assert stream.fanout.statistics()[0]["state"] == "ok"
        await stream.fanout.close(5)

    run(main)


def test_a_write_that_hangs_is_not_safe_and_what_is_behind_it_is_kept() -> None:
    """Nothing is acknowledged beyond a batch whose fate is open."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add("a", wrap(target, queue_records=50))
        target.go.clear()
        await stream.flow(30)
        await until(lambda: not stream.fanout.blocked)
        assert stream.fanout.safe == 0

        target.go.set()
        await until(lambda: stream.fanout.idle)

        assert target.seqs == list(range(1, 301))
        assert stream.fanout.safe == stream.fanout.number
        await stream.fanout.close(5)

    run(main)


def test_a_write_that_hung_and_then_fails_is_parked_before_what_came_after() -> None:
    """It is safe then, too, and the order is kept."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add("a", wrap(target, queue_records=50))
        target.go.clear()
        await stream.flow(30)
        target.down = True
        target.go.set()
        await until(lambda: stream.fanout.safe == stream.fanout.number)
        target.down = False
        await until(lambda: stream.fanout.idle)

        assert target.seqs == list(range(1, 301))
        await stream.fanout.close(5)

    run(main)


def test_full_disk_too_drops_the_lowest_severity_first() -> None:
    """With no room in memory or on disk errors stay longest; all is counted."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        target.down = True
        await stream.fanout.add("a", wrap(target, queue_records=100, park_bytes=20_000))
        for _ in range(30):
            stream.put(50)
            stream.put(1, level="error")
            assert stream.fanout.blocked in (True, False)
            await asyncio.sleep(0)
        await until(lambda: not stream.fanout.blocked)
        for _ in range(30):
            stream.put(50)
            stream.put(1, level="error")
        statistics = stream.fanout.statistics()[0]
        assert set(statistics["dropped"]) == {"spool_full"}
        assert set(statistics["dropped_levels"]) == {"info"}
        balanced(statistics)
        target.down = False
        await until(lambda: stream.fanout.idle)

        assert len(target.taken) == 60 * 51 - sum(statistics["dropped"].values())
        assert sum(b'"level":"error"' in line for line in target.taken) == 60
        assert target.seqs == sorted(target.seqs)
        assert any("dropped records: spool_full" in text for text in stream.told)
        await stream.fanout.close(5)

    run(main)


def test_what_a_durable_sink_has_not_taken_waits_for_the_next_consumer() -> None:
    """A consumer that ends parks what is left; its successor delivers it first."""

    async def main() -> None:
        first = Stream()
        target = Target()
        target.down = True
        await first.fanout.add("a", wrap(target, queue_records=50))
        await first.flow(3)
        assert await first.fanout.close(0.05) == 0

        second = Stream()
        second.seq = first.seq
        healthy = Target()
        await second.fanout.add("a", wrap(healthy, queue_records=50))
        second.put()
        await until(lambda: second.fanout.idle)

        assert healthy.seqs == list(range(1, 41))
        balanced(second.fanout.statistics()[0])
        await second.fanout.close(5)

    run(main)


def test_what_cannot_be_kept_at_the_end_is_counted() -> None:
    """A sink that is not durable loses what is left, and `close` says how much."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        target.durable = False
        target.down = True
        await stream.fanout.add("a", wrap(target, queue_records=50))
        await stream.flow(30)

        assert await stream.fanout.close(0.05) == 300

    run(main)


def test_numbers_add_up_at_any_moment_under_faults() -> None:
    """in = written + dropped + waiting, for each policy, whatever the target does."""

    async def main(policy: str, seed: int) -> None:
        chance = random.Random(seed)
        stream = Stream()
        target = Target()
        built = wrap(
            target, queue_records=60, policy=policy, park_bytes=30_000, sample=3
        )
        await stream.fanout.add("a", built)
        for _ in range(400):
            stream.put(chance.randint(1, 20), chance.choice(["info", "error"]))
            if chance.random() < 0.05:
                target.down = not target.down
            if chance.random() < 0.3:
                assert stream.fanout.blocked in (True, False)
                await asyncio.sleep(chance.choice([0, 0, 0.001]))
            balanced(stream.fanout.statistics()[0])
        target.down = False
        await until(lambda: stream.fanout.idle)
        await stream.fanout.close(5)
        lane = stream.fanout.lanes["a"]
        balanced(lane.statistics())
        assert lane.statistics()["written"] == len(target.taken)
        assert len(set(target.taken)) == len(target.taken)

    for seed, policy in enumerate(["spool", "drop_old", "drop_new"] * 2):
        run(lambda policy=policy, seed=seed: main(policy, seed))


def test_a_removed_sink_gets_all_that_came_before_and_nothing_after() -> None:
    """It writes what waits, however long that takes, and is closed then."""

    async def main() -> None:
        stream = Stream()
        going, staying = Target("going"), Target("staying")
        await stream.fanout.add("going", wrap(going))
        await stream.fanout.add("staying", wrap(staying))
        going.go.clear()
        await stream.flow(5)
        stream.fanout.remove("going")
        await stream.flow(5)
        await asyncio.sleep(0)
        assert stream.fanout.safe < 5
        assert not stream.fanout.idle
        going.go.set()
        await until(lambda: stream.fanout.idle)

        assert going.seqs == list(range(1, 51))
        assert going.closed == 1
        assert staying.seqs == list(range(1, 101))
        assert stream.fanout.safe == stream.fanout.number
        await stream.fanout.close(5)

    run(main)


def test_a_changed_sink_takes_over_without_a_gap_or_a_double() -> None:
    """The new form opens the target only when the old one has let go of it."""

    async def main() -> None:
        stream = Stream()
        old, new = Target(), Target()
        await stream.fanout.add("a", wrap(old))
        old.go.clear()
        await stream.flow(5)
        stream.fanout.replace("a", "a", wrap(new))
        await stream.flow(5)
        assert new.opened == 0
        old.go.set()
        await until(lambda: stream.fanout.idle)

        assert (old.closed, new.opened) == (1, 1)
        assert old.seqs + new.seqs == list(range(1, 101))
        await stream.fanout.close(5)

    run(main)


def test_repeats_are_told_when_their_time_is_over() -> None:
    """`collapse` lets one record stand for equal ones, also when nothing follows."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add("a", wrap(target, collapse=0.1))
        stream.put(10)
        await until(lambda: stream.fanout.tick() or len(target.taken) == 2)

        assert b'"repeated":9' in target.taken[1]
        await until(lambda: stream.fanout.idle)
        balanced(stream.fanout.statistics()[0])
        await stream.fanout.close(5)

    run(main)


def test_a_sink_that_asks_for_nothing_gets_the_very_batch() -> None:
    """Without level, match and the like a batch passes untouched, by identity."""

    async def main() -> None:
        stream = Stream()
        seen: list[Batch] = []

        class Keeping(Target):
            async def write(self, batch: Batch) -> None:
                seen.append(batch)

        await stream.fanout.add("a", wrap(Keeping()))
        batch = Batch([support.wire_line(10**18, 1)], wire.closing(10**18))
        stream.fanout.put(batch, NOTHING)
        await until(lambda: seen)

        assert seen[0] is batch
        await stream.fanout.close(5)

    run(main)


def test_those_who_ask_together_are_answered_together() -> None:
    """Sixty workers attach at once: few reads; a failure is told once and tried again."""

    class Rich(Target):
        asked: ClassVar[list[bytes]] = []

        async def recall(self, since: bytes) -> frozenset[bytes]:
            self.asked.append(since)
            await self.go.wait()
            if len(self.asked) == 2:
                raise OSError("cannot be read now")
            return frozenset({b"since " + since})

    async def main() -> None:
        stream = Stream()
        sink = Rich()
        await stream.fanout.add("a", wrap(sink))
        (lane,) = stream.fanout.lanes.values()
        sink.go.clear()
        first = asyncio.ensure_future(lane.recall(b"500"))
        await until(lambda: sink.asked)
        rest = [asyncio.ensure_future(lane.recall(b"%d" % n)) for n in range(400, 460)]
        await asyncio.sleep(0)
        sink.go.set()
        await first
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert [type(each) for each in outcomes if each is not None] == [OSError]
        assert sink.asked == [b"500", b"400", b"400"]
        assert lane.recalled == {b"since 500", b"since 400"}
        await stream.fanout.close(1.0)

    run(main)
