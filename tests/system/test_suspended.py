"""Suspended for a minute: a worker, or the consumer. All others go on; nothing is lost."""

import datetime as dt
import os
import signal
import subprocess
import time
from pathlib import Path

import orjson
import pytest
import support
from harness import Fleet
from support import BASIC, have, running, wait_until

pytestmark = pytest.mark.slow  # a minute, as it is

SECONDS = 60.0

BLOCKED = (
    BASIC.replace("sys.argv[1]", "sys.argv[1], overflow='block'")
    + """
log.info("before", extra={"who": "half", "n": 0})
logging.getLogger().handlers[0].flush()
print("ready", flush=True)
sys.stdin.readline()
log.info("x" * 8_000_000, extra={"who": "half", "n": 1})
log.info("after", extra={"who": "half", "n": 2})
"""
)


def written(pid):
    """How many bytes a process has given to write calls."""
    text = Path(f"/proc/{pid}/io").read_text()
    return int(text.split("wchar: ")[1].split()[0])


def suspend_within_a_record(process, consumer):
    """Suspend a process of which the pipe has taken a part of an 8 MB line."""
    with support.stopped(consumer):  # nobody empties the pipe
        start = written(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        wait_until(lambda: written(process.pid) - start > 60_000, what="a part")
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: "T (stopped)" in status(process.pid), what="its stop")
        assert written(process.pid) - start < 8_000_000


def status(pid):
    return Path(f"/proc/{pid}/status").read_text()


def other(path, *, than=0):
    """The one consumer there is besides one that is known, once its file is there."""
    wait_until(have(path, 1), what=f"records in {path}")
    (pid,) = set(support.consumers()) - {than}
    return pid


@pytest.mark.timeout(180)
def test_a_minute_of_suspension_delays_nobody_else_and_loses_nothing(tmp_path):
    """SIGSTOP for 60 s: a consumer under all policies; workers at rest and in a write.

    Two scenes at once, with a file and a consumer each.
    """
    stopped_path, path = tmp_path / "stopped.log", tmp_path / "app.log"
    endless = {"count": 10**9}
    steady = {**endless, "rate": 300, "size": 1000}
    with (
        Fleet(stopped_path, workers=2, run="spool", **steady) as spool,
        Fleet(stopped_path, workers=1, run="block",
              options={"overflow": "block"}, **steady) as block,
        Fleet(stopped_path, workers=1, run="drop",
              options={"overflow": "drop_new"}, **steady) as drop,
    ):  # fmt: skip
        for fleet in (spool, block, drop):
            fleet.progress(100)
        first = other(stopped_path)
        with (
            Fleet(path, workers=2, run="good", **steady) as good,
            Fleet(path, workers=1, count=300, wait=True, run="rest") as rest,
            Fleet(path, workers=1, size=3_000_000, run="big", **endless) as big,
            running(BLOCKED, path, stdin=subprocess.PIPE) as half,
        ):
            second = other(path, than=first)
            rest.ready()
            good.progress(100)
            big.progress(2)
            assert half.stdout.readline() == "ready\n"
            suspend_within_a_record(half, second)
            for fleet in (rest, big):
                os.kill(fleet.processes[0].pid, signal.SIGSTOP)
            with support.stopped(first):
                began = time.monotonic()
                size = stopped_path.stat().st_size
                while time.monotonic() < began + SECONDS:
                    mark = path.stat().st_size
                    good.progress(300, 20)
                    spool.progress(300, 20)
                    drop.progress(100, 20)
                    wait_until(
                        lambda mark=mark: path.stat().st_size > mark + 10_000,
                        5, "the others' records",
                    )  # fmt: skip
                assert stopped_path.stat().st_size == size
                stood = path.read_bytes()
                blocked = block.returned
            for process in (half, rest.processes[0], big.processes[0]):
                os.kill(process.pid, signal.SIGCONT)
            rest.go()
            assert half.wait(20) == 0, half.stderr.read()
            big.progress(1)
            for fleet in (good, big):
                fleet.stop()
            for fleet in (good, rest, big):
                fleet.join()
        wait_until(lambda: block.returned > blocked, what="the blocked worker")
        for fleet in (spool, block, drop):
            fleet.stop()
        for fleet in (spool, block, drop):
            fleet.join()

    for fleet in (good, rest, big):
        fleet.judge().require()
    assert [line["n"] for line in mine(path.read_bytes(), "half", "who")] == [0, 1, 2]
    check_good(stood)
    spool.judge().require(longest=1.0)
    block.judge().require()
    verdict = drop.judge().require(complete=False, longest=0.2)
    assert verdict.missing, "nothing was dropped: the pipe was never full"


def mine(data, run, field="run"):
    return [
        record
        for record in map(orjson.loads, data.split(b"\n")[:-1])
        if record.get(field) == run
    ]


def check_good(data):
    """The records that came meanwhile: soon, and in order but for marked ones."""
    lines = [line for line in data.split(b"\n")[:-1] if b'"run":"good"' in line]
    timely = [line for line in lines if b',"late":true' not in line]
    assert len(timely) > 0.98 * len(lines), "many are late: is the machine that busy?"
    support.assert_ordered(timely)
    waits = []
    for line in lines:
        record = orjson.loads(line)
        waits.append(instant(record["received"]) - instant(record["timestamp"]))
    waits.sort()
    assert waits[len(waits) // 2] < 1, "half of the records waited"
    assert waits[-1] < SECONDS / 4, f"a record waited for {waits[-1]:.1f} s"


def instant(stamp):
    return dt.datetime.fromisoformat(stamp).timestamp()


SHUTDOWN = """
import logging.config, os, signal, sys, threading
import logagg
import support
names = ("a",)
config = {"version": 1, "disable_existing_loggers": False,
    "handlers": {n: {"class": "logagg.Handler", "filename": n + ".log"} for n in names},
    "loggers": {n: {"handlers": [n], "level": "INFO"} for n in names}}
logging.config.dictConfig(config)
handlers = list(logging._handlers.values())
loggers = [logging.getLogger(name) for name in names]
for logger in loggers:
    logger.info("first")
assert all(handler.flush(60) for handler in handlers)
consumers = support.consumers()
for pid in consumers:
    os.kill(pid, signal.SIGSTOP)
for logger in loggers:
    logger.info("second")
calls, over = 0, threading.Event()
def work():
    global calls
    while not over.is_set():
        loggers[0].info("meanwhile")
        calls += 1
        over.wait(0.01)
thread = threading.Thread(target=work)
thread.start()
logging.config.dictConfig(config)
during = calls
over.set()
thread.join()
for pid in consumers:
    os.kill(pid, signal.SIGCONT)
print(during)
"""


def test_others_log_on_while_logging_is_configured_again(tmp_path):
    """The handlers wait for suspended consumers, but without logging's lock of theirs."""
    folder = str(Path(support.__file__).parent)
    path = os.pathsep.join((folder, os.environ["PYTHONPATH"]))
    env = {**os.environ, "PYTHONPATH": path}
    done = support.python(SHUTDOWN, cwd=tmp_path, env=env, timeout=120)
    assert int(done.stdout) > 0
