"""The life of runs and clusters: terminals, pauses, nothing to do, and every way to end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support

pytestmark = pytest.mark.slow  # real processes

SLEEPER = "import time\ntime.sleep(600)\n"


def state(pid: int) -> str:
    """A process's state, as in `ps`."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def in_a_terminal(run: Any, *, nohup: bool) -> int:
    """Start a run in a terminal of its own; the other end of that."""
    run.write("app.py", SLEEPER)
    parent, child = pty.openpty()
    words = ["run", "--sink", f"file:{run.log}", "-w", "1", "app.py"]
    code = "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    code += "signal.signal(signal.SIGHUP, signal.SIG_IGN);" if nohup else ""
    code += "from logagg.cli.main import main; main()"
    run.process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=run.directory, env=run.env, stdin=child, stdout=child, stderr=child,
        start_new_session=True,
    )  # fmt: skip
    os.close(child)
    run.until_ready(1)
    return parent


def test_a_run_ends_with_its_terminal(run: Any) -> None:
    """HUP because the terminal is gone is no request to reload."""
    os.close(in_a_terminal(run, nohup=False))
    assert run.process.wait(90) == -signal.SIGHUP
    assert not run.records(event="reload")


def test_a_run_outlives_its_terminal_with_nohup(run: Any, tools: Any) -> None:
    """And is reloaded by a HUP that somebody sends it later."""
    os.close(in_a_terminal(run, nohup=True))

    def reloaded() -> bool:
        run.signal(signal.SIGHUP)  # the first may be one with that of the terminal
        return bool(run.records(event="reloaded"))

    tools.until(reloaded)
    run.signal(signal.SIGTERM)
    assert run.process.wait(90) == -signal.SIGTERM


def test_a_pause_reaches_the_workers(run: Any, tools: Any) -> None:
    """Ctrl-Z stops them too, `status` names it, and all goes on afterwards."""
    run.write("app.py", SLEEPER)
    run.start("-w", 1, "app.py")
    run.until_ready(1)
    (worker,) = run.workers().values()

    run.signal(signal.SIGTSTP)

    tools.until(lambda: state(run.pid) == state(worker) == "T")
    assert "stopped (Ctrl-Z)" in run.command("status").stderr
    run.signal(signal.SIGCONT)
    tools.until(lambda: state(worker) != "T")
    assert run.workers() == {1: worker}
    assert run.stop() == -signal.SIGTERM


def test_a_run_without_workers_waits_for_some(run: Any) -> None:
    """`scale 0` ends no run, and what was asked to end has not failed."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    run.until_ready(2)
    assert run.command("scale", 0).stdout == "0 workers\n"
    assert run.command("scale", 1).stdout == "1 workers\n"
    run.until_ready(1)
    for word in ("x", "-1"):
        refused = run.command("scale", word)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
    assert run.stop() == -signal.SIGTERM


def test_a_storm_of_requests_to_reload_is_two_reloads(run: Any) -> None:
    """One that is under way, and one more for all that came meanwhile."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    run.until_ready(2)
    for count in range(1, 11):
        run.signal(signal.SIGHUP)
        if count == 1:
            run.until_record(event="reload")
    run.until_record(event="reloaded")
    run.signal(signal.SIGTERM)
    run.wait(90)
    assert len(run.records(event="reload")) <= 2


@pytest.mark.parametrize("console", [False, True])
def test_a_syntax_error_is_tried_once_and_shown_last(run: Any, console: bool) -> None:
    """On the terminal, whatever the sinks are; no second start could help."""
    run.write("app.py", "def f(:\n")
    more = ["--sink", "stdout:?format=console"] if console else []
    assert run.start("-w", 2, *more, "app.py").wait(90) == 10
    # One that was asked to end before it had failed, too, is in good order.
    slots = [each["slot"] for each in run.records(event="worker_exit")]
    assert slots
    assert len(slots) == len(set(slots))
    lines = run.err.splitlines()
    assert lines[0].startswith("logagg: the program cannot start: slot ")
    assert lines[-1] == "SyntaxError: invalid syntax"
    assert (run.out + run.err).count("def f(:") == 1


@support.linux_form
def test_more_workers_than_memory_are_refused(run: Any) -> None:
    """Before any is started, with the number that would fit."""
    run.write("app.py", SLEEPER)
    assert run.start("-w", 900_000, "app.py").wait() == 2
    assert "900000 do not fit into the memory" in run.err
    assert run.err.count("\n") == 1


LIFE = """
    import asyncio, json, os, signal, subprocess, sys, threading
    import logagg

    def cluster(name, **options):
        options = {"workers": 1, **options}
        return logagg.Cluster(options.pop("target", None), sinks=[f"file:{name}"],
                              **options)

    def two():
        with cluster("a") as a, cluster("b") as b:
            sockets = {c.status()["consumer"]["socket"] for c in (a, b)}
            pids = {c.submit("os:getpid").result() for c in (a, b)}
            return len(sockets), len(pids)

    def stop():
        ends = []
        with cluster("c") as c:
            c.on("exit")(lambda worker, end: ends.append(end.how))
            c.on("disconnect")(lambda worker: late.append(c.fork()))
            late = []
            c.submit("os:getpid").result()
            c.stop()
            c.stop()
        c.stop()
        errors = [type(f.exception(30)).__name__ for f in late]
        try:
            c.fork()
        except logagg.errors.ClosedError as error:
            errors.append(str(error))
        return ends, c.exit_status, errors

    def gently():
        ends, up = [], threading.Semaphore(0)
        c = cluster("h", target="slow.py", workers=2, stop_timeout=60)
        c.on("ready")(lambda worker: up.release())
        c.on("exit")(lambda worker, end: ends.append(end.how))
        with c:
            up.acquire(), up.acquire()
            c.stop()
        return ends

    def shut_down():
        async def main():
            async with cluster("d") as c:
                task = c.submit("os:getpid")
                await c.shutdown()
                return task.done()
        return asyncio.run(main())

    def interrupted():
        c = cluster("e")
        c.on("fork")(lambda worker: os.kill(os.getpid(), signal.SIGINT))
        try:
            with c:
                return "entered"
        except KeyboardInterrupt:
            return threading.active_count()

    def unanswered():
        with cluster("i") as c:
            for _ in range(2):
                c.submit("time:sleep", 600)
            done = c.shutdown(wait=False)
        return type(done.exception(30)).__name__

    def children():
        c = cluster("f")
        child = subprocess.Popen(["sh", "-c", "exit 3"])
        c.on("ready")(lambda worker: (os.waitid(os.P_PID, child.pid, os.WEXITED
                                                | os.WNOWAIT), c.stop()))
        return c.serve_forever(), child.wait()

    def ignored():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        ended = threading.Event()
        ends = []
        c = cluster("g", target=["sh", "-c", "exit 3"], restart="never")
        c.on("exit")(lambda worker, end: (ends.append(end.code != 0), ended.set()))
        with c:
            ended.wait(60)
        return ends

    def signals():
        def own(*_):
            pass
        signal.signal(signal.SIGUSR1, own)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        c = cluster("j")
        c.on("ready")(lambda worker: c.stop())
        c.serve_forever()
        return [signal.getsignal(signal.SIGUSR1) is own,
                signal.getsignal(signal.SIGHUP) is signal.SIG_IGN]

    print(json.dumps(globals()[sys.argv[1]]()))
"""


SLOW_TO_END = """
    import signal, sys, time, logagg
    def end(*_):
        time.sleep(1)
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    logagg.worker.ready()
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("scene", "outcome"),
    [
        ("two", [2, 2]),
        ("gently", ["status 0", "status 0"]),
        ("stop", [["SIGTERM"], 0, ["ClosedError", "the cluster has ended"]]),
        ("shut_down", True),
        ("unanswered", "ClosedError"),
        ("interrupted", 1),
        ("children", [0, 3]),
        ("ignored", [True]),
        ("signals", [True, True]),
    ],
)
def test_a_cluster_in_a_program(run: Any, scene: str, outcome: Any) -> None:
    """Two at once; stopped twice and later; interrupted; beside other children."""
    run.write("main.py", LIFE)
    run.write("slow.py", SLOW_TO_END)
    done = subprocess.run(
        [sys.executable, "main.py", scene], cwd=run.directory, env=run.env,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == outcome


@pytest.mark.parametrize("place", ["start", "closing"])
def test_a_consumer_that_is_killed_leaves_no_socket_when_its_run_is_over(
    run: Any, place: str
) -> None:
    """Nobody follows it there: the supervisor removes what it has left."""
    run.env["LOGAGG_FAILPOINT"] = f"{place}:kill"
    run.start(run.write("app.py", "print('done')"))
    assert run.wait() != 0
    runtime = Path(run.env["XDG_RUNTIME_DIR"])
    left = [each for each in runtime.rglob("*") if not each.is_dir()]
    assert not left, run.err


@pytest.mark.parametrize("level", ["info", "debug"])
def test_what_is_in_order_is_quiet(run: Any, tools: Any, level: str) -> None:
    """Ends with status 0, by TERM, by SystemExit(143): nothing at INFO, else a short line.

    A worker that fails is as loud as ever.
    """
    run.write(
        "app.py",
        """
        import logging, os, signal, sys, time
        slot = os.environ["LOGAGG_SLOT"]
        if slot == "2":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        logging.warning("here")
        if slot == "4":
            sys.exit(3)
        while slot != "1":
            time.sleep(60)
        """,
    )
    run.start("-w", 4, "--level", level, "--restart", "never", "app.py")
    death = run.until_record(event="worker_exit", slot=4)
    assert (death["level"], death["status"]) == ("error", 3)
    tools.until(lambda: len(run.records(message="here")) == 4)
    tools.until(lambda: sorted(run.workers()) == [2, 3], 60, "the end of worker 1")
    assert run.stop() == -signal.SIGTERM
    own = [r for r in run.records(logger="logagg") if r.get("slot") != 4]
    if level == "info":
        assert own == []
        return
    assert {r["level"] for r in own} == {"debug"}
    ends = [r for r in own if r["event"] == "worker_exit"]
    assert sorted(r["message"] for r in ends) == [
        f"worker {n} ended" for n in (1, 2, 3)
    ]
    lines = [r for r in run.log.read_bytes().splitlines() if b" ended" in r]
    lines = [r.partition(b',"received"')[0] for r in lines if b'"debug"' in r]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 200
