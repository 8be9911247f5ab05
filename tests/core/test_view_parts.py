"""The small pure parts of viewing: times, other programs' lines, cursors, context."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg.core.units import (
    SECOND,
    iso_ns,
    parse_instant,
    span_text,
    wire_time,
)
from logagg.dialects.foreign import conversion
from logagg.errors import ConfigError
from logagg.filters import matcher
from logagg.render import layout, markup
from logagg.render.markup import paint
from logagg.render.renderer import Renderer
from logagg.view.last_lines import Newest
from logagg.view.sources import Cursor
from logagg.view.stats import RecordCounts, as_segments, bars, template
from logagg.view.tail import Context, last_matches
from logagg.view.top import tables

NOW = 1_795_615_387_512_345_678  # 2026-11-25T14:03:07.512345678Z


@given(st.integers(-62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1))
def test_an_instant_survives_being_written(instant: int) -> None:
    """Every nanosecond of the years 1 to 9999 is read back as it was."""
    text = wire_time(instant)

    assert len(text) == 30
    assert iso_ns(text) == instant


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        (
            "2026-11-25",
            "2026-11-25T00:00:00.000000000Z",
            "2026-11-25T23:59:59.999999999Z",
        ),
        ("today", "2026-11-25T00:00:00.000000000Z", "2026-11-25T23:59:59.999999999Z"),
        (
            "yesterday",
            "2026-11-24T00:00:00.000000000Z",
            "2026-11-24T23:59:59.999999999Z",
        ),
        ("13:05", "2026-11-25T13:05:00.000000000Z", "2026-11-25T13:05:59.999999999Z"),
        (
            "13:05:07",
            "2026-11-25T13:05:07.000000000Z",
            "2026-11-25T13:05:07.999999999Z",
        ),
        ("10m", "2026-11-25T13:53:07.512345678Z", "2026-11-25T13:53:07.512345678Z"),
        ("1h30m", "2026-11-25T12:33:07.512345678Z", "2026-11-25T12:33:07.512345678Z"),
        (
            "2026-11-25T10:00:00+05:30",
            "2026-11-25T04:30:00.000000000Z",
            "2026-11-25T04:30:00.999999999Z",
        ),
        (
            "2026-11-25 10:00:00.25",
            "2026-11-25T10:00:00.250000000Z",
            "2026-11-25T10:00:00.259999999Z",
        ),
        ("now", "2026-11-25T14:03:07.512345678Z", "2026-11-25T14:03:07.512345678Z"),
    ],
)
def test_a_time_is_read_as_people_write_it(text: str, start: str, end: str) -> None:
    """As the beginning of a range, and, being inclusive, as its end."""
    assert wire_time(parse_instant(text, NOW, zone=dt.UTC)) == start
    assert wire_time(parse_instant(text, NOW, zone=dt.UTC, end=True)) == end


@pytest.mark.parametrize("text", ["", "soon", "25:00", "2026-13-01", "5 parsecs"])
def test_a_bad_time_is_refused(text: str) -> None:
    """The message says what would be a time."""
    with pytest.raises(ConfigError, match="expected a date-time"):
        parse_instant(text, NOW)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            {"ts": 1795615387, "msg": "m"},
            {"timestamp": wire_time(NOW)[:20] + "0" * 9 + "Z"},
        ),
        ({"time": "2026-11-25T14:03:07Z", "severity": "WARN"}, {"level": "warning"}),
        ({"level": "notice", "event": "e"}, {"level_number": 25, "message": "e"}),
        (
            {"level": 30, "time": 1, "msg": "m", "hostname": "h"},
            {"level": "info", "message": "m"},
        ),
        ({"level": 30, "message": "m"}, {"level": "warning"}),
        (
            {"name": "a.b", "levelname": "CRITICAL"},
            {"logger": "a.b", "level": "critical"},
        ),
        (
            {"message": "m", "exc_info": "Traceback\n  x\nKeyError: 'a'"},
            {
                "exception": {
                    "type": "KeyError",
                    "message": "'a'",
                    "stack": "Traceback\n  x\nKeyError: 'a'",
                }
            },
        ),
        (
            {"err": {"name": "TypeError", "message": "no", "stack": "s"}},
            {"exception": {"type": "TypeError", "message": "no", "stack": "s"}},
        ),
        ({"message": "ours", "msg": "theirs"}, {"message": "ours", "msg": "theirs"}),
        ({"error": "plain text"}, {"error": "plain text"}),
    ],
)
def test_other_programs_fields_come_under_our_names(
    line: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Names and values are adopted; what is ours already wins; the rest stays."""
    found = orjson.loads(conversion.convert(json.dumps(line).encode()))

    assert {key: found.get(key) for key in expected} == expected


@given(st.binary(max_size=60))
def test_any_bytes_become_a_record(line: bytes) -> None:
    """Adopting never fails, and what comes out is one JSON object."""
    converted = conversion.convert(line)

    assert isinstance(json.loads(converted), dict)
    assert b"\n" not in converted


def test_a_cursor_is_read_back_from_a_line_and_from_text() -> None:
    """Worker names with commas do not confuse it."""
    line = orjson.dumps(
        {"timestamp": wire_time(NOW), "level": "info", "worker": "a,b", "seq": 7}
    )
    cursor = Cursor.of_line(line)

    assert cursor == Cursor(wire_time(NOW), "a,b", 7)
    assert cursor is not None
    assert Cursor.parse(f"{cursor}\n") == cursor
    assert Cursor.of_line(b'{"message":"foreign"}') is None
    with pytest.raises(ConfigError, match="TIME,WORKER,SEQ"):
        Cursor.parse("17")


@given(
    st.lists(st.booleans(), max_size=40),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(1, 5),
)
def test_context_is_greps(
    matches: list[bool], before: int, after: int, count: int
) -> None:
    """Exactly the lines within reach of a match, in order, islands set apart."""
    lines = [b"%d" % number for number in range(len(matches))]
    places = [number for number, is_match in enumerate(matches) if is_match]

    context = Context(before, after)
    half = len(lines) // 2  # the state must survive between two feeds
    shown = []
    for part in (lines[:half], lines[half:]):
        matched = [line for line in part if matches[int(line)]]
        shown += list(context.feed(part, matched))

    def reached(wanted: list[int]) -> list[int]:
        return [
            n
            for n in range(len(lines))
            if any(p - before <= n <= p + after for p in wanted)
        ]

    assert [int(item.line) for item in shown if item.line] == reached(places)
    assert sum(not item.context for item in shown if item.line) == len(places)
    numbers = [int(item.line) if item.line else None for item in shown]
    for i, number in enumerate(numbers):
        if number is None:
            left, right = numbers[i - 1], numbers[i + 1]
            assert left is not None
            assert right is not None
            assert right > left + 1
    last = last_matches(iter(shown), count)
    found = [item for item in last if item.line and not item.context]
    assert [int(item.line) for item in found] == places[-count:]


def test_repeats_collapse_exactly_and_the_last_one_is_shown() -> None:
    """Held back until something else comes or it is flushed; nothing is lost."""
    renderer = Renderer(layout.LayoutOptions(format="message", collapse=True))
    record = {"level": "info", "logger": "a", "message": "same"}

    assert renderer.feed(record) == []
    assert renderer.feed(record) == []
    assert paint(renderer.feed(record | {"message": "other"}), False) == "same\n"
    assert paint(renderer.flush(), False) == "other\n"
    assert renderer.flush() == []


def test_spans_are_for_people() -> None:
    """The two greatest units."""
    assert span_text(364) == "6m 4s"
    assert span_text(0.2) == "0s"
    assert span_text(90_061) == "1d 1h"


def test_counts_are_exact_and_bounded() -> None:
    """Too many values go together, too long a time gets wider columns; sums stay."""
    counts = RecordCounts(["user"])
    lines = [
        orjson.dumps({"timestamp": wire_time(NOW + n * 100 * SECOND), "user": f"u{n}"})
        for n in range(12_000)
    ]
    counts.feed(lines)

    values = counts.by["user"]
    assert len(values) <= 10_001
    assert sum(series.total for series in values.values()) == 12_000
    start, end = counts.bounds()
    assert end - start <= 240
    assert sum(sum(s.buckets.values()) for s in values.values()) == 12_000


@pytest.mark.parametrize("buckets", [1, 2, 47, 48, 49, 50, 95, 97, 144, 200, 239, 240])
def test_a_steady_rate_is_a_level_row_of_bars(buckets: int) -> None:
    """Columns cover equal numbers of buckets, and the last one is scaled."""
    row = bars({7 + n: 100 for n in range(buckets)}, 7, 6 + buckets)

    assert set(row) == {"█"}
    assert len(row) <= 48


def test_bars_show_the_least_count_and_leave_blanks_for_none() -> None:
    """One record among many is still seen; the end of the row is not padded."""
    assert bars({0: 1000, 2: 1}, 0, 3) == "█ ▁"
    assert bars({}, 0, 3) == ""


@pytest.mark.parametrize(
    "wide", ["你" * 10, "你" * 40, "a" * 99, "e\u0301" * 31, "é你" * 9]
)
def test_tables_are_aligned_by_display_width(wide: str) -> None:
    """Counts stand in one column of the terminal, whatever the value's characters."""
    counts = RecordCounts(["user", wide])
    counts.feed([orjson.dumps({"user": user}) for user in ("ann", wide)])

    text = paint(as_segments(counts, 10, dt.UTC), False)

    rows = [line for line in text.splitlines() if re.search("%|count", line)]
    places = {markup.width(re.split(" (count|[0-9])", line)[0]) for line in rows}
    assert len(rows) == 5
    assert max(places) - min(places) <= len("count") - 1


@given(st.text(st.sampled_from("a你e\u0301"), max_size=60), st.integers(3, 20))
def test_clipped_text_fits_its_columns(text: str, columns: int) -> None:
    """Both ends are left, with a mark between them."""
    shown = markup.clip(text, columns)

    assert markup.width(shown) <= columns
    if markup.width(text) <= columns:
        assert shown == text
    else:
        assert "…" in shown
        assert markup.width(shown) >= columns - 3


def test_messages_that_differ_in_numbers_have_one_shape() -> None:
    """Numbers, hexadecimal identifiers and addresses are the same shape."""
    texts = [
        "took 12.5 ms for 10.0.0.1:80",
        "took 3 ms for 192.168.1.10:8080",
    ]
    assert len({template({"message": text}) for text in texts}) == 1
    assert template({"message": "feed the added cafe"}) == "feed the added cafe"
    assert template({"message": "x 7", "template": "x %d"}) == "x %d"


def test_rates_are_differences_over_time() -> None:
    """`top` shows a rate once there are two looks, per worker and per sink."""
    before = {"sinks": [{"url": "file:/a", "written": 100, "queued_records": 0}]}
    state = {"sinks": [{"url": "file:/a", "written": 300, "queued_records": 5}]}

    workers, sinks = tables(state, before, 2.0)

    assert workers.rows == []
    assert sinks.columns == ["sink", "written", "written/s", "queue"]
    assert sinks.rows == [["file:/a", "300", "100", "5"]]


def test_a_filter_is_read_from_several_words() -> None:
    """Terms may come in one string or in many."""
    one = matcher.compile(["a=1 b=2"])
    two = matcher.compile(["a=1", "b=2"])
    for record in ({"a": 1, "b": 2}, {"a": 1}, {"b": 2}):
        assert one.record(record) == two.record(record)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 9), st.integers(1, 40))
def test_the_newest_lines_are_bounded_by_number_and_bytes(
    sizes: list[int], count: int, most: int
) -> None:
    """From either end the same ones; at least one, and a note if bytes left one out."""
    lines = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    expected = lines[-count:]
    while len(expected) > 1 and sum(map(len, expected)) > most:
        expected.pop(0)
    forth, back = Newest(count, most), Newest(count, most)

    forth.extend(lines)
    for at in range(len(lines), 0, -3):
        back.extend_left(lines[max(at - 3, 0) : at])

    assert list(back.lines) == expected
    assert list(forth.lines) == expected
    assert back.is_cut is (len(expected) < min(count, len(lines)))
