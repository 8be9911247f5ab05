"""`--watch`: a save reloads, a broken save harms nobody, and the next good one mends it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

pytest.importorskip("watchfiles")
pytestmark = pytest.mark.slow  # many real processes, some seconds each

SLEEPER = """
    import os, time
    print("up", os.getpid(), flush=True)
    while True:
        time.sleep(0.1)
"""
BROKEN = "def broken(:\n"


def _save_until(run: Any, tools: Any, text: str, happened: Any) -> None:
    """Save the program; again each second, since the watcher may just be starting."""
    saved = 0.0

    def save_and_look() -> Any:
        nonlocal saved
        if time.monotonic() > saved + 1:
            run.write("app.py", text)
            saved = time.monotonic()
        return happened()

    tools.until(save_and_look)


def test_watch_reloads_on_a_change_but_not_on_its_own_log(run: Any) -> None:
    """A changed file replaces the workers; the run's own logs do nothing."""
    run.write("app.py", SLEEPER)
    run.start("-w", 1, "--watch", ".", "--sink", "file:noise.py", "app.py")
    first = run.until_ready(1)["slots"][0]["pid"]
    time.sleep(1)  # the watcher is up; its own log is written meanwhile
    assert run.records(event="reload") == []

    run.write("app.py", SLEEPER.replace('"up"', '"up again"'))

    run.until_record(event="reloaded")
    assert run.workers()[1] != first
    assert any(m.startswith("up again") for m in run.messages())
    assert run.stop() == -signal.SIGTERM


def test_a_broken_save_leaves_the_old_workers(run: Any, tools: Any) -> None:
    """A syntax error is named and the old ones serve on; the next good save takes over."""
    run.write("app.py", SLEEPER)
    run.start("-w", 2, "--watch", ".", "app.py")
    before = {slot["pid"] for slot in run.until_ready(2)["slots"]}

    _save_until(run, tools, BROKEN, lambda: run.records(event="reload_failed"))

    (refused, *_) = run.messages(event="reload_failed")
    assert "SyntaxError" in refused
    assert "app.py, line 1" in refused
    assert "serves on" in refused
    assert set(run.workers().values()) == before

    mended = SLEEPER.replace('"up"', '"mended"')
    _save_until(run, tools, mended, lambda: run.records(event="reloaded"))

    tools.until(lambda: sum(m.startswith("mended") for m in run.messages()) >= 2)
    run.until_ready(2)
    assert not before & set(run.workers().values())
    assert run.stop() == -signal.SIGTERM


@pytest.mark.parametrize("when", ["from the start", "when a worker ends"])
def test_a_run_without_workers_waits_for_a_good_save(
    run: Any, tools: Any, when: str
) -> None:
    """Broken with nobody to serve on: the run stays, and the good save starts at once."""
    if when == "from the start":
        run.write("app.py", BROKEN)
        run.start("-w", 1, "--watch", ".", "app.py")
    else:
        run.write("app.py", SLEEPER)
        run.start("-w", 1, "--watch", ".", "app.py")
        pid = run.until_ready(1)["slots"][0]["pid"]
        _save_until(run, tools, BROKEN, lambda: run.records(event="reload_failed"))
        os.kill(pid, signal.SIGKILL)

    # Five failures are what ends a run that nobody watches.
    def waits() -> bool:
        said = run.messages(event="worker_exit")
        return any("next start in 30.0 s" in message for message in said)

    tools.until(waits)
    assert run.process.poll() is None

    _save_until(run, tools, SLEEPER, lambda: run.records(event="reloaded"))

    assert run.until_ready(1, 5)
    assert run.stop() == -signal.SIGTERM
