"""Records of databases, cloud services and loggers whose parts have names of their own.

Pure. Each function gets a record that has its key field, and returns it with logagg's
names at the top, or None when it is another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from logagg.dialects.rendered_events import parse_event

__all__ = ["SERVICE_SHAPES"]

Record = dict[str, Any]

_SEVERITIES = ("trace", "debug", "info", "warning", "error", "critical")
_MONGO = {"F": "critical", "E": "error", "W": "warning", "I": "info", "D": "debug"}
_POSTGRES = {
    "LOG": "info", "DETAIL": "info", "HINT": "info", "STATEMENT": "info",
    "CONTEXT": "info", "PANIC": "critical", "FATAL": "critical",
}  # fmt: skip
_MYSQL = {"System": "info", "Note": "info"}
_HOLE = re.compile(r"\{[@$]?(\w+)(?:[,:][^}]*)?\}")


def _lifted(record: Record, name: str) -> None:
    """Move the fields of an object to the top, where no other has their names."""
    inner = record.get(name)
    if isinstance(inner, Mapping):
        del record[name]
        for each, value in inner.items():
            record.setdefault(each, value)


def _otlp_value(value: Any) -> Any:
    """A value of OTLP: an object with one field, named for its type."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    ((kind, inner),) = value.items()
    if kind == "intValue" and isinstance(inner, str) and len(inner) < 21:
        return int(inner) if inner.removeprefix("-").isdecimal() else inner
    if kind == "arrayValue" and isinstance(inner, Mapping):
        values = inner.get("values")
        return (
            [_otlp_value(each) for each in values] if isinstance(values, list) else []
        )
    if kind == "kvlistValue" and isinstance(inner, Mapping):
        return dict(_otlp_pairs(inner.get("values")))
    return inner


def _otlp_pairs(pairs: Any) -> list[tuple[str, Any]]:
    return [
        (str(each["key"]), _otlp_value(each.get("value")))
        for each in (pairs if isinstance(pairs, list) else ())
        if isinstance(each, Mapping) and "key" in each
    ]


def _otlp(record: Record) -> Record:
    """A log record of OpenTelemetry in JSON."""
    found = dict(record)
    time = found.pop("timeUnixNano", None)
    observed = found.pop("observedTimeUnixNano", None)
    found["timestamp"] = observed if time in (None, "0", 0) else time
    number = found.pop("severityNumber", 0)
    if type(number) is int and 0 < number <= 24:
        found["level"] = _SEVERITIES[(number - 1) // 4]
        found.pop("severityText", None)
    body = _otlp_value(found.pop("body", ""))
    found["message"] = body if isinstance(body, str) else str(body)
    fields = dict(_otlp_pairs(found.pop("attributes", None)))
    names = ("exception.type", "exception.message", "exception.stacktrace")
    error = {
        own: fields.pop(name)
        for own, name in zip(("type", "message", "stack"), names, strict=True)
        if name in fields
    }
    if error:
        found["exception"] = error
    for name, value in fields.items():
        found.setdefault(name, value)
    return found


def _otlp_export(record: Record) -> Record | None:
    """An export of OpenTelemetry that holds one record; of several none is chosen."""
    try:
        (resource,) = record["resourceLogs"]
        (scope,) = resource["scopeLogs"]
        (inner,) = scope["logRecords"]
        found = _otlp(dict(inner))
        name = scope.get("scope", {}).get("name")
        origin = resource.get("resource", {}).get("attributes")
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    if name:
        found.setdefault("logger", name)
    for key, value in _otlp_pairs(origin):
        found.setdefault(key, value)
    return found


def _mongodb(record: Record) -> Record | None:
    level = record["s"]
    if not (isinstance(level, str) and {"t", "c", "msg"} <= record.keys()):
        return None
    found = dict(record)
    found["level"] = _MONGO.get(found.pop("s")[:1], "info")
    found["timestamp"], found["logger"] = found.pop("t"), found.pop("c")
    _lifted(found, "attr")
    return found


def _postgres(record: Record) -> Record | None:
    level = str(record["error_severity"])
    found = {name: each for name, each in record.items() if name != "error_severity"}
    return {**found, "level": _POSTGRES.get(level, level.rstrip("12345").lower())}


def _mysql(record: Record) -> Record | None:
    if not {"label", "subsystem", "msg"} <= record.keys():
        return None
    found = dict(record)
    label = str(found.pop("label"))
    found["level"], found["logger"] = _MYSQL.get(label, label), found.pop("subsystem")
    found["timestamp"] = found.pop("time", None) or found.get("ts")
    found.pop("ts", None)
    return found


def _log4j(record: Record) -> Record | None:
    thrown = record["thrown"]
    if not isinstance(thrown, Mapping) or "name" not in thrown:
        return None
    found = {name: each for name, each in record.items() if name != "thrown"}
    found["exception"] = {
        "type": thrown["name"], "message": thrown.get("message") or "",
        "stack": _java_stack(thrown.get("extendedStackTrace")),
    }  # fmt: skip
    return found


def _java_stack(stack: Any) -> str:
    """A stack of Java, a text or a list of its frames, as text."""
    if isinstance(stack, str):
        return stack
    lines = []
    for each in stack if isinstance(stack, list) else ():
        if isinstance(each, Mapping):
            owner = each.get("className", each.get("class", "?"))
            method = each.get("methodName", each.get("method", "?"))
            file = each.get("fileName", each.get("file", "?"))
            number = each.get("lineNumber", each.get("line", "?"))
            lines.append(f"\tat {owner}.{method}({file}:{number})")
    return "\n".join(lines)


def _logback(record: Record) -> Record | None:
    thrown = record["throwable"]
    if not isinstance(thrown, Mapping) or "className" not in thrown:
        return None
    found = {name: each for name, each in record.items() if name != "throwable"}
    kind, text = thrown["className"], thrown.get("message") or ""
    stack = f"{kind}: {text}\n{_java_stack(thrown.get('stepArray'))}"
    found["exception"] = {"type": kind, "message": text, "stack": stack}
    return found


def _context(name: str) -> Callable[[Record], Record | None]:
    def lifted(record: Record) -> Record | None:
        found = dict(record)
        _lifted(found, name)
        return None if found == record else found

    return lifted


def _serilog(record: Record) -> Record | None:
    if "Timestamp" not in record:
        return None
    found = dict(record)
    _lifted(found, "Properties")
    template = str(found.pop("MessageTemplate"))
    found["template"] = template
    found["message"] = found.pop("RenderedMessage", None) or _filled(template, found)
    return found


def _clef(record: Record) -> Record | None:
    template = record["@mt"]
    if "@m" in record or not isinstance(template, str):
        return None
    found = {name: each for name, each in record.items() if name != "@mt"}
    return {**found, "template": template, "message": _filled(template, record)}


def _filled(template: str, values: Mapping[str, Any]) -> str:
    return _HOLE.sub(lambda hole: str(values.get(hole[1], hole[0])), template)


def _dotnet(record: Record) -> Record | None:
    state = record.get("State")
    if not isinstance(state, Mapping):
        return None
    found = {name: each for name, each in record.items() if name != "State"}
    for name, value in state.items():
        if name == "{OriginalFormat}":
            found.setdefault("template", value)
        elif name != "Message":
            found.setdefault(name, value)
    return found


def _error(kind: str, message: str, stack: str) -> Callable[[Record], Record | None]:
    """A record whose exception stands in fields of its own."""

    def gathered(record: Record) -> Record | None:
        if message not in record:
            return None
        found = dict(record)
        lines = found.pop(stack, "")
        text = "".join(map(str, lines)) if isinstance(lines, list) else str(lines)
        error = {"type": str(found.pop(kind, "")), "message": str(found.pop(message))}
        return {**found, "exception": {**error, "stack": text} if text else error}

    return gathered


def _cloudwatch(record: Record) -> Record | None:
    text = record.get("message")
    inner = parse_event(text) if isinstance(text, str) else None
    if inner is None:
        return None
    outer = {name: each for name, each in record.items() if name != "message"}
    outer["collected_at"] = outer.pop("timestamp", None)
    return {**outer, **inner}


def _access(method: str, path: str, status: str) -> Callable[[Record], Record | None]:
    """An access log in JSON, which has no message: the request is one."""

    def named(record: Record) -> Record | None:
        if record.get("message") or record.get("msg"):
            return None
        parts = [str(record[each]) for each in (method, path, status) if each in record]
        if len(parts) < 2:
            return None
        found = {name: each for name, each in record.items() if name != "msg"}
        found["message"] = " ".join(parts)
        if "start_time" in found and "timestamp" not in found:
            found["timestamp"] = found.pop("start_time")
        return found

    return named


SERVICE_SHAPES: dict[str, Callable[[Record], Record | None]] = {
    "resourceLogs": _otlp_export,
    "timeUnixNano": _otlp,
    "observedTimeUnixNano": _otlp,
    "s": _mongodb,
    "error_severity": _postgres,
    "err_code": _mysql,
    "thrown": _log4j,
    "throwable": _logback,
    "contextMap": _context("contextMap"),
    "mdc": _context("mdc"),
    "MessageTemplate": _serilog,
    "@mt": _clef,
    "LogLevel": _dotnet,
    "errorType": _error("errorType", "errorMessage", "stackTrace"),
    "error.type": _error("error.type", "error.message", "error.stack_trace"),
    "stacktrace": _error("errorKind", "error", "stacktrace"),
    "ingestionTime": _cloudwatch,
    "response_code": _access("method", "path", "response_code"),
    "RequestMethod": _access("RequestMethod", "RequestPath", "DownstreamStatus"),
    "time_iso8601": _access("request", "uri", "status"),
}
"""How to take a record apart that has a field of this name."""
