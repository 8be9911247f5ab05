"""Forks and ends of the process that a worker lives in.

A *cell* holds a number that is 0 again in a forked child, however it was forked. A hook
of `os.register_at_fork` runs for `os.fork` only, and after those that were registered
before it; a fork in C code runs none. So what a process knows of itself (its pid, that
its pipe is its own) stands in a page of memory that the kernel clears in each child
(MADV_WIPEONFORK, Linux 4.14): to read it costs 30 ns, a system call ten times that.

Where the kernel cannot do it, a cell compares the pid at each reading.

At the end of an interpreter other threads freeze (`ExitLock`), and a child that
multiprocessing has forked ends without exit handlers (`close_with_multiprocessing`).
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol, cast

from logagg.platform.system import wipe_on_fork

__all__ = [
    "Cell", "ExitLock", "close_with_multiprocessing", "current_pid", "pid_cell",
    "wiped_cell",
]  # fmt: skip

_CELLS = mmap.PAGESIZE // 8


class Cell(Protocol):
    """One number, `cell[0]`."""

    def __getitem__(self, index: int, /) -> Any:
        """The number; 0 in a forked child until it is set there."""

    def __setitem__(self, index: int, number: float, /) -> None: ...


class _CheckedCell:
    """A cell where pages cannot be wiped."""

    def __init__(self) -> None:
        self._number = 0.0
        self._pid = os.getpid()

    def __getitem__(self, index: int) -> float:
        return self._number if self._pid == os.getpid() else 0.0

    def __setitem__(self, index: int, number: float) -> None:
        self._number = number
        self._pid = os.getpid()


_page: memoryview | None = None
_used = 0


def wiped_cell(form: str = "d") -> Cell:
    """A new cell, which is 0.

    Args:
        form: Whether it holds a float (`d`) or an integer.
    """
    global _page, _used
    if _page is None or _used == _CELLS:
        _page, _used = _wiped_page(), 0
    if _page is None:
        return _CheckedCell()
    _used += 1
    return cast("Cell", _page[8 * (_used - 1) : 8 * _used].cast(cast("Any", form)))


def _wiped_page() -> memoryview | None:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        wipe_on_fork(page)
    except (AttributeError, OSError, ValueError):
        return None
    return memoryview(page)


pid_cell = wiped_cell("q")
"""The pid of this process, or 0: `pid_cell[0] or current_pid()`."""


def current_pid() -> int:
    """The pid of this process; written into `pid_cell`."""
    pid = os.getpid()
    pid_cell[0] = pid
    return pid


current_pid()


# ---- the end ------------------------------------------------------------------------


class ExitLock:
    """The lock of a transport while the interpreter ends.

    At its end threads other than the main one stop where they next need it, and keep
    their locks: then the lock is taken away from them.

    Args:
        lock: The lock so far, an RLock.
        seize: Called when it was taken away; what it guarded may be unfinished.
    """

    def __init__(self, lock: Any, seize: Callable[[], None]) -> None:
        self._lock = lock
        self._seize = seize
        self._is_ending = sys.is_finalizing  # a module's names may vanish at the end

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=0.05):
            if self._is_ending():
                self._lock._at_fork_reinit()
                self._seize()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


_finalizers: dict[str, Any] = {}


def close_with_multiprocessing(close: Callable[[], None]) -> None:
    """Have a child of multiprocessing call this at its end: it runs no exit handlers.

    To be repeated: at its begin a child forgets what was registered before.
    """
    for package in ("multiprocessing", "billiard", "multiprocess"):
        process = sys.modules.get(f"{package}.process")
        util = sys.modules.get(f"{package}.util")
        if process is None or util is None:
            continue
        if type(process.current_process()).__name__ == "_MainProcess":
            continue
        known = _finalizers.get(package)
        if known is None or not known.still_active():
            _finalizers[package] = util.Finalize(None, close, exitpriority=-100)
