"""One slot: its workers, its waits, and when a worker that ended is started again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from logagg.core.backoff import Backoff
from logagg.supervisor.process.worker_process import Exit, WorkerProcess
from logagg.supervisor.run_options import Restart

__all__ = ["Slot", "restart_backoff", "restart_delay"]


def restart_backoff() -> Backoff:
    """The waits of one slot: 0.5 s, doubled, at most 30 s; anew after 30 s of running.

    Precedent: Pebble's numbers; a cap of 15 s is too short for a dependency that
    restarts. Five failures before ready within 60 s: the program cannot start.
    """
    return Backoff(0.5, 30.0, jitter=(0.9, 1.1), good_uptime=30.0, limit=5, window=60.0)


@dataclass(slots=True, eq=False)
class Slot:
    """One place for a worker.

    Attributes:
        number: 1…N.
        worker: Its worker; None between two.
        fresh: The worker that starts beside it, to take over.
        restarts: How often a worker was started again because one had ended.
        last_exit: How the last one ended.
        retired: No further worker is to be started.
        why: Why it was retired.
        starts_at: When the next worker is to start, by the loop's clock.
        refused: Why the system had no room for a worker at the last try.
    """

    number: int
    worker: WorkerProcess | None = None
    fresh: WorkerProcess | None = None
    restarts: int = 0
    backoff: Backoff = field(default_factory=restart_backoff)
    last_exit: Exit | None = None
    retired: bool = False
    why: str = ""
    starts_at: float = 0.0
    refused: str = ""

    def failed(
        self, now: float, *, uptime: float = 0.0, ready: bool | None = None
    ) -> float:
        """Count a failure; how long to wait before the next start."""
        chance = random.random()  # noqa: S311  # jitter
        return self.backoff.failed(now, chance, uptime=uptime, ready=ready)


def restart_delay(
    slot: Slot, worker: WorkerProcess, restart: Restart, now: float
) -> float | None:
    """Seconds until a worker that ended is started again; None: not at all."""
    end = worker.exit
    assert end is not None
    if worker.recycle:
        return 0.0
    if restart is Restart.NEVER:
        return None
    if end.code == 0:
        # A server that ends with status 0 restarts itself; a script is done.
        if restart is not Restart.ALWAYS and not worker.listened:
            return None
        return 0.0 if end.uptime > 1.0 else 0.5
    return slot.failed(now, uptime=end.uptime, ready=worker.was_ready)
