"""Sizes, durations and instants as text, to and fro. Pure.

The one grammar of each, for every option, flag and configuration key. A size is an
integer of bytes, a duration `float` seconds, an instant nanoseconds since 1970 (UTC);
`now_ns` and the zone are passed in, so the same text always means the same.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal

from logagg.errors import ConfigError

SECOND = 1_000_000_000
_MINIMUM = -62_135_596_800 * SECOND  # year 1
_MAXIMUM = 253_402_300_800 * SECOND - 1  # the end of year 9999

_ISO = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<clock>\d\d:\d\d(?::\d\d)?)(?:[.,](?P<part>\d{1,30}))?"
    r"\s?(?P<zone>[Zz]|[+-]\d\d:?\d\d)?)?",
    re.ASCII,
)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?", re.ASCII)
_STEP = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d|w)", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(rf"(?:{_STEP.pattern})+", re.ASCII | re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", re.ASCII)
_SIZES: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE_NAMES = ("TB", "TiB", "GB", "GiB", "MB", "MiB", "kB", "KiB")


def parse_size(text: str) -> int:
    """Bytes, from `50MB` (powers of 1000), `64KiB` (powers of 1024) or `4096`.

    Raises:
        ConfigError: It is none of these; `50M` is not, its meaning differs between
            programs.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _SIZES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(
            f"{text!r}: expected a size such as 50MB, 64KiB or a number of bytes"
        )
    if "." not in match[1]:
        return int(match[1]) * unit
    return round(float(match[1]) * unit)


def size_text(value: int) -> str:
    """A size in the largest unit that it is a whole number of; reads back the same."""
    for name in _SIZE_NAMES:
        unit = _SIZES[name.lower()]
        if value >= unit and value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)


def parse_duration(text: str) -> float:
    """Seconds, from `90`, `30s`, `1h30m`, `2d`, `250ms`.

    Raises:
        ConfigError: It is none of these.
    """
    word = text.strip()
    if _PLAIN_NUMBER.fullmatch(word):
        return float(word)
    if not _DURATION.fullmatch(word):
        raise ConfigError(
            f"{text!r}: expected a duration such as 10s, 1h30m, 7d or a number of seconds"
        )
    return sum(float(n) * _UNITS[unit.lower()] for n, unit in _STEP.findall(word))


def duration_text(value: float) -> str:
    """A duration as text that reads back the same: `1h30m`, or seconds (`0.25`)."""
    if value != int(value) or value <= 0:
        return f"{Decimal(repr(value)):f}" if value else "0"
    return "".join(_units_of(int(value)))


def span_text(seconds: float) -> str:
    """A duration for display, rounded to its two largest units: `6m 4s`, `1d 4h`."""
    return " ".join(_units_of(round(seconds))[:2]) or "0s"


def _units_of(seconds: int) -> list[str]:
    parts = []
    for unit in ("d", "h", "m", "s"):
        number, seconds = divmod(seconds, int(_UNITS[unit]))
        if number:
            parts.append(f"{number}{unit}")
    return parts


def wire_time(instant_ns: int) -> str:
    """An instant as the wire writes it: 30 characters, nine digits, `Z`."""
    seconds, part = divmod(min(max(instant_ns, _MINIMUM), _MAXIMUM), SECOND)
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001  # UTC by construction, and quicker
    return f"{moment.isoformat()}.{part:09d}Z"


def iso_ns(text: str, zone: dt.tzinfo | None = dt.UTC) -> int | None:
    """An ISO 8601 date or date-time as an instant, or None when it is not one.

    Args:
        text: All digits of the fraction count, up to nanoseconds.
        zone: The zone of a text that names none; None means local time.
    """
    found = _ISO.fullmatch(text)
    if found is None:
        return None
    clock = found["clock"] or "00:00:00"
    offset = (found["zone"] or "").upper()
    if offset == "Z":
        offset = "+00:00"
    try:
        moment = dt.datetime.fromisoformat(f"{found['date']}T{clock}{offset}")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone) if zone else moment.astimezone()
        whole = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None
    part = int((found["part"] or "0")[:9].ljust(9, "0"))
    return (whole.days * 86_400 + whole.seconds) * SECOND + part


def parse_instant(
    text: str, now_ns: int, *, zone: dt.tzinfo | None = None, end: bool = False
) -> int:
    """The instant that `--since` or `--until` names.

    Args:
        text: RFC 3339, a date, `14:03[:07]` (today), `today`, `yesterday`, `now`, or a
            duration, which means that long ago.
        now_ns: The current instant.
        zone: The zone of a text that names none; None means local time.
        end: The text ends a range, which is inclusive: a date means its last
            nanosecond, `14:03` the end of that minute, `14:03:07` of that second.

    Raises:
        ConfigError: It is none of these.
    """
    word = text.strip().lower()
    now = dt.datetime.fromtimestamp(now_ns // SECOND, zone)
    now = now if zone else now.astimezone()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if word == "now":
        return now_ns
    if word in ("today", "yesterday"):
        day = midnight - dt.timedelta(days=word == "yesterday")
        return _of(day, zone, days=1) - 1 if end else _of(day, zone)
    if _DURATION.fullmatch(word):
        return now_ns - round(parse_duration(word) * SECOND)
    clock = _CLOCK.fullmatch(word)
    if clock and int(clock[1]) < 24 and int(clock[2]) < 60 and int(clock[3] or 0) < 60:
        moment = midnight.replace(
            hour=int(clock[1]), minute=int(clock[2]), second=int(clock[3] or 0)
        )
        width = 60 * SECOND if clock[3] is None else _width(clock[4])
        part = int((clock[4] or "0").ljust(9, "0"))
        return _of(moment, zone) + part + (width - 1 if end else 0)
    instant = iso_ns(text.strip().replace(",", "."), zone)
    if instant is None:
        raise ConfigError(
            f"time {text!r}: expected a date-time (2026-11-25T14:03:07), a clock "
            "(14:03), today, yesterday, or how long ago (5m, 1h30m)"
        )
    if not end:
        return instant
    found = _ISO.fullmatch(text.strip())
    if found is None or not found["clock"]:
        day = dt.datetime.fromisoformat(text.strip())
        return _of(day, zone, days=1) - 1
    if len(found["clock"]) == 5:
        return instant + 60 * SECOND - 1
    return instant + _width(found["part"]) - 1


def _width(fraction: str | None) -> int:
    """How many nanoseconds a time with these digits of a second names."""
    return int(10 ** max(9 - len(fraction or ""), 0))


def _of(day: dt.datetime, zone: dt.tzinfo | None, days: int = 0) -> int:
    """An instant from a local date-time, summer time looked up for that very day."""
    plain = day.replace(tzinfo=None) + dt.timedelta(days=days)
    moment = plain.replace(tzinfo=zone) if zone else plain.astimezone()
    return round(moment.timestamp()) * SECOND
