"""Every sink for itself: what waits, what is dropped, what comes and goes, its states."""

from __future__ import annotations

import ast
import asyncio
import inspect
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import pytest
import support

import logagg.fanout
from logagg.abc import Batch, Policy, Sink
from logagg.cli import check
from logagg.core.line import KEY_END, received_suffix, record_id, seq_of
from logagg.errors import ConfigError, SinkUnavailable, TargetOwned
from logagg.fanout import fanout as fanout_module
from logagg.fanout import sink_calls
from logagg.fanout.fanout import Fanout, spool_of
from logagg.fanout.runner_state import RunnerState, following
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
        self.flushed: list[int] = []
        self.on_close: Callable[[], None] = lambda: None

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

    async def flush(self) -> None:
        self.flushed.append(len(self.taken))

    async def close(self) -> None:
        self.closed += 1
        self.on_close()

    @property
    def seqs(self) -> list[int]:
        return [seq_of(line) for line in self.taken]


class Stream:
    """A fan-out with a stream that is put into it as the consumer does."""

    def __init__(self) -> None:
        self.seq = 0
        self.announced: list[str] = []
        self.ended = 0
        self.fanout = Fanout(
            lambda message, _: self.announced.append(message),
            lambda: None,
            failed=self._failed,
        )

    def _failed(self) -> None:
        self.ended += 1

    def state(self) -> str:
        """The state of the first sink."""
        return str(self.fanout.statistics()[0]["state"])

    def put(self, records: int = 10, level: str = "info", body: bytes = b"") -> None:
        lines = []
        for _ in range(records):
            self.seq += 1
            text = b'"logger":"l","message":"m%b"' % body
            lines.append(
                support.wire_line(10**18 + self.seq, self.seq, level=level, body=text)
            )
        self.fanout.put(Batch(lines, received_suffix(10**18 + self.seq)), NOTHING)

    async def flow(self, batches: int, records: int = 10) -> float:
        """Put so many batches, as fast as the sinks allow; how long it took."""
        start = time.monotonic()
        for _ in range(batches):
            while self.fanout.blocked:
                await asyncio.sleep(0.002)
            self.put(records)
            await asyncio.sleep(0)
        return time.monotonic() - start


async def until(condition: Callable[[], Any], timeout: float = 90.0) -> None:
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
        assert stream.announced == []

    run(main)


@pytest.mark.slow
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


@pytest.mark.slow
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
        assert stream.fanout.statistics()[0]["state"] == "running"
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
        await stream.fanout.add(
            "a", wrap(target, queue_records=100, queue_spool_bytes=20_000)
        )
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
        assert any("dropped records: spool_full" in text for text in stream.announced)
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
            target, queue_records=60, policy=policy, queue_spool_bytes=30_000, sample=3
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
        runner = stream.fanout.runners["a"]
        balanced(runner.statistics())
        assert runner.statistics()["written"] == len(target.taken)
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


def test_a_sink_that_is_wanted_again_while_it_closes_waits_for_its_end() -> None:
    """Taken out of the configuration and put back: nothing is sent a second time."""

    async def main() -> None:
        stream = Stream()
        old, new = Target(), Target()
        await stream.fanout.add("a", wrap(old))
        old.go.clear()
        await stream.flow(5)
        stream.fanout.remove("a")
        await stream.fanout.add("a", wrap(new))
        await stream.flow(5)
        assert new.opened == 0
        old.go.set()
        await until(lambda: stream.fanout.idle)

        assert (old.closed, new.opened) == (1, 1)
        assert old.seqs + new.seqs == list(range(1, 101))
        await stream.fanout.close(5)

    run(main)


def test_a_failing_sink_hands_what_waits_to_its_changed_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New options may be what was wrong: nothing waits for the next consumer."""
    monkeypatch.setattr(fanout_module, "HANDOVER", 0.05)

    async def main() -> None:
        stream = Stream()
        old, new = Target(), Target()
        await stream.fanout.add("a", wrap(old))
        old.down = True
        await stream.flow(5)
        await until(lambda: stream.state() == "spooling")
        stream.fanout.replace("a", "a", wrap(new))
        await stream.flow(5)
        await until(lambda: stream.fanout.idle)

        assert (old.closed, new.opened) == (1, 1)
        assert new.seqs == list(range(1, 101))
        assert await stream.fanout.close(5) == 0

    run(main)


def test_the_end_of_a_fanout_in_the_middle_of_a_succession_loses_nothing() -> None:
    """A predecessor that hangs: what each of both holds waits for the next consumer."""

    async def main() -> None:
        stream = Stream()
        old, new = Target(), Target()
        await stream.fanout.add("a", wrap(old))
        old.go.clear()
        await stream.flow(5)
        stream.fanout.replace("a", "a", wrap(new))
        await stream.flow(5)
        assert await stream.fanout.close(0.1) == 0
        assert new.opened == 0

        heir = Stream()
        target = Target()
        await heir.fanout.add("a", wrap(target))
        await until(lambda: heir.fanout.idle)
        assert target.seqs == list(range(1, 101))
        await heir.fanout.close(5)

    run(main)


@pytest.mark.parametrize("method", ["write", "flush", "reopen"])
@pytest.mark.parametrize("raised", [asyncio.CancelledError, SystemExit, ValueError])
def test_no_plug_in_ends_a_task_without_notice(
    method: str, raised: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever it raises, the sink goes on or has failed, with a record of it."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        target.durable = False  # type: ignore[misc]

        async def fails(*_: Any) -> None:
            raise raised("a bug")

        setattr(target, method, fails)
        await stream.fanout.add("a", wrap(target))
        await stream.flow(1)
        stream.fanout.flush()
        stream.fanout.reopen()
        await until(lambda: stream.announced and stream.fanout.idle)

        assert stream.state() in ("running", "failed")
        assert any("a bug" in each or "sink_bug" in each for each in stream.announced)
        balanced(stream.fanout.statistics()[0])
        await stream.fanout.close(5)

    run(main)


def test_a_target_that_does_not_open_delays_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes waits for it; it is opened by and by; a reload refuses it."""
    monkeypatch.setattr(sink_calls, "OPEN_TIMEOUT", 0.05)

    class Hanging(Target):
        async def open(self) -> None:
            await self.go.wait()
            await super().open()

    async def main() -> None:
        stream = Stream()
        slow, fast = Hanging("slow"), Target("fast")
        slow.go.clear()
        await stream.fanout.add("slow", wrap(slow))
        await stream.fanout.add("fast", wrap(fast))
        with pytest.raises(TimeoutError, match="did not open"):
            await stream.fanout.add("more", wrap(slow), at_once=True)
        await stream.flow(5)
        await until(lambda: len(fast.taken) == 50)
        assert (stream.state(), slow.taken) == ("opening", [])
        assert "takes long to open" in stream.announced[0]
        slow.go.set()
        await until(lambda: stream.fanout.idle)
        assert slow.seqs == fast.seqs
        await stream.fanout.close(5)

    run(main)


def test_what_is_lost_at_the_end_is_not_safe() -> None:
    """Its workers hold it for the next consumer."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add("a", wrap(target, policy=Policy.BLOCK))
        await stream.flow(1)
        await until(lambda: stream.fanout.idle)
        target.down = True
        await stream.flow(2)
        assert await stream.fanout.close(0.05) == 20
        assert stream.fanout.safe == 1

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
        batch = Batch([support.wire_line(10**18, 1)], received_suffix(10**18))
        stream.fanout.put(batch, NOTHING)
        await until(lambda: seen)

        assert seen[0] is batch
        await stream.fanout.close(5)

    run(main)


def test_those_who_ask_together_are_answered_together() -> None:
    """Sixty workers attach at once: few reads; a failure is told once and tried again."""

    class Rich(Target):
        asked: ClassVar[list[bytes]] = []

        async def written_since(self, since: bytes) -> frozenset[bytes]:
            self.asked.append(since)
            await self.go.wait()
            if len(self.asked) == 2:
                raise OSError("cannot be read now")
            return frozenset({b"since " + since})

    async def main() -> None:
        stream = Stream()
        sink = Rich()
        await stream.fanout.add("a", wrap(sink))
        (runner,) = stream.fanout.runners.values()
        sink.go.clear()
        first = asyncio.ensure_future(runner.known.extend(b"500"))
        await until(lambda: sink.asked)
        rest = [
            asyncio.ensure_future(runner.known.extend(b"%d" % n))
            for n in range(400, 460)
        ]
        await asyncio.sleep(0)
        sink.go.set()
        await first
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert [type(each) for each in outcomes if each is not None] == [OSError]
        assert sink.asked == [b"500", b"400", b"400"]
        assert runner.known.ids == {b"since 500", b"since 400"}
        await stream.fanout.close(1.0)

    run(main)


@pytest.mark.parametrize("waits_on_disk", [False, True])
@pytest.mark.parametrize("error", [TargetOwned, SinkUnavailable])
def test_what_comes_before_the_target_is_open_is_compared_then(
    error: type[SinkUnavailable], waits_on_disk: bool, monkeypatch: Any
) -> None:
    """A predecessor that still writes has written some of it."""

    class Owned(Target):
        owned = True

        async def open(self) -> None:
            if self.owned:
                raise error("another consumer writes it")

        async def written_since(self, since: bytes) -> frozenset[bytes]:
            if self.owned:
                raise error("another consumer writes it")
            return frozenset(map(record_id, lines[:30]))

    monkeypatch.setattr(fanout_module, "OPEN_TIMEOUT", 0.3)
    body = b'"logger":"l","message":"%s"' % (b"x" * 100_000 * waits_on_disk)
    lines = [support.wire_line(10**18 + n, n, body=body) for n in range(1, 101)]

    async def main() -> None:
        stream = Stream()
        sink = Owned()
        await stream.fanout.add("a", wrap(sink), waits=True)
        await stream.fanout.recall(lines[0][:KEY_END])
        for start in range(0, 100, 20):
            batch = Batch(lines[start : start + 20], received_suffix(10**18))
            stream.fanout.put(batch, frozenset(map(record_id, batch.lines)))
        (runner,) = stream.fanout.runners.values()
        if waits_on_disk:
            await until(lambda: stream.fanout.blocked or runner.spool.records)
            stream.fanout.put(Batch(lines[-1:], received_suffix(10**18)), NOTHING)
        sink.owned = False
        await until(lambda: len(sink.taken) >= 70 + waits_on_disk)
        assert sink.seqs[:70] == [*range(31, 101)]
        await until(lambda: runner.idle)
        await until(lambda: not runner.known.waiting)
        await stream.fanout.close(5)

    run(main)


def test_what_comes_while_the_sink_is_asked_is_compared_too() -> None:
    """The question takes some time, in which more comes that may be written already."""
    lines = [support.wire_line(10**18 + n, n) for n in range(1, 21)]
    ids = [record_id(line) for line in lines]

    def put(first: int, last: int) -> None:
        batch = Batch(lines[first:last], received_suffix(10**18))
        stream.fanout.put(batch, frozenset(ids[first:last]))

    class Owned(Target):
        owned = True
        asked = 0

        async def open(self) -> None:
            if self.owned:
                raise TargetOwned("another consumer writes it")

        async def written_since(self, since: bytes) -> frozenset[bytes]:
            if self.owned:
                raise TargetOwned("another consumer writes it")
            self.asked += 1
            if self.asked == 1:
                put(10, 20)
            return frozenset(ids[:5] + ids[10:15])

    async def main() -> None:
        nonlocal stream
        stream = Stream()
        sink = Owned()
        await stream.fanout.add("a", wrap(sink), waits=True)
        await stream.fanout.recall(lines[0][:KEY_END])
        put(0, 10)
        sink.owned = False
        await until(lambda: len(sink.taken) >= 10)
        assert sink.seqs == [*range(6, 11), *range(16, 21)]
        await stream.fanout.close(5)

    stream: Any = None
    run(main)


def test_what_an_owner_spools_while_it_ends_comes_first() -> None:
    """Opening the sink waits until its owner has ended, which leaves a spool."""
    owners = spool_of("a", wrap(Target()))
    lines = [support.wire_line(10**18 + n, n) for n in range(1, 31)]

    class Owned(Target):
        async def open(self) -> None:
            assert owners.append(Batch(lines[:10], received_suffix(10**18)))
            owners.close()

    async def main() -> None:
        stream = Stream()
        sink = Owned()
        await stream.fanout.add("a", wrap(sink))
        stream.fanout.put(Batch(lines[10:], received_suffix(10**18)), NOTHING)
        await until(lambda: len(sink.taken) == 30)
        assert sink.seqs == [*range(1, 31)]
        await stream.fanout.close(5)

    run(main)


# States


def test_a_state_changes_as_the_table_has_it() -> None:
    """Nothing follows the end, and what is being closed is not retried."""
    state = RunnerState
    for ended in state:
        assert following(state.CLOSED, ended) is state.CLOSED
    assert following(state.CLOSING, state.RETRYING) is state.CLOSING
    assert following(state.FAILED, state.RUNNING) is state.FAILED
    assert following(state.DROPPING, state.RETRYING) is state.DROPPING
    for running in set(state) - {state.CLOSED, state.CLOSING, state.FAILED}:
        assert following(running, state.FAILED) is state.FAILED
        assert following(running, state.CLOSING) is state.CLOSING


@pytest.mark.parametrize(
    ("policy", "failing", "full"),
    [
        ("spool", "spooling", "spooling"),
        ("drop_old", "retrying", "dropping"),
        ("drop_new", "retrying", "dropping"),
        ("block", "retrying", "retrying"),
    ],
)
def test_states_of_a_sink_that_fails_and_recovers(
    policy: str, failing: str, full: str
) -> None:
    """It runs, fails, is overrun, and runs again when nothing waits; then it is closed."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add("a", wrap(target, queue_records=50, policy=policy))
        (runner,) = stream.fanout.runners.values()
        stream.put()
        await until(lambda: stream.state() == "running" and target.taken)
        target.down = True
        stream.put()
        await until(lambda: stream.state() == failing)
        for _ in range(10):
            stream.put()
        assert stream.fanout.blocked is (policy == "block")
        assert stream.state() == full
        target.down = False
        await until(lambda: stream.fanout.idle)
        await until(lambda: stream.state() == "running")
        balanced(stream.fanout.statistics()[0])
        states = []
        target.on_close = lambda: states.append(runner.state)
        await stream.fanout.close(5)
        assert [*states, runner.state] == [RunnerState.CLOSING, RunnerState.CLOSED]

    run(main)


@pytest.mark.parametrize("policy", ["spool", "drop_old", "block"])
def test_a_sink_that_fails_for_as_long_as_it_may_has_failed_for_good(
    policy: str,
) -> None:
    """It is announced once; what comes is spooled or counted, and nothing is held up."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        target.down = True
        options = {"policy": policy, "give_up": 0.3, "required": True}
        await stream.fanout.add("a", wrap(target, queue_records=50, **options))
        stream.put()
        await until(lambda: stream.state() == "failed")
        stream.put()
        found = stream.fanout.statistics()[0]
        balanced(found)
        assert found["queued_records"] == 0
        kept = found["spool_records"] + found["dropped"].get("sink_failed", 0)
        assert kept == 20
        assert bool(found["spool_records"]) is (policy == "spool")
        assert stream.fanout.idle
        assert not stream.fanout.blocked
        assert stream.fanout.safe == stream.fanout.number
        assert (stream.ended, stream.fanout.failed) == (1, "target:target")
        assert sum("failed for good" in text for text in stream.announced) == 1
        await stream.fanout.close(1)
        if policy == "spool":
            successor, healthy = Stream(), Target()
            await successor.fanout.add("a", wrap(healthy))
            await until(lambda: successor.fanout.idle)
            assert healthy.seqs == list(range(1, 21))
            await successor.fanout.close(1)

    run(main)


def test_a_target_that_refuses_for_good_is_not_retried() -> None:
    """A configuration error ends it at once; without `required` the service goes on."""

    class Refusing(Target):
        async def write(self, batch: Batch) -> None:
            raise ConfigError("no such index")

    async def main() -> None:
        stream = Stream()
        await stream.fanout.add("a", wrap(Refusing(), policy="drop_old"))
        stream.put()
        await until(lambda: stream.state() == "failed")
        assert stream.fanout.statistics()[0]["dropped"] == {"sink_failed": 10}
        assert (stream.ended, stream.fanout.failed) == (0, "")
        await stream.fanout.close(1)

    run(main)


def test_a_success_starts_the_time_of_failures_anew() -> None:
    """Only attempts that fail in a row count for `give_up`."""

    async def main() -> None:
        stream = Stream()
        target = Target()
        await stream.fanout.add("a", wrap(target, give_up=0.5, policy="drop_old"))
        for _ in range(3):
            target.down = True
            stream.put()
            await asyncio.sleep(0.25)
            target.down = False
            await until(lambda: stream.fanout.idle)
        assert stream.state() == "running"
        await stream.fanout.close(1)

    run(main)


# Flush


def test_a_sink_that_buffers_is_flushed_before_its_records_are_safe() -> None:
    """When a worker waits, and after all that had come; a durable sink is not."""

    async def main() -> None:
        stream = Stream()
        target, durable = Target(), Target("durable")
        target.durable = False
        await stream.fanout.add("a", wrap(target))
        target.go.clear()
        stream.put()
        stream.put()
        stream.fanout.flush()
        stream.put()
        assert stream.fanout.safe == 0
        target.go.set()
        await until(lambda: stream.fanout.safe == 3)
        assert target.flushed == [20]
        stream.fanout.flush()
        await until(lambda: len(target.flushed) == 2)
        stream.fanout.flush()
        await asyncio.sleep(0.02)
        assert target.flushed == [20, 30]  # nothing came since

        await stream.fanout.add("b", wrap(durable))
        stream.put()
        await until(lambda: durable.taken)
        stream.fanout.flush()
        await until(lambda: len(target.flushed) == 3)
        assert durable.flushed == []
        await stream.fanout.close(1)
        assert (target.closed, durable.closed) == (1, 1)

    run(main)


def test_a_flush_that_hangs_holds_nothing_up_for_long() -> None:
    """After a second the records are safe, and the sink is written to again."""

    class Hanging(Target):
        durable = False

        async def flush(self) -> None:
            await asyncio.sleep(3600)

    async def main() -> None:
        stream = Stream()
        target = Hanging()
        await stream.fanout.add("a", wrap(target))
        stream.put()
        stream.fanout.flush()
        began = time.monotonic()
        await until(lambda: stream.fanout.safe == 1)
        assert time.monotonic() - began < 3
        stream.put()
        await until(lambda: len(target.taken) == 20)
        await stream.fanout.close(1)

    run(main)


def test_a_sink_is_flushed_before_it_is_reopened_and_before_it_is_closed() -> None:
    """What it holds goes to the old target."""

    class Noting(Target):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        async def flush(self) -> None:
            self.calls.append("flush")

        async def reopen(self) -> None:
            self.calls.append("reopen")

        async def close(self) -> None:
            self.calls.append("close")

    async def main() -> None:
        stream = Stream()
        target = Noting()
        await stream.fanout.add("a", wrap(target))
        stream.put()
        await until(lambda: target.taken)
        stream.fanout.reopen()
        await until(lambda: "reopen" in target.calls)
        stream.put()
        await until(lambda: len(target.taken) == 20)
        await stream.fanout.close(1)
        assert target.calls == ["flush", "reopen", "flush", "close"]

    run(main)


def test_every_method_of_the_sink_contract_has_a_caller() -> None:
    """A promise to authors of sinks that the service does not keep would show here."""
    own = {"from_url", "count", "alarm"}  # of `logagg.sinks`; of sinks for themselves
    contract = {
        name
        for name, value in vars(Sink).items()
        if not name.startswith("_") and inspect.isfunction(inspect.unwrap(value))
    }
    called = {
        node.func.attr
        for path in (
            *Path(logagg.fanout.__path__[0]).glob("*.py"),
            Path(check.__file__),
        )
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value).rpartition(".")[2].strip("_") == "sink"
    }
    assert contract - own == called
