"""Sets of the characters that parts of a parsed regular expression match. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from re import _constants as sre  # type: ignore[attr-defined]  # no public parser
from typing import Any

__all__ = ["can_be_empty", "characters_of", "first_of", "parts_of"]

# Sets of characters are bits: one for each of U+0000…U+00FF, then one for all digits
# beyond, all other word characters, all white space, and everything else.
_BEYOND = (r"\d", r"[^\W\d]", r"\s", r"[^\w\s]")
_ALL = (1 << 260) - 1
_REST = 0b1111 << 256
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)


def parts_of(op: Any, value: Any) -> list[Any]:
    """The sub-patterns of a node."""
    if op in _REPEATS or op is sre.POSSESSIVE_REPEAT:
        return [value[2]]
    if op is sre.BRANCH:
        return list(value[1])
    if op is sre.SUBPATTERN:
        return [value[3]]
    if op is sre.ATOMIC_GROUP:
        return [value]
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        return [value[1]]
    if op is sre.GROUPREF_EXISTS:
        return [part for part in value[1:] if part is not None]
    return []


@functools.cache
def _category(name: str) -> int:
    escape = {
        "CATEGORY_DIGIT": r"\d",
        "CATEGORY_NOT_DIGIT": r"\D",
        "CATEGORY_SPACE": r"\s",
        "CATEGORY_NOT_SPACE": r"\S",
        "CATEGORY_WORD": r"\w",
        "CATEGORY_NOT_WORD": r"\W",
    }.get(name)
    if escape is None:
        return _ALL
    samples = (*range(256), 0x0663, 0x0416, 0x2003, 0x2014)  # one for each bit
    return sum(1 << bit for bit, c in enumerate(samples) if re.match(escape, chr(c)))


def _bits(codes: Iterable[int]) -> int:
    result = 0
    for code in codes:
        if code < 256:
            result |= 1 << code
        else:
            kinds = (bool(re.match(kind, chr(code))) for kind in _BEYOND)
            result |= 1 << 256 + list(kinds).index(True)
    return result


def _cases(code: int, ignore_case: bool) -> int:
    if not ignore_case:
        return _bits([code])
    char = chr(code)
    both = _bits(ord(c) for c in (char.lower() + char.upper()))
    return both | (1 << 257 if char.lower() in "ksµåÿi" else 0)  # such as U+212A


def characters_of(op: Any, value: Any, ignore_case: bool) -> int | None:
    """The set of characters a one-character node matches; None for other nodes."""
    if op is sre.LITERAL:
        return _cases(value, ignore_case)
    if op is sre.NOT_LITERAL:
        return _ALL & ~_cases(value, ignore_case) | _REST
    if op is sre.ANY:
        return _ALL
    if op is sre.IN:
        result = 0
        negate = False
        for kind, item in value:
            if kind is sre.NEGATE:
                negate = True
            elif kind is sre.LITERAL:
                result |= _cases(item, ignore_case)
            elif kind is sre.RANGE:
                for code in range(item[0], min(item[1], 256) + 1):
                    result |= _cases(code, ignore_case)
                if item[1] > 255:
                    result |= _REST
            elif kind is sre.CATEGORY:
                result |= _category(str(item))
        # A class that names single characters beyond leaves others of their kind.
        named = any(k in (sre.LITERAL, sre.RANGE) for k, _ in value)
        return _ALL & ~result | (_REST if named else 0) if negate else result
    return None


def _choices(op: Any, value: Any) -> tuple[list[Any], bool]:
    """The alternatives of a node, and whether it may be left out."""
    if op in _REPEATS or op is sre.POSSESSIVE_REPEAT:
        return [value[2]], value[0] == 0
    if op in (sre.BRANCH, sre.SUBPATTERN, sre.ATOMIC_GROUP):
        return parts_of(op, value), False
    return [], True


def first_of(tree: Any, ignore_case: bool, after: int) -> int:
    """The characters that a match of the sequence, then `after`, can begin with."""
    result = 0
    for op, value in tree:
        chars = characters_of(op, value, ignore_case)
        if chars is not None:
            return result | chars
        if op in (sre.GROUPREF, sre.GROUPREF_EXISTS):
            return _ALL
        parts, optional = _choices(op, value)
        for part in parts:
            result |= first_of(part, ignore_case, 0)
        if not optional and not any(map(can_be_empty, parts)):
            return result
    return result | after


def can_be_empty(tree: Any) -> bool:
    """Whether the sequence can match the empty text."""
    for op, value in tree:
        if characters_of(op, value, False) is not None:
            return False
        parts, optional = _choices(op, value)
        if not optional and not any(map(can_be_empty, parts)):
            return False
    return True
