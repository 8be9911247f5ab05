"""Patterns in linear time: the same answers as `re`, and on any text in time."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator, Sequence
from re import _parser  # type: ignore[attr-defined]
from unittest.mock import Mock

import orjson
import pytest
from support import wire_line

from logagg.filters import matcher, regex
from logagg.filters.linear import automaton
from logagg.filters.linear.automaton import Automaton, TooLong, UnsupportedPattern
from logagg.filters.linear.guarded import UnguardedPattern
from logagg.filters.redact import Redaction

PATTERNS = (
    r"a+", r"a*b", r"\bfoo\b", r"^ab", r"b$", r"(?m)^a|b$", r"a\Z", r"\Aa", r"\s+$",
    r"[\w.]+@[\w.]+\.\w+", r"a.*?b", r"(?:ab|a)(?:c|bcd)", r"\d{2,4}-\d+", r"a{3}",
    r"(?i)straße|K", r"a|ab|abc", r"x*?y", r"\Ba\B", r"(a|b)+c?", r"[^a]b", r"(?s)a.b",
    r"(a)(b)?c", r"é+\b", r"(?a)\bé|\w+", r"(?i:A)b", r"a.*b.*c", r"(?:a.){2}b", r"a??b",
)  # fmt: skip
ALPHABET = "aabbcxy01-.@ \nfoAKéß_"


def made(pattern: str) -> Automaton:
    """An automaton."""
    flags = re.compile(pattern).flags
    return Automaton(_parser.parse(pattern, flags), flags)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("states", [2, 1000])
def test_it_finds_what_re_finds(
    pattern: str, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether, where, and how far; also when it has to forget its states."""
    monkeypatch.setattr(automaton, "STATES", states)
    monkeypatch.setattr(automaton, "CHARACTERS", states)
    expression, machine = re.compile(pattern), made(pattern)
    chance = random.Random(pattern)
    for _ in range(100):
        size = chance.randint(1, 12)
        text = "".join(chance.choice(ALPHABET) for _ in range(size))
        assert machine.search(text) == bool(expression.search(text)), text
        if all(match.group() for match in expression.finditer(text)):
            assert machine.sub("#", text) == expression.subn("#", text), text


@pytest.mark.parametrize(
    "pattern",
    [r"(?=a)b", r"(a)\1", r"a++", r"(?>a)b", r"(?<!a)b", r"(?:\w{1,40}x){1,40}"],
)
def test_what_it_cannot_do_is_refused(pattern: str) -> None:
    """The caller then has `re`, with a bound."""
    with pytest.raises(UnsupportedPattern):
        made(pattern)


HOSTILE = [
    (r"a.*b.*c.*d", "a" * 20_000),
    (r"a.*b.*c.*d", "abc" * 6_000),
    (r"[\w.]+@[\w.]+\.[a-z]+", "a" * 20_000),
    (r"[\w.]+@[\w.]+\.[a-z]+", "a@" * 9_000),
    (r"\d+[-/]\d+[-/]\d+x", "1" * 20_000),
    (r"\d+[-/]\d+[-/]\d+x", "1-" * 9_000),
    (r"\s*,\s*;", " " * 20_000),
    (r"(?:a.{0,9}){9}b", "a" * 20_000),
]


@pytest.mark.parametrize(("pattern", "text"), HOSTILE)
def test_no_text_takes_long(pattern: str, text: str) -> None:
    """With `re` these take from seconds to days; the test would not come to its end."""
    assert not regex.build(pattern).search(text)
    (line,) = Redaction((f"/{pattern}/",)).lines([line_of(text)])
    assert b"[redacted]" not in line
    assert matcher.compile((f"message~'{pattern}'",)).lines([line_of(text)], b"}") == []


def line_of(text: str, more: Sequence[str] = ()) -> bytes:
    """The wire line of a message, and of a field with more texts."""
    body = orjson.dumps({"logger": "l", "message": text, "more": list(more)})
    return wire_line(1, body=body[1:-1])


def test_a_search_for_all_matches_ends_too() -> None:
    """Where each of many matches reads to the end of the text."""
    with pytest.raises(TooLong):
        made("a.*z|a").sub("#", "a" * 10_000)
    pattern = regex.build("a.*z|a")
    with pytest.raises(regex.SearchTimeout):
        pattern.sub("#", "a" * 10_000)


@pytest.fixture
def clock() -> Iterator[None]:
    """What a consumer does to bound a search."""
    before = signal.signal(signal.SIGVTALRM, lambda *_: regex.check_time())
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.02, 0.02)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.usefixtures("clock")
def test_what_only_re_can_do_is_stopped_in_time() -> None:
    """A sink's filter lets such a record through, redaction leaves the text out."""
    slow = r"(?=a)a.*b.*c.*d"
    line = line_of("abc" * 5_000)
    pattern = regex.build(slow)
    with pytest.raises(regex.SearchTimeout):
        pattern.search("abc" * 5_000)
    assert pattern.limit is not None
    assert pattern.limit < regex.LIMIT

    assert matcher.compile((f"message~'{slow}'",)).lines([line], b"}") == [line]
    (redacted,) = Redaction((f"/{slow}/",)).lines([line])
    assert b"abc" not in redacted
    assert b"too long to be searched]" in redacted


@pytest.mark.parametrize("wanted", [r"/\w+@\w+/", "texts"])
def test_of_one_record_a_bounded_part_is_searched(wanted: str) -> None:
    """However many texts it has; what is left out is not let through."""
    redaction = Redaction((wanted,))
    secret = f"a@b {'x' * 16_000} Bearer abcdefgh123"
    lines = [line_of(secret, more=[secret] * 40) for _ in range(2)]

    for each in redaction.lines(lines):
        assert each.count(b"too long to be searched]") in range(20, 30)
        assert each.count(b"x" * 16_000) in range(14, 18)
        hidden = b"a@b" if wanted.startswith("/") else b"abcdefgh123"
        assert hidden not in each


def test_of_a_long_list_a_bounded_part_is_searched() -> None:
    """A record of which more would have to be searched is let through."""
    match = matcher.compile(("more~'x+y'",))
    inner = "x" * 16_000
    few, many = line_of("", more=[inner] * 10), line_of("", more=[inner] * 20)
    found = line_of("", more=[inner] * 10 + ["xy"])

    assert match.lines([few, found, many], b"}") == [found, many]


def test_a_pattern_without_a_repeat_reads_a_whole_record() -> None:
    """It is as quick as reading."""
    secret = f"{'x' * 16_000}4111z"
    (line,) = Redaction(("/[0-9]{4}z/",)).lines([line_of("", more=[secret] * 40)])

    assert line.count(b"x" * 16_000 + b"[redacted]") == 40


@pytest.mark.parametrize(
    ("pattern", "needed"),
    [
        (r"\d+", False),
        (r"id=\w*", False),
        (r"https?://\S{1,300}", False),
        (r"\d{40,}", True),
        (r"\w+@\w+", True),
        (r"(?:ab)+", True),
        (r"\d+\b", True),
    ],
)
def test_a_pattern_that_cannot_fail_after_its_repeat_needs_no_automaton(
    monkeypatch: pytest.MonkeyPatch, pattern: str, needed: bool
) -> None:
    """`re` takes linear time then, and much less of it for many matches."""
    used = []
    monkeypatch.setattr(regex.Guarded, "__init__", Mock(side_effect=UnguardedPattern))
    monkeypatch.setattr(
        regex, "Automaton", lambda *given: used.append(given) or Automaton(*given)
    )
    text = "7 ab a@b https://x id=3 " * 400

    found = regex.build(pattern).sub("-", text)

    assert found == re.subn(pattern, "-", text)
    assert bool(used) is needed
