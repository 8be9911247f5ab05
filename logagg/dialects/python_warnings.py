"""Warnings of Python (`warnings.warn`) as fields. Pure.

Python formats them as `PATH:LINE: CATEGORY: TEXT`, with the line of the source below it,
and prints that, or logs it as `py.warnings` after `logging.captureWarnings(True)`.
"""

from __future__ import annotations

import re
from copy import copy
from logging import LogRecord
from typing import Any

__all__ = ["LOGGER", "warning_fields", "with_warning_fields"]

LOGGER = "py.warnings"
_FORMATTED = re.compile(
    r"(?P<file>[^\n]+?):(?P<line>\d{1,9}): (?P<category>\w+): (?P<text>.*?)"
    r"(?:\n  \S[^\n]*)?\n?\Z",
    re.DOTALL,
)


def warning_fields(
    category: str, text: str, file: str, line: int
) -> tuple[str, dict[str, Any]]:
    """The message and the fields of a warning; the names of a place are the handler's."""
    return f"{category}: {text}", {"category": category, "file": file, "line": line}


def with_warning_fields(record: LogRecord) -> LogRecord:
    """A copy of a record of `py.warnings` with its parts apart, or the record itself.

    Never raises: a program may have a format of its own.
    """
    found = _FORMATTED.match(record.getMessage()) if not record.args else None
    if found is None:
        return record
    made = copy(record)
    made.msg, fields = warning_fields(
        found["category"], found["text"], found["file"], int(found["line"])
    )
    for name, value in fields.items():
        made.__dict__.setdefault(name, value)
    return made
