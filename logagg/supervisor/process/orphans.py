"""Processes that must not outlive their worker or the run: guard, groups, orphans.

Each worker leads a process group of its own. When it is dead, the group gets TERM, and
KILL `GROUP_GRACE` seconds later. The guard (`guard.py`, a process of its own) knows of
each group as long as something may be alive in it, and ends all of them when the
supervisor dies. On the supervisor's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from logagg.platform.processes import ProcessHandle, process_handle
from logagg.platform.procfs import children

__all__ = ["Guardian", "ProcessGroups", "reap_orphans"]

GROUP_GRACE = 2.0
RETRY = 0.2


class Guardian:
    """The supervisor's side of the guard process: passes on which groups exist.

    A guard that dies is replaced at once, or as soon as there is room for another.
    """

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        try:
            self._handle: ProcessHandle | None = process_handle(self._process.pid)
        except OSError:
            self._close_stdin()
            self._process.wait()
            raise
        self._handle.watch(self._loop, self._replace)
        for group in self._groups:
            self._send(f"+{group}\n")

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._process.pid

    def add(self, group: int) -> None:
        """Guard the group of a worker that has started."""
        self._groups.add(group)
        self._send(f"+{group}\n")

    def discard(self, group: int) -> None:
        """Forget a group in which nothing is alive."""
        self._groups.discard(group)
        self._send(f"-{group}\n")

    def _send(self, line: str) -> None:
        """Send a line; one that has died is replaced, and its successor knows all."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line.encode())

    def _replace(self) -> None:
        if self._process.poll() is None:
            return
        self._unwatch()
        self._close_stdin()
        self._process.wait()
        self._try_start()

    def _try_start(self) -> None:
        try:
            self._start()
        except OSError:  # no room for it now
            self._retry = self._loop.call_later(RETRY, self._try_start)

    def _unwatch(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """Let the guard end: nothing is left to guard."""
        if self._retry is not None:
            self._retry.cancel()
        self._unwatch()
        self._close_stdin()
        if not self._groups:
            self._process.wait()


class ProcessGroups:
    """Ends the groups of dead workers."""

    def __init__(self, guard: Guardian) -> None:
        self._guard = guard
        self._ending: dict[int, float] = {}
        self._loop = asyncio.get_running_loop()

    def end(self, group: int) -> None:
        """Send TERM to what a dead worker left running, and KILL later."""
        if not _signal(group, signal.SIGTERM):
            self._guard.discard(group)
            return
        self._ending[group] = self._loop.time() + GROUP_GRACE
        self._loop.call_later(GROUP_GRACE, self._kill, group)

    def _kill(self, group: int) -> None:
        if self._ending.pop(group, None) is not None:
            # While the group lives its number is no new process's: that would be another.
            if not _exists(group):
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


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _signal(group: int, signum: int) -> bool:
    """Send a signal; whether a process was there to get it."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def reap_orphans(owned: Collection[int]) -> None:
    """Reap the children of this process that have ended and that nothing else waits for.

    Each is waited for by its own pid: a wait for any child would take the exit status of
    one that its owner waits for.

    Args:
        owned: Children whose owners reap them.
    """
    if not _some_have_ended():
        return
    for pid in children(os.getpid()):
        if pid not in owned:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _some_have_ended() -> bool:
    """Whether a child waits to be reaped. Without that children are not listed: in the
    portable form it takes a process, whose end would call for the next list.
    """
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        return os.waitid(os.P_ALL, 0, flags) is not None
    except (AttributeError, ChildProcessError):  # not on macOS before Python 3.13
        return False
