"""Condition of a network sink: its state, and the alarms at each change of it."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass

from logagg.abc import SECRETS
from logagg.wireformat import Event

__all__ = ["Health", "Refusals", "SinkCondition", "SinkState"]

log = logging.getLogger("logagg.network")


class SinkState(enum.Enum):
    """States of a network sink."""

    OK = "ok"
    RETRYING = "retrying"
    """The target fails and is retried."""
    THROTTLED = "throttled"
    """The target asked for a pause."""
    SUSPENDED = "suspended"
    """The target refuses everything until a person repairs it."""


@dataclass(frozen=True, slots=True)
class Health:
    """Condition of a network sink, for status and metrics.

    Attributes:
        state: Its state.
        until: When the next attempt is made, in seconds since the epoch; 0 when it is
            not waiting.
        last_error: The last error; it stays after the sink has recovered.
        queued_records: How many records are not delivered yet.
        queued_bytes: How many bytes that are.
        in_flight: How many records are in the request at hand.
        oldest_age: How old the first record that is not delivered is, in seconds.
    """

    state: SinkState
    until: float
    last_error: str
    queued_records: int
    queued_bytes: int
    in_flight: int
    oldest_age: float


Announce = Callable[[Event, str, str], None]
"""Puts an event into the stream: its kind, its level, the text after the sink's name."""


class SinkCondition:
    """A sink's state; each change of it is announced once.

    Args:
        name: The sink, for messages on stderr.
        announce: Puts an event into the stream.

    Attributes:
        state: Its state.
        until: The time of the next attempt; 0 when it is not waiting.
        last_error: The last error.
    """

    def __init__(self, name: str, announce: Announce) -> None:
        self._name = name
        self._announce = announce
        self.state = SinkState.OK
        self.until = 0.0
        self.last_error = ""

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self.state is not SinkState.OK

    def bad(self, state: SinkState, reason: str, until: float) -> None:
        """Note a failed attempt; a suspension is announced as an error."""
        before, self.state = self.state, state
        reason = SECRETS.scrub(reason)
        self.last_error = reason
        self.until = until
        if state is before:
            return
        if state is SinkState.SUSPENDED:
            text = f"is suspended, records are spooled: {reason}"
            log.error("sink %s %s", self._name, text)
            self._announce(Event.SINK_SUSPENDED, "error", text)
        elif before in (SinkState.OK, SinkState.SUSPENDED):
            text = f"fails, records are spooled: {reason}"
            log.warning("sink %s %s", self._name, text)
            self._announce(Event.SINK_ERROR, "warning", text)

    def warn(self, text: str) -> None:
        """Announce something that is no failure of an attempt."""
        text = SECRETS.scrub(text)
        log.warning("sink %s %s", self._name, text)
        self._announce(Event.SINK_ERROR, "warning", text)

    def good(self) -> None:
        """Note an attempt with a final outcome."""
        self.until = 0.0
        if self.state is not SinkState.OK:
            self.state = SinkState.OK
            log.info("sink %s has recovered", self._name)
            self._announce(Event.SINK_RECOVERED, "info", "has recovered")


class Refusals:
    """Records refused one after the other, without one that was taken among them.

    A few bad records are dead letters. When every record is refused, the records are not
    what is wrong, and a stream of dead letters would be a stream that is lost.
    """

    def __init__(self) -> None:
        self._row = 0

    def taken(self) -> None:
        """A record was taken."""
        self._row = 0

    def refused(self, records: int) -> None:
        """Records became dead letters."""
        self._row += records

    def exhaust(self) -> None:
        """So many were refused at once that any further one is too many."""
        self._row = _MOST_IN_A_ROW

    def suspicious(self, records: int) -> bool:
        """Whether so many more would be too many."""
        return self._row + records > _MOST_IN_A_ROW


_MOST_IN_A_ROW = 10
