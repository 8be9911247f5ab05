"""The signals of a process that is a run: stop, reload, scale, pause.

HUP means two things. Sent to a run it asks for a reload; sent because the terminal is
gone it ends whatever ran there. The kernel takes the terminal away before it sends the
signal, so whether there still is one makes the difference. A run that was started
with HUP ignored (`nohup`) goes on without its terminal, and is reloaded by a later HUP.

TSTP (Ctrl-Z) comes to this process only, since workers have sessions of their own: it is
passed on to them before this process stops itself, and CONT after it has gone on.

What comes when nothing handles it would end a process, or stop it for good (TTIN, TTOU):
so `logagg run` holds all of them (`hold`) for as long as it has no run that does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["RunActions", "RunSignals", "hold"]

HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGTSTP,
    signal.SIGCHLD,
)


def hold() -> None:
    """Keep the signals of a run for a run, in a process that ends with it.

    One that comes before waits for it, one that comes after changes nothing, not even in
    a thread whose mask is its own.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    for signum in HANDLED:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _nothing)


def _nothing(*_: object) -> None:
    """Do nothing; what is started from here has the default, as with any handler."""


class RunActions(NamedTuple):
    """The effects of signals.

    Attributes:
        stop: Called with the reason and the signal.
        reload: Replace the workers.
        reopen: Reopen the log files.
        scale_by: Called with 1 or -1.
        signal_workers: Send a signal to all workers and their children.
        reap: Children may have ended.
    """

    stop: Callable[[str, int], None]
    reload: Callable[[], None]
    reopen: Callable[[], None]
    scale_by: Callable[[int], None]
    signal_workers: Callable[[int], None]
    reap: Callable[[], None]


class RunSignals:
    """Handles the signals of the main thread's process, from `take` to `restore`.

    Before and after, the program's own handlers and its mask are in force.
    """

    def __init__(self, actions: RunActions) -> None:
        self._actions = actions
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Any] = {}
        self._mask: set[Any] = set()
        self._terminal = False
        self._outlives_terminal = False

    def take(self) -> None:
        """Handle signals from now on; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        actions = self._actions
        self._terminal = _has_terminal()
        self._outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handlers: tuple[Callable[[], None], ...] = (  # in the order of `HANDLED`
            lambda: actions.stop("SIGTERM", signal.SIGTERM),
            lambda: actions.stop("SIGINT", signal.SIGINT),
            self._hang_up,
            actions.reopen,
            lambda: actions.scale_by(1),
            lambda: actions.scale_by(-1),
            self._pause,
            actions.reap,
        )
        for signum, handler in zip(HANDLED, handlers, strict=True):
            self._before[signum] = signal.getsignal(signum)
            self._loop.add_signal_handler(signum, handler)
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def restore(self) -> None:
        """Leave signals to the program again, as they were before `take`."""
        if not self._before:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        for signum, before in self._before.items():
            self._loop.remove_signal_handler(signum)
            if before is not None:  # a handler that is not of Python
                signal.signal(signum, before)
        self._before.clear()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _hang_up(self) -> None:
        lost = self._terminal and not _has_terminal()
        self._terminal = self._terminal and not lost
        if not lost:
            self._actions.reload()
        elif not self._outlives_terminal:
            self._actions.stop("its terminal was closed", signal.SIGHUP)

    def _pause(self) -> None:
        self._actions.signal_workers(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._actions.signal_workers(signal.SIGCONT)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
