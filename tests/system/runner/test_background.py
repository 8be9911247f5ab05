"""Projects in the background: a newcomer's path, names, a second `up`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
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


class Project:
    """A project's directory, and commands in it."""

    def __init__(self, run: Any, tools: Any) -> None:
        self.run, self.tools = run, tools
        self.directory: Path = run.directory

    def write(self, name: str, text: str) -> None:
        """Write a file into it."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / name).write_text(textwrap.dedent(text))

    def call(self, *words: str, status: int = 0) -> str:
        """Run a command in it; what it printed."""
        done = subprocess.run(
            [*self.tools.logagg, *words],
            cwd=self.directory, env=self.run.env, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def programs(self) -> dict[str, dict[str, Any]]:
        """The rows of `ps --json`, by name."""
        rows = map(json.loads, self.call("ps", "--json").splitlines())
        return {row["name"]: row for row in rows if row["directory"] == self.path}

    @property
    def path(self) -> str:
        """Its directory."""
        return str(self.directory)

    def state(self, name: str) -> str:
        """The state of a program."""
        return str(self.programs().get(name, {}).get("state"))

    def pids(self) -> dict[str, int]:
        """The workers by name."""
        status = self.call("status", "--json").splitlines()
        runs = [json.loads(line).get("run") for line in status]
        return {
            slot["slot"]: slot["pid"]
            for run in runs
            if isinstance(run, dict) and run["directory"] == self.path
            for slot in run["slots"]
            if "pid" in slot
        }


@pytest.fixture
def project(run: Any, tools: Any) -> Iterator[Project]:
    """A project that is stopped after the test."""
    made = Project(run, tools)
    yield made
    for row in made.call("ps", "--json").splitlines():
        os.kill(json.loads(row)["pid"], signal.SIGTERM)


def mixed(project: Project) -> int:
    """A uvicorn server, a Python worker and a shell script; the server's port."""
    port = int(project.tools.free_port())
    project.write("app.py", project.tools.ASGI)
    project.write("worker.py", WORKER)
    project.write("script.sh", SHELL)
    project.write(".env", f"PORT={port}\n")
    project.write(
        "Procfile",
        """\
        web: uvicorn app:app --port $PORT
        jobs: python worker.py
        mail: sh script.sh
        """,
    )
    return port


def test_a_newcomers_path(project: Project) -> None:
    """Procfile → up -d → ps → kill -9 of each → logs → scale → releases → stop."""
    port, until, get = mixed(project), project.tools.until, project.tools.get

    shown = project.call("up", "-d")
    assert [project.state(name) for name in ("web", "jobs", "mail")] == ["running"] * 3
    assert shown.splitlines()[0].startswith(project.directory.name)
    assert max(map(len, shown.splitlines()[:-1])) <= 80 + len(project.path)
    assert str(port) in shown
    assert get(port).split()[0] == "1"

    for name, pid in project.pids().items():
        os.kill(pid, signal.SIGKILL)
        until(lambda n=name, p=pid: project.pids().get(n, p) != p, what=name)
    restarts = {name: row["restarts"] for name, row in project.programs().items()}
    assert restarts == {"web": 1, "jobs": 1, "mail": 1}

    shown = project.call("logs", "mail", "-n", "all", "--no-follow")
    assert "worker mail.1 died: SIGKILL" in shown
    assert "from the shell" in shown
    assert "jobs.1" not in shown

    assert (
        project.call("scale", "web=2", "jobs=0") == "web: 2 workers\njobs: 0 workers\n"
    )
    until(lambda: project.programs()["web"]["ready"] == 2)
    load = project.tools.Load(port)
    project.write("app.py", "raise RuntimeError('broken')\n")
    assert "broken" in project.call("reload", "web", status=1)
    project.write("app.py", project.tools.ASGI.replace('f"{slot} ', 'f"new {slot} '))
    assert "2 workers replaced" in project.call("reload", "web")
    until(lambda: load.good and load.good[-1].startswith("new"))
    load.stop()
    assert not load.bad
    assert get(port).startswith("new")

    project.call("stop")
    assert project.programs() == {}
    shown = project.call("logs", "web", "-n", "all", "--no-follow")
    assert "not running" in shown
    assert "web.2" in shown


def test_a_second_up_adopts_the_first(project: Project) -> None:
    """It starts what is missing, reloads what has changed, restarts what must be."""
    table = '[programs.{}]\ncommand = "python worker.py"\n{}\n'
    project.write("worker.py", WORKER)
    project.write("logagg.toml", table.format("a", "") + table.format("b", ""))
    project.call("up", "-d")
    before = project.pids()

    project.write(
        "logagg.toml",
        table.format("a", "env = {X = 1}\nworkers = 2")
        + table.format("b", "")
        + table.format("c", 'after = ["a"]'),
    )
    shown = project.call("up")
    assert "a reloaded, 1 workers replaced, scaled to 2" in shown
    assert "b is unchanged" in shown
    assert "c started" in shown
    project.tools.until(lambda: project.state("c") == "running")
    after = project.pids()
    assert after["b.1"] == before["b.1"]
    assert after["a.1"] != before["a.1"]
    environ = Path(f"/proc/{after['a.1']}/environ").read_bytes()
    assert b"\0X=1\0" in environ

    project.write("logagg.toml", table.format("b", 'restart = "always"'))
    shown = project.call("up")
    assert "b restarted" in shown
    assert "a is not configured any more" in shown
    project.write("logagg.toml", table.format("b", "restrt = 1"))
    assert "did you mean 'restart'" in project.call("up", status=2)
    assert set(project.pids()) == {"a.1", "a.2", "b.1", "c.1"}


def test_programs_are_stopped_and_started_by_name(project: Project) -> None:
    """The others go on."""
    mixed(project)
    project.call("up", "-d")
    before = project.pids()
    assert project.call("stop", "jobs", "mail") == "jobs stopped\nmail stopped\n"
    assert project.state("jobs") == "stopped"
    assert set(project.pids()) == {"web.1"}
    assert project.call("restart", "jobs") == "jobs restarted\n"
    assert "mail started" in project.call("up")
    project.tools.until(lambda: set(project.pids()) == set(before))
    assert project.pids()["web.1"] == before["web.1"]


def test_two_projects_stand_side_by_side(project: Project) -> None:
    """Each directory's commands are for its own; elsewhere a name must be clear."""
    one, two = project, Project(project.run, project.tools)
    two.directory = project.directory / "two"
    for each in (one, two):
        each.write("Procfile", "same: sleep 600\n")
        each.call("up", "-d")
    pids = one.pids()
    two.call("stop", "same")
    project.tools.until(lambda: two.programs() == {})
    assert one.pids() == pids
    two.call("up", "-d")
    one.directory = Path("/")
    assert "several run as 'same'" in one.call("stop", "same", status=2)


def test_what_fails_at_once_is_said_at_once(project: Project) -> None:
    """`up -d` shows it, and its exit status does."""
    project.write("Procfile", "bad: python bad.py\ngood: sleep 600\n")
    project.write("bad.py", "syntax error\n")
    shown = project.call("up", "-d", status=10)
    assert "failed" in shown
    assert "running" in shown
    project.call("stop")
    project.write("Procfile", "one: true\n")
    assert "ended" in project.call("up", "-d")
    project.tools.until(lambda: project.programs() == {})
    project.write("Procfile", "bad: python nosuch.py\n")
    assert "no such script: 'nosuch.py'" in project.call("up", "-d", status=2)


def test_names_complete(project: Project) -> None:
    """Those that run, and for `up` those of the file."""
    mixed(project)

    def completed(words: str) -> set[str]:
        env = {**project.run.env, "_LOGAGG_COMPLETE": "bash_complete"}
        count = str(len(words.split()) - (not words.endswith(" ")))
        env |= {"COMP_WORDS": words, "COMP_CWORD": count}
        code = "from logagg.cli.main import main; main(prog_name='logagg')"
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=project.directory, text=True,
            capture_output=True, check=False, timeout=90,
        )  # fmt: skip
        return {line.split(",")[1] for line in done.stdout.split()}

    assert completed("logagg up ") == {"web", "jobs", "mail"}
    assert completed("logagg stop ") == set()
    project.call("up", "-d")
    here = project.directory.name
    assert completed("logagg stop ") == {"web", "jobs", "mail", here}
    assert completed("logagg restart j") == {"jobs"}
    assert {"web", "jobs", "mail"} <= completed("logagg logs ")
