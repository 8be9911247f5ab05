"""The exception of a record, and the one in the text of a traceback. Pure."""

from __future__ import annotations

import logging
from typing import Any

from logagg.core.exception_fields import exception_field

__all__ = ["exception_of", "traceback_fields"]

_HEADER = "Traceback (most recent call last):"
_GROUP = "  + Exception Group Traceback (most recent call last):"
_GROUP_PREFIX = "  | "


def traceback_fields(text: str) -> dict[str, Any]:
    """The fields of a record for a printed traceback of any length.

    Its exception begins at the first line without indentation after the last header and
    may have several lines, notes among them. A text without a header ends with it.
    """
    text = text.rstrip()
    lines = text.split("\n")
    named = _exception_lines(lines) or lines[-1:]
    first = named[0].strip()
    kind, _, message = first.partition(": ")
    if len(named) > 1:
        message = "\n".join((message, *named[1:]))
    exception = {"type": kind.rstrip(":"), "message": message, "stack": text}
    return {"message": first, "exception": exception}


def _exception_lines(lines: list[str]) -> list[str]:
    headers = [i for i, line in enumerate(lines) if line.startswith((_HEADER, _GROUP))]
    if not headers:
        return []
    start = headers[-1]
    prefix = _GROUP_PREFIX if lines[start].startswith(_GROUP) else ""
    # A group's own lines stand before those of its parts, which are further in.
    rest = [
        line[len(prefix) :] for line in lines[start + 1 :] if line.startswith(prefix)
    ]
    for index, line in enumerate(rest):
        if line[:1].strip():
            return rest[index:]
    return []


def exception_of(
    record: logging.LogRecord, formatter: logging.Formatter | None
) -> dict[str, Any] | None:
    """The `exception` of a record; None if it has none.

    Args:
        record: The record; one from another process, or of some frameworks, has a text.
        formatter: The application's; it may make the text of the traceback.
    """
    info = record.exc_info
    error = info[1] if info else None
    if error is not None:
        assert info is not None
        made = formatter is not None and (
            type(formatter).formatException is not logging.Formatter.formatException
        )
        text = formatter.formatException(info) if formatter and made else None
        return exception_field(error, info[2], text)
    if record.exc_text:
        found: dict[str, Any] = traceback_fields(record.exc_text)["exception"]
        return found
    return None
