"""Keeping secrets out of what a sink gets. Pure.

Workers have replaced the values of well-known secret names already
(`logagg.secret_names`). This is for a sink that wants more: what is redacted is the value
of every field, at any depth, whose name was given, whatever its case, and what the given
patterns match in any text; the word `secrets` stands for the well-known names. In its
place stands `[redacted]`, always the same, so that nothing about the secret's length or
beginning shows. The fixed fields of a record are not redacted by name. A secret inside a
message is found only by a pattern.

Cost: a batch is searched as one text, about half a microsecond a record. For that, case
and vowels are folded together, so that a handful of searches stand for all the names;
only a line in which one of them is found is parsed, and decided on exactly.

Failing closed: what cannot be searched is left out rather than let through. That is a
line that is not JSON, and the part of a text behind the `patterns.LIMIT` characters that
a pattern with an unbounded repeat may look at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import orjson

from logagg.errors import ConfigError
from logagg.secret_names import PLACEHOLDER, WELL_KNOWN, ends, plain_name
from logagg.view import patterns

__all__ = ["FIXED", "Redaction", "dump", "load"]

FIXED = frozenset(
    (
        "timestamp",
        "level",
        "level_number",
        "worker",
        "seq",
        "logger",
        "message",
        "pid",
        "process",
        "thread",
        "exception",
        "event",
        "received",
    )
)
"""Fields that belong to every record; all others are extras."""

_FOLD = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZainouy", b"ebcdefghejklmeepqrstevwxezeeeeee"
)
"""Lower case, and one letter for all vowels, y and n."""

_KNOWN_NEEDLES = tuple(
    text.translate(_FOLD)
    for text in (b'key":', b"passw", b"passphr", b'secret":', b"authoriz", b"credent")
)
"""One of them is in the folded text of every line with a well-known name.

Folded, `key":` is the same as the ends of `token":` and `cookie":`.
"""

_EXTRAS_AT = 80
"""The fixed fields of any line take more bytes than this: no extra begins before."""

_LONG_NUMBER = re.compile(rb"\d{19}")


def load(line: bytes) -> dict[str, Any] | None:
    """A wire line's record; None when it is not one. Numbers stay what they are."""
    try:
        # orjson reads integers over 64 bits as floats: those lines go the slow way.
        reader = json.loads if _LONG_NUMBER.search(line) else orjson.loads
        record = reader(line + b"}")
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def dump(record: dict[str, Any]) -> bytes:
    """The wire line of a record, its fields in their order."""
    try:
        return orjson.dumps(record)[:-1]
    except TypeError:  # an integer over 64 bits
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogatepass")[:-1]


class Redaction:
    """What is redacted, compiled.

    Args:
        wanted: Names; `secrets` stands for the well-known ones and all that end in one;
            `/…/` is a pattern.

    Raises:
        ConfigError: A pattern cannot be used; the message says why.

    Attributes:
        nothing: Nothing is redacted.
        key: The same for every object that redacts the same.
        count: How many values and matches were redacted so far.
    """

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        wanted = tuple(wanted)
        self.key = ("redaction", *wanted)
        names: list[str] = []
        known: tuple[str, ...] = ()
        self._patterns: list[patterns.Pattern] = []
        for text in wanted:
            if text.lower() == "secrets":
                known = WELL_KNOWN
            elif len(text) > 2 and text.startswith("/") and text.endswith("/"):
                pattern = patterns.build(text[1:-1], ignore_case=False)
                if pattern.regex.search(""):
                    raise ConfigError(
                        f"pattern {text!r} matches the empty text, so it would "
                        "redact everywhere; make it match at least one character"
                    )
                self._patterns.append(pattern)
            else:
                names.append(plain_name(text))
        self._ends = ends(known)
        self._names = frozenset(names)
        self._needles = [*(_KNOWN_NEEDLES if known else ()), *map(_needle, names)]
        self.nothing = not (self._needles or self._patterns)
        self.count = 0

    def secret(self, name: str) -> bool:
        """Whether a field of this name holds a secret."""
        plain = plain_name(name)
        return plain.endswith(self._ends) or plain in self._names

    def lines(self, lines: list[bytes]) -> list[bytes]:
        """The lines with their secrets replaced; the same list when there are none."""
        if not self._patterns:
            text = b"\n".join([line[_EXTRAS_AT:] for line in lines])
            folded = text.translate(_FOLD)
            needles = [needle for needle in self._needles if needle in folded]
            if not needles:
                return lines
            return [
                self._line(line) if _holds(line, needles) else line for line in lines
            ]
        return [
            self._line(line)
            if _holds(line, self._needles) or self._may_match(line)
            else line
            for line in lines
        ]

    def _may_match(self, line: bytes) -> bool:
        """Whether a pattern may match: its literal part is there, or may be escaped."""
        for pattern in self._patterns:
            literal = pattern.literal.encode()
            if not literal or b"\\" in line:
                return True
            if literal in (line.lower() if pattern.ignore_case else line):
                return True
        return False

    def _line(self, line: bytes) -> bytes:
        record = load(line)
        if record is None:
            self.count += 1
            return dump(_unreadable(line))
        before = self.count
        for name, value in record.items():
            if name in ("timestamp", "level", "worker", "seq", "received"):
                continue
            if name not in FIXED and self.secret(name):
                record[name] = self._replaced()
            else:
                record[name] = self._value(value)
        return line if self.count == before else dump(record)

    def _replaced(self) -> str:
        self.count += 1
        return PLACEHOLDER

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value) if self._patterns else value
        if isinstance(value, dict):
            return {
                name: self._replaced() if self.secret(name) else self._value(inner)
                for name, inner in value.items()
            }
        if isinstance(value, list):
            return [self._value(inner) for inner in value]
        return value

    def _text(self, text: str) -> str:
        for pattern in self._patterns:
            limit = pattern.limit
            cut = limit is not None and len(text) > limit
            found, number = pattern.regex.subn(
                PLACEHOLDER, text[:limit] if cut else text
            )
            if cut:
                found += f"{PLACEHOLDER[:-1]}: too long to be searched]"
                number += 1
            self.count += number
            text = found
        return text


def _holds(line: bytes, needles: Iterable[bytes]) -> bool:
    folded = line.translate(_FOLD)
    return any(needle in folded for needle in needles)


def _needle(name: str) -> bytes:
    """What the folded text of every line with a field of this name contains."""
    last = name.rpartition("_")[2] or name
    # Case is folded in ASCII only: with any other name every line must be parsed.
    return (
        f'{last}":'.encode().translate(_FOLD)
        if last.isalnum() and last.isascii()
        else b'":'
    )


def _unreadable(line: bytes) -> dict[str, Any]:
    stamp = line[14:44].decode("ascii", "replace")
    return {
        "timestamp": stamp,
        "level": "error",
        "worker": "logagg",
        "seq": 0,
        "logger": "logagg",
        "message": "a line that may hold a secret is not a record; it was left out",
        "event": "unreadable",
        "bytes": len(line),
    }
