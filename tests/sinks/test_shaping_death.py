"""What the death of the consumer costs a sink that counts repetitions: a few counts.

A record that was collapsed is acknowledged before its number is written: to wait for
that would hold up the end of every process for as long as `collapse` says. So the limit
that is promised here: no line is lost, and the counts lack at most what came between
the last number that was written and the death.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import orjson
import pytest
import support

SAME = """\
import json, logging, os, sys, time
import logagg
sink, stop, times = sys.argv[1:]
logging.basicConfig(handlers=[logagg.Handler(sinks=[sink])], level="INFO")
log = logging.getLogger("app")
calls = []
while not os.path.exists(stop):
    log.info("the same again")
    calls.append(time.time())
    if len(calls) % 10 == 0:
        log.info("another", extra={"who": "a", "n": len(calls) // 10 - 1})
    time.sleep(0.001)
json.dump(calls, open(times, "w"))
"""


def counted(path: Path) -> int:
    """For how many equal records the lines of a file stand."""
    same = [each for each in support.records(path) if each["message"] != "another"]
    return sum(each.get("repeated", 1) for each in same)


@pytest.mark.slow
def test_a_killed_consumer_costs_counts_of_one_window_and_no_line(
    tmp_path: Path,
) -> None:
    """kill -9 in the middle of a window: the next consumer goes on counting."""
    path, stop, times = tmp_path / "app.log", tmp_path / "stop", tmp_path / "times"
    sink = f"file:{path}?collapse=0.5s"

    def written(number: int) -> bool:
        return path.exists() and path.read_bytes().count(b'"repeated":') >= number

    with support.running(SAME, sink, stop, times) as process:
        support.wait_until(lambda: written(2), what="two numbers")
        pid = support.consumer()
        lines = path.read_bytes().count(b"\n")
        support.wait_until(support.have(path, lines + 15), what="a window under way")
        os.kill(pid, signal.SIGKILL)
        killed = time.time()
        support.wait_until(lambda: not support.alive(pid), what="its end")
        before = [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        support.wait_until(lambda: written(5), what="numbers of the next consumer")
        stop.touch()
        _, errors = process.communicate(timeout=90)
        assert (process.returncode, errors) == (0, "")
    support.settled()

    calls = orjson.loads(times.read_bytes())
    said = max(each["last"] for each in before if "repeated" in each)
    began = _seconds(said)
    window = [at for at in calls if began - 0.05 < at < killed + 0.05]
    assert 0 < len(window) < len(calls) / 2
    assert abs(len(calls) - counted(path)) <= len(window)
    others = [each for each in support.records(path) if each["message"] == "another"]
    support.assert_complete(others, {"a": len(calls) // 10})


@pytest.mark.slow
def test_without_a_death_the_counts_are_exact(tmp_path: Path) -> None:
    """At a process's end all that was collapsed has been counted."""
    path, stop, times = tmp_path / "app.log", tmp_path / "stop", tmp_path / "times"
    with support.running(SAME, f"file:{path}?collapse=60s", stop, times) as process:
        support.wait_until(support.have(path, 50), what="records")
        stop.touch()
        process.communicate(timeout=90)
    support.settled()

    assert counted(path) == len(orjson.loads(times.read_bytes()))


def _seconds(stamp: str) -> float:
    """A record's time in seconds since the epoch."""
    from datetime import datetime

    return datetime.fromisoformat(stamp[:26] + "+00:00").timestamp()
