"""Processes: a handle that stays on one of them, and their ties to parents.

On Linux a handle is a pidfd. The portable form checks every CHECK_INTERVAL; it is safe
for a child, whose pid is no other process's before it is reaped.
"""

from __future__ import annotations

import os
import select
import signal
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from logagg.platform.exit_status import pidfd_status
from logagg.platform.system import LINUX

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "ProcessHandle", "become_subreaper", "die_with_parent", "process_handle",
    "stack_signal",
]  # fmt: skip

CHECK_INTERVAL = 0.1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class ProcessHandle(Protocol):
    """A process, whatever becomes of its pid."""

    @property
    def status(self) -> int | None:
        """As `pidfd_status`; None in the portable form."""

    def watch(
        self, loop: asyncio.AbstractEventLoop, ended: Callable[[], object]
    ) -> None:
        """Call `ended` until `close`: once it has ended, and maybe before."""

    def send(self, signum: int) -> None:
        """Send a signal. Raises ProcessLookupError when it has gone."""

    def wait(self) -> None:
        """Block until it has ended."""

    def close(self) -> None:
        """Release the handle, once."""


class _Pidfd:
    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def status(self) -> int | None:
        return pidfd_status(self._fd)

    def watch(
        self, loop: asyncio.AbstractEventLoop, ended: Callable[[], object]
    ) -> None:
        self._loop = loop
        loop.add_reader(self._fd, ended)

    def send(self, signum: int) -> None:
        signal.pidfd_send_signal(self._fd, signum)

    def wait(self) -> None:
        select.select([self._fd], [], [])

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)


class _Checked:
    def __init__(self, pid: int) -> None:
        os.kill(pid, 0)
        self._pid = pid
        self._ended: Callable[[], object] | None = None
        self._all: set[_Checked] = set()

    status: int | None = None

    def watch(
        self, loop: asyncio.AbstractEventLoop, ended: Callable[[], object]
    ) -> None:
        self._ended = ended
        found = _watched.get(loop)
        if found is None:
            found = _watched[loop] = set()
            loop.call_later(CHECK_INTERVAL, _check_all, loop)
        self._all = found
        found.add(self)

    def check(self) -> None:
        """Call what `watch` was given, unless the handle was closed."""
        if self._ended is not None:
            self._ended()

    def send(self, signum: int) -> None:
        os.kill(self._pid, signum)

    def wait(self) -> None:
        from logagg.platform.procfs import has_ended  # only a command waits

        while not has_ended(self._pid):
            time.sleep(CHECK_INTERVAL)

    def close(self) -> None:
        self._ended = None
        self._all.discard(self)


_watched: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, set[_Checked]]
_watched = weakref.WeakKeyDictionary()
"""The processes that each loop checks, by one timer for all of them."""


def _check_all(loop: asyncio.AbstractEventLoop) -> None:
    found = _watched[loop]
    if not found:
        del _watched[loop]
        return
    loop.call_later(CHECK_INTERVAL, _check_all, loop)
    for each in found:
        loop.call_soon(each.check)  # one that raises stops no other


def process_handle(pid: int) -> ProcessHandle:
    """A handle of a running process.

    Raises:
        OSError: There is none with this pid, or no descriptor is free.
    """
    return _Pidfd(pid) if LINUX else _Checked(pid)


def become_subreaper() -> None:
    """Adopt the orphans among the descendants, as PID 1 would.

    Raises:
        OSError: The system cannot do that.
    """
    if not LINUX:
        raise OSError("orphans go to PID 1")
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signum: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send `signum` when the parent ends; end now if it has ended.

    What counts is the *thread* that started this process: the supervisor starts workers
    from the thread of its loop, which ends last. In the portable form only an end before
    this call counts.
    """
    if LINUX:
        _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _prctl(option: int, argument: int) -> None:
    import ctypes  # only supervisors and their workers need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def stack_signal() -> int:
    """The signal that makes a worker write all its stacks; programs do not use it."""
    return signal.SIGRTMAX - 1 if LINUX else signal.SIGURG
