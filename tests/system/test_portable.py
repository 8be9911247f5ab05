"""The portable form, which systems other than Linux use, in scenes of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import orjson
import pytest
import support
from harness import Fleet
from support import wait_until

pytestmark = pytest.mark.slow  # many real processes, some seconds each

LOGAGG = [sys.executable, "-m", "logagg"]

APP = """\
import logging, os, time
from logagg.platform import system
assert not system.LINUX
print("printed in", os.environ["LOGAGG_SLOT"])
for n in range(300):
    logging.getLogger("app").warning("n", extra={"n": n})
    time.sleep(0.002)
"""


@pytest.fixture(autouse=True)
def portable(monkeypatch):
    """All processes of a test use it."""
    monkeypatch.setenv("LOGAGG_PORTABLE", "1")


def test_handlers_lose_nothing_with_their_consumer(tmp_path):
    """Three processes, their consumer killed three times: each record once, in order."""
    path = tmp_path / "app.log"
    with Fleet(path, workers=3, count=10**9, rate=1500) as fleet:
        for _ in range(3):
            pid = support.consumer()
            fleet.progress(1000)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not support.alive(pid), what="its end")
        fleet.progress(1000)
        fleet.stop()
        fleet.join()

    fleet.judge().require(longest=1.5)


def test_a_run_and_its_commands_work(tmp_path):
    """`run` with two workers, one of which is killed; `tail`, `status` and `stop`."""
    path = tmp_path / "app.log"
    app = tmp_path / "app.py"
    app.write_text(APP)
    waits = tmp_path / "waits.py"
    waits.write_text(APP + "while True: time.sleep(0.1)\n")

    done = subprocess.run(
        [*LOGAGG, "run", "-w", "2", "--sink", f"file:{path}", str(app)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = [(r["worker"], r["n"]) for r in support.records(path) if "n" in r]
    assert sorted(found) == [(slot, n) for slot in "12" for n in range(300)]
    shown = subprocess.run(
        [*LOGAGG, "tail", str(path), "--no-follow", "--json", "-g", "printed in"],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    texts = {orjson.loads(each)["message"] for each in shown.stdout.splitlines()}
    assert texts == {"printed in 1", "printed in 2"}

    path.unlink()
    run = subprocess.Popen(
        [*LOGAGG, "run", "-w", "2", "--sink", f"file:{path}", str(waits)]
    )
    with run:
        try:
            wait_until(lambda: len(numbers(path)) == 600, what="all records")
            first = pids(path)
            os.kill(int(min(first)), signal.SIGKILL)
            wait_until(lambda: len(numbers(path)) == 900, what="another worker's")
            status = subprocess.run(
                [*LOGAGG, "status", "--json"],
                timeout=90,
                check=True,
                capture_output=True,
            )
            assert b"waits.py" in status.stdout
            subprocess.run([*LOGAGG, "stop"], timeout=90, check=True)
            assert run.wait(90) == 0
        finally:
            run.kill()
    ends = [end.get("signal") for end in support.events("worker_exit", path)]
    assert ends.count("SIGKILL") == 1


def numbers(path):
    """The records of the workers so far."""
    try:
        return [r for r in support.records(path) if "n" in r]
    except FileNotFoundError:
        return []


def pids(path):
    """The workers' pids so far."""
    return {r["pid"] for r in numbers(path)}
