"""When `re` is quick although a pattern has repeats: each can only read a few. Pure.

A repeat without a bound goes no further than a run of the characters in it. A text in
which no run is longer than LONGEST, such as prose, numbers or addresses, therefore
bounds the steps that `re` takes from each place where it tries a match. Where the bound
is at most STEPS (reading and giving back count once), all matches are found in a time
that grows with the length of the text only, and where there are many, much sooner than
by an automaton, which takes about 2 µs for each.

The bound: `re` reads the items of the pattern one after the other. A repeat gives
characters back only if what follows fails, and what follows gets beyond its first
character only where that is in the repeat, too. Only then the repeat multiplies the
steps of the rest; and not even then if the rest stops at the next such character, as
after the dot in `[\\w.]+\\.[a-z]+`: what it reads from one dot to the next adds up to the
run. That the repeats inside one another cannot share a text in two ways
has been checked before (`logagg.filters.regex`).
"""

from __future__ import annotations

import re
from re import _constants as sre  # type: ignore[attr-defined]  # no public parser
from typing import Any

from logagg.filters.charsets import can_be_empty, characters_of, first_of, parts_of

__all__ = ["LONGEST", "STEPS", "Runs"]

LONGEST = 20
STEPS = 340
_ONE_WAY = 10
"""A repeat with a lower maximum is not checked to be free of ambiguity."""
_UNKNOWN = ord("?")  # stands for characters beyond Latin-1


class Runs:
    """The characters that a pattern's repeats without a bound read.

    Args:
        tree: The parsed pattern, which cannot take exponential time.
        flags: Its flags, those in the pattern included.
    """

    def __init__(self, tree: Any, flags: int) -> None:
        self._ignore_case = bool(flags & re.IGNORECASE)
        self._read = 0
        try:
            steps, _ = self._sequence(tree, 0)
        except _UnknownError:
            steps = STEPS + 1
        bounded = steps <= STEPS and not flags & re.ASCII
        self._table = (
            bytes(self._read >> code & 1 or code == _UNKNOWN for code in range(256))
            if bounded
            else b""
        )

    def are_short(self, text: str) -> bool:
        """Whether `re` takes few steps from each place in the text."""
        if not self._table:
            return False
        marked = text.encode("latin-1", "replace").translate(self._table)
        return b"\1" * (LONGEST + 1) not in marked

    def _sequence(self, tree: Any, after: int) -> tuple[int, int]:
        """About how many steps a sequence takes at most, and how many ways it has.

        `after` are the characters that can follow it.
        """
        items = list(tree)
        steps, ways = 0, 1
        for index, (op, value) in enumerate(items):
            rest = items[index + 1 :]
            follow = first_of(rest, self._ignore_case, after)
            if not after and rest and self._is_one(rest[0]):
                follow &= self._all(rest[1:])
            more, times = self._item(op, value, follow)
            steps += ways * more
            ways *= times
        return steps, ways

    def _item(self, op: Any, value: Any, follow: int) -> tuple[int, int]:
        if op is sre.AT or self._is_one((op, value)):
            return 1, 1
        if op is sre.SUBPATTERN and not value[1] and not value[2]:
            return self._sequence(value[3], follow)
        if op is sre.BRANCH:
            each = [self._sequence(part, follow) for part in value[1]]
            return sum(steps for steps, _ in each), sum(ways for _, ways in each)
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeat(value, follow)
        raise _UnknownError

    def _repeat(self, value: Any, follow: int) -> tuple[int, int]:
        low, high, body = value
        after = follow | first_of(body, self._ignore_case, 0) if high > 1 else follow
        steps, ways = self._sequence(body, after)
        if high == 1:
            return steps, ways + 1 - low
        if can_be_empty(body) or (ways > 1 and high < _ONE_WAY):
            raise _UnknownError
        characters = self._all(body)
        steps *= min(high, LONGEST)
        if high > LONGEST:
            self._read |= characters
        return steps, steps if characters & follow else 1

    def _is_one(self, item: tuple[Any, Any]) -> bool:
        """Whether it reads one character."""
        return characters_of(*item, self._ignore_case) is not None

    def _all(self, tree: Any) -> int:
        """All characters that a match of the sequence can have."""
        found = 0
        for op, value in tree:
            found |= characters_of(op, value, self._ignore_case) or 0
            for part in parts_of(op, value):
                found |= self._all(part)
        return found


class _UnknownError(Exception):
    """The pattern has something whose steps are not known."""
