"""The consumer dies: at any moment, again and again. Each record is in the file once."""

import os
import signal
import subprocess

import pytest
import support
from harness import Fleet, fresh_record
from support import (
    BASIC,
    PREAMBLE,
    assert_complete,
    consumers,
    have,
    python,
    records,
    running,
    settled,
    wait_until,
)

pytestmark = pytest.mark.slow  # many real processes, some seconds each

BOUND = 1.5
"""No log call takes longer: 0.1 s for room and 0.5 s to attach, on a loaded machine."""


def kill_consumer(sign=signal.SIGKILL):
    """Kill the consumer of this test and wait until it is gone; return its pid."""
    while True:
        pid = support.consumer()
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            continue  # it lost the election and has ended by itself
        break
    wait_until(lambda: not support.alive(pid), what="the consumer's end")
    return pid


def at_work(path):
    """Wait until the present consumer has written something; return its pid."""

    def size():
        try:
            return path.stat().st_size
        except FileNotFoundError:  # not yet, or between two steps of a rotation
            return 0

    pid = support.consumer()
    before = size()

    def grown():
        return support.consumers() != [pid] or size() not in (0, before)

    wait_until(grown, what="a consumer at work")
    return pid


def test_workers_finish_whole_when_the_consumer_is_killed(tmp_path):
    """4 workers × 5,000 records with a kill in the middle: all exit 0, all is there."""
    with Fleet(tmp_path / "app.log", count=5000, rate=4000) as fleet:
        fleet.progress(4000)
        kill_consumer()
        errors = fleet.join(30)

    fleet.judge().require(longest=BOUND)
    assert errors == [""] * 4


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_in_a_row_under_load_leave_each_record_once(tmp_path, kills):
    """kill -9 while four workers log: exactly once, in order, no call takes long."""
    path = tmp_path / "app.log"
    killed = set()
    with Fleet(path, count=10**9, rate=2000) as fleet:
        for _ in range(kills):
            at_work(path)
            fleet.progress(200)
            killed.add(kill_consumer())
        at_work(path)
        fleet.stop()
        fleet.join()

    assert len(killed) == kills
    fleet.judge().require(longest=BOUND)


@pytest.mark.slow
def test_kills_faster_than_a_consumer_can_start(tmp_path):
    """Killed ten times before it can say a word: soon after the last one is back."""
    path = tmp_path / "app.log"
    with Fleet(path, count=10**9, rate=1000) as fleet:
        fleet.progress(500)
        for _ in range(10):
            kill_consumer()
        assert fresh_record(path) < 10
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=BOUND)


@pytest.mark.slow
def test_kills_while_a_file_rotates_leave_each_record_once(tmp_path):
    """The same with a rotation every 50 kB: nothing is written twice or lost."""
    path = tmp_path / "app.log"
    options = {"maxBytes": 50_000}
    with Fleet(path, count=10**9, rate=500, options=options) as fleet:
        for _ in range(5):
            at_work(path)
            kill_consumer()
        at_work(path)
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=BOUND)
    assert len(support.rotated(path)) > 10


@pytest.mark.slow
def test_kills_among_large_records_leave_each_record_once(tmp_path):
    """Records of 200 kB are as safe as small ones: whole lines, each once."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=2, count=10**9, rate=40, size=200_000) as fleet:
        for _ in range(4):
            at_work(path)
            kill_consumer()
        at_work(path)
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=BOUND + 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_consumer_that_is_asked_to_end_hands_over_in_good_order(tmp_path, sign):
    """A signal to the consumer under load: a new one takes over, each record once."""
    path = tmp_path / "app.log"
    with Fleet(path, count=10**9, rate=1000) as fleet:
        for _ in range(2):
            at_work(path)
            kill_consumer(sign)
        at_work(path)
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=BOUND)


@pytest.mark.slow
def test_a_consumer_that_is_asked_to_end_acknowledges_all_that_it_writes(tmp_path):
    """So the next one repeats nothing in a target that cannot report what it has."""
    path = tmp_path / "app.txt"
    code = (
        PREAMBLE
        + f"""\
import threading
handler = logagg.Handler(sinks=["file:{path}?format=text&template={{message}}"])
logging.basicConfig(handlers=[handler], level="INFO")
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
n = 0
while not ended.wait(0.0002):
    logging.info("m%d", n)
    n += 1
print(n)
"""
    )
    with running(code, stdin=subprocess.PIPE) as program:
        for _ in range(4):
            at_work(path)
            kill_consumer(signal.SIGTERM)
        at_work(path)
        program.stdin.close()
        count = int(program.stdout.read())
    settled()

    found = [line for line in path.read_text().splitlines() if line.startswith("m")]
    assert found == [f"m{n}" for n in range(count)]


POINTS = [
    pytest.param("after_read", marks=pytest.mark.slow),
    pytest.param("before_write", marks=pytest.mark.slow),
    "after_write",
    pytest.param("before_ack", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("size", [40, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_moment_of_a_cycle_leaves_each_record_once(
    tmp_path, point, size
):
    """Between reading, writing and acknowledging: no loss and no duplicate."""
    env = {"LOGAGG_FAILPOINT": f"{point}:kill@10"}
    rate, more = (2000, 1000) if size == 40 else (50, 40)
    with Fleet(
        tmp_path / "app.log", workers=2, count=10**6, rate=rate, size=size, env=env,
        wait=True, forget=["LOGAGG_FAILPOINT"],
    ) as fleet:  # fmt: skip
        fleet.ready()
        first = support.consumer()
        fleet.go()
        wait_until(lambda: not support.alive(first), what="the failpoint's kill")
        fleet.progress(more)
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=BOUND + (size > 1000))


@pytest.mark.slow
def test_a_kill_before_anything_was_read_loses_nothing(tmp_path):
    """The records wait in the pipe, the connection in the socket: a new one has both."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "after_read:kill@1"}
    with Fleet(
        path, count=500, env=env, wait=True, forget=["LOGAGG_FAILPOINT"]
    ) as fleet:
        fleet.ready()
        fleet.go()
        fleet.join()

    fleet.judge().require(longest=BOUND)


@pytest.mark.slow
def test_an_idle_worker_finds_the_new_consumer_when_it_logs_again(tmp_path):
    """Killed while nothing happens: the next record starts another and arrives."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
for n in range(3):
    log.info("x", extra={"who": "w", "n": n})
    print(n, flush=True)
    sys.stdin.readline()
    time.sleep(0.25)  # a worker looks at its connection when 0.2 s have passed
"""
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        for n in range(3):
            assert process.stdout.readline() == f"{n}\n"
            wait_until(have(path, n + 1))
            kill_consumer()
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.wait(20) == 0
    settled(natural=True)

    assert [each["n"] for each in records(path)] == [0, 1, 2]


def test_a_worker_that_ends_after_the_consumer_still_delivers(tmp_path):
    """Killed consumer, then the program's normal end: its exit hands everything over."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
for n in range(2000):
    log.info("x", extra={"who": "w", "n": n})
print("done", flush=True)
sys.stdin.readline()
"""
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "done\n"
        os.kill(support.consumer(), signal.SIGKILL)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0, process.stderr.read()
    settled(natural=True)

    support.assert_complete(records(path), {"w": 2000})


def test_a_flushed_record_survives_the_death_of_both(tmp_path):
    """What `flush` confirmed is in the file, whoever is killed afterwards."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
for n in range(1000):
    log.info("x", extra={"who": "w", "n": n})
assert logging.getLogger().handlers[0].flush()
print("flushed", flush=True)
sys.stdin.readline()
"""
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "flushed\n"
        os.kill(support.consumer(), signal.SIGKILL)
        process.kill()

    support.assert_complete(records(path), {"w": 1000})
    fresh_record(path)
    assert len(records(path)) == 1001


@pytest.mark.slow
def test_flush_during_a_death_is_bounded_and_true(tmp_path):
    """When flush says yes, the records are there, although the consumer was killed."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
handler = logging.getLogger().handlers[0]
for round_ in range(3):
    for n in range(200):
        log.info("x", extra={"who": "w", "n": round_ * 200 + n})
    print("logged", flush=True)
    sys.stdin.readline()
    start = time.monotonic()
    done = handler.flush(5)
    took = time.monotonic() - start
    assert took < 6, took
    assert done
    data = open(sys.argv[1], "rb").read()
    assert data.count(b'"who":"w"') == (round_ + 1) * 200
"""
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        for _ in range(3):
            assert process.stdout.readline() == "logged\n"
            kill_consumer()
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.wait(30) == 0, process.stderr.read()
    settled(natural=True)

    support.assert_complete(records(path), {"w": 600})


def test_a_torn_last_line_is_repaired(tmp_path):
    """A file that ends in half a record is whole again after the next start."""
    path = tmp_path / "app.log"
    python(BASIC + "log.info('first')", path)
    settled(natural=True)
    with path.open("ab") as file:
        file.write(b'{"timestamp":"2026-01-01T00:00:00.000000000Z","level":"in')

    python(BASIC + "log.info('second')", path)
    settled(natural=True)

    messages = [each.get("message") for each in records(path)]
    assert messages[0] == "first"
    assert messages[-1] == "second"


@pytest.mark.slow
@pytest.mark.leaves_files
def test_a_consumer_that_dies_at_every_start_costs_the_application_little(tmp_path):
    """No crash loop: calls stay short, records go to the spool, a later start has all."""
    path = tmp_path / "app.log"
    env = {"LOGAGG_FAILPOINT": "after_read:kill"}
    with Fleet(path, workers=2, count=3000, rate=1000, env=env) as fleet:
        errors = fleet.join(40)
    assert sum("the consumer keeps ending" in each for each in errors) >= 1
    assert all(each.count("\n") <= 4 for each in errors)

    verdict = fleet.judge(settle=None)
    verdict.require(spooled=None, longest=BOUND)
    fresh_record(path)
    wait_until(lambda: not support.spool_files(), what="the spool to be taken in")

    fleet.judge().require(ordered=False)


def test_what_was_spooled_is_taken_in_by_the_next_start(tmp_path):
    """Orphaned segments are written, each record once, and removed."""
    path = tmp_path / "app.log"
    socket = {"LOGAGG_SOCKET": str(tmp_path / "address.sock")}
    with Fleet(path, count=500, env=socket) as fleet:
        fleet.join()
    assert len(support.spool_files()) == 4
    fleet.judge(settle=None).require(spooled=2000)

    serve = [support.sys.executable, "-m", "logagg", "serve", "--socket"]
    serve += [socket["LOGAGG_SOCKET"], "--sink", f"file:{path}"]
    with subprocess.Popen(serve) as consumer:
        try:
            wait_until(lambda: not support.spool_files(), what="an empty spool")
        finally:
            consumer.terminate()

    assert consumer.returncode == 0
    fleet.judge().require(ordered=False)


@pytest.mark.slow
def test_a_fresh_record_arrives_soon_after_a_death(tmp_path):
    """Within 5 s of a kill a new process's record is in the file."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=2, count=10**9, rate=500) as fleet:
        fleet.progress(200)
        kill_consumer()
        assert fresh_record(path) < 10
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=BOUND)


@pytest.mark.slow
def test_many_workers_find_one_new_consumer(tmp_path):
    """After a kill twenty workers elect one: never two at a time."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=20, count=300, rate=100) as fleet:
        fleet.progress(500)
        kill_consumer()
        fleet.progress(500)
        assert len(support.consumers()) == 1
        fleet.join(60)

    fleet.judge().require(longest=BOUND + 1)


@pytest.mark.slow
def test_descriptors_of_a_worker_do_not_grow_with_each_death(tmp_path):
    """Ten consumers later a worker has as many open files as before."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=1, count=10**9, rate=1000) as fleet:
        fleet.progress(300)
        before = support.descriptors(fleet.processes[0].pid)
        for _ in range(4):
            at_work(path)
            kill_consumer()
        at_work(path)
        pid = fleet.processes[0].pid  # a last segment is open until it is acknowledged
        wait_until(lambda: support.descriptors(pid) <= before, what="closed segments")
        fleet.stop()
        fleet.join()

    fleet.judge().require()


def test_a_worker_that_logs_again_much_later_repeats_nothing(tmp_path):
    """What it kept was written by a dead consumer, 100 MB ago: it stands once."""
    path = tmp_path / "app.log"
    log_much = 'log.info("x" * 5000, extra={"who": sys.argv[2], "n": n})'
    early = f"""
os.environ["LOGAGG_FAILPOINT"] = "after_write:kill"
for n in range(100):
    {log_much}
del os.environ["LOGAGG_FAILPOINT"]
print("logged", flush=True)
sys.stdin.read()
for n in range(100, 110):
    {log_much}
"""
    later = f"""
for n in range(20_000):
    {log_much}
"""
    with running(BASIC + early, path, "early", stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "logged\n"
        wait_until(lambda: have(path, 1)() and not consumers(), what="its death")
        python(BASIC + later, path, "later", timeout=90)
        process.stdin.close()
        assert process.wait(30) == 0
    settled()

    assert_complete(records(path), {"early": 110, "later": 20_000})
