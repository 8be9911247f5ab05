"""How a network sink is, as status and metrics show it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Health", "State"]


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
