"""Records in a row as styled text: rules, gaps, differences, repeats. Pure.

The only state is what the next record is compared with, and it is bounded. There is no
clock: time is that of the records.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from logagg.core.units import SECOND, span_text
from logagg.render import layout
from logagg.render.layout import LayoutOptions
from logagg.render.markup import StyledText

TERMINAL_GAP = 60.0
"""Seconds without a record from which a rule is shown on a terminal."""

_RULE_WIDTH = 60
_MOST_TAG_COLUMNS = 20
_REMEMBERED = 4_096  # pairs of worker and logger whose last fields are kept


class Renderer:
    """Renderer of the records of one stream, in their order."""

    def __init__(self, options: LayoutOptions) -> None:
        self.options = options
        self._previous_ns: int | None = None
        self._day: dt.date | None = None
        self._fields: dict[tuple[str, str], dict[str, Any]] = {}
        self._repeated: Mapping[str, Any] | None = None
        self._key: tuple[Any, ...] = ()
        self._count = 0
        self._span: tuple[int | None, int | None] = (None, None)
        self._tag_columns = layout.TAG_COLUMNS

    def feed(self, record: Mapping[str, Any]) -> list[StyledText]:
        """Render the next record (later, while it repeats the one before)."""
        if not self.options.collapse:
            return self._render(record, "")
        own = layout.instant(record)
        key = _repeat_key(record)
        if self._repeated is not None and key == self._key:
            self._count += 1
            self._span = (self._span[0], own)
            self._repeated = record
            return []
        shown = self.flush()
        self._repeated, self._key, self._count = record, key, 1
        self._span = (own, own)
        return shown

    def flush(self) -> list[StyledText]:
        """Render the repeats that are held back."""
        record, self._repeated = self._repeated, None
        if record is None:
            return []
        if self._count == 1:
            return self._render(record, "")
        first, last = (self._clock(i) if i is not None else "?" for i in self._span)
        return self._render(record, f"×{self._count} ({first}–{last})")

    def _clock(self, instant_ns: int) -> str:
        return f"{layout.local(instant_ns // SECOND, self.options.zone):%H:%M:%S}"

    def _render(self, record: Mapping[str, Any], repeats: str) -> list[StyledText]:
        own = layout.instant(record)
        options = self.options
        shown: list[StyledText] = []
        if own is not None and options.format in ("pretty", "full"):
            shown = self._rules(own)
        shown += layout.render(
            record,
            options,
            previous_ns=self._previous_ns,
            unchanged=self._unchanged(record) if options.changed else frozenset(),
            repeats=repeats,
            tag_columns=self._widened(record),
        )
        if own is not None:
            self._previous_ns = own
        return shown

    def _widened(self, record: Mapping[str, Any]) -> int:
        """The width of the worker's column: that of the widest so far, within reason."""
        own = min(layout.tag_columns(record), _MOST_TAG_COLUMNS)
        self._tag_columns = max(self._tag_columns, own)
        return self._tag_columns

    def _rules(self, own: int) -> list[StyledText]:
        shown: list[StyledText] = []
        options, before = self.options, self._previous_ns
        if options.time == "clock":
            day = layout.local(own // SECOND, options.zone).date()
            if self._day is None and options.today is None:
                self._day = day
            if day != options.today if self._day is None else day > self._day:
                shown += rule(f"{day:%A} {day.isoformat()}")
            self._day = max(day, self._day or day)
        gap = (own - before) / SECOND if before is not None else 0.0
        if options.gap is not None and before is not None and gap >= options.gap:
            shown += rule(f"{self._clock(own)} ── {span_text(gap)} of silence")
        return shown

    def _unchanged(self, record: Mapping[str, Any]) -> frozenset[str]:
        key = (str(record.get("worker")), str(record.get("logger")))
        own = {k: v for k, v in record.items() if k not in layout.CORE}
        before = self._fields.get(key, {})
        if len(self._fields) >= _REMEMBERED:
            self._fields.clear()
        self._fields[key] = own
        return frozenset(k for k, v in own.items() if k in before and before[k] == v)


def _repeat_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Records with the same key are repeats: all that is shown, but for the time."""
    error = record.get("exception")
    kind = error.get("type") if isinstance(error, Mapping) else error
    text = record.get("template", record.get("message"))
    return (record.get("level"), record.get("logger"), str(text), str(kind))


def rule(text: str) -> list[StyledText]:
    """A horizontal rule with a text in it."""
    head = f"── {text} "
    return [("rule", head + "─" * max(_RULE_WIDTH - len(head), 2)), ("", "\n")]
