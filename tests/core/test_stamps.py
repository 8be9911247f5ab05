"""The order of lines that were stamped by another clock than their consumer's."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import wire_line

from logagg.core.line import key_ns, seq_of
from logagg.core.merge import LATE_MARK, AsStamped, Merger, OfTheDead, Stamps
from logagg.ipc import clock as common_clock
from logagg.ipc.clock import StampClock

SECOND = 1_000_000_000
OFFSET = 1_790_000_000 * SECOND
MONOTONIC = 5_000 * SECOND
NOW = OFFSET + MONOTONIC


def released(*sources: tuple[AsStamped, list[bytes]], now: int = NOW) -> list[str]:
    """What a merge makes of the lines of some workers, as worker and seq."""
    merger = Merger()
    for stamps, lines in sources:
        usual, placed = stamps.place(lines)
        merger.add(usual, drained=True)
        merger.add_placed(placed)
    assert merger.reject_foreign(now + SECOND) == []
    out = merger.release(now) + merger.release(now, all_ended=True)
    assert not merger
    return [
        line.partition(b'"worker":"')[2].partition(b'"')[0].decode() + str(seq_of(line))
        for line in out
    ]


def lines(worker: str, *stamps: int, first: int = 1) -> list[bytes]:
    """A worker's lines with these stamps."""
    return [wire_line(at, n, worker=worker) for n, at in enumerate(stamps, first)]


@pytest.mark.parametrize("step", [-3600, -2, -1.3, -0.3, 0.3, 1.3, 3600])
def test_threads_and_causes_keep_their_order_over_a_step(step: float) -> None:
    """Two workers log in turns; one has logged by the clock from before the step."""
    by = int(-step * SECOND)
    before = lines("a", *(NOW - ago * SECOND // 10 + by for ago in (40, 20, 10, 4)))
    after = lines("a", NOW - SECOND // 5, first=5)
    others = lines("b", *(NOW - ago * SECOND // 10 for ago in (30, 15, 7, 3, 1)))
    stamps = Stamps([(4, OFFSET + by)], OFFSET)

    found = released((stamps, before + after), (AsStamped(), others))

    assert found == ["a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4", "a5", "b5"]


@given(
    st.lists(st.integers(-5 * SECOND, 5 * SECOND), min_size=1, max_size=5),
    st.lists(st.integers(0, SECOND), min_size=5, max_size=25),
    st.data(),
)
def test_a_thread_keeps_its_order_over_any_steps(
    steps: list[int], gaps: list[int], data: st.DataObject
) -> None:
    """Whatever the clocks were, and in whichever portions the lines are read."""
    times = list(itertools.accumulate(gaps, initial=NOW - 30 * SECOND))
    ends = sorted(data.draw(st.integers(0, len(times))) for _ in steps)
    clocks = [(end, OFFSET + step) for end, step in zip(ends, steps, strict=True)]
    made = []
    last = 0
    for seq, at in enumerate(times, 1):
        by = next((offset - OFFSET for end, offset in clocks if seq <= end), 0)
        last = max(at + by, last + 1) if last < at + by + SECOND else at + by
        made += lines("a", last, first=seq)
    stamps, merger, out = Stamps(clocks, OFFSET), Merger(), []
    assert stamps.earliest(made[0]) <= min(made)
    while made:
        count = data.draw(st.integers(1, len(made)))
        portion, made = made[:count], made[count:]
        highest = stamps.highest(portion)
        usual, placed = stamps.place(portion)
        keys = [key for key, _ in placed] + usual
        assert keys == sorted(keys)
        assert max(keys)[: len(highest)] <= highest
        merger.add(usual, drained=True)
        merger.add_placed(placed)
        merger.reject_foreign(NOW + SECOND)
        out += merger.release(key_ns(highest))
    out += merger.release(NOW, all_ended=True)

    assert [seq_of(line) for line in out] == list(range(1, len(times) + 1))


def test_lines_of_the_dead_keep_their_order_too() -> None:
    """By which clock they were stamped is not known, only that it was before now."""
    dead = lines("a", NOW - SECOND, NOW + 2 * SECOND, NOW - SECOND // 2)

    assert released((OfTheDead(NOW), dead)) == ["a1", "a2", "a3"]


def test_a_line_in_another_place_is_late_and_held_back_like_the_others() -> None:
    """It waits for its turn, and until then nothing after it counts as released."""
    merger = Merger()
    (line,) = lines("a", NOW + 5 * SECOND)
    _, placed = Stamps([(1, OFFSET + 5 * SECOND)], OFFSET).place([line])
    merger.add_placed(placed)

    assert merger.release(NOW) == []
    assert len(merger) == 1
    assert merger.released_before == placed[0][0]
    assert merger.release(NOW + SECOND) == [line + LATE_MARK]
    assert merger.released_before == b"~"
    assert merger.late == 1


def test_one_clock_costs_nothing() -> None:
    """Without a step the very lines come back; a worker may say anything."""
    made = lines("a", NOW, NOW + 1)
    for clocks in ([], [(2, OFFSET)], [(2, OFFSET - 1000)]):
        usual, placed = Stamps(clocks, OFFSET).place(made)
        assert usual is made
        assert not placed
    garbage = [*lines("a", NOW), b"garbage", *lines("a", NOW, first=2)]
    usual, placed = Stamps([(9, -(2**62))], 2**62).place(garbage)
    assert [line for _, line in placed] + usual == garbage


def test_a_clock_knows_what_it_has_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when an offset cannot be read: then it stays what it was."""
    monkeypatch.setattr(common_clock, "measure_offset", lambda: 7)
    clock = StampClock()
    assert clock.describe(0) == []
    assert clock.use(None, 0) == 7
    assert clock.use((7, None), 3) == 7
    assert clock.describe(3) == [(3, 7)]
    assert clock.use((5, None), 4) == 5
    monkeypatch.setattr(common_clock, "measure_offset", lambda: 9)
    assert clock.use(None, 6) == 5
    clock.switch = (0, 8)
    assert clock.follow(8)[1] == 0
    assert clock.offset == 8
    assert clock.describe(9) == [(4, 7), (8, 5), (9, 8)]
    clock.acknowledge(4)
    assert clock.describe(9) == [(8, 5), (9, 8)]
