"""What depends on the record before: rules, gaps, differences, repeats, context. Pure.

`Flow` turns records, one after the other, into segments; `Context` chooses lines
around matches. Both hold a bounded state and no clock: time is that of the records.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logagg.view import render
from logagg.view.render import Look
from logagg.view.segments import Segment
from logagg.view.times import SECOND

_RULE_WIDTH = 60
_REMEMBERED = 4_096  # pairs of worker and logger whose last fields are kept


@dataclass(frozen=True, slots=True)
class Shape:
    """What a flow adds to single records.

    Attributes:
        days: A rule with the date where the day changes (with `--time clock` only).
        today: The day that needs no rule at the start.
        gap: A rule where nothing was logged for so many seconds; None for none.
        changed: Show only fields that differ from the record before of that worker
            and logger.
        collapse: Show equal records that follow each other as one, with their number.
    """

    days: bool = True
    today: dt.date | None = None
    gap: float | None = None
    changed: bool = False
    collapse: bool = False


class Flow:
    """Records in, segments out."""

    def __init__(self, look: Look, shape: Shape) -> None:
        self.look = look
        self.shape = shape
        self._previous_ns: int | None = None
        self._day: dt.date | None = None
        self._fields: dict[tuple[Any, Any], dict[str, Any]] = {}
        self._repeated: Mapping[str, Any] | None = None
        self._key: tuple[Any, ...] = ()
        self._count = 0
        self._span: tuple[int | None, int | None] = (None, None)

    def feed(self, record: Mapping[str, Any]) -> list[Segment]:
        """The segments for the next record (none yet, while it repeats)."""
        if not self.shape.collapse:
            return self._show(record, "")
        own = render.instant(record)
        key = _template(record)
        if self._repeated is not None and key == self._key:
            self._count += 1
            self._span = (self._span[0], own)
            self._repeated = record
            return []
        shown = self.flush()
        self._repeated, self._key, self._count = record, key, 1
        self._span = (own, own)
        return shown

    def flush(self) -> list[Segment]:
        """What is held back, such as the end of a row of repeats."""
        record, self._repeated = self._repeated, None
        if record is None:
            return []
        if self._count == 1:
            return self._show(record, "")
        first, last = (
            f"{render.local(i, self.look.zone):%H:%M:%S}" if i is not None else "?"
            for i in self._span
        )
        return self._show(
            record, f"×{self._count} ({first}–{last})"
        )  # the signs that people read

    def held(self) -> bool:
        """Whether `flush` would show something."""
        return self._repeated is not None

    def mark(self, text: str) -> list[Segment]:
        """A rule with a text in it."""
        return _rule(text)

    def _show(self, record: Mapping[str, Any], repeats: str) -> list[Segment]:
        own = render.instant(record)
        shown = self._rules(own)
        same: frozenset[str] = frozenset()
        if self.shape.changed:
            same = self._unchanged(record)
        shown += render.render(
            record, self.look, previous_ns=self._previous_ns, same=same, repeats=repeats
        )
        if own is not None:
            self._previous_ns = own
        return shown

    def _rules(self, own: int | None) -> list[Segment]:
        if own is None or self.look.format not in ("pretty", "full"):
            return []
        shown: list[Segment] = []
        if self.shape.days and self.look.time == "clock":
            day = render.local(own, self.look.zone).date()
            if self._day is None and self.shape.today is None:
                self._day = day
            if day != self.shape.today if self._day is None else day > self._day:
                shown += _rule(f"{day:%A} {day.isoformat()}")
            self._day = max(day, self._day or day)
        before, least = self._previous_ns, self.shape.gap
        if least is not None and before is not None and own - before >= least * SECOND:
            clock = f"{render.local(own, self.look.zone):%H:%M:%S}"
            shown += _rule(
                f"{clock} ── {span_text((own - before) / SECOND)} of silence"
            )
        return shown

    def _unchanged(self, record: Mapping[str, Any]) -> frozenset[str]:
        key = (str(record.get("worker")), str(record.get("logger")))
        own = {k: v for k, v in record.items() if k not in render.CORE}
        before = self._fields.get(key, {})
        if len(self._fields) >= _REMEMBERED:
            self._fields.clear()
        self._fields[key] = own
        return frozenset(k for k, v in own.items() if k in before and before[k] == v)


def _template(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two records repeats: all that the reader would see, but the time."""
    error = record.get("exception")
    kind = error.get("type") if isinstance(error, Mapping) else error
    text = record.get("template", record.get("message"))
    return (record.get("level"), record.get("logger"), str(text), str(kind))


def span_text(seconds: float) -> str:
    """A duration for people: `6m 4s`, `2h 3m`, `1d 4h`."""
    whole = round(seconds)
    parts = [
        (whole // 86_400, "d"),
        (whole // 3_600 % 24, "h"),
        (whole // 60 % 60, "m"),
        (whole % 60, "s"),
    ]
    shown = [f"{number}{unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "0s"


def _rule(text: str) -> list[Segment]:
    head = f"── {text} "
    return [("rule", head + "─" * max(_RULE_WIDTH - len(head), 2)), ("", "\n")]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A line to show.

    Attributes:
        line: The line, or b"" for a break between islands.
        match: The number of the match that it is or stands around, from 1.
        context: It is shown only for what is around it.
    """

    line: bytes
    match: int
    context: bool = False


class Context:
    """Lines before and after each match, as grep's -A and -B; overlaps merge."""

    def __init__(self, before: int, after: int) -> None:
        self._before: deque[bytes] = deque(maxlen=before)
        self._after = after
        self._left = 0
        self._count = 0
        self._broken = False  # something was passed over since the last island

    def feed(
        self, lines: Sequence[bytes], matched: Sequence[bytes]
    ) -> Iterator[Chosen]:
        """The lines to show of these, given those that match (the same objects)."""
        matches = iter(matched)
        wanted = next(matches, None)
        for line in lines:
            if line is wanted:
                wanted = next(matches, None)
                self._count += 1
                if self._broken and self._count > 1:
                    yield Chosen(b"", self._count)
                for earlier in self._before:
                    yield Chosen(earlier, self._count, True)
                self._before.clear()
                self._broken = False
                self._left = self._after
                yield Chosen(line, self._count)
            elif self._left:
                self._left -= 1
                yield Chosen(line, self._count, True)
            elif self._before.maxlen:
                if len(self._before) == self._before.maxlen:
                    self._broken = True
                self._before.append(line)
            else:
                self._broken = True


def last_matches(chosen: Iterator[Chosen], count: int) -> list[Chosen]:
    """The last so many matches and what stands around them."""
    kept: deque[Chosen] = deque()
    for item in chosen:
        kept.append(item)
        while kept and kept[0].match <= item.match - count:
            kept.popleft()
    while kept and not kept[0].line:
        kept.popleft()
    return list(kept)
