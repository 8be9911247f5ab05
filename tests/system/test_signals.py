"""Records logged at the oddest moments: signal handlers, finalizers, the very end."""

import os
import signal
import subprocess
import sys

import pytest
import support
from support import (
    BASIC,
    PREAMBLE,
    assert_complete,
    events,
    python,
    records,
    running,
    settled,
    wait_until,
)


@pytest.mark.slow
def test_a_signal_handler_that_logs_neither_hangs_nor_damages_a_line(tmp_path):
    """A timer's signal a thousand times a second, in the middle of log calls."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
ticks = 0
def tick(*_):
    global ticks
    n = ticks
    ticks += 1
    log.info("tick", extra={"who": "signal", "n": n})
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for n in range(int(sys.argv[2])):
    log.info("x" * (5000 if n % 100 else 200_000), extra={"who": "main", "n": n})
signal.setitimer(signal.ITIMER_REAL, 0)
print(ticks)
"""
    )
    done = python(code, path, 3000, timeout=250)
    settled()

    ticks = int(done.stdout)
    assert ticks > 20, "the timer never fired: the test proves nothing"
    found = records(path)
    assert_complete([each for each in found if each["who"] == "main"], {"main": 3000})
    # A signal may come while the handler is at work: those records change places.
    numbers = [each["n"] for each in found if each["who"] == "signal"]
    assert sorted(numbers) == list(range(ticks))


@pytest.mark.slow
def test_finalizers_that_log_neither_hang_nor_lose(tmp_path):
    """`__del__` runs anywhere, inside a log call too."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
import gc
gc.set_threshold(5, 2, 2)
gone = 0
class Node:
    def __init__(self):
        self.me = self
    def __del__(self):
        global gone
        n = gone
        gone += 1
        log.info("gone", extra={"who": "del", "n": n})
for n in range(2000):
    Node()
    log.info("x", extra={"who": "main", "n": n, "value": [Node() for _ in range(3)]})
gc.collect()
print(gone)
"""
    )
    done = python(code, path)
    settled()

    assert int(done.stdout) == 8000
    found = records(path)
    assert_complete([each for each in found if each["who"] == "main"], {"main": 2000})
    numbers = [each["n"] for each in found if each["who"] == "del"]
    assert sorted(numbers) == list(range(8000))


@pytest.mark.slow
def test_a_finalizer_at_the_very_end_is_not_lost(tmp_path):
    """Objects that die at interpreter shutdown may still log."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
import atexit
class Last:
    def __init__(self, who):
        self.who = who
    def __del__(self, log=log):
        log.info("bye", extra={"who": self.who, "n": 0})
atexit.register(lambda: log.info("atexit", extra={"who": "atexit", "n": 0}))
last = Last("del")
log.info("x", extra={"who": "main", "n": 0})
"""
    )
    python(code, path)
    settled()

    who = [each["who"] for each in records(path)]
    assert who.count("main") == who.count("atexit") == 1
    assert who.count("del") == 1


def test_a_library_that_logs_while_it_is_used_for_logging_does_not_recurse(tmp_path):
    """`str()` of arguments, filters and factories that log: bounded and complete."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
class Deep:
    def __init__(self, depth):
        self.depth = depth
    def __str__(self):
        if self.depth:
            log.info("%s", Deep(self.depth - 1), extra={"who": "inner", "n": 0})
        return f"deep{self.depth}"
log.info("%s", Deep(20), extra={"who": "outer", "n": 0})
"""
    )
    python(code, path)
    settled()

    found = records(path)
    assert [each["message"] for each in found] == [f"deep{n}" for n in range(21)]


ENDINGS = {
    "nothing": "",
    "shutdown": "logging.shutdown()",
    "shutdown twice": "logging.shutdown(); logging.shutdown()",
    "flush": "handler.flush()",
    "close": "handler.close()",
    "close twice": "handler.close(); handler.close()",
    "flush, close, shutdown": "handler.flush(); handler.close(); logging.shutdown()",
    "close, flush": "handler.close(); handler.flush()",
    "close, log": "handler.close(); say()",
    "shutdown, log": "logging.shutdown(); say()",
    "log in atexit": "import atexit; atexit.register(say)",
    "log and shutdown in atexit": (
        "import atexit; atexit.register(say); atexit.register(logging.shutdown)"
    ),
    "close in a thread": (
        "import threading; t = threading.Thread(target=handler.close); t.start(); "
        "say(); t.join()"
    ),
    "shutdown from two threads": (
        "import threading; t = [threading.Thread(target=logging.shutdown) "
        "for _ in range(2)]; [x.start() for x in t]; [x.join() for x in t]"
    ),
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGTERM to sys.exit": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "os.kill(os.getpid(), signal.SIGTERM)"
    ),
    "SIGTERM to shutdown": (
        "signal.signal(signal.SIGTERM, lambda *_: (say(), logging.shutdown())); "
        "os.kill(os.getpid(), signal.SIGTERM); handler.close()"
    ),
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT)",
    "close, os._exit": "handler.close(); os._exit(0)",
    "exception": "raise RuntimeError('end')",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDINGS)
def test_every_way_to_end_delivers_everything(tmp_path, how):
    """flush, close, shutdown, atexit, signals, in any order, twice: nothing is lost."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
handler = logging.getLogger().handlers[0]
said = 0
def say():
    global said
    log.info("said", extra={"who": "main", "n": 500 + said})
    said += 1
for n in range(500):
    log.info("x", extra={"who": "main", "n": n})
"""
        + ENDINGS[how]
    )
    done = python(code, path, status=None, timeout=90)

    expected = 500 + ("say" in ENDINGS[how])
    assert "logagg:" not in done.stderr
    wait_until(support.have(path, expected))
    settled()
    assert_complete(records(path), {"main": expected})


@pytest.mark.slow
def test_an_exit_without_a_consumer_is_bounded_and_says_what_is_left(tmp_path):
    """A consumer that stands still does not keep a program from ending."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
log.info("x", extra={"who": "main", "n": 0})
logging.getLogger().handlers[0].flush()
print("ready", flush=True)
sys.stdin.readline()
for n in range(1, 1000):
    log.info("x", extra={"who": "main", "n": n})
"""
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        with support.stopped(support.consumer()):
            start = support.time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(15) == 0
            assert support.time.monotonic() - start < 8
        assert "closed before all 1000 records" in process.stderr.read()
    settled()

    assert_complete(records(path), {"main": 1000})


def test_a_flush_with_a_timeout_keeps_to_it(tmp_path):
    """`flush(0.2)` with a stopped consumer returns False in time; later it says True."""
    path = tmp_path / "app.log"
    code = (
        BASIC
        + """
handler = logging.getLogger().handlers[0]
log.info("x", extra={"who": "main", "n": 0})
assert handler.flush()
print("ready", flush=True)
sys.stdin.readline()
log.info("x", extra={"who": "main", "n": 1})
start = time.monotonic()
print(handler.flush(0.2), 0.15 < time.monotonic() - start < 1, flush=True)
sys.stdin.readline()
print(handler.flush(), flush=True)
"""
    )
    with running(code, path, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        with support.stopped(support.consumer()):
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "False True\n"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True\n"
        assert process.wait(10) == 0
    settled()

    assert_complete(records(path), {"main": 2})


def test_threads_that_log_while_the_program_ends_are_not_cut(tmp_path):
    """Whatever a call had returned for is there; nothing hangs."""
    path = tmp_path / "app.log"
    code = (
        PREAMBLE
        + """
import threading
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level="INFO")
counts = [0] * 4
def work(number):
    while True:
        logging.info("x", extra={"who": f"t{number}", "n": counts[number]})
        counts[number] += 1
for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
time.sleep(0.3)
print(*counts, flush=True)
"""
    )
    done = python(code, path, status=None, timeout=90)
    settled()

    found = records(path)
    for number, count in enumerate(map(int, done.stdout.split())):
        numbers = [each["n"] for each in found if each["who"] == f"t{number}"]
        assert numbers[:count] == list(range(count))
        assert numbers == list(range(len(numbers)))
    assert not events("lost", path)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGHUP, signal.SIGUSR1])
def test_a_consumer_reopens_its_file_on_a_signal(tmp_path, sign):
    """`mv app.log old`, then the signal: all that follows is in the new file."""
    path = tmp_path / "app.log"
    old = tmp_path / "old"
    with running(
        BASIC
        + """
n = 0
while True:
    log.info("x", extra={"who": "w", "n": n})
    n += 1
    time.sleep(0.0005)
    if os.path.exists(sys.argv[2]):
        break
print(n)
""",
        path,
        tmp_path / "stop",
    ) as process:
        wait_until(support.have(path, 300))
        os.rename(path, old)
        os.kill(support.consumer(), sign)
        wait_until(support.have(path, 300))
        size = old.stat().st_size
        os.rename(path, tmp_path / "old2")
        # Without a signal: found out within a second or so.
        wait_until(support.have(path, 100), 3)
        assert old.stat().st_size == size
        os.unlink(path)
        wait_until(support.have(path, 100), 3)
        (tmp_path / "stop").touch()
        count = int(process.stdout.readline())
        assert process.wait(20) == 0
    settled()

    numbers = [
        each["n"] for each in records(old, tmp_path / "old2", path) if "n" in each
    ]
    # What stood in the deleted file is gone with it, by the user's own hand; nothing
    # else is missing, and nothing stands twice.
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == count - 1
    last = max(each["n"] for each in records(tmp_path / "old2"))
    assert numbers[: last + 1] == list(range(last + 1))


SLOW_START = """
import asyncio, time
run = asyncio.run
def slow(*words, **options):
    time.sleep(0.5)
    return run(*words, **options)
asyncio.run = slow
"""


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_consumer_that_has_just_begun_to_listen_ends_well(tmp_path, sign):
    """Whoever waits for its socket may end it at once: no socket is left, status 0."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    path = tmp_path / "own.sock"
    command = [sys.executable, "-m", "logagg", "serve", "--socket", str(path)]
    command += ["--sink", f"file:{tmp_path / 'app.log'}"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as consumer:
        wait_until(path.exists, what="the socket")
        consumer.send_signal(sign)

    assert consumer.returncode == 0
    assert not path.exists()
