"""Redaction of secrets in a sink's records. Pure.

Workers have already replaced the values of well-known secret names
(`logagg.core.secrets`). A sink's `redact` replaces more by `[redacted]`: the value of
every field, at any depth, with one of the given names in any case, and all that the
given patterns match in any text; the word `secrets` stands for the well-known names, and
`texts` for the secrets that are recognized within a text (`logagg.filters.secret_texts`).
Fixed fields are not redacted by name, and a secret inside a message only by a pattern or
`texts`.

Cost: a batch is searched as one text, about 0.5 µs per record. Case and vowels are
folded, so that a handful of searches stand for all names; only a line in which one is
found, or that is not ASCII, is parsed and decided exactly. With `texts` each line is.

It fails closed: text that cannot be searched is left out. That is a line that is not
JSON, the part of a text beyond the `regex.LIMIT` characters that a pattern with an
unbounded repeat reads, and a text that cannot be searched in time. Such a pattern, and
`texts`, reads `regex.MOST_SEARCHED` characters of a record, however many texts it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from logagg.core.event import Event
from logagg.core.line import dump_line, load_line, timestamp_of
from logagg.core.record import SHIELDED, own_record
from logagg.core.secrets import PLACEHOLDER, is_secret, plain_name, scrubbed
from logagg.errors import ConfigError
from logagg.filters import regex
from logagg.filters.secret_texts import hide

__all__ = ["Redaction", "unreadable"]

_FOLD = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZainouy", b"ebcdefghejklmeepqrstevwxezeeeeee"
)
"""Lower case, and one letter for all vowels, y and n."""

_KNOWN_BYTES = tuple(
    text.translate(_FOLD)
    for text in (
        b"key",
        b"pass",
        b"psw",
        b"pswd",
        b"pwd",
        b"secret",
        b"auth",
        b"credent",
        b"jwt",
        b"otp",
        b"cvv",
        b"cvc",
        b"bearer",
        b"pw",
        b"psk",
        b"conn",
        b"signature",
        b"jsess",
        b"phpsess",
        b"phrase",
        b"mfa",
        b"factor",
        b"recover",
        b"backup",
        b"verif",
        b"securit",
    )
)
"""One of them is in the folded text of every line with a well-known name in ASCII.

Folded, `key` is in `token` and `cookie`, too. Words may be joined by anything.
"""

_ESCAPE = b"\\u00".translate(_FOLD)
"""In the folded text of every line with a name that has escaped letters."""

_TOO_LONG = f"{PLACEHOLDER[:-1]}: too long to be searched]"

_EXTRAS_AT = 80
"""The fixed fields of any line take more bytes than this: no extra begins before."""


class Redaction:
    """A compiled set of names and patterns to redact.

    Args:
        wanted: Names; `secrets` stands for the well-known ones and all that end in one;
            `texts` for secrets within texts; `/…/` is a pattern.

    Raises:
        ConfigError: A pattern cannot be used; the message has the reason.

    Attributes:
        nothing: Nothing is redacted.
        key: Equal for objects that redact the same.
        count: Number of values and matches redacted so far.
    """

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        wanted = tuple(wanted)
        self.key = ("redaction", *wanted)
        names: list[str] = []
        self._known = self._texts = False
        self._patterns: list[regex.Pattern] = []
        for text in wanted:
            if text.lower() == "secrets":
                self._known = True
            elif text.lower() == "texts":
                self._texts = True
            elif len(text) > 2 and text.startswith("/") and text.endswith("/"):
                pattern = regex.build(text[1:-1], ignore_case=False)
                if pattern.regex.search(""):
                    raise ConfigError(
                        f"pattern {text!r} matches the empty text, so it would "
                        "redact everywhere; make it match at least one character"
                    )
                self._patterns.append(pattern)
            else:
                names.append(plain_name(text))
        self._names = frozenset(names)
        known = _KNOWN_BYTES if self._known else ()
        self._required = [*known, *map(_name_bytes, names)]
        if self._required:
            self._required.append(_ESCAPE)
        self._searches = bool(self._patterns) or self._texts
        self._left = self._most = regex.MOST_SEARCHED * (
            len(self._patterns) + self._texts
        )
        self.nothing = not (self._required or self._searches)
        self.count = 0

    def secret(self, name: object) -> bool:
        """Whether a field of this name holds a secret; those are counted."""
        found = self._known and is_secret(name)
        if not found and self._names and isinstance(name, str):
            found = plain_name(name) in self._names
        self.count += found
        return found

    def lines(self, lines: list[bytes]) -> list[bytes]:
        """The lines with their secrets replaced; the same list when there are none."""
        if not self._searches:
            text = b"\n".join([line[_EXTRAS_AT:] for line in lines])
            folded = text.translate(_FOLD)
            required = [each for each in self._required if each in folded]
            if not required and text.isascii():
                return lines
            return [
                self._line(line) if _holds(line, required) else line for line in lines
            ]
        return [
            self._line(line)
            if _holds(line, self._required) or self._may_match(line)
            else line
            for line in lines
        ]

    def _may_match(self, line: bytes) -> bool:
        """Whether a pattern may match: its literal part is there, or may be escaped."""
        if self._texts:
            return True
        for pattern in self._patterns:
            literal = pattern.literal.encode()
            if not literal or b"\\" in line:
                return True
            if literal in (line.lower() if pattern.ignore_case else line):
                return True
        return False

    def _line(self, line: bytes) -> bytes:
        record = load_line(line + b"}", exact=True)
        self._left = self._most
        try:
            if record is None:
                raise ValueError("it is not a record")
            return self._redacted(line, record)
        except (ValueError, RecursionError):
            self.count += 1
            return unreadable(line)

    def _redacted(self, line: bytes, record: dict[str, Any]) -> bytes:
        before, same = self.count, True
        for name, value in record.items():
            if name in ("timestamp", "level", "worker", "seq", "received"):
                continue
            shielded = name in SHIELDED
            if not shielded and self.secret(name):
                record[name] = PLACEHOLDER
            elif not shielded or not isinstance(value, int):
                clean = scrubbed(value, self.secret) if self._required else value
                same = same and clean is value
                record[name] = self._value(clean) if self._searches else clean
        return line if same and self.count == before else dump_line(record)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {name: self._value(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._value(inner) for inner in value]
        if self._patterns and isinstance(value, (int, float)):
            text = dump_line({"": value})[4:].decode()  # as it stands in the line
            found = self._text(text)
            return value if found == text else found
        return value

    def _text(self, text: str) -> str:
        for pattern in self._patterns:
            limit = pattern.limit
            if limit is not None:
                limit = self._searchable(min(len(text), limit))
            cut = limit is not None and len(text) > limit
            try:
                found, number = pattern.sub(PLACEHOLDER, text[:limit] if cut else text)
            except regex.SearchTimeout:
                found, number, cut = "", 0, True
            if cut:
                found += _TOO_LONG
                number += 1
            self.count += number
            text = found
        if self._texts:
            limit = self._searchable(len(text))
            cut = len(text) > limit
            text, number = hide(text[:limit])
            if cut:
                text += _TOO_LONG
            self.count += number + cut
        return text

    def _searchable(self, size: int) -> int:
        """How many characters of so many may still be searched in this record."""
        found = min(size, self._left)
        self._left -= found
        return found


def _holds(line: bytes, required: Iterable[bytes]) -> bool:
    if not line.isascii():
        return True
    folded = line.translate(_FOLD)
    return any(each in folded for each in required)


def _name_bytes(name: str) -> bytes:
    """Bytes in the folded text of every line with a field of this name."""
    last = name.rpartition("_")[2] or name
    # Case is folded in ASCII only: with any other name every line must be parsed.
    return (
        f'{last}":'.encode().translate(_FOLD)
        if last.isalnum() and last.isascii()
        else b'":'
    )


def unreadable(line: bytes) -> bytes:
    """The line that stands for one that may hold a secret and cannot be searched."""
    message = "a line that may hold a secret is not a record; it was left out"
    return dump_line(
        own_record(
            timestamp_of(line),
            Event.UNREADABLE,
            message,
            level="error",
            bytes=len(line),
        )
    )
