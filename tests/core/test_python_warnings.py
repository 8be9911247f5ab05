"""A warning that Python has formatted is taken apart again."""

from __future__ import annotations

import logging
import warnings

import pytest

from logagg.dialects.python_warnings import with_warning_fields


@pytest.mark.parametrize("source", [None, "f(x)"])
@pytest.mark.parametrize("text", ["odd", "two\nlines", "a: 1: b", ""])
def test_a_formatted_warning_gives_its_parts(text: str, source: str | None) -> None:
    """As `logging.captureWarnings` logs it."""
    formatted = warnings.formatwarning(
        text, DeprecationWarning, "C:/a b/app.py", 7, source or ""
    )
    record = logging.makeLogRecord({"msg": formatted, "args": ()})

    found = with_warning_fields(record)

    assert found.getMessage() == f"DeprecationWarning: {text}"
    assert vars(found)["category"] == "DeprecationWarning"
    assert (vars(found)["file"], vars(found)["line"]) == ("C:/a b/app.py", 7)
    assert record.getMessage() == formatted


@pytest.mark.parametrize(
    "text", ["", "a text of the program's own", "x:1: odd", f"x:{'9' * 5000}: A: b"]
)
def test_another_text_stays(text: str) -> None:
    """A program may set `warnings.formatwarning`."""
    record = logging.makeLogRecord({"msg": text, "args": ()})

    assert with_warning_fields(record) is record
