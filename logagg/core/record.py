"""The record's schema: its fixed fields in their order. Pure.

A line has the fields of `FIXED` in this order, the caller's extra fields between
`thread` and `exception`. An extra field with a name in `RESERVED` is sent under a name
with an underscore, never dropped.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ADDED",
    "FIXED",
    "HEAD",
    "ORIGIN",
    "PARSED_LOGGERS",
    "REQUIRED",
    "RESERVED",
    "SHIELDED",
    "own_record",
]

HEAD = ("timestamp", "level", "worker", "seq", "logger", "message")
"""Fields of every record."""

ORIGIN = ("pid", "process", "thread")
"""The process and thread that a record is from."""

FIXED = (*HEAD, *ORIGIN, "exception", "received")
"""Fields that a worker or the consumer sets; all others are extras."""

REQUIRED = frozenset((*HEAD, "received"))
"""Fields that no sink option removes."""

RESERVED = frozenset((*FIXED, "level_number", "stack", "late"))
"""Names that extra fields cannot have."""

SHIELDED = frozenset((*FIXED, "level_number", "event"))
"""Fields that are not redacted by name, and kept when a sink selects fields."""

ADDED = frozenset(
    ("asctime", "message", "taskName", "_daiquiri_extra_keys", "_ray_timestamp_ns")
)
"""Attributes that the library, daiquiri or ray puts on a record later, for itself."""

PARSED_LOGGERS = frozenset(
    (
        "_granian.utils", "aiohttp.access", "django.server", "granian.access",
        "gunicorn.access", "hypercorn.access", "py.warnings", "rq.worker",
        "uvicorn.access", "uvicorn.error", "waitress.access", "werkzeug", "wsgi",
    )
)  # fmt: skip
"""Loggers whose records `logagg.dialects.framework_records` takes apart."""


def own_record(
    timestamp: str, event: str, message: str, *, level: str = "warning", **fields: Any
) -> dict[str, Any]:
    """Make a record of the service itself, outside any worker's sequence (seq 0).

    Args:
        timestamp: The 30 characters of the time.
        event: The event's name (`logagg.core.event`).
        message: The text.
        level: The level's name.
        fields: Further fields, after the fixed ones.
    """
    return {
        "timestamp": timestamp,
        "level": level,
        "worker": "logagg",
        "seq": 0,
        "logger": "logagg",
        "message": message,
        "event": str(event),
        **fields,
    }
