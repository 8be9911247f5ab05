"""Whole chunks searched for lines whose head does not rule them out. Pure.

The head of a wire line (time, level, worker, count, logger) stands first and in one
order, so one regular expression can say of a line that it surely does not match, and
one search over a chunk finds all others. What it finds is then decided as ever: a line
without the wire's shape, or of a level of its own, is always found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def rejecting(
    levels: Sequence[bytes], names: Mapping[str, Sequence[str]]
) -> re.Pattern[bytes] | None:
    """A pattern that finds the newline before each line that may match.

    Args:
        levels: The levels that never match, each with the quote that ends it.
        names: For `worker` and `logger` what it must equal one of; none: anything.

    Returns:
        None when a head rules nothing out.
    """
    worker = _others(names.get("worker", ()), b'"')
    logger = _others(names.get("logger", ()), b'[".]')
    ways = [re.escape(level) for level in levels]
    if worker:
        ways.append(rb'[^"\\]*","worker":"' + worker)
    if logger:
        ways.append(rb'[^"\\]*","worker":"[^"\\]*","seq":\d+,"logger":"' + logger)
    if not ways:
        return None
    return re.compile(rb'\n(?!.{43}Z","level":"(?:' + b"|".join(ways) + b"))")


def _others(names: Sequence[str], end: bytes) -> bytes:
    """A pattern for any name but these; b"" when there are none."""
    if not names or not all(name.isascii() and name.isprintable() for name in names):
        return b""
    if any(char in name for name in names for char in '"\\'):
        return b""
    known = b"|".join(re.escape(name.encode()) for name in names)
    return b"(?!(?:" + known + b")" + end + rb')[^"\\]*"'


def find(pattern: re.Pattern[bytes], data: bytes, most: int) -> list[bytes] | None:
    """The lines of NDJSON that may match, or None when there are more than `most`."""
    found: list[bytes] = []
    start = 0  # the first line has no newline in front, so it is always one of them
    for place in pattern.finditer(data):
        found.append(data[start : data.find(b"\n", start)])
        if len(found) > most:
            return None
        start = place.start() + 1
    end = data.find(b"\n", start)
    found.append(data[start : len(data) if end == -1 else end])
    if not found[-1]:
        found.pop()  # behind the last newline there is no line
    return found
