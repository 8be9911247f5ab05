"""Processes that serve a run beside its workers: the consumer and the guard.

The programs of a project share them: the project opens and closes them, and what each
program's supervisor has is `shared`.
"""

from __future__ import annotations

from collections.abc import Callable

from logagg.errors import ExitStatus, LogaggError
from logagg.supervisor.process.consumer_process import ConsumerProcess
from logagg.supervisor.process.orphans import Guardian

__all__ = ["RunParts"]

CONSUMER_GRACE = 20.0


class RunParts:
    """The consumer and the guard of one run, or of all programs of a project.

    Args:
        sinks: Where records go.
        failed: Called with a message and an exit status when no consumer can run.
        metrics: The address of the metrics, or "".

    Attributes:
        is_shared: Another object opens and closes them.
    """

    def __init__(
        self,
        sinks: tuple[str, ...],
        failed: Callable[[str, ExitStatus], None],
        metrics: str,
    ) -> None:
        self.logs = ConsumerProcess(sinks, failed, metrics)
        self.guard = Guardian()
        self.is_shared = False

    def shared(self) -> RunParts:
        """The same parts for a supervisor that does not own them."""
        parts = RunParts.__new__(RunParts)
        parts.logs, parts.guard, parts.is_shared = self.logs, self.guard, True
        return parts

    async def opened(self) -> None:
        """Wait until the sinks are open.

        Raises:
            ConfigError: The consumer refused one of them.
            ConsumerGone: It did not come up.
        """
        if not self.is_shared:
            await self.logs.opened()

    async def drain(self) -> bool:
        """Let the consumer write all and end; False when something is left unwritten."""
        if self.is_shared:
            return True
        try:
            return await self.logs.close(CONSUMER_GRACE)
        except LogaggError:
            return False

    def close(self) -> None:
        """Let the guard end."""
        if not self.is_shared:
            self.guard.close()
