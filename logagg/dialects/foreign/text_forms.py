"""Forms of text logs, each a pattern that names where its parts stand. Pure.

A line has a form only as a whole: what is not certain stays in the message. The groups
`timestamp`, `level`, `logger`, `message` are logagg's own; others are fields. A time that
names no zone is local, as loggers of text write it.
"""

from __future__ import annotations

import re
from typing import Any

from logagg.core.levels import NUMBERS
from logagg.dialects.access_logs import printed_access
from logagg.dialects.foreign.time_texts import instant_of_text

__all__ = ["record_of_form"]

_T = (
    r"(?P<timestamp>\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
    r"(?: ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?)"
)
_L = rf"(?P<level>{'|'.join(sorted(map(str.upper, NUMBERS), key=len, reverse=True))})"
_NAME = r"(?P<logger>[A-Za-z_][\w.$-]*)"
_M = r"(?P<message>.*)"

_CODE = r"(?P<thread>\d+)"
_PID = r"(?P<pid>\d+)"
_WORD = r"(?P<level>[a-z]+)"
_POSTGRESQL = (
    r"(?P<level>LOG|ERROR|FATAL|PANIC|WARNING|NOTICE|INFO|DEBUG|STATEMENT|DETAIL|HINT"
    r"|CONTEXT)\d?"
)
_DAY = r"[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d(?:\.\d+)? \d{4}"
_DATA = r'(?P<data>-|(?:\[(?:[^\]"]|"(?:[^"\\]|\\.)*")*\])+)'

_BY_START: dict[str, dict[str, str]] = {
    "digit": {
        "logging, dashes": rf"{_T} - {_NAME} - {_L} - {_M}",
        "log4j, logback": rf"{_T} \[(?P<thread>[^\]]+)\] {_L} +{_NAME} -+ {_M}",
        "Spring": rf"{_T} +{_L} {_PID} --- (?:\[[^\]]*\] ?)+{_NAME} +: {_M}",
        "loguru": rf"{_T} \| {_L} +\| {_NAME}:(?P<function>[\w<>]+):(?P<line>\d+) - {_M}",
        "logging": rf"{_T} {_L} (?P<logger>[a-z_][\w.]*): {_M}",
        "PostgreSQL": rf"{_T} \[{_PID}\] (?:(?P<user>[^\s@]+)@(?P<database>\S+) )?"
        rf"{_POSTGRESQL}: +{_M}",
        "MySQL": rf"{_T} {_CODE} \[(?P<level>Note|Warning|ERROR|System)\] "
        rf"\[(?P<code>MY-\d+)\] \[(?P<logger>\w+)\] {_M}",
        "nginx": rf"{_T} \[{_WORD}\] {_PID}#\d+: (?:\*(?P<connection>\d+) )?{_M}",
        "Lambda, Node.js": rf"{_T}\t(?P<request_id>[\w-]+)\t{_L}\t{_M}",
        "zerolog": rf"{_T} (?P<level>TRC|DBG|INF|WRN|ERR|FTL|PNC) {_M}",
        "Redis": r"(?P<pid>\d+):[MSCX] (?P<timestamp>\d\d [A-Z][a-z]{2} \d{4} "
        rf"\d\d:\d\d:\d\d\.\d{{3}}) (?P<level>[.*#-]) {_M}",
    },
    "[": {
        "gunicorn": rf"\[{_T}\] \[{_PID}\] \[{_L}\] {_M}",
        "Celery": rf"\[{_T}: {_L}/(?P<process>[\w-]+)\] {_M}",
        "Envoy": rf"\[{_T}\]\[{_CODE}\]\[{_WORD}\]\[(?P<logger>\w+)\] {_M}",
        "Lambda, Python": rf"\[{_L}\]\t{_T}\t(?P<request_id>[\w-]+)\t{_M}",
        "Apache": rf"\[(?P<timestamp>[A-Z][a-z]{{2}} {_DAY})\] "
        rf"\[(?:(?P<logger>\w*):)?{_WORD}\d?\] \[pid {_PID}(?::tid \d+)?\] {_M}",
        "Django's server": r"\[(?P<timestamp>\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d)\] "
        r'(?P<message>"[A-Z]+ [^"]*" (?P<status>\d{3}) \d+)',
    },
    "letter": {
        "basicConfig": rf"{_L}:(?P<logger>[A-Za-z_][\w.]*):{_M}",
        "uvicorn": rf"{_L}: {{2,}}{_M}",
        "Django's manual": rf"{_L} {_T} {_NAME} {_PID} {_CODE} {_M}",
        "klog": rf"(?P<level>[IWEF])\d{{4}} \d\d:\d\d:\d\d\.\d+ +{_PID} "
        rf"(?P<caller>[^\s\]]+:\d+)\] {_M}",
    },
    "<": {
        "syslog, RFC 5424": rf"<(?P<level>\d{{1,3}})>1 {_T} (?P<host>\S+) "
        rf"(?P<logger>\S+) (?P<pid>\S+) (?P<event_id>\S+) {_DATA} ?{_M}",
    },
}
_PATTERNS = {
    start: tuple(re.compile(each, re.DOTALL) for each in forms.values())
    for start, forms in _BY_START.items()
}
_ACCESS = re.compile(
    r"\S+ \S+ \S+ \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "
)
_PAIR = re.compile(r'([^\s=\]"]+)="((?:[^"\\\]]|\\.)*)"')
_SYSLOG = (
    "critical", "critical", "critical", "error", "warning", "info", "info", "debug"
)  # fmt: skip
_LEVELS = {
    "LOG": "info", "STATEMENT": "info", "DETAIL": "info", "HINT": "info",
    "CONTEXT": "info", "Note": "info", "System": "info", "emerg": "critical",
    "TRC": "trace", "DBG": "debug", "INF": "info", "WRN": "warning", "ERR": "error",
    "FTL": "critical", "PNC": "critical", ".": "debug", "-": "info", "*": "info",
    "#": "warning", "I": "info", "W": "warning", "E": "error", "F": "critical",
}  # fmt: skip
_NUMBERS = frozenset(("pid", "line", "status", "connection"))


def record_of_form(text: str) -> dict[str, Any] | None:
    """The parts of a line without colours, or None when it has no form of these."""
    first = text[:1]
    start = "digit" if first.isdigit() else "letter" if first.isalpha() else first
    for pattern in _PATTERNS.get(start, ()):
        if found := pattern.fullmatch(text):
            return _record(found)
    if (
        first.isalnum()
        and (at := _ACCESS.match(text))
        and (fields := printed_access(text))
    ):
        moment = instant_of_text(at[1])
        return {"timestamp": moment, "level": "info", "message": text, **fields}
    return None


def _record(found: re.Match[str]) -> dict[str, Any] | None:
    record: dict[str, Any] = {}
    for name, value in found.groupdict().items():
        if value not in (None, "", "-") or name in ("level", "message"):
            is_number = name in _NUMBERS and value.isdecimal() and len(value) < 16
            record[name] = int(value) if is_number else value
    if "timestamp" in record:
        moment = _moment(record["timestamp"])
        if moment is None:
            return None
        record["timestamp"] = moment
    level = record.get("level", "info")
    record["level"] = _LEVELS.get(level, level)
    if level.isdecimal():  # syslog's facility and severity
        record["level"] = _SYSLOG[int(level) % 8]
    for name, value in _PAIR.findall(record.pop("data", "")):
        record.setdefault(name, value)
    return record


def _moment(text: str) -> int | None:
    if text[3:4] == " ":  # `Fri Nov 20 09:15:02.100000 2026`, `20 Nov 2026 …`
        _, month, day, clock, year = text.split()
        return _named_month(year, month, day, clock)
    if text[2:3] == " ":
        day, month, year, clock = text.split()
        return _named_month(year, month, day, clock)
    if text[2:3] == "/":
        day, month, rest = text.split("/")
        return _named_month(rest[:4], month, day, rest[5:])
    return instant_of_text(text, local=True)


def _named_month(year: str, month: str, day: str, clock: str) -> int | None:
    names = "JanFebMarAprMayJunJulAugSepOctNovDec"
    number = names.find(month) // 3 + 1
    return instant_of_text(f"{year}-{number:02}-{day}T{clock}", local=True)
