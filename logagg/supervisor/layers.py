"""The kernel's help: prctl against orphans, descriptors, their limit. Linux only.

Imported by the worker's start as well as by the supervisor, so it must stay small.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

__all__ = [
    "allow_open_files", "become_subreaper", "die_with_parent", "limit_open_files",
    "open_files", "place_listeners",
]  # fmt: skip

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def become_subreaper() -> None:
    """Get the orphans among the workers' children as own children, as PID 1 would."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signum: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send `signum` when the parent ends; end now if it has ended.

    The kernel looks at the *thread* that started this process; the supervisor starts
    workers from the thread that its loop runs in, which ends last.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def open_files() -> tuple[int, int]:
    """How many files this process may have open: now, and at most."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def allow_open_files() -> int:
    """Let this process open as many files as it may; return the limit before.

    A supervisor needs five for each worker; the usual limit of 1024 is for programs that
    use `select`, which workers may be: they get it back (`limit_open_files`).
    """
    soft, most = open_files()
    limit_open_files(most)
    return soft


def limit_open_files(count: int) -> None:
    """Let this process open so many files."""
    _, most = open_files()
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))


def place_listeners(fds: list[int], others: list[int]) -> tuple[list[int], list[int]]:
    """Move descriptors so that the listeners stand at 3, 4, … as systemd passes them.

    Args:
        fds: The listeners, in order.
        others: Further descriptors to keep; they are moved out of the way.

    Returns:
        The new numbers of both, all marked close-on-exec.
    """
    import fcntl

    free = 3 + len(fds)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in fds + others]
    for fd in fds + others:
        os.close(fd)
    for index, fd in enumerate(moved[: len(fds)]):
        os.dup2(fd, 3 + index, inheritable=False)
        os.close(fd)
    return list(range(3, free)), moved[len(fds) :]
