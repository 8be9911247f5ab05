"""Tracebacks among captured lines become one text each, and nothing is lost."""

from __future__ import annotations

import traceback

import hypothesis.strategies as st
from hypothesis import given

from logagg.supervisor.capture import Tracebacks

HEADER = "Traceback (most recent call last):"
PARTS = [
    HEADER, '  File "x.py", line 1, in f', "    f()", "ValueError: no", "", "plain",
    "During handling of the above exception, another exception occurred:",
    "  + Exception Group Traceback (most recent call last):", "    | ValueError", "\t",
]  # fmt: skip


def _feed(text: str) -> list[str]:
    joiner = Tracebacks()
    found = [piece for line in text.split("\n") for piece in joiner.feed(line)]
    return found + joiner.flush()


def _trace(error: BaseException) -> str:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return traceback.format_exc() if caught is error else ""


@given(st.lists(st.sampled_from(PARTS) | st.text("ab \t", max_size=4), min_size=1))
def test_no_line_is_lost_or_moved(lines: list[str]) -> None:
    """Whatever comes, the texts joined by newlines are the lines that went in."""
    assert "\n".join(_feed("\n".join(lines))) == "\n".join(lines)


def test_each_kind_of_traceback_is_one_text() -> None:
    """Simple, chained both ways, and a group, each among plain lines."""
    simple = _trace(ValueError("no"))
    inner, outer = KeyError("inner"), ValueError("outer")
    _trace(inner)
    outer.__cause__ = inner
    chained = _trace(outer)
    group = _trace(ExceptionGroup("many", [ValueError("a"), KeyError("b")]))
    for trace in (simple, chained, group):
        text = "before\n" + trace + "after\n" + trace + trace + "end"
        assert _feed(text) == [
            "before", trace.rstrip("\n"), "after", trace.rstrip("\n"),
            trace.rstrip("\n"), "end",
        ]  # fmt: skip


def test_an_empty_line_behind_a_traceback_is_not_part_of_it() -> None:
    """Only the known sentences make a chain."""
    trace = _trace(ValueError("no")).rstrip("\n")
    assert _feed(trace + "\n\nplain") == [trace, "", "plain"]
