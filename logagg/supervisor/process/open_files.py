"""The places of descriptors and their limit.

Imported by the worker's start as well as by the supervisor, so it must stay small.
"""

from __future__ import annotations

import fcntl
import os
import resource

__all__ = [
    "allow_open_files", "limit_open_files", "open_files", "place_listeners",
]  # fmt: skip


def open_files() -> tuple[int, int]:
    """The limit of open files: now, and at most."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def allow_open_files() -> int:
    """Raise the limit of open files as far as allowed; return the old one.

    A supervisor needs five for each worker. The usual limit of 1024 protects programs
    that use `select`, which workers may do: they get it back (`limit_open_files`).
    """
    soft, most = open_files()
    limit_open_files(most)
    return soft


def limit_open_files(count: int) -> None:
    """Set the limit of open files."""
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
    free = 3 + len(fds)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in fds + others]
    for fd in fds + others:
        os.close(fd)
    for index, fd in enumerate(moved[: len(fds)]):
        os.dup2(fd, 3 + index, inheritable=False)
        os.close(fd)
    return list(range(3, free)), moved[len(fds) :]
