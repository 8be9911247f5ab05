"""`logagg up -d`: a project in the background, in a session of its own.

The process is `logagg up` itself, started without a terminal. Its log goes to the sinks
that are configured, else to a file below `$XDG_STATE_HOME/logagg`; what it would write to
a terminal goes to a file beside that.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from logagg.errors import LogaggError, StartFailed
from logagg.ipc import paths
from logagg.ipc.runs import named_runs
from logagg.ipc.runs.named_runs import RunState

__all__ = ["begin", "default_sink", "log_of"]

INTERVAL = 0.1
_OUTCOMES = ("running", "stopping", "stopped", "ended", "failed")


def log_of(file: str, *, present: bool = False) -> str:
    """The file for the log of a project in the background.

    Args:
        file: The file that names its programs.
        present: Return "" where it has none yet.

    Raises:
        ConfigError: There is no directory for it.
    """
    digest = hashlib.blake2b(os.fsencode(file), digest_size=4).hexdigest()
    name = Path(file).parent.name or "root"
    folder = Path(paths.state_dir()) / "projects"
    path = folder / f"{name}-{digest}.log"
    if present:
        return str(path) if path.exists() else ""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(path)


def default_sink(file: str) -> str:
    """The sink of a project in the background that has none configured."""
    return f"file:{log_of(file)}?max_bytes=50MB&backups=5"


def begin(file: str, words: Sequence[str]) -> RunState | None:
    """Start a project in the background; returns when each program runs or is over.

    Args:
        file: The file that names its programs.
        words: The arguments of `logagg up`.

    Returns:
        Its state; None when all its programs have ended well already.

    Raises:
        StartFailed: It failed at once; the message is its own.
    """
    complaints = Path(log_of(file)).with_suffix(".err")
    with complaints.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "logagg", "up", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    while process.poll() is None:
        found = _state(process.pid)
        programs = found.programs if found is not None else []
        if programs and all(each["state"] in _OUTCOMES for each in programs):
            assert found is not None
            return found
        time.sleep(INTERVAL)
    text = complaints.read_text("utf-8", "replace").strip().removeprefix("logagg: ")
    if process.returncode == 0:
        return None
    raise StartFailed(text or f"it ended with status {process.returncode}")


def _state(pid: int) -> RunState | None:
    try:
        present = named_runs.running()
    except LogaggError:
        return None
    return next((each for each in present if each.run.pid == pid), None)
