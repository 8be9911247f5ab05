"""The filter of a page: the text of its box, its chips and its range of time.

The box takes what stands after `logagg tail`: conditions, and the options that choose
records (`-g -v -l -w -i -S -U --logger --fixed`). Any other word is text to find in the
message or the exception, and with a `-` in front text that must not be there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from logagg.core.units import parse_instant, wire_time
from logagg.errors import ConfigError
from logagg.filters import matcher
from logagg.filters.matcher import Match

__all__ = ["PageFilter", "counts_of"]

_LONGEST_TEXT = 4_000
_OPTIONS = {
    "-g": "grep", "--grep": "grep", "-v": "exclude", "--exclude": "exclude",
    "-l": "level", "--level": "level", "-w": "worker", "--worker": "worker",
    "--logger": "logger", "-S": "since", "--since": "since",
    "-U": "until", "--until": "until",
    "-i": "ignore_case", "--ignore-case": "ignore_case", "--fixed": "fixed",
}  # fmt: skip
_FLAGS = ("ignore_case", "fixed")
_WORD = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+|["']""", re.DOTALL)
_QUOTED = re.compile(r"""(-?)(?:"((?:[^"\\]|\\.)*)"|'([^']*)')""", re.DOTALL)
_SIGNS = re.compile(r"[=~<>?]")

# As a line of a worker begins, or one of another program that was converted.
_HEAD = re.compile(
    rb'\{(?:"timestamp":"([^"]{0,19})[^"]*",)?"level":"([^"\\]*)"'
    rb'(?:,"worker":"([^"\\]*)")?'
)

Counts = dict[tuple[bytes, bytes, bytes], int]
"""Numbers of records by second, level and worker."""


def _cell(line: bytes) -> tuple[bytes, bytes, bytes]:
    """The second, level and worker of a line; empty where it has none."""
    found = _HEAD.match(line)
    if found is None:
        return b"", b"info", b""
    second, level, worker = found.groups(b"")
    return second, level, worker


def counts_of(lines: Iterable[bytes]) -> Counts:
    """Count lines by second, level and worker."""
    counts: Counts = {}
    for line in lines:
        key = _cell(line)
        counts[key] = counts.get(key, 0) + 1
    return counts


@dataclass(frozen=True, slots=True)
class PageFilter:
    """A compiled filter.

    Attributes:
        matches: All of them must match: the box.
        inverted: Those that the box does not match are wanted.
        levels: The levels that chips choose; empty: all.
        workers: The workers that chips choose; empty: all.
        since_ns: The first instant of the range; None: from the beginning.
        until_ns: The last instant; None: to the end.
        timed: The match of the range; None: there is none.
    """

    matches: tuple[Match, ...] = ()
    inverted: bool = False
    levels: frozenset[bytes] = frozenset()
    workers: frozenset[bytes] = frozenset()
    since_ns: int | None = None
    until_ns: int | None = None
    timed: Match | None = None

    @classmethod
    def of_query(cls, query: Mapping[str, str]) -> PageFilter:
        """Compile the filter in a request: `q`, `not`, `levels`, `workers`, `since`,
        `until`.

        Raises:
            ConfigError: Something in it cannot be understood; the message names it.
        """
        given, words = _parsed(query.get("q", ""))
        now = time.time_ns()
        since, until = (
            _instant(query.get(key, ""), now, end=key == "until")
            for key in ("since", "until")
        )
        timed = matcher.compile(since_ns=since, until_ns=until)
        # The box is compiled apart from the range: `not` turns only the box around.
        matches = [matcher.from_message(given)] if given else []
        matches += [_has_text(word) for word in words]
        return cls(
            matches=tuple(match for match in matches if not match.everything),
            inverted=query.get("not") == "1" and bool(given or words),
            levels=_names(query.get("levels", "")),
            workers=_names(query.get("workers", "")),
            since_ns=since,
            until_ns=until,
            timed=None if timed.everything else timed,
        )

    @property
    def since_key(self) -> bytes:
        """The range's first instant as a wire time, or b"" when it has none."""
        return b"" if self.since_ns is None else wire_time(self.since_ns).encode()

    def base(self, lines: list[bytes]) -> list[bytes]:
        """The lines that the box and the range let through, whatever the chips."""
        if self.timed is not None:
            lines = self.timed.lines(lines)
        if not self.matches:
            return lines
        found = lines
        for match in self.matches:
            found = match.lines(found)
        if not self.inverted:
            return found
        kept = iter(found)
        wanted = next(kept, None)
        rest = []
        for line in lines:
            if line is wanted:
                wanted = next(kept, None)
            else:
                rest.append(line)
        return rest

    def chosen(self, lines: list[bytes]) -> list[bytes]:
        """Of such lines those that the chips choose."""
        if not self.levels and not self.workers:
            return lines
        kept = []
        for line in lines:
            _, level, worker = _cell(line)
            if (not self.levels or level in self.levels) and (
                not self.workers or worker in self.workers
            ):
                kept.append(line)
        return kept


def _names(text: str) -> frozenset[bytes]:
    return frozenset(name.encode() for name in text.split(",") if name)


def _instant(text: str, now: int, *, end: bool) -> int | None:
    return parse_instant(text, now, end=end) if text.strip() else None


def _has_text(word: str) -> Match:
    """The match of a bare word; with `-` in front, of its absence."""
    quoted = _QUOTED.fullmatch(word)
    if quoted is not None:
        minus, double, single = quoted.groups()
        text = single if double is None else re.sub(r'\\(["\\])', r"\1", double)
    else:
        minus, text = ("-", word[1:]) if word[:1] == "-" else ("", word)
    if not text:
        return matcher.compile()
    if minus:
        return matcher.compile(exclude=[text], fixed=True)
    return matcher.compile(grep=[text], fixed=True)


def _parsed(text: str) -> tuple[dict[str, Any], list[str]]:
    """Split the text of the box into the arguments of a match and bare words.

    Raises:
        ConfigError: An option without its value, an open quote, an unknown option.
    """
    if len(text) > _LONGEST_TEXT:
        raise ConfigError(f"the filter is longer than {_LONGEST_TEXT:,} characters")
    given: dict[str, Any] = {}
    bare: list[str] = []
    words = iter(_WORD.findall(text))
    for word in words:
        name, equals, value = word.partition("=")
        key = _OPTIONS.get(name if word.startswith("--") else word)
        if word in ('"', "'"):
            raise ConfigError(f"a quote ({word}) is not closed")
        if key in _FLAGS:
            given[key] = True
        elif key is not None:
            value = value if equals and word.startswith("--") else next(words, "")
            _put_option(given, key, name, value)
        elif word.startswith("--"):
            raise ConfigError(
                f"{name}: no such option here; for the text itself: '{word}' in quotes"
            )
        elif (
            word[0] not in "\"'"
            and word[:2] not in ("-'", '-"')
            and _SIGNS.search(word)
        ):
            given.setdefault("match", []).append(word)
        else:
            bare.append(word)
    return given, bare


def _put_option(given: dict[str, Any], key: str, name: str, value: str) -> None:
    quoted = _QUOTED.fullmatch(value)
    if quoted is not None and not quoted[1]:
        value = quoted[3] if quoted[2] is None else quoted[2].replace('\\"', '"')
    if not value:
        raise ConfigError(f"{name}: a value must follow")
    if key in ("since", "until"):
        given[f"{key}_ns"] = parse_instant(value, time.time_ns(), end=key == "until")
    elif key == "level":
        given[key] = value
    else:
        given.setdefault(key, []).append(value)
