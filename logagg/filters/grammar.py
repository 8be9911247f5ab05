"""The filter grammar: text to terms. Pure.

    level>=warning logger=app.db status>=500 message~"time.?out" -path=/health key? !id?

A term is `KEY OP VALUE`, `KEY?` (the field is there) or `!KEY?` (it is not); a `-` in
front turns a term around. Terms are separated by white space; a key or value that
holds white space stands in double or single quotes. In double quotes `\\"` is a quote
and, except after the two operators of regular expressions, `\\\\` a backslash; in
single quotes nothing is special.

The common mistakes (`==`, `=~`, `key:value`, a value with a space) are refused with
the spelling that works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from logagg.errors import ConfigError

_TERM = re.compile(
    r"""
    (?P<minus>-)?
    (?P<bang>!)?
    (?P<key>"(?:[^"\\]|\\.)+"|'[^']+'|[^\s"'=!~<>?]+)
    (?P<op>!=|!~|<=|>=|=|~|<|>|\?)
    (?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|\S*)
    """,
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_DOUBLED = {
    ("=", "="): "=",
    ("=", "~"): "~",
    ("=", ">"): ">=",
    ("=", "<"): "<=",
    ("<", ">"): "!=",
    ("!=", "="): "!=",
    ("~", "="): "~",
    ("~", "~"): "~",
}


@dataclass(frozen=True, slots=True)
class Term:
    """One condition as it was written.

    Attributes:
        text: The token, for messages.
        key: The field's name; dots lead into nested objects.
        op: `=`, `!=`, `~`, `!~`, `<`, `<=`, `>`, `>=`, or `?`.
        value: The right side, without its quotes ("" for `?`).
        quoted: The value stood in quotes: it is text and never a number.
        negated: The term holds when its condition does not.
    """

    text: str
    key: str
    op: str
    value: str
    quoted: bool = False
    negated: bool = False

    @property
    def number(self) -> int | float | None:
        """The value as a number, or None when it is not one (or is quoted)."""
        if self.quoted or not _NUMBER.fullmatch(self.value):
            return None
        try:
            return int(self.value)
        except ValueError:
            return float(self.value)


def parse(expressions: Iterable[str]) -> list[Term]:
    """Parse filter expressions, each of which may hold several terms.

    Raises:
        ConfigError: A token is not a term; the message has it and the right spelling.
    """
    terms: list[Term] = []
    for expression in expressions:
        place = 0
        while True:
            while place < len(expression) and expression[place].isspace():
                place += 1
            if place == len(expression):
                break
            found = _TERM.match(expression, place)
            if found is None:
                raise ConfigError(_not_a_term(expression[place:].split()[0]))
            place = found.end()
            if place < len(expression) and not expression[place].isspace():
                token = expression[found.start() :].split()[0]
                raise ConfigError(
                    f"filter {token!r}: put a space after the closing quote, or "
                    'escape the quote inside as \\"'
                )
            terms.append(_term(found))
    return terms


def _term(found: re.Match[str]) -> Term:
    text, op, value = found[0], found["op"], found["value"]
    key, _ = _unquoted(found["key"], "=")
    negated = found["minus"] is not None
    if op == "?":
        if value:
            raise ConfigError(
                f"filter {text!r}: nothing may follow '?' in {key + '?'!r}"
            )
        return Term(text, key, op, "", negated=negated != (found["bang"] is not None))
    if found["bang"]:
        raise ConfigError(
            f"filter {text!r}: '!' in front is for {'!' + key + '?'!r} (absent); "
            f"did you mean {key + '!=' + value!r} or {'-' + key + op + value!r}?"
        )
    doubled = _DOUBLED.get((op, value[:1]))
    if doubled is not None:
        right = key + doubled + value[1:]
        raise ConfigError(
            f"filter {text!r}: did you mean {right!r}? "
            f"(a value that begins with {value[:1]!r} takes quotes)"
        )
    if not value:
        raise ConfigError(
            f"filter {text!r}: nothing stands after {op!r}; for the empty text "
            f'write {key + op + chr(34) * 2!r}, for "is there" write {key + "?"!r}'
        )
    value, quoted = _unquoted(value, op)
    return Term(text, key, op, value, quoted, negated)


def _unquoted(text: str, op: str) -> tuple[str, bool]:
    if text[:1] == "'" and len(text) > 1 and text[-1] == "'":
        return text[1:-1], True
    if text[:1] == '"' and len(text) > 1 and text[-1] == '"':
        escapes = r'\\(")' if op in ("~", "!~") else r'\\(["\\])'
        return re.sub(escapes, r"\1", text[1:-1]), True
    if text[:1] in {"'", '"'}:
        raise ConfigError(f"filter {text!r}: the quote is not closed")
    return text, False


def _not_a_term(token: str) -> str:
    bare = token.lstrip("-!")
    key, colon, value = bare.partition(":")
    if colon and key and value:
        return f"filter {token!r}: did you mean {key + '=' + value!r}?"
    if re.match(r"[=!~<>?]", bare) or not bare:
        return f"filter {token!r}: a field's name must stand before the operator"
    if bare[0] in "\"'":
        return f"filter {token!r}: the quote is not closed, or no operator follows it"
    return (
        f"filter {token!r}: not a condition (KEY=VALUE, KEY!=VALUE, KEY~REGEX, "
        f"KEY>=NUMBER, KEY?, !KEY?); to search for text use --grep; a value with "
        "spaces takes quotes of its own: 'message~\"time out\"'"
    )
