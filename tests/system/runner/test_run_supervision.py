"""Workers are kept, replaced and stopped; nothing is left behind, and the status tells."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import support

pytestmark = pytest.mark.slow  # many real processes, some seconds each

SLEEPER = """
    import os, signal, sys, time
    def on(signum, frame):
        print("got", signal.Signals(signum).name, flush=True)
        if "deaf" not in sys.argv:
            sys.exit(0)
    signal.signal(signal.SIGTERM, on)
    signal.signal(signal.SIGINT, on)
    print("up", os.getpid(), flush=True)
    while True:
        time.sleep(0.1)
"""
WEB = """
    import os, time
    VERSION = 1
    DELAY = 0
    time.sleep(DELAY)
    async def app(scope, receive, send):
        import asyncio
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
        if scope["path"] == "/slow":
            await asyncio.sleep(3)
        text = f"{VERSION} {os.getpid()}".encode()
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", str(len(text)).encode())]})
        await send({"type": "http.response.body", "body": text})
"""


# ---- stopping -----------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_each_worker_gets_one_signal(run: Any, signum: int) -> None:
    """A stop sends every worker exactly one TERM; the run's status tells the signal."""
    run.write("app.py", SLEEPER)
    run.start("-w", 3, "app.py")
    run.until_ready(3)

    run.signal(signum)

    assert run.wait() == -signum
    assert run.messages(message="got SIGTERM") == ["got SIGTERM"] * 3
    assert run.messages(message="got SIGINT") == []


@pytest.mark.parametrize("hook", ["", "logagg.on_shutdown(lambda left: None)"])
def test_a_main_thread_that_waits_is_woken_by_the_signal(run: Any, hook: str) -> None:
    """No thread of ours takes TERM away from a program that waits for an event."""
    run.write(
        "app.py",
        f"""
        import logagg, signal, threading
        asked = threading.Event()
        signal.signal(signal.SIGTERM, lambda signum, frame: asked.set())
        {hook}
        logagg.worker.ready()
        asked.wait()
        print("ended well", flush=True)
        """,
    )
    run.start("-w", 6, "--stop-timeout", 5, "app.py")
    run.until_ready(6)

    assert run.stop() == -signal.SIGTERM

    assert run.records(event="stop_timeout") == []
    ended = run.messages(stream="stdout")
    assert ended == ["ended well"] * 6, run.records()


def test_a_request_to_reopen_comes_as_early_as_it_likes(run: Any, tools: Any) -> None:
    """USR1 while the consumer is only starting: it is not ended by it."""
    run.write("app.py", "import time; time.sleep(60)")
    run.start("-w", 1, "app.py")

    def taken() -> bool:
        status = Path(f"/proc/{run.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (signal.SIGUSR1 - 1) & 1)

    tools.until(taken)
    for _ in range(10):
        run.signal(signal.SIGUSR1)
    run.until_ready(1)

    assert run.status()["consumer"]["restarts"] == 0
    assert run.stop() == -signal.SIGTERM


def test_ctrl_c_in_a_terminal_arrives_once(run: Any) -> None:
    """Workers are in sessions of their own: the terminal's INT reaches only us."""
    run.write("app.py", SLEEPER)
    parent, child = pty.openpty()
    words = ["run", "--sink", f"file:{run.log}", "-w", "2", "app.py"]
    code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    code += "from logagg.cli.main import main; main()"
    run.process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=run.directory, env=run.env, stdin=child, stdout=child, stderr=child,
        start_new_session=True,
    )  # fmt: skip
    os.close(child)
    run.until_ready(2)

    os.write(parent, b"\x03")

    assert run.process.wait(20) == -signal.SIGINT
    os.close(parent)
    assert (
        sorted(m for m in run.messages() if m.startswith("got")) == ["got SIGTERM"] * 2
    )


def test_a_deaf_worker_is_killed_and_named(run: Any) -> None:
    """Who ignores TERM gets KILL at the deadline, and the status is 4."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "--stop-timeout", 0.5, "app.py", "--", "deaf")
    run.until_ready(2)
    pids = set(run.workers().values())

    assert run.stop() == 4

    deaf = run.records(event="stop_timeout")
    assert {record["of_pid"] for record in deaf} == pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_second_signal_is_quick(run: Any) -> None:
    """While a stop waits for deaf workers, a second signal ends them now."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "--stop-timeout", 60, "app.py", "--", "deaf")
    run.until_ready(2)
    run.signal(signal.SIGTERM)
    run.until_record(message="got SIGTERM")

    run.signal(signal.SIGTERM)

    # Sooner than the stop would have come to its end: that is 60 s.
    assert run.wait(55) == -signal.SIGTERM


def test_a_request_is_finished_and_all_records_are_written(
    run: Any, tools: Any
) -> None:
    """TERM during a 3 s request of uvicorn: it is answered; -15 counts as asked for."""
    port = tools.free_port()
    run.write("web.py", WEB)
    run.env["PYTHONPATH"] = str(run.directory)
    run.start("-w", 2, "--level", "debug", "-m", "uvicorn", "web:app", "--port", port)
    run.until_ready(2)
    answer: list[str] = []
    thread = threading.Thread(
        target=lambda: answer.append(tools.get(port, "/slow", timeout=20))
    )
    thread.start()
    run.directory.joinpath("x").touch()
    time.sleep(0.5)  # the request is on its way; nothing shows when it has begun

    assert run.stop() == -signal.SIGTERM

    thread.join()
    assert answer[0].startswith("1 ")
    deaths = [r for r in run.records(event="worker_exit") if "slot" in r]
    assert len(deaths) == 2
    assert all(r["level"] == "debug" for r in deaths)


def test_two_thousand_records_before_the_stop(run: Any) -> None:
    """What was logged before TERM is written before the run ends."""
    run.write(
        "app.py",
        """
        import logging, signal, sys, time
        for n in range(2000):
            logging.info("n", extra={"n": n})
        print("done", flush=True)
        time.sleep(60)
        """,
    )
    run.start("-w", 2, "app.py")
    run.process_done = [run.until_record(message="done", worker=w) for w in ("1", "2")]

    assert run.stop() == -signal.SIGTERM

    for slot in ("1", "2"):
        assert [r["n"] for r in run.records(message="n", worker=slot)] == list(
            range(2000)
        )


def test_stop_command_ends_with_zero(run: Any) -> None:
    """`logagg stop` waits for the end; the run's status is 0."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    run.until_ready(2)

    assert run.command("stop").returncode == 0

    assert run.wait() == 0


# ---- restarting -----------------------------------------------------------------------------


def test_a_crashed_worker_is_replaced(run: Any) -> None:
    """A killed worker's slot gets a new one; the others never notice."""
    run.write("app.py", SLEEPER)
    run.start("-w", 3, "app.py")
    before = {s["slot"]: s["pid"] for s in run.until_ready(3)["slots"]}

    os.kill(before[2], signal.SIGKILL)

    death = run.until_record(event="worker_exit", slot=2)
    status = run.until_ready(3)
    after = {s["slot"]: s["pid"] for s in status["slots"]}
    assert "SIGKILL" in death["message"]
    assert death["reason"] == "killed from outside"
    assert (after[1], after[3]) == (before[1], before[3])
    assert after[2] != before[2]
    assert [s["restarts"] for s in status["slots"]] == [0, 1, 0]
    assert run.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("restart", "code", "status", "starts"),
    [
        ("never", 3, 1, 1),
        ("never", 0, 0, 1),
        ("failure", 0, 0, 1),
        ("failure", 3, 10, 5),
        ("always", 0, None, 2),
    ],
)
def test_restart_rules(
    run: Any, tools: Any, restart: str, code: int, status: int | None, starts: int
) -> None:
    """never, failure and always decide by the exit status whether to start again."""
    run.write("app.py", f"print('start', flush=True); raise SystemExit({code})")
    run.start("-w", 1, "--restart", restart, "app.py")

    if status is None:
        tools.until(lambda: len(run.messages(message="start")) >= starts)
        assert run.stop() == -signal.SIGTERM
    else:
        assert run.wait() == status
        assert len(run.messages(message="start")) == starts


@pytest.mark.parametrize("more", ["", "?policy=block"])
def test_a_consumer_whose_sink_never_writes_ends_after_its_run(
    run: Any, more: str
) -> None:
    """The run ends with 5; the consumer gives up later, and names what is unwritten."""
    run.write("app.py", "import logging; logging.warning('lost')")
    run.start("-w", 1, "--sink", f"file:/dev/full{more}", "app.py", sink=False)
    assert run.process.wait(60) == 5
    run.wait(45)  # until the consumer has closed its copy of stderr
    assert ("were not written" if more else "wait in") in run.err


def test_a_crash_after_the_first_second_is_an_ordinary_restart(
    run: Any, tools: Any
) -> None:
    """Where nothing listens, a worker that ran for a second is ready: no limit."""
    code = (
        "import time; print('start', flush=True); time.sleep(1.6); raise OSError('x')"
    )
    run.write("app.py", code)
    run.start("-w", 1, "app.py")
    tools.until(lambda: len(run.messages(message="start")) >= 6)
    assert run.stop() == -signal.SIGTERM


def test_a_server_that_ends_with_zero_is_started_again(run: Any, tools: Any) -> None:
    """uvicorn's --limit-max-requests ends it with 0; a server is not done: it returns."""
    port = tools.free_port()
    run.write("web.py", WEB)
    run.env["PYTHONPATH"] = str(run.directory)
    words = ["-m", "uvicorn", "web:app", "--port", port, "--limit-max-requests", "3"]
    run.start("-w", 1, *words)
    run.until_ready(1)

    pids = set()

    def served() -> bool:
        try:
            pids.add(tools.get(port))
        except (OSError, AssertionError):
            pass
        return len(pids) >= 2

    tools.until(served)
    assert run.stop() == -signal.SIGTERM


def test_on_failure_keep_goes_on(run: Any, tools: Any) -> None:
    """With keep the run stays up at its limit; other slots are not touched."""
    run.write(
        "app.py",
        """
        import os, time
        if os.environ["LOGAGG_SLOT"] == "2":
            raise SystemExit(7)
        time.sleep(100)
        """,
    )
    run.start("-w", 2, "--on-failure", "keep", "app.py")

    deaths = tools.until(
        lambda: [
            r
            for r in run.records(event="worker_exit")
            if "next start in 30.0 s" in r["message"]
        ],
    )
    assert deaths[0]["status"] == 7
    assert run.process.poll() is None
    assert run.status()["slots"][0]["state"] == "ready"
    assert run.stop() == -signal.SIGTERM


def test_an_unresponsive_worker_shows_its_stacks_and_is_replaced(run: Any) -> None:
    """A blocked event loop: one record, all stacks on its stderr, then KILL."""
    run.write(
        "app.py",
        """
        import asyncio, logagg, os, time
        def blocked_here():
            time.sleep(1000)
        async def main():
            await logagg.worker.send("x") if False else None
            logagg.worker.on("message")(print)
            logagg.worker.ready()
            await asyncio.sleep(0.5)
            if not os.path.exists("once"):
                open("once", "w").close()
                blocked_here()
            await asyncio.sleep(1000)
        asyncio.run(main())
        """,
    )
    run.start("-w", 1, "--unresponsive-timeout", 1.5, "app.py")

    run.until_record(event="unresponsive")
    death = run.until_record(event="worker_exit", slot=1)
    run.until_ready(1)

    assert death["reason"] == "unresponsive"
    assert any("blocked_here" in text for text in run.messages(stream="stderr"))
    assert run.stop() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("option", "reason"),
    [(["--max-rss", "120MB"], "MiB"), (["--max-age", "2"], "age")],
)
def test_a_worker_over_its_limit_is_replaced(
    run: Any, option: list[str], reason: str
) -> None:
    """Memory and age: a fresh worker is ready first, then the old one gets TERM."""
    run.write(
        "app.py",
        """
        import os, time
        hold = b"x" * 200_000_000 if not os.path.exists("once") else b""
        open("once", "w").close()
        print("up", flush=True)
        time.sleep(1000)
        """,
    )
    run.start("-w", 1, "--level", "debug", *option, "app.py")

    record = run.until_record(event="recycle")
    death = run.until_record(event="worker_exit", slot=1)

    assert reason in record["message"]
    assert death["level"] == "debug"
    assert run.stop() == -signal.SIGTERM


# ---- reload and scale ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["kernel", "rr"])
@pytest.mark.parametrize(
    "server", ["uvicorn", pytest.param("gunicorn", marks=support.linux_form)]
)
def test_reload_under_load_fails_no_request(
    run: Any, tools: Any, policy: str, server: str
) -> None:
    """A slow boot, then a broken release: no request fails, the broken one is refused."""
    port = tools.free_port()
    run.write("web.py", WEB)
    run.write(
        "wsgi.py",
        """
        import time, web
        def app(environ, start_response):
            text = f"{web.VERSION} x".encode()
            start_response("200 OK", [("Content-Length", str(len(text)))])
            return [text]
        """,
    )
    run.env["PYTHONPATH"] = str(run.directory)
    run.env["PYTHONDONTWRITEBYTECODE"] = "1"
    words = {
        "uvicorn": ["-m", "uvicorn", "web:app", "--port", port],
        "gunicorn": [
            "gunicorn",
            "wsgi:app",
            "--preload",
            "-k",
            "gthread",
            "-b",
            f"127.0.0.1:{port}",
        ],
    }[server]
    run.start("-w", 2, "--policy", policy, *words)
    run.until_ready(2)
    load = tools.Load(port)

    new = WEB.replace("VERSION = 1", "VERSION = 2").replace("DELAY = 0", "DELAY = 3")
    run.write("web.py", new)
    good = run.command("reload")
    run.write("web.py", new + "\n    raise RuntimeError('broken release')\n")
    broken = run.command("reload")
    tools.until(lambda: len(load.good) > 50 and load.good[-1][0] == "2")
    load.stop()

    assert good.returncode == 0, good.stderr
    assert "2 workers replaced" in good.stdout
    assert broken.returncode == 1
    if server == "uvicorn":
        assert "broken release" in broken.stderr
        assert "web.py" in broken.stderr
    else:  # gunicorn catches the exception and writes it to its stderr
        assert "in the log" in broken.stderr
        assert any("broken release" in text for text in run.messages())
    assert load.bad == []
    assert {answer[0] for answer in load.good} == {"1", "2"}
    assert tools.get(port).split()[0] == "2"
    assert run.stop() == -signal.SIGTERM


def test_hup_reloads_and_usr1_reopens(run: Any, tools: Any) -> None:
    """HUP replaces all workers; USR1 has the log file opened anew, nothing is lost."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    before = {s["pid"] for s in run.until_ready(2)["slots"]}

    run.signal(signal.SIGHUP)
    run.until_record(event="reloaded")
    after = set(run.workers().values())
    assert not before & after

    old = run.log.rename(run.directory / "old.ndjson")
    run.signal(signal.SIGUSR1)
    os.kill(min(after), signal.SIGKILL)
    tools.until(lambda: [m for m in run.messages() if m.startswith("up ")])
    assert run.stop() == -signal.SIGTERM
    texts = old.read_text() + run.log.read_text()
    assert texts.count('"message":"up ') == 5


def test_scale_by_command_and_by_signal(run: Any, tools: Any) -> None:
    """`logagg scale N`, TTIN, TTOU; low slots stay, the status shows them."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    run.until_ready(2)

    assert run.command("scale", 4).returncode == 0
    assert [s["slot"] for s in run.until_ready(4)["slots"]] == [1, 2, 3, 4]
    assert run.command("scale", 1).returncode == 0
    assert [s["slot"] for s in run.until_ready(1)["slots"]] == [1]
    run.signal(signal.SIGTTIN)
    run.until_ready(2)
    run.signal(signal.SIGTTOU)
    run.until_ready(1)
    assert run.stop() == -signal.SIGTERM


def test_status_works_while_a_worker_is_wedged(run: Any) -> None:
    """A stopped worker changes nothing: table and JSON come at once and show it."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "app.py")
    run.until_ready(2)
    pid = run.workers()[1]
    os.kill(pid, signal.SIGSTOP)

    began = time.monotonic()
    status = run.status()
    assert time.monotonic() - began < 3
    os.kill(pid, signal.SIGCONT)

    assert next(slot["pid"] for slot in status["slots"]) == pid
    for key in ("state", "uptime", "restarts", "rss_bytes", "connections", "last_exit"):
        assert key in status["slots"][0]
    assert status["consumer"]["pid"] > 0
    socket_path = next(Path(run.env["XDG_RUNTIME_DIR"]).rglob("*.control"))
    assert socket_path.stat().st_mode & 0o777 == 0o600
    assert socket_path.parent.stat().st_mode & 0o777 == 0o700
    assert run.stop() == -signal.SIGTERM


def test_commands_without_a_run_say_so(run: Any) -> None:
    """reload, scale and stop with nothing to talk to: one line, status 3 as `status`."""
    for words in (["reload"], ["scale", "2"], ["stop"], ["stop", "--pid", "1"]):
        done = run.command(*words)
        assert done.returncode == 3
        assert "no run" in done.stderr
        assert len(done.stderr.splitlines()) == 1


# ---- nothing is left behind -----------------------------------------------------------------


@pytest.mark.parametrize("round_", range(2))
def test_no_orphans_after_the_supervisor_is_killed(
    run: Any, tools: Any, round_: int
) -> None:
    """A busy loop, a deaf worker, a stopped one, one with a child: all gone in 2 s."""
    port = tools.free_port()
    run.write(
        "app.py",
        f"""
        import os, signal, socket, subprocess, sys, time, logagg
        slot = logagg.worker.slot
        if slot == 1:
            s = socket.create_server(("127.0.0.1", {port}))
            while True:
                pass
        if slot == 2:
            child = subprocess.Popen([sys.executable, "-c",
                "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(999)"])
            print("child", child.pid, flush=True)
            time.sleep(999)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(999)
        """,
    )
    run.start("-w", 4, "--unresponsive-timeout", 0, "app.py")
    tools.until(lambda: len(run.workers()) == 4)
    child = run.until_record(worker="2", stream="stdout")
    pids = [*run.workers().values(), int(child["message"].split()[1])]
    tools.until(lambda: _connects(port))
    os.kill(run.workers()[4], signal.SIGSTOP)

    run.process.kill()

    run.process.communicate(timeout=90)
    tools.until(lambda: not any(tools.alive(pid) for pid in pids), 2.5, "orphans")
    assert not _connects(port)
    tools.until(lambda: not list(Path(run.env["XDG_RUNTIME_DIR"]).rglob("*.sock")))
    run.log.unlink()
    run.write("app.py", "print('next')")
    assert run.start("-w", 1, "app.py").wait() == 0
    assert run.messages(stream="stdout") == ["next"]


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_consumer_is_replaced_and_no_record_is_lost(run: Any, tools: Any) -> None:
    """kill -9 of the consumer while four workers log and print: each record once.

    Of what is printed nobody has a copy: what the consumer had just read is gone with it.
    """
    run.write(
        "app.py",
        """
        import logging, time
        for n in range(3000):
            logging.info("r", extra={"n": n})
            print("p", n)
            if n % 100 == 0:
                time.sleep(0.2)
        """,
    )
    run.start("-w", 4, "app.py")
    tools.until(lambda: len(run.records(message="r")) > 500)
    for _ in range(2):
        pid = run.status()["consumer"]["pid"]
        os.kill(pid, signal.SIGKILL)
        tools.until(lambda pid=pid: run.status()["consumer"]["pid"] != pid)
        tools.until(lambda: len(run.messages(event="consumer_restart")) >= 1)

    assert run.wait(50) == 0

    for slot in "1234":
        mine = run.records(worker=slot)
        logged = [r["n"] for r in mine if r["message"] == "r"]
        assert sorted(logged) == list(range(3000))
        printed = [r["message"] for r in mine if r.get("stream") == "stdout"]
        assert len(printed) == len(set(printed))
        missing = {f"p {n}" for n in range(3000)} - set(printed)
        assert len(missing) <= 1000, len(missing)


@support.linux_form
def test_pid_one_reaps_orphans(run: Any, tools: Any) -> None:
    """In a pid namespace of its own an orphan that exits with 3 is reaped and ignored."""
    run.write(
        "app.py",
        """
        import os, subprocess, sys, time
        code = "import os, sys; os.fork() and sys.exit(0); import time; time.sleep(0.3); sys.exit(3)"
        subprocess.run([sys.executable, "-c", code], start_new_session=True)
        time.sleep(1.2)
        states = []
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                stat = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
                states.append(stat[0])
        print("zombies", states.count("Z"), os.getppid(), flush=True)
        """,
    )
    prefix = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no pid namespaces here")
    run.start("-w", 1, "app.py", prefix=prefix)

    assert run.wait() == 0
    assert run.messages(stream="stdout") == ["zombies 0 1"]


def test_children_of_a_dead_worker_end_with_it(run: Any, tools: Any) -> None:
    """What a killed worker left running in its group is ended."""
    run.write(
        "app.py",
        """
        import os, signal, subprocess
        child = subprocess.Popen(["sleep", "999"])
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    run.start("-w", 1, "--restart", "never", "app.py")

    assert run.wait() == 1
    (text,) = run.messages(stream="stdout")
    assert not tools.alive(int(text))
