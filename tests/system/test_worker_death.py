"""However a worker ends, what it logged before is in the file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import (
    BASIC,
    PREAMBLE,
    assert_complete,
    assert_ordered,
    events,
    finish,
    have,
    lines,
    linux_form,
    python,
    records,
    running,
    settled,
    spool_files,
    wait_until,
)

from logagg.platform import system

LOGGED = (
    BASIC
    + """
import ctypes, faulthandler
for n in range(int(sys.argv[2])):
    log.info("record %d", n, extra={"who": "w", "n": n})
"""
)

ENDS = {
    "os._exit": ("os._exit(3)", 3),
    "kill -9": ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    "a segfault": ("ctypes.string_at(0)", -11),
    "abort": ("os.abort()", -6),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -15),
    "an uncaught exception": ("raise RuntimeError('end')", 1),
    "sys.exit": ("sys.exit(4)", 4),
    "the end of the program": ("", 0),
    "exec": ("os.execv('/bin/true', ['true'])", 0),
}
KILLS = {"kill -9": "SIGKILL", "a segfault": "SIGSEGV", "abort": "SIGABRT"}
STATUS_IS_KNOWN = system.LINUX
"""Whether the service learns how a process ended that is no child of its own."""

CALM = ("an uncaught exception", "sys.exit", "the end of the program")


@pytest.mark.parametrize("how", ENDS)
def test_nothing_logged_before_the_end_is_lost(tmp_path, how):
    """After the last call has returned, the process may end in any way."""
    path = tmp_path / "app.log"
    code, status = ENDS[how]

    python(LOGGED + code, path, 5000, status=status)

    settled()
    assert_complete(records(path), {"w": 5000})
    assert_ordered(lines(path))
    (told,) = events("worker_exit", path)
    assert told.get("last_seq", told["records"]) == told["records"] == 5000
    assert [told.get(kind, 0) for kind in ("lost", "dropped", "damaged")] == [0, 0, 0]
    if how != "exec":  # it depends on whether the other program runs yet
        killed = "warning" if STATUS_IS_KNOWN else "info"
        expected = killed if how in KILLS else "debug" if how in CALM else "info"
        assert told["level"] == expected
    if STATUS_IS_KNOWN:
        assert KILLS.get(how, "") in told["message"]


def test_a_process_that_dies_right_after_its_first_record_loses_nothing(tmp_path):
    """The record is in the kernel before any consumer has even started."""
    path = tmp_path / "app.log"

    python(LOGGED + "os._exit(0)", path, 1)

    wait_until(have(path, 1))
    settled()
    assert_complete(records(path), {"w": 1})


LARGE = (
    BASIC
    + """
log.info("before", extra={"who": "big", "n": 0})
logging.getLogger().handlers[0].flush()
print("ready", flush=True)
sys.stdin.readline()
log.info("x" * 8_000_000, extra={"who": "big", "n": 1})
print("done", flush=True)
"""
)

SIBLING = (
    BASIC
    + """
print("ready", flush=True)
sys.stdin.readline()
worst = 0.0
for n in range(3000):
    before = time.perf_counter()
    log.info("record %d", n, extra={"who": sys.argv[2], "n": n})
    worst = max(worst, time.perf_counter() - before)
    time.sleep(0.0003)
print(worst, flush=True)
"""
)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_large_record_harms_nobody(tmp_path):
    """The torn record is dropped and counted; siblings are neither slowed nor hurt."""
    path = tmp_path / "app.log"
    pipe = {"stdin": subprocess.PIPE}
    with (
        running(LARGE, path, **pipe) as big,
        running(SIBLING, path, "a", **pipe) as one,
        running(SIBLING, path, "b", **pipe) as two,
    ):
        for each in (big, one, two):
            assert each.stdout.readline() == "ready\n"
        for each in (big, one, two):
            each.stdin.write("\n")
            each.stdin.flush()
        _stop_within_a_record(big)
        worst = [float(each.stdout.readline()) for each in (one, two)]
        os.kill(big.pid, signal.SIGKILL)
        for each in (one, two):
            each.stdin.close()
            assert each.wait(20) == 0
    settled()

    assert_complete(records(path), {"big": 1, "a": 3000, "b": 3000})
    (told,) = [each for each in events("worker_exit", path) if "goodbye" in each]
    assert told["damaged"] == 1
    assert told["records"] == 1
    assert max(worst) < 0.1


def _stop_within_a_record(process):
    """Suspend a process while its 8 MB line is on its way through the pipe."""

    def written():
        text = Path(f"/proc/{process.pid}/io").read_text()
        return int(text.split("wchar: ")[1].split()[0])

    start = written()
    wait_until(lambda: written() - start > 1_000_000, what="part of the line")
    os.kill(process.pid, signal.SIGSTOP)
    assert written() - start < 8_000_000, "the line was through already"


def test_four_workers_killed_at_random_moments_lose_nothing_that_was_said(tmp_path):
    """Each worker says what it has logged; all of that is in the file."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
n = 0
while True:
    log.info("record", extra={"who": sys.argv[2], "n": n})
    n += 1
    os.write(1, b"%d\\n" % n)
"""
    )
    said = {}
    for round_ in range(4):
        with running(code, path, f"w{round_}") as worker:
            for _ in range(300 * round_ + 1):
                worker.stdout.readline()
            worker.kill()
            rest = worker.stdout.read().split("\n")
            numbers = [int(each) for each in rest if each]
            said[f"w{round_}"] = max(numbers, default=300 * round_ + 1)
    settled()

    found = records(path)
    for who, count in said.items():
        numbers = [each["n"] for each in found if each["who"] == who]
        assert numbers == list(range(len(numbers)))
        assert count <= len(numbers) <= count + 1


FORKING = (
    PREAMBLE
    + """
import threading
handler = logagg.Handler(sys.argv[1])
logging.basicConfig(handlers=[handler], level="INFO")
log = logging.getLogger("app")
stop = threading.Event()

def busy():
    while not stop.is_set():
        log.info("noise", extra={"who": "noise", "n": 0})

threads = [threading.Thread(target=busy) for _ in range(3)]
for each in threads:
    each.start()
forks = int(sys.argv[2])
for n in range(forks):
    pid = os.fork()
    if pid == 0:
        log.info("child", extra={"who": "child", "n": n})
        os._exit(0)
    deadline = time.monotonic() + 20
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0
            break
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            stop.set()
            raise SystemExit("a child hangs")
        time.sleep(0.0005)
stop.set()
for each in threads:
    each.join()
"""
)


@pytest.mark.slow
def test_a_child_forked_while_another_thread_logs_does_not_hang(tmp_path):
    """The child's locks are its own: it logs, whatever the other threads held."""
    path = tmp_path / "app.log"

    python(FORKING, path, 60, timeout=250)

    settled(90)
    children = [each["n"] for each in records(path) if each["who"] == "child"]
    assert sorted(children) == list(range(60))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_thousand_forks_among_logging_threads_do_not_hang(tmp_path):
    """The same a thousand times, with every child's record in the file once."""
    path = tmp_path / "app.log"

    python(FORKING, path, 1000, timeout=220)

    settled(90)
    children = [each["n"] for each in records(path) if each["who"] == "child"]
    assert sorted(children) == list(range(1000))


PRELOADED = (
    PREAMBLE
    + """
import multiprocessing
handler = logagg.Handler(sys.argv[1])
logging.basicConfig(handlers=[handler], level="INFO")
if sys.argv[2] == "used":
    logging.info("parent", extra={"who": "parent", "n": 0})

def work(number):
    for n in range(200):
        logging.info("child", extra={"who": f"child{number}", "n": n})

context = multiprocessing.get_context("fork")
children = [context.Process(target=work, args=(i,), name=f"Kid-{i}") for i in range(4)]
for each in children:
    each.start()
for each in children:
    each.join()
    assert each.exitcode == 0
logging.info("parent", extra={"who": "parent", "n": int(sys.argv[2] == "used")})
print(os.getpid(), *[each.pid for each in children])
"""
)


@pytest.mark.parametrize("before", ["used", "unused"])
def test_forked_children_log_without_any_setup_of_their_own(tmp_path, before):
    """Set up in the parent only: the children's records have their own pid and name."""
    path = tmp_path / "app.log"

    done = python(PRELOADED, path, before)

    settled()
    parent, *children = map(int, done.stdout.split())
    found = records(path)
    sent = {f"child{i}": 200 for i in range(4)} | {"parent": 1 + (before == "used")}
    assert_complete(found, sent)
    pids = {each["who"]: each["pid"] for each in found}
    assert pids.pop("parent") == parent
    assert pids == {f"child{i}": pid for i, pid in enumerate(children)}
    for i in range(4):
        names = {each["process"] for each in found if each["who"] == f"child{i}"}
        assert names == {f"Kid-{i}"}
    assert_ordered(lines(path))


def test_what_the_parent_had_not_delivered_is_delivered_once(tmp_path):
    """A fork with records under way does not send them twice."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
for n in range(5000):
    log.info("x", extra={"who": "parent", "n": n})
pid = os.fork()
who = "parent" if pid else "child"
for n in range(5000 if pid else 0, 6000 if pid else 1000):
    log.info("x", extra={"who": who, "n": n})
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    )

    python(code, path)

    settled()
    assert_complete(records(path), {"parent": 6000, "child": 1000})
    assert spool_files() == []


def test_a_child_of_a_child_logs_too(tmp_path):
    """Forks of forks attach for themselves."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
for depth in range(5):
    log.info("x", extra={"who": "line", "n": depth})
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        os._exit(0)
"""
    )

    python(code, path)

    settled()
    assert_complete(records(path), {"line": 5})
    assert len({each["pid"] for each in records(path)}) == 5


def test_a_fork_from_a_thread_logs_on_both_sides(tmp_path):
    """The child's only thread is not the main one: it attaches all the same."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
import threading
def work():
    for n in range(20):
        log.info("x", extra={"who": "parent", "n": n})
        pid = os.fork()
        if not pid:
            log.info("x", extra={"who": "child", "n": n})
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    done.append(True)
done = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert done
"""
    )
    python(code, path)

    settled()
    assert_complete(records(path), {"parent": 20, "child": 20})
    assert_ordered(lines(path))


def test_a_fork_hook_that_logs_neither_hangs_nor_loses(tmp_path):
    """`os.register_at_fork` functions that log work on both sides."""
    path = tmp_path / "app.log"
    code = (
        PREAMBLE
        + """
def hook(name):
    os.register_at_fork(**{name: lambda: logging.info(name, extra={"hook": name})})
for name in ("before", "after_in_parent", "after_in_child"):
    hook(name)
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="INFO")
for name in ("before", "after_in_parent", "after_in_child"):
    hook(name)
for _ in range(5):
    pid = os.fork()
    if not pid:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""
    )

    python(code, path)

    settled()
    found = [each["hook"] for each in records(path)]
    assert len(found) == 30
    assert {found.count(each) for each in found} == {10}


def test_exec_starts_anew_and_leaves_no_descriptor_behind(tmp_path):
    """A program that replaces itself logs on; it inherits nothing of the old one."""
    path = tmp_path / "app.log"
    after = (
        BASIC
        + """
names = [os.readlink(f"/proc/self/fd/{fd}") for fd in sys.argv[2].split(",")
         if os.path.lexists(f"/proc/self/fd/{fd}")]
assert not [each for each in names if "pipe" in each or "socket" in each], names
log.info("after", extra={"who": "after", "n": 0})
"""
    )
    code = (
        BASIC
        + """
before = set(os.listdir("/proc/self/fd"))
log.info("before", extra={"who": "before", "n": 0})
new = set(os.listdir("/proc/self/fd")) - before
assert new
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], sys.argv[1], ",".join(new)])
"""
    )

    python(code, path, after)

    settled()
    assert_complete(records(path), {"before": 1, "after": 1})
    assert len({each["pid"] for each in records(path)}) == 1


def test_a_subprocess_inherits_no_pipe_even_when_all_descriptors_are_passed(tmp_path):
    """With close_fds=False a child still holds nothing: all are closed on exec."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
import subprocess
before = set(os.listdir("/proc/self/fd"))
log.info("x")
new = set(os.listdir("/proc/self/fd")) - before
shown = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True)
assert not new & set(shown.stdout.decode().split()), (new, shown.stdout)
"""
    )
    python(code, path)
    settled()


POOL = (
    PREAMBLE
    + """
import multiprocessing
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level=sys.argv[3])

def work(n):
    logging.info("x", extra={"who": "w", "n": n})

def die():
    work(50)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        pool.map(work, range(50))
        if sys.argv[4] == "killed":  # none of the pool's own: it may hold a lock
            child = multiprocessing.get_context(sys.argv[2]).Process(target=die)
            child.start()
            child.join()
"""
)


@linux_form  # elsewhere a signal of the pool's is not known
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_that_ends_its_children_has_nothing_to_report(tmp_path, method):
    """It does so by SIGTERM: a short record for debugging, and none at INFO."""
    path, program = tmp_path / "app.log", tmp_path / "pool.py"
    program.write_text(POOL)
    for level in ("INFO", "DEBUG"):
        command = [sys.executable, program, path, method, level, ""]
        finish(list(map(str, command)), cwd=tmp_path)
        settled()
        told = events("worker_exit", path)
        assert {each["level"] for each in told} == (
            {"debug"} if level == "DEBUG" else set()
        )


@linux_form  # elsewhere the signal is not known
def test_a_killed_child_of_multiprocessing_is_reported(tmp_path):
    """As one that ran out of memory is: its parent did not end it."""
    path, program = tmp_path / "app.log", tmp_path / "pool.py"
    program.write_text(POOL)

    command = [sys.executable, program, path, "fork", "INFO", "killed"]
    finish(list(map(str, command)), cwd=tmp_path)

    settled()
    (told,) = events("worker_exit", path)
    assert (told["level"], "SIGKILL" in told["message"]) == ("warning", True)
