"""What a record looks like, in each format, and that no text can do harm."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logagg.render import layout, markup
from logagg.render.layout import LayoutOptions
from logagg.render.markup import wants_color

STACK = """Traceback (most recent call last):
  File "/srv/app/pay.py", line 12, in lookup
    return orders[key]
KeyError: 'order'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/app/pay.py", line 41, in charge
    lookup(order)
  File "/usr/lib/python3.11/json/decoder.py", line 3, in decode
    raise ValueError
ValueError: bad order
tell sales"""

RECORD: dict[str, Any] = {
    "timestamp": "2026-11-25T14:03:07.512345678Z",
    "level": "error",
    "worker": "3",
    "seq": 17,
    "logger": "app.db",
    "message": "slow query",
    "pid": 9,
    "process": "MainProcess",
    "thread": "MainThread",
    "table": "orders",
    "ms": 812,
    "note": "two words",
    "received": "2026-11-25T14:03:07.600000000Z",
}
ERROR = {
    "type": "ValueError",
    "message": "bad order",
    "stack": STACK,
    "notes": ["tell sales"],
    "cause": {"type": "KeyError", "message": "'order'"},
}


def show(record: dict[str, Any], color: bool = False, /, **look: Any) -> str:
    """The record's text in UTC."""
    made = layout.render(record, LayoutOptions(zone=dt.UTC, **look))
    return markup.paint(made, color)


def test_pretty_shows_time_level_worker_logger_message_fields_in_columns() -> None:
    """One line, in this order; what nobody reads every time is left out."""
    assert show(RECORD) == (
        " 14:03:07.512  ERROR w3  app.db        slow query                      "
        'table=orders  ms=812  note="two words"\n'
    )


def test_plain_is_one_line_of_words() -> None:
    """`plain` has no padding and the date."""
    assert show(RECORD, format="plain", time="full") == (
        "2026-11-25 14:03:07.512 ERROR w3 app.db: slow query table=orders ms=812 "
        'note="two words"\n'
    )


def test_logfmt_is_one_line_of_pairs() -> None:
    """`logfmt` has every field, a newline in a value as an escape."""
    line = show(RECORD | {"message": "a\nb", "x": {"y": 1}}, format="logfmt")

    assert line.startswith("timestamp=2026-11-25T14:03:07.512345678Z level=error ")
    assert r' message="a\nb" ' in line
    assert r' x="{\"y\":1}"' in line
    assert line.count("\n") == 1


def test_message_is_the_message_alone() -> None:
    """`message` prints nothing else."""
    assert show(RECORD, format="message") == "slow query\n"


def test_full_has_every_field_on_its_own_line() -> None:
    """`full` hides nothing."""
    text = show(RECORD, format="full")

    for piece in ("│ seq=17", "│ pid=9", "│ received=2026", '│ note="two words"'):
        assert piece in text


@pytest.mark.parametrize(
    ("style", "summary", "body"),
    [
        ("full", True, STACK.split("\n")),
        (
            "short",
            True,
            [
                'File "/srv/app/pay.py", line 41, in charge',
                "  lookup(order)",
                "note: tell sales",
                "caused by KeyError: 'order'",
            ],
        ),
        ("line", True, []),
        ("none", False, []),
    ],
)
def test_a_traceback_is_shown_as_asked(
    style: str, summary: bool, body: list[str]
) -> None:
    """The first line says what broke; the rest stands under a gutter, whole."""
    head, *rest = show(RECORD | {"exception": ERROR}, tb=style).splitlines()

    assert head.endswith("ValueError: bad order") is summary
    assert [line.lstrip(" ").removeprefix("│ ") for line in rest] == body


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("clock", "14:03:07.512"),
        ("full", "2026-11-25 14:03:07.512"),
        ("iso", "2026-11-25T14:03:07.512345678Z"),
        ("epoch", "1795615387.512345678"),
        ("none", ""),
    ],
)
def test_the_time_is_shown_as_asked(time: str, expected: str) -> None:
    """Every form of `--time`, in UTC."""
    assert (
        layout.time_text(RECORD, LayoutOptions(time=time, zone=dt.UTC), None)
        == expected
    )


def test_delta_is_the_time_since_the_record_before() -> None:
    """`--time delta` counts from the record shown before."""
    own = layout.instant(RECORD)
    assert own is not None

    text = layout.time_text(RECORD, LayoutOptions(time="delta"), own - 1_500_000_000)

    assert text.strip() == "+1.500000"


def test_iso_has_the_offset_of_its_zone() -> None:
    """A local time says which zone it is in."""
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30))

    text = layout.time_text(RECORD, LayoutOptions(time="iso", zone=zone), None)

    assert text == "2026-11-25T19:33:07.512345678+05:30"


@pytest.mark.parametrize("year", ["0001-01-01T00", "9999-12-31T23"])
@pytest.mark.parametrize("hours", [-12, 12])
def test_the_ends_of_the_calendar_are_shown(year: str, hours: int) -> None:
    """A record from there cannot stop a viewer in any zone."""
    record = RECORD | {"timestamp": f"{year}:00:00.000000001Z"}
    zone = dt.timezone(dt.timedelta(hours=hours))

    for time in layout.TIMES:
        layout.render(record, LayoutOptions(time=time, zone=zone))


def test_chosen_and_hidden_fields() -> None:
    """`--fields` picks, also quiet ones, `--hide` removes, `*` all of the caller's."""
    assert show(RECORD, fields=("pid", "ms")).endswith("  pid=9  ms=812\n")
    assert "table" not in show(RECORD, hide=frozenset({"table"}))
    assert show(RECORD, hide=frozenset("*")).rstrip().endswith("slow query")
    kept = layout.project(RECORD, LayoutOptions(fields=("ms", "level")))
    assert kept == {"ms": 812, "level": "error"}


def test_a_late_record_is_marked() -> None:
    """`~` in the first column says that its place had been printed already."""
    assert show(RECORD | {"late": True}).startswith("~14:03")


def test_a_stack_is_shown_as_lines_and_can_be_hidden() -> None:
    """The `stack` of a call with `stack_info` stands below the record, not in it."""
    record = RECORD | {"stack": "Stack (most recent call last):\n  File x"}

    head, *rest = show(record).splitlines()

    assert "stack" not in head
    assert [line.strip() for line in rest] == [
        "│ Stack (most recent call last):",
        "│   File x",
    ]
    assert show(record, hide=frozenset({"stack"})) == show(RECORD)
    assert show(record, tb="none") == show(RECORD)


def test_a_level_that_is_no_number_is_shown() -> None:
    """NaN is neither above nor below a level."""
    assert "NAN" in show(RECORD | {"level": float("nan")})


def test_a_long_value_is_cut_in_the_middle_only_when_asked() -> None:
    """Both ends and the true length are shown."""
    long = RECORD | {"value": "a" * 500 + "z" * 500}

    assert "…" not in show(long)
    assert "aaa…zzz" in show(long, limit=100)
    assert "(1,000 characters)" in show(long, limit=100)


def test_hits_are_inverse_and_hide_nothing() -> None:
    """A highlight changes the look only."""
    text = show(RECORD, True, hits=(re.compile("quer"),))

    assert "\x1b[1;7mquer\x1b[0m" in text
    assert re.sub("\x1b\\[[0-9;]*m", "", text) == show(RECORD)


def test_a_workers_color_is_stable_and_never_red_or_yellow() -> None:
    """Slots one to eight differ, and none looks like an error or a warning."""
    codes = [markup.worker_code(str(number)) for number in range(1, 9)]

    assert len(set(codes)) == 8
    assert not set(codes) & {"31", "33", "91", "93"}
    assert markup.worker_code("web") == markup.worker_code("web")


HOSTILE = [
    "\x1b[2J\x1b[H",
    "\x1b]8;;http://evil\x07click\x1b]8;;\x07",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\rb",
    "a\u2028b\u2029c\u0085d",
    "\u202egnp.exe",
    "\x00\x7f\x08\x0b\x0c",
    '\r\n{"forged":1}',
    "\ud800",
]
HARMLESS = re.compile(
    "[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]*"
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ["pretty", "plain", "logfmt", "message", "full"])
def test_hostile_text_is_harmless_wherever_it_stands(text: str, form: str) -> None:
    """Message, level, logger, worker, keys, values and traceback: all made visible."""
    record = {
        "timestamp": text,
        "level": text,
        "worker": text,
        "logger": text,
        "message": text,
        text: text,
        "nested": {text: [text]},
        "exception": {"type": text, "message": text, "stack": text},
    }

    shown = show(record, format=form)

    assert HARMLESS.fullmatch(shown)


ANYTHING = st.text(st.characters(), max_size=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANYTHING),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(ANYTHING, inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = st.one_of(
    st.sampled_from(["timestamp", "level", "worker", "logger", "message", "exception"]),
    ANYTHING,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    record=st.dictionaries(KEYS, JSON, max_size=6),
    form=st.sampled_from(["pretty", "plain", "logfmt", "message", "full"]),
    tb=st.sampled_from(["full", "short", "line", "none"]),
    time=st.sampled_from(layout.TIMES),
    limit=st.sampled_from([None, 10]),
)
def test_no_record_whatsoever_gets_a_control_character_through(
    record: dict[str, Any], form: str, tb: str, time: str, limit: int | None
) -> None:
    """Any JSON at all renders, and what comes out is plain text."""
    shown = show(record, format=form, tb=tb, time=time, limit=limit)

    assert HARMLESS.fullmatch(shown)
    assert shown.endswith("\n")
    if form == "logfmt":
        assert shown.count("\n") == 1
    if form in ("pretty", "full", "plain"):
        for line in shown.splitlines()[1:]:
            assert line.startswith("    ")


@given(
    st.dictionaries(
        ANYTHING.filter(lambda t: not re.search("[\ud800-\udfff]", t)),
        ANYTHING.filter(lambda t: not re.search("[\ud800-\udfff]", t)),
    )
)
def test_json_for_a_terminal_is_harmless_and_means_the_same(
    record: dict[str, str],
) -> None:
    """What a terminal could obey is an escape of JSON's own."""
    shown = markup.json_visible(orjson.dumps(record).decode())

    assert HARMLESS.fullmatch(shown)
    assert orjson.loads(shown) == record


ENVIRONMENTS: list[tuple[dict[str, str], bool | None]] = [
    ({}, None),
    ({"NO_COLOR": "1"}, False),
    ({"NO_COLOR": ""}, None),
    ({"FORCE_COLOR": "1"}, True),
    ({"FORCE_COLOR": "0"}, None),
    ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ({"TERM": "dumb"}, False),
    ({"TERM": "dumb", "CLICOLOR_FORCE": "1"}, True),
]


@pytest.mark.parametrize(
    ("flag", "environment", "terminal"),
    list(itertools.product(["auto", "always", "never"], ENVIRONMENTS, [True, False])),
)
def test_the_color_table(
    flag: str, environment: tuple[dict[str, str], bool | None], terminal: bool
) -> None:
    """The flag wins, then the environment, then whether it is a terminal."""
    variables, forced = environment
    expected = {"always": True, "never": False}.get(
        flag, terminal if forced is None else forced
    )

    assert wants_color(flag, variables, terminal) is expected
