"""Signals in any order, at any moment: a run does what was wanted last, and ends in time.

`pytest --chaos 300 …/test_run_storm.py` has storms for so long; without it, one each.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support

pytestmark = pytest.mark.slow  # many real processes, some seconds each

COUNTING = """
    import logging, os, struct, threading, time
    def count():
        log = logging.getLogger("storm")
        file = os.open(f"count-{os.getpid()}", os.O_CREAT | os.O_WRONLY)
        n = 0
        while True:
            log.info("n", extra={"n": n})
            n += 1
            os.pwrite(file, struct.pack("<q", n), 0)
            time.sleep(0.001)
"""
PLAIN = COUNTING + "    count()\n"
WEB = (
    COUNTING
    + """
    threading.Thread(target=count, daemon=True).start()
    async def app(scope, receive, send):
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
"""
)
"""Each worker notes how many records it has logged."""

STOP_TIMEOUT = 5.0
ORDERS = ("HUP", "TTIN", "TTOU", "USR1", "WINCH", "CHLD", "CONT")


class Storm:
    """What comes to a run and its workers, at random."""

    def __init__(self, run: Any, chance: random.Random) -> None:
        self.run, self.chance = run, chance

    def order(self) -> None:
        """A signal to the run."""
        self.run.signal(getattr(signal, "SIG" + self.chance.choice(ORDERS)))

    def burst(self) -> None:
        """Many signals to the run."""
        for _ in range(self.chance.randint(5, 100)):
            self.order()

    def scale(self) -> None:
        """A command."""
        self.run.command("scale", self.chance.randint(1, 6))

    def harm(self) -> None:
        """A signal to a worker: it ends, or takes no notice."""
        names = ("KILL", "KILL", "TERM", "INT", "HUP", "USR1", "USR2", "WINCH", "STOP")
        signum = getattr(signal, "SIG" + self.chance.choice(names))
        pid = self.chance.choice(list(self.run.workers().values()) or [0])
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signum)
                time.sleep(0.1 if signum == signal.SIGSTOP else 0)
                os.kill(pid, signal.SIGCONT)

    def blow(self, seconds: float) -> None:
        """All of that for some seconds."""
        end = time.monotonic() + seconds
        kinds: list[Callable[[], None]] = [
            self.order,
            self.burst,
            self.scale,
            self.harm,
        ]
        while time.monotonic() < end:
            self.chance.choice(kinds)()
            time.sleep(self.chance.uniform(0, 0.2))

    def follow(self) -> threading.Thread:
        """Orders, until the run has ended."""

        def go() -> None:
            with contextlib.suppress(ProcessLookupError):
                while self.run.process.returncode is None:
                    self.order()
                    time.sleep(self.chance.choice([0, 0.001, 0.01]))

        thread = threading.Thread(target=go)
        thread.start()
        return thread


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return list(map(int, listed))


def _knows_all(run: Any) -> bool:
    """Whether the children of the run are what it knows of, and none is a zombie."""
    status = run.status()
    known = {slot.get("pid") for slot in status["slots"]} | {status["consumer"]["pid"]}
    left = set(_children(run.pid)) - known
    guards = [pid for pid in left if b"guard.py" in _line(pid)]
    return len(known) == 5 and len(left) == len(guards) == 1


def _line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for a zombie
    except OSError:
        return b""


@support.linux_form  # it reads /proc
@pytest.mark.timeout(86_400)
@pytest.mark.parametrize("program", ["plain", "uvicorn"])
def test_a_storm_of_signals_ends_as_if_it_were_one(
    run: Any, tools: Any, request: Any, program: str
) -> None:
    """So many workers as were wanted last, each record once, the first signal's status."""
    if program == "uvicorn":
        pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    run.write("app.py", PLAIN)
    run.write("web.py", WEB)
    run.env["PYTHONPATH"] = str(run.directory)
    words: list[Any] = ["app.py"]
    if program == "uvicorn":
        words = ["-m", "uvicorn", "web:app", "--port", tools.free_port()]
        words = ["--policy", "rr", *words, "--loop", "asyncio", "--log-level", "error"]
    seconds = (request.config.getoption("--chaos") or 0.0) / 2
    began = time.monotonic()
    while True:
        seed = support.fault_seed(seconds)
        print(f"{program}: seed {seed}")
        _one_storm(run, tools, words, random.Random(seed))
        if time.monotonic() - began >= seconds:
            return
        run.log.unlink()
        for path in run.directory.glob("count-*"):
            path.unlink()


def _one_storm(run: Any, tools: Any, words: list[Any], chance: random.Random) -> None:
    run.start("-w", 4, "--stop-timeout", STOP_TIMEOUT, *words)
    run.until_ready(4)
    storm = Storm(run, chance)
    storm.blow(3.0)
    assert run.command("scale", 4).returncode == 0
    run.until_ready(4)
    tools.until(lambda: _knows_all(run), what="each living child is known")
    pids = list(run.workers().values())

    first = chance.choice([signal.SIGTERM, signal.SIGINT])
    run.signal(first)
    stopping = time.monotonic()
    time.sleep(0.02)  # the order of different signals is not kept
    following = storm.follow()
    assert run.wait() == -first, run.err
    following.join()
    assert time.monotonic() - stopping < STOP_TIMEOUT + 30
    assert run.err == ""
    assert not any(map(tools.alive, pids))
    assert not run.records(event="handler_failed")
    for path in run.directory.glob("count-*"):
        pid = int(path.name.removeprefix("count-"))
        (logged,) = struct.unpack("<q", path.read_bytes() or bytes(8))
        numbers = [record["n"] for record in run.records(logger="storm", pid=pid)]
        assert numbers[:logged] == list(range(logged))
        assert len(numbers) in (logged, logged + 1)  # it may die before it counts


HELD_END = """
    import atexit, os, sys, time
    def hold():
        open("ending", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.02)
    consumer = any("json.loads" in word for word in sys.orig_argv)
    if os.environ["HOLDS"] == ("consumer" if consumer else sys.orig_argv[3]):
        atexit.register(hold)
"""
"""A process that has done everything stays for a while."""


@pytest.mark.parametrize("holds", ["run", "consumer", "serve"])
def test_a_signal_at_the_very_end_changes_nothing(
    run: Any, tools: Any, holds: str
) -> None:
    """All is done, and the status is that of what was done."""
    run.write("sitecustomize.py", HELD_END)
    run.write("app.py", "print('hello')")
    run.env |= {"PYTHONPATH": str(run.directory), "HOLDS": holds}
    ending = run.directory / "ending"
    if holds == "serve":
        words = [*tools.logagg, "serve", "--once", "--socket", f"{run.directory}/s"]
        run.process = subprocess.Popen(
            words, cwd=run.directory, env=run.env, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        tools.until((run.directory / "s").exists)
        run.signal(signal.SIGTERM)
    else:
        run.start("-w", 1, "app.py")
    tools.until(ending.exists)
    pid = run.pid
    if holds == "consumer":
        lines = {p: _line(p) for p in _children(run.pid)}
        pid = next(p for p, line in lines.items() if b"json.loads" in line)
    for name in ("HUP", "USR1", "TERM", "INT", *(["TTIN"] if holds == "run" else [])):
        os.kill(pid, getattr(signal, "SIG" + name))
    (run.directory / "go").touch()
    assert run.wait() == 0
    if holds != "serve":
        assert run.err == ""
        assert "hello" in run.messages()


def test_what_is_asked_of_a_run_that_stops_is_refused(run: Any, tools: Any) -> None:
    """No reload and no scale is begun, or written down as done."""
    run.write(
        "app.py",
        """
        import os, signal, sys, time, logagg
        signal.signal(signal.SIGTERM, lambda *_: None)
        logagg.worker.ready()
        while not os.path.exists("go"):
            time.sleep(0.02)
        """,
    )
    run.start("-w", 1, "--level", "debug", "app.py")
    run.until_ready(1)
    run.signal(signal.SIGTERM)
    run.until_record(event="stopping")
    for signum in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
        run.signal(signum)
    for words in (["scale", 2], ["reload"]):
        done = run.command(*words)
        assert done.returncode != 0
        assert "the run is stopping" in done.stderr
    (run.directory / "go").touch()
    assert run.wait() == -signal.SIGTERM
    assert not run.records(event="scale")
    assert not run.records(event="reload")
