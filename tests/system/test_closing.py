"""Closing handlers whose consumers do not answer: one time limit for the process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import support
from support import PREAMBLE, consumers, have, records, running, settled, wait_until

PROGRAM = (
    PREAMBLE
    + """\
import logging.config, threading

def configuration():
    handlers = {f"f{n}": {"class": "logagg.Handler", "filename": f"{n}.log"}
                for n in range(3)}
    loggers = {f"l{n}": {"handlers": [f"f{n}"], "level": "INFO"} for n in range(3)}
    return {"version": 1, "disable_existing_loggers": False, "handlers": handlers,
            "loggers": loggers}

os.chdir(sys.argv[1])
logging.config.dictConfig(configuration())
logs = [logging.getLogger(f"l{n}") for n in range(3)]
for log in logs:
    log.info("first")
for log in logs:
    assert log.handlers[0].flush(60)
print("ready", flush=True)
sys.stdin.readline()
for log in logs:
    log.info("second")

def work():
    longest = 0.0
    while not over:
        began = time.monotonic()
        logs[0].info("from the thread")
        logging.getLogger(f"fresh{began}")
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.01)
    print("longest", longest, flush=True)

over = False
thread = threading.Thread(target=work)
thread.start()
began = time.monotonic()
logging.config.dictConfig(configuration())
print("configured", time.monotonic() - began, flush=True)
over = True
thread.join()
began = time.monotonic()
logging.shutdown()
print("shut", time.monotonic() - began, flush=True)
"""
)


@pytest.mark.slow
def test_suspended_consumers_hold_up_all_closes_together_once(tmp_path: Path) -> None:
    """Three of them: neither 5 s each, nor a log call of another thread in between.

    The bounds are wide, as nothing is measured here: it was 30 s, 10 s, and 15 s.
    """
    found: list[int] = []
    try:
        with running(PROGRAM, tmp_path, stdin=-1) as program:
            assert program.stdout.readline() == "ready\n"
            found = wait_until(lambda: len(consumers()) == 3 and consumers(), 60)
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            program.stdin.write("go\n")
            program.stdin.flush()
            out = program.stdout.read().split()
            assert program.wait(60) == 0, program.stderr.read()
    finally:
        for pid in found:
            os.kill(pid, signal.SIGCONT)

    took = dict(zip(out[::2], map(float, out[1::2]), strict=True))
    assert took["configured"] < 4
    assert took["longest"] < 4
    assert took["shut"] < 9
    for number in range(3):
        path = tmp_path / f"{number}.log"
        wait_until(have(path, 2), 60)
        messages = [each["message"] for each in records(path)]
        assert messages[:2] == ["first", "second"]
    settled(60)


MEANWHILE = (
    PREAMBLE
    + """\
import logging.config, threading
path = sys.argv[1]
config = {"version": 1, "disable_existing_loggers": False,
          "handlers": {"f": {"class": "logagg.Handler", "filename": path}},
          "loggers": {"app": {"handlers": ["f"], "level": "INFO"}}}
logging.config.dictConfig(config)
log, numbers = logging.getLogger("app"), iter(range(1000))
handler = log.handlers[0]

def record():
    log.info("m", extra={"who": "a", "n": next(numbers)})

def place(thread):
    frame = sys._current_frames().get(thread.ident)
    return frame and "logagg" in frame.f_code.co_filename and (id(frame), frame.f_lasti)

record()
assert handler.flush(60)
print("ready", flush=True)
sys.stdin.readline()
record()
thread = threading.Thread(target=lambda: eval(sys.argv[2]))
thread.start()
before = None
while thread.is_alive():
    if (now := place(thread)) and now == before:
        break  # it waits
    before = now
    time.sleep(0.02)
for _ in range(5):
    record()
print(thread.is_alive(), flush=True)
sys.stdin.readline()
thread.join()
record()
"""
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [
        "handler.flush(90)",
        "handler.close()",
        "logging.shutdown()",
        "logging.config.dictConfig(config)",
    ],
)
def test_no_log_call_waits_for_another_thread_that_does(
    tmp_path: Path, work: str
) -> None:
    """For a consumer that does not answer: the thread still waits after the log calls."""
    path = tmp_path / "app.log"
    with running(MEANWHILE, path, work, stdin=-1) as program:
        assert program.stdout.readline() == "ready\n"
        with support.stopped(support.consumer()):
            program.stdin.write("go\n")
            program.stdin.flush()
            assert program.stdout.readline() == "True\n"
        program.communicate("go\n", timeout=90)
        assert program.returncode == 0
    settled()
    support.assert_complete(records(path), {"a": 8})


LEFT = (
    PREAMBLE
    + """\
first, second = sys.argv[1:]
logging.basicConfig(handlers=[logagg.Handler(first)], level="INFO")
logging.info("to the first")
logging.basicConfig(handlers=[logagg.Handler(second)], level="INFO", force=True)
print("ready", flush=True)
for line in sys.stdin:
    logging.info("to the second")
"""
)


@pytest.mark.slow
def test_a_handler_that_was_replaced_lets_its_consumer_go(tmp_path: Path) -> None:
    """At the latest with a record of another handler, once its own are safe."""
    one, two = tmp_path / "1.log", tmp_path / "2.log"
    with running(LEFT, one, two, stdin=-1) as program:
        assert program.stdout.readline() == "ready\n"
        wait_until(have(one, 1), 60)

        def is_alone() -> bool:
            program.stdin.write("\n")
            program.stdin.flush()
            return len(consumers()) == 1 and two.exists()

        wait_until(is_alone, 60)
        program.stdin.close()
        assert program.wait(60) == 0
    assert [each["message"] for each in records(one)] == ["to the first"]
    settled(60)


MANY = (
    PREAMBLE
    + """\
import gc, tracemalloc
def cycle(count):
    for n in range(count):
        handler = logagg.Handler(f"{sys.argv[1]}/{n}.log")
        handler.close()
cycle(100)
gc.collect()
tracemalloc.start()
cycle(1000)
gc.collect()
print(tracemalloc.get_traced_memory()[0])
"""
)


def test_closed_handlers_are_forgotten(tmp_path: Path) -> None:
    """Thousands of them, each for another file, leave next to nothing in memory."""
    with running(MANY, tmp_path, stdin=-1) as program:
        out, err = program.communicate(timeout=60)
    assert not err
    assert int(out) < 1_000_000


UNDELIVERED = (
    support.PREAMBLE
    + """
sinks = [f"file:{sys.argv[1]}", sys.argv[2]]
logging.basicConfig(handlers=[logagg.Handler(sinks=sinks)], level="INFO")
for n in range(20):
    logging.info("m", extra={"n": n})
"""
)


def test_the_last_words_of_a_handlers_consumer_are_in_the_log(tmp_path):
    """It has no terminal, and the file of its stderr goes with it."""
    path, dead = tmp_path / "app.log", "http://127.0.0.1:9/"
    support.python(UNDELIVERED, path, dead)
    support.wait_until(support.have(path, 20), what="the records")
    support.settled()

    (words, *_) = support.events("undelivered", path)
    assert words["sink"] == dead
    assert words["number"] >= 20
