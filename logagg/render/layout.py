"""One record as styled text, in each output format. Pure.

Guarantee: unless `LayoutOptions.raw` is set, no format but `json` lets a control
character other than newline and tab through, and no text can pass for another record:
the lines after a record's first are indented or stand after a gutter, and `logfmt` is
one line. (`message` is the bare message; its further lines are its own.) Nothing is cut
unless `LayoutOptions.limit` is set.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from logagg.core import levels
from logagg.core.record import CONSUMER, HEAD, ORIGIN
from logagg.core.units import SECOND, iso_ns
from logagg.filters.fields import lookup, present
from logagg.render import markup, traceback
from logagg.render.markup import StyledText

FORMATS = ("pretty", "plain", "json", "logfmt", "message", "full")
TIMES = ("clock", "full", "iso", "delta", "epoch", "none")

CORE = frozenset((*HEAD, "exception"))
"""Fields with a place of their own in the layout."""

_QUIET = CORE | {*ORIGIN, "received", "late", "level_number", "stream"}
_LEVEL_WORDS = {"warning": "WARN", "critical": "CRIT"}
_BARE = re.compile(r'[^\s"=\\\x00-\x1f]+')
TAG_COLUMNS = 4
_MESSAGE_COLUMNS = 30
_LOGGER_COLUMNS = 12
_MILLISECOND = 1_000_000
_NEWLINE = ("", "\n")


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """Format of a record, and of what stands between records.

    Attributes:
        format: One of `FORMATS` (`json` only for `fields`; see `project`).
        time: One of `TIMES`.
        zone: The zone of shown times; None is local time.
        tb: One of `traceback.STYLES`.
        fields: Show these fields only, in this order; None is all.
        hide: Do not show these; `*` is all but the core ones.
        limit: Cut a value over this many characters in the middle; None never cuts.
        hits: Patterns to highlight.
        raw: Let control characters of the message and the traceback through.
        today: The first day that needs no rule with its date (with `time` `clock`).
        gap: Seconds without a record from which a rule is shown; None for none.
        changed: Show only fields that differ from the record before of that worker
            and logger.
        collapse: Show equal records in a row as one, with their number.
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
    today: dt.date | None = None
    gap: float | None = None
    changed: bool = False
    collapse: bool = False


def render(
    record: Mapping[str, Any],
    options: LayoutOptions,
    *,
    previous_ns: int | None = None,
    unchanged: frozenset[str] = frozenset(),
    repeats: str = "",
    tag_columns: int = TAG_COLUMNS,
) -> list[StyledText]:
    """Lay out a record, the newline at its end included.

    Args:
        record: A parsed record.
        options: The layout.
        previous_ns: The instant of the record before, for `delta`.
        unchanged: Fields not to show again.
        repeats: Text about collapsed repeats, at the end of the line.
        tag_columns: Width of the column with the worker.
    """
    if options.format == "message":
        text = _text(record.get("message"), options)
        return [*markup.marked("", text, options.hits), _NEWLINE]
    if options.format == "logfmt":
        return _logfmt(record, options)
    message, *below = _text(record.get("message"), options).split("\n")
    fields = _fields(record, options, unchanged)
    if options.format == "full":
        below += [f"{key}={value}" for key, value in fields]
        fields = []
    line = _columns(record, options, previous_ns, tag_columns)
    line += markup.marked("message", message, options.hits)
    line += _after_message(record, options, message, fields)
    if repeats:
        line.append(("dim", "  " + repeats))
    line.append(_NEWLINE)
    shown = record if "stack" not in options.hide else {**record, "stack": None}
    below += [_clean(text, options) for text in traceback.body(shown, options.tb)]
    if below:
        margin = _margin(record, options)
        for text in below:
            line += [*margin, *markup.marked("", text, options.hits), _NEWLINE]
    return line


def project(record: Mapping[str, Any], options: LayoutOptions) -> dict[str, Any]:
    """Select the fields that `json` shows when fields are chosen or hidden."""
    if options.fields is not None:
        return dict(_chosen(record, options, frozenset()))
    if "*" in options.hide:
        names = CORE - options.hide
        return {key: value for key, value in record.items() if key in names}
    return {key: value for key, value in record.items() if key not in options.hide}


# --- time ---


def instant(record: Mapping[str, Any]) -> int | None:
    """A record's time in nanoseconds since the epoch."""
    text = record.get("timestamp")
    if not isinstance(text, str):
        return None
    part = text[20:29]
    if len(text) == 30 and text[19] == "." and part.isascii() and part.isdigit():
        whole = _whole_second(text[:19] + text[29])
        return None if whole is None else whole + int(part)
    return iso_ns(text)


_whole_second = functools.lru_cache(1024)(iso_ns)  # a second has many records


@functools.lru_cache(1024)
def local(seconds: int, zone: dt.tzinfo | None) -> dt.datetime:
    """Convert whole seconds since the epoch to a zone (None: local time)."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    try:
        return moment.astimezone(zone)
    except (OverflowError, ValueError):  # within a day of the calendar's ends
        return moment


@functools.lru_cache(1024)
def _second_text(
    seconds: int, zone: dt.tzinfo | None, form: str
) -> tuple[str, int, str]:
    """A time's text before its fraction, the fraction's digits, the text after it."""
    moment = local(seconds, zone)
    if form == "iso":
        offset = moment.strftime("%z")
        end = "Z" if zone is dt.UTC else f"{offset[:3]}:{offset[3:]}"
        return f"{moment:%Y-%m-%dT%H:%M:%S}.", 9, end
    day = f"{moment:%Y-%m-%d} " if form == "full" else ""
    return f"{day}{moment:%H:%M:%S}.", 3, ""


def time_text(
    record: Mapping[str, Any], options: LayoutOptions, previous_ns: int | None
) -> str:
    """A record's time in the form of the options; `delta` counts from `previous_ns`."""
    if options.time == "none":
        return ""
    own = instant(record)
    if own is None:
        text = record.get("timestamp")
        return markup.inline(str(text)) if text is not None else "-"
    seconds, part = divmod(own, SECOND)
    if options.time == "epoch":
        return f"{seconds}.{part:09d}"
    if options.time == "delta":
        gap = (own - previous_ns) / SECOND if previous_ns is not None else 0.0
        return f"{gap:+10.6f}"
    before, digits, after = _second_text(seconds, options.zone, options.time)
    if digits == 3:
        return f"{before}{part // _MILLISECOND:03d}"
    return f"{before}{part:09d}{after}"


# --- the columns before the message ---


def _columns(
    record: Mapping[str, Any],
    options: LayoutOptions,
    previous_ns: int | None,
    tag_columns: int,
) -> list[StyledText]:
    late = record.get("late") is True
    clock = time_text(record, options, previous_ns)
    name, style = _level(record)
    worker = _worker(record)
    logger = str(record.get("logger") or "")
    if options.format == "plain":
        parts = [clock, name, worker and _tag(worker), markup.inline(logger) + ":"]
        text = " ".join(part for part in parts if part not in ("", ":"))
        return [("", ("~" if late else "") + text + " ")]
    found: list[StyledText] = [("late", "~") if late else ("", " ")]
    if clock:
        found += [("time", clock), ("", "  ")]
    word = _LEVEL_WORDS.get(name.lower(), name)[:5]
    found += [(style, word), ("", " " * (6 - len(word)))]
    if worker:
        tag = _tag(worker)
        space = " " * max(tag_columns - len(tag), 1)
        found += [(f"worker.{worker}", tag), ("", space)]
    # An escape is at least as long as its character: enough for the end of the name.
    found += _logger_column(logger[-2 * _LOGGER_COLUMNS :])
    return found


@functools.lru_cache(1024)
def _logger_column(name: str) -> tuple[StyledText, StyledText]:
    shown = markup.inline(name)
    if len(shown) > _LOGGER_COLUMNS:
        shown = "…" + shown[1 - _LOGGER_COLUMNS :]
    space = " " * max(_LOGGER_COLUMNS + 2 - markup.width(shown), 1)
    return ("logger", shown), ("", space)


def _level(record: Mapping[str, Any]) -> tuple[str, str]:
    """The level's name in capitals, and its style by severity."""
    name = str(record.get("level") or "-")
    number = levels.number_in(record)
    return markup.inline(name).upper(), level_style(number)


@functools.lru_cache(64)
def level_style(number: float | None) -> str:
    """The style of a level by its number; none for a level without one."""
    if number is None:
        return ""
    reached = [name for name, least in levels.STANDARD.items() if number >= least]
    return f"level.{reached[-1]}" if reached else "level.debug"


def _tag(worker: str) -> str:
    """A worker's number or pid after a `w`; a name (`web.1`) as it is."""
    return f"w{worker}" if worker[:1].isdigit() else worker


def _worker(record: Mapping[str, Any]) -> str:
    worker = record.get("worker")
    if worker == CONSUMER and record.get("app"):
        worker = record["app"]  # a record about a program
    return "" if worker is None else markup.inline(str(worker)[:40])[:40]


def tag_columns(record: Mapping[str, Any]) -> int:
    """The columns that the worker of a record takes, with the space after it.

    For one of several programs in steps of 8: the first records have the same width.
    """
    wide = len(_tag(_worker(record))) + 1
    return wide + -wide % 8 if record.get("app") else wide


def _is_in_tag(record: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether the worker's column shows a field already: `app` of `web.1`."""
    worker = _worker(record)
    return key == "app" and worker.partition(".")[0] == value


def _margin(record: Mapping[str, Any], options: LayoutOptions) -> list[StyledText]:
    """Text before each further line of a record."""
    if options.format == "plain":
        return [("", "    ")]
    clock = len(time_text(record, options, None))
    space = " " * (clock + 9 if clock else 7)
    return [("", space), (f"gutter.{_worker(record)}", "│ ")]


# --- the message and what follows it ---


def _after_message(
    record: Mapping[str, Any],
    options: LayoutOptions,
    message: str,
    fields: list[tuple[str, str]],
) -> list[StyledText]:
    """Fields, and the exception in one line."""
    found: list[StyledText] = []
    error = ""
    if options.tb != "none" and "exception" in record:
        error = markup.inline(traceback.summary(record["exception"]))
    gap = ("", " " if options.format == "plain" else "  ")
    if (fields or error) and options.format != "plain":
        found.append(("", " " * max(_MESSAGE_COLUMNS - markup.width(message), 0)))
    for key, value in fields:
        found += [gap, ("key", key + "=")]
        found += markup.marked("value", value, options.hits)
    if error:
        error = markup.cut(error, options.limit)
        found += [gap, *markup.marked("exception", error, options.hits)]
    return found


def _fields(
    record: Mapping[str, Any], options: LayoutOptions, unchanged: frozenset[str]
) -> list[tuple[str, str]]:
    whole = options.format == "full"
    shown = [
        (key_text(key), value_text(value, options.limit))
        for key, value in _chosen(record, options, CORE if whole else _QUIET)
        if key not in unchanged
    ]
    if whole and record.get("seq") is not None and "*" not in options.hide:
        shown.insert(0, ("seq", value_text(record["seq"])))
    return shown


def _chosen(
    record: Mapping[str, Any], options: LayoutOptions, quiet: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """The fields to show, in the record's order or that of the options."""
    if options.fields is not None:
        for name in options.fields:
            value = lookup(record, name)
            if present(value) and name not in options.hide:
                yield name, value
    elif "*" not in options.hide:
        for name, value in record.items():
            hidden = name in quiet or name in options.hide
            if hidden or _is_in_tag(record, name, value):
                continue
            if name != "stack" or not isinstance(value, str):  # shown as lines
                yield name, value


def key_text(key: str) -> str:
    """A field's name on one line, harmless, in quotes where it needs them."""
    if key.isascii() and key.isidentifier():
        return key
    return _word(key)


def value_text(value: Any, limit: int | None = None) -> str:
    """A field's value on one line, harmless: bare words as they are, else JSON."""
    if isinstance(value, str):
        return _word(markup.cut(value, limit))
    return markup.json_visible(markup.cut(json_text(value), limit))


def _word(text: str) -> str:
    if _BARE.fullmatch(text) and markup.inline(text) == text:
        return text
    return markup.json_visible(json_text(text))


def json_text(value: Any) -> str:
    """A value as JSON; any value that a record can hold."""
    try:
        return orjson.dumps(value, default=str, option=_JSON_OPTIONS).decode()
    except orjson.JSONEncodeError:  # a lone surrogate, an integer over 64 bits
        pass
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "(nested too deeply)"


_JSON_OPTIONS = orjson.OPT_NON_STR_KEYS


def _clean(text: str, options: LayoutOptions) -> str:
    text = markup.cut(text, options.limit and options.limit * 20)
    return text if options.raw else markup.visible(text)


def _text(value: Any, options: LayoutOptions) -> str:
    text = (
        value if isinstance(value, str) else "" if value is None else json_text(value)
    )
    return _clean(text.rstrip("\n"), options)


def _logfmt(record: Mapping[str, Any], options: LayoutOptions) -> list[StyledText]:
    pairs: list[tuple[str, Any]] = []
    for key, value in project(record, options).items():
        if key != "exception" or not isinstance(value, Mapping):
            pairs.append((key, value))
        elif options.tb != "none":
            names = ("type", "message", "stack")[: 3 if options.tb == "full" else 2]
            pairs += [(f"exception.{n}", value[n]) for n in names if n in value]
    found: list[StyledText] = []
    for key, value in pairs:
        text = value_text(value, options.limit)
        if not isinstance(value, str) and not _BARE.fullmatch(text):
            text = json_text(text)
        found += [("", " " if found else ""), ("key", key_text(key) + "=")]
        found += markup.marked("value", text, options.hits)
    return [*found, _NEWLINE]
