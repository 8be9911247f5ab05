"""Conversion of other programs' lines to logagg's records. Pure.

NDJSON is shown and filtered under logagg's own names: `ts`, `time`, `@timestamp` …
become `timestamp`, `msg` and structlog's `event` become `message`, `severity`, `lvl`,
`levelname` … become `level`, `traceId`, `trace.id` … become `trace_id`, and so on; all
other fields stay as they are, and a field under logagg's name wins over its synonyms.
Records that nest those are flattened first (`nested_records`), and a line that is no JSON
object may hold a record all the same (`prefixed_lines`); else it is a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from logagg.core import levels
from logagg.core.line import is_wire
from logagg.core.record import with_span_names
from logagg.core.units import wire_time
from logagg.dialects.foreign.error_shapes import exception_of, is_exception
from logagg.dialects.foreign.nested_records import flattened
from logagg.dialects.foreign.prefixed_lines import record_of_text
from logagg.dialects.foreign.time_texts import instant

_NAMES = {
    "timestamp": (
        "timestamp", "@timestamp", "ts", "time", "t", "asctime", "datetime", "date",
        "Timestamp", "eventTime", "time_iso8601", "time_local", "timeMillis", "@t",
        "collected_at",
    ),
    "level": (
        "level", "lvl", "severity", "levelname", "log.level", "severity_text",
        "severityText", "loglevel", "Level", "LogLevel", "priority", "@l",
    ),
    "worker": ("worker",),
    "seq": ("seq",),
    "logger": (
        "logger", "logger_name", "loggerName", "log.logger", "name", "Category",
        "SourceContext",
    ),
    "message": (
        "message", "msg", "event", "body", "text", "log", "Message", "@m", "@mt",
    ),
    "exception": (
        "exception", "exc_info", "exc_text", "err", "error", "stack_trace", "stack",
        "traceback", "@x", "Exception",
    ),
}  # fmt: skip
LONGEST_TEXT = 1 << 20
"""Bytes of a line that is not JSON; of a longer one only the start is a message."""
_START = 1 << 16

_PINO = {10: "trace", 20: "debug", 30: "info", 40: "warning", 50: "error"}
_SLOG = re.compile(r"(DEBUG|INFO|WARN|ERROR)([+-]\d{1,4})")
_WORDS = {
    "dpanic": "critical", "emerg": "critical", "severe": "error", "silly": "trace",
    "verbose": "debug", "fine": "debug", "finer": "trace", "finest": "trace",
    "config": "debug", "http": "info", "success": "info",
}  # fmt: skip
"""Words for levels that are those of few programs."""
_ROUND = {number: name for name, number in levels.STANDARD.items()}


def convert(line: bytes) -> bytes:
    """Convert a line, without its newline. Never raises."""
    if is_wire(line):
        return line
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = _leniently(line)
    if not isinstance(record, dict):
        end = ""
        if len(line) > LONGEST_TEXT:
            line, end = line[:_START], f"… ({len(line):,} bytes)"
        text = line.decode("utf-8", "replace").rstrip("\r") + end
        record = record_of_text(text) if not end else {"level": "info", "message": text}
    return _dump(adopt(record))


def _leniently(line: bytes) -> Any:
    """Parse NaN, lone surrogates and huge integers, which only `json` reads."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _dump(record: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(record)
    except orjson.JSONEncodeError:
        try:
            return json.dumps(record, separators=(",", ":")).encode()
        except (ValueError, RecursionError):
            return orjson.dumps({"level": "info", "message": "unreadable record"})


def adopt(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a parsed record's names and values."""
    rest = record = with_span_names(flattened(dict(record)))
    found: dict[str, Any] = {}
    is_local = False
    for own, names in _NAMES.items():
        for name in names:
            if name in rest and _fits(own, rest[name]):
                if rest is record:
                    rest = dict(record)
                found[own] = rest.pop(name)
                is_local |= name == "asctime"  # of logging: it names no zone
                break
    moment = instant(found.get("timestamp"), local=is_local)
    result: dict[str, Any] = {}
    if moment is not None:
        result["timestamp"] = wire_time(moment)
    elif "timestamp" in found:
        result["timestamp"] = found["timestamp"]
    name, number = _level(found.get("level"), record)
    result["level"] = name
    for own in ("worker", "seq", "logger", "message"):
        if own in found:
            result[own] = found[own]
    if number is not None:
        result["level_number"] = number
    result.update(rest)
    if "exception" in found:
        result["exception"] = exception_of(found["exception"])
    return result


def _fits(own: str, value: Any) -> bool:
    if own == "exception":
        return is_exception(value)
    if own == "timestamp":
        return isinstance(value, str) or instant(value) is not None
    if own == "level":
        return isinstance(value, (str, int)) and not isinstance(value, bool)
    if own in ("message", "logger"):
        return isinstance(value, str)
    return True


def _level(value: Any, record: Mapping[str, Any]) -> tuple[str, int | None]:
    """A level's name, and its number where the name is not a standard one."""
    if value is None:
        return "info", None
    if isinstance(value, str) and value.isdecimal() and len(value) < 9:
        value = int(value)
    if isinstance(value, int):
        if _is_pinos(record):
            name = _PINO.get(value, "critical" if value == 60 else str(value))
        else:
            name = _ROUND.get(value, str(value))
        number = levels.NUMBERS.get(name, value)
    elif found := _SLOG.fullmatch(value):
        name, offset = found.groups()
        name = _ROUND[levels.NUMBERS[name.lower()]]
        return name, levels.STANDARD[name] + int(offset)
    else:
        name = str(value).lower()
        name = _WORDS.get(name, name)
        known = levels.NUMBERS.get(name)
        if known is None:
            return name, None
        number = known
        name = _ROUND.get(number, name)
    return name, None if name in levels.STANDARD else number


def _is_pinos(record: Mapping[str, Any]) -> bool:
    """Whether the number of a level is of pino and bunyan: a time in ms or a host."""
    return "msg" in record and ("hostname" in record or type(record.get("time")) is int)
