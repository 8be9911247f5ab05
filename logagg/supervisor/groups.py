"""The process groups of dead workers: what they left running ends, and is not waited for.

Each worker leads a group of its own. When it is dead, the group gets TERM, and KILL
`GROUP_GRACE` seconds later; the guard forgets it then. On the supervisor's loop.
"""

from __future__ import annotations

import asyncio
import os
import signal

from logagg.supervisor.guardian import Guardian

__all__ = ["Groups"]

GROUP_GRACE = 2.0


class Groups:
    """Ends groups; `guard` knows of each as long as something may be alive in it."""

    def __init__(self, guard: Guardian) -> None:
        self._guard = guard
        self._ending: dict[int, float] = {}
        self._loop = asyncio.get_running_loop()

    def end(self, group: int) -> None:
        """What a dead worker left running in its group gets TERM, later KILL."""
        if not _signal(group, signal.SIGTERM):
            self._guard.discard(group)
            return
        self._ending[group] = self._loop.time() + GROUP_GRACE
        self._loop.call_later(GROUP_GRACE, self._kill, group)

    def _kill(self, group: int) -> None:
        if self._ending.pop(group, None) is not None:
            _signal(group, signal.SIGKILL)
            self._guard.discard(group)

    async def ended(self) -> None:
        """Wait until all are gone, at most until each has got its KILL."""
        for group in list(self._ending):
            while self._loop.time() < self._ending.get(group, 0.0):
                if not _signal(group, 0):
                    break
                await asyncio.sleep(0.02)
            self._kill(group)


def _signal(group: int, signum: int) -> bool:
    """Send a signal; whether there was somebody to get it."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True
