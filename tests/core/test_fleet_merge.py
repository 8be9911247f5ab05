"""The merge of hosts and the numbers of records, without servers."""

from __future__ import annotations

from random import Random

import pytest

from logagg.collect.fleet_merge import FleetMerge
from logagg.collect.record_numbers import RecordNumbers
from logagg.fleet.message import StreamMessage
from logagg.testing import make_line
from logagg.wireformat import key_ns, load_line, received_suffix

BASE = key_ns(make_line(0))
MS = 1_000_000
DELAY, WAIT = 100 * MS, 1000 * MS


def merge(most: int = 1 << 30) -> FleetMerge:
    return FleetMerge(DELAY, WAIT, most)


def lines(*times: int, worker: str = "a") -> list[bytes]:
    end = received_suffix(BASE)[:-2]
    return [make_line(each, worker=worker) + end for each in times]


def times(found: list[bytes]) -> list[int]:
    return [(key_ns(line) - BASE) // MS for line in found]


def test_a_line_waits_for_hosts_that_have_not_come_as_far() -> None:
    subject = merge()
    subject.add("one", 1, lines(1, 2, 9), BASE + 9 * MS)
    subject.add("two", 2, lines(3, 5, worker="b"), BASE + 9 * MS)
    found, tokens = subject.release(BASE + 500 * MS)
    assert (times(found), tokens) == ([1, 2, 3, 5], [2])
    subject.add("two", 3, lines(7, 12, worker="b"), BASE + 500 * MS)
    found, tokens = subject.release(BASE + 500 * MS)
    assert (times(found), tokens) == ([7, 9], [1])


def test_a_silent_host_is_waited_for_no_longer_than_that() -> None:
    subject = merge()
    subject.add("one", 1, lines(1), BASE)
    subject.add("two", 2, lines(500, worker="b"), BASE + 500 * MS)
    assert times(subject.release(BASE + 900 * MS)[0]) == [1]
    assert times(subject.release(BASE + 1001 * MS)[0]) == [500]


def test_a_line_has_the_least_age() -> None:
    subject = merge()
    subject.add("one", 1, lines(1, 200), BASE)
    assert times(subject.release(BASE + 150 * MS)[0]) == [1]
    assert times(subject.release(BASE + 301 * MS)[0]) == [200]


def test_a_line_after_younger_ones_is_released_at_once_and_marked() -> None:
    subject = merge()
    subject.add("one", 1, lines(100), BASE)
    subject.release(BASE + 5000 * MS)
    subject.add("two", 2, lines(50, 150, worker="b"), BASE + 5000 * MS)
    found, _ = subject.release(BASE + 5000 * MS)
    assert times(found) == [50, 150]
    marks = [(load_line(line + b"}") or {}).get("late") for line in found]
    assert (marks, subject.late) == ([True, None], 1)
    assert all(line.endswith(received_suffix(BASE)[:-2]) for line in found)


def test_held_bytes_are_bounded() -> None:
    """Beyond the bound silent hosts are not waited for; beyond twice that, nothing is."""
    subject = merge(most=600)
    subject.add("one", 1, lines(1), BASE)
    subject.add("two", 2, lines(5, 6, worker="b"), BASE)
    assert times(subject.release(BASE + 500 * MS)[0]) == [1, 5, 6]
    subject.add("one", 3, lines(*range(10, 20)), BASE)
    assert times(subject.release(BASE)[0]) == list(range(10, 20))


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_a_host_stays_and_nothing_is_lost(seed: int) -> None:
    """Also where its lines are not in the order of time."""
    random = Random(seed)
    subject = merge()
    sent: dict[str, list[bytes]] = {name: [] for name in "abc"}
    found: list[bytes] = []
    tokens: list[int] = []
    clock = 0
    for token in range(1, 60):
        name = random.choice("abc")
        clock += random.randint(0, 300)
        batch = [
            make_line(max(0, clock - random.choice((0, 0, 0, 400))), worker=name, n=n)
            + received_suffix(BASE)[:-2]
            for n in range(len(sent[name]), len(sent[name]) + random.randint(1, 5))
        ]
        sent[name] += batch
        subject.add(name, token, batch, BASE + clock * MS)
        if random.random() < 0.5:
            new, done = subject.release(BASE + clock * MS)
            found += new
            tokens += done
    new, done = subject.release(0, final=True)
    found += new
    assert sorted(tokens + done) == list(range(1, 60))
    assert subject.size_bytes == 0
    for name, expected in sent.items():
        of_host = [load_line(line + b"}") or {} for line in found]
        numbers = [each["n"] for each in of_host if each["worker"] == name]
        assert numbers == list(range(len(expected)))


def message(first: int, following: int, have: int = -1) -> StreamMessage:
    number = following - first if have < 0 else have
    return StreamMessage(
        "app", "host", "spool", first, following, lines(*range(number))
    )


def test_repetitions_are_left_out_and_gaps_are_counted() -> None:
    subject = RecordNumbers({"spool": 10})
    assert subject.accept(message(5, 10)) == ([], 0)
    assert subject.accept(message(8, 12)) == (lines(2, 3), 0)
    assert subject.accept(message(15, 17)) == (lines(0, 1), 3)
    assert subject.accept(message(17, 20, have=2)) == (lines(0, 1), 1)
    assert subject.known == {"spool": 20}


def test_the_spools_that_came_last_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("logagg.collect.record_numbers.MOST_SPOOLS", 2)
    subject = RecordNumbers()
    for name in ("a", "b", "a", "c"):
        subject.note(name, 1)
    assert list(subject.known) == ["a", "c"]
