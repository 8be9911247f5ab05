"""Events that a JSON formatter or structlog has rendered, taken apart again. Pure.

A handler may have a formatter that makes JSON (python-json-logger, ecs-logging,
structlog's `ProcessorFormatter`, the formatters of clouds and agents). Its text would be
JSON inside of JSON, and secrets in it would stand in clear. So the text is parsed, its
message becomes the record's message, and its fields become fields, which the handler
redacts as any other. What only repeats what the record has anyway (time, level, logger,
process, the formatter's version mark) is left out, by the names that are in use for it.

An exception that was rendered becomes the record's; the place of the call has the names
`file`, `line` and `function`, as with `location=True`.

structlog under `logging` (`wrap_for_formatter`) puts the event itself in the record's
place of the message; it is taken apart in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from logging import LogRecord
from typing import Any

import orjson

from logagg.core.record import with_span_names
from logagg.core.secrets import scrubbed
from logagg.dialects.traceback_text import traceback_fields

__all__ = ["STRUCTLOG_MARKS", "event_fields", "parse_event", "scrubbed_json"]

STRUCTLOG_MARKS = frozenset(("_logger", "_name", "_record", "_from_structlog"))
"""Attributes and keys with which structlog marks its records for its own formatter."""

_MESSAGES = ("message", "event", "msg", "Message", "textPayload")
_TIMES = frozenset(
    (
        "timestamp", "@timestamp", "asctime", "time", "ts", "datetime", "date", "created",
        "timestampSeconds", "timestampNanos",
    )
)  # fmt: skip
_LEVELS = frozenset(
    (
        "level", "levelname", "severity", "log.level", "lvl", "level_name", "status",
        "log_level", "loglevel", "syslog.severity",
    )
)  # fmt: skip
_LOGGERS = frozenset(("logger", "name", "logger_name", "log.logger", "logger.name"))
_RUNNING = frozenset(
    (
        "process", "thread", "processName", "threadName", "pid", "process_id",
        "process_name", "thread_id", "thread_name",
    )
)  # fmt: skip
_EXCEPTIONS = frozenset(("exc_info", "exception", "stack_info", "exc_text"))
_MARKS = frozenset(("ecs.version", "ecs", "log", "process", "log.origin", "error"))
_ATTRIBUTES = frozenset(vars(LogRecord("", 0, "", 0, "", (), None)))
_PLACES = {"pathname": "file", "lineno": "line", "funcName": "function"}
_GOOGLE = "logging.googleapis.com/"
_OF_GOOGLE = {"trace": "trace_id", "spanId": "span_id"}


def parse_event(text: object) -> dict[str, Any] | None:
    """The event in a formatter's text; None when the text is no JSON object."""
    if not isinstance(text, str | bytes) or text[:1] not in ("{", b"{"):
        return None
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def scrubbed_json(text: str) -> str:
    """A text with the secrets in it replaced if all of it is JSON; else as it is.

    Without secrets it stays as it was written. NaN and integers of any size are read.
    """
    plain = text.strip()
    if not (plain.startswith("{") and plain.endswith("}")) and not (
        plain.startswith("[") and plain.endswith("]")
    ):
        return text
    try:
        found = orjson.loads(plain)
        if scrubbed(found) is found:
            return text
    except orjson.JSONDecodeError:
        pass
    try:
        found = json.loads(plain)
        clean = scrubbed(found)
    except (ValueError, RecursionError):
        return text
    return text if clean is found else json.dumps(clean, ensure_ascii=text.isascii())


def event_fields(
    event: Mapping[Any, Any], record: LogRecord
) -> tuple[object, dict[Any, Any], dict[str, Any] | None]:
    """Take an event apart.

    Args:
        event: What a formatter rendered, or structlog's event.
        record: The record that it was made from.

    Returns:
        The message, the fields that the record does not have by itself, and the
        exception, if the event has one and the record has none.
    """
    rest = {name: value for name, value in event.items() if name not in STRUCTLOG_MARKS}
    message: object = ""
    for name in _MESSAGES:
        if name in rest:
            message = rest.pop(name)
            break
    if "ecs.version" in rest or "ecs" in rest:
        rest = {name: value for name, value in rest.items() if name not in _MARKS}
    if "httpRequest" in rest:
        rest = _without_google(rest)
    rest = with_span_names(rest)
    fields: dict[Any, Any] = {}
    for name, value in rest.items():
        if _repeats(name, value, record):
            continue
        own = name
        if type(name) is str and name in _ATTRIBUTES:
            own = _place(name, value, rest, record)
        if own:
            fields[own] = value
    exception = _exception_of(fields.get("exception"))
    if exception is not None:
        del fields["exception"]
    return message, fields, exception


def _place(
    name: str, value: object, event: Mapping[Any, Any], record: LogRecord
) -> str:
    """The name for an attribute that a formatter has rendered; empty for most."""
    kept = record.__dict__.get(name)
    if kept is not value and (type(kept) is not type(value) or kept != value):
        return name
    if name == "filename" and "pathname" not in event:
        return "file"
    return _PLACES.get(name, "")


def _without_google(event: dict[Any, Any]) -> dict[Any, Any]:
    """The event of google-cloud-logging's handlers without the fields of its service."""
    found = {}
    for name, value in event.items():
        own = name
        if type(name) is str and name.startswith(_GOOGLE):
            own = _OF_GOOGLE.get(name.removeprefix(_GOOGLE), "")
            value = str(value).rpartition("/")[2]  # noqa: PLW2901 - projects/P/traces/T
        if own and value not in ("", {}):
            found[own] = value
    return found


def _exception_of(value: object) -> dict[str, Any] | None:
    """The exception in the text, or the list of dicts, that structlog renders."""
    if isinstance(value, str) and value.startswith("Traceback "):
        found: dict[str, Any] = traceback_fields(value)["exception"]
        return found
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return None
    error = value[0]
    if not isinstance(error.get("exc_type"), str):
        return None
    frames = error.get("frames")
    stack = [
        '  File "{}", line {}, in {}'.format(
            *map(each.get, ("filename", "lineno", "name"))
        )
        for each in (frames if isinstance(frames, list) else ())
        if isinstance(each, Mapping)
    ]
    text = str(error.get("exc_value"))
    last = f"{error['exc_type']}: {text}"
    head = "Traceback (most recent call last):"
    found = {"type": error["exc_type"], "message": text}
    return {**found, "stack": "\n".join((head, *stack, last))}


def _repeats(name: Any, value: Any, record: LogRecord) -> bool:
    """Whether a field only repeats what the record's own fields hold."""
    if name in _TIMES:
        return _is_time_of(value, record.created)
    if name in _LEVELS:
        word = str(value).lower()
        return word in (record.levelname.lower(), str(record.levelno)) or (
            # structlog's `exception` is logging's error, and the like.
            word in _WORDS and _WORDS[word] == record.levelno
        )
    if name in _LOGGERS:
        return bool(value == record.name)
    if name in _EXCEPTIONS:
        return bool(record.exc_info or record.exc_text or record.stack_info)
    own = (record.process, record.processName, record.thread, record.threadName)
    return name in _RUNNING and value in own


def _is_time_of(value: Any, created: float) -> bool:
    """Whether a value is the time of a record, in any form: text, number, parts.

    Of a text only minutes and seconds are compared: its zone is not known.
    """
    if isinstance(value, dict):
        value = value.get("seconds")
    if isinstance(value, str):
        near = (datetime.fromtimestamp(created + each, UTC) for each in (-1, 0, 1))
        return any(f"{moment:%M:%S}" in value for moment in near)
    if isinstance(value, int | float):
        return any(abs(value / scale - created) < 2 for scale in (1, 1e3, 1e6, 1e9))
    return False


_WORDS = {
    "debug": 10, "info": 20, "notice": 20, "warn": 30, "warning": 30, "error": 40,
    "exception": 40, "critical": 50, "fatal": 50,
}  # fmt: skip
