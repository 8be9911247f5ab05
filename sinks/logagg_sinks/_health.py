"""How a network sink is, as status and metrics show it."""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass

__all__ = ["Condition", "Health", "State"]

log = logging.getLogger("logagg.network")


class State(enum.Enum):
    """How a network sink is."""

    OK = "ok"
    RETRYING = "retrying"
    """The target fails; it is tried again and again."""
    THROTTLED = "throttled"
    """The target asked us to wait."""
    SUSPENDED = "suspended"
    """The target refuses everything until somebody sees to it."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a network sink is, for status and metrics.

    Attributes:
        state: How it is.
        until: When the next attempt is made, in seconds since the epoch; 0 when it is
            not waiting.
        last_error: What failed last; it stays after the sink has recovered.
        queued_records: How many records are not delivered yet.
        queued_bytes: How many bytes that are.
        in_flight: How many records are in the request at hand.
        oldest_age: How old the first record that is not delivered is, in seconds.
    """

    state: State
    until: float
    last_error: str
    queued_records: int
    queued_bytes: int
    in_flight: int
    oldest_age: float


class Condition:
    """A sink's state; a change of it is logged, once.

    Attributes:
        state: How it is.
        until: When the next attempt is made; 0 when it is not waiting.
        last_error: What failed last.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.state = State.OK
        self.until = 0.0
        self.last_error = ""

    @property
    def failing(self) -> bool:
        """The last attempt has failed."""
        return self.state is not State.OK

    def bad(self, state: State, reason: str, until: float) -> None:
        """An attempt has failed; a suspension is an alarm."""
        before, self.state = self.state, state
        self.last_error = reason
        self.until = until
        if state is before:
            return
        if state is State.SUSPENDED:
            log.error(
                "sink %s is suspended, records are parked: %s", self._name, reason
            )
        elif before in (State.OK, State.SUSPENDED):
            log.warning("sink %s fails, records are parked: %s", self._name, reason)

    def good(self) -> None:
        """An attempt has come to an end."""
        self.until = 0.0
        if self.state is not State.OK:
            self.state = State.OK
            log.info("sink %s has recovered", self._name)
