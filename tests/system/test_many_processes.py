"""Several processes, one file: everything once, whole, in order."""

import collections
import subprocess

import pytest
import support
from support import (
    BASIC,
    PREAMBLE,
    assert_complete,
    assert_ordered,
    consumers,
    events,
    finish,
    lines,
    python,
    records,
    rotated,
    running,
    runtime_files,
    settled,
    spool_files,
    wait_until,
)

from logagg.platform import system

pytestmark = pytest.mark.slow  # many real processes, some seconds each

NUMBERS = (
    BASIC
    + """
who, count = sys.argv[2], int(sys.argv[3])
for n in range(count):
    log.info("record %d of %s", n, who, extra={"who": who, "n": n})
"""
)


def numbering(path, workers, count, code=NUMBERS, **options):
    """Run so many processes that number their records; wait until all is settled."""
    running_now = [
        support.start(code, path, f"w{each}", count, **options)
        for each in range(workers)
    ]
    for each in running_now:
        _, err = each.communicate(timeout=120)
        assert (each.returncode, err) == (0, "")
    settled()


def test_two_unrelated_processes_share_one_consumer_and_one_file(tmp_path):
    """No set-up but the file's name: one ordered file, and nothing is left behind."""
    path = tmp_path / "app.log"
    code = NUMBERS + "\nprint('logged', flush=True)\nsys.stdin.read()\n"

    with (
        running(code, path, "a", 500, stdin=subprocess.PIPE) as one,
        running(code, path, "b", 500, stdin=subprocess.PIPE) as two,
    ):
        assert one.stdout.readline() == two.stdout.readline() == "logged\n"
        wait_until(consumers, what="a consumer")
        assert len(consumers()) == 1
        one.stdin.close()
        two.stdin.close()
        assert (one.wait(20), two.wait(20)) == (0, 0)
    settled(natural=True)

    assert_complete(records(path), {"a": 500, "b": 500})
    assert_ordered(lines(path))
    assert runtime_files() == []
    assert spool_files() == []


def test_processes_that_name_the_file_differently_share_it(tmp_path):
    """Relative, absolute and by a linked directory: still one consumer."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to("logs")
    names = [
        "logs/a.log",
        tmp_path / "logs" / "a.log",
        "./link/../logs/a.log",
        "link/a.log",
    ]
    started = [
        support.start(NUMBERS, name, f"w{i}", 200, cwd=tmp_path)
        for i, name in enumerate(names)
    ]
    for each in started:
        assert each.communicate(timeout=90)[1] == ""
    settled()

    found = records(tmp_path / "logs" / "a.log")
    assert_complete(found, {f"w{i}": 200 for i in range(4)})
    assert_ordered(lines(tmp_path / "logs" / "a.log"))


ROTATING = """\
import logging, sys, logagg
handler = logagg.Handler(sys.argv[1], maxBytes=int(sys.argv[4]))
logging.basicConfig(handlers=[handler], level="INFO")
log = logging.getLogger("app")
who, count = sys.argv[2], int(sys.argv[3])
for n in range(count):
    log.info("record %d of %s", n, who, extra={"who": who, "n": n})
"""


def test_rotation_under_four_writers_loses_and_splits_nothing(tmp_path):
    """4 × 1,000 records, a rotation each 20 kB: complete, in order, files of 20 kB."""
    path = tmp_path / "app.log"
    started = [support.start(ROTATING, path, f"w{i}", 1000, 20_000) for i in range(4)]
    for each in started:
        assert each.communicate(timeout=90)[1] == ""
    settled()

    files = rotated(path)
    assert_complete(records(*files), {f"w{i}": 1000 for i in range(4)})
    assert_ordered(lines(*files))
    longest = max(len(line) for line in lines(*files)) + 1
    for each in files[:-1]:
        assert 20_000 - longest <= each.stat().st_size <= 20_000, each


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_fifty_thousand_records_of_each_of_four_stand_once_in_order(tmp_path):
    """4 × 50,000 with rotation at 1 MB: each once, every line whole, no time goes back."""
    path = tmp_path / "app.log"
    started = [
        support.start(ROTATING, path, f"w{i}", 50_000, 1_000_000) for i in range(4)
    ]
    for each in started:
        assert each.communicate(timeout=200)[1] == ""
    settled(90)

    files = rotated(path)
    assert_complete(records(*files), {f"w{i}": 50_000 for i in range(4)})
    assert_ordered(lines(*files))
    assert max(each.stat().st_size for each in files) <= 1_000_000


SHORT = (
    PREAMBLE
    + """
handler = logagg.Handler(sys.argv[1])
logging.basicConfig(handlers=[handler], level="INFO")
children = []
for n in range(200):
    pid = os.fork()
    if pid == 0:
        logging.info("child", extra={"who": "child", "n": n})
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
logging.info("parent", extra={"who": "parent", "n": 0})
"""
)


def test_two_hundred_short_lived_children_all_arrive(tmp_path):
    """A child that logs one record and vanishes at once loses nothing."""
    path = tmp_path / "app.log"

    done = python(SHORT, path, timeout=90)

    assert done.stderr == ""
    settled()
    found = records(path)
    children = [each for each in found if each["who"] == "child"]
    assert sorted(each["n"] for each in children) == list(range(200))
    assert len({each["pid"] for each in children}) == 200
    assert_ordered(lines(path))


PING_PONG = (
    PREAMBLE
    + """
import multiprocessing, threading
handler = logagg.Handler(sys.argv[1])
logging.basicConfig(handlers=[handler], level="INFO")
rounds = int(sys.argv[2])

def noise(stop):
    n = 0
    while not stop.is_set():
        logging.info("noise")
        n += 1
        if n % 50 == 0:
            time.sleep(0.001)

def player(name, receive, send, first):
    for n in range(rounds):
        if not (first and n == 0):
            os.read(receive, 1)
        logging.info("ball", extra={"who": name, "n": n})
        os.write(send, b".")

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    loud = [context.Process(target=noise, args=(stop,)) for _ in range(2)]
    a_reads, b_writes = os.pipe()
    b_reads, a_writes = os.pipe()
    a = context.Process(target=player, args=("a", a_reads, a_writes, True))
    b = context.Process(target=player, args=("b", b_reads, b_writes, False))
    for each in (*loud, a, b):
        each.start()
    for each in (a, b):
        each.join()
    stop.set()
    for each in loud:
        each.join()
    assert a.exitcode == b.exitcode == 0
"""
)


def judge_ping_pong(path, rounds):
    """Every line of one player stands between the two of the other around it."""
    order = [
        (each["who"], each["n"]) for each in records(path) if each["message"] == "ball"
    ]
    wanted = [(who, n) for n in range(rounds) for who in ("a", "b")]
    assert len(order) == len(wanted)
    wrong = [i for i in range(len(order)) if order[i] != wanted[i]]
    assert not wrong, f"out of order at {wrong[:5]}: {order[wrong[0]]}"


def test_cause_stands_before_effect_between_processes(tmp_path):
    """A logs, then tells B, B logs: A's line is first, in 2,000 rounds under load."""
    path = tmp_path / "app.log"

    python(PING_PONG, path, 1000, timeout=250)

    settled()
    judge_ping_pong(path, 1000)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_cause_stands_before_effect_twenty_thousand_times(tmp_path):
    """The same with 20,000 messages: not once the other way round."""
    path = tmp_path / "app.log"

    python(PING_PONG, path, 10_000, timeout=200)

    settled(90)
    judge_ping_pong(path, 10_000)


def test_many_records_of_one_instant_keep_their_call_order(tmp_path):
    """4 workers with pauses, then 1,000 records as fast as can be: order by call."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
import random
who, count = sys.argv[2], int(sys.argv[3])
for n in range(count):
    log.info("x", extra={"who": who, "n": n})
    if n < count - 1000 and random.random() < 0.02:
        time.sleep(random.random() * 0.002)
"""
    )

    numbering(path, 4, 4000, code)

    assert_complete(records(path), {f"w{i}": 4000 for i in range(4)})
    assert_ordered(lines(path))


def test_a_second_run_appends_to_the_first(tmp_path):
    """The file goes on where it was, and time goes on, too."""
    path = tmp_path / "app.log"

    numbering(path, 1, 100)
    numbering(path, 1, 100)

    found = [each["n"] for each in records(path)]
    assert found == list(range(100)) * 2
    assert_ordered(lines(path))


@pytest.mark.slow
def test_runs_that_follow_each_other_at_once_lose_nothing(tmp_path):
    """A process may come while the consumer of the last one is ending."""
    path = tmp_path / "app.log"
    for pause in (0.45, 0.49, 0.51, 0.53):
        python(NUMBERS, path, f"p{pause}", 50)
        # Around the moment at which an unused consumer ends.
        support.time.sleep(pause)
    settled(natural=True)

    found = collections.Counter(each["who"] for each in records(path))
    assert set(found.values()) == {50}
    assert len(found) == 4


EXIT = BASIC + "log.info('x')\nos.kill(os.getpid(), signal.SIGKILL)\n"


def test_each_worker_that_leaves_is_told_of_once(tmp_path):
    """One event a worker: which, how many records, and more if it was killed."""
    path = tmp_path / "app.log"
    python(NUMBERS, path, "w", 3)
    python(EXIT, path, status=-9)
    settled()

    told = events("worker_exit", path)
    assert len(told) == 2
    good, bad = sorted(told, key=lambda each: "goodbye" in each)
    assert (good["level"], good["records"]) == ("debug", 3)
    known = system.LINUX  # elsewhere not how a process ended that is no child
    expected = ("warning", True) if known else ("info", False)
    assert (bad["level"], "SIGKILL" in bad["message"]) == expected
    assert (bad["goodbye"], bad["last_seq"], bad["records"]) == (False, 1, 1)
    assert {good["of_pid"], bad["of_pid"]} == {each["pid"] for each in records(path)}


def test_stdout_and_file_both_get_everything(tmp_path):
    """Two sinks at one handler: a console line and a JSON line for each record."""
    path = tmp_path / "app.log"
    code = """\
import logging, sys, logagg
sinks = ["stdout:?format=json", "file:" + sys.argv[1]]
logging.basicConfig(handlers=[logagg.Handler(sinks=sinks)], level="INFO")
for n in range(300):
    logging.info("x", extra={"who": "w", "n": n})
"""
    with open(tmp_path / "out", "w") as out:
        done = subprocess.run(
            [support.sys.executable, "-c", code, str(path)], stdout=out, check=True
        )
    assert done.returncode == 0
    settled()

    assert_complete(records(path), {"w": 300})
    assert_complete(records(tmp_path / "out"), {"w": 300})


def test_a_handler_without_target_writes_to_stderr():
    """No file, no sinks, no LOGAGG_SOCKET: normal logging to stderr."""
    code = """\
import logging, logagg
logging.basicConfig(handlers=[logagg.Handler()], level="INFO")
logging.info("hello there")
"""
    done = finish([support.sys.executable, "-c", code])

    assert done.stdout == ""
    assert done.stderr.count("hello there") == 1
    settled()


def test_the_application_never_meets_a_child_that_it_did_not_start(tmp_path):
    """Starting a consumer leaves no child and no zombie behind."""
    code = (
        BASIC
        + """
log.info("x")
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
"""
    )
    done = python(code, tmp_path / "app.log")

    assert done.stdout == "no child\n"


def test_the_consumer_keeps_nothing_of_the_application_open(tmp_path):
    """A pipe that the application closed is closed: the consumer holds no copy."""
    code = (
        BASIC
        + """
read, write = os.pipe()
os.set_inheritable(write, True)
log.info("x")
logging.getLogger().handlers[0].flush()
os.close(write)
assert os.read(read, 1) == b"", "somebody holds the pipe"
print("closed")
"""
    )
    done = python(code, tmp_path / "app.log", timeout=90)

    assert done.stdout == "closed\n"


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_consumer(tmp_path):
    """The consumer lives in a session of its own."""
    path = tmp_path / "app.log"
    with running(
        BASIC + "log.info('x')\nprint('up', flush=True)\nsys.stdin.read()\n",
        path,
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "up\n"
        consumer = support.consumer()

        def ended():  # one signal may come just before the read blocks, and be too early
            support.os.killpg(process.pid, support.signal.SIGINT)
            return process.poll() is not None

        wait_until(ended, what="the program's end")
        assert process.returncode != 0
        assert support.alive(consumer)
    settled()

    assert [each["message"] for each in records(path)] == ["x"]


@pytest.mark.slow
def test_a_consumer_that_waits_uses_no_processor(tmp_path):
    """An idle application costs next to nothing."""
    path = tmp_path / "app.log"
    with running(
        BASIC + "log.info('x')\nprint('up', flush=True)\nsys.stdin.read()\n",
        path,
        stdin=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "up\n"
        wait_until(support.have(path, 1))
        pid = support.consumer()
        before = support.cpu_seconds(pid)
        support.time.sleep(1.0)  # what is measured is a time of doing nothing
        assert support.cpu_seconds(pid) - before <= 0.05
    settled()
