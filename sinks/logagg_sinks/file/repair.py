"""Repair of a file's truncated end, which a writer left that was killed while it wrote.

Nothing is thrown away and no line stays that does not parse: the truncated end of a JSON
file becomes a record of its own whose field `raw` holds the text, whatever its length;
an end that is a whole record and lacks only its newline gets the newline. In a text
file, where half a line cannot be distinguished from a whole one, the newline is added.
The record is first appended and then moved over the truncated line, so the text is in
the file at any time.
"""

from __future__ import annotations

import fcntl
import os
import time

from logagg.wireformat import (
    KEY_END,
    Event,
    dump_line,
    key_ns,
    load_line,
    own_record,
    received_suffix,
    timestamp_bytes,
)

__all__ = ["SEARCH_BYTES", "last_line_end", "repair"]

SEARCH_BYTES = 32 * 1024 * 1024
"""How far back the last newline is searched: twice the longest record allowed. What is
longer was not written here: it stays as it is, with a newline."""


def last_line_end(fd: int, low: int, high: int) -> int:
    """The offset after the last newline in `low` to `high`, or `low`."""
    end = high
    while end > low:
        begin = max(low, end - 65536)
        at = os.pread(fd, end - begin, begin).rfind(b"\n")
        if at != -1:
            return begin + at + 1
        end = begin
    return low


def repair(fd: int, size: int, *, json: bool) -> tuple[int, int]:
    """Repair the end of a file that may be truncated.

    Args:
        fd: The file, open for reading and appending.
        size: Its length, more than 0.
        json: Its lines are JSON.

    Returns:
        The offset from which its content is another one, its length if there was no
        truncated line; its length now.

    Raises:
        OSError: It was refused; the file is as before.
    """
    closed = os.pread(fd, 1, size - 1) == b"\n"
    low = max(0, size - SEARCH_BYTES)
    start, torn = _line_before(fd, low, size - closed)
    if not json or (start == low and low > 0):
        return size, size if closed else _append(fd, size, b"\n")
    keep = closed or load_line(torn) is not None  # or another program's
    if start > low and (not keep or Event.TRUNCATED_LINE.value.encode() in torn):
        at, line = _line_before(fd, low, start - 1)
        if load_line(line) is None and (at > low or not low) and _repairs(torn, line):
            # A repair of that line was cut off: it is made anew.
            start, torn, keep = at, line, False
    if keep:
        return size, size if closed else _append(fd, size, b"\n")
    now = time.time_ns()
    line = _truncated(torn, now) + received_suffix(now)
    size = _append(fd, size, b"\n"[closed:] + line)
    return start, _move_over(fd, size, start, line)


def _line_before(fd: int, low: int, end: int) -> tuple[int, bytes]:
    """The line that ends at an offset, and where it begins: at `low` at the earliest."""
    start = last_line_end(fd, low, end)
    return start, os.pread(fd, end - start, start)


def _truncated(torn: bytes, now_ns: int) -> bytes:
    """The record that keeps the text of a truncated line, without its last field."""
    record = own_record(
        timestamp_bytes(key_ns(torn) or now_ns).decode(),
        Event.TRUNCATED_LINE,
        f"a truncated line of {len(torn)} bytes was found at the file's end",
        raw=torn.decode("utf-8", "backslashreplace"),
    )
    return dump_line(record)


def _repairs(part: bytes, torn: bytes) -> bool:
    """Whether this is the beginning of the record that keeps a truncated line's text."""
    expected = _truncated(torn, 0)
    since = 0 if key_ns(torn) else KEY_END  # else it has the time of its repair
    both = min(len(part), len(expected))
    return both > since and part[since:both] == expected[since:both]


def _append(fd: int, size: int, data: bytes) -> int:
    """Append all of it or nothing; return the file's new length."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.ftruncate(fd, size)
        raise
    return size + len(data)


def _move_over(fd: int, size: int, start: int, line: bytes) -> int:
    """Replace everything from `start` by the line that the file ends with."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
        if os.fstat(fd).st_size != size:
            return os.fstat(fd).st_size  # another program appended to it
        if os.pwrite(fd, line, start) != len(line):
            return size
    except OSError:
        return size  # the truncated line stays before its record
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    os.ftruncate(fd, start + len(line))
    return start + len(line)
