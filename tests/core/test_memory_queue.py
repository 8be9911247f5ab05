"""What goes when a sink's queue is too full: the lowest severity, exactly counted."""

from __future__ import annotations

from collections import Counter

import support
from hypothesis import given
from hypothesis import strategies as st

from logagg.abc import Batch
from logagg.core.line import received_suffix, seq_of
from logagg.fanout.memory_queue import MemoryQueue, levels_of

CLOSING = received_suffix(0)
NAMES = ("debug", "info", "warning", "error", "critical")
RANK = {"debug": 0, "info": 0, "warning": 1, "error": 2, "critical": 2}

levels = st.sampled_from(NAMES)
batches = st.lists(st.lists(levels, min_size=1, max_size=30), min_size=1, max_size=12)


def batch_of(names: list[str], start: int = 1) -> Batch:
    """A batch with a record of each of these levels; their seqs go on from `start`."""
    lines = [
        support.wire_line(10**18 + start + i, start + i, level=name)
        for i, name in enumerate(names)
    ]
    return Batch(lines, CLOSING)


def filled(parts: list[list[str]]) -> MemoryQueue:
    """A queue with these batches, numbered from 1 on."""
    queue = MemoryQueue()
    start = 1
    for number, names in enumerate(parts, 1):
        queue.append(number, batch_of(names, start), 0.0)
        start += len(names)
    return queue


def emptied(queue: MemoryQueue) -> list[bytes]:
    """All lines of a queue, taken out one batch after another."""
    found: list[bytes] = []
    while queue:
        found += queue.pop().batch.lines
    return found


@given(batches, st.integers(0, 100), st.booleans())
def test_no_more_goes_than_must_and_all_of_it_is_counted(
    parts: list[list[str]], most: int, newest: bool
) -> None:
    """What is dropped and what stays is what came, and the bound is met exactly."""
    queue = filled(parts)
    came = Counter(name for names in parts for name in names)

    dropped = queue.enforce(most, 10**9, newest=newest)

    assert queue.records == min(most, came.total())
    left = emptied(queue)
    assert Counter(levels_of(left)) + Counter(dropped) == came
    assert (queue.records, queue.size_bytes, len(queue)) == (0, 0, 0)


@given(batches, st.integers(0, 100), st.booleans())
def test_lower_severity_goes_first_and_what_stays_keeps_its_order(
    parts: list[list[str]], most: int, newest: bool
) -> None:
    """A warning goes only when nothing below it is left, an error only behind both."""
    queue = filled(parts)

    dropped = queue.enforce(most, 10**9, newest=newest)

    left = emptied(queue)
    kept = {RANK[name] for name in levels_of(left)}
    gone = {RANK[name] for name in dropped}
    assert not gone or not kept or max(gone) <= min(kept)
    seqs = [seq_of(line) for line in left]
    assert seqs == sorted(seqs)


def test_of_equals_the_oldest_or_the_newest_go() -> None:
    """drop_old keeps the end of what waits, drop_new its beginning."""
    for newest, expected in ((False, [4, 5, 6]), (True, [1, 2, 3])):
        queue = filled([["info"] * 2, ["info"] * 4])

        queue.enforce(3, 10**9, newest=newest)

        assert [seq_of(line) for line in emptied(queue)] == expected


def test_a_bound_in_bytes_is_kept() -> None:
    """Long records go until what is left is short enough."""
    queue = filled([["info"] * 9])
    each = queue.size_bytes // 9

    dropped = queue.enforce(10**9, each * 4, newest=False)

    assert dropped == {"info": 5}
    assert queue.size_bytes == each * 4


def test_what_comes_while_it_is_tight_is_dropped_by_rank_too() -> None:
    """An error that comes into a full queue pushes out what is less severe."""
    queue = filled([["info"] * 5, ["warning"] * 5])
    queue.enforce(8, 10**9, newest=True)

    queue.append(3, batch_of(["error"] * 6, 100), 0.0)
    dropped = queue.enforce(8, 10**9, newest=True)

    assert dropped == {"info": 3, "warning": 3}
    assert levels_of(emptied(queue)) == {"warning": 2, "error": 6}


def test_big_batches_are_cut_only_when_it_is_tight() -> None:
    """A queue within its bounds gives back the very batch that it was given."""
    queue = MemoryQueue()
    batch = batch_of(["info"] * 5000)
    queue.append(1, batch, 0.0)
    assert queue.enforce(5000, 10**9, newest=False) == {}

    assert queue.pop().batch is batch


def test_levels_of_ones_own_are_judged_by_their_number() -> None:
    """`notice` (25) goes before a warning; one without a number is kept with errors."""
    own = [
        support.wire_line(1, 1, level="notice", body=b'"level_number":25'),
        support.wire_line(2, 2, level="odd"),
        support.wire_line(3, 3, level="warning"),
    ]
    queue = MemoryQueue()
    queue.append(1, Batch(own, CLOSING), 0.0)

    assert queue.enforce(2, 10**9, newest=False) == {"notice": 1}
    assert queue.enforce(1, 10**9, newest=False) == {"warning": 1}
