"""`logagg stats`: how many records, of what kind, when.

`Counts` is pure: lines in, numbers out, in bounded memory. Values of one dimension are
counted singly up to `MOST_VALUES`; what comes beyond is counted together as `(other)`,
so totals are always exact. Time is counted in buckets that double in width whenever
there would be more than `MOST_BUCKETS`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from logagg.view import files, render, segments
from logagg.view.conditions import lookup, present
from logagg.view.files import Select
from logagg.view.flow import span_text
from logagg.view.levels import STANDARD, number_in
from logagg.view.match import parse_line
from logagg.view.segments import Segment
from logagg.view.times import SECOND, wire_time

MOST_VALUES = 10_000
MOST_BUCKETS = 240
_COLUMNS = 48
_BARS = " ▁▂▃▄▅▆▇█"
OTHER = "(other)"
_STANDARD_BY = ("level", "worker", "logger", "message")

# What differs between two messages that say the same: numbers, identifiers, quotes.
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


class _Series:
    """Counts over time of one value; the bucket width is the whole's."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.total = 0
        self.buckets: dict[int, int] = {}


class Counts:
    """The counts of a stream.

    Attributes:
        records: How many records.
        first_ns: The oldest instant.
        last_ns: The youngest.
        width: Seconds of one bucket.
        by: For each dimension its values, and their counts over time.
    """

    def __init__(self, by: Sequence[str] = ()) -> None:
        self.records = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.width = 1
        self.by: dict[str, dict[str, _Series]] = {n: {} for n in by or _STANDARD_BY}
        self.levels: dict[str, _Series] = {}
        self._numbers: dict[str, float] = {}

    def feed(self, lines: Sequence[bytes]) -> None:
        """Count some lines."""
        for line in lines:
            record = parse_line(line)
            self.records += 1
            own = render.instant(record)
            bucket = None if own is None else self._bucket(own)
            level = str(record.get("level", "-"))
            self._numbers.setdefault(level, number_in(record) or 0)
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
        """The number of a level that was seen."""
        return self._numbers.get(level, 0)


def _add(values: dict[str, _Series], name: str, bucket: int | None) -> None:
    series = values.get(name)
    if series is None:
        if len(values) >= MOST_VALUES:
            name = OTHER
        series = values.setdefault(name, _Series())
    series.total += 1
    if bucket is not None:
        series.buckets[bucket] = series.buckets.get(bucket, 0) + 1


def _value(record: Mapping[str, Any], name: str) -> str:
    if name in ("message", "template"):
        return template(record)
    value = lookup(record, name)
    if not present(value) or value is None:
        return "-"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


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
        yield from files.all_lines(series, select, since)
    finally:
        series.close()


# --- showing ---


def as_json(counts: Counts) -> bytes:
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
    return orjson.dumps(result) + b"\n"


def _wire(instant_ns: int | None) -> str | None:
    return None if instant_ns is None else wire_time(instant_ns)


def _ranked(values: Mapping[str, _Series]) -> list[tuple[str, _Series]]:
    return sorted(values.items(), key=lambda item: (-item[1].total, item[0]))


def as_segments(counts: Counts, top: int, zone: dt.tzinfo | None) -> list[Segment]:
    """The tables, each with its counts over time as a line of bars."""
    shown: list[Segment] = [("message", f"{counts.records:,} records")]
    if counts.first_ns is not None and counts.last_ns is not None:
        first, last = (
            render.local(instant, zone) for instant in (counts.first_ns, counts.last_ns)
        )
        span = span_text((counts.last_ns - counts.first_ns) / SECOND)
        ends = f"{first:%Y-%m-%d %H:%M:%S} – {last:%Y-%m-%d %H:%M:%S}"
        shown.append(("", f"  {ends}  ({span})"))
    shown.append(("", "\n"))
    for name, values in counts.by.items():
        shown += _table(counts, name, values, top)
    return shown


def _table(
    counts: Counts, name: str, values: Mapping[str, _Series], top: int
) -> list[Segment]:
    title = "message shape" if name in ("message", "template") else name
    shown: list[Segment] = [("", "\n"), ("key", f"{segments.inline(title):<32}")]
    shown += [("key", f"{'count':>12} {'%':>6}  over time"), ("", "\n")]
    ranked = _ranked(values)
    if name == "level":
        ranked.sort(key=lambda item: -counts.severity(item[0]))
    for value, series in ranked[:top]:
        text = segments.inline(value)
        if len(text) > 31:
            text = text[:15] + "…" + text[-15:]
        style = _style(counts, name, value)
        shown.append((style, text))
        shown.append(("", " " * max(32 - segments.width(text), 1)))
        share = 100 * series.total / max(counts.records, 1)
        shown.append(("", f"{series.total:>12,} {share:>5.1f}%  "))
        shown += [(style, _bars(counts, series)), ("", "\n")]
    rest = ranked[top:]
    if rest:
        total = sum(series.total for _, series in rest)
        shown += [("dim", f"{f'… {len(rest):,} more':<32}{total:>12,}"), ("", "\n")]
    return shown


def _style(counts: Counts, name: str, value: str) -> str:
    if name == "level":
        number = counts.severity(value)
        known = [n for n, least in STANDARD.items() if number >= least]
        return f"level.{known[-1]}" if known else "level.debug"
    return f"worker.{value}" if name == "worker" and value != "-" else ""


def _bars(counts: Counts, series: _Series) -> str:
    """Counts over the whole time, the fullest column full, no count a blank."""
    start, end = counts.bounds()
    width = min(end - start + 1, _COLUMNS)
    columns = [0] * width
    for bucket, count in series.buckets.items():
        columns[(bucket - start) * width // (end - start + 1)] += count
    most = max(columns, default=0)
    if not most:
        return ""
    return "".join(_BARS[-(-count * 8 // most)] for count in columns).rstrip()
