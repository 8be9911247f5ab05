"""Several programs under `logagg up`: one log, their order, and every way to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # real processes

WORKER = """
    import logging, time
    n = 0
    while True:
        n += 1
        logging.getLogger("jobs").info("job %d", n, extra={"n": n})
        time.sleep(0.05)
"""
SHELL = 'while true; do echo "from the shell"; sleep 0.1; done\n'


def procfile(run: Any) -> None:
    """A server, a Python worker and a shell script."""
    run.write("worker.py", WORKER)
    run.write("script.sh", SHELL)
    run.write(
        "Procfile",
        """\
        web: python -m http.server $PORT
        jobs: python worker.py
        mail: sh script.sh
        """,
    )


def states(run: Any) -> dict[str, str]:
    """The state of each program; none while it does not answer."""
    return {each["name"]: each["state"] for each in run.status().get("programs", [])}


def test_the_programs_of_a_procfile_have_one_log(run: Any, tools: Any) -> None:
    """In any language, each record with `app`, and a worker named after it."""
    procfile(run)
    port = tools.free_port()
    run.write(".env", f"PORT={port}\n")
    run.start("-m", "jobs=2", verb="up")
    tools.until(lambda: set(states(run).values()) == {"running"}, what="all run")

    tools.get(port)
    run.until_record(app="web", worker="web.1", status=200)
    run.until_record(app="jobs", worker="jobs.2", logger="jobs")
    run.until_record(app="mail", worker="mail.1", message="from the shell")
    assert run.stop() == -signal.SIGTERM
    stamps = [record["timestamp"] for record in run.records()]
    assert stamps == sorted(stamps)
    numbers = [r["n"] for r in run.records(worker="jobs.1", logger="jobs")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_terminal_shows_the_programs_in_a_column(run: Any, tools: Any) -> None:
    """By the worker's name, wide enough for the longest; `app` is not shown again."""
    procfile(run)
    run.write(".env", f"PORT={tools.free_port()}\n")
    run.start(sink=False, verb="up")
    lines = []
    while "from the shell" not in "".join(lines[-1:]) or len(lines) < 12:
        lines.append(run.process.stdout.readline())
    run.stop()

    tagged = [line for line in lines if " jobs " in line or " stdout " in line]
    last = [line for line in tagged if "jobs.1" in line or "mail.1" in line][-4:]
    columns = {re.match(r" \S+ +\S+ +\S+ +", line).end() for line in last}
    assert len(columns) == 1, last
    assert not any("app=" in line for line in lines)


ORDERED = """
    [programs.web]
    command = "python sleeper.py"
    after = ["migrate", "db"]
    [programs.db]
    command = "python sleeper.py"
    [programs.migrate]
    command = "python once.py"
    restart = "never"
    after = ["db"]
"""
SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"


def test_programs_start_and_stop_in_their_order(run: Any, tools: Any) -> None:
    """One that does its work once is waited for to its end; at the end in reverse."""
    run.write("logagg.toml", ORDERED)
    run.write("sleeper.py", SLEEPER)
    run.write("once.py", "print('migrated')\n")
    run.start(verb="up")
    tools.until(lambda: states(run).get("web") == "running")
    assert states(run)["migrate"] == "ended"
    assert run.stop() == -signal.SIGTERM

    found = [
        (record["app"], record.get("event") or record["message"])
        for record in run.records()
        if record.get("event") in ("program_start", "program_end")
        or record["message"] in ("up", "migrated")
    ]
    order = [
        ("db", "program_start"), ("db", "up"), ("migrate", "program_start"),
        ("migrate", "migrated"), ("migrate", "program_end"), ("web", "program_start"),
        ("web", "up"), ("web", "program_end"), ("db", "program_end"),
    ]  # fmt: skip
    assert found == order


def test_what_fails_keeps_those_after_it_from_starting(run: Any, tools: Any) -> None:
    """And no other program; the exit status shows it."""
    run.write("logagg.toml", ORDERED)
    run.write("sleeper.py", SLEEPER)
    run.write("once.py", "raise SystemExit(3)\n")
    run.start(verb="up")
    tools.until(lambda: states(run).get("web") == "failed")
    assert states(run) == {"db": "running", "migrate": "failed", "web": "failed"}
    run.signal(signal.SIGTERM)
    assert run.wait() == 10
    assert "web is not started: it comes after migrate" in run.err
    assert not run.records(app="web", message="up")


def test_a_program_has_its_variables_and_directory(run: Any) -> None:
    """And only it."""
    (run.directory / "below").mkdir()
    run.write("vars", "A=file\nB=file\n")
    run.write(
        "logagg.toml",
        """
        [programs.one]
        command = "sh -c 'echo $A$B; pwd'"
        restart = "never"
        cwd = "below"
        env_file = ["vars"]
        env = {B = "table"}
        [programs.two]
        command = "sh -c 'echo [$A]'"
        restart = "never"
        """,
    )
    run.start(verb="up")
    assert run.wait() == 0, run.err
    one = run.messages(app="one", stream="stdout")
    assert one == ["filetable", str(run.directory / "below")]
    assert run.messages(app="two", stream="stdout") == ["[]"]


def test_a_second_signal_kills(run: Any, tools: Any) -> None:
    """Programs that ignore the first one."""
    run.write("Procfile", "deaf: sh deaf.sh\nother: sleep 600\n")
    run.write(
        "deaf.sh", "trap '' TERM INT\necho deaf\nwhile true; do sleep 0.1; done\n"
    )
    run.start(verb="up")
    tools.until(lambda: set(states(run).values()) == {"running"})
    run.signal(signal.SIGINT)
    tools.until(lambda: states(run).get("other") == "stopped")
    run.signal(signal.SIGINT)
    assert run.wait() == -signal.SIGINT


def test_a_killed_up_leaves_no_process(run: Any, tools: Any) -> None:
    """Of any program."""
    procfile(run)
    run.write(".env", f"PORT={tools.free_port()}\n")
    run.start(verb="up")
    tools.until(lambda: set(states(run).values()) == {"running"})
    pids = [slot["pid"] for slot in run.status()["slots"]]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    tools.until(lambda: not any(map(tools.alive, pids)))


def test_a_killed_worker_is_named_and_replaced(run: Any, tools: Any) -> None:
    """By the program's name and slot."""
    procfile(run)
    run.write(".env", f"PORT={tools.free_port()}\n")
    run.start(verb="up")
    tools.until(lambda: set(states(run).values()) == {"running"})
    for slot in run.status()["slots"]:
        os.kill(slot["pid"], signal.SIGKILL)
        found = run.until_record(event="worker_exit", pid=slot["pid"])
        assert found["message"].startswith(f"worker {slot['slot']} died: SIGKILL")
        assert found["app"] == slot["slot"].partition(".")[0]
    tools.until(lambda: [s["restarts"] for s in run.status()["slots"]] == [1, 1, 1])
    assert run.stop() == -signal.SIGTERM


def test_the_manual_has_a_page_of_it(run: Any) -> None:
    """`logagg help programs`."""
    done: subprocess.CompletedProcess[str] = run.command("help", "programs")
    assert "Procfile" in done.stdout
