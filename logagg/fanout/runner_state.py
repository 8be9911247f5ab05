"""States of a sink's runner, its credit for blocking reading, its attempts. Pure.

    from                        when                                       to
    OPENING                     the target is open                         RUNNING
    RUNNING                     a write failed, policy is not `spool`      RETRYING
    RETRYING                    a write succeeded                          RUNNING
    OPENING, RUNNING, RETRYING  the credit is spent, or a write failed     SPOOLING
                                under `spool`
    OPENING, RUNNING, RETRYING  the credit is spent under `drop_…`         DROPPING
    SPOOLING, DROPPING          nothing waits any more                     RUNNING
    all of these                `close` was called                         CLOSING
    all of these                the target refused for good, or every      FAILED
                                attempt failed for `give_up` seconds
    CLOSING, FAILED             the sink is closed                         CLOSED

A change that is not in the table does not happen: a write that fails while the sink is
being closed leaves the runner CLOSING.
"""

from __future__ import annotations

import enum
import errno

from logagg.core.backoff import Backoff
from logagg.errors import SinkUnavailable

__all__ = [
    "ENDING",
    "OVERRUN",
    "Attempts",
    "BlockingCredit",
    "GaveUpError",
    "RunnerState",
    "following",
    "may_pass",
]

FIRST_RETRY = 0.1
LAST_RETRY = 5.0
CREDIT = 1.0
EARNED_PER_BYTE = 0.5e-6  # two megabytes a second


class RunnerState(enum.Enum):
    """States of a runner; see the table above."""

    OPENING = "opening"
    RUNNING = "running"
    RETRYING = "retrying"
    SPOOLING = "spooling"
    DROPPING = "dropping"
    CLOSING = "closing"
    FAILED = "failed"
    CLOSED = "closed"


_S = RunnerState
OVERRUN = (_S.SPOOLING, _S.DROPPING)
ENDING = frozenset({_S.CLOSING, _S.FAILED})
_TRANSITIONS: dict[RunnerState, frozenset[RunnerState]] = {
    _S.OPENING: frozenset({_S.RUNNING, *OVERRUN}) | ENDING,
    _S.RUNNING: frozenset({_S.RETRYING, *OVERRUN}) | ENDING,
    _S.RETRYING: frozenset({_S.RUNNING, *OVERRUN}) | ENDING,
    _S.SPOOLING: frozenset({_S.RUNNING}) | ENDING,
    _S.DROPPING: frozenset({_S.RUNNING}) | ENDING,
    _S.CLOSING: frozenset({_S.CLOSED}),
    _S.FAILED: frozenset({_S.CLOSED}),
    _S.CLOSED: frozenset(),
}


def following(state: RunnerState, wanted: RunnerState) -> RunnerState:
    """The state after a change was asked for: the wanted one if the table has it."""
    return wanted if wanted in _TRANSITIONS[state] else state


class BlockingCredit:
    """Seconds for which a full runner may block reading; bytes written earn them back.

    Times are seconds of any one monotonic clock.
    """

    def __init__(self) -> None:
        self._left = CREDIT
        self._since = 0.0

    def spend(self, now: float) -> bool:
        """Block from the last call until now; return whether some is left."""
        if self._since:
            self._left -= now - self._since
        self._since = now
        return self._left > 0

    def stop(self, now: float) -> None:
        """Block no longer."""
        if self._since:
            self._left -= now - self._since
            self._since = 0.0

    def earn(self, size_bytes: int) -> None:
        """Add for bytes written."""
        self._left = min(self._left + size_bytes * EARNED_PER_BYTE, CREDIT)

    def restore(self) -> None:
        """Begin anew: nothing waits."""
        self._left = CREDIT


_PASSING = frozenset(
    {
        errno.EAGAIN, errno.EBUSY, errno.EDQUOT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.EINTR, errno.EIO, errno.EMFILE, errno.ENETUNREACH, errno.ENFILE,
        errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT,
    }
)  # fmt: skip


def may_pass(error: OSError) -> bool:
    """Whether the same call may succeed later, though no option is changed."""
    return isinstance(error, SinkUnavailable) or error.errno in _PASSING


class GaveUpError(Exception):
    """Attempts failed for as long as the sink's options allow."""


class Attempts:
    """Failed attempts in a row: how long to wait, and when to give up.

    Args:
        give_up: Seconds after which to give up; 0 is never.
    """

    def __init__(self, give_up: float) -> None:
        self._give_up = give_up
        self._backoff = Backoff(FIRST_RETRY, LAST_RETRY)
        self._since = 0.0

    def failed(self, now: float, error: OSError, what: str) -> float:
        """Note a failure; return the seconds to wait.

        Raises:
            GaveUpError: Attempts have failed for too long.
        """
        self._since = self._since or now
        if self._give_up and now - self._since >= self._give_up:
            raise GaveUpError(f"{what} for {self._give_up:g} s: {error}")
        wait = self._backoff.failed(now)
        if isinstance(error, SinkUnavailable):
            wait = max(wait, error.retry_after or 0.0)
        return wait

    def succeeded(self) -> None:
        """Note a success: all starts anew."""
        self._backoff.reset()
        self._since = 0.0
