"""Access logs of web servers taken apart into fields. Pure.

A server's access line is a text; what it was made from is in the record's arguments
(gunicorn, uvicorn, hypercorn, granian, django, tornado), in its extra fields (aiohttp),
or in the text alone (werkzeug, waitress). The fields have one set of names for all:

    method path query status duration_ms bytes client

A value that a server does not log is left out. The message stays the server's text,
without terminal escapes and without the newline that some put at its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import copy
from logging import LogRecord
from typing import Any

__all__ = ["access_fields", "printed_access", "with_access_fields"]

Fields = dict[str, Any]

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_COMMON = re.compile(
    r'^(?P<client>\S+) .*?"(?P<request>[^"]*)" (?P<status>\d{3}) (?P<bytes>\d+|-)'
)
"""The Common Log Format, and what begins like it."""
_PRINTED = re.compile(
    r"\S+ \S+ \S+ \[\d\d/[A-Z][a-z]{2}/\d{4}[ :]\d\d:\d\d:\d\d[^\]]{0,12}\] "
    r'"[A-Z]{3,16} [^"]*" \d{3} (?:\d+|-)(?= |$)'
)
"""The same with a date, a method and a status: certain without the logger's name."""


def access_fields(record: LogRecord) -> Fields:
    """The fields of an access log's record; empty for a record of any other logger.

    Never raises: a server may change its arguments at any time, and then the record
    keeps its text.
    """
    parse = _PARSERS.get(record.name)
    if parse is None:
        return {}
    try:
        found = parse(record)
    except Exception:  # noqa: BLE001 - arguments of another version, or a user's format
        return {}
    return {
        name: value for name, value in found.items() if value not in (None, "", "-")
    }


def _request(line: object) -> Fields:
    """`GET /a?b=c HTTP/1.1`, as a client sent it."""
    method, _, rest = _ESCAPES.sub("", str(line)).strip().strip('"').partition(" ")
    target = rest.rpartition(" ")[0] or rest
    return {"method": method, **_target(target)} if target else {}


def _target(target: object) -> Fields:
    path, _, query = str(target).partition("?")
    return {"path": path, "query": query}


def _number(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isdigit() else None


def _uvicorn(record: LogRecord) -> Fields:
    client, method, target, _, status = record.args  # type: ignore[misc]
    return {
        "method": method,
        **_target(target),
        "status": _number(status),
        "client": client,
    }


def _atoms(record: LogRecord) -> Fields:
    """gunicorn's and hypercorn's: the atoms of Apache's `LogFormat`."""
    atoms: Any = record.args
    if not isinstance(atoms, Mapping):
        atoms = atoms[0]
    micro = atoms["D"]
    # gunicorn's sync worker leaves `U` and the like out of an answer to an error.
    asked = _request(atoms["r"]) if atoms["U"] in (None, "", "-") else {}
    return {
        "method": atoms["m"],
        "path": atoms["U"],
        "query": atoms["q"],
        **asked,
        "status": _number(atoms["s"]),
        "duration_ms": int(micro) / 1000 if str(micro).isdigit() else None,
        "bytes": _number(atoms["B"]),
        "client": atoms["h"],
    }


def _granian(record: LogRecord) -> Fields:
    atoms: Any = record.args
    return {
        "method": atoms["method"],
        "path": atoms["path"],
        "query": str(atoms["query_string"]).lstrip("?"),
        "status": _number(atoms["status"]),
        "duration_ms": round(float(atoms["dt_ms"]), 3),
        "client": atoms["addr"],
    }


def _aiohttp(record: LogRecord) -> Fields:
    extra = record.__dict__
    micro = extra.get("request_time_micro")
    return {
        **_request(extra["first_request_line"]),
        "status": _number(extra["response_status"]),
        "duration_ms": micro / 1000 if isinstance(micro, int | float) else None,
        "bytes": _number(extra["response_size"]),
        "client": extra["remote_address"],
    }


def _django(record: LogRecord) -> Fields:
    line, status, size = record.args  # type: ignore[misc]
    return {**_request(line), "status": _number(status), "bytes": _number(size)}


def _tornado(record: LogRecord) -> Fields:
    status, summary, milliseconds = record.args  # type: ignore[misc]
    request, _, client = str(summary).rpartition(" (")
    method, _, target = request.partition(" ")
    return {
        "method": method,
        **_target(target),
        "status": _number(status),
        "duration_ms": round(float(milliseconds), 3),  # type: ignore[arg-type]
        "client": client.rstrip(")"),
    }


def _common(record: LogRecord) -> Fields:
    found = _COMMON.match(_ESCAPES.sub("", record.getMessage()))
    return _fields_of_common(found) if found else {}


def _fields_of_common(found: re.Match[str]) -> Fields:
    return {
        **_request(found["request"]),
        "status": _number(found["status"]),
        "bytes": _number(found["bytes"]),
        "client": found["client"],
    }


def printed_access(text: str) -> Fields:
    """The fields of a line of an access log that a server prints (`http.server`).

    Empty for any other text.
    """
    if _PRINTED.match(text) is None:
        return {}
    found = _COMMON.match(text)
    fields = _fields_of_common(found) if found else {}
    return {n: value for n, value in fields.items() if value not in (None, "", "-")}


_PARSERS: dict[str, Callable[[LogRecord], Fields]] = {
    "aiohttp.access": _aiohttp,
    "django.server": _django,
    "granian.access": _granian,
    "gunicorn.access": _atoms,
    "hypercorn.access": _atoms,
    "tornado.access": _tornado,
    "uvicorn.access": _uvicorn,
    "waitress.access": _common,
    "werkzeug": _common,
    "wsgi": _common,
}

_REPEATED = (
    "color_message", "request_header", "response_header", "first_request_line",
    "response_status", "response_size", "remote_address", "request_time_micro",
    "request_start_time", "process_id", "request", "server_time", "status_code",
)  # fmt: skip


def with_access_fields(record: LogRecord) -> LogRecord:
    """A copy of a server's record with the fields of its access line as extra fields.

    Without terminal escapes in its text, and without the extra fields in which servers
    repeat it. Never raises.
    """
    fields = access_fields(record)
    text = record.msg if record.name in _PARSERS else ""
    coloured = type(text) is str and "\x1b[" in text  # as werkzeug's banner is
    if not fields and not coloured and "color_message" not in record.__dict__:
        return record
    made = copy(record)
    if fields:
        made.msg = _ESCAPES.sub("", record.getMessage()).rstrip()
        made.args = ()
    elif coloured:
        made.msg = _ESCAPES.sub("", text)
    for name in _REPEATED:
        made.__dict__.pop(name, None)
    for name, value in fields.items():
        made.__dict__.setdefault(name, value)
    return made
