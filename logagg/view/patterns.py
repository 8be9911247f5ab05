"""Regular expressions that a user types, made safe enough to run on every record. Pure.

`re` backtracks, so an unlucky pattern can take exponential time on a hostile text. Two
guards, and their limits:

- A pattern in which one repeat can trade characters with itself or with a neighbor
  inside another repeat (`(a+)+`, `(\\w+\\s?)*`, `(a|a)*`) is refused when it is
  compiled. The rule is conservative: a few harmless patterns are refused as well, and
  the message says how to write them.
- What is left is polynomial at worst. So a pattern with an unbounded repeat looks at
  the first `LIMIT` characters of each text only; one without looks at all of it.

The literal text that every match must contain is found too, so that most lines can be
passed over by a search on bytes, without parsing them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from re import _constants as sre  # type: ignore[attr-defined]  # no public parser
from re import _parser  # type: ignore[attr-defined]  # no public parser
from typing import Any

from logagg.errors import ConfigError

LIMIT = 16_384
LONGEST = 1_000
_MANY = 10  # a repeat that may go round this often counts as unbounded
# Sets of characters are bits: one for each of U+0000…U+00FF, then one for all digits
# beyond, all other word characters, all white space, and everything else.
_BEYOND = (r"\d", r"[^\W\d]", r"\s", r"[^\w\s]")
_ALL = (1 << 260) - 1
_REST = 0b1111 << 256
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern.

    Attributes:
        regex: The expression.
        limit: How many characters of a text it may look at, or None for all.
        literal: Text that every match contains (lower case when `ignore_case`); "" when
            none is known.
        ignore_case: Case does not count.
    """

    regex: re.Pattern[str]
    limit: int | None
    literal: str
    ignore_case: bool

    def search(self, text: str) -> bool:
        """Whether it occurs in the text."""
        if self.limit is not None and len(text) > self.limit:
            text = text[: self.limit]
        return self.regex.search(text) is not None


def build(
    text: str, *, ignore_case: bool | None = False, fixed: bool = False
) -> Pattern:
    """Compile a pattern.

    Args:
        text: A regular expression, or plain text when `fixed`.
        ignore_case: None means smart: case counts when the pattern has a capital.
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
    ignore_case = bool(regex.flags & re.IGNORECASE)  # the pattern may say (?i) itself
    bad = _ambiguous(tree, ignore_case, within=0)
    if bad:
        raise ConfigError(
            f"pattern {text!r} can take exponential time: {bad}; make the repeated "
            "parts begin and end differently, or use a possessive repeat such as a++"
        )
    limit = LIMIT if _unbounded(tree) else None
    return Pattern(regex, limit, _literal(tree, ignore_case), ignore_case)


def _parts(op: Any, value: Any) -> list[Any]:
    """The sub-patterns of a node."""
    if op in _REPEATS or op is sre.POSSESSIVE_REPEAT:
        return [value[2]]
    if op is sre.BRANCH:
        return list(value[1])
    if op is sre.SUBPATTERN:
        return [value[3]]
    if op is sre.ATOMIC_GROUP:
        return [value]
    if op in (sre.ASSERT, sre.ASSERT_NOT):
        return [value[1]]
    if op is sre.GROUPREF_EXISTS:
        return [part for part in value[1:] if part is not None]
    return []


def _unbounded(tree: Any) -> bool:
    for op, value in tree:
        if (op in _REPEATS or op is sre.POSSESSIVE_REPEAT) and value[1] >= _MANY:
            return True
        if op is sre.GROUPREF or any(_unbounded(part) for part in _parts(op, value)):
            return True
    return False


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
# A backtracking matcher is exponential when, inside a loop, one text can be cut up in
# two ways. That needs a choice (a repeat that may stop or go on, a branch) whose two
# ways can begin with the same character. So: for each choice inside a loop, the set of
# characters that one way begins with must not meet the set of the other way, where the
# other way of a repeat is what can follow it, round the loop's end if need be.


@functools.cache
def _category(name: str) -> int:
    escape = {
        "CATEGORY_DIGIT": r"\d",
        "CATEGORY_NOT_DIGIT": r"\D",
        "CATEGORY_SPACE": r"\s",
        "CATEGORY_NOT_SPACE": r"\S",
        "CATEGORY_WORD": r"\w",
        "CATEGORY_NOT_WORD": r"\W",
    }.get(name)
    if escape is None:
        return _ALL
    samples = (*range(256), 0x0663, 0x0416, 0x2003, 0x2014)  # one for each bit
    return sum(1 << bit for bit, c in enumerate(samples) if re.match(escape, chr(c)))


def _bits(codes: Iterable[int]) -> int:
    result = 0
    for code in codes:
        if code < 256:
            result |= 1 << code
        else:
            kinds = (bool(re.match(kind, chr(code))) for kind in _BEYOND)
            result |= 1 << 256 + list(kinds).index(True)
    return result


def _cases(code: int, ignore_case: bool) -> int:
    if not ignore_case:
        return _bits([code])
    char = chr(code)
    both = _bits(ord(c) for c in (char.lower() + char.upper()))
    return both | (1 << 257 if char.lower() in "ksµåÿi" else 0)  # such as U+212A


def _characters(op: Any, value: Any, ignore_case: bool) -> int | None:
    """The set of characters a one-character node matches; None for other nodes."""
    if op is sre.LITERAL:
        return _cases(value, ignore_case)
    if op is sre.NOT_LITERAL:
        return _ALL & ~_cases(value, ignore_case) | _REST
    if op is sre.ANY:
        return _ALL
    if op is sre.IN:
        result = 0
        negate = False
        for kind, item in value:
            if kind is sre.NEGATE:
                negate = True
            elif kind is sre.LITERAL:
                result |= _cases(item, ignore_case)
            elif kind is sre.RANGE:
                for code in range(item[0], min(item[1], 256) + 1):
                    result |= _cases(code, ignore_case)
                if item[1] > 255:
                    result |= _REST
            elif kind is sre.CATEGORY:
                result |= _category(str(item))
        # A class that names single characters beyond leaves others of their kind.
        named = any(k in (sre.LITERAL, sre.RANGE) for k, _ in value)
        return _ALL & ~result | (_REST if named else 0) if negate else result
    return None


def _first(tree: Any, ignore_case: bool, after: int) -> int:
    """What a match of the sequence, followed by `after`, can begin with."""
    result = 0
    for op, value in tree:
        chars = _characters(op, value, ignore_case)
        if chars is not None:
            return result | chars
        if op in _REPEATS or op is sre.POSSESSIVE_REPEAT:
            result |= _first(value[2], ignore_case, 0)
            if value[0] > 0 and not _empty(value[2]):
                return result
        elif op is sre.BRANCH:
            for part in value[1]:
                result |= _first(part, ignore_case, 0)
            if not any(_empty(part) for part in value[1]):
                return result
        elif op in (sre.SUBPATTERN, sre.ATOMIC_GROUP):
            (part,) = _parts(op, value)
            result |= _first(part, ignore_case, 0)
            if not _empty(part):
                return result
        elif op in (sre.GROUPREF, sre.GROUPREF_EXISTS):
            return _ALL
    return result | after


def _empty(tree: Any) -> bool:
    """Whether the sequence can match the empty text."""
    for op, value in tree:
        if _characters(op, value, False) is not None:
            return False
        if op in _REPEATS or op is sre.POSSESSIVE_REPEAT:
            if value[0] > 0 and not _empty(value[2]):
                return False
        elif op is sre.BRANCH:
            if not any(_empty(part) for part in value[1]):
                return False
        elif op in (sre.SUBPATTERN, sre.ATOMIC_GROUP) and not _empty(
            _parts(op, value)[0]
        ):
            return False
    return True


def _ambiguous(tree: Any, ignore_case: bool, within: int) -> str:
    """Why the sequence is dangerous, or "".

    `within` is what can follow the sequence when it stands in a loop; 0 outside one.
    """
    items = list(tree)
    for index, (op, value) in enumerate(items):
        rest = items[index + 1 :]
        follow = _first(rest, ignore_case, within) if within else 0
        if op in _REPEATS:
            low, high, body = value
            begin = _first(body, ignore_case, 0)
            if within and low != high and begin & follow:
                return "a repeat inside a repeat can share its text with what follows"
            loop = follow | begin if high >= _MANY or follow else 0
            if loop and high >= _MANY and _empty(body):
                return "a repeated part can be empty"
            why = _ambiguous(body, ignore_case, loop)
        elif op is sre.BRANCH and within:
            why = _overlapping(value[1], ignore_case, follow)
        elif op in (sre.ATOMIC_GROUP, sre.POSSESSIVE_REPEAT):
            why = ""  # never given back, so never tried a second way
        else:
            parts = _parts(op, value)
            why = next(
                (w for part in parts if (w := _ambiguous(part, ignore_case, follow))),
                "",
            )
        if why:
            return why
    return ""


def _overlapping(parts: list[Any], ignore_case: bool, follow: int) -> str:
    seen = 0
    for part in parts:
        begin = _first(part, ignore_case, follow)
        if begin & seen:
            return "two alternatives inside a repeat can begin alike"
        seen |= begin
        why = _ambiguous(part, ignore_case, follow)
        if why:
            return why
    return ""
