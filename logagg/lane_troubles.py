"""What a sink could not do: counted, and told in the stream once an interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any

__all__ = ["Alarm", "Troubles"]

ALARM_INTERVAL = 10.0

Alarm = Callable[[str, dict[str, Any]], None]
"""Puts a message with fields into the stream."""


class Troubles:
    """The failures and losses of one sink.

    Attributes:
        error: What the last failed try said; empty when the last one succeeded.
        last_error: What the last failure said, for good.
        dropped: Records dropped, by reason.
        dropped_levels: The same by level.
    """

    def __init__(self, name: str, alarm: Alarm) -> None:
        self.error = ""
        self.last_error = ""
        self.dropped: Counter[str] = Counter()
        self.dropped_levels: Counter[str] = Counter()
        self._name = name
        self._alarm = alarm
        self._quiet_until: dict[str, float] = {}

    def failed(self, error: Exception, what: str) -> None:
        """A try failed; `what` it was is said behind the sink's name."""
        self.note(error)
        self.tell("sink_error", f"{what}: {error}")

    def note(self, error: Exception) -> None:
        """A try failed, and that is told otherwise."""
        self.error = self.last_error = f"{type(error).__name__}: {error}"

    def drop(self, reason: str, levels: Mapping[str, int]) -> None:
        """So many records of each level are dropped."""
        self.count(reason, levels)
        self.tell("dropped", f"dropped records: {reason}")

    def count(self, reason: str, levels: Mapping[str, int]) -> None:
        """The same, when nobody can be told any more."""
        self.dropped[reason] += sum(levels.values())
        self.dropped_levels.update(levels)

    def tell(self, event: str, what: str) -> None:
        """Tell what the sink does or cannot do, unless that event was told just now."""
        now = clock_gettime(CLOCK_MONOTONIC)
        if now < self._quiet_until.get(event, 0.0):
            return
        self._quiet_until[event] = now + ALARM_INTERVAL
        total = self.dropped.total()
        details: dict[str, Any] = {"event": event, "sink": self._name, "dropped": total}
        if total:
            details["dropped_levels"] = dict(self.dropped_levels)
        self._alarm(f"sink {self._name} {what}", details)
