"""What of the stream a sink gets: selection and shaping of wire lines. Pure.

All of it works on a batch's wire lines (bytes without the closing brace). A line is
parsed only when a record's own fields must be looked at or changed; what can be decided
from its fixed places is decided on the bytes.
"""

from __future__ import annotations

import functools
from typing import Any

import orjson

__all__ = ["select_level"]

_LEVEL_AT = 55  # where the level's text begins in every line
_NUMBERS = {
    "debug": 10,
    "info": 20,
    "warning": 30,
    "warn": 30,
    "error": 40,
    "exception": 40,
    "critical": 50,
    "fatal": 50,
}


@functools.lru_cache(maxsize=64)
def _split(threshold: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The beginnings (level and its quote) of lines to keep, and of lines to leave."""
    keep = [name for name, number in _NUMBERS.items() if number >= threshold]
    leave = [name for name, number in _NUMBERS.items() if number < threshold]
    return (
        tuple(f'{name}"'.encode() for name in keep),
        tuple(f'{name}"'.encode() for name in leave),
    )


def select_level(lines: list[bytes], threshold: int) -> list[bytes]:
    """The lines whose level is at least the threshold, in their order.

    The names of `logging` (and `warn`, `exception`, `fatal`) are decided on bytes; only
    a line with another name is parsed, for its `level_number`. A line that tells no
    number is kept: rather one record too many than one lost.
    """
    if threshold <= 0:
        return lines
    keep, leave = _split(threshold)
    chosen = [
        line
        for line in lines
        if line.startswith(keep, _LEVEL_AT)
        or (not line.startswith(leave, _LEVEL_AT) and _at_least(line, threshold))
    ]
    return lines if len(chosen) == len(lines) else chosen


def _at_least(line: bytes, threshold: int) -> bool:
    number = parse(line).get("level_number")
    return not isinstance(number, (int, float)) or number >= threshold


def parse(line: bytes) -> dict[str, Any]:
    """A wire line's record; empty when it is not one."""
    try:
        record = orjson.loads(line + b"}")
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
