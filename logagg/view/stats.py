"""`logagg stats`: how many records, of which kinds, over time.

`RecordCounts` is pure and its memory bounded: a dimension has up to `MOST_VALUES` values
of its own, all others are counted as `(other)`, so totals are exact. Time is counted in
buckets that double in width whenever there would be more than `MOST_BUCKETS`.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from logagg.core.levels import number_in
from logagg.core.line import parse_line
from logagg.core.units import SECOND, span_text, wire_time
from logagg.filters.fields import lookup, present
from logagg.render import layout, markup
from logagg.render.markup import StyledText
from logagg.view import file_ranges, files
from logagg.view.files import Select

MOST_VALUES = 10_000
MOST_BUCKETS = 240
_VALUE_COLUMNS = 31
_BAR_COLUMNS = 48
_BARS = " ▁▂▃▄▅▆▇█"
OTHER = "(other)"
_STANDARD_BY = ("level", "worker", "logger", "message")

# Parts that differ between messages of one shape: numbers, identifiers, addresses.
_VARIABLE = re.compile(
    r"0x[0-9a-fA-F]+"
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
    r"|\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b"
    r"|\d+(?:[.,:]\d+)*"
)


def template(record: Mapping[str, Any]) -> str:
    """The shape of a message: its own template, or the text with `#` for numbers."""
    own = record.get("template")
    if isinstance(own, str):
        return own
    text = record.get("message")
    text = text if isinstance(text, str) else "" if text is None else str(text)
    return _VARIABLE.sub("#", text[:500].partition("\n")[0])


class _TimeSeries:
    """Counts of one value over time, by bucket."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.total = 0
        self.buckets: dict[int, int] = {}


class RecordCounts:
    """The counts of a stream.

    Attributes:
        records: How many records.
        first_ns: The oldest instant.
        last_ns: The youngest.
        width: Seconds of one bucket.
        by: For each dimension its values, and their counts over time.
        levels: The counts over time by level.
    """

    def __init__(self, by: Sequence[str] = ()) -> None:
        self.records = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.width = 1
        self.by: dict[str, dict[str, _TimeSeries]] = {n: {} for n in by or _STANDARD_BY}
        self.levels: dict[str, _TimeSeries] = {}
        self._severities: dict[str, float] = {}

    def feed(self, lines: Sequence[bytes]) -> None:
        """Count some lines."""
        for line in lines:
            record = parse_line(line)
            self.records += 1
            own = layout.instant(record)
            bucket = None if own is None else self._bucket(own)
            level = str(record.get("level", "-"))
            self._severities.setdefault(level, number_in(record) or 0)
            _add(self.levels, level, bucket)
            for name, values in self.by.items():
                _add(values, _value(record, name), bucket)

    def _bucket(self, own: int) -> int:
        first = own if self.first_ns is None else min(self.first_ns, own)
        last = own if self.last_ns is None else max(self.last_ns, own)
        self.first_ns, self.last_ns = first, last
        while last // SECOND // self.width - first // SECOND // self.width >= (
            MOST_BUCKETS
        ):
            self._widen()
        return own // SECOND // self.width

    def _widen(self) -> None:
        self.width *= 2
        for values in (self.levels, *self.by.values()):
            for series in values.values():
                merged: Counter[int] = Counter()
                for bucket, count in series.buckets.items():
                    merged[bucket // 2] += count
                series.buckets = dict(merged)

    def bounds(self) -> tuple[int, int]:
        """The first and last bucket."""
        first, last = self.first_ns or 0, self.last_ns or 0
        return first // SECOND // self.width, last // SECOND // self.width

    def severity(self, level: str) -> float:
        """The number of a level that was counted."""
        return self._severities.get(level, 0)


def _add(values: dict[str, _TimeSeries], name: str, bucket: int | None) -> None:
    series = values.get(name)
    if series is None:
        if len(values) >= MOST_VALUES:
            name = OTHER
        series = values.setdefault(name, _TimeSeries())
    series.total += 1
    if bucket is not None:
        series.buckets[bucket] = series.buckets.get(bucket, 0) + 1


def _value(record: Mapping[str, Any], name: str) -> str:
    if name in ("message", "template"):
        return template(record)
    value = lookup(record, name)
    if not present(value) or value is None:
        return "-"
    return value if isinstance(value, str) else layout.json_text(value)


def batches(path: str, select: Select, since: bytes) -> Iterator[list[bytes]]:
    """The matching lines of a file with its rotated ones, or of standard input (`-`).

    Raises:
        ConfigError: It cannot be read.
    """
    if path == "-":
        with open(0, "rb", closefd=False) as stream:
            for data in files.forward(stream):
                yield select(data)
        return
    series = files.open_series(path)
    try:
        yield from file_ranges.all_lines(series, select, since)
    finally:
        series.close()


# --- output ---


def as_json(counts: RecordCounts) -> bytes:
    """All counts as one JSON object and a newline."""
    start, end = counts.bounds()
    result = {
        "records": counts.records,
        "first": _wire(counts.first_ns),
        "last": _wire(counts.last_ns),
        "by": {
            name: {value: series.total for value, series in _ranked(values)}
            for name, values in counts.by.items()
        },
        "bucket_seconds": counts.width,
        "over_time": [
            {
                "start": wire_time(bucket * counts.width * SECOND),
                "counts": {
                    name: series.buckets[bucket]
                    for name, series in counts.levels.items()
                    if bucket in series.buckets
                },
            }
            for bucket in range(start, end + 1)
            if counts.first_ns is not None
        ],
    }
    return orjson.dumps(result)


def _wire(instant_ns: int | None) -> str | None:
    return None if instant_ns is None else wire_time(instant_ns)


def _ranked(values: Mapping[str, _TimeSeries]) -> list[tuple[str, _TimeSeries]]:
    return sorted(values.items(), key=lambda item: (-item[1].total, item[0]))


def as_segments(
    counts: RecordCounts, top: int, zone: dt.tzinfo | None
) -> list[StyledText]:
    """The tables, each with its counts over time as a row of bars."""
    shown: list[StyledText] = [("message", f"{counts.records:,} records")]
    if counts.first_ns is not None and counts.last_ns is not None:
        first = layout.local(counts.first_ns // SECOND, zone)
        last = layout.local(counts.last_ns // SECOND, zone)
        span = span_text((counts.last_ns - counts.first_ns) / SECOND)
        ends = f"{first:%Y-%m-%d %H:%M:%S} – {last:%Y-%m-%d %H:%M:%S}"
        shown.append(("", f"  {ends}  ({span})"))
    shown.append(("", "\n"))
    for name, values in counts.by.items():
        shown += _table(counts, name, values, top)
    return shown


def _table(
    counts: RecordCounts, name: str, values: Mapping[str, _TimeSeries], top: int
) -> list[StyledText]:
    title = "message shape" if name in ("message", "template") else name
    shown = [("", "\n"), *_cell("key", markup.inline(title))]
    shown += [("key", f"{'count':>12} {'%':>6}  over time"), ("", "\n")]
    ranked = _ranked(values)
    if name == "level":
        ranked.sort(key=lambda item: -counts.severity(item[0]))
    bounds = counts.bounds()
    for value, series in ranked[:top]:
        style = _style(counts, name, value)
        share = 100 * series.total / max(counts.records, 1)
        shown += _cell(style, markup.inline(value))
        shown.append(("", f"{series.total:>12,} {share:>5.1f}%  "))
        shown += [(style, bars(series.buckets, *bounds)), ("", "\n")]
    rest = ranked[top:]
    if rest:
        total = sum(series.total for _, series in rest)
        shown += _cell("dim", f"… {len(rest):,} more")
        shown += [("dim", f"{total:>12,}"), ("", "\n")]
    return shown


def _cell(style: str, text: str) -> list[StyledText]:
    """Text cut and padded to the column of values, by its width on a terminal."""
    text = markup.clip(text, _VALUE_COLUMNS)
    return [(style, text), ("", " " * (_VALUE_COLUMNS + 1 - markup.width(text)))]


def _style(counts: RecordCounts, name: str, value: str) -> str:
    if name == "level":
        return layout.level_style(counts.severity(value))
    return f"worker.{value}" if name == "worker" and value != "-" else ""


def bars(buckets: Mapping[int, int], start: int, end: int) -> str:
    """Counts over time as a row of bars, the fullest column full, no count a blank.

    Each column covers the same number of buckets; the last one, which may cover fewer,
    is scaled up. So a steady rate is a level row.
    """
    count = end - start + 1
    size = -(-count // _BAR_COLUMNS)
    columns = [0.0] * -(-count // size)
    for bucket, number in buckets.items():
        columns[(bucket - start) // size] += number
    columns[-1] *= size / (count - size * (len(columns) - 1))
    most = max(columns)
    if not most:
        return ""
    scaled = [math.ceil(number * (len(_BARS) - 1) / most) for number in columns]
    return "".join(_BARS[height] for height in scaled).rstrip()
