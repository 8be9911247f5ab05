"""Expressions that `re` searches in linear time, whatever the text. Pure.

In a pattern such as `\\d+-\\d+`, two things cost `re` more than one step per character:
it gives back what a repeat has read, and it begins anew at each place of the same run.
Where what follows a repeat can begin with no character of it, giving back is in vain:
the repeat becomes possessive. And where the pattern begins with a repeat, a match that
begins within a run of its characters could begin at the run's start as well: only there
it is tried (after `\\b`, at the first boundary in the run).

Each later repeat must stand after one character that is not in it. So it begins to read
at the start of a run only, from where there is one way back to the start of the match:
a character is read once for each item of the pattern.

The same matches are found, with one exception: the next match may begin where the last
one ended, within a run. Where that can happen the text is searched step by step.
"""

from __future__ import annotations

import re
from re import _compiler, _parser  # type: ignore[attr-defined]  # no public ones
from re import _constants as sre  # type: ignore[attr-defined]
from typing import Any

from logagg.filters.charsets import characters_of, first_of, parts_of

__all__ = ["Guarded", "UnguardedPattern"]

_WAYS = 16
_LENGTH = 20
_TOUCHING = 2  # the group that marks an end within a run
_WORD = [(sre.IN, [(sre.CATEGORY, sre.CATEGORY_WORD)])]


class UnguardedPattern(Exception):
    """The pattern, or a part of it, is of another form."""


class Guarded:
    """A pattern that `re` searches for in linear time, in another form.

    Args:
        tree: The parsed pattern, which cannot take exponential time.
        flags: Its flags, those in the pattern included.

    Attributes:
        is_safe: No match can begin within a run in which another one ended.
        items: The form that is compiled.

    Raises:
        UnguardedPattern: It has no such form.
    """

    def __init__(self, tree: Any, flags: int) -> None:
        if flags & (re.ASCII | re.LOCALE):
            raise UnguardedPattern
        self._ignore_case = bool(flags & re.IGNORECASE)
        self._flags = flags
        self._ways = 1
        self.items: list[Any]
        self.is_safe = True
        self._prefixed = False
        items = _without_groups(list(tree))
        if not items or (self._ignore_case and not _is_ascii(items)):
            raise UnguardedPattern
        if self._set_or_none(items[0]) is None and any(map(self._is_run, items[:2])):
            self._guard(*self._divided(items))
        else:
            self.items = self._possessive(items)
        self.regex = self._compiled(self.items)
        if self._ways > _WAYS:
            raise UnguardedPattern

    def _guard(self, head: list[Any], first: Any, rest: list[Any]) -> None:
        body = [self._run(first[1], rest), *self._possessive(rest, last=first)]
        (one,) = first[1][2]
        before = self._before(head, one)
        start = [(sre.ASSERT, (1, [one])), (sre.ASSERT_NOT, (-1, [one])), *before]
        if self._is_boundary_enough:
            start = head
        elif head and head[0][0] is not sre.AT:
            # An optional character that is not in the run, or the start of a run.
            start = [(sre.BRANCH, (None, [list(head[0][1][2]), start[:2]]))]
        self.is_safe = self._is_boundary_enough or self._ends(body, first)
        self._prefixed = len(before) > len(head)
        if self.is_safe:
            self.items = [*start, *body]
            return
        within = [(sre.ASSERT, (-1, [one])), (sre.ASSERT, (1, [one]))]
        mark = [(sre.SUBPATTERN, (_TOUCHING, 0, 0, within))]
        body = [(sre.ATOMIC_GROUP, body), (sre.BRANCH, (None, [mark, []]))]
        if not self._prefixed:
            begin: Any = (sre.SUBPATTERN, (1, 0, 0, []))
            start, before = [begin, *start], [begin, *before]
        self.items = [*start, *body]
        self._again = self._compiled([*before, *body])

    def search(self, text: str) -> bool:
        """Whether it occurs in a text."""
        return self.regex.search(text) is not None

    def sub(self, replacement: str, text: str) -> tuple[str, int]:
        """Replace all that `re` would; the replacement is plain text."""
        if self.is_safe:
            plain = replacement.replace("\\", r"\\")
            return self.regex.subn(rf"\g<1>{plain}" if self._prefixed else plain, text)
        parts: list[str] = []
        done, count = 0, -1
        while count < len(parts):
            count = len(parts)
            for found in self.regex.finditer(text, done):
                parts += (text[done : found.end(1)], replacement)
                done = found.end()
                if found.lastindex == _TOUCHING:
                    break
            while parts and (next_one := self._again.match(text, done)):
                parts += (text[done : next_one.end(1)], replacement)
                done = next_one.end()
        return "".join([*parts, text[done:]]), len(parts) // 2

    # ---- the form -------------------------------------------------------------------

    def _divided(self, items: list[Any]) -> tuple[list[Any], Any, list[Any]]:
        """The item before the first repeat, if there is one, the repeat, and the rest."""
        head = items[:1] if items and not self._is_run(items[0]) else []
        if len(items) <= len(head) or not self._is_run(items[len(head)]):
            raise UnguardedPattern
        first, rest = items[len(head)], items[len(head) + 1 :]
        low, _, body = first[1]
        if first[0] is not sre.MAX_REPEAT or not low:
            raise UnguardedPattern
        if head and head[0] != (sre.AT, sre.AT_BOUNDARY):
            op, value = head[0]
            if op is not sre.MAX_REPEAT or value[:2] != (0, 1) or len(value[2]) != 1:
                raise UnguardedPattern
            if self._set(value[2][0]) & self._set(body[0]):
                raise UnguardedPattern
        words = self._set(_WORD[0])
        self._is_boundary_enough = bool(
            head and head[0][0] is sre.AT and not self._set(body[0]) & ~words
        )
        return head, first, rest

    def _before(self, head: list[Any], one: Any) -> list[Any]:
        """The items before the first repeat; after `\\b`, up to the first boundary."""
        if not head or head[0][0] is not sre.AT or self._is_boundary_enough:
            return head
        other = _skipped([(sre.ASSERT_NOT, (1, _WORD)), one])
        words = _skipped([(sre.ASSERT, (1, _WORD)), one])
        either = [
            [(sre.ASSERT_NOT, (-1, _WORD)), other],
            [(sre.ASSERT, (-1, _WORD)), words],
        ]
        return [(sre.SUBPATTERN, (1, 0, 0, [(sre.BRANCH, (None, either))])), *head]

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
            if op is sre.AT or self._set_or_none((op, value)) is not None:
                found.append((op, value))
            elif op is sre.MAX_REPEAT and self._is_run((op, value)):
                if rest or after or asserted or value[0] > _LENGTH:
                    self._check_entry(items[index - 1] if index else last, value)
                found.append(self._run(value, rest, after, asserted=asserted))
            else:
                follow = first_of(rest, self._ignore_case, after)
                within = asserted or _asserts(rest)
                found.append(self._group(op, value, follow, asserted=within))
        return found

    def _run(
        self, value: Any, rest: list[Any], after: int = 0, *, asserted: bool = False
    ) -> Any:
        characters = self._set(value[2][0])
        follow = first_of(rest, self._ignore_case, after)
        if not characters & follow:
            # An assertion that follows may want some characters back.
            asserted = asserted or _asserts(rest)
            return (sre.MAX_REPEAT if asserted else sre.POSSESSIVE_REPEAT, value)
        if after or not rest or (stop := self._set_or_none(rest[0])) is None:
            raise UnguardedPattern
        if stop & self._all(rest[1:]):
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
            return (op, (low, high, part))
        if high > _LENGTH or len(body) > 1:
            raise UnguardedPattern
        if self._set(body[0]) & follow or asserted:
            self._ways *= high - low + 1
        return (op, value)

    def _check_entry(self, before: Any, value: Any) -> None:
        """A later repeat begins to read at the start of a run only.

        That is not needed at the end of the pattern: nothing can fail any more.
        """
        if before is None or self._set(before) & self._set(value[2][0]):
            raise UnguardedPattern

    def _ends(self, items: list[Any], first: Any) -> bool:
        """Whether every match ends where a run of the first repeat cannot go on."""
        if not items:
            return False
        op, value = items[-1]
        characters = self._set_or_none((op, value))
        if characters is not None:
            return not characters & self._set(first[1][2][0])
        if op is sre.POSSESSIVE_REPEAT:
            return repr(list(value[2])) == repr(list(first[1][2]))
        if op is sre.BRANCH:
            return all(self._ends(part, first) for part in value[1])
        if op is sre.MAX_REPEAT and value[1] == 1:
            return self._ends(value[2], first) and self._ends(items[:-1], first)
        return op is sre.SUBPATTERN and self._ends(value[3], first)

    def _is_run(self, item: Any) -> bool:
        op, value = item
        if op not in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return False
        _, high, body = value
        is_one = len(body) == 1 and self._set_or_none(body[0]) is not None
        return is_one and high is sre.MAXREPEAT

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

    def _compiled(self, items: list[Any]) -> re.Pattern[str]:
        state = _parser.State()
        state.flags = self._flags
        tree = _tree(state, items)
        for op, value in _nodes(tree):
            if op is sre.SUBPATTERN and value[0]:
                state.closegroup(state.opengroup(None), tree)
        found: re.Pattern[str] = _compiler.compile(tree, self._flags)
        return found


def _skipped(items: list[Any]) -> Any:
    return (sre.POSSESSIVE_REPEAT, (0, sre.MAXREPEAT, items))


def _without_groups(items: list[Any]) -> list[Any]:
    """A sequence without groups around parts of it that are not repeated."""
    found: list[Any] = []
    for op, value in items:
        if op is sre.SUBPATTERN and not value[1] and not value[2]:
            found += _without_groups(list(value[3]))
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
    return value


def _asserts(items: list[Any]) -> bool:
    return any(op is sre.AT for op, _ in _nodes(items))


def _is_ascii(items: list[Any]) -> bool:
    """Whether all characters that are named are ASCII: others have odd capitals."""
    for op, value in _nodes(items):
        named = value if op is sre.IN else [(op, value)]
        for kind, what in named:
            if kind in (sre.LITERAL, sre.NOT_LITERAL) and what > 127:
                return False
            if kind is sre.RANGE and what[1] > 127:
                return False
    return True


def _nodes(tree: Any) -> Any:
    for op, value in tree:
        yield op, value
        for part in parts_of(op, value):
            yield from _nodes(part)
