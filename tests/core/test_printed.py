"""Printed lines give the level, the message and the fields that they state."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from logagg.dialects.printed import (
    indented_traceback,
    newest_state,
    printed_fields,
    printed_traceback,
)
from logagg.dialects.traceback_text import traceback_fields

LINES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "plain": (None, {"message": "plain"}),
    "ERROR shop: bad": ("error", {"message": "ERROR shop: bad"}),
    "\x1b[32mINFO\x1b[0m:     Started": ("info", {"message": "INFO:     Started"}),
    "\x1b[1;31mERROR\x1b[0m bad": ("error", {"message": "ERROR bad"}),
    "\x1b[2m2026-11-20 09:15:02,100\x1b[0m - shop - \x1b[38;5;9mERROR\x1b[m - bad": (
        "error",
        {"message": "2026-11-20 09:15:02,100 - shop - ERROR - bad"},
    ),
    "\x1b[2m2026-11-20T09:15:02Z\x1b[0m [\x1b[33mwarning \x1b[0m] \x1b[1mbad\x1b[0m": (
        "warning",
        {"message": "2026-11-20T09:15:02Z [warning ] bad"},
    ),
    "\x1b[32mgreen\x1b[0m": (None, {"message": "\x1b[32mgreen\x1b[0m"}),
    '{"level":"error","message":"card refused","order":7}': (
        "error",
        {"message": "card refused", "order": 7},
    ),
    '{"event":"e","level":"warning","logger":"shop","timestamp":"2026-11-20T09:15:02Z"}': (
        "warning",
        {"message": "e", "logger": "shop"},
    ),
    '{"msg":"no level"}': (None, {"message": "no level"}),
    '{"level":"info"}': ("info", {"message": ""}),
    '{"a":1}': (None, {"message": '{"a":1}'}),
    '{"a":1,"password":"hunter2"}': (
        None,
        {"message": '{"a": 1, "password": "[redacted]"}'},
    ),
    '[{"password":"hunter2"}]': (None, {"message": '[{"password": "[redacted]"}]'}),
    '{"msg":"{\\"token\\":\\"hunter2\\"}"}': (
        None,
        {"message": '{"token": "[redacted]"}'},
    ),
    '{"broken"': (None, {"message": '{"broken"'}),
    '{"broken}': (None, {"message": '{"broken}'}),
    '{"msg":"m","password":"hunter2","pid":5,"worker":"x","seq":9}': (
        None,
        {
            "message": "m",
            "password": "[redacted]",
            "pid_": 5,
            "worker_": "x",
            "seq_": 9,
        },
    ),
    '{"msg":"m","level":"a\\"b"}': (None, {"message": "m"}),
    '{"msg":"m","seq":1,"seq_":2,"received_":3,"received":4}': (
        None,
        {"message": "m", "seq_": 2, "seq__": 1, "received_": 3, "received__": 4},
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_gives_what_it_states(line: str) -> None:
    """JSON objects become records; all else is a message, with a level where certain."""
    assert printed_fields(line) == LINES[line]


def test_secrets_stay_when_the_user_wants_them() -> None:
    """Redaction is by choice, as in the handler."""
    line = '{"msg":"m","token":"t"}'

    assert printed_fields(line, redact=False)[1]["token"] == "t"


def printed(error: BaseException) -> str:
    """An exception as Python prints it."""
    try:
        raise error
    except BaseException:  # noqa: BLE001 - of any kind
        return traceback.format_exc()


def test_a_tracebacks_exception_is_named_by_its_own_line() -> None:
    """Also a group's, whose last line is only a frame."""
    plain = traceback_fields(printed(ValueError("bad: card")))
    group = traceback_fields(printed(ExceptionGroup("several", [KeyError("k")])))

    assert plain["message"] == "ValueError: bad: card"
    assert plain["exception"]["message"] == "bad: card"
    assert group["exception"]["type"] == "ExceptionGroup"
    assert group["exception"]["message"] == "several (1 sub-exception)"


def test_the_message_of_a_traceback_may_have_several_lines() -> None:
    """With a cause before it, and notes, which look like further lines."""
    error = ValueError("first\n\nthird: x")
    error.add_note("a note")
    error.__cause__ = KeyError("cause")
    group = ExceptionGroup("several\nlines", [KeyError("k")])
    group.__cause__ = KeyError("cause")

    found = traceback_fields(printed(error))
    of_group = traceback_fields(printed(group))["exception"]

    assert found["message"] == "ValueError: first"
    assert found["exception"]["type"] == "ValueError"
    assert found["exception"]["message"] == "first\n\nthird: x\na note"
    assert of_group["type"] == "ExceptionGroup"
    assert of_group["message"] == "several\nlines (1 sub-exception)"
    assert traceback_fields("odd: text")["exception"]["message"] == "text"


@pytest.mark.parametrize(
    ("before", "level", "message"),
    [
        ("ERROR", "error", "ERROR"),
        ("failed: ", "error", "failed:"),
        ("two\nlines\n", "error", "two\nlines"),
        ("WARNING:shop:odd\n", "warning", "WARNING:shop:odd"),
        ('{"level": "critical", "msg": "down"}\n', "critical", "down"),
        ("", "error", "ValueError: no"),
        ("\n", "error", "ValueError: no"),
    ],
)
def test_what_is_printed_before_a_traceback_is_the_message(
    before: str, level: str, message: str
) -> None:
    """Its level is that of the record, the exception is structured."""
    for error in (ValueError("no"), ExceptionGroup("no", [KeyError("k")])):
        trace = printed(error)

        found_level, fields = printed_traceback(before + trace + "\n")

        assert found_level == level
        if before.strip():
            assert fields["message"] == message
        assert fields["exception"]["type"] == type(error).__name__
        assert fields["exception"]["message"].startswith("no")
        assert fields["exception"]["stack"].strip() == trace.strip()


@pytest.mark.parametrize("indent", ["\t", "    ", "  | ", "> "])
def test_a_traceback_whose_lines_are_indented_is_taken_apart(indent: str) -> None:
    """As Twisted and others write it after a line of their own."""
    lines = printed(ValueError("no")).rstrip().split("\n")
    text = "failed\n" + "\n".join(indent + line for line in lines)

    for after, message in (("", ""), (f"\n{indent}", ""), ("\nmore", "\nmore")):
        found = indented_traceback(text + after)
        assert found is not None
        level, fields = found
        assert (level, fields["message"]) == ("error", f"failed{message}")
        assert fields["exception"]["type"] == "ValueError"
        assert fields["exception"]["stack"] == "\n".join(lines)
    assert indented_traceback("failed\n  Traceback (most recent call last):\nx") is None


def test_the_rest_of_a_traceback_has_no_message_before_it() -> None:
    """Of a very long one the later pieces begin with frames."""
    piece = '  File "x.py", line 1, in f\n    f()\nKeyError: 1\n\n'
    level, fields = printed_traceback(piece + printed(ValueError("no")))

    assert (level, fields["message"]) == ("error", "ValueError: no")


@pytest.mark.parametrize(
    ("line", "newest"),
    [
        (b"plain", None),
        (b"a\rb", None),
        (b"\r 1%\r 2%\r 3%", b" 3%"),
        (b"\r 1%\r 2%\r  ", b" 2%"),
        (b"\r\r\r", b""),
    ],
)
def test_a_line_that_overwrites_itself_is_its_newest_state(
    line: bytes, newest: bytes | None
) -> None:
    """A single carriage return may be anything, and every byte is kept."""
    assert newest_state(line) == newest
