"""From a record to segments: what each output format shows of it. Pure.

Guarantee: unless `Look.raw` is set, no format but `json` lets a control character
other than newline and tab through, and a text can never look like another record: what
follows a record's first line is indented behind a gutter or white space, and `logfmt`
has no second line at all. (`message` is the exception its name says: the bare message,
whose further lines are the message's own.) Nothing is cut unless `Look.limit` is set.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from logagg.view import failure, levels, segments
from logagg.view.conditions import lookup, present
from logagg.view.segments import Segment
from logagg.view.times import SECOND, iso_ns

FORMATS = ("pretty", "plain", "json", "logfmt", "message", "full")
TIMES = ("clock", "full", "iso", "delta", "epoch", "none")

# What the first line shows elsewhere, or what nobody reads every time.
CORE = frozenset(
    ("timestamp", "level", "worker", "seq", "logger", "message", "exception")
)
_QUIET = CORE | {
    "pid", "process", "thread", "received", "late", "level_number", "stream",
}  # fmt: skip
_WORDS = {"warning": "WARN", "critical": "CRIT"}
_BARE = re.compile(r'[^\s"=\\\x00-\x1f]+')
_PADDED = 30


@dataclass(frozen=True, slots=True)
class Look:
    """How records are to look.

    Attributes:
        format: One of `FORMATS` (`json` only for `fields`; see `project`).
        time: One of `TIMES`.
        zone: The zone of shown times; None is local time.
        tb: One of `failure.STYLES`.
        fields: Show these fields only, in this order; None is all.
        hide: Do not show these; `*` is all but the core ones.
        limit: Cut a value over this many characters in the middle; None never cuts.
        hits: Patterns to highlight.
        raw: Let control characters of the message and the traceback through.
    """

    format: str = "pretty"
    time: str = "clock"
    zone: dt.tzinfo | None = None
    tb: str = "full"
    fields: tuple[str, ...] | None = None
    hide: frozenset[str] = frozenset()
    limit: int | None = None
    hits: tuple[re.Pattern[str], ...] = ()
    raw: bool = False


def instant(record: Mapping[str, Any]) -> int | None:
    """When the record was made, in nanoseconds since the epoch."""
    text = record.get("timestamp")
    if not isinstance(text, str):
        return None
    part = text[20:29]
    if len(text) == 30 and text[19] == "." and part.isascii() and part.isdigit():
        whole = _whole_second(text[:19] + text[29])
        return None if whole is None else whole + int(part)
    return iso_ns(text)


_whole_second = functools.lru_cache(1024)(iso_ns)  # a second has many records


def local(instant_ns: int, zone: dt.tzinfo | None) -> dt.datetime:
    """The instant in a zone (None: local), whole seconds."""
    return _local(instant_ns // SECOND, zone)


@functools.lru_cache(1024)
def _local(seconds: int, zone: dt.tzinfo | None) -> dt.datetime:
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    try:
        return moment.astimezone(zone)
    except (OverflowError, ValueError):  # within a day of the calendar's ends
        return moment


def time_text(record: Mapping[str, Any], look: Look, previous_ns: int | None) -> str:
    """The time as the look wants it; for `delta`, since the instant before."""
    own = instant(record)
    if look.time == "none":
        return ""
    if own is None:
        text = record.get("timestamp")
        return segments.inline(str(text)) if text is not None else "-"
    if look.time == "epoch":
        return f"{own // SECOND}.{own % SECOND:09d}"
    if look.time == "delta":
        gap = (own - previous_ns) / SECOND if previous_ns is not None else 0.0
        return f"{gap:+10.6f}"
    moment = local(own, look.zone)
    if look.time == "iso":
        zone = moment.strftime("%z")
        zone = "Z" if look.zone is dt.UTC else f"{zone[:3]}:{zone[3:]}"
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{own % SECOND:09d}{zone}"
    milliseconds = own % SECOND // 1_000_000
    day = f"{moment:%Y-%m-%d} " if look.time == "full" else ""
    return f"{day}{moment:%H:%M:%S}.{milliseconds:03d}"


def render(
    record: Mapping[str, Any],
    look: Look,
    *,
    previous_ns: int | None = None,
    same: frozenset[str] = frozenset(),
    repeats: str = "",
) -> list[Segment]:
    """The record's segments, the newline at its end included.

    Args:
        record: A parsed record.
        look: How it is to look.
        previous_ns: The instant of the record before, for `delta`.
        same: Fields that need not be shown again (`--changed`).
        repeats: What stands for collapsed repeats: how many, and from when to when.
    """
    if look.format == "message":
        text = _text(record.get("message"), look)
        return [*segments.marked("", text, look.hits), ("", "\n")]
    if look.format == "logfmt":
        return _logfmt(record, look)
    whole = look.format == "full"
    quiet = CORE if whole else _QUIET
    fields = [
        (_key(k), _value(v, look))
        for k, v in chosen(record, look, quiet)
        if k not in same
    ]
    message, *below = _text(record.get("message"), look).split("\n")
    if whole:
        if record.get("seq") is not None and "*" not in look.hide:
            fields.insert(0, ("seq", _value(record["seq"], look)))
        below += [f"{key}={value}" for key, value in fields]
        fields = []
    error = record.get("exception")
    broke = segments.inline(failure.summary(error)) if look.tb != "none" else ""
    spaced = look.format != "plain"
    line = [*_columns(record, look, previous_ns)]
    line += segments.marked("message", message, look.hits)
    if spaced and (fields or broke):
        line.append(("", " " * max(_PADDED - segments.width(message), 0)))
    for key, value in fields:
        line += [("", "  " if spaced else " "), ("key", key + "=")]
        line += segments.marked("value", value, look.hits)
    if broke:
        line.append(("", "  " if spaced else " "))
        line += segments.marked("exception", segments.cut(broke, look.limit), look.hits)
    line += [("dim", "  " + repeats if repeats else ""), ("", "\n")]
    trace = [_clean(text, look) for text in failure.body(error, look.tb)]
    margin = _margin(record, look) if below or trace else []
    for text in (*below, *trace):
        line += [*margin, *segments.marked("", text, look.hits), ("", "\n")]
    return line


def chosen(
    record: Mapping[str, Any], look: Look, quiet: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """The fields to show, in the record's order or the order asked for."""
    if look.fields is not None:
        for name in look.fields:
            value = lookup(record, name)
            if present(value) and name not in look.hide:
                yield name, value
    elif "*" not in look.hide:
        for name, value in record.items():
            if name not in quiet and name not in look.hide:
                yield name, value


def project(record: Mapping[str, Any], look: Look) -> dict[str, Any]:
    """What `json` shows of a record when fields are chosen or hidden."""
    if look.fields is not None:
        return dict(chosen(record, look, frozenset()))
    if "*" in look.hide:
        return {k: v for k, v in record.items() if k in CORE and k not in look.hide}
    return {k: v for k, v in record.items() if k not in look.hide}


# --- parts ---


def _columns(
    record: Mapping[str, Any], look: Look, previous_ns: int | None
) -> list[Segment]:
    late = "~" if record.get("late") is True else " "
    clock = time_text(record, look, previous_ns)
    level, style = _level(record)
    worker = _name(record)
    logger = segments.inline(str(record.get("logger") or ""))
    if look.format == "plain":
        parts = [clock, level, _tag(worker) if worker else "", logger + ":"]
        text = " ".join(part for part in parts if part not in ("", ":"))
        return [("", ("~" if late == "~" else "") + text + " ")]
    if len(logger) > 12:
        logger = "…" + logger[-11:]
    found: list[Segment] = [("late" if late == "~" else "", late)]
    if clock:
        found += [("time", clock), ("", "  ")]
    word = _WORDS.get(level.lower(), level)[:5]
    found += [(style, word), ("", " " * (6 - len(word)))]
    if worker:
        tag = _tag(worker)
        found += [(f"worker.{worker}", tag), ("", " " * max(4 - len(tag), 1))]
    found += [("logger", logger), ("", " " * (14 - segments.width(logger)))]
    return found


def _level(record: Mapping[str, Any]) -> tuple[str, str]:
    """The level's word and its style, by severity."""
    number = levels.number_in(record)
    name = segments.inline(str(record.get("level") or "-")).upper()
    style = ""
    for known, least in levels.STANDARD.items():
        if number is not None and number >= least:
            style = f"level.{known}"
    if number is not None and number < levels.STANDARD["debug"]:
        style = "level.debug"
    return name, style


def _tag(worker: str) -> str:
    """A worker's number or pid behind a `w`; a name (the consumer's) as it is."""
    return f"w{worker}" if worker[:1].isdigit() else worker


def _name(record: Mapping[str, Any]) -> str:
    worker = record.get("worker")
    return "" if worker is None else segments.inline(str(worker))[:40]


def _margin(record: Mapping[str, Any], look: Look) -> list[Segment]:
    """What stands before each further line of a record."""
    if look.format == "plain":
        return [("", "    ")]
    clock = len(time_text(record, look, None))
    space = " " * (clock + 9 if clock else 7)
    return [("", space), (f"gutter.{_name(record)}", "│ ")]


def _clean(text: str, look: Look) -> str:
    text = segments.cut(text, look.limit and look.limit * 20)
    return text if look.raw else segments.visible(text)


def _text(value: Any, look: Look) -> str:
    text = value if isinstance(value, str) else "" if value is None else _json(value)
    return _clean(text.rstrip("\n"), look)


def _json(value: Any) -> str:
    options = orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(value, default=str, option=options).decode()
    except orjson.JSONEncodeError:  # what only another JSON reader lets in
        return repr(value)


def _key(key: str) -> str:
    return segments.inline(key if _BARE.fullmatch(key) else _json(key))


def _value(value: Any, look: Look) -> str:
    if isinstance(value, str):
        text = segments.cut(value, look.limit)
        return segments.inline(text if _BARE.fullmatch(text) else _json(text))
    return segments.inline(segments.cut(_json(value), look.limit))


def _logfmt(record: Mapping[str, Any], look: Look) -> list[Segment]:
    pairs: list[tuple[str, Any]] = []
    for key, value in project(record, look).items():
        if key != "exception" or not isinstance(value, Mapping):
            pairs.append((key, value))
        elif look.tb != "none":
            names = ("type", "message", "stack")[: 3 if look.tb == "full" else 2]
            pairs += [(f"exception.{n}", value[n]) for n in names if n in value]
    found: list[Segment] = []
    for key, value in pairs:
        text = _value(value, look)
        if not isinstance(value, str) and not _BARE.fullmatch(text):
            text = _json(text)
        found += [("", " " if found else ""), ("key", _key(key) + "=")]
        found += segments.marked("value", text, look.hits)
    return [*found, ("", "\n")]
