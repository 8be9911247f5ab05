"""What the processes of a run leave on disk when nobody is left to read it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logagg.errors import ExitStatus

pytestmark = pytest.mark.slow  # real processes


SPOOLS = """
    import logging, signal, sys, time
    import logagg

    log = logging.getLogger("app")
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    n = 0
    while not ended:
        n += 1
        log.info("numbered", extra={"n": n})
        time.sleep(0.002)
    with open("count", "w") as file:
        file.write(str(n))
"""


def test_what_a_dead_run_spooled_is_written_by_whoever_writes_its_log_next(
    run: Any, tools: Any
) -> None:
    """A run ends because its consumer dies again and again; another one follows it."""
    run.write("app.py", SPOOLS)
    run.start("-w", 1, "app.py")
    mark = f"XDG_RUNTIME_DIR={run.env['XDG_RUNTIME_DIR']}".encode()
    run.until_record(message="numbered")
    killed = set()
    while run.process.poll() is None:
        for pid in _all(mark):
            if b"logagg.consumer.consumer" in _line(pid) and pid not in killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert run.wait() == ExitStatus.NO_CONSUMER
    count = int((run.directory / "count").read_text())
    assert list((run.directory / "state").rglob("*.spool"))

    run.write("next.py", "import logging; logging.getLogger('app').info('next')")
    run.start("next.py")
    assert run.wait() == 0

    found = [each["n"] for each in run.records(message="numbered")]
    assert found == list(range(1, count + 1))
    assert not list((run.directory / "state").rglob("*.spool"))


def _all(mark: bytes) -> Iterator[int]:
    """The processes that have this in their environment."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                yield int(entry.name)


def _line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
