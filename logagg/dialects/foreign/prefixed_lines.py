"""Lines of text that hold a record: after a prefix, as pairs, or in columns. Pure.

The prefixes are those of containers and syslog:

    web-1  | {…}                                        docker compose
    2026-11-20T09:15:02.1Z {…}                          kubectl logs --timestamps
    2026-11-20T09:15:02.100000001Z stdout F {…}         a CRI log file
    Nov 20 09:15:02 host app[77]: {…}                   syslog

The rest is taken apart as if it stood alone. The time of a container is `collected_at`,
which counts where the record has none; a date of syslog has no year and is left.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from logagg.dialects.foreign.text_forms import record_of_form
from logagg.dialects.foreign.time_texts import leading_time
from logagg.dialects.plain_text import level_of_text, without_colours
from logagg.dialects.rendered_events import parse_event

__all__ = ["record_of_text"]

_ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)"
_COMPOSE = re.compile(r"(?P<service>[\w.-]+) +\| ")
_CRI = re.compile(rf"(?P<collected_at>{_ISO}) (?P<stream>stdout|stderr) [FP] ")
_KUBERNETES = re.compile(rf"(?P<collected_at>{_ISO}) (?=\{{|\w+=)")
_POD = re.compile(r"\[pod/(?P<pod>[^/\]]+)/(?P<container>[^\]]+)\] ")
_SYSLOG = re.compile(
    r"(?:<(?P<priority>\d{1,3})>)?[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d "
    r"(?P<host>[\w.:-]+) (?P<logger>[\w./-]+)(?:\[(?P<pid>\d{1,10})\])?: "
)
_SYSLOG_STARTS = frozenset("<JFMASOND")
_LONGEST_NAME = 80
_ZAP = re.compile(
    r"(?:(?P<timestamp>[\d:.TZ+-]+)\t)?(?P<level>DEBUG|INFO|WARN|ERROR|DPANIC|PANIC|FATAL)\t"
    r"(?:(?P<logger>[\w.-]+)\t)?(?:(?P<caller>[\w./@-]+:\d+)\t)?"
    r"(?P<message>.*?)(?:\t(?P<fields>\{.*\}))?"
)
_PAIR = re.compile(r'([A-Za-z_][\w.@-]*)=(?:"((?:[^"\\]|\\.)*)"|([^\s"]*))(?:\s+|$)')
_NAMED = frozenset(("level", "lvl", "severity", "msg", "message", "time", "ts"))
_MOST_PAIRS = 200


def record_of_text(text: str) -> dict[str, Any]:
    """The record that a line of text is; at least a level and a message."""
    plain = without_colours(text)
    outer: dict[str, Any] = {}
    if found := _prefix(plain):
        outer = {name: value for name, value in found.groupdict().items() if value}
        plain = plain[found.end() :]
    inner = parse_event(plain)
    if inner is None and "=" in plain[:_LONGEST_NAME]:
        inner = _pairs(plain)
    inner = inner or _columns(plain) or record_of_form(plain)
    if inner is None:
        inner = _stated(plain)
        if not outer and "timestamp" not in inner and inner["level"] == "info":
            inner["message"] = text  # its colours are no form
    if "pid" in outer:
        outer["pid"] = int(outer["pid"])
    if "priority" in outer:
        inner["level"] = level_of_text(f"<{int(outer.pop('priority')) % 8}>")
    return {**outer, **inner}


def _prefix(text: str) -> re.Match[str] | None:
    """The prefix that a line has; most have none, which its first bytes show."""
    if text[10:11] == "T" and text[:1].isdigit():
        return _CRI.match(text) or _KUBERNETES.match(text)
    if text[:5] == "[pod/":
        return _POD.match(text)
    if "| " in text[:_LONGEST_NAME] and (found := _COMPOSE.match(text)):
        return found
    return _SYSLOG.match(text) if text[:1] in _SYSLOG_STARTS else None


def _pairs(text: str) -> dict[str, Any] | None:
    """The pairs of logfmt, if the line consists of them and names what a log does."""
    found: dict[str, Any] = {}
    end = 0
    while pair := _PAIR.match(text, end):
        name, quoted, bare = pair.groups()
        found[name] = _unquoted(quoted) if quoted is not None else _typed(bare)
        end = pair.end()
        if len(found) > _MOST_PAIRS:
            return None
    whole = end == len(text) and len(found) > 1
    return found if whole and not _NAMED.isdisjoint(found) else None


def _unquoted(text: str) -> str:
    if "\\" not in text:
        return text
    try:
        return str(orjson.loads(f'"{text}"'))
    except orjson.JSONDecodeError:
        return text


def _typed(text: str) -> Any:
    """A bare value: a whole number, true or false, else its text."""
    if len(text) < 18 and text.isascii() and text.removeprefix("-").isdecimal():
        return int(text) if str(int(text)) == text else text
    return {"true": True, "false": False}.get(text, text)


def _columns(text: str) -> dict[str, Any] | None:
    """The columns of zap's encoder for people."""
    found = _ZAP.fullmatch(text) if "\t" in text else None
    if found is None:
        return None
    columns = {name: value for name, value in found.groupdict().items() if value}
    fields = parse_event(columns.pop("fields", ""))
    return {**(fields or {}), **columns}


def _stated(text: str) -> dict[str, Any]:
    """A logger's text: its level and its time, where its form makes them certain."""
    found: dict[str, Any] = {}
    if (moment := leading_time(text)) is not None:
        found["timestamp"] = moment
    found["level"] = level_of_text(text) or "info"
    found["message"] = text
    return found
