"""Expressions that `re` searches in linear time, whatever the text. Pure.

In a pattern such as `\\d+-\\d+`, two things cost `re` more than one step per character:
it gives back what a repeat has read, and it begins anew at each place of the same run.
Where what follows a repeat can begin with no character of it, giving back is in vain:
the repeat becomes possessive. And where the pattern begins with a repeat, a match that
begins within a run of its characters could begin at the run's start as well: only there
it is tried (after `\\b`, at the first boundary in the run).

A pattern may also begin with one of the run's characters (`\\d[\\d ]+`): then at the
first such character in the run. If no match begins there, none begins later in the run:
it would be the same one, or shorter.

Each later repeat must stand after one character that is not in it. So it begins to read
at the start of a run only, from where there is one way back to the start of the match:
a character is read once for each item of the pattern.

All that `re` matches is found. Where the next match can begin within the run in which
the last one ended (`a@b.cc+d@e.ff`), they are one, with what is between them.
"""

from __future__ import annotations

import re
from re import _constants as sre  # type: ignore[attr-defined]  # no public parser
from typing import Any, TypeAlias

from logagg.filters.charsets import can_be_empty, characters_of, first_of, parts_of
from logagg.filters.linear.parsed import (
    asserts,
    compiled,
    is_ascii,
    is_exact,
    literals,
    longest,
    nodes,
    skip,
    without_groups,
)  # fmt: skip

__all__ = ["Guarded", "UnguardedPattern"]

_WAYS = 16
_LENGTH = 20
_ONE_WAY = (
    sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN, sre.POSSESSIVE_REPEAT, sre.SUBPATTERN,
)  # fmt: skip
_WORD = (sre.IN, [(sre.CATEGORY, sre.CATEGORY_WORD)])
_Divided: TypeAlias = tuple[list[Any], list[Any], Any, list[Any]]


class UnguardedPattern(Exception):
    """The pattern, or a part of it, is of another form."""


class Guarded:
    """A pattern that `re` searches for in linear time, in another form.

    Args:
        tree: The parsed pattern, which cannot take exponential time.
        flags: Its flags, those in the pattern included.

    Attributes:
        items: The form that is compiled.

    Raises:
        UnguardedPattern: It has no such form.
    """

    def __init__(self, tree: Any, flags: int) -> None:
        if flags & (re.ASCII | re.LOCALE):
            raise UnguardedPattern
        self._ignore_case = bool(flags & re.IGNORECASE)
        self._ways = 1
        self._is_prefixed = False
        self.items: list[Any]
        items = without_groups(list(tree))
        if not items or (self._ignore_case and not is_ascii(items)):
            raise UnguardedPattern
        divided = self._divided(items)
        if divided is not None:
            self._guard(*divided)
        elif self._is_run(items[1 % len(items)]) and not self._is_one(items[0]):
            raise UnguardedPattern
        else:
            self.items = self._possessive(items)
        self._regex = compiled(self.items, flags)
        if self._ways > _WAYS:
            raise UnguardedPattern

    def search(self, text: str) -> bool:
        """Whether it occurs in a text."""
        return self._regex.search(text) is not None

    def sub(self, replacement: str, text: str) -> tuple[str, int]:
        """Replace what it matches; once for matches that share a run.

        Returns:
            The text, and the number of replacements.
        """
        pieces = self._regex.split(text)
        if not self._is_prefixed:
            return replacement.join(pieces), len(pieces) - 1
        count = len(pieces) // 2
        parts = [replacement] * (3 * count + 1)
        parts[::3], parts[1::3] = pieces[::2], [each or "" for each in pieces[1::2]]
        return "".join(parts), count

    # ---- the form -------------------------------------------------------------------

    def _divided(self, items: list[Any]) -> _Divided | None:
        """The parts of a pattern that can begin with a run; None for another one.

        They are an item that may stand before it, a character that the run begins with,
        the repeat, and the rest.
        """
        head = items[:1] if not self._is_run(items[0]) else []
        if head and (self._is_one(head[0]) or not self._is_head(head[0])):
            head = []
        lead, rest = [], items[len(head) :]
        is_lead = len(rest) > 1 and self._is_one(rest[0]) and self._is_run(rest[1])
        if is_lead and self._set(rest[0]) & self._set(rest[1][1][2][0]):
            lead, rest = rest[:1], rest[1:]
        if not rest or not self._is_run(rest[0]):
            return None
        (op, (low, high, body)), rest = rest[0], rest[1:]
        if lead and repr(lead) == repr(list(body)):
            lead, low = [], low + 1
        characters = self._set(body[0])
        if op is not sre.MAX_REPEAT or not (low or lead):
            raise UnguardedPattern
        if lead and not (is_exact(lead[0]) and self._is_part(lead[0], body[0])):
            raise UnguardedPattern
        if head and head[0][0] is not sre.AT and self._is_within(head[0], characters):
            raise UnguardedPattern
        return head, lead, (op, (low, high, body)), rest

    def _is_head(self, item: Any) -> bool:
        """Whether it is `\\b`, or a character that may be left out."""
        op, value = item
        if op is sre.MAX_REPEAT and value[:2] == (0, 1):
            return len(value[2]) == 1 and self._is_one(value[2][0])
        return bool(item == (sre.AT, sre.AT_BOUNDARY))

    def _is_part(self, item: Any, other: Any) -> bool:
        return is_exact(other) and not self._set(item) & ~self._set(other)

    def _is_within(self, head: Any, characters: int) -> bool:
        return bool(self._set(head[1][2][0]) & characters)

    def _guard(
        self, head: list[Any], lead: list[Any], first: Any, rest: list[Any]
    ) -> None:
        (one,) = first[1][2]
        body = [self._run(first[1], rest), *self._possessive(rest, last=first)]
        words = self._set(_WORD)
        is_at = bool(head) and head[0][0] is sre.AT
        if is_at and not self._set(one) & ~words:
            # The only boundary where a match can begin is the start of a run.
            self.items = [(sre.ASSERT_NOT, (-1, [_WORD])), *lead, *body]
            return
        new_run = (sre.ASSERT_NOT, (-1, [one]))
        skipped = self._skipped(one, lead, is_at=is_at)
        start: list[Any] = [new_run]
        if skipped:
            self._is_prefixed = True
            start += [(sre.ASSERT, (1, [one])), (sre.SUBPATTERN, (1, 0, 0, skipped))]
        if is_at:
            start += head
        elif head:
            # An optional character that is not in the run, or the start of a run.
            before = [*head[0][1][2], *([(sre.ASSERT, (1, lead))] if lead else [])]
            start = [(sre.BRANCH, (None, [before, start]))]
        self.items = [*start, *lead, *body]
        if not self._ends(body, one, lead):
            again = [*skipped, *head, *lead, *body]
            self.items.append((sre.POSSESSIVE_REPEAT, (0, sre.MAXREPEAT, again)))

    def _skipped(self, one: Any, lead: list[Any], *, is_at: bool) -> list[Any]:
        """Items that read a run up to the first place where a match can begin."""
        if not is_at:
            return [skip(self._without(one, lead[0]))] if lead else []
        words = self._set(_WORD)
        if lead and self._set(one) & words & ~self._set(lead[0]):
            raise UnguardedPattern
        if lead and self._set(lead[0]) & ~words:
            raise UnguardedPattern
        others = skip(self._without(one, _WORD))
        within = skip(self._within(one))
        either = [
            [(sre.ASSERT_NOT, (-1, [_WORD])), others],
            [(sre.ASSERT, (-1, [_WORD])), within, *([others] if lead else [])],
        ]
        return [(sre.BRANCH, (None, either))]

    def _without(self, one: Any, other: Any) -> list[Any]:
        """One of a set's characters that is not in another."""
        found = self._set(one) & ~self._set(other)
        if is_exact(one) and is_exact(other) and not found >> 128:
            return [literals(found)]
        return [(sre.ASSERT_NOT, (1, [other])), one]

    def _within(self, one: Any) -> list[Any]:
        """One of a set's characters that is in a word."""
        words = self._set(_WORD)
        found = self._set(one) & words
        if is_exact(one) and (not found >> 128 or found == words):
            return [_WORD if found == words else literals(found)]
        return [(sre.ASSERT, (1, [_WORD])), one]

    def _possessive(
        self,
        items: list[Any],
        *,
        last: Any = None,
        after: int = 0,
        asserted: bool = False,
    ) -> list[Any]:
        """The items, with repeats that give nothing back where that is in vain.

        Args:
            items: They stand after the item `last`, and before one of the characters
                `after`, or the end.
            asserted: A boundary may be asserted before that.
        """
        found: list[Any] = []
        for index, (op, value) in enumerate(items):
            rest = items[index + 1 :]
            # Where nothing after it can fail, the search goes on after the match.
            is_last = can_be_empty(rest) and not after and not asserted
            if self._is_long_group((op, value)) and not is_last:
                self._check_group([last, *items[:index]], value)
            if op is sre.AT or self._set_or_none((op, value)) is not None:
                found.append((op, value))
            elif op is sre.MAX_REPEAT and self._is_run((op, value)):
                if rest or after or asserted or value[0] > _LENGTH:
                    self._check_entry(items[index - 1] if index else last, value)
                found.append(self._run(value, rest, after, asserted=asserted))
            else:
                follow = first_of(rest, self._ignore_case, after)
                within = asserted or asserts(rest)
                found.append(self._group(op, value, follow, asserted=within))
        return found

    def _run(
        self, value: Any, rest: list[Any], after: int = 0, *, asserted: bool = False
    ) -> Any:
        characters = self._set(value[2][0])
        follow = first_of(rest, self._ignore_case, after)
        if not characters & follow:
            # An assertion that follows may want some characters back.
            asserted = asserted or asserts(rest)
            return (sre.MAX_REPEAT if asserted else sre.POSSESSIVE_REPEAT, value)
        if after or not rest:
            raise UnguardedPattern
        stop = self._set_or_none(rest[0])
        is_short = longest(rest) <= _LENGTH
        if not is_short and (stop is None or stop & self._all(rest[1:])):
            raise UnguardedPattern
        return (sre.MAX_REPEAT, value)

    def _group(self, op: Any, value: Any, follow: int, *, asserted: bool) -> Any:
        """Alternatives, or a repeat that is short, or once at most."""
        if op is sre.SUBPATTERN and not value[1] and not value[2]:
            part = self._possessive(list(value[3]), after=follow, asserted=asserted)
            return (op, (None, 0, 0, part))
        if op is sre.BRANCH:
            self._ways *= len(value[1])
            parts = [
                self._possessive(list(each), after=follow, asserted=asserted)
                for each in value[1]
            ]
            return (op, (None, parts))
        if op not in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            raise UnguardedPattern
        low, high, body = value
        if high == 1:
            self._ways *= 2 - low
            part = self._possessive(list(body), after=follow, asserted=asserted)
            if low or can_be_empty(body):
                return (op, (low, high, part))
            ways = [part, []] if op is sre.MAX_REPEAT else [[], part]
            return (sre.BRANCH, (None, ways))  # takes `re` less than a repeat
        if high is sre.MAXREPEAT and op is sre.MAX_REPEAT and not asserted:
            return self._repeated(value, follow)
        if high > _LENGTH or len(body) > 1:
            raise UnguardedPattern
        if low == high and self._is_one(body[0]):
            return (sre.POSSESSIVE_REPEAT, value)
        if self._set(body[0]) & follow or asserted:
            self._ways *= high - low + 1
        return (op, value)

    def _repeated(self, value: Any, follow: int) -> Any:
        """A repeat of a group that can be read in one way, and gives nothing back."""
        low, high, body = value
        first = first_of(body, self._ignore_case, 0)
        part = self._possessive(list(body), after=follow | first)
        if first & follow or any(op not in _ONE_WAY for op, _ in nodes(part)):
            raise UnguardedPattern
        return (sre.POSSESSIVE_REPEAT, (low, high, part))

    def _check_entry(self, before: Any, value: Any) -> None:
        """A later repeat begins to read at the start of a run only.

        That is not needed at the end of the pattern: nothing can fail any more.
        """
        if before is None or self._set(before) & self._set(value[2][0]):
            raise UnguardedPattern

    def _check_group(self, before: list[Any], value: Any) -> None:
        """A group begins to read at the start of a run of all of its characters only.

        Repeats right before it may be of such characters.
        """
        characters = self._all(value[2])
        while before and before[-1] is not None and self._is_run(before[-1]):
            if self._set(before.pop()[1][2][0]) & ~characters:
                raise UnguardedPattern
        if not before or before[-1] is None or self._set(before[-1]) & characters:
            raise UnguardedPattern

    def _is_long_group(self, item: Any) -> bool:
        op, value = item
        is_repeat = op in (sre.MAX_REPEAT, sre.MIN_REPEAT)
        return is_repeat and value[1] is sre.MAXREPEAT and not self._is_run(item)

    def _ends(self, items: list[Any], one: Any, lead: list[Any]) -> bool:
        """Whether after every match none can begin in the same run."""
        if not items:
            return False
        op, value = items[-1]
        characters = self._set_or_none((op, value))
        if characters is not None:
            if lead and len(items) == 2 and self._is_part(lead[0], items[1]):
                return True  # the repeat before it has read all such characters
            return not characters & self._set(one)
        if op is sre.POSSESSIVE_REPEAT:
            return repr(list(value[2])) == repr([one])
        if op is sre.BRANCH:
            return all(self._ends([*items[:-1], *part], one, lead) for part in value[1])
        return op is sre.SUBPATTERN and self._ends(list(value[3]), one, lead)

    def _is_run(self, item: Any) -> bool:
        op, value = item
        if op not in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return False
        _, high, body = value
        return len(body) == 1 and self._is_one(body[0]) and high is sre.MAXREPEAT

    def _is_one(self, item: Any) -> bool:
        """Whether it reads one character."""
        return self._set_or_none(item) is not None

    def _set(self, item: Any) -> int:
        found = self._set_or_none(item)
        if found is None:
            raise UnguardedPattern
        return found

    def _set_or_none(self, item: Any) -> int | None:
        op, value = item
        return characters_of(op, value, self._ignore_case)

    def _all(self, tree: Any) -> int:
        """All characters that a match of the sequence can have."""
        found = 0
        for op, value in tree:
            found |= self._set_or_none((op, value)) or 0
            for part in parts_of(op, value):
                found |= self._all(part)
        return found
