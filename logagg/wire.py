"""The line: how a record looks on the wire, in the file and at the viewer. Pure.

Theory of operation
-------------------
A record is one line of JSON whose first bytes have fixed places:

    {"timestamp":"2026-11-25T00:59:11.860666570Z","level":"info","worker":"3","seq":17,
    0            14                            44          55

(all on one line). Four things follow, and everything else in logagg leans on them:

1. All lines share their first 14 bytes and the 30 bytes behind them are the time in a
   form whose byte order is its time order. So sorting whole lines *is* sorting by time,
   and comparing, searching and filtering by time need no parsing.
2. The level begins at byte 55 and ends at the next quote.
3. A worker sends its line without the closing brace (a *wire line*). Whoever finishes
   it joins `,"received":"…Z"}` on, the same bytes for a whole batch.
4. JSON never holds a raw newline, so a newline always ends a line, torn or whole, and a
   reader that lost its place is in step again at the next one.

The time is the *host's common clock*: CLOCK_MONOTONIC plus one offset (see
`logagg.clock`), as nanoseconds; this module only turns such numbers into bytes.
"""

from __future__ import annotations

__all__ = [
    "KEY_END",
    "LEVEL_START",
    "MAX_LINE_BYTES",
    "PREFIX",
    "closing",
    "head",
    "identity",
    "is_line",
    "key",
    "key_ns",
    "level_of",
    "seconds_text",
    "seq_of",
    "sort_key",
    "timestamp",
]

PREFIX = b'{"timestamp":"'
KEY_START = len(PREFIX)
KEY_END = KEY_START + 30
LEVEL_START = KEY_END + len('","level":"')

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer record is cut by the worker; the consumer closes whoever sends one.

Precedent: gRPC's and the OpenTelemetry collector's receivers stop at 4 MiB, journald's
largest field is 768 MB; 16 MiB keeps the 10 MB messages that people do log.
"""

_SECOND = 1_000_000_000
_AFTER_KEY = b'Z","level":"'


def seconds_text(seconds: int) -> str:
    """Format whole seconds since the epoch as `2026-11-25T00:59:11` in UTC.

    Arithmetic of our own rather than `time.gmtime`, so that a test's frozen clock can
    never reach it. Valid for the years 0001 to 9999, clamped outside. The algorithm
    is civil_from_days of Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    """
    days, rest = divmod(seconds, 86400)
    era, day_of_era = divmod(days + 719468, 146097)
    year_of_era = (
        day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096
    ) // 365
    day_of_year = day_of_era - (
        365 * year_of_era + year_of_era // 4 - year_of_era // 100
    )
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (month <= 2)
    if not 1 <= year <= 9999:
        return "0001-01-01T00:00:00" if year < 1 else "9999-12-31T23:59:59"
    hour, rest = divmod(rest, 3600)
    minute, second = divmod(rest, 60)
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"


def timestamp(now_ns: int) -> bytes:
    """Format nanoseconds since the epoch as the 30 bytes of a timestamp."""
    seconds, nanoseconds = divmod(now_ns, _SECOND)
    return b"%b.%09dZ" % (seconds_text(seconds).encode(), nanoseconds)


def sort_key(now_ns: int) -> bytes:
    """The smallest bytes that sort as a line of that instant does."""
    return PREFIX + timestamp(now_ns)


def head(level: str, worker: str) -> bytes:
    """What stands between the nanoseconds and the seq of a worker's lines of a level.

    `level` and `worker` must be safe to stand in JSON quotes; a line is
    `PREFIX + seconds + "." + nine digits + head + seq + "," + fields`.
    """
    return b'%b%b","worker":"%b","seq":' % (_AFTER_KEY, level.encode(), worker.encode())


def line_start(seconds: int) -> bytes:
    """What a line of that second starts with, up to the nanoseconds."""
    return b"%b%b." % (PREFIX, seconds_text(seconds).encode())


def closing(now_ns: int) -> bytes:
    """What finishes each line of a batch that is released at that instant."""
    return b',"received":"%b"}\n' % timestamp(now_ns)


def is_line(line: bytes) -> bool:
    """Whether bytes have the fixed places of a line: prefix, time, level, worker, seq.

    It does not parse: what stands behind the seq is not looked at.
    """
    return (
        line.startswith(PREFIX)
        and line[KEY_END - 1 : LEVEL_START] == b'Z","level":"'
        and seq_of(line) >= 0
    )


def key(line: bytes) -> bytes:
    """The sort key of a line: everything up to the end of its timestamp."""
    return line[:KEY_END]


def key_ns(line: bytes) -> int:
    """A line's stamp as nanoseconds since the epoch; 0 when it has none that is valid.

    The algorithm is days_from_civil, the inverse of the one in `seconds_text`.
    """
    text = line[KEY_START : KEY_END - 1]
    parts = (text[0:4], text[5:7], text[8:10], text[11:13], text[14:16], text[17:19])
    try:
        year, month, day, hour, minute, second = map(int, parts)
        nanoseconds = int(text[20:29])
    except ValueError:
        return 0
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    days = era * 146097 + day_of_era - 719468
    seconds = days * 86400 + hour * 3600 + minute * 60 + second
    return seconds * _SECOND + nanoseconds


def level_of(line: bytes) -> bytes:
    """The level's name, lower case, without parsing; empty when there is none."""
    end = line.find(b'"', LEVEL_START)
    return line[LEVEL_START:end] if end > 0 else b""


def identity(line: bytes) -> bytes:
    """What tells a record from every other: its line up to the end of its seq.

    The same for a wire line, the finished line and the line marked as late.
    """
    start = line.find(b'"seq":', LEVEL_START, 400)
    return line[: line.find(b",", start, start + 27)] if start > 0 else line


def seq_of(line: bytes) -> int:
    """The worker's own counter of a line, without parsing; -1 when there is none.

    It stands within the first 400 bytes: level and worker are bounded by their makers.
    """
    start = line.find(b'"seq":', LEVEL_START, 400) + 6
    if start < 6:
        return -1
    end = line.find(b",", start, start + 21)
    digits = line[start:end]
    return int(digits) if end > start and digits.isdigit() else -1
