"""A run in which nothing happens costs next to nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SECONDS = 20.0


def _cpu(pid: int) -> float:
    """Seconds of CPU that the threads of a process have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks) / 1e9


def test_an_idle_run_of_many_workers_uses_no_cpu(run: Any) -> None:
    """Supervisor and consumer of 16 workers: below 0.5 % of a core each."""
    run.write(
        "app.py",
        """
        import signal, logagg
        logagg.worker.ready()
        while True:
            signal.pause()
        """,
    )
    run.start("-w", 16, "app.py")
    consumer = run.until_ready(16)["consumer"]["pid"]
    time.sleep(2)  # what the start has left to do
    before = {pid: _cpu(pid) for pid in (run.pid, consumer)}
    time.sleep(SECONDS)  # this is what is measured
    used = {pid: (_cpu(pid) - before[pid]) / SECONDS for pid in before}
    assert run.stop() == -15
    assert used[run.pid] < 0.005
    assert used[consumer] < 0.005
