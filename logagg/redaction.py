"""Keeping secrets out of what a sink gets. Pure.

What is redacted: the value of every field, at any depth, whose name is that of a
secret: one of the well-known names, or a name that ends in one (`db_password`,
`X-Api-Key`, `accessToken`), whatever its case; and what the user's own patterns match in
any text. In its place stands `[redacted]`, always the same, so that nothing about the
secret's length or beginning shows. The fixed fields of a record are not redacted by
name. A secret inside a message is found only by a pattern.

Cost: a batch is searched as one text for the ends of the names, which is about a
microsecond a record less than parsing; only lines that hold one are parsed.

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
from logagg.view import patterns

__all__ = ["FIXED", "PLACEHOLDER", "WELL_KNOWN", "Redaction", "dump", "load"]

PLACEHOLDER = "[redacted]"

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

WELL_KNOWN = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "api_key",
    "access_key",
    "private_key",
    "secret_key",
    "authorization",
    "cookie",
    "credential",
    "credentials",
)
"""Names of fields that hold secrets."""

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


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


class Redaction:
    """What is redacted, compiled.

    Args:
        wanted: Further names; `none` leaves the well-known ones out; `/…/` is a
            pattern.

    Raises:
        ConfigError: A pattern cannot be used; the message says why.

    Attributes:
        nothing: Nothing is redacted.
        count: How many values and matches were redacted so far.
    """

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        names: list[str] = []
        known: tuple[str, ...] = WELL_KNOWN
        self._patterns: list[patterns.Pattern] = []
        for text in wanted:
            if text.lower() == "none":
                known = ()
            elif len(text) > 2 and text.startswith("/") and text.endswith("/"):
                pattern = patterns.build(text[1:-1], ignore_case=False)
                if pattern.regex.search(""):
                    raise ConfigError(
                        f"pattern {text!r} matches the empty text, so it would "
                        "redact everywhere; make it match at least one character"
                    )
                self._patterns.append(pattern)
            else:
                names.append(_plain(text))
        # As `api_key` stands for, `apikey` and `ApiKey` are meant too.
        squeezed = [name.replace("_", "") for name in known]
        self._ends = tuple(dict.fromkeys((*known, *squeezed)))
        self._names = frozenset(names)
        self._needles = _needles([*self._ends, *names])
        self.nothing = not (self._needles or self._patterns)
        self.count = 0

    def secret(self, name: str) -> bool:
        """Whether a field of this name holds a secret."""
        plain = _plain(name)
        return plain.endswith(self._ends) or plain in self._names

    def lines(self, lines: list[bytes], data: bytes) -> list[bytes]:
        """The wire lines with their secrets replaced; the same list when there are none.

        Args:
            lines: Wire lines.
            data: The same lines in one text, joined in any way.
        """
        if not self._patterns:
            low = data.lower()
            needles = [needle for needle in self._needles if needle in low]
            if not needles:
                return lines
            return [
                self._line(line) if self._may_hold(line.lower(), needles) else line
                for line in lines
            ]
        return [
            self._line(line)
            if self._may_hold(line.lower(), self._needles) or self._may_match(line)
            else line
            for line in lines
        ]

    @staticmethod
    def _may_hold(low: bytes, needles: Iterable[bytes]) -> bool:
        return any(needle in low for needle in needles)

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


def _needles(names: Iterable[str]) -> list[bytes]:
    """The fewest ends of `"name":` such that every name ends in one of them."""
    ends: dict[str, None] = {}
    for name in sorted({name.rpartition("_")[2] or name for name in names}, key=len):
        if not any(name.endswith(end) for end in ends):
            ends[name] = None
    # Case is compared in ASCII only: with any other name every line must be parsed.
    quoted = [json.dumps(end)[1:-1] if end.isascii() else "" for end in ends]
    return [f'{end}":'.encode() for end in quoted]


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
