"""Parsed regular expressions: parts of them, and expressions made of parts. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from re import _compiler, _parser  # type: ignore[attr-defined]  # no public ones
from re import _constants as sre  # type: ignore[attr-defined]
from typing import Any

from logagg.filters.charsets import parts_of

__all__ = [
    "asserts", "compiled", "is_ascii", "is_exact", "literals", "longest", "nodes",
    "skip", "without_groups",
]  # fmt: skip

_ASCII_PART = {
    sre.CATEGORY_WORD: (b"az", b"AZ", b"09", b"__"),
    sre.CATEGORY_DIGIT: (b"09",),
    sre.CATEGORY_SPACE: (b"\t\r", b"  "),
}
"""Ranges that are in a category: `re` has a table for ASCII, and calls for the rest."""


def compiled(items: list[Any], flags: int) -> re.Pattern[str]:
    """The expression of a sequence of nodes; groups are numbered in their order."""
    state = _parser.State()
    state.flags = flags
    tree = _tree(state, items)
    for op, value in nodes(tree):
        if op is sre.SUBPATTERN and value[0]:
            state.closegroup(state.opengroup(None), tree)
    found: re.Pattern[str] = _compiler.compile(tree, flags)
    return found


def skip(items: list[Any]) -> Any:
    return (sre.POSSESSIVE_REPEAT, (0, sre.MAXREPEAT, items))


def literals(characters: int) -> Any:
    found = (code for code in range(128) if characters >> code & 1)
    return (sre.IN, [(sre.LITERAL, code) for code in found])


def longest(items: list[Any]) -> int:
    """How many characters a sequence reads at most, each of its ways counted."""
    found = 0
    for op, value in items:
        inner = sum(map(longest, parts_of(op, value)))
        is_repeat = op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)
        found += inner * min(int(value[1]), 10**6) if is_repeat else inner or 1
    return found


def without_groups(items: list[Any]) -> list[Any]:
    """A sequence without groups around parts of it that are not repeated."""
    found: list[Any] = []
    for op, value in items:
        if op is sre.SUBPATTERN and not value[1] and not value[2]:
            found += without_groups(list(value[3]))
        else:
            found.append((op, value))
    return found


def _tree(state: Any, items: Any) -> Any:
    """The same as a tree that can be compiled."""
    found = _parser.SubPattern(state)
    for op, value in items:
        found.append((op, _with_trees(state, op, value)))
    return found


def _with_trees(state: Any, op: Any, value: Any) -> Any:
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return (*value[:2], _tree(state, value[2]))
    if op is sre.SUBPATTERN:
        return (*value[:3], _tree(state, value[3]))
    if op is sre.BRANCH:
        return (None, [_tree(state, part) for part in value[1]])
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        return (value[0], _tree(state, value[1]))
    if op is sre.ATOMIC_GROUP:
        return _tree(state, value)
    if op is sre.IN:
        negation = [each for each in value if each[0] is sre.NEGATE]
        return [*negation, *_ascii_parts(value), *value[len(negation) :]]
    return value


def _ascii_parts(items: list[Any]) -> Iterator[Any]:
    for kind, what in items:
        if kind is sre.CATEGORY:
            for first, last in _ASCII_PART.get(what, ()):
                yield (sre.RANGE, (first, last))


def asserts(items: list[Any]) -> bool:
    return any(op is sre.AT for op, _ in nodes(items))


def is_ascii(items: list[Any]) -> bool:
    """Whether all characters that are named are ASCII: others have odd capitals."""
    for op, value in nodes(items):
        named = value if op is sre.IN else [(op, value)]
        for kind, what in named:
            if kind in (sre.LITERAL, sre.NOT_LITERAL) and what > 127:
                return False
            if kind is sre.RANGE and what[1] > 127:
                return False
    return True


def is_exact(item: Any) -> bool:
    """Whether its set of characters is exact: those beyond ASCII are of whole kinds."""
    return item[0] is not sre.ANY and is_ascii([item])


def nodes(tree: Any) -> Any:
    for op, value in tree:
        yield op, value
        for part in parts_of(op, value):
            yield from nodes(part)
