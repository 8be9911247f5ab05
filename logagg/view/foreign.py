"""Lines of other programs, brought into the shape of ours. Pure.

Whatever NDJSON comes is shown and filtered under logagg's own names: `ts`, `time`,
`@timestamp` … become `timestamp`, `msg` and structlog's `event` become `message`,
`severity`, `lvl`, `levelname` … become `level`, and so on; all other fields stay as
they are. A line that is no JSON object becomes a record with the line as its message.
Fields that are there under our name already win over their look-alikes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from logagg.view import levels
from logagg.view.times import SECOND, iso_ns, wire_time

_NAMES = {
    "timestamp": (
        "timestamp", "@timestamp", "ts", "time", "t", "asctime", "datetime", "date",
        "Timestamp", "eventTime",
    ),
    "level": (
        "level", "lvl", "severity", "levelname", "log.level", "severity_text",
        "severityText", "loglevel", "Level", "priority",
    ),
    "worker": ("worker",),
    "seq": ("seq",),
    "logger": ("logger", "logger_name", "loggerName", "log.logger", "name"),
    "message": ("message", "msg", "event", "body", "text", "log", "Message"),
    "exception": (
        "exception", "exc_info", "exc_text", "err", "error", "stack_trace", "stack",
        "traceback",
    ),
}  # fmt: skip
_PINO = {10: "trace", 20: "debug", 30: "info", 40: "warning", 50: "error"}
_ROUND = {number: name for name, number in levels.STANDARD.items()}


def is_wire(line: bytes) -> bool:
    """Whether the line has the shape that all of logagg's own lines have."""
    return line.startswith(b'{"timestamp":"') and line[43:55] == b'Z","level":"'


def convert(line: bytes) -> bytes:
    """The line as one of ours, without a newline. Never raises."""
    if is_wire(line):
        return line
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = _leniently(line)
    if not isinstance(record, dict):
        text = line.decode("utf-8", "replace").rstrip("\r")
        return orjson.dumps({"level": "info", "message": text})
    return _dump(adopt(record))


def _leniently(line: bytes) -> Any:
    """What only Python's own reader takes: NaN, lone surrogates, huge integers."""
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
    """A parsed record under our names and with our values."""
    rest = dict(record)
    found: dict[str, Any] = {}
    for own, names in _NAMES.items():
        for name in names:
            if name in rest and _fits(own, rest[name]):
                found[own] = rest.pop(name)
                break
    moment = _instant(found.get("timestamp"))
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
        result["exception"] = _exception(found["exception"])
    return result


def _fits(own: str, value: Any) -> bool:
    if own == "exception":
        return (isinstance(value, str) and "\n" in value) or _is_error(value)
    if own == "timestamp":
        return _instant(value) is not None or isinstance(value, str)
    if own == "level":
        return isinstance(value, (str, int)) and not isinstance(value, bool)
    if own in ("message", "logger"):
        return isinstance(value, str)
    return True


def _is_error(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return isinstance(value.get("type", value.get("name")), str) and (
        "message" in value or "stack" in value
    )


def _exception(value: Any) -> Any:
    if isinstance(value, str):
        lines = [line for line in value.splitlines() if line.strip()]
        kind, colon, words = (lines[-1] if lines else "").partition(": ")
        if colon and " " not in kind:
            return {"type": kind, "message": words, "stack": value}
        return {"type": "", "message": "", "stack": value}
    if "type" in value:
        return value
    return {"type": value["name"], **{k: v for k, v in value.items() if k != "name"}}


def _instant(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.replace("/", "-")
        moment = iso_ns(text)
        if moment is None:
            try:
                value = float(value)
            except ValueError:
                return None
        else:
            return moment
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not 0 <= value < 1e19:
        return None
    for scale in (SECOND, 1_000_000, 1_000, 1):  # s, ms, µs, ns since 1970
        if value < 1e11 * (SECOND // scale):
            return round(value * scale) if isinstance(value, float) else value * scale
    return None


def _level(value: Any, record: Mapping[str, Any]) -> tuple[str, int | None]:
    """Our name of a level, and its number where the name is not a standard one."""
    if value is None:
        return "info", None
    if isinstance(value, str) and value.isdecimal() and len(value) < 9:
        value = int(value)
    if isinstance(value, int):
        if "msg" in record and "hostname" in record:  # the levels of pino and bunyan
            name = _PINO.get(value, "critical" if value == 60 else str(value))
        else:
            name = _ROUND.get(value, str(value))
        number = levels.NUMBERS.get(name, value)
    else:
        name = str(value).lower()
        known = levels.NUMBERS.get(name)
        if known is None:
            return name, None
        number = known
        name = _ROUND.get(number, name)
    return name, None if name in levels.STANDARD else number
