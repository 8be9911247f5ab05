"""Instants and durations as people write them, and as the wire writes them. Pure.

An instant is an integer of nanoseconds since 1970 (UTC); a duration is `float` seconds.
`now_ns` and the zone are passed in, so the same text always means the same.
"""

from __future__ import annotations

import datetime as dt
import re

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
_DURATION = re.compile(
    r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h|d|w))+", re.ASCII | re.IGNORECASE
)
_STEP = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d|w)", re.ASCII | re.IGNORECASE)
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


def parse_duration(text: str) -> float:
    """Seconds, from `90`, `30s`, `1h30m`, `2d`, `250ms`.

    Raises:
        ConfigError: It is none of these.
    """
    word = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", word, re.ASCII):
        return float(word)
    if not _DURATION.fullmatch(word):
        raise ConfigError(
            f"duration {text!r}: write a number with its unit, such as 30s, 5m, 1h30m"
        )
    return sum(float(n) * _UNITS[unit.lower()] for n, unit in _STEP.findall(word))


def wire_time(instant_ns: int) -> str:
    """An instant as the wire writes it: 30 characters, nine digits, `Z`."""
    seconds, part = divmod(min(max(instant_ns, _MINIMUM), _MAXIMUM), SECOND)
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001  # UTC by construction, and quicker
    return f"{moment.isoformat()}.{part:09d}Z"


def iso_ns(text: str, zone: dt.tzinfo | None = dt.UTC) -> int | None:
    """An ISO 8601 date or date-time as an instant, or None when it is not one.

    Args:
        text: All digits of the fraction count, up to nanoseconds.
        zone: What a text without a zone is in; None means local time.
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
        now_ns: What is now.
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
