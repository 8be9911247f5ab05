"""Every sample runs, and logs what it says that it logs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parent.parent / "samples"
DEADLINE = 20.0


def records(path: Path) -> list[dict[str, Any]]:
    """What the program itself logged."""
    parsed = [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in parsed if each["logger"] != "logagg"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )


def test_hello_runs_unmodified_on_two_workers(tmp_path: Path) -> None:
    """`logagg run` brings logging, prints and tracebacks of both workers to one file."""
    path = tmp_path / "hello.log"
    result = run(
        "-m", "logagg", "run", "--workers", "2", "--sink", f"file:{path}",
        str(SAMPLES / "hello.py"),
    )  # fmt: skip
    assert result.returncode == 0
    found = records(path)
    for worker in ("1", "2"):
        mine = [each for each in found if each["worker"] == worker]
        assert [each["step"] for each in mine if "step" in each] == [1, 2, 3]
        assert [each["exception"]["type"] for each in mine if "exception" in each] == [
            "ZeroDivisionError"
        ]
        assert any(each["message"].startswith("hello from process") for each in mine)


def test_multiprocessing_logs_each_task_once(tmp_path: Path) -> None:
    """A pool's 100 tasks and the parent's last word stand in one file, in order."""
    path = tmp_path / "app.log"
    run(str(SAMPLES / "stdlib_multiprocessing.py"), str(path))
    found = records(path)
    assert sorted(each["task"] for each in found if "task" in each) == list(range(100))
    assert found[-1]["message"] == "all done"
    stamps = [each["timestamp"] for each in found]
    assert stamps == sorted(stamps)


def test_spawned_pool_inherits_level_names_and_handler(tmp_path: Path) -> None:
    """Workers without any set-up log at the parent's custom level, by its name."""
    path = tmp_path / "app.log"
    result = run(str(SAMPLES / "process_pool_spawn.py"), str(path))
    found = records(path)
    verbose = [each for each in found if each["level"] == "verbose"]
    assert sorted(each["number"] for each in verbose) == list(range(10))
    assert found[-1]["message"] == "the sum is 285"
    assert "the sum is 285" in result.stdout
    assert "number 3" not in result.stdout


def test_structlog_and_logging_share_one_order(tmp_path: Path) -> None:
    """Both ways carry the bound request id, and their records stand in call order."""
    path = tmp_path / "app.log"
    run(str(SAMPLES / "structlog_app.py"), str(path))
    found = records(path)
    assert [each["message"] for each in found] == [
        "order placed",
        "the request's id is here too",
        "order failed",
    ]
    assert [each["seq"] for each in found] == [1, 2, 3]
    assert {each["request_id"] for each in found} == {"r-17"}
    assert found[2]["exception"]["type"] == "KeyError"


@pytest.mark.slow
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_gunicorn_workers_share_one_file(tmp_path: Path, preload: tuple[str]) -> None:
    """Requests served by forked workers are logged with the workers' own pids."""
    path = tmp_path / "gunicorn.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable, "-m", "gunicorn", "--workers", "2", "--bind",
            f"127.0.0.1:{port}", "--config", str(SAMPLES / "gunicorn_conf.py"),
            "--chdir", str(SAMPLES), *preload, "gunicorn_app:app",
        ],
        env={**os.environ, "LOG_FILE": str(path)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + DEADLINE
        for number in range(20):
            while True:
                try:
                    url = f"http://127.0.0.1:{port}/{number}"
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        answer.read()
                    break
                except OSError:
                    assert time.monotonic() < deadline, "gunicorn does not answer"
                    time.sleep(0.05)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(DEADLINE) == 0
    wanted = sorted(f"/{number}" for number in range(20))
    deadline = time.monotonic() + DEADLINE
    while True:
        paths = [
            [
                each["path"]
                for each in records(path)
                if each.get("logger") == logger and "path" in each
            ]
            for logger in ("web", "gunicorn.access")  # the program's own, gunicorn's
        ]
        if all(sorted(each) == wanted for each in paths):
            break
        assert time.monotonic() < deadline, paths
        time.sleep(0.05)
    pids = {each["pid"] for each in records(path) if "path" in each}
    assert server.pid not in pids
    loaded = [each for each in records(path) if "is loaded" in each["message"]]
    assert len(loaded) == (1 if preload else 2)
