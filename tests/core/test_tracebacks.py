"""Tracebacks among captured lines become one text each, and nothing is lost."""

from __future__ import annotations

import traceback

import hypothesis.strategies as st
from hypothesis import given

from logagg.core.tracebacks import Tracebacks, only_traceback

HEADER = "Traceback (most recent call last):"
PARTS = [
    HEADER, '  File "x.py", line 1, in f', "    f()", "ValueError: no", "", "plain",
    "During handling of the above exception, another exception occurred:",
    "  + Exception Group Traceback (most recent call last):", "    | ValueError", "\t",
    f"failed: {HEADER}",
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


def test_a_line_that_is_asked_about_changes_nothing() -> None:
    """Only lines that a held traceback may have belong to it."""
    lines = ["Traceback (most recent call last):", "  here", "ValueError: odd"]
    found = Tracebacks()
    assert not found.takes("  a line")
    for line in lines:
        assert found.feed(line) == []
        assert found.takes("")
        assert found.takes("{") is (line != lines[-1])
    assert found.feed("{") == ["\n".join(lines), "{"]


def test_lines_of_one_call_with_a_traceback_belong_to_it() -> None:
    """A message of several lines, in a call of its own or with the whole traceback."""
    whole = [HEADER, '  File "x.py", line 1, in f', "ValueError: first", "", "second"]
    for calls in ([whole], [whole[:1], whole[1:2], whole[2:]]):
        joiner = Tracebacks()
        found: list[str] = []
        for call in (["before"], *calls, ["after"]):
            for index, line in enumerate(call):
                found += joiner.feed(line, same_call=index > 0)
        assert found + joiner.flush() == ["before", "\n".join(whole), "after"]


def test_a_traceback_in_the_middle_of_a_call_ends_by_its_form() -> None:
    """A program that passes on the output of another prints much in one call."""
    call = ["start", HEADER, '  File "x.py", line 1, in f', "ValueError: no", "plain"]
    joiner = Tracebacks()
    found = [
        t for i, line in enumerate(call) for t in joiner.feed(line, same_call=i > 0)
    ]
    assert found + joiner.flush() == ["start", "\n".join(call[1:4]), "plain"]


def test_one_empty_line_after_a_traceback_is_a_part_of_it() -> None:
    """`print(format_exc())` writes one; only the known sentences make a chain."""
    trace = _trace(ValueError("no")).rstrip("\n")
    link = "During handling of the above exception, another exception occurred:"
    assert _feed(trace + "\n\nplain") == [trace + "\n", "plain"]
    assert _feed(trace + "\n\n\nplain") == [trace + "\n", "", "plain"]
    assert _feed(f"{trace}\n\n{link}\n\nplain") == [trace + "\n", link, "", "plain"]


def test_a_header_may_end_a_line_of_text() -> None:
    """If a frame follows; a line that only quotes it is a line."""
    group = _trace(ExceptionGroup("many", [ValueError("a"), KeyError("b")]))
    for trace in (_trace(ValueError("no")), group):
        text = "failed: " + trace.rstrip("\n")
        assert _feed(f"before\n{text}\nafter") == ["before", text, "after"]
    for text in (HEADER, PARTS[7]):
        assert _feed(f"see {text}\nnext") == [f"see {text}", "next"]


def test_the_only_traceback_among_lines_is_found() -> None:
    """None where there are several."""
    trace = _trace(ValueError("no")).rstrip("\n").split("\n")
    size = len(trace)
    assert only_traceback(["a", "b", *trace, "c"]) == (2, 2 + size)
    assert only_traceback(["a", *trace[1:]]) is None
    assert only_traceback([*trace, *trace]) is None
