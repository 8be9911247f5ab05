"""A record's exception and stack as lines. Pure.

A record holds the text that Python would print (`stack`) and the chain of exceptions.
`full` shows the text; `short` the exception and the innermost frame of the user's own
code, then each cause; `line` the exception in the record's own line; `none` nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

STYLES = ("full", "short", "line", "none")

_FRAME = re.compile(r'^[ |+-]*File "(?P<path>[^"]*)", line (?P<line>\d+)(?:, in .*)?$')
_FOREIGN = re.compile(
    r"/(site|dist)-packages/|/lib(64)?/python\d|<frozen |^<string>$|/importlib/"
)


def summary(error: Any) -> str:
    """The exception on one line, as the line that ends Python's traceback."""
    if isinstance(error, Mapping):
        kind, message = error.get("type"), error.get("message")
        if isinstance(kind, str) and kind:
            text = message if isinstance(message, str) else ""
            return f"{kind}: {text}" if text else kind
        error = error.get("stack")
    if not isinstance(error, str):
        return ""
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def body(record: Mapping[str, Any], style: str) -> list[str]:
    """The lines under a record: of its `stack` field, then of its exception."""
    if style in ("line", "none"):
        return []
    stack = record.get("stack")
    lines = stack.rstrip("\n").split("\n") if isinstance(stack, str) else []
    return lines + _exception_lines(record.get("exception"), style)


def _exception_lines(error: Any, style: str) -> list[str]:
    if error is None:
        return []
    text = error if isinstance(error, str) else ""
    if isinstance(error, Mapping):
        stack = error.get("stack")
        text = stack if isinstance(stack, str) else ""
    if style == "full" and text:
        return text.rstrip("\n").split("\n")
    lines = _own_frame(text) if style == "short" else []
    if isinstance(error, Mapping):
        lines += _notes(error, "")
        lines += _chain(error)
    return lines


def _own_frame(text: str) -> list[str]:
    """The innermost frame that is neither the standard library's nor a package's.

    Only of the last traceback in the text: the exception itself, not its causes.
    """
    lines = text.split("\n")
    heads = [i for i, line in enumerate(lines) if "Traceback (most recent" in line]
    start = heads[-1] if heads else 0
    frames = [
        (i, found)
        for i, line in enumerate(lines)
        if i >= start and (found := _FRAME.match(line))
    ]
    own = [f for f in frames if not _FOREIGN.search(f[1]["path"])] or frames
    if not own:
        return []
    index = own[-1][0]
    code = lines[index + 1] if index + 1 < len(lines) else ""
    shown = [lines[index].strip()]
    if code.strip() and not _FRAME.match(code) and code.startswith("  "):
        shown.append("  " + code.strip())
    return shown


def _notes(error: Mapping[str, Any], indent: str) -> list[str]:
    notes = error.get("notes")
    if not isinstance(notes, list):
        return []
    texts = [note for note in notes if isinstance(note, str)]
    return [f"{indent}note: {line}" for text in texts for line in text.split("\n")]


def _chain(error: Mapping[str, Any], depth: int = 0) -> list[str]:
    """The causes, and the members of a group, one line each."""
    if depth > 16:
        return ["…"]
    indent = "  " * depth
    lines = []
    for key, label in (("cause", "caused by"), ("context", "while handling")):
        inner = error.get(key)
        if isinstance(inner, Mapping):
            lines.append(f"{indent}{label} {summary(inner)}")
            lines += _notes(inner, indent + "  ")
            lines += _chain(inner, depth)
    members = error.get("exceptions")
    if isinstance(members, list):
        for number, member in enumerate(members, 1):
            if isinstance(member, Mapping):
                lines.append(f"{indent}{number}. {summary(member)}")
                lines += _notes(member, indent + "   ")
                lines += _chain(member, depth + 1)
    return lines
