"""Replacing by `re` where a text bounds its steps: the same result, and the bound."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser
from typing import Any

import pytest

from logagg.filters import regex
from logagg.filters.charsets import characters_of
from logagg.filters.linear.automaton import Automaton
from logagg.filters.linear.runs import LONGEST, STEPS, Runs

EVERYDAY = (
    r"[\w.+-]+@[\w-]+\.[\w.-]+", r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}\b",
    r"[\w.]+@[\w.]+\.[a-z]+", r"\d+\.\d+", r"-?\d+(?:\.\d+)?", r"\b\d+\.\d+\b",
    r"\b(?:\d[ -]?){13,16}\b", r"\b(?:\d[ -]*?){13,16}\b", r"\+?\d[\d -]{7,}\d",
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)", r"\b\d+\b",
    r"\d+[-/]\d+[-/]\d+", r"(?i)\b(?:[a-z]+-)+\d+;",
)  # fmt: skip
OTHERS = (
    r"\d+\d+x",
    r"(?:a|b)+\bc?\d*;",
    r"(?:\d{1,3}\.){3,}\d+;",
    r"\w*?\d+;",
    r".+x",
)
TEXTS = (
    "a.b@example.com ", "alice.smith+tag@mail.example.org, ", "1.5 ", "4111 1111 1111 1111, ",
    "+49 30 1234567, ", "2026-11-30T21:50:00.123Z ", "over 12 lazy dogs. ",
)  # fmt: skip
BOUNDARY = re.compile(r"\b")
PIECES = (
    "1",
    "a",
    "a.",
    "1-",
    "1 ",
    "@",
    " ",
    ".1",
    "é",
    "\u0416",
    "x;",
    "T",
    "-",
    "\n",
)


def texts(chance: random.Random) -> Iterator[str]:
    """Everyday ones, and ones that are made of a few pieces, often repeated."""
    yield from (text * 4 for text in TEXTS)
    for _ in range(20):
        parts = chance.choices(PIECES, k=4)
        repeated = "".join(part * chance.choice((1, 2, 9, LONGEST)) for part in parts)
        yield (repeated + chance.choice(TEXTS)) * 2


@pytest.mark.parametrize("pattern", EVERYDAY + OTHERS)
def test_what_is_replaced_does_not_depend_on_the_way(pattern: str) -> None:
    """By `re` alone, by the automaton alone, and by whichever is chosen."""
    expression, chosen = re.compile(pattern), regex.build(pattern, ignore_case=False)
    automaton = Automaton(_parser.parse(pattern, expression.flags), expression.flags)
    for text in texts(random.Random(pattern)):
        expected = expression.subn("#", text)
        assert chosen.sub("#", text) == expected, text
        assert automaton.sub("#", text) == expected, text


@pytest.mark.parametrize("pattern", EVERYDAY + OTHERS)
def test_short_runs_bound_the_steps_from_each_place(pattern: str) -> None:
    """Counted by a matcher that tries what `re` tries, in the same order."""
    flags = re.compile(pattern).flags
    tree = _parser.parse(pattern, flags)
    runs = Runs(tree, flags)
    for text in texts(random.Random(pattern)):
        if runs.are_short(text):
            for place in range(len(text)):
                counted = Counted(text, flags)
                next(counted.sequence(list(tree), place), None)
                assert counted.steps <= 2 * STEPS, (text, place)


class Counted:
    """A backtracking matcher that counts its steps."""

    def __init__(self, text: str, flags: int) -> None:
        self.text, self.flags, self.steps = text, flags, 0

    def sequence(self, items: list[Any], place: int) -> Iterator[int]:
        """The places where a match of the items ends, in the order of `re`."""
        if not items:
            yield place
            return
        for end in self.item(*items[0], place):
            yield from self.sequence(items[1:], end)

    def item(self, op: Any, value: Any, place: int) -> Iterator[int]:
        """The same for one item."""
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            yield from self.repeat(op, value, place, 0)
        elif op is sre.SUBPATTERN:
            yield from self.sequence(list(value[3]), place)
        elif op is sre.BRANCH:
            for part in value[1]:
                yield from self.sequence(list(part), place)
        elif op is sre.AT:
            self.steps += 1
            if BOUNDARY.match(self.text, place):
                yield place
        else:
            self.steps += 1
            ignores = bool(self.flags & re.IGNORECASE)
            codes = characters_of(op, value, ignores) or 0
            char = self.text[place : place + 1].encode("latin-1", "replace")
            if char and codes >> char[0] & 1:
                yield place + 1

    def repeat(self, op: Any, value: Any, place: int, done: int) -> Iterator[int]:
        """As many as are left of a repeat."""
        low, high, body = value
        if op is sre.MIN_REPEAT and done >= low:
            yield place
        if done < high:
            for end in self.sequence(list(body), place):
                yield from self.repeat(op, value, end, done + 1)
        if op is sre.MAX_REPEAT and done >= low:
            yield place


@pytest.mark.parametrize(
    ("pattern", "text", "short"),
    [
        (r"\d+\.\d+", "1.5 " * 9, True),
        (r"\d+\.\d+", "1" * LONGEST + " ", True),
        (r"\d+\.\d+", "1" * (LONGEST + 1), False),
        (r"\d+x\d+y", "a" * 99, True),
        (r"\w+@\w+", "\u0416" * 99, False),
        (r"\b(?:\d[ -]?){13,16}\b", "1 " * 99, True),
        (r"\d+\d+x", "a", False),
        (r"[\w.]+\.[a-z]+;", "a", True),
        (r"[\w.]+\.[a-z.]+;", "a", False),
        (r"(?:\d+x?){3}y", "a", False),
        (r"(?:\d+){3}y", "a", False),
        (r"(?:\b)+\d+x", "a", False),
        (r"([\w-]+1)-[a-z]+;", "a", True),
        (r"(?=a)\w+x", "a", False),
        (r"(?i:a)\w+x", "a", False),
        (r"(?a)\w+x", "a", False),
        (r"(\w)\1+x", "a", False),
    ],
)
def test_which_texts_are_left_to_re(pattern: str, text: str, *, short: bool) -> None:
    """Runs of what the repeats read count; a pattern that is not understood, never."""
    flags = re.compile(pattern).flags
    assert Runs(_parser.parse(pattern, flags), flags).are_short(text) is short


def test_many_matches_are_replaced_without_the_automaton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes a few microseconds for each; a long run still needs it."""
    used: list[str] = []
    monkeypatch.setattr(
        Automaton, "sub", lambda *given: used.append(given[2]) or ("", 0)
    )
    for pattern in EVERYDAY:
        for text in TEXTS:
            regex.build(pattern, ignore_case=False).sub("#", text * 400)
    assert [text[:20] for text in used] == []

    regex.build(r"\S+@\S+").sub("#", "a@b, " + "1" * 16_000)
    assert used
