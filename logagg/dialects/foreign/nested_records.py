"""Records that other programs nest, with their parts at the top. Pure.

Loguru's serialized record, ECS with nested `log`, journald's JSON, Docker's json-file,
Rust's tracing, entries of Google Cloud, GELF, and those of `service_records`. Every other
record stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from logagg.dialects.foreign.service_records import SERVICE_SHAPES
from logagg.dialects.foreign.time_texts import instant
from logagg.dialects.plain_text import level_of_text, without_colours
from logagg.dialects.rendered_events import parse_event

__all__ = ["flattened"]

_SYSLOG = (
    "critical", "critical", "critical", "error", "warning", "info", "info", "debug"
)  # fmt: skip
_DOCKER = frozenset(("log", "stream", "time", "attrs"))
Record = dict[str, Any]


def flattened(record: Record) -> Record:
    """A record whose level, time, message and logger stand at its top."""
    if _NAMES.isdisjoint(record):
        return record
    for name, take_apart in _SHAPES.items():
        if name in record:
            found = take_apart(record)
            if found is not None:
                return found
    for name, take_apart in _PARTS.items():
        if name in record:
            record = take_apart(record) or record
    return record


def _loguru(record: Record) -> Record | None:
    inner, text = record["record"], record.get("text")
    if not (isinstance(inner, Mapping) and isinstance(text, str) and "level" in inner):
        return None
    level, time = inner["level"], inner.get("time")
    found: Record = {
        "timestamp": time.get("timestamp") if isinstance(time, Mapping) else time,
        "level": level.get("name") if isinstance(level, Mapping) else level,
        "logger": inner.get("name"),
        "message": inner.get("message"),
    }
    extra = inner.get("extra")
    for name, value in extra.items() if isinstance(extra, Mapping) else ():
        found.setdefault(name, value)
    for name in ("function", "line"):
        found.setdefault(name, inner.get(name))
    if isinstance(process := inner.get("process"), Mapping):
        found.setdefault("pid", process.get("id"))
    if isinstance(error := inner.get("exception"), Mapping):
        found["exception"] = {"type": error.get("type"), "message": error.get("value")}
        at = text.find("Traceback (most recent call last)")
        if at >= 0:
            found["exception"]["stack"] = text[at:]
    return found


def _log(record: Record) -> Record | None:
    """ECS in its nested form, or Docker's json-file."""
    inner = record["log"]
    if isinstance(inner, Mapping) and isinstance(inner.get("level"), str):
        rest = dict(inner)
        found = {**record, "level": rest.pop("level")}
        if isinstance(rest.get("logger"), str):
            found["logger"] = rest.pop("logger")
        found.pop("log")
        return found | ({"log": rest} if rest else {})
    if isinstance(inner, str) and "stream" in record and _DOCKER.issuperset(record):
        outer = {"stream": record["stream"]}
        if "time" in record:
            outer["collected_at"] = record["time"]
        return outer | _printed(inner.rstrip("\r\n"))
    return None


def _printed(text: str) -> Record:
    """A printed line: a JSON object, or a text that may state a level."""
    found = parse_event(text)
    if found is not None:
        return found
    plain = without_colours(text)
    return {"level": level_of_text(plain) or "info", "message": plain}


def _journal(record: Record) -> Record | None:
    if "__REALTIME_TIMESTAMP" not in record:
        return None
    found = dict(record)
    message = found.pop("MESSAGE")
    if isinstance(message, list):  # it is no UTF-8
        message = bytes(
            each for each in message if type(each) is int and 0 <= each < 256
        )
        message = message.decode("utf-8", "backslashreplace")
    priority = str(found.pop("PRIORITY", 6))
    found["level"] = _SYSLOG[int(priority)] if priority in tuple("01234567") else "info"
    found["timestamp"] = found.pop("__REALTIME_TIMESTAMP")
    if "SYSLOG_IDENTIFIER" in found:
        found["logger"] = found.pop("SYSLOG_IDENTIFIER")
    found["message"] = message
    return found


def _tracing(record: Record) -> Record | None:
    fields = record["fields"]
    if not (isinstance(fields, Mapping) and isinstance(record.get("target"), str)):
        return None
    found = {name: value for name, value in record.items() if name != "fields"}
    found["logger"] = found.pop("target")
    for name, value in fields.items():
        found.setdefault(name, value)
    return found


def _google(record: Record) -> Record | None:
    payload = record.get("jsonPayload", record.get("textPayload"))
    found = {k: v for k, v in record.items() if k not in ("jsonPayload", "textPayload")}
    if isinstance(payload, str):
        found["message"] = payload
    elif isinstance(payload, Mapping):
        for name, value in payload.items():
            found.setdefault(name, value)
    else:
        return None
    return found


def _gelf(record: Record) -> Record | None:
    if "version" not in record or "host" not in record:
        return None
    found = dict(record)
    found["message"] = found.pop("short_message")
    level = found.get("level")
    if type(level) is int and 0 <= level < len(_SYSLOG):
        found["level"] = _SYSLOG[level]
    for name in [each for each in found if each[:1] == "_" and each[1:] not in found]:
        found[name[1:] or name] = found.pop(name)
    return found


def _parts_of_time(record: Record) -> Record | None:
    """Log4j's instant is an object."""
    if instant(record["instant"]) is None:
        return None
    found = {name: value for name, value in record.items() if name != "instant"}
    return {"timestamp": record["instant"], **found}


_SHAPES: dict[str, Callable[[Record], Record | None]] = {
    "record": _loguru,
    "log": _log,
    "MESSAGE": _journal,
    "fields": _tracing,
    "jsonPayload": _google,
    "textPayload": _google,
    "short_message": _gelf,
}
_PARTS = {"instant": _parts_of_time, **SERVICE_SHAPES}
_NAMES = frozenset((*_SHAPES, *_PARTS))
