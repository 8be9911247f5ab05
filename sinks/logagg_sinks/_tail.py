"""The end of a log file: finding and mending a last line that is torn.

A writer that is killed in the middle of a write leaves half a line. Decision: nothing
is thrown away and no line stays that does not parse. A JSON file's torn end is cut off
and comes back as a record of its own whose field `raw` holds the text; an end that is a
whole record and lacks only its newline gets the newline. In a text file, where half a
line cannot be told from a whole one, the newline is added.
"""

from __future__ import annotations

import os
import time

import orjson

__all__ = ["last_line_end", "mend"]

SEARCH_BYTES = 32 * 1024 * 1024
"""How far back the last newline is looked for: twice the longest record allowed."""

RAW_BYTES = 64 * 1024
"""How much of a torn line is kept as text."""


def last_line_end(fd: int, low: int, high: int) -> int:
    """The offset behind the last newline in `low` to `high`, or `low`."""
    end = high
    while end > low:
        begin = max(low, end - 65536)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at != -1:
            return begin + at + 1
        end = begin
    return low


def mend(fd: int, size: int, *, json: bool) -> tuple[int, bytes]:
    """What to do about the end of a file.

    Args:
        fd: The file, readable.
        size: Its length, more than 0.
        json: Its lines are JSON.

    Returns:
        The length to cut it to, and what to append then.
    """
    if os.pread(fd, 1, size - 1) == b"\n":
        return size, b""
    low = max(0, size - SEARCH_BYTES)
    start = last_line_end(fd, low, size)
    if not json or (start == low and low > 0):
        return size, b"\n"
    torn = os.pread(fd, size - start, start)
    try:
        if isinstance(orjson.loads(torn), dict):
            return size, b"\n"
    except orjson.JSONDecodeError:
        pass
    return start, _record(torn)


def _record(torn: bytes) -> bytes:
    stamp = torn[14:44].decode("ascii", "replace")
    if len(stamp) != 30 or not stamp.isascii() or stamp[-1] != "Z":
        stamp = _now()
    return orjson.dumps(
        {
            "timestamp": stamp,
            "level": "warning",
            "worker": "logagg",
            "seq": 0,
            "logger": "logagg",
            "message": f"a torn line of {len(torn)} bytes was found at the file's end",
            "event": "torn",
            "raw": torn[:RAW_BYTES].decode("utf-8", "replace"),
            "received": _now(),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{clock}.{nanoseconds:09}Z"
