"""A record as a line of text by a template. Pure.

The form is unambiguous, so no text of a record can pass for another field or line:

- Control characters, line separators, what reorders or hides text and the backslash are
  escaped: a record is one line, and an escape differs from the same characters in
  the text.
- Where the template has fields as `key=value`, a `=` in free text is written as `\\=`.
- A value of `{extra}`, and any other field than the message and the exception, is a bare
  word or a JSON string.
- The lines of a traceback follow their record, each after a gutter. A record's line
  that would begin with the gutter begins with an escape.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from logagg.core.record import FIXED
from logagg.render import traceback
from logagg.render.layout import json_text, key_text, value_text
from logagg.render.markup import inline

__all__ = ["Template"]

GUTTER = "    | "


class Template:
    """A line of text from a record: `{timestamp} {level:<8} {logger}: {message}`.

    `{name}` is the field of that name (empty when absent), `{extra}` all fields that
    the template does not name and that are not fixed ones, as `key=value`. A width may
    follow a colon, as in Python: `{level:<8}`. `{{` is a brace.

    Raises:
        ValueError: The text is not a template; the message completes "expected …".
    """

    DEFAULT = "{timestamp} {level:<8} {worker} {logger}: {message} {extra}"

    __slots__ = ("_has_pairs", "_named", "_parts", "text")

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
            if inline(literal) != literal:
                raise ValueError("a template on one line, without control characters")
            self._parts.append((literal, name, spec or ""))
        self._named = {name for _, name, _ in self._parts if name}
        # Only where pairs of key and value are written can a text pass for one.
        self._has_pairs = "extra" in self._named or "=" in text
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
        first = "".join(out).rstrip()
        if (first + " ").startswith(GUTTER):
            first = "\\x20" + first[1:]
        lines = [first]
        lines += [GUTTER + _escaped(line) for line in _traceback(record)]
        return "\n".join(lines) + "\n"

    def _field(self, record: Mapping[str, Any], name: str) -> str:
        if name == "extra" and "extra" not in record:
            return " ".join(
                f"{key_text(key)}={value_text(value)}"
                for key, value in record.items()
                if key not in FIXED and key not in self._named and key != "stack"
            )
        value = record.get(name)
        if value is None:
            return ""
        if name == "exception":
            return self._free_text(traceback.summary(value))
        if name == "message":
            return self._free_text(
                value if isinstance(value, str) else json_text(value)
            )
        return value_text(value)

    def _free_text(self, text: str) -> str:
        text = _escaped(text)
        return text.replace("=", "\\=") if self._has_pairs else text


def _escaped(text: str) -> str:
    return inline(text.replace("\\", "\\\\"))


def _traceback(record: Mapping[str, Any]) -> list[str]:
    error = record.get("exception")
    lines = traceback.body(record, "full")
    if isinstance(error, Mapping) and not error.get("stack"):
        return [traceback.summary(error), *lines]
    return lines
