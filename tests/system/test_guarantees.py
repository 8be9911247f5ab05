"""The table of guarantees in the manual: each death under each setting, cell by cell.

Cells that a test of their own backs elsewhere are not repeated: ends of a worker in
test_worker_death, of the consumer in test_consumer_death and test_failpoints, full
pipes and disks in test_overflow, what is forced to the disk in test_file_sync.
"""

import os
import re
import signal
from pathlib import Path

import orjson
import pytest
import support
from harness import Fleet, fresh_record, plugin_path
from support import PREAMBLE, have, linux_form, python, settled, wait_until

pytestmark = pytest.mark.slow  # many real processes, some seconds each

# Elsewhere a pipe is full before the next consumer is there: that policy drops then.
OVERFLOW = ["spool", "block", pytest.param("drop_new", marks=linux_form)]
FSYNC = ["never", "interval", "always"]


def kill_consumer():
    """Kill the consumer once it has written something; wait until it is gone."""
    pid = support.consumer()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not support.alive(pid), what="the consumer's end")


def grown(path):
    """Wait until a file has grown."""
    size = path.stat().st_size
    wait_until(lambda: path.stat().st_size > size, what="further records")


@pytest.mark.parametrize("fsync", FSYNC)
@pytest.mark.parametrize("overflow", OVERFLOW)
def test_the_death_of_a_worker_and_then_of_the_consumer_loses_nothing(
    tmp_path, overflow, fsync
):
    """kill -9 of one and, when that is seen to, of the other: each record once."""
    path = tmp_path / "app.log"
    with Fleet(
        path, target="", sinks=[f"file:{path}?fsync={fsync}"], workers=3,
        count=10**9, rate=1000, options={"overflow": overflow},
    ) as fleet:  # fmt: skip
        fleet.progress(300)
        wait_until(lambda: path.exists() and numbers(path, "r0"), what="its records")
        fleet.kill(0)
        wait_until(lambda: b'"event":"worker_exit"' in path.read_bytes(), what="news")
        kill_consumer()
        fleet.progress(300)
        grown(path)
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=1.5)


@pytest.mark.parametrize("fsync", FSYNC)
@pytest.mark.parametrize("overflow", OVERFLOW)
def test_the_death_of_a_consumer_that_stood_still_costs_what_the_policy_says(
    tmp_path, overflow, fsync
):
    """Full pipes, then kill -9: nothing is lost, or with drop_new it is counted."""
    path = tmp_path / "app.log"
    with Fleet(
        path, target="", sinks=[f"file:{path}?fsync={fsync}"], workers=2,
        count=6000, size=500, options={"overflow": overflow}, wait=True,
    ) as fleet:  # fmt: skip
        fleet.ready()
        first = support.consumer()
        with support.stopped(first):
            fleet.go()
            if overflow == "block":
                wait_until(lambda: fleet.returned > 1000, what="full pipes")
            else:
                wait_until(lambda: fleet.returned == 12_000, what="the last call")
            kill_consumer()
        fleet.join()

    verdict = fleet.judge()
    # A call that blocks lasts as long as the consumer stands still, which this test decides.
    longest = None if overflow == "block" else 1.5
    verdict.require(complete=overflow != "drop_new", longest=longest)
    assert bool(verdict.missing) is (overflow == "drop_new")


def test_drops_are_told_once_although_the_consumer_dies(tmp_path):
    """Drops before and after a kill -9 with drop_new: the sum of what is told is right."""
    path = tmp_path / "app.log"
    options = {"overflow": "drop_new"}
    with Fleet(path, workers=2, count=10**9, size=500, options=options) as fleet:
        for _ in range(2):
            wait_until(have(path, 1))
            with support.stopped(support.consumer()):
                fleet.progress(12_000)
            wait_until(lambda: b'"event":"dropped"' in path.read_bytes(), what="news")
            kill_consumer()
            grown(path)
        fleet.stop()
        fleet.join()

    verdict = fleet.judge().require(complete=False)
    assert verdict.missing


def test_the_death_of_both_at_once_costs_the_last_moment_of_one_worker(tmp_path):
    """Consumer and worker killed together: only that worker's newest records go."""
    path = tmp_path / "app.log"
    rate = 1000
    with Fleet(path, workers=3, count=10**9, rate=rate) as fleet:
        fleet.progress(1500)
        wait_until(have(path, 500))
        sure = numbers(path, "r0")  # what had been written before, at least
        os.kill(support.consumer(), signal.SIGKILL)
        fleet.kill(0)
        fleet.progress(300)
        fleet.stop()
        fleet.join()

    verdict = fleet.judge()
    assert verdict.missing.keys() <= {"r0"}
    lost = verdict.missing.get("r0", [])
    ends = fleet.sent()[0].returned
    assert lost == list(range(ends - len(lost), ends))
    assert max(sure) < ends - len(lost)
    assert len(lost) < rate  # a second, on a loaded machine; hundredths in truth
    assert not verdict.duplicates
    assert not verdict.misordered
    assert not verdict.broken
    assert not verdict.torn


def numbers(path, worker, end=b""):
    """The numbers of a worker's records in a file that may be written to just now."""
    lines = path.read_bytes().split(b"\n")[:-1]
    found = [orjson.loads(line + end) for line in lines]
    return [each["n"] for each in found if each.get("w") == worker]


SYNCED = (
    PREAMBLE
    + """
handler = logagg.Handler(sinks=[f"file:{sys.argv[1]}?fsync={sys.argv[2]}"])
logging.basicConfig(handlers=[handler], level="INFO")
logging.log(int(sys.argv[3]), "x")
assert handler.flush(20)
logging.log(int(sys.argv[3]), "x")
print(handler.flush(2), handler.flush(20))
"""
)


@pytest.mark.parametrize(
    ("fsync", "level", "told"),
    [
        ("never", "20", "True True"),
        ("interval", "20", "True True"),
        ("interval", "50", "False True"),
        ("always", "20", "False True"),
    ],
)
def test_what_flush_confirms_is_on_the_disk_where_that_was_asked_for(
    tmp_path, fsync, level, told
):
    """A disk that takes 4 s: with `always`, or a critical record, flush waits for it."""
    env = {**os.environ, "LOGAGG_FAILPOINT": "file_sync:sleep=4@2"}

    done = python(SYNCED, tmp_path / "app.log", fsync, level, env=env)

    settled()
    assert done.stdout == f"{told}\n"


def test_what_a_disk_refuses_to_keep_is_told_and_tried_again(tmp_path):
    """fsync=always and an I/O error: one alarm, then each record stands there once."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "file_sync:errno=5@2"}
    with Fleet(
        path, target="", sinks=[f"file:{path}?fsync=always"], workers=2, count=500,
        rate=1000, env=env,
    ) as fleet:  # fmt: skip
        fleet.join()

    verdict = fleet.judge().require()
    told = [each for each in verdict.events if each["event"] == "sink_error"]
    assert len(told) == 1
    assert "Input/output error" in told[0]["message"]


@pytest.mark.leaves_files
@pytest.mark.parametrize("overflow", ["block", "drop_new"])
def test_what_a_program_says_at_its_end_without_a_consumer_is_true(tmp_path, overflow):
    """The consumers die, then none can start: dropped is what is told, parked the rest."""
    path = tmp_path / "app.log"
    door = Path(os.environ["XDG_RUNTIME_DIR"], "logagg")
    with Fleet(
        path, workers=1, count=1500, rate=1000, options={"overflow": overflow},
        env={"LOGAGG_FAILPOINT": "after_read:kill"},
    ) as fleet:  # fmt: skip
        fleet.progress(300)
        aside = door.rename(door.with_name("aside"))
        door.touch()  # no place for a socket
        (err,) = fleet.join()
    door.unlink()
    aside.rename(door)

    told = int(re.search(r"confirmed: (\d+) were dropped", err)[1])
    assert fleet.judge(settle=None).spooled == 1500 - told
    assert bool(told) is (overflow == "drop_new")
    fresh_record(path)
    wait_until(lambda: not support.spool_files(), what="an empty spool")
    verdict = fleet.judge()
    assert verdict.delivered == 1500 - told
    assert not verdict.duplicates


@pytest.mark.leaves_files
def test_what_is_not_acknowledged_takes_bounded_memory_of_a_worker(tmp_path):
    """150 MB to a sink that keeps nobody's pace: 16 MiB are kept, the rest is on disk."""
    slow = f"slow:{tmp_path}/slow.log?seconds=0.1&policy=block"
    slow += "&queue_records=100000&queue_bytes=500MiB"
    with Fleet(
        tmp_path / "app.log", workers=1, count=30_000, size=5000, rate=10_000, wait=True,
        env=plugin_path(), sinks=[slow],
    ) as fleet:  # fmt: skip
        fleet.ready()
        pid = fleet.processes[0].pid
        before = support.peak_memory_bytes(pid)
        fleet.go()
        wait_until(lambda: fleet.returned == 30_000, what="the last call")
        assert support.peak_memory_bytes(pid) - before < 48 * 1024 * 1024
        assert support.spool_files()
        consumer = support.consumer()
        for each in fleet.processes:
            each.kill()
        os.kill(consumer, signal.SIGKILL)


def test_the_death_of_all_leaves_what_was_parked_to_the_next_start(tmp_path):
    """All are killed with records in the spool: each of those is written, once."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=2, count=10**9, rate=3000, size=500) as fleet:
        fleet.progress(500)
        with support.stopped(support.consumer()):
            wait_until(lambda: len(support.spool_files()) == 2, what="the spool")
            fleet.progress(500)
            for number in range(2):
                fleet.kill(number)
            parked = {
                worker: {n for each in support.spool_files()
                         for n in numbers(each, worker, b"}")}
                for worker in ("r0", "r1")
            }  # fmt: skip
            os.kill(support.consumer(), signal.SIGKILL)
    assert all(parked.values())

    fresh_record(path)
    wait_until(lambda: not support.spool_files(), what="an empty spool")

    verdict = fleet.judge()
    assert not verdict.duplicates
    assert not verdict.broken
    for worker, kept in parked.items():
        assert kept <= set(numbers(path, worker))
