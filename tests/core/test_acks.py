"""Acknowledgements: nothing is acknowledged before its batch, and those before, are safe."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from logagg.consumer.acks import AckTracker, StreamSuccession, take_released
from logagg.consumer.worker_source import SourceState
from logagg.ipc.protocol import ConsumerPacket


class Source:
    """Records what it is sent."""

    def __init__(self, *marks: tuple[bytes, int]) -> None:
        self.marks = list(marks)
        self.acknowledged: list[int] = []
        self.sent: list[ConsumerPacket] = []

    def acknowledge(self, number: int) -> None:
        """As a source does."""
        self.acknowledged.append(number)

    def send(self, message: ConsumerPacket) -> bool:
        """As a worker's source does."""
        self.sent.append(message)
        return True


def test_a_batch_is_acknowledged_when_it_is_safe_not_before() -> None:
    """Batches come in order; what is safe is a number."""
    tracker, one, two = AckTracker(), Source((b"a", 5), (b"c", 9)), Source((b"b", 3))
    tracker.sources += [one, two]

    tracker.record(1, b"b", [])
    tracker.record(2, b"d", [])
    tracker.release(0)
    assert (one.acknowledged, two.acknowledged) == ([], [])

    tracker.release(1)
    assert (one.acknowledged, two.acknowledged) == ([5], [])
    tracker.release(2)
    assert (one.acknowledged, two.acknowledged) == ([5, 9], [3])
    assert not tracker


def test_lines_that_wait_for_their_order_are_not_acknowledged() -> None:
    """They are in no batch yet."""
    tracker, source = AckTracker(), Source((b"b", 5))
    tracker.sources.append(source)

    tracker.record(1, b"b", [])

    assert not tracker
    assert source.marks == [(b"b", 5)]


def test_announced_drops_are_acknowledged_with_their_record() -> None:
    """The worker learns when the record that announces them is safe."""
    tracker, worker = AckTracker(), Source()
    tracker.sources.append(worker)

    tracker.record(4, b"x", [(worker, 7)])
    tracker.release(3)
    assert worker.sent == []
    tracker.release(4)

    assert worker.sent == [ConsumerPacket(drops_announced=7)]


keys = st.binary(min_size=1, max_size=2)


@given(
    st.lists(keys).map(sorted),
    st.lists(st.tuples(keys, st.integers(1, 3))),
)
def test_numbers_rise_and_none_is_passed_over(places, steps) -> None:
    """Whatever the keys: each mark is counted once, in order, below the watermark."""
    source = Source(*[(key, number) for number, key in enumerate(places, 1)])
    tracker = AckTracker()
    tracker.sources.append(source)
    batch = 0
    for key, count in steps:
        batch += count
        tracker.record(batch, key, [])
        tracker.release(batch)
    tracker.record(batch + 1, b"\xff\xff\xff", [])
    tracker.release(batch + 1)

    assert source.acknowledged == sorted(set(source.acknowledged))
    assert source.acknowledged[-1:] == ([len(places)] if places else [])


def test_a_mark_without_a_key_waits_for_those_before_it() -> None:
    """Drops and holes have no line; they are safe when what precedes them is."""
    marks = [(b"b", 1), (b"", 4), (b"c", 5)]

    assert take_released(marks, b"b") == 0
    assert take_released(marks, b"c") == 4
    assert marks == [(b"c", 5)]


def attached(**more: Any) -> Any:
    """One of the sources of a process that attaches again and again."""
    return SimpleNamespaceSource(
        stream="7-a", pid=7, state=SourceState.JOINING, successor=None, resumed=True,
        hello=SimpleNamespace(segments=[]), sequence=SimpleNamespace(expected=1), safe=0,
        **more,
    )  # fmt: skip


class SimpleNamespaceSource(SimpleNamespace):
    """One that can be a key."""

    __hash__ = object.__hash__


def test_a_third_source_of_a_stream_goes_on_where_the_second_ends() -> None:
    """Also when it attached before the second had taken over from the first."""

    async def main() -> None:
        succession = StreamSuccession()
        first, second, third = attached(), attached(), attached()
        for each in (first, second, third):
            succession.add(each)
        handed = [
            asyncio.ensure_future(succession.take_over(each))
            for each in (second, third)
        ]
        await asyncio.sleep(0)
        first.sequence.expected, first.safe = 16, 10
        first.state = SourceState.DEPARTED
        await handed[0]
        assert (second.sequence.expected, second.safe) == (16, 10)
        assert not handed[1].done()
        second.sequence.expected = 18
        second.state = SourceState.DEPARTED
        await handed[1]
        assert (third.sequence.expected, third.safe) == (18, 10)

    asyncio.run(asyncio.wait_for(main(), 20))
