"""Descriptors of a process: those of its own, and how many a consumer leaves free.

Theory of operation
-------------------
The application that a worker lives in may close any number (daemonizing libraries close
all from 3 on) and then open a file of its own, which gets the same number. So an
`OwnDescriptor` knows what it was opened on: before it is used for more than a log call,
and before it is closed, device and inode are compared. It has a high number, which no
file gets that is opened later, until hundreds are open.

A forked child inherits every descriptor, also one that another thread was about to use.
Held there, a lock stays locked and a connection or a listening socket alive for as long
as the child lives. So every `OwnDescriptor` is closed in a forked child, and while
`no_fork` is held no fork begins: descriptors are opened and noted under it.

A consumer's client needs several descriptors at once, and the kernel passes those of a
hello only as far as there is room. So connections are accepted only while all of what
they bring fits (`DescriptorBudget`), and the rest of the limit stays for the consumer
itself: rotation, spools, segments, its end. Clients beyond that wait in the socket's
queue; what they log is in their pipes.
"""

from __future__ import annotations

import fcntl
import os
from threading import RLock

from logagg.errors import ConfigError

__all__ = [
    "CLIENT_DESCRIPTORS", "LEAST", "DescriptorBudget", "OwnDescriptor", "check_limit",
    "close_inherited", "free_descriptors", "most_clients", "no_fork", "set_limits",
]  # fmt: skip

FORK_WAIT = 1.0
"""So long a fork waits for a thread that is about to open descriptors, in seconds."""

_HIGHEST = 1024  # a usual limit, and as far as `select` reaches

no_fork = RLock()
_owned: set[OwnDescriptor] = set()


class OwnDescriptor:
    """A descriptor of this process, closed in its forked children.

    Make one with `no_fork` held, from a number that was opened with it held.

    Args:
        number: The descriptor as it was opened.
        high: Whether to give it a high number, as far as there is a free one.

    Attributes:
        number: Its number, -1 when it is closed.
    """

    __slots__ = ("_identity", "number")

    def __init__(self, number: int, *, high: bool = True) -> None:
        self.number = _raised(number) if high else number
        self._identity = _identity(self.number)
        _owned.add(self)

    @property
    def is_own(self) -> bool:
        """Whether its number still leads to what it was opened on."""
        try:
            return self.number >= 0 and _identity(self.number) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Close it, unless its number is the application's by now. May be repeated."""
        held = no_fork.acquire(timeout=FORK_WAIT)  # a child would keep it for life
        try:
            is_own, number = self.is_own, self.number
            self.number = -1
            _owned.discard(self)
            if is_own:
                os.close(number)
        finally:
            if held:
                no_fork.release()

    def forget(self) -> None:
        """Leave it to the object that it was taken from, in children too."""
        self.number = -1
        _owned.discard(self)


def _identity(number: int) -> tuple[int, int]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino


def _raised(number: int) -> int:
    limit = os.sysconf("SC_OPEN_MAX")
    most = min(limit, _HIGHEST) if limit > 0 else _HIGHEST
    try:
        raised = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, most * 3 // 4)
    except OSError:  # none is free up there
        return number
    os.close(number)
    return raised


def close_inherited() -> None:
    """In a forked child: close the parent's. The hook does it, where hooks run."""
    for each in list(_owned):
        each.close()


_waits = False


def _before_fork() -> None:
    global _waits
    _waits = no_fork.acquire(timeout=FORK_WAIT)


def _after_fork() -> None:
    if _waits:
        no_fork.release()


def _after_fork_in_child() -> None:
    if not _waits:  # a thread holds it that does not exist here
        no_fork._at_fork_reinit()  # type: ignore[attr-defined] # as logging does
    close_inherited()
    if _waits:
        no_fork.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork,
    after_in_child=_after_fork_in_child,
)


# ---- a consumer's budget -----------------------------------------------------------

CLIENT_DESCRIPTORS = 5
"""A worker's connection, its pipe, stdout and stderr, and its kept records."""

LEAST = 32
"""Open files of a consumer with one client and a few sinks."""

MAX_RESERVE = 32
"""Kept free for the consumer's own work; of a low limit a quarter."""


class DescriptorBudget:
    """Count of how many clients may still be accepted."""

    def __init__(self) -> None:
        self._clients = 0

    def take(self, expected: int) -> bool:
        """Reserve the descriptors of one client; False when they may not be free.

        The open ones are counted only when what the last count allowed is used up.

        Args:
            expected: How many clients are accepted whose descriptors are still to come.
        """
        if self._clients <= 0:
            self._clients = free_descriptors() // CLIENT_DESCRIPTORS - expected
        self._clients -= 1
        return self._clients >= 0


def check_limit() -> int:
    """How many files the system allows this process to open.

    Raises:
        ConfigError: These are too few for a consumer.
    """
    import resource  # only a consumer needs it, and a worker with a low limit

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < LEAST:
        raise ConfigError(
            f"a consumer needs {LEAST} open files and may have {most}: raise the limit "
            "(ulimit -n, LimitNOFILE=)"
        )
    return most


def set_limits() -> None:
    """Let a consumer open as many files as the system allows, and leave no core dump.

    A dump would have the texts of all processes' records, and the secrets of sinks.

    Raises:
        ConfigError: As `check_limit`.
    """
    import resource  # as above

    most = check_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _, most_core = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most_core))


def most_clients(users: int) -> int:
    """How many clients one of so many other users may have: half are for them all."""
    import resource  # as above

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, limit // 2 // CLIENT_DESCRIPTORS // users)


def free_descriptors() -> int:
    """How many descriptors clients may use now; below 0 the reserve is in use."""
    import resource  # as above

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/dev/fd"))
    except FileNotFoundError:  # no /proc: the lowest free number is close to it
        used = os.dup(0)
        os.close(used)
    except OSError:
        return 0
    return limit - used - min(MAX_RESERVE, limit // 4)
