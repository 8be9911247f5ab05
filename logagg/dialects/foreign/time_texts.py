"""Instants in the forms of other programs. Pure.

ISO 8601 in its extended and basic form, the dates of HTTP and e-mail, of access logs,
numbers since 1970 in seconds, milliseconds, microseconds or nanoseconds (by their size:
each unit covers the years 1973 to 5138), and objects of seconds and nanoseconds.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from logagg.core.units import SECOND, iso_ns

__all__ = ["instant", "instant_of_text", "leading_time"]

_BASIC = re.compile(
    r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)([.,]\d+)?(Z|[+-]\d\d:?\d\d)?"
)
_ACCESS = re.compile(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?")
_WORD = re.compile(r"(.*\d) ?(?:UTC|GMT)")
_LEADING = re.compile(
    r"\[?(\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
    r"(?: ?(?:Z\b|UTC\b|[+-]\d\d:?\d\d))?)[\]:,]?(?=\s|$)"
)
_PARTS = (("seconds", "nanos"), ("epochSecond", "nanoOfSecond"))
_UNITS = (SECOND, 1_000_000, 1_000, 1)


def instant(value: Any, *, local: bool = False) -> int | None:
    """A value as nanoseconds since 1970, or None when it is no instant.

    Args:
        value: A text, a number, or an object.
        local: A text that names no zone is in this machine's; else it is in UTC.
    """
    if isinstance(value, str):
        return instant_of_text(value.strip(), local=local)
    if isinstance(value, Mapping):
        return _of_object(value, local)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value < 1e19:
        return None
    for scale in _UNITS:
        if value < 1e11 * (SECOND // scale):
            return round(value * scale) if isinstance(value, float) else value * scale
    return None


def instant_of_text(text: str, *, local: bool = False) -> int | None:
    """As `instant`, of a text."""
    if text[:1].isdigit():
        if text.isascii() and text.isdecimal():
            return instant(int(text)) if len(text) < 20 else None
        if found := _WORD.fullmatch(text):
            text, local = found[1], False
        zone = None if local else dt.UTC
        moment = iso_ns(text.replace("/", "-") if text[4:5] == "/" else text, zone)
        if moment is not None:
            return moment
        if found := _BASIC.fullmatch(text):
            year, month, day, hour, minute, second, part, offset = found.groups("")
            text = f"{year}-{month}-{day}T{hour}:{minute}:{second}{part}{offset}"
            return iso_ns(text, zone)
        if _ACCESS.fullmatch(text):
            return _access(text, zone)
        try:
            return instant(float(text))
        except ValueError:
            return None
    return _dated(text, local) if text[:1].isalpha() and len(text) < 64 else None


def _access(text: str, zone: dt.tzinfo | None) -> int | None:
    """The date of an access log. The names of its months are English in any locale."""
    day, month, rest = text.split("/")
    year, clock = rest[:4], rest[5:].replace(" ", "")
    if month not in _MONTHS:
        return None
    return iso_ns(f"{year}-{_MONTHS.index(month) + 1:02}-{day}T{clock}", zone)


_MONTHS = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


def _dated(text: str, local: bool) -> int | None:
    """A date as of HTTP or e-mail."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return iso_ns(moment.isoformat(), None if local else dt.UTC)


def _of_object(value: Mapping[str, Any], local: bool) -> int | None:
    for whole, part in _PARTS:
        seconds, nanoseconds = value.get(whole), value.get(part, 0)
        if isinstance(seconds, str) and seconds.isascii() and seconds.isdecimal():
            seconds = int(seconds[:12])
        if type(seconds) is int and type(nanoseconds) is int and 0 <= seconds < 1e11:
            return seconds * SECOND + nanoseconds
    if len(value) == 1 and "$date" in value:  # MongoDB
        inner = value["$date"]
        return None if isinstance(inner, Mapping) else instant(inner, local=local)
    return None


def leading_time(text: str) -> int | None:
    """The instant that a line of text begins with.

    A logger of text writes local time, where it names no zone.
    """
    found = _LEADING.match(text)
    return None if found is None else instant_of_text(found[1], local=True)
