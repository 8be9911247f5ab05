"""`logagg boot`: the unit is right, is enabled and removed, and its command runs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # real processes

needs_systemctl = pytest.mark.skipif(
    not shutil.which("systemctl"), reason="needs systemctl"
)


def unit(run: Any) -> str:
    """The unit of a small project."""
    run.write("Procfile", "web: sleep 600\nodd: sh -c 'echo 100%; sleep 600'\n")
    done = run.command("boot", "--print")
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def started(text: str) -> list[str]:
    """The words of the unit's command, specifiers resolved."""
    (line,) = (li for li in text.splitlines() if li.startswith("ExecStart="))
    return shlex.split(line.partition("=")[2].replace("%%", "%").replace("$$", "$"))


def test_the_units_command_starts_the_project_after_a_reboot(
    run: Any, tools: Any
) -> None:
    """All processes are gone, and so are the sockets' owners; nothing is in its way."""
    text = unit(run)
    assert run.command("up", "-d").returncode == 0
    (pid,) = [each["pid"] for each in projects(run)]
    workers = pids(run)
    for each in (pid, *workers):
        os.kill(each, signal.SIGKILL)
    tools.until(lambda: not any(map(tools.alive, (pid, *workers))))

    process = subprocess.Popen(started(text), cwd="/", env=run.env)

    try:
        tools.until(lambda: len(pids(run)) == 2)
        assert {each["state"] for each in projects(run)} <= {"running", "starting"}
    finally:
        process.terminate()
        assert process.wait(90) == -signal.SIGTERM
    done = run.command("logs", "odd", "-n", "all", "--no-follow")
    assert done.stdout.count(" 100%\n") == 2  # of both lives


def projects(run: Any) -> list[dict[str, Any]]:
    """The rows of `ps`, without doubles of one project."""
    rows = map(json.loads, run.command("ps", "--json").stdout.splitlines())
    return list({row["pid"]: row for row in rows}.values())


def pids(run: Any) -> list[int]:
    """The workers of all runs."""
    found = map(json.loads, run.command("status", "--json").stdout.splitlines())
    runs = [each["run"] for each in found if isinstance(each.get("run"), dict)]
    return [slot["pid"] for each in runs for slot in each["slots"] if "pid" in slot]


@needs_systemctl
def test_the_unit_is_enabled_and_removed(run: Any, tmp_path: Path) -> None:
    """By systemctl itself, which works on files alone where systemd does not run."""
    home = tmp_path / "config"
    run.env |= {"XDG_CONFIG_HOME": str(home), "SYSTEMD_OFFLINE": "1"}
    text = unit(run)
    name = f"logagg-{run.directory.name}.service"
    path = home / "systemd" / "user" / name
    wanted = home / "systemd" / "user" / "default.target.wants" / name

    done = run.command("boot", "--user")
    assert done.returncode == 0, done.stderr
    assert "is enabled" in done.stdout
    assert wanted.resolve() == path
    assert path.read_text().splitlines()[:8] == text.splitlines()[:8]

    assert run.command("boot", "--user", "--remove").returncode == 0
    assert not path.exists()
    assert not wanted.is_symlink()
    done = run.command("boot", "--user", "--remove")
    assert (done.returncode, "logagg boot" in done.stderr) == (2, True)


def test_without_systemd_the_unit_is_printed(run: Any) -> None:
    """And the reason stands beside it."""
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("systemd runs here")
    run.write("Procfile", "web: sleep 600\n")
    done = run.command("boot")
    assert done.returncode == 0
    assert "[Install]" in done.stdout
    assert "no systemd here" in done.stderr
