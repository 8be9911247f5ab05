"""Records as text for people: escaping, tracebacks, templates. Pure.

Log text is written by strangers. A message, a name, a key or an exception's text may
hold newlines and escape codes that forge a record, move the cursor or retitle the
terminal. So whatever comes from a record is made *visible* first: control characters
(C0, DEL, C1), line and paragraph separators, bidirectional controls and lone surrogates
become escapes as Python writes them. A record is one line; those of its traceback follow
it, each behind a gutter, which no record begins with.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from typing import Any

import orjson

from logagg.view.segments import inline

__all__ = ["FIXED", "GUTTER", "Template", "traceback_lines", "value_text", "visible"]

GUTTER = "    | "
"""What every line of a traceback begins with."""

FIXED = (
    "timestamp",
    "level",
    "worker",
    "seq",
    "logger",
    "message",
    "pid",
    "process",
    "thread",
    "exception",
    "received",
)
"""The fields that every record can have; all others are extras."""


def visible(text: str) -> str:
    """The text with everything that could act on a terminal or a line escaped."""
    if text.isascii() and text.isprintable():
        return text
    return inline(text)


def value_text(value: object) -> str:
    """A field's value as visible text: strings as they are, all else as JSON."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    try:
        return visible(orjson.dumps(value, default=str).decode())
    except TypeError:  # an integer over 64 bits, a lone surrogate
        return visible(json.dumps(value, ensure_ascii=False, default=str))


def traceback_lines(record: Mapping[str, Any]) -> list[str]:
    """The lines of the record's traceback and stack, visible, without the gutter."""
    texts = []
    exception = record.get("exception")
    if isinstance(exception, dict):
        text = exception.get("stack")
        if not isinstance(text, str) or not text:
            text = f"{exception.get('type', 'Exception')}: {exception.get('message')}"
        texts.append(text)
    elif isinstance(exception, str):
        texts.append(exception)
    stack = record.get("stack")
    if isinstance(stack, str):
        texts.insert(0, stack)
    return [visible(line) for text in texts for line in text.rstrip("\n").split("\n")]


class Template:
    """A line of text from a record: `{timestamp} {level:<8} {logger}: {message}`.

    `{name}` stands for the field of that name (nothing when it is absent), `{extra}`
    for all fields that the template does not name and that are not fixed ones, as
    `key=value`. Behind a colon a width may follow, as in Python: `{level:<8}`. `{{` is
    a brace.

    Raises:
        ValueError: The template is not one; the message says why.
    """

    DEFAULT = "{timestamp} {level:<8} {worker} {logger}: {message} {extra}"

    __slots__ = ("_named", "_parts", "text")

    def __init__(self, text: str = DEFAULT) -> None:
        self.text = text
        self._parts: list[tuple[str, str | None, str]] = []
        for literal, name, spec, conversion in string.Formatter().parse(text):
            if name is not None and not re.fullmatch(r"[^\W\d][\w.-]*", name):
                raise ValueError(f"a template with field names, not {{{name}}}")
            if conversion or (spec and not re.fullmatch(r"[<>^]?\d{1,3}", spec)):
                raise ValueError(
                    f"a template whose fields have no more than a width: {{{name}:<8}}"
                )
            if visible(literal) != literal:
                raise ValueError("a template on one line, without control characters")
            self._parts.append((literal, name, spec or ""))
        self._named = {name for _, name, _ in self._parts if name}
        if not self._named:
            raise ValueError(f"a template with fields, such as {self.DEFAULT!r}")

    def render(self, record: Mapping[str, Any]) -> str:
        """The record's line and its traceback's lines, newline included."""
        out = []
        for literal, name, spec in self._parts:
            out.append(literal)
            if name is not None:
                text = self._field(record, name)
                out.append(format(text, spec) if spec else text)
        lines = ["".join(out).rstrip()]
        lines += [GUTTER + line for line in traceback_lines(record)]
        return "\n".join(lines) + "\n"

    def _field(self, record: Mapping[str, Any], name: str) -> str:
        if name == "extra" and "extra" not in record:
            return " ".join(
                f"{visible(key)}={_quoted(value)}"
                for key, value in record.items()
                if key not in FIXED and key not in self._named and key != "stack"
            )
        value = record.get(name, "")
        if name == "exception" and isinstance(value, dict):
            value = f"{value.get('type')}: {value.get('message')}"
        return value_text(value)


def _quoted(value: object) -> str:
    text = value_text(value)
    if isinstance(value, str) and (not text or re.search(r"[\s\"'=]", text)):
        return '"' + text.replace('"', '\\"') + '"'
    return text
