"""A record as an OTLP LogRecord, in protobuf and in JSON. Pure.

`Attributes` are gathered once as (name, value) and written by one of two encoders, so
that both forms have the same content. Field numbers are those of opentelemetry-proto 1.x.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import orjson

from logagg.wireformat import LEVELS, PREFIX, key_ns
from logagg_sinks import _protobuf as pb
from logagg_sinks.http.service import record_of, uid

__all__ = ["OtlpEntry", "entry", "log_json", "log_protobuf", "resource_of", "severity"]

MOST_ATTRIBUTES = 128
MOST_DEPTH = 64
_RENAMED = {
    "thread": "thread.name",
    "file": "code.file.path",
    "line": "code.line.number",
    "function": "code.function.name",
    "worker": "logagg.worker",
    "seq": "logagg.seq",
}
_ELSEWHERE = frozenset(
    {
        "timestamp",
        "received",
        "level",
        "level_number",
        "message",
        "logger",
        "pid",
        "process",
        "exception",
    }
)
_LEAST_INT, _MOST_INT = -(1 << 63), (1 << 63) - 1


class OtlpEntry:
    """A record taken apart the way OTLP sees it."""

    __slots__ = (
        "attributes",
        "body",
        "dropped",
        "level",
        "observed_ns",
        "resource",
        "scope",
        "severity",
        "span_id",
        "time_ns",
        "trace_id",
    )

    def __init__(self, line: bytes, host: str) -> None:
        record = record_of(line)
        self.time_ns = _instant(record.get("timestamp"))
        self.observed_ns = _instant(record.get("received")) or self.time_ns
        self.level = str(record.get("level", ""))
        self.severity = severity(self.level, record.get("level_number"))
        self.body = record.get("message", "")
        self.scope = str(record.get("logger", ""))
        self.resource = resource_of(record)
        self.trace_id = _identifier(record, "trace_id", 32)
        self.span_id = _identifier(record, "span_id", 16)
        attributes: dict[str, Any] = {"log.record.uid": uid(line, host)}
        for key, value in record.items():
            if key not in _ELSEWHERE:
                attributes.setdefault(_RENAMED.get(key, key), value)
        _exception(record.get("exception"), attributes)
        attributes.pop("", None)  # a name must not be empty
        self.dropped = max(0, len(attributes) - MOST_ATTRIBUTES)
        self.attributes = list(attributes.items())[:MOST_ATTRIBUTES]


def entry(line: bytes, host: str) -> OtlpEntry:
    """Take a record apart. Raises ValueError when it is none."""
    return OtlpEntry(line, host)


def severity(level: str, number: object) -> int:
    """The OTLP severity of a level, 1 to 24; 0 when there is none."""
    if level == "trace":
        return 1
    number = LEVELS.get(level, number)
    if not isinstance(number, int | float) or not math.isfinite(number):
        return 0
    if number < 10:
        return 1 + max(0, min(3, int(number * 4 // 10)))
    base, rest = divmod(min(int(number), 59), 10)
    return 1 + 4 * base + rest * 4 // 10


def resource_of(record: dict[str, Any]) -> bytes:
    """The identity of the record's process: its pid and its name, as JSON."""
    return orjson.dumps([record.get("pid"), record.get("process")])


def _instant(value: object) -> int:
    return _parsed(value) if isinstance(value, str) else 0


@functools.lru_cache(64)  # `received` is the same for many records
def _parsed(text: str) -> int:
    return max(0, key_ns(PREFIX + text.encode()))


def _identifier(record: dict[str, Any], key: str, digits: int) -> str:
    """A trace's or span's id, taken out of the record when it is a valid one."""
    value = record.get(key)
    if not isinstance(value, str) or len(value) != digits:
        return ""
    try:
        if not int(value, 16) or bytes.fromhex(value).hex() != value.lower():
            return ""
    except ValueError:
        return ""
    del record[key]
    return value.lower()


def _exception(value: object, attributes: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        if value is not None:
            attributes["exception"] = value
        return
    for key, part in value.items():
        name = "stacktrace" if key == "stack" else key
        attributes[f"exception.{name}"] = part


# Protobuf


def value_protobuf(value: Any, depth: int = 0) -> bytes:
    """An AnyValue."""
    if isinstance(value, str):
        return pb.text(1, value)
    if isinstance(value, bool):
        return pb.varint(2, value)
    if isinstance(value, int):
        if _LEAST_INT <= value <= _MOST_INT:
            return pb.varint(3, value)
        return pb.text(1, str(value))
    if isinstance(value, float):
        return pb.double(4, value)
    if value is None:
        return b""
    if depth >= MOST_DEPTH:
        return pb.text(1, orjson.dumps(value).decode())
    if isinstance(value, list):
        parts = [pb.length(1, value_protobuf(part, depth + 1)) for part in value]
        return pb.length(5, b"".join(parts))
    pairs = [pair_protobuf(1, key, part, depth + 1) for key, part in value.items()]
    return pb.length(6, b"".join(pairs))


def pair_protobuf(field: int, key: str, value: Any, depth: int = 0) -> bytes:
    """A KeyValue."""
    return pb.length(field, _name(key) + pb.length(2, value_protobuf(value, depth)))


@functools.lru_cache(4096)
def _name(key: str) -> bytes:
    """The field `key` of a KeyValue: names repeat from record to record."""
    return pb.text(1, key)


def log_protobuf(log: OtlpEntry) -> bytes:
    """A LogRecord, as the field of a ScopeLogs."""
    parts = [
        pb.fixed64(1, log.time_ns),
        pb.varint(2, log.severity),
        pb.text(3, log.level),
        pb.length(5, value_protobuf(log.body)),
    ]
    parts += [pair_protobuf(6, key, value) for key, value in log.attributes]
    if log.dropped:
        parts.append(pb.varint(7, log.dropped))
    if log.trace_id:
        parts.append(pb.length(9, bytes.fromhex(log.trace_id)))
    if log.span_id:
        parts.append(pb.length(10, bytes.fromhex(log.span_id)))
    parts.append(pb.fixed64(11, log.observed_ns))
    return pb.length(2, b"".join(parts))


# JSON


def value_json(value: Any, depth: int = 0) -> dict[str, Any]:
    """An AnyValue in OTLP's JSON: 64-bit numbers are texts."""
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        if _LEAST_INT <= value <= _MOST_INT:
            return {"intValue": str(value)}
        return {"stringValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if value is None:
        return {}
    if depth >= MOST_DEPTH:
        return {"stringValue": orjson.dumps(value).decode()}
    if isinstance(value, list):
        return {
            "arrayValue": {"values": [value_json(part, depth + 1) for part in value]}
        }
    pairs = [pair_json(key, part, depth + 1) for key, part in value.items()]
    return {"kvlistValue": {"values": pairs}}


def pair_json(key: str, value: Any, depth: int = 0) -> dict[str, Any]:
    """A KeyValue in OTLP's JSON."""
    return {"key": key, "value": value_json(value, depth)}


def log_json(log: OtlpEntry) -> bytes:
    """A LogRecord in OTLP's JSON."""
    record: dict[str, Any] = {
        "timeUnixNano": str(log.time_ns),
        "observedTimeUnixNano": str(log.observed_ns),
        "severityNumber": log.severity,
        "severityText": log.level,
        "body": value_json(log.body),
        "attributes": [pair_json(key, value) for key, value in log.attributes],
    }
    if log.dropped:
        record["droppedAttributesCount"] = log.dropped
    if log.trace_id:
        record["traceId"] = log.trace_id
    if log.span_id:
        record["spanId"] = log.span_id
    return orjson.dumps(record)
