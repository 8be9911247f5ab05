"""The record's schema: its fixed fields in their order, and names of spans. Pure.

A line has the fields of `FIXED` in this order, the caller's extra fields between
`thread` and `exception`. An extra field with a name in `RESERVED` is sent under a name
with an underscore, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    "with_span_names",
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
        "tornado.access", "uvicorn.access", "uvicorn.error", "waitress.access",
        "werkzeug", "wsgi",
    )
)  # fmt: skip
"""Loggers whose records `logagg.dialects.framework_records` takes apart."""

_TRACES = (
    "trace.id", "traceId", "traceID", "TraceId", "traceid", "otelTraceID", "trace",
    "logging.googleapis.com/trace",
)  # fmt: skip
_SPANS = (
    "span.id", "spanId", "spanID", "SpanId", "spanid", "otelSpanID", "span",
    "logging.googleapis.com/spanId",
)  # fmt: skip
_OTHERS = {"otelTraceSampled": "trace_sampled", "otelServiceName": "service_name"}
_NAMES = frozenset((*_TRACES, *_SPANS, *_OTHERS))
_TRACE = re.compile(r"(?:projects/[^/]{1,100}/traces/)?([0-9a-f]{32})", re.IGNORECASE)
_SPAN = re.compile(r"([0-9a-f]{16})", re.IGNORECASE)


CONSUMER = "consumer"
"""The worker of the consumer's own records."""


def worker_text(app: str, slot: int) -> str:
    """The name of a supervised worker in its lines: `web.1`, or the slot alone."""
    return f"{app}.{slot}" if app else str(slot)


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


def with_span_names(fields: Mapping[Any, Any]) -> dict[Any, Any]:
    """Fields whose trace and span are `trace_id` and `span_id`; a copy if they change.

    Whatever a formatter has called them: the attributes of OpenTelemetry's
    `LoggingInstrumentor`, ECS, the data model's names, Google Cloud. Values that are no
    identifiers of OpenTelemetry's (64-bit numbers of other tracers) keep their names.
    """
    if _NAMES.isdisjoint(fields):
        return fields if type(fields) is dict else dict(fields)
    found = dict(fields)
    for own, names, form in (
        ("trace_id", _TRACES, _TRACE),
        ("span_id", _SPANS, _SPAN),
    ):
        for name in names:
            identifier = _identifier(found.get(name), form)
            if identifier and found.get(own) in (None, "", identifier):
                del found[name]
                found[own] = identifier
    for name, own in _OTHERS.items():
        if name in found and own not in found:
            found[own] = found.pop(name)
    return found


def _identifier(value: Any, form: re.Pattern[str]) -> str:
    if isinstance(value, Mapping) and set(value) == {"id"}:
        value = value["id"]
    match = form.fullmatch(value) if isinstance(value, str) else None
    digits = match[1].lower() if match else ""
    return digits if digits.strip("0") else ""
