"""Regular expressions from users, safe to run on every record. Pure.

`re` backtracks, so some patterns take exponential time on a hostile text:

- A pattern in which a repeat inside another can trade characters with itself or with a
  neighbor (`(a+)+`, `(\\w+\\s?)*`, `(a|a)*`) is refused. The rule is conservative: a few
  harmless patterns are refused as well, with a hint how to write them.
- All others take polynomial time at worst. A pattern with an unbounded repeat is matched
  against the first `LIMIT` characters of each text only; and where that could still take
  long, in linear time: the everyday patterns by `re` in another form of them
  (`logagg.filters.linear.guarded`), others by an automaton
  (`logagg.filters.linear.automaton`), except that matches are replaced by `re` where
  the text bounds its steps (`logagg.filters.linear.runs`).
- What an automaton cannot do (look-around, back-references, atomic groups, possessive
  repeats) has a bound where the process has a clock for it: it calls `check_time`, which
  raises `SearchTimeout` in the search that has been running since the last call. From
  then on the pattern is matched against half as many characters.

Text that every match must contain is extracted, so that a search on bytes decides most
lines without parsing.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from re import _constants as sre  # type: ignore[attr-defined]  # no public parser
from re import _parser  # type: ignore[attr-defined]  # no public parser
from typing import Any

from logagg.errors import ConfigError
from logagg.filters.charsets import can_be_empty, first_of, parts_of
from logagg.filters.linear.automaton import Automaton, TooLong, UnsupportedPattern
from logagg.filters.linear.guarded import Guarded, UnguardedPattern
from logagg.filters.linear.runs import Runs

LIMIT = 16_384
MOST_SEARCHED = 16 * LIMIT
"""Characters of one record that are searched: all others wait meanwhile."""

LONGEST = 1_000
_FEW_STEPS = 20_000
_SHORTEST = 32
_SAMPLE = 512
_MANY_WAYS = 1_000
_MANY = 10  # a repeat with at least this maximum counts as unbounded
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)
_CHARACTERS = (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN)


class SearchTimeout(Exception):
    """A search took too long."""


class _RunningSearch:
    """The search that is running, by its number."""

    number = 0
    checked = 0
    running = False


def check_time() -> None:
    """Stop a search that has been running since the last call.

    To be called from a signal handler at intervals of the process's time.

    Raises:
        SearchTimeout: There is one; it is raised from its call.
    """
    if _RunningSearch.running and _RunningSearch.number == _RunningSearch.checked:
        raise SearchTimeout
    _RunningSearch.checked = _RunningSearch.number


@dataclass(slots=True)
class Pattern:
    """A compiled pattern.

    Attributes:
        regex: The expression.
        limit: Number of characters of a text that are searched, or None for all.
        literal: Text that every match contains (lower case when `ignore_case`); "" if
            unknown.
        ignore_case: Case is ignored.
        repeats: How many unbounded repeats multiply the time of a search.
        tree: The expression as it was parsed.
    """

    regex: re.Pattern[str]
    limit: int | None
    literal: str
    ignore_case: bool
    repeats: int = 0
    tree: Any = field(default=(), repr=False, compare=False)
    _linear: Guarded | Automaton | None = field(default=None, init=False, compare=False)
    _runs: Runs | None = field(default=None, init=False, compare=False)
    _is_supported: bool = field(default=True, init=False, compare=False)

    def search(self, text: str) -> bool:
        """Whether it occurs in the text, or in the part of it that is searched.

        Raises:
            SearchTimeout: That took too long.
        """
        if self.limit is not None and len(text) > self.limit:
            text = text[: self.limit]
        linear = self._linear_for(len(text))
        if linear is not None:
            return linear.search(text)
        return self._timed(text, self.regex.search) is not None

    def sub(self, replacement: str, text: str) -> tuple[str, int]:
        """Replace all that it matches; matches that touch may be replaced as one.

        Raises:
            SearchTimeout: That took too long.
        """
        linear = self._linear_for(len(text))
        if linear is None:
            found: tuple[str, int] = self._timed(
                text, functools.partial(self.regex.subn, replacement)
            )
            return found
        if isinstance(linear, Guarded):
            return linear.sub(replacement, text)
        # Where there are many matches, the first comes soon.
        if not linear.search(text[:_SAMPLE]) and not linear.search(text):
            return text, 0
        if self._runs is None:
            self._runs = Runs(self.tree, self.regex.flags)
        if self._runs.are_short(text):
            return self.regex.subn(replacement, text)
        try:
            return linear.sub(replacement, text)
        except TooLong:
            raise SearchTimeout from None

    def _linear_for(self, size: int) -> Guarded | Automaton | None:
        """A search in linear time, for a text so long that `re` could be slow."""
        steps = 1.0
        for repeat in range(self.repeats + 1):
            steps *= size / (repeat + 1)
        if not self.repeats or steps < _FEW_STEPS or not self._is_supported:
            return None
        if self._linear is None:
            try:
                self._linear = Guarded(self.tree, self.regex.flags)
            except UnguardedPattern:
                try:
                    self._linear = Automaton(self.tree, self.regex.flags)
                except UnsupportedPattern:
                    self._is_supported = False
        return self._linear

    def _timed(self, text: str, search: Any) -> Any:
        _RunningSearch.number += 1
        _RunningSearch.running = True
        try:
            return search(text)
        except SearchTimeout:
            self.limit = max(_SHORTEST, min(len(text), self.limit or LIMIT) // 2)
            raise
        finally:
            _RunningSearch.running = False


def build(
    text: str, *, ignore_case: bool | None = False, fixed: bool = False
) -> Pattern:
    """Compile a pattern.

    Args:
        text: A regular expression, or plain text when `fixed`.
        ignore_case: None means smart: case matters when the pattern has a capital.
        fixed: Nothing in the text is special.

    Raises:
        ConfigError: It is not a regular expression, too long, or could take
            exponential time.
    """
    if len(text) > LONGEST:
        raise ConfigError(
            f"pattern {text[:40] + '…'!r} has {len(text)} characters; "
            f"at most {LONGEST} are allowed"
        )
    if ignore_case is None:
        plain = text if fixed else re.sub(r"\\.", "", text, flags=re.DOTALL)
        ignore_case = plain == plain.lower()
    source = re.escape(text) if fixed else text
    flags = re.IGNORECASE if ignore_case else re.NOFLAG
    try:
        regex = re.compile(source, flags)
        tree = _parser.parse(source, regex.flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"pattern {text!r} is not a regular expression: {error}"
        ) from error
    ignore_case = bool(regex.flags & re.IGNORECASE)  # the pattern may have (?i) itself
    bad = _ambiguous(tree, ignore_case, within=0)
    if bad:
        raise ConfigError(
            f"pattern {text!r} can take exponential time: {bad}; make the repeated "
            "parts begin and end differently, or use a possessive repeat such as a++"
        )
    repeats = _repeats(tree)
    limit = LIMIT if repeats else None
    literal = _literal(tree, ignore_case)
    if repeats and _ends_in_repeat(tree):
        repeats -= 1
    return Pattern(regex, limit, literal, ignore_case, repeats, tree)


def _ends_in_repeat(tree: Any) -> bool:
    """Whether a repeat of one character is last: nothing can fail after it.

    What it reads is in the match, so the search goes on after that.
    """
    op, value = tree[-1]
    is_long = op in _REPEATS and value[0] < _MANY <= value[1]
    return is_long and len(value[2]) == 1 and value[2][0][0] in _CHARACTERS


def _repeats(tree: Any) -> int:
    """How many repeats multiply the time of a search: unbounded ones, and others.

    Several with a bound count as one when they can share a text in many ways.
    """
    unbounded, ways = _ways(tree)
    return unbounded + (ways > _MANY_WAYS)


def _ways(tree: Any) -> tuple[int, int]:
    """How many unbounded repeats there are, and in how many ways the others share."""
    unbounded, ways = 0, 1
    for op, value in tree:
        times = 1
        if op in _REPEATS or op is sre.POSSESSIVE_REPEAT:
            if value[1] >= _MANY:
                unbounded += 1
            else:
                times = value[1]
                ways *= value[1] - value[0] + 1
        unbounded += op is sre.GROUPREF
        for part in parts_of(op, value):
            more, factor = _ways(part)
            unbounded += more
            ways *= factor**times
        ways = min(ways, 10**9)
    return unbounded, ways


def _literal(tree: Any, ignore_case: bool) -> str:
    """The longest run of printable ASCII that every match must contain."""
    best = run = ""
    for op, value in tree:
        if op is sre.LITERAL and 32 <= value < 127 and value not in (34, 92):
            run += chr(value)
            best = max(best, run, key=len)
            continue
        run = ""
        inner = ""
        # A group that changes flags may change the case: nothing is taken from it.
        if op is sre.SUBPATTERN and not value[1] and not value[2]:
            inner = _literal(value[3], ignore_case)
        elif op in _REPEATS and value[0] >= 1:
            inner = _literal(value[2], ignore_case)
        best = max(best, inner, key=len)
    return best.lower() if ignore_case else best


# --- exponential time ---------------------------------------------------------------
# A backtracking matcher is exponential when, inside a loop, one text can be split in two
# ways. That needs a choice (a repeat that may stop or continue, a branch) whose two ways
# can begin with the same character. So, for each choice inside a loop, the sets of
# characters that the ways begin with must be disjoint; the other way of a repeat is what
# can follow it, past the loop's end if need be.


def _ambiguous(tree: Any, ignore_case: bool, within: int) -> str:
    """Why the sequence is dangerous, or "".

    `within` is what can follow the sequence when it stands in a loop; 0 outside one.
    """
    items = list(tree)
    for index, (op, value) in enumerate(items):
        rest = items[index + 1 :]
        follow = first_of(rest, ignore_case, within) if within else 0
        if op in _REPEATS:
            low, high, body = value
            begin = first_of(body, ignore_case, 0)
            if within and low != high and begin & follow:
                return "a repeat inside a repeat can share its text with what follows"
            loop = follow | begin if high >= _MANY or follow else 0
            if loop and high >= _MANY and can_be_empty(body):
                return "a repeated part can be empty"
            why = _ambiguous(body, ignore_case, loop)
        elif op is sre.BRANCH and within:
            why = _overlapping(value[1], ignore_case, follow)
        elif op in (sre.ATOMIC_GROUP, sre.POSSESSIVE_REPEAT):
            why = ""  # no backtracking into it
        else:
            found = (_ambiguous(p, ignore_case, follow) for p in parts_of(op, value))
            why = next(filter(None, found), "")
        if why:
            return why
    return ""


def _overlapping(parts: list[Any], ignore_case: bool, follow: int) -> str:
    seen = 0
    for part in parts:
        begin = first_of(part, ignore_case, follow)
        if begin & seen:
            return "two alternatives inside a repeat can begin alike"
        seen |= begin
        why = _ambiguous(part, ignore_case, follow)
        if why:
            return why
    return ""
