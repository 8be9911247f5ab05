"""The pipe is full, the consumer stands still, the disk is full: each policy's word."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import support
from harness import Fleet, fresh_record, jailed, plugin_path
from harness.jail import possible, read_only, small_disk
from support import (
    BASIC,
    PREAMBLE,
    events,
    have,
    python,
    records,
    running,
    settled,
    stopped,
    wait_until,
)

pytestmark = pytest.mark.slow  # many real processes, some seconds each

needs_jail = pytest.mark.skipif(
    not possible(), reason="this machine lets nobody mount in a namespace"
)


def test_a_stopped_consumer_holds_nobody_up_and_costs_nothing(tmp_path):
    """SIGSTOP under load with `spool`: short calls; after SIGCONT all in order, once."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=2, count=10**9, rate=8000, size=200) as fleet:
        fleet.progress(2000)
        with stopped(support.consumer()):
            fleet.progress(30_000)
            wait_until(support.spool_files, what="a spool file")
        fleet.progress(2000)
        fleet.stop()
        fleet.join()

    verdict = fleet.judge().require(longest=1.0)
    assert verdict.events == [
        each for each in verdict.events if each["event"] in ("worker_exit", "late")
    ]


def test_block_waits_for_room_and_loses_nothing(tmp_path):
    """`overflow="block"`: the call waits as long as the consumer stands still."""
    path = tmp_path / "app.log"
    options = {"overflow": "block"}
    with Fleet(
        path, workers=1, count=30_000, size=200, options=options, wait=True
    ) as fleet:
        fleet.ready()
        with stopped(support.consumer()):
            fleet.go()
            wait_until(lambda: _blocked(fleet.processes[0].pid), what="a full pipe")
            before = fleet.returned
            assert before < 30_000
            assert not support.spool_files()
        fleet.join()

    fleet.judge().require()


def _blocked(pid):
    """Whether a process is waiting in poll, twice in a row without progress."""
    first = support.cpu_seconds(pid)
    support.time.sleep(0.3)
    return support.cpu_seconds(pid) - first < 0.05


def test_drop_new_drops_counts_and_tells(tmp_path):
    """`overflow="drop_new"`: calls never wait; received and dropped make what was sent."""
    path = tmp_path / "app.log"
    options = {"overflow": "drop_new"}
    with Fleet(
        path, workers=2, count=20_000, size=200, options=options, wait=True
    ) as fleet:
        fleet.ready()
        with stopped(support.consumer()):
            fleet.go()
            wait_until(lambda: fleet.returned == 40_000, what="the last call")
        fleet.join()

    verdict = fleet.judge().require(complete=False, longest=0.2)
    assert verdict.missing, "nothing was dropped: the test did not fill the pipe"
    assert sum(verdict.dropped.values()) + verdict.delivered == 40_000
    assert not support.spool_files()


TWO_POLICIES = (
    PREAMBLE
    + """\
handlers = [logagg.Handler(sys.argv[1], overflow=each) for each in sys.argv[2:]]
audit, debug = logging.getLogger("audit"), logging.getLogger("debug")
for log, handler in zip((audit, debug), handlers):
    log.addHandler(handler)
audit.warning("begin")
sys.stdin.readline()
for n in range(2500):
    audit.warning("a" * 1000, extra={"n": n})
print("done", flush=True)
"""
)


@pytest.mark.parametrize("order", [("spool", "drop_new"), ("drop_new", "spool")])
def test_of_two_policies_in_a_process_the_one_that_loses_less_holds(tmp_path, order):
    """Whichever handler was made last; one line on stderr names both policies."""
    path = tmp_path / "app.log"
    with running(TWO_POLICIES, path, *order, stdin=subprocess.PIPE) as program:
        wait_until(have(path, 1), what="the first record")
        with stopped(support.consumer()):
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "done\n"
        _, stderr = program.communicate(timeout=90)

    settled()
    found = [each["n"] for each in records(path) if "n" in each]
    assert found == list(range(2500))
    assert len(stderr.splitlines()) == 1, stderr
    assert "overflow=drop_new and overflow=spool: both follow spool" in stderr


def test_a_stopped_worker_holds_up_nobody_else(tmp_path):
    """A worker suspended in the middle of a large record: others' records go on."""
    path = tmp_path / "app.log"
    with (
        Fleet(path, workers=1, count=10**9, size=3_000_000, run="big") as big,
        Fleet(path, workers=2, count=10**9, rate=1000) as fleet,
    ):
        big.progress(2)
        wait_until(path.exists, what="the file")
        with stopped(big.processes[0].pid):
            fleet.progress(500)
            size = path.stat().st_size
            wait_until(
                lambda: path.stat().st_size > size + 20_000, 3, "others' records"
            )
        fleet.stop()
        fleet.join()
        big.stop()
        big.join()

    fleet.judge().require()
    big.judge().require()


@pytest.mark.leaves_files
@pytest.mark.parametrize(
    "policy",
    [
        "block",
        pytest.param("drop_new", marks=pytest.mark.slow),
        pytest.param("drop_old", marks=pytest.mark.slow),
        "spool",
    ],
)
def test_a_slow_sink_bounds_memory_and_delays_no_other_sink(tmp_path, policy):
    """50 ms a record in one sink: the file is complete, memory stays small."""
    path = tmp_path / "app.log"
    slow = f"slow:{tmp_path}/slow.log?seconds=0.05&policy={policy}&queue_records=500"
    with Fleet(
        path, count=2000, rate=2000, size=1000, env=plugin_path(), sinks=[slow]
    ) as fleet:
        fleet.progress(3000)
        pid = support.consumer()
        if policy == "block":
            assert support.memory_bytes(pid) < 150_000_000
            for each in fleet.processes:
                each.kill()
            return
        wait_until(lambda: _lines(path) >= 8000, what="all records in the file")
        assert support.memory_bytes(pid) < 150_000_000
        os.kill(pid, signal.SIGKILL)
        for each in fleet.processes:
            each.kill()


def _lines(path):
    return path.read_bytes().count(b'"run":"r"') if path.exists() else 0


@pytest.mark.slow
def test_what_a_slow_sink_drops_is_counted_and_told(tmp_path):
    """Of a sink with `drop_old`: written and dropped make what was offered."""
    code = (
        PREAMBLE
        + """
sinks = [f"file:{sys.argv[1]}", f"slow:{sys.argv[2]}?seconds=0.02&policy=drop_old"
         "&queue_records=100"]
handler = logagg.Handler(sinks=sinks)
logging.basicConfig(handlers=[handler], level="INFO")
logging.info("x", extra={"n": 0})
assert handler.flush(60)  # the consumer is there: it takes what follows bit by bit
until = time.monotonic() + 1
n = 1
while time.monotonic() < until:
    logging.info("x", extra={"n": n})
    n += 1
    if n % 100 == 0:
        time.sleep(0.01)
print(n)
"""
    )
    path, slow = tmp_path / "app.log", tmp_path / "slow.log"

    done = python(code, path, slow, env={**os.environ, **plugin_path()}, timeout=250)
    settled(90)

    count = int(done.stdout)
    assert [each["n"] for each in records(path)] == list(range(count))
    came = len(records(slow))
    told = [each for each in events("dropped", path) if "sink" in each]
    assert came < count, "the sink kept pace: the test is too kind"
    assert told
    assert max(each["dropped"] for each in told) <= count - came


def test_a_sink_that_raises_anything_harms_no_other(tmp_path):
    """A plug-in's bug is counted and told; the file has everything."""
    code = (
        PREAMBLE
        + """
sinks = [f"file:{sys.argv[1]}", "failing:x"]
logging.basicConfig(handlers=[logagg.Handler(sinks=sinks)], level="INFO")
for n in range(500):
    logging.info("x", extra={"who": "w", "n": n})
"""
    )
    path = tmp_path / "app.log"

    python(code, path, env={**os.environ, **plugin_path()})
    settled(90)

    support.assert_complete(records(path), {"w": 500})
    assert events("dropped", path)


@pytest.mark.slow
def test_a_sink_that_never_answers_delays_neither_file_nor_exit(tmp_path):
    """A hanging plug-in: the file goes on, the worker ends at once."""
    stuck = tmp_path / "stuck"
    stuck.touch()
    path = tmp_path / "app.log"
    with Fleet(
        path,
        workers=2,
        count=500,
        env=plugin_path(),
        sinks=[f"stuck:{stuck}?policy=drop_old"],
    ) as fleet:
        fleet.join(10)
    wait_until(lambda: _lines(path) == 1000, what="the file")
    stuck.unlink()

    fleet.judge(settle=20).require()


# ---- no consumer can be had -----------------------------------------------------------


@needs_jail
def test_a_socket_directory_that_cannot_be_written_costs_nothing(tmp_path):
    """No consumer can be started: calls stay short, records are spooled."""
    runtime = support.Path(os.environ["XDG_RUNTIME_DIR"])
    (runtime / "logagg").mkdir(mode=0o700)

    def wrap(command):
        return jailed(command, read_only(runtime))

    with Fleet(tmp_path / "app.log", workers=2, count=2000, wrap=wrap) as fleet:
        errors = fleet.join(40)

    fleet.judge(settle=None).require(spooled=4000, longest=1.5)
    for err in errors:
        assert "no consumer at" in err
        assert err.count("\n") <= 3


def test_records_are_kept_for_the_file_when_the_socket_directory_goes_away(
    tmp_path, monkeypatch
):
    """As at a logout: the consumer ends, no other can start; the next start has all."""
    path = tmp_path / "app.log"
    runtime = Path(os.environ["XDG_RUNTIME_DIR"])
    with Fleet(path, workers=1, count=1500, rate=1000) as fleet:
        fleet.progress(300)
        shutil.rmtree(runtime)
        os.kill(support.consumer(), signal.SIGKILL)
        (err,) = fleet.join()
    assert "records are spooled" in err

    other = runtime.with_name("other")
    other.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(other))
    fresh_record(path)
    wait_until(lambda: not support.spool_files(), what="an empty spool")
    fleet.judge().require()
    runtime.mkdir(mode=0o700)


@needs_jail
def test_when_nothing_can_be_written_records_are_dropped_counted_and_told(tmp_path):
    """Neither socket nor spool: no exception, no delay, one line with the count."""
    runtime = support.Path(os.environ["XDG_RUNTIME_DIR"])
    state = support.Path(os.environ["XDG_STATE_HOME"])
    (runtime / "logagg").mkdir(mode=0o700)

    def wrap(command):
        places = [read_only(each) for each in (runtime, state, "/var/tmp")]
        return jailed(command, *places)

    with Fleet(tmp_path / "app.log", workers=1, count=2000, wrap=wrap) as fleet:
        (err,) = fleet.join(40)

    assert fleet.returned == 2000
    assert max(each.longest for each in fleet.sent()) < 1.5
    assert "dropped" in err
    assert "2000" in err.splitlines()[-1]
    assert err.count("\n") <= 4


@pytest.mark.slow
def test_no_more_processes_can_be_made_and_the_application_goes_on(tmp_path):
    """A limit on processes forbids a consumer: records are spooled, then delivered."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
def refuse(*a, **k):
    raise BlockingIOError(11, "Resource temporarily unavailable")
real, os.posix_spawn = os.posix_spawn, refuse
for n in range(500):
    log.info("x", extra={"who": "w", "n": n})
os.posix_spawn = real
time.sleep(0.6)
for n in range(500, 1000):
    log.info("x", extra={"who": "w", "n": n})
"""
    )
    done = python(code, path)
    settled()

    assert "no consumer at" in done.stderr
    support.assert_complete(records(path), {"w": 1000})
    assert not support.spool_files()


# ---- the disk ----------------------------------------------------------------------


@needs_jail
def test_a_full_disk_stops_nobody_and_loses_nothing(tmp_path):
    """A log on a 1 MB disk: whole lines only; what does not fit is kept for later."""
    disk = tmp_path / "disk"
    disk.mkdir()
    path = disk / "app.log"
    code = """\
import json, os, subprocess, sys, time
path, producer, config = sys.argv[1:]
worker = subprocess.Popen([sys.executable, producer, config])
filler = path + ".filler"
while not os.path.exists(path):
    time.sleep(0.01)
def data():
    with open(path, "rb") as file:
        return file.read()
while len(data()) < 200_000:
    time.sleep(0.01)
try:
    with open(filler, "wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()
except OSError:
    pass
time.sleep(1.0)  # a time of full disk, under load
torn = data().rpartition(b"\\n")[2]
os.unlink(filler)
assert worker.wait(30) == 0
deadline = time.monotonic() + 10
while data().count(b'"run":"r"') < 3000 and time.monotonic() < deadline:
    time.sleep(0.05)
lines = data().split(b"\\n")
assert lines.pop() == b""
found = [json.loads(line) for line in lines]
mine = [each["n"] for each in found if each.get("run") == "r"]
told = [each for each in found if each.get("event") == "sink_error"]
print(json.dumps({"torn": len(torn), "n": mine, "told": len(told)}))
"""
    ledger = tmp_path / "ledger"
    ledger.write_bytes(bytes(48))
    config = support.json.dumps(
        {"path": str(path), "count": 3000, "rate": 1500, "ledger": str(ledger)}
    )
    from harness.fleet import PROGRAM

    command = [sys.executable, "-c", code, str(path), PROGRAM, config]
    done = support.finish(jailed(command, small_disk(disk)), timeout=250)
    settled(90)

    found = support.json.loads(done.stdout)
    assert found["torn"] == 0
    assert found["n"] == list(range(3000))
    assert found["told"] >= 1


def test_a_file_size_limit_is_survived(tmp_path):
    """RLIMIT_FSIZE in the consumer: whole lines; the rest waits, nothing is lost."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
import resource
import shutil
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for n in range(3000):
    log.info("x" * 50, extra={"who": "w", "n": n})
print("done", flush=True)
sys.stdin.readline()
"""
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "done\n"
        wait_until(path.exists)
        pid = support.consumer()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0
    settled(90)

    files = support.rotated(path)
    support.assert_complete(records(*files), {"w": 3000})


@pytest.mark.slow
@pytest.mark.leaves_files
def test_a_device_that_is_always_full_harms_no_other_sink(tmp_path):
    """/dev/full beside a file: the file has everything, the alarm is in it once."""
    path = tmp_path / "app.log"
    code = (
        PREAMBLE
        + """
sinks = [f"file:{sys.argv[1]}", "file:/dev/full?policy=drop_new"]
logging.basicConfig(handlers=[logagg.Handler(sinks=sinks)], level="INFO")
for n in range(1000):
    logging.info("x", extra={"who": "w", "n": n})
"""
    )
    python(code, path)
    wait_until(have(path, 1000))

    support.assert_complete(records(path), {"w": 1000})
    told = events("sink_error", path)
    assert 1 <= len(told) <= 2
    assert "No space left" in told[0]["message"]


def test_a_reader_that_leaves_does_not_break_the_file(tmp_path):
    """stdout into a pipe whose reader goes away: the file sink goes on."""
    path = tmp_path / "app.log"
    code = (
        PREAMBLE
        + """
sinks = ["stdout:?format=json", f"file:{sys.argv[1]}"]
logging.basicConfig(handlers=[logagg.Handler(sinks=sinks)], level="INFO")
for n in range(2000):
    logging.info("x", extra={"who": "w", "n": n})
    if n == 1000:
        time.sleep(0.3)
"""
    )
    with running(code, path) as process:
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        assert process.wait(20) == 0
    wait_until(have(path, 2000))
    settled(90)

    support.assert_complete(records(path), {"w": 2000})
