"""A sink's password stands where its user has written it, and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from serving import LOGAGG
from support import finish, wait_until

pytestmark = pytest.mark.slow

PASSWORD = b"hunter2"
APP = "import logging, signal\nlogging.warning('here')\nsignal.pause()\n"


def consumer() -> dict[str, Any]:
    """The consumer of the only run; empty while there is none."""
    done = finish([*LOGAGG, "status", "--json"], status=None)
    assert PASSWORD.decode() not in done.stdout + done.stderr
    for line in done.stdout.splitlines():
        run = json.loads(line).get("run")
        if isinstance(run, dict):  # a consumer names its run
            return dict(run["consumer"])
    return {}


def test_a_password_is_in_no_command_line_status_or_file(tmp_path: Path) -> None:
    """Neither at first nor once the consumer was killed and is started again."""
    (tmp_path / "app.py").write_text(APP)
    sink = "http://me:hunter2@127.0.0.1:9/in?grace=0"
    process = subprocess.Popen(
        [*LOGAGG, "run", "-w", "1", "--sink", sink, "app.py"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        wait_until(lambda: consumer().get("pid"), 60, "a consumer")
        for restarts in (0, 1):
            wait_until(
                lambda n=restarts: consumer().get("restarts") == n, 60, "its restart"
            )
            pid = consumer()["pid"]
            assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert PASSWORD not in Path(f"/proc/{pid}/environ").read_bytes()
            text = finish([*LOGAGG, "status"], status=0).stdout
            assert "127.0.0.1:9" in text
            assert "hunter2" not in text
            os.kill(pid, signal.SIGKILL)
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert PASSWORD not in shown
    for base in (os.environ["XDG_STATE_HOME"], os.environ["XDG_RUNTIME_DIR"]):
        for path in Path(base).rglob("*"):
            assert not path.is_file() or PASSWORD not in path.read_bytes()
