"""The line: a record's form on the wire, in the file and at the viewer. Pure.

Theory of operation
-------------------
A record is one line of JSON whose first bytes have fixed places:

    {"timestamp":"2026-11-25T00:59:11.860666570Z","level":"info","worker":"3","seq":17,
    0            14                            44          55

(all on one line). Four properties follow, and the rest of logagg relies on them:

1. All lines share their first 14 bytes, and the next 30 bytes are the time in a form
   whose byte order is its time order. So sorting whole lines *is* sorting by time, and
   comparing, searching and filtering by time need no parsing.
2. The level begins at byte 55 and ends at the next quote.
3. A worker sends its line without the closing brace (a *wire line*). The consumer
   appends `,"received":"…Z"}`, the same bytes for a whole batch.
4. JSON never contains a raw newline, so a newline always ends a line, truncated or
   whole, and a reader that lost its place resynchronizes at the next one.

This module is the only one with these offsets in it: others use `TIMESTAMP`, `MARK`,
`LEVEL_START` and the functions below.

The time is the *host's common clock*: CLOCK_MONOTONIC plus one offset (see
`logagg.ipc.clock`), as nanoseconds; this module only converts such numbers to bytes.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import orjson

__all__ = [
    "KEY_END",
    "KEY_START",
    "LEVEL_MARK",
    "LEVEL_START",
    "MARK",
    "MAX_LINE_BYTES",
    "PREFIX",
    "PRINTED_MARK_BYTES",
    "TIMESTAMP",
    "LevelParts",
    "dump_line",
    "frame_thread",
    "is_line",
    "is_wire",
    "key_ns",
    "key_of",
    "level_of",
    "load_line",
    "mark_printed",
    "parse_line",
    "prefix_tail",
    "received_suffix",
    "record_id",
    "seconds_text",
    "seq_of",
    "sort_key",
    "split_printed",
    "timestamp_bytes",
    "timestamp_of",
]

PREFIX = b'{"timestamp":"'
KEY_START = len(PREFIX)
KEY_END = KEY_START + 30
LEVEL_MARK = b'Z","level":"'
LEVEL_START = KEY_END - 1 + len(LEVEL_MARK)
TIMESTAMP = slice(KEY_START, KEY_END)
"""The 30 bytes of the time: `line[TIMESTAMP]`."""
MARK = slice(KEY_END - 1, LEVEL_START)
"""`line[MARK] == LEVEL_MARK` in every line, and hardly ever in other JSON."""

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer record is cut by the worker; the consumer closes a connection that sends one.

Precedent: gRPC's and the OpenTelemetry collector's receivers stop at 4 MiB, journald's
largest field is 768 MB; 16 MiB keeps the 10 MB messages that people do log.
"""

_SECOND = 1_000_000_000
_LONG_NUMBER = re.compile(rb"\d{19}")


@functools.lru_cache(maxsize=4)
def seconds_text(seconds: int) -> str:
    """Format whole seconds since the epoch as `2026-11-25T00:59:11` in UTC.

    Own arithmetic rather than `time.gmtime`, so that a test's frozen clock can
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


def timestamp_bytes(now_ns: int) -> bytes:
    """Format nanoseconds since the epoch as the 30 bytes of a timestamp."""
    seconds, nanoseconds = divmod(now_ns, _SECOND)
    return b"%b.%09dZ" % (seconds_text(seconds).encode(), nanoseconds)


def sort_key(now_ns: int) -> bytes:
    """The smallest bytes that sort as a line of that instant does."""
    return PREFIX + timestamp_bytes(now_ns)


def prefix_tail(level: str, worker: str) -> bytes:
    """The bytes between the nanoseconds and the seq, for a worker's lines of a level.

    `level` and `worker` must be safe to stand in JSON quotes; a line is
    `PREFIX + seconds + "." + nine digits + tail + seq + "," + fields`.
    """
    return b'%b%b","worker":"%b","seq":' % (LEVEL_MARK, level.encode(), worker.encode())


class LevelParts(dict[str, bytes]):
    """By level, the part of a worker's lines between the nanoseconds and the seq."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def __missing__(self, level: str) -> bytes:
        safe = "".join(c if c.isprintable() and c not in '"\\' else "_" for c in level)
        safe = safe[:32].encode("utf-8", "replace").decode()
        part = prefix_tail(safe or "notset", self._worker)
        if len(self) < 1000:
            self[level] = part
        return part


def line_start(seconds: int) -> bytes:
    """The start of a line of that second, up to the nanoseconds."""
    return b"%b%b." % (PREFIX, seconds_text(seconds).encode())


def received_suffix(now_ns: int) -> bytes:
    """The suffix of each line in a batch released at that instant."""
    return b',"received":"%b"}\n' % timestamp_bytes(now_ns)


def is_wire(line: bytes) -> bool:
    """Whether bytes have the fixed places of a line up to the level."""
    return line.startswith(PREFIX) and line[MARK] == LEVEL_MARK


def is_line(line: bytes) -> bool:
    """Whether bytes have the fixed places of a line up to the seq; no parsing."""
    return is_wire(line) and seq_of(line) >= 0


def load_line(line: bytes, *, exact: bool = False) -> dict[str, Any] | None:
    """Parse a finished line.

    Args:
        line: The line, with its closing brace.
        exact: Read integers beyond 64 bits exactly. Without it they become floats; with
            it the line is searched for long numbers first, about 1 µs per record.

    Returns:
        The record, or None for anything that is not a JSON object.
    """
    try:
        if exact and _LONG_NUMBER.search(line):
            import json  # workers load this module and never need it

            record = json.loads(line)
        else:
            record = orjson.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse a finished line; never raises.

    Returns:
        The record. Anything that is not a JSON object becomes a record of level
        `error` and logger `logagg` that holds the line as `raw`.
    """
    record = load_line(line)
    if record is not None:
        return record
    return {
        "timestamp": timestamp_of(line),
        "level": "error",
        "logger": "logagg",
        "message": "a line is not a record",
        "raw": line.decode("utf-8", "replace"),
    }


def dump_line(record: dict[str, Any]) -> bytes:
    """Encode a record as a wire line (no closing brace), its fields in their order.

    Raises:
        ValueError: It is nested too deeply.
    """
    try:
        return orjson.dumps(record)[:-1]
    except TypeError:  # an integer beyond 64 bits, or 255 levels and more
        import json  # workers load this module and never need it

        try:
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        return text.encode("utf-8", "surrogatepass")[:-1]


def timestamp_of(line: bytes) -> str:
    """The 30 characters of a line's timestamp; unspecified text for other bytes."""
    return line[TIMESTAMP].decode("ascii", "replace")


def key_of(line: bytes) -> bytes:
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


def record_id(line: bytes) -> bytes:
    """The bytes that identify a record: its line up to the end of the seq.

    The same for a wire line, the finished line and the line marked as late.
    """
    start = line.find(b'"seq":', LEVEL_START, 400)
    return line[: line.find(b",", start, start + 27)] if start > 0 else line


def seq_of(line: bytes) -> int:
    """The worker's own counter of a line, without parsing; -1 when there is none.

    It is within the first 400 bytes: the senders bound level and worker. It has 18
    digits at most, so that sums of seqs stay within 64 bits.
    """
    start = line.find(b'"seq":', LEVEL_START, 400) + 6
    if start < 6:
        return -1
    end = line.find(b",", start, start + 19)
    digits = line[start:end]
    return int(digits) if end > start and digits.isdigit() else -1


# ---- lines that a worker prints ---------------------------------------------------

_PRINTED_MARKS = (b"\0@", b"\0+")
PRINTED_MARK_BYTES = len(_PRINTED_MARKS[0]) + 20
"""The time mark before the newline of a printed line: NUL, `@`, twenty digits; `+` in
the place of `@` if what was printed by the same call goes on after the newline.
"""
_ATOMIC = 4096  # bytes that a pipe takes in one piece (PIPE_BUF)


def mark_printed(text: bytes, monotonic_ns: int) -> bytes:
    """Put the time mark at the end of each line of what one call has printed.

    Lines are only marked as parts of one text if other processes cannot write in
    between, since the pipe takes them in one piece.
    """
    end, more = (b"%b%020d\n" % (mark, monotonic_ns) for mark in _PRINTED_MARKS)
    whole = text.endswith(b"\n")
    breaks = text.count(b"\n") - whole
    if not breaks or len(text) + (breaks + 1) * PRINTED_MARK_BYTES > _ATOMIC:
        return text.replace(b"\n", end)
    if whole:
        return text[:-1].replace(b"\n", more) + end
    return text.replace(b"\n", more)


def split_printed(line: bytes) -> tuple[bytes, int | None, bool]:
    """A printed line without newline: its text, its time if it has a mark, and whether
    what the same call has printed goes on in the next line.
    """
    digits = line[-20:]
    mark = line[-PRINTED_MARK_BYTES:-20]
    if mark in _PRINTED_MARKS and digits.isdigit():
        return line[:-PRINTED_MARK_BYTES], int(digits), mark != _PRINTED_MARKS[0]
    return line, None, False


FRAME_HEAD_BYTES = 2 + 40 + 1 + 4 + 1
"""Of a frame's head. The output of a thread is in frames that name it, since a print
makes several writes and others write between them. A frame is NUL, `[`, the thread's
key, `;`, the number of bytes that follow, `]`, and these bytes: at most what a pipe takes
in one piece, so it is never cut. It may stand within a line of other text.
"""


def frame_thread(text: bytes, key: bytes) -> list[bytes]:
    """Put the output of a thread into frames, each to be written by one call.

    Args:
        key: Of the thread: 40 hexadecimal digits at most.
    """
    room = _ATOMIC - FRAME_HEAD_BYTES
    pieces = [text[start : start + room] for start in range(0, len(text), room)]
    return [b"\0[%b;%04d]%b" % (key, len(piece), piece) for piece in pieces]
