"""Applications that do to a handler what libraries and users do: nothing is lost.

Descriptors are closed, a fork runs no hook, a child of multiprocessing ends, threads
freeze at the interpreter's end, stderr takes nothing.
"""

import os
import signal
import subprocess

import pytest
import support
from support import BASIC, assert_complete, events, python, records, settled

pytestmark = pytest.mark.slow  # real processes and their consumers

CLOSES = """
handler = logging.root.handlers[0]
for n in range(100):
    log.info("before", extra={"who": "a", "n": n})
os.closerange(3, 1024)
own = [open(f"{sys.argv[1]}.{n}", "w+") for n in range(2000 if sys.argv[2] == "all" else 9)]
if len(own) > 700:
    time.sleep(0.25)  # so many take the handler's numbers: it checks five times a second
for n in range(100, 300):
    log.info("after", extra={"who": "a", "n": n})
assert handler.flush(60)
assert all(os.fstat(each.fileno()).st_size == 0 for each in own), "a log line"
assert handler.descriptors() and not set(handler.descriptors()) & {f.fileno() for f in own}
"""


@pytest.mark.parametrize("reused", ["some", "all", "none"])
def test_an_application_may_close_all_descriptors(tmp_path, reused):
    """Whether their numbers are used again or not: its files are left alone."""
    path = tmp_path / "app.log"
    code = BASIC + "import resource\nresource.setrlimit(7, (3000, 3000))\n" + CLOSES
    if reused == "none":
        code = code.replace("range(2000", "range(0").replace("else 9", "else 0")
    done = python(code, path, reused, timeout=60)
    settled()

    assert done.stderr == ""
    assert_complete(records(path), {"a": 300})
    assert not events("damaged", path)


PRESERVES = """
handler = logging.root.handlers[0]
log.info("before", extra={"who": "a", "n": 0})
kept = set(handler.descriptors())
for number in set(range(3, 1024)) - kept:
    try:
        os.close(number)
    except OSError:
        pass
for n in range(1, 200):
    log.info("after", extra={"who": "a", "n": n})
    time.sleep(0.002)
assert handler.flush(60)
assert set(handler.descriptors()) == kept
"""


def test_a_handlers_descriptors_can_be_preserved(tmp_path):
    """As `files_preserve` of a daemon library: it goes on as it was, without a pause."""
    path = tmp_path / "app.log"
    done = python(BASIC + PRESERVES, path, timeout=60)
    settled()

    assert done.stderr == ""
    assert_complete(records(path), {"a": 200})
    assert len(events("worker_exit", path)) == 1


HOOKLESS = """
import ctypes
for n in range(50):
    log.info("x", extra={"who": "parent", "n": n})
pid = ctypes.PyDLL(None).fork()  # as C code does it: no hook runs
who = "parent" if pid else "child"
for n in range(50 if pid else 0, 100):
    log.info("x", extra={"who": who, "n": n, "is": os.getpid()})
if pid == 0:
    logging.shutdown()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_without_hooks_makes_another_worker(tmp_path):
    """With the child's pid and its own seqs, from its first record on."""
    path = tmp_path / "app.log"
    python(BASIC + HOOKLESS, path)
    settled()

    found = records(path)
    assert_complete(found, {"parent": 100, "child": 100})
    assert all(each["pid"] == each["is"] for each in found if "is" in each)
    child = [each for each in found if each["who"] == "child"]
    assert {each["worker"] for each in child} == {str(child[0]["pid"])}
    assert [each["seq"] for each in child] == list(range(1, 101))


CHILD_AFTER_DEATH = """
import multiprocessing
def work(pid):
    log.info("x", extra={"who": "child", "n": 0})
    logging.root.handlers[0].flush()
    os.kill(pid, signal.SIGKILL)
    for n in range(1, 20):
        log.info("x", extra={"who": "child", "n": n})
if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    log.info("x", extra={"who": "parent", "n": 0})
    logging.root.handlers[0].flush()
    from logagg.ipc import consumer_client
    path = logging.root.handlers[0]._transport.destination.path
    consumer = consumer_client.status(path)["pid"]
    child = multiprocessing.Process(target=work, args=(consumer,))
    child.start()
    child.join()
    assert child.exitcode == 0
    os._exit(0)
"""


def test_a_child_of_multiprocessing_leaves_nothing_in_its_pipe(tmp_path):
    """It ends without exit handlers; the consumer has died before."""
    path = tmp_path / "app.log"
    python(BASIC + CHILD_AFTER_DEATH, path)
    python(BASIC + "log.info('x', extra={'who': 'next', 'n': 0})", path)
    settled()

    assert_complete(records(path), {"parent": 1, "child": 20, "next": 1})


FREEZES = """
import threading, types
class Late:
    def __del__(self, log=log):
        log.info("x", extra={"who": "late", "n": 0})
module = sys.modules["holds_it"] = types.ModuleType("holds_it")
module.late = Late()
def run(who):
    n = 0
    while True:
        log.info("x", extra={"who": who, "n": n})
        n += 1
for who in "abc":
    threading.Thread(target=run, args=(who,), daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_a_process_ends_whatever_its_daemon_threads_log(tmp_path, attempt):
    """They freeze in the middle of a log call; a destructor logs after that."""
    path = tmp_path / "app.log"
    python(BASIC + FREEZES, path, timeout=60)
    settled()

    found = records(path)
    counts = {who: sum(each["who"] == who for each in found) for who in "abc"}
    assert_complete(found, {**{who: n for who, n in counts.items() if n}, "late": 1})


STDERR_FULL = """
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(2, True)
for n in range(100):
    log.info("x")
print("done", flush=True)
logging.shutdown()
"""


def test_a_full_stderr_blocks_no_log_call(tmp_path):
    """Where the service has much to report: no consumer, and no disk to spool to."""
    read, write = os.pipe()
    env = {**os.environ, "LOGAGG_SOCKET": str(tmp_path / "missing" / "socket")}
    env["LOGAGG_FAILPOINT"] = "spool:errno=28@1"
    code = BASIC + STDERR_FULL
    with support.running(code, tmp_path / "a", stderr=write, env=env) as process:
        os.close(write)
        assert process.stdout.readline() == "done\n"
        assert process.wait(60) == 0
    os.close(read)


START_AND_FORK = """
import threading
from logagg.ipc import launcher
spawn = launcher.spawn
forked = threading.Event()
def fork():
    if os.fork() == 0:
        time.sleep(600)
    forked.set()
def spawn_and_fork(*arguments):
    threading.Thread(target=fork).start()
    assert forked.wait(60)
    spawn(*arguments)
launcher.spawn = spawn_and_fork
log.info("x", extra={"who": "first", "n": 0})
logging.root.handlers[0].flush(60)
print(logging.root.handlers[0]._transport.destination.path, flush=True)
"""


def test_a_child_that_is_forked_during_the_start_holds_nothing_of_it(tmp_path):
    """Neither lock nor socket: after the consumer's death the next process starts one."""
    path = tmp_path / "app.log"
    first = subprocess.Popen(
        [support.sys.executable, "-c", BASIC + START_AND_FORK, str(path)],
        stdout=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    try:
        assert first.stdout.readline().endswith(".sock\n")
        os.kill(support.consumer(), signal.SIGKILL)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        python(BASIC + "log.info('x', extra={'who': 'next', 'n': 0})", path)
        settled()
        assert_complete(records(path), {"first": 1, "next": 1})
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.stdout.close()
