"""Counters of one sink: what it failed at, what was dropped, and its status.

In records, at any moment: offered + recovered + made = filtered + sampled + collapsed
+ duplicates + written + dropped + queued + spooled.
"""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any

from logagg.abc import SECRETS, Sink
from logagg.core.event import Event
from logagg.platform.terminal_text import complain

__all__ = ["Alarm", "SinkCounters", "delivery_health", "print_error"]

ALARM_INTERVAL = 10.0
_MOST_TEXT = 8192

Alarm = Callable[[str, dict[str, Any]], None]
"""Puts a message with fields into the stream."""


class SinkCounters:
    """Counts of one sink; its failures and losses are announced once an interval.

    Attributes:
        offered: Records that came, before shaping.
        written: Records written.
        bytes_written: Their length.
        retries: Writes that failed.
        duplicates: Records not written again after a consumer's death.
        error: The error of the last attempt; empty when it succeeded.
        warning: What is wrong although records are written.
        last_error: The error of the last attempt that failed.
        dropped: Records dropped, by reason.
        dropped_levels: The same by level.
    """

    def __init__(self, sink: Sink, alarm: Alarm) -> None:
        sink.alarm = lambda event, level, text: self.announce(event, text, level=level)
        self.offered = 0
        self.written = 0
        self.bytes_written = 0
        self.retries = 0
        self.duplicates = 0
        self.error = ""
        self.warning = ""
        self.last_error = ""
        self.dropped: Counter[str] = Counter()
        self.dropped_levels: Counter[str] = Counter()
        self._name = sink.url
        self._alarm = alarm
        self._quiet_until: dict[str, float] = {}

    def failed(self, error: Exception, what: str) -> None:
        """Note a failed attempt and announce it; `what` follows the sink's name."""
        self.note(error)
        self.announce(Event.SINK_ERROR, f"{what}: {error}")

    def note(self, error: BaseException) -> None:
        """Note a failed attempt without announcing it."""
        text = SECRETS.scrub(f"{type(error).__name__}: {error}"[:_MOST_TEXT])
        self.error = self.last_error = text

    def succeeded(self, warning: str) -> None:
        """Note a success, and what is wrong nevertheless; announce it when it is new."""
        self.error = ""
        if warning != self.warning:
            self.warning = warning
            if warning:
                self._quiet_until.pop(Event.SINK_ALARM, None)
                self.announce(Event.SINK_ALARM, f"needs attention: {warning}")

    def drop(self, reason: str, levels: Mapping[str, int]) -> None:
        """Count dropped records by level, and announce it."""
        self.count(reason, levels)
        self.announce(Event.DROPPED, f"dropped records: {reason}")

    def count(self, reason: str, levels: Mapping[str, int]) -> None:
        """Count dropped records without announcing it."""
        self.dropped[reason] += sum(levels.values())
        self.dropped_levels.update(levels)

    def record(self, text: str, details: dict[str, Any]) -> None:
        """Put an event of this sink into the stream."""
        self._alarm(text, {**details, "sink": self._name})

    def announce(self, event: str, what: str, **details: Any) -> None:
        """Put an event into the stream, unless the same one went there just now."""
        now = clock_gettime(CLOCK_MONOTONIC)
        if now < self._quiet_until.get(event, 0.0):
            return
        self._quiet_until[event] = now + ALARM_INTERVAL
        total = self.dropped.total()
        details |= {"event": event, "sink": self._name, "dropped": total}
        if total:
            details["dropped_levels"] = dict(self.dropped_levels)
        what = SECRETS.scrub(what[:_MOST_TEXT])
        self._alarm(f"sink {self._name} {what}", details)

    def statistics(self) -> dict[str, Any]:
        """The counters, for status and metrics."""
        return {
            "offered": self.offered,
            "duplicates": self.duplicates,
            "written": self.written,
            "bytes": self.bytes_written,
            "dropped": dict(self.dropped),
            "dropped_levels": dict(self.dropped_levels),
            "retries": self.retries,
            "error": self.error or self.warning,
            "last_error": self.last_error,
        }


def delivery_health(sink: Sink) -> dict[str, Any]:
    """The `health()` of a sink that delivers in the background, as plain values."""
    health = getattr(sink, "health", None)
    if health is None or inspect.iscoroutinefunction(health):
        return {}
    found = health()
    fields = getattr(found, "__dataclass_fields__", ())
    values = {name: getattr(found, name) for name in fields}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def print_error(error: BaseException) -> None:
    """Write an error and its traceback to stderr, without the secrets of sinks."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there is none
        complain(SECRETS.scrub(text).rstrip("\n"))
