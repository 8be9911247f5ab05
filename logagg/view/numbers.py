"""Lines and whole chunks searched for numbers that a comparison can accept. Pure.

`status>=500` holds for few lines and its field is in all of them, so a search for the
field's name alone would leave every line to be parsed. Where a plain whole number
follows the name, that number decides; where anything else does (a fraction, a text, a
list, a name that another JSON writer escaped), the line is found and parsed as ever.

A line that is *flat*, one object with no other inside and nothing escaped, need
not be parsed either: a name with its quotes can stand there only as the name of the
record's own field, or as a whole text. So where it stands once, with a number
behind it, that number is the field's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

Search = Callable[[bytes, int], list[bytes] | None]
_REMEMBERED = 65_536
_LONGEST = 24  # bytes in which a plain number and the comma behind it have room
_WHOLE = re.compile(rb":(-?\d{1,18})")
_ESCAPE = re.compile(rb"\\[u]")  # apart: two searches are quicker than one


def search(name: bytes, accepts: Callable[[int], bool]) -> Search:
    """A search for lines in which a field of this name can pass a test.

    Args:
        name: The field's name, plain ASCII that JSON does not escape.
        accepts: The test of a whole number.
    """
    pattern = re.compile(
        b'"' + re.escape(name) + rb'"\s*:(?:\s*(-?\d{1,18})(?=[,}\]\s]))?'
    )
    return functools.partial(_find, pattern, accepts, {})


def is_flat(line: bytes) -> bool:
    """Whether a wire line holds no other object and nothing escaped."""
    return line.find(b"{", 1) == -1 and b"\\" not in line


def sure(name: bytes, accepts: Callable[[int], bool]) -> Callable[[bytes], bool]:
    """A test that is true only for wire lines whose field of this name passes.

    Args:
        name: The field's name, plain ASCII that JSON does not escape.
        accepts: The test of a whole number.
    """
    named = b'"%b"' % name
    known: dict[bytes, bool] = {}

    def passes(line: bytes) -> bool:
        place = line.find(named)
        if place == -1 or not is_flat(line):
            return False
        start = place + len(named)
        end = line.find(b",", start, start + _LONGEST)
        if end == -1 or line.find(named, end) != -1:
            return False
        value = line[start:end]
        passed = known.get(value)
        if passed is None:
            if len(known) >= _REMEMBERED:
                known.clear()
            whole = _WHOLE.fullmatch(value)
            passed = known[value] = whole is not None and accepts(int(whole[1]))
        return passed

    return passes


def _find(
    pattern: re.Pattern[bytes],
    accepts: Callable[[int], bool],
    known: dict[bytes, bool],
    data: bytes,
    most: int,
) -> list[bytes] | None:
    ends: dict[int, int] = {}
    for place in pattern.finditer(data):
        digits = place[1]
        if digits is not None:
            verdict = known.get(digits)
            if verdict is None:
                if len(known) >= _REMEMBERED:
                    known.clear()
                verdict = known[digits] = accepts(int(digits))
            if not verdict:
                continue
        take_line(data, place.start(), ends)
        if len(ends) > most:
            return None
    escape = _ESCAPE.search(data)
    while escape is not None:
        end = take_line(data, escape.start(), ends)
        if len(ends) > most:
            return None
        escape = _ESCAPE.search(data, end)
    return [data[start : ends[start]] for start in sorted(ends)]


def take_line(data: bytes, place: int, ends: dict[int, int]) -> int:
    """Note where the line around a place starts and ends; return its end."""
    end = data.find(b"\n", place)
    end = len(data) if end == -1 else end
    ends[data.rfind(b"\n", 0, place) + 1] = end
    return end
