"""The harness itself: a judge that finds nothing must be one that would find it."""

import orjson
import pytest
import support
from harness import Fleet, Sent, judge
from harness.producer import checksum, payload


def record(n, worker="r0", **changes):
    text = payload("r", worker, n, 30)
    found = {
        "timestamp": "2026-11-25T00:59:11.860666570Z",
        "message": text,
        "run": "r",
        "w": worker,
        "n": n,
        "sum": checksum("r", worker, n, text),
    }
    return orjson.dumps({**found, **changes}) + b"\n"


def verdict_of(tmp_path, *lines, count=4, spool=b""):
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(lines))
    parked = tmp_path / "x.spool"
    parked.write_bytes(spool)
    sent = Sent("r0", 4711, count, count, 0.001, 0, True)
    return judge([path], [sent], spool=[parked])


GOOD = [record(n) for n in range(4)]
LOST = orjson.dumps(
    {"logger": "logagg", "event": "dropped", "number": 1, "of_pid": 4711}
)
LOST += b"\n"


def test_the_judge_is_content_with_a_whole_file(tmp_path):
    """All there, in order, once: no complaint."""
    verdict_of(tmp_path, *GOOD).require()


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (GOOD[:3], "missing"),
        ([*GOOD, GOOD[3]], "duplicates"),
        ([GOOD[0], GOOD[2], GOOD[1], GOOD[3]], "misordered"),
        ([*GOOD[:3], record(3, message="other")], "altered"),
        ([*GOOD, record(9)], "strangers"),
        ([*GOOD, record(0, worker="r9")], "strangers"),
        ([*GOOD, b'{"torn":'], "torn"),
        ([*GOOD[:2], b"junk\n", *GOOD[2:]], "broken"),
    ],
)
def test_the_judge_finds_what_is_wrong(tmp_path, lines, complaint):
    """Each kind of fault is found, and named."""
    with pytest.raises(AssertionError, match=complaint):
        verdict_of(tmp_path, *lines).require()


def test_a_counted_loss_is_forgiven_and_an_uncounted_one_is_not(tmp_path):
    """Where losses are allowed they must be counted, neither more nor less."""
    verdict_of(tmp_path, *GOOD[:3], LOST).require(complete=False)
    with pytest.raises(AssertionError, match="not counted right"):
        verdict_of(tmp_path, *GOOD[:3]).require(complete=False)
    with pytest.raises(AssertionError, match="not counted right"):
        verdict_of(tmp_path, *GOOD, LOST).require(complete=False)


def test_what_is_in_the_spool_is_not_missing(tmp_path):
    """Spooled records are neither lost nor delivered."""
    spooled = record(3).replace(b"}\n", b"\n")
    found = verdict_of(tmp_path, *GOOD[:3], spool=spooled)

    found.require(spooled=1)
    with pytest.raises(AssertionError, match="still in the spool"):
        found.require()


def test_a_fleet_in_good_weather_is_judged_innocent(tmp_path):
    """Four producers, no fault: everything once, in order, and quick."""
    with Fleet(tmp_path / "app.log", count=1000) as fleet:
        assert fleet.join() == [""] * 4

    verdict = fleet.judge().require(longest=1.0)
    assert verdict.delivered == 4000
    assert verdict.late <= support.MOST_LATE
    assert all(each.finished for each in verdict.sent.values())


def test_a_killed_producer_is_held_to_what_it_was_promised(tmp_path):
    """The ledger of a killed producer says how many calls had returned."""
    with Fleet(tmp_path / "app.log", workers=1, count=10**9) as fleet:
        fleet.progress(1000)
        fleet.kill(0)

    verdict = fleet.judge().require()
    (sent,) = verdict.sent.values()
    assert sent.returned <= verdict.delivered <= sent.attempted
    assert sent.returned >= 1000
    assert not sent.finished
    assert support.spool_files() == []
