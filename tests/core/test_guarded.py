"""Patterns in the form that `re` searches in linear time: same matches, and few steps."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice, product
from re import _constants as sre  # type: ignore[attr-defined]
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg.errors import ConfigError
from logagg.filters import regex
from logagg.filters.linear.guarded import Guarded, UnguardedPattern
from logagg.filters.linear.parsed import compiled

EVERYDAY = (
    r"[\w.+-]+@[\w-]+\.[\w.-]+",
    r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}\b",
    r"[\w.]+@[\w.]+\.[a-z]+",
    r"(?i)[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}",
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    r"\+?\d[\d -]{7,}\d",
    r"\b\d[\d -]{7,}\d\b",
    r"\+?[\d\s().-]{7,}\d",
    r"[\d() -]+\d{4}",
    r"\b\d{13,19}\b",
    r"\d+\.\d+",
    r"-?\d+(?:\.\d+)?",
    r"\b\d+\.\d+\b",
    r"\b\d+\b",
    r"\d+[-/]\d+[-/]\d+",
    r"\d+[.,]\d+",
    r"\d+(,\d{3})*(\.\d+)?",
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)",
)
CLASSES = (
    r"\d", r"\w", r"[\w.]", r"[\w.+-]", "[a-z]", "[ab.]", r"[^\s]", ".", "[.-]", "[1a]",
    "[A-Za-z0-9._%+-]", r"\W", "[^a]", "é", r"[ж\d]", r"\s", "k", "[a-k]",
)  # fmt: skip
SINGLES = ("@", r"\.", "-", "[-/]", ":", "x", "1", ".", r"\s", "a", r"\b", ";")
HEADS = ("", "", r"\b", "-?", r"\.?")
CHARACTERS = "1a.@-+ xkKéž\u017f\u212a\n_;/b"
HOSTILE = (
    "1", "1-", "1.", "a@", "a.", "a@b.cc+", ".a", "1 ", "-", "a@1.", "é.", "1-1-", "2026-11-",
    "+", "+1", "+ ", "@", ".@", "@a", "é@", "_", "a@b.c+", "a@b.cc%", "a@b.cc ", "1x", "1\n",
    "1 234567 +", "+1 234567 +", "1 23 5 8 x", "- 1", "1 1 1 1 1 1 1x", ")1(", "a.b@c.d.",
    "1,", "1,111,", "1,111.",
)  # fmt: skip
LEADS = ("", "a@b.cc +1234567890 1.5 1/2/3 _________@")
"""What stands before and between them: matches, so that some are replaced, and a run."""

REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)


def item(chance: random.Random, *, inner: bool = False) -> str:
    """A part of a pattern."""
    kind = chance.random()
    if kind < 0.4:
        return chance.choice(CLASSES) + chance.choice(("+", "+", "*", "{2,}", "+?"))
    if kind < 0.65:
        return chance.choice(SINGLES)
    if kind < 0.75 or inner:
        return chance.choice(CLASSES)
    if kind < 0.85:
        return chance.choice(CLASSES) + chance.choice(("{1,3}", "?", "{2}"))
    if kind < 0.88:
        body = chance.choice(SINGLES) + chance.choice(CLASSES)
        return f"(?:{body}{chance.choice(('+', '{2}', ''))}){chance.choice('+*')}"
    if kind < 0.94:
        parts = [item(chance, inner=True) for _ in range(chance.randint(1, 3))]
        return f"(?:{''.join(parts)}){chance.choice(('?', ''))}"
    return f"({item(chance, inner=True)}|{item(chance, inner=True)})"


def pattern(chance: random.Random) -> str:
    """A pattern, most of them with a repeat first."""
    parts = [item(chance) for _ in range(chance.randint(0, 4))]
    if chance.random() < 0.8:
        lead = chance.choice(("", "", chance.choice(CLASSES)))
        repeat = chance.choice(("+", "+", "{2,}", "*"))
        parts.insert(0, f"{chance.choice(HEADS)}{lead}{chance.choice(CLASSES)}{repeat}")
    return chance.choice(("", "", "(?i)")) + "".join(parts)


def guarded(source: str) -> tuple[Guarded, re.Pattern[str]]:
    """The form of a pattern, and the pattern."""
    built = regex.build(source, ignore_case=False)
    return Guarded(built.tree, built.regex.flags), built.regex


def check(form: Guarded, expression: re.Pattern[str], text: str) -> None:
    """Replaced is what `re` matches; matches that share a run may be joined.

    Each part that is replaced begins and ends with a match, and all matches are in one.
    """
    parts = [
        (each.end(1) if each.lastindex else each.start(), each.end())
        for each in form._regex.finditer(text)
    ]
    spans = [each.span() for each in expression.finditer(text)]
    if any(start == end for start, end in spans):
        return  # such a pattern is not replaced
    within = [
        [(start, end) for start, end in spans if first <= start and end <= last]
        for first, last in parts
    ]
    assert [each for part in within for each in part] == spans, (expression, text)
    joined = [(part[0][0], part[-1][1]) for part in within if part]
    assert joined == parts, (expression, text)
    places = [0, *(place for part in parts for place in part), len(text)]
    kept = (text[at:end] for at, end in zip(places[::2], places[1::2], strict=True))
    expected = "#\\1".join(kept), len(parts)
    assert form.sub("#\\1", text) == expected, (expression, text)
    assert form.search(text) is bool(spans), (expression, text)


def texts(chance: random.Random) -> Iterator[str]:
    """Short ones of a few characters, so that matches are likely."""
    for _ in range(40):
        few = chance.sample(CHARACTERS, chance.randint(1, 5))
        yield "".join(
            chance.choice(few) * chance.choice((1, 1, 1, 2, 3))
            for _ in range(chance.randint(1, 14))
        )


@given(st.integers(0, 2**32))
def test_any_pattern_finds_what_re_finds(seed: int) -> None:
    """Replaced and searched, whatever the pattern, or there is no such form."""
    chance = random.Random(seed)
    for _ in range(20):
        source = pattern(chance)
        try:
            form, expression = guarded(source)
        except (ConfigError, UnguardedPattern):
            continue
        if expression.search(""):
            continue
        for text in texts(chance):
            check(form, expression, text)


@pytest.mark.parametrize("source", EVERYDAY)
def test_an_everyday_pattern_finds_what_re_finds(source: str) -> None:
    """Next to one another, at the ends of runs, after signs, in long runs."""
    form, expression = guarded(source)
    chance = random.Random(source)
    pieces = (*HOSTILE, "a@b.cc", "1.5", "2026-11-30T21:50:00.1Z", " ", "é", "1/2/3")
    for _ in range(300):
        parts = (chance.choice(pieces) * chance.choice((1, 2, 30)) for _ in range(6))
        text = "".join(parts)
        check(form, expression, text)


@pytest.mark.parametrize("source", EVERYDAY)
def test_the_steps_grow_with_the_text(source: str) -> None:
    """Twice the text takes twice the steps; counted as `re` takes them."""
    form, expression = guarded(source)
    grows = {}
    for lead, piece in product(LEADS, HOSTILE):
        unit = piece * (40 // len(piece)) + lead if lead else piece
        short, double = (
            Steps(lead + unit * (length // len(unit)), form.items).all()
            for length in (80, 160)
        )
        grows[lead, piece] = double / short
    worst = max(grows, key=lambda each: grows[each])
    assert grows[worst] < 2.5, (worst, grows[worst])
    assert expression.pattern == source


@pytest.mark.parametrize(
    "source",
    [r"\d+.*x", r"\w+\d+;", r"(?:\d+x)+y", r"(\d)+\1x", r"(?a)\d+x", r"\d{1,50}-",
     r"(?i)[^ß]+S", r"\w+?x", r"a{1,4}a{1,3}a{1,3}a{1,3}b\d+"],
)  # fmt: skip
def test_a_pattern_of_another_form_is_left_alone(source: str) -> None:
    """It would take more than linear time, or find something else."""
    with pytest.raises(UnguardedPattern):
        guarded(source)


class Steps:
    """A backtracking matcher that counts its steps."""

    def __init__(self, text: str, items: Any) -> None:
        self.text, self.items, self.steps = text, items, 0
        self.known: dict[int, tuple[Any, re.Pattern[str]]] = {}

    def all(self) -> int:
        """The steps of a search for all matches."""
        place = 0
        while place < len(self.text):
            end = next(self.sequence(list(self.items), place), None)
            place = place + 1 if end is None else max(end, place + 1)
        return self.steps

    def sequence(self, items: list[Any], place: int) -> Iterator[int]:
        if not items:
            yield place
            return
        for end in self.item(*items[0], place):
            yield from self.sequence(items[1:], end)

    def item(self, op: Any, value: Any, place: int) -> Iterator[int]:
        if op in REPEATS:
            found = self.repeat(op, value, place, 0)
            yield from islice(found, 1) if op is sre.POSSESSIVE_REPEAT else found
        elif op is sre.ATOMIC_GROUP:
            yield from islice(self.sequence(list(value), place), 1)
        elif op is sre.SUBPATTERN:
            yield from self.sequence(list(value[3]), place)
        elif op is sre.BRANCH:
            for part in value[1]:
                yield from self.sequence(list(part), place)
        elif op in (sre.ASSERT, sre.ASSERT_NOT):
            at = place - 1 if value[0] < 0 else place
            ends = self.sequence(list(value[1]), at) if at >= 0 else iter(())
            if (next(ends, None) is not None) is (op is sre.ASSERT):
                yield place
        else:
            self.steps += 1
            if self.one(op, value).match(self.text, place):
                yield place + (op is not sre.AT)

    def repeat(self, op: Any, value: Any, place: int, done: int) -> Iterator[int]:
        low, high, body = value
        if done < high:
            for end in self.sequence(list(body), place):
                yield from self.repeat(op, value, end, done + 1)
        if done >= low:
            yield place

    def one(self, op: Any, value: Any) -> re.Pattern[str]:
        """An expression for a character or an assertion."""
        if id(value) not in self.known:
            items = [(op, value)]
            self.known[id(value)] = value, compiled(items, re.UNICODE)
        return self.known[id(value)][1]
