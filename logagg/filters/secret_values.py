"""Values that must never be shown, and their removal from texts, however written. Pure.

A target may echo a token in an error, whole or cut, percent-encoded, as base64, in JSON
or HTML, as a dump, in lines or in capitals. So a text is decoded first, with the place of
every character kept, and each run of characters that it shares with a form of a secret is
replaced, from half of the secret on (4 to 8 characters).
"""

from __future__ import annotations

import html
import re
from base64 import b32encode, b64encode
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import quote

__all__ = ["SECRETS", "SecretValues"]

HIDDEN = "[secret]"
_LEAST = 4  # a shorter secret is no secret
_SHORTEST_RUN, _LONGEST_RUN = 4, 8
_MOST_VALUES = 1000
_MOST_RUNS = 300_000
"""About 30 MB; beyond it, half of the values that were rotated are forgotten."""
_FIRST = 16
"""The first values are those of the configuration: they stay."""
_MANY_RUNS = 1000  # from here on one search for each takes longer than a look-up
_ROUNDS = 5
_HEX = "[0-9A-Fa-f]"
_ENCODED = re.compile(
    rf"(?:%{_HEX}{{2}})+|%u{_HEX}{{4}}"
    rf"|\\u{_HEX}{{4}}|\\u\{{{_HEX}{{1,6}}\}}|\\U{_HEX}{{8}}|\\x{_HEX}{{2}}"
    r"|\\[0-3][0-7]{2}|\\[^ux]"
    rf"|&#0*\d{{1,7}};?|&#[xX]0*{_HEX}{{1,6}};?|&[A-Za-z]{{2,8}};"
)
_QUOTED_PRINTABLE = re.compile(rf"(?:={_HEX}{{2}})+|=\r?\n")
_DUMP = re.compile(rf"(?:(?:0x)?{_HEX}{{2}}[\s:,-]{{1,2}}){{3,}}(?:0x)?{_HEX}{{2}}")
_BYTE = re.compile(rf"(?:0x)?({_HEX}{{2}})")
_GAPS = re.compile(r"[\s\0\u00ad\u200b-\u200d\u2060\ufeff]+")  # of lines, of UTF-16
_EQUAL = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ-_", "abcdefghijklmnopqrstuvwxyz+/")
"""Capitals, and the letters of the two alphabets of base64, count as the same."""

_Places: TypeAlias = list[tuple[int, int]]
"""For each character of a decoded text, start and end in the first one."""


class SecretValues:
    """The values that a process has read."""

    def __init__(self) -> None:
        self._values: dict[str, None] = {}
        self._runs: dict[int, set[str]] = {}  # by their length

    def add(self, value: str) -> None:
        """Note a value; of `user:password` the password is one, too."""
        if value in self._values or len(value) < _LEAST:
            return
        runs = sum(map(len, self._runs.values()))
        values = len(self._values)
        if values >= _MOST_VALUES or (runs > _MOST_RUNS and values > 2 * _FIRST):
            self._forget()
        self._values[value] = None
        self._add_runs(value)
        user, colon, password = value.partition(":")
        if colon and user:
            self.add(password)

    def _forget(self) -> None:
        """Forget the older half of the tokens that were rotated."""
        values = list(self._values)
        rest = values[_FIRST:]
        self._values = dict.fromkeys(values[:_FIRST] + rest[len(rest) // 2 :])
        self._runs = {}
        for each in self._values:
            self._add_runs(each)

    def _add_runs(self, value: str) -> None:
        size = min(max(_SHORTEST_RUN, (len(value) + 1) // 2), _LONGEST_RUN)
        for form in _forms(value):
            length = size if form == value else max(size, 6)
            runs = self._runs.setdefault(length, set())
            same = form.translate(_EQUAL)
            runs.update(same[at : at + length] for at in range(len(same) - length + 1))

    def scrub(self, text: str) -> str:
        """The text with every secret replaced, also in part or encoded."""
        if not self._runs or not text:
            return text
        spans: _Places = []
        for form, places in _readings(text):
            spans += self._found(form, places)
        return _without(text, spans) if spans else text

    def _found(self, text: str, places: _Places) -> _Places:
        text = text.translate(_EQUAL)
        found = []
        for length, runs in self._runs.items():
            if len(runs) < _MANY_RUNS and not any(run in text for run in runs):
                continue
            for at in range(len(text) - length + 1):
                end = at + length
                if text[at:end] in runs:
                    found.append((places[at][0], places[end - 1][1]))
        return found


SECRETS = SecretValues()
"""Those of this process."""


def _forms(value: str) -> list[str]:
    """A value, and how it looks within base64, base32 and hexadecimal digits."""
    data = value.encode("utf-8", "surrogateescape")
    found = [value, data.hex(), b32encode(data).decode().rstrip("=")[:-1]]
    found += _in_base64(data)
    found += _in_base64(quote(data, safe="").encode())
    return list(dict.fromkeys(found))


def _in_base64(data: bytes) -> list[str]:
    """How bytes look within base64, at any place of it."""
    found = []
    for shift in range(3):
        coded = b64encode(b"\0" * shift + data).decode().rstrip("=")
        # The first and the last characters depend on what stands beside the value.
        first = (0, 2, 3)[shift]
        last = len(coded) - (1 if (len(data) + shift) % 3 else 0)
        found.append(coded[first:last])
    return found


def _readings(text: str) -> Iterator[tuple[str, _Places]]:
    """The text in each way to read it, and where its characters are."""
    whole = [(at, at + 1) for at in range(len(text))]
    yield text, whole
    readings = [(text, whole)]
    for pattern in (_GAPS, _QUOTED_PRINTABLE, _DUMP):
        read, places = _decoded(text, whole, pattern)
        if read != text:
            yield read, places
            readings.append((read, places))
    for reading in readings:
        read, places = reading
        for _ in range(_ROUNDS):
            again, where = _decoded(read, places, _ENCODED)
            if again == read:
                break
            read, places = again, where
            yield read, places


def _decoded(
    text: str, places: _Places, pattern: re.Pattern[str]
) -> tuple[str, _Places]:
    """Undo one layer of encoding; the places are those in the first text."""
    parts: list[str] = []
    found: _Places = []
    at = 0
    for match in pattern.finditer(text):
        start, end = match.span()
        parts.append(text[at:start])
        found += places[at:start]
        if pattern is _DUMP:
            for byte in _BYTE.finditer(text, start, end):
                parts.append(chr(int(byte[1], 16)))
                found.append((places[byte.start()][0], places[byte.end() - 1][1]))
            at = end
            continue
        plain = _plain(match[0])
        parts.append(plain)
        found += [(places[start][0], places[end - 1][1])] * len(plain)
        at = end
    parts.append(text[at:])
    found += places[at:]
    return "".join(parts), found


def _plain(coded: str) -> str:
    first = coded[0]
    if first == "&":
        return html.unescape(coded if coded.endswith(";") else f"{coded};")
    if first in "%=" and coded[1] not in "u\r\n":
        data = bytes.fromhex(coded.replace(first, ""))
        return data.decode("utf-8", "surrogateescape")
    if first not in "%\\":
        return ""  # a gap
    if coded[1] in "uUx" and len(coded) > 2:
        number = int(coded[2:].strip("{}"), 16)
        return chr(number) if number < 0x110000 else ""
    return chr(int(coded[1:], 8)) if len(coded) == 4 else coded[1]


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    at = 0
    for start, end in sorted(spans):
        if start > at or not parts:
            parts += [text[at:start], HIDDEN]
        at = max(at, end)
    parts.append(text[at:])
    return "".join(parts)
