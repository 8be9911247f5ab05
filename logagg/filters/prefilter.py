"""Decisions on the bytes of lines, so that few lines are parsed. Pure.

Searches find, in a chunk of lines, those that may match; they never miss one:

- `ByteFilter`: each matching line holds one of some byte strings. A JSON writer may
  escape any character (`\\u0061`, `\\/`), so lines with such an escape are found too.
- `number_search`: a whole number after a field's name. `status>=500` holds for few
  lines, though the name is in all of them. Anything but a plain whole number after the
  name (a fraction, a text, a list) is found.
- `head_search`: level, worker and logger stand at the start of a wire line in one order,
  so one regular expression rejects lines by them. A line of another shape is found.

`definite_number` and `definite_text` are true only for lines that match. They decide
*flat* lines, one object with no other inside and no escape: there a quoted name can only
be the name of the record's own field or a whole text. So where it stands once and a
number follows, that number is the field's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from logagg.core.line import LEVEL_MARK, MARK

Search = Callable[[bytes, int], list[bytes] | None]
"""Lines of NDJSON that may match, in order and without newlines; None if over a limit."""

Definite = Callable[[bytes], bool]
"""True only for wire lines that match; not called for negated conditions."""

_REMEMBERED = 65_536  # numbers whose verdict is kept
_LONGEST_NUMBER = 24  # bytes of a plain number with its colon and comma
_WHOLE_NUMBER = re.compile(rb":(-?\d{1,18})")
# A class of characters is searched for three times as fast as two characters.
_ESCAPE = re.compile(rb"\\[u]")
_ESCAPE_OR_SLASH = re.compile(rb"\\[u/]")

# Beyond ASCII, the only characters that equal an ASCII letter when case is ignored.
_FOLDS = {b"k": "\u212a", b"s": "\u017f", b"i": "\u0130\u0131"}


@dataclass(frozen=True, slots=True)
class ByteFilter:
    """Bytes of which every line that can match holds at least one.

    Attributes:
        required_bytes: The bytes.
        escapes: What another JSON writer could have written for a part of them.
        fold: They are lower case and the line's case is ignored.
        folded: Characters beyond ASCII that equal one of theirs when case is ignored.
    """

    required_bytes: tuple[bytes, ...]
    escapes: re.Pattern[bytes]
    fold: bool
    folded: tuple[bytes, ...]

    @classmethod
    def of(cls, required_bytes: tuple[bytes, ...], *, fold: bool) -> ByteFilter:
        """Make a filter, with the escapes and letters that stand for the bytes."""
        slash = any(b"/" in required for required in required_bytes)
        folded = tuple(
            other.encode()
            for letter, others in _FOLDS.items()
            if fold and any(letter in required for required in required_bytes)
            for other in others
        )
        escapes = _ESCAPE_OR_SLASH if slash else _ESCAPE
        return cls(required_bytes, escapes, fold, folded)

    def may_match(self, line: bytes) -> bool:
        """False only for a line that cannot match."""
        if self.fold:
            line = line.lower()
        wanted = self.required_bytes
        for required in wanted if line.isascii() else (*wanted, *self.folded):
            if required in line:  # a loop: `any` costs more than a few searches
                return True
        return b"\\" in line and self.escapes.search(line) is not None

    def filter(self, lines: list[bytes]) -> list[bytes]:
        """The lines that may match."""
        if len(self.required_bytes) == 1 and not self.fold:
            (required,), escaped = self.required_bytes, self.escapes.search
            return [
                line
                for line in lines
                if required in line or (b"\\" in line and escaped(line))
            ]
        return [line for line in lines if self.may_match(line)]

    def find(self, data: bytes, most: int) -> list[bytes] | None:
        """Search a chunk; see `Search`.

        Costs next to nothing per line passed over but much per line found, hence the
        limit.
        """
        text = data.lower() if self.fold else data  # of the same length: ASCII only
        ends: dict[int, int] = {}
        wanted = self.required_bytes
        for required in wanted if text.isascii() else (*wanted, *self.folded):
            place = text.find(required)
            while place != -1:
                end = _add_line(data, place, ends)
                if len(ends) > most:
                    return None
                place = text.find(required, end)
        return _with_escaped(data, text, self.escapes, ends, most)


def _add_line(data: bytes, place: int, ends: dict[int, int]) -> int:
    """Record start and end of the line around a place; return its end."""
    end = data.find(b"\n", place)
    end = len(data) if end == -1 else end
    ends[data.rfind(b"\n", 0, place) + 1] = end
    return end


def _with_escaped(
    data: bytes,
    text: bytes,
    escapes: re.Pattern[bytes],
    ends: dict[int, int],
    most: int,
) -> list[bytes] | None:
    """The lines found and those with an escape, or None if over the limit."""
    found = escapes.search(text)
    while found is not None:
        end = _add_line(data, found.start(), ends)
        if len(ends) > most:
            return None
        found = escapes.search(text, end)
    return [data[start : ends[start]] for start in sorted(ends)]


def number_search(name: bytes, accepts: Callable[[int], bool]) -> Search:
    """Search for lines in which a field of this name can pass a test.

    Args:
        name: The field's name, plain ASCII that JSON does not escape.
        accepts: The test of a whole number.
    """
    pattern = re.compile(
        b'"' + re.escape(name) + rb'"\s*:(?:\s*(-?\d{1,18})(?=[,}\]\s]))?'
    )
    verdicts = _Verdicts(lambda digits: accepts(int(digits)))
    return functools.partial(_find_numbers, pattern, verdicts)


class _Verdicts(dict[bytes, bool]):
    """Decisions on values, remembered."""

    def __init__(self, decide: Callable[[bytes], bool]) -> None:
        self._decide = decide

    def __missing__(self, value: bytes) -> bool:
        if len(self) >= _REMEMBERED:
            self.clear()
        verdict = self[value] = self._decide(value)
        return verdict


def _find_numbers(
    pattern: re.Pattern[bytes], verdicts: _Verdicts, data: bytes, most: int
) -> list[bytes] | None:
    ends: dict[int, int] = {}
    for place in pattern.finditer(data):
        digits = place[1]
        if digits is not None and not verdicts[digits]:
            continue
        _add_line(data, place.start(), ends)
        if len(ends) > most:
            return None
    return _with_escaped(data, data, _ESCAPE, ends, most)


def _is_flat(line: bytes) -> bool:
    return line.find(b"{", 1) == -1 and b"\\" not in line


def definite_number(name: bytes, accepts: Callable[[int], bool]) -> Definite:
    """Test for flat lines whose field of this name is a number that passes.

    Args:
        name: The field's name, plain ASCII that JSON does not escape.
        accepts: The test of a whole number.
    """
    named = b'"%b"' % name

    def decide(value: bytes) -> bool:
        whole = _WHOLE_NUMBER.fullmatch(value)
        return whole is not None and accepts(int(whole[1]))

    verdicts = _Verdicts(decide)

    def passes(line: bytes) -> bool:
        place = line.find(named)
        if place == -1 or not _is_flat(line):
            return False
        start = place + len(named)
        end = line.find(b",", start, start + _LONGEST_NUMBER)
        if end == -1 or line.find(named, end) != -1:
            return False
        return verdicts[line[start:end]]

    return passes


def definite_text(name: bytes, values: Sequence[bytes]) -> Definite:
    """Test for flat lines whose field of this name is one of these texts."""
    fields = [b'"%b":"%b"' % (name, value) for value in values]
    named = b'"%b"' % name

    def passes(line: bytes) -> bool:
        if not _is_flat(line):
            return False
        return line.count(named) == 1 and any(field in line for field in fields)

    return passes


def head_search(
    levels: Sequence[bytes], names: Mapping[str, Sequence[str]]
) -> Search | None:
    """Search for lines that their head does not reject.

    Args:
        levels: The levels that never match, each with the quote that ends it.
        names: For `worker` and `logger` what it must equal one of; none: anything.

    Returns:
        None when a head rejects nothing.
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
    mark = b".{%d}%b" % (MARK.start, LEVEL_MARK)
    pattern = re.compile(b"\n(?!" + mark + b"(?:" + b"|".join(ways) + b"))")
    return functools.partial(_find_heads, pattern)


def _others(names: Sequence[str], end: bytes) -> bytes:
    """A pattern for any name but these; b"" when there are none."""
    if not names or not all(name.isascii() and name.isprintable() for name in names):
        return b""
    if any(char in name for name in names for char in '"\\'):
        return b""
    known = b"|".join(re.escape(name.encode()) for name in names)
    return b"(?!(?:" + known + b")" + end + rb')[^"\\]*"'


def _find_heads(
    pattern: re.Pattern[bytes], data: bytes, most: int
) -> list[bytes] | None:
    found: list[bytes] = []
    start = 0  # the first line has no newline before it, so it is always found
    for place in pattern.finditer(data):
        found.append(data[start : data.find(b"\n", start)])
        if len(found) > most:
            return None
        start = place.start() + 1
    end = data.find(b"\n", start)
    found.append(data[start : len(data) if end == -1 else end])
    if not found[-1]:
        found.pop()  # there is no line after the last newline
    return found
