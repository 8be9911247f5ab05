"""Exceptions of other programs' records, in the shape of logagg's. Pure.

That is a mapping of `type`, `message` and `stack`, the text that Python would print.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["exception_of", "is_exception"]

_TYPES = ("type", "name", "class", "exc_type", "kind")
_MESSAGES = ("message", "value", "exc_value", "msg")
_STACKS = ("stack", "stack_trace", "stacktrace", "traceback", "backtrace")
_HEAD = "Traceback (most recent call last):"
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n"


def is_exception(value: Any) -> bool:
    """Whether a value is an exception: a traceback's text, an object, or structlog's."""
    if isinstance(value, str):
        return "\n" in value
    if isinstance(value, Mapping):
        kind = next((value[name] for name in _TYPES if name in value), None)
        return isinstance(kind, str) and any(
            name in value for name in (*_MESSAGES, *_STACKS)
        )
    return _is_structlogs(value)


def _is_structlogs(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and "exc_type" in each for each in value)
    )


def exception_of(value: Any) -> Any:
    """The exception in logagg's shape; further fields of an object stay."""
    if isinstance(value, str):
        lines = [line for line in value.splitlines() if line.strip()]
        frames = lines[1:2] and lines[1].lstrip().startswith(
            "at "
        )  # Java, Node.js, .NET
        named = lines[0 if frames else -1] if lines else ""
        kind, colon, text = named.partition(": ")
        if colon and " " not in kind:
            return {"type": kind, "message": text, "stack": value}
        return {"type": "", "message": "", "stack": value}
    if _is_structlogs(value):
        return _structlogs(value)
    rest = dict(value)
    found: dict[str, Any] = {}
    for own, names in (("type", _TYPES), ("message", _MESSAGES), ("stack", _STACKS)):
        for name in names:
            if isinstance(rest.get(name), str):
                found[own] = rest.pop(name)
                break
    if "stack" in found:
        found["stack"] = _whole(found)
    return {**found, **rest}


def _whole(found: Mapping[str, Any]) -> str:
    """A stack with its first and last line: some programs write the frames alone."""
    stack = str(found["stack"])
    last = f"{found.get('type', '')}: {found.get('message', '')}".rstrip(": ")
    if stack.lstrip("\n").startswith("  File ") and _HEAD not in stack:
        stack = f"{_HEAD}\n{stack.rstrip()}\n{last}"
    return stack


def _structlogs(chain: list[Mapping[str, Any]]) -> dict[str, Any]:
    """From structlog's dictionaries: the exception first, then what it came from."""
    parts: list[str] = []
    for index in range(len(chain) - 1, -1, -1):
        parts.append(_printed(chain[index]))
        if index:
            parts.append(_CAUSE if chain[index].get("is_cause") else _CONTEXT)
    first = chain[0]
    found: dict[str, Any] = {
        "type": str(first["exc_type"]),
        "message": str(first.get("exc_value", "")),
        "stack": "\n".join(parts) + "\n",
    }
    if isinstance(notes := first.get("exc_notes"), list) and notes:
        found["notes"] = [str(note) for note in notes]
    return found


def _printed(error: Mapping[str, Any]) -> str:
    lines = [_HEAD]
    frames = error.get("frames")
    for frame in frames if isinstance(frames, list) else []:
        if isinstance(frame, Mapping):
            path, number = frame.get("filename", "?"), frame.get("lineno", 0)
            lines.append(f'  File "{path}", line {number}, in {frame.get("name", "?")}')
            if isinstance(code := frame.get("line"), str) and code.strip():
                lines.append(f"    {code.strip()}")
    text = str(error.get("exc_value", ""))
    lines.append(f"{error['exc_type']}: {text}" if text else str(error["exc_type"]))
    notes = error.get("exc_notes")
    lines += [str(note) for note in notes] if isinstance(notes, list) else []
    return "\n".join(lines)
