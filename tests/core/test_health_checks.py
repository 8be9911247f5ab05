"""Periodic checks of workers: a worker that does not answer, and a supervisor that paused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from logagg.supervisor import health_checks
from logagg.supervisor.health_checks import HealthChecks
from logagg.supervisor.process.worker_process import WorkerState


@pytest.mark.parametrize(
    ("limit", "times", "answers", "killed"),
    [(2.0, [0.0, 0.2, 0.4, 0.6], False, False),
     (2.0, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0], False, True),
     (2.0, [0.0, 0.2, 100.0, 100.2], False, False),
     (0.5, [0.0, 0.2, 0.4, 1.3, 1.5, 2.4, 3.3], True, False)],
)  # fmt: skip
def test_a_pause_of_the_supervisor_is_no_silence_of_workers(
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    times: list[float],
    answers: bool,
    killed: bool,
) -> None:
    """Silence begins with a ping that is not answered, while the supervisor runs."""
    monkeypatch.setattr(health_checks, "STEP", 0.0)
    left = iter(times)
    signals: list[int] = []

    def send(_ping: object) -> None:
        if answers:
            worker.unanswered, worker.last_pong = None, worker.last_ping

    worker = SimpleNamespace(
        id=1, slot=1, name="1", pid=2, state=WorkerState.READY, channel=1, max_age=0, last_pong=0.0,
        is_reachable=True, last_ping=0.0, unanswered=None, signal=signals.append,
        peer=SimpleNamespace(send=send),
    )  # fmt: skip

    class Over(Exception):
        pass

    def now() -> float:
        try:
            return next(left)
        except StopIteration:
            raise Over from None

    context: Any = SimpleNamespace(
        loop=SimpleNamespace(time=now, call_later=lambda *_: None),
        workers={1: worker},
        options=SimpleNamespace(max_rss=0, unresponsive_timeout=limit),
        events=SimpleNamespace(record=lambda *_, **__: None),
        emit=lambda *_: None,
    )
    checks = HealthChecks(context, lambda *_: None)
    with pytest.raises(Over):
        asyncio.run(checks._watch())
    assert bool(signals) == killed
