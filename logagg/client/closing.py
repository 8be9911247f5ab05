"""The transports of a process, and their closing: one time limit for all together.

`dictConfig` closes all handlers, `logging.shutdown` too, and the exit; each close may
have to wait for another consumer. Together they wait CLOSE_TIMEOUT: each asks all
transports to flush, and then waits for its own as long as something is left. No lock is
held during a wait, but where the caller holds one: `dictConfig` and `basicConfig` hold
logging's own, on which any thread may have to wait. There hardly any time is spent: a
transport that is not flushed by then stays attached, in `leaving`, and closes as soon as
it is, at a later record, or another handler's begin or end.
"""

from __future__ import annotations

import atexit
import logging
import os
from contextlib import suppress
from time import CLOCK_MONOTONIC, clock_gettime
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from logagg.core.backoff import WaitBudget

if TYPE_CHECKING:
    from logagg.client.attachment import Destination

__all__ = [
    "CLOSE_TIMEOUT", "close_all", "close_leaving", "close_path", "ended", "forget",
    "forked", "in_use", "known", "leave", "leaving",
]  # fmt: skip

CLOSE_TIMEOUT = 5.0
_MOST_ENDED = 1000
_GRACE = 0.05  # for one whose turn comes when the budget is spent
_in_all = WaitBudget(0.9 * CLOSE_TIMEOUT)
_under_logging_lock = WaitBudget(0.2)


class Closable(Protocol):
    """A `logagg.client.transport.Transport`."""

    users: int
    seq: int
    last: int
    destination: Destination

    def request_flush(self) -> None:
        """Ask the consumer for an answer to come; never waits."""

    def flush(self, timeout: float | None) -> bool:
        """Wait for that answer."""

    def close(self, timeout: float, *, at_exit: bool = False) -> bool:
        """Flush and release everything."""

    def close_if_flushed(self) -> bool:
        """Close where that takes no wait."""

    def forked(self) -> None:
        """In a forked child: release what is the parent's."""

    def prepare_exit(self) -> None:
        """From now on threads may stop for ever."""


in_use: dict[str, Closable] = {}
"""By address, those that have handlers or are attached."""

known: WeakValueDictionary[str, Closable] = WeakValueDictionary()
"""By address, all that a handler may still use."""

ended: dict[str, tuple[int, int]] = {}
"""By address, the newest seq and stamp of those that were closed."""

leaving: list[Closable] = []
"""Those that no handler uses and that are not flushed yet."""


def forget(closed: Closable) -> None:
    """Drop a transport that no handler uses; its numbers go on in the next one."""
    if closed.users > 0:
        return
    path = closed.destination.path
    if closed.seq:
        ended[path] = (closed.seq, closed.last)
    while len(ended) > _MOST_ENDED:
        del ended[next(iter(ended))]
    in_use.pop(path, None)


def leave(found: Closable) -> None:
    """Flush a transport for one handler, and close it after the last.

    Blocks for what is left of CLOSE_TIMEOUT at most.
    """
    found.users -= 1
    for each in list(in_use.values()):
        each.request_flush()
    locked = logging._lock._is_owned()  # type: ignore[attr-defined] # an RLock
    budget = _under_logging_lock if locked else _in_all
    start = clock_gettime(CLOCK_MONOTONIC)
    timeout = max(budget.left(start), _GRACE)
    if found.users > 0:
        found.flush(timeout)
    elif not locked:
        found.close(timeout)
    elif found.flush(timeout):
        found.close(0)
    else:
        leaving.append(found)
    budget.spend(start, clock_gettime(CLOCK_MONOTONIC))


def close_leaving() -> None:
    """Close those that are flushed by now. Does not wait."""
    for each in list(leaving):
        if each.users > 0 or each.close_if_flushed():
            with suppress(ValueError):  # another thread was faster
                leaving.remove(each)


def close_path(path: str, timeout: float) -> None:
    """Flush and close the transport to an address, if this process has one."""
    found = in_use.get(path)
    if found is not None:
        found.close(timeout)


def close_all() -> None:
    """Close all transports at the exit of the process."""
    everyone = list(in_use.values())
    for each in everyone:
        each.request_flush()
    for each in everyone:
        start = clock_gettime(CLOCK_MONOTONIC)
        each.close(max(_in_all.left(start), _GRACE), at_exit=True)
        _in_all.spend(start, clock_gettime(CLOCK_MONOTONIC))


def forked() -> None:
    """In a forked child: let all transports begin anew."""
    ended.clear()
    for each in [*in_use.values(), *known.values()]:
        each.forked()


def _at_exit() -> None:
    for each in [*in_use.values(), *known.values()]:
        each.prepare_exit()
    close_all()


os.register_at_fork(after_in_child=forked)
atexit.register(_at_exit)
