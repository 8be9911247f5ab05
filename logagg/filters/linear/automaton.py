"""Search for a regular expression in a time that grows with the text only. Pure.

Theory of operation
-------------------
`re` tries one way after the other, so a pattern with several repeats takes polynomial
time on a hostile text. Here all ways are followed at once: the pattern becomes a list of
instructions (Thompson's construction), a state is the set of places in it that may be
next, and each character leads from one state to another. States are made when they are
first met, and remembered with the character that led there, so a text costs one look-up
in a dictionary per character, about 30 ns.

The order of the places in a state is the order in which `re` would try them. Places
after one that ends a match are left out, so the end found is that of `re`, greedy and
lazy repeats included. Where matches begin is found by the same machine for the pattern
turned round, on the text from its end.

Assertions (`^ $ \\A \\Z \\b \\B`) are decided by the characters on both sides. Whether a
character is in a class is asked of `re`. Look-around, back-references, atomic groups and
possessive repeats are not supported, nor patterns of more than MOST instructions.

Precedent: RE2 (Russ Cox, "Regular Expression Matching in the Wild").
"""

from __future__ import annotations

import re
from re import _compiler, _parser  # type: ignore[attr-defined]  # no public ones
from re import _constants as sre  # type: ignore[attr-defined]
from typing import Any

__all__ = ["Automaton", "TooLong", "UnsupportedPattern"]

MOST = 1_000
STATES = 2_000
CHARACTERS = 1_000
_STEPS = 8
"""Characters that a search for all matches may read, as a multiple of the text."""

_END = "end"
_LAST_NEWLINE = "newline at the end"
_NONE, _NEWLINE, _ASCII, _WORD, _OTHER, _LAST = range(6)  # kinds of neighbors
_CHOICE, _CHARACTER, _ASSERTION, _MATCH = range(4)
_ONE = (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN)
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)


class UnsupportedPattern(Exception):
    """The pattern, or a part of it, is not supported."""


class TooLong(Exception):
    """All matches take more than a few times the length of the text to find."""


class _Instructions:
    """Instructions, by their numbers: `next` where they go on, `also` a second choice.

    A character is of the class with the number `what`.
    """

    def __init__(self, tree: Any, flags: int, *, backward: bool) -> None:
        self.code: list[tuple[int, Any, int, int]] = [(_MATCH, None, 0, 0)]
        self.classes: list[re.Pattern[str]] = []
        self.asserts = False
        self._known: dict[str, int] = {}
        self._backward = backward
        self.start = self._sequence(tree, flags, 0)

    def _add(self, kind: int, what: Any, first: int, second: int = 0) -> int:
        if len(self.code) >= MOST:
            raise UnsupportedPattern("it is too large")
        self.code.append((kind, what, first, second))
        return len(self.code) - 1

    def _sequence(self, tree: Any, flags: int, after: int) -> int:
        items = list(tree)
        for op, value in items if self._backward else reversed(items):
            after = self._item(op, value, flags, after)
        return after

    def _item(self, op: Any, value: Any, flags: int, after: int) -> int:
        if op in _ONE:
            return self._add(_CHARACTER, self._class(op, value, flags), after)
        if op is sre.SUBPATTERN:
            _, added, removed, inner = value
            return self._sequence(inner, (flags | added) & ~removed, after)
        if op is sre.BRANCH:
            entries = [self._sequence(part, flags, after) for part in value[1]]
            first = entries.pop()
            while entries:
                first = self._add(_CHOICE, None, entries.pop(), first)
            return first
        if op is sre.AT:
            self.asserts = True
            return self._add(_ASSERTION, _assertion(value, flags), after)
        if op in _REPEATS:
            return self._repeat(value, flags, after, lazy=op is sre.MIN_REPEAT)
        raise UnsupportedPattern(str(op))

    def _repeat(self, value: Any, flags: int, after: int, *, lazy: bool) -> int:
        low, high, body = value
        if high is sre.MAXREPEAT:
            loop = self._add(_CHOICE, None, 0, 0)
            inner = self._sequence(body, flags, loop)
            self.code[loop] = (
                _CHOICE,
                None,
                *((after, inner) if lazy else (inner, after)),
            )
            entry = loop
        else:
            entry = after
            for _ in range(high - low):
                inner = self._sequence(body, flags, entry)
                ways = (after, inner) if lazy else (inner, after)
                entry = self._add(_CHOICE, None, *ways)
        for _ in range(low):
            entry = self._sequence(body, flags, entry)
        return entry

    def _class(self, op: Any, value: Any, flags: int) -> int:
        name = f"{op} {value} {flags}"
        number = self._known.get(name)
        if number is None:
            state = _parser.State()
            state.flags = flags
            one = _parser.SubPattern(state, [(op, value)])
            number = self._known[name] = len(self.classes)
            self.classes.append(_compiler.compile(one, flags))
        return number


def _assertion(value: Any, flags: int) -> tuple[Any, bool]:
    """An assertion as it is by these flags, and whether words are ASCII."""
    if flags & re.MULTILINE:
        lines = {
            sre.AT_BEGINNING: sre.AT_BEGINNING_LINE,
            sre.AT_END: sre.AT_END_LINE,
        }
        value = lines.get(value, value)
    return value, bool(flags & re.ASCII)


def _holds(assertion: tuple[Any, bool], left: int, right: int) -> bool:
    """Whether an assertion holds between neighbors of these kinds."""
    at, ascii_only = assertion
    if at in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
        return left == _NONE
    if at is sre.AT_BEGINNING_LINE:
        return left in (_NONE, _NEWLINE, _LAST)
    if at is sre.AT_END:
        return right in (_NONE, _LAST)
    if at is sre.AT_END_LINE:
        return right in (_NONE, _NEWLINE, _LAST)
    if at is sre.AT_END_STRING:
        return right == _NONE
    words = (_ASCII,) if ascii_only else (_ASCII, _WORD)
    return ((left in words) != (right in words)) is (at is sre.AT_BOUNDARY)


def _kind(character: str) -> int:
    if character is _END:
        return _NONE
    if character is _LAST_NEWLINE:
        return _LAST
    if character == "\n":
        return _NEWLINE
    if character.isalnum() or character == "_":
        return _ASCII if character.isascii() else _WORD
    return _OTHER


class _State(dict[str, "_State"]):
    """The places that may be next, and the states that characters lead to.

    Attributes:
        places: The places, in the order in which `re` would try them.
        before: The kind of the character that led here.
        ends: Whether a match ends before that character.
    """

    __slots__ = ("before", "ends", "machine", "places")

    def __init__(
        self, machine: _Machine, places: tuple[int, ...], before: int, *, ends: bool
    ) -> None:
        self.machine = machine
        self.places = places
        self.before = before
        self.ends = ends

    def __missing__(self, character: str) -> _State:
        return self.machine.follow(self, character)


class _Machine:
    """One direction of a pattern, and its states.

    Args:
        program: The instructions.
        backward: The text is read from its end.
        anywhere: A match may begin at every place; which is first does not matter.
        once: One match is enough.
    """

    def __init__(
        self, program: _Instructions, *, backward: bool, anywhere: bool, once: bool
    ) -> None:
        self._program = program
        self._backward = backward
        self._anywhere = anywhere
        self._once = once
        self._states: dict[tuple[Any, ...], _State] = {}
        self._members: dict[str, tuple[bool, ...]] = {}
        self.found = _State(self, (-1,), _OTHER, ends=True)

    def start(self, before: int) -> _State:
        """The state after a character of that kind."""
        return self._state((self._program.start,), before, ends=False)

    def _state(self, places: tuple[int, ...], before: int, *, ends: bool) -> _State:
        if not self._program.asserts:
            before = _OTHER
        key = (places, before, ends)
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= STATES:
                self._states.clear()
            state = self._states[key] = _State(self, places, before, ends=ends)
        return state

    def follow(self, state: _State, character: str) -> _State:
        """The state that a character leads to."""
        if state is self.found:
            reached = state
        else:
            after = _kind(character)
            found, ends = self._closed(state, after)
            if ends and self._once:
                reached = self.found
            else:
                following = self._step(found, character)
                reached = self._state(following, after, ends=ends)
        if len(state) >= CHARACTERS:
            state.clear()
        state[character] = reached
        return reached

    def _step(self, found: list[int], character: str) -> tuple[int, ...]:
        members = self._members_of(character)
        code = self._program.code
        following = [code[p][2] for p in found if members[code[p][1]]]
        if self._anywhere:
            return tuple(sorted({*following, self._program.start}))
        return tuple(dict.fromkeys(following))

    def _members_of(self, character: str) -> tuple[bool, ...]:
        """For each class whether a character is in it; nothing is in any at the end."""
        known = self._members.get(character)
        if known is None:
            if len(self._members) >= CHARACTERS:
                self._members.clear()
            one = {_END: "", _LAST_NEWLINE: "\n"}.get(character, character)
            classes = self._program.classes
            known = tuple(each.fullmatch(one) is not None for each in classes)
            self._members[character] = known
        return known

    def _closed(self, state: _State, after: int) -> tuple[list[int], bool]:
        """The places of characters that are next, and whether a match ends here.

        Without `anywhere` those that come after the match are left out.
        """
        left, right = state.before, after
        if self._backward:
            left, right = right, left
        stack = list(reversed(state.places))
        seen: set[int] = set()
        found: list[int] = []
        ends = False
        while stack:
            place = stack.pop()
            if place in seen:
                continue
            seen.add(place)
            kind, what, first, second = self._program.code[place]
            if kind == _CHARACTER:
                found.append(place)
            elif kind == _CHOICE:
                stack += (second, first)
            elif kind == _ASSERTION:
                if _holds(what, left, right):
                    stack.append(first)
            else:
                ends = True
                if not self._anywhere:
                    break
        return found, ends


class Automaton:
    """A pattern that is searched for in linear time.

    Args:
        tree: The parsed pattern.
        flags: Its flags, those in the pattern included.

    Raises:
        UnsupportedPattern: It cannot be.
    """

    def __init__(self, tree: Any, flags: int) -> None:
        forward = _Instructions(tree, flags, backward=False)
        backward = _Instructions(tree, flags, backward=True)
        self._any = _Machine(forward, backward=False, anywhere=True, once=True)
        self._starts = _Machine(backward, backward=True, anywhere=True, once=False)
        self._end = _Machine(forward, backward=False, anywhere=False, once=False)

    def search(self, text: str) -> bool:
        """Whether it occurs in a text that is not empty."""
        state = self._any.start(_NONE)
        if text[-1] == "\n":
            for character in text[:-1]:
                state = state[character]
            state = state[_LAST_NEWLINE]
        else:
            for character in text:
                state = state[character]
        return state[_END] is self._any.found

    def sub(self, replacement: str, text: str) -> tuple[str, int]:
        """Replace all that `re` would; no match may be empty.

        Returns:
            The text, and how many were replaced.

        Raises:
            TooLong: They are not found in a few times the length of the text.
        """
        parts: list[str] = []
        done = steps = 0
        symbols = [*text[:-1], _LAST_NEWLINE if text[-1] == "\n" else text[-1], _END]
        for start in self._places(symbols):
            if start < done:
                continue
            end = self._end_of(symbols, start)
            steps += end[1]
            if steps > _STEPS * len(symbols):
                raise TooLong
            parts += (text[done:start], replacement)
            done = end[0]
        return "".join([*parts, text[done:]]), len(parts) // 2

    def _places(self, symbols: list[str]) -> list[int]:
        """Where matches begin."""
        found = []
        state = self._starts.start(_NONE)
        for place in range(len(symbols) - 2, -1, -1):
            state = state[symbols[place]]
            if state.ends:
                found.append(place + 1)
        if state[_END].ends:
            found.append(0)
        return found[::-1]

    def _end_of(self, symbols: list[str], start: int) -> tuple[int, int]:
        """Where the match that begins there ends, and how many steps that took."""
        state = self._end.start(_kind(symbols[start - 1]) if start else _NONE)
        end = place = start
        for place in range(start, len(symbols)):
            state = state[symbols[place]]
            if state.ends:
                end = place
            if not state.places:
                break
        return end, place - start + 1
