"""The events that a page receives, as the bytes of server-sent events.

A `batch` has its numbers on the first line of data, then a record per line: its number,
a space, and the line as it is (or a note, as `!` and JSON text). A record's own bytes
are not parsed, but for a long one, whose texts are cut: the page asks for the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from logagg.core.line import parse_line
from logagg.view.page.page_filter import Counts

__all__ = ["batch_event", "cells", "comment", "event", "note_text", "record_text"]

_LONG_LINE = 32_768  # bytes from which a record's texts are cut
_LONG_TEXT, _LONG_STACK = 1_500, 12_000
_MOST_ITEMS, _DEEPEST = 60, 6


def event(name: str, data: Any, identity: str = "") -> bytes:
    """An event whose data is one value."""
    head = f"id: {identity}\n" if identity else ""
    return f"{head}event: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def comment() -> bytes:
    """An event that shows only that the connection is alive."""
    return b": \n\n"


def batch_event(
    identity: str, head: Mapping[str, Any], records: Iterable[tuple[int, bytes]]
) -> bytes:
    """An event of records and notes, each as `record_text` or `note_text` gives it."""
    parts = [f"id: {identity}\n".encode() if identity else b"", b"event: batch\ndata: "]
    parts.append(orjson.dumps(head))
    parts += [b"\ndata: %d %b" % each for each in records]
    parts.append(b"\n\n")
    return b"".join(parts)


def cells(counts: Counts) -> list[list[Any]]:
    """Counts as JSON: second, level, worker, number."""
    return [
        [*(part.decode("utf-8", "replace") for part in cell), number]
        for cell, number in counts.items()
    ]


def note_text(text: str) -> bytes:
    """A note in the place of a record."""
    return b"!" + orjson.dumps(text)


def record_text(line: bytes) -> bytes:
    """A line for the page, on one line, its texts cut when it is long."""
    if len(line) > _LONG_LINE:
        record = parse_line(line)
        line = orjson.dumps({**_cut(record, 0), "_bytes": len(line)})
    return line.replace(b"\r", b" ") if b"\r" in line else line


def _cut(value: Any, depth: int, key: str = "") -> Any:
    if isinstance(value, str):
        most = _LONG_STACK if key == "stack" else _LONG_TEXT
        if len(value) <= most:
            return value
        return f"{value[: most - 300]} … ({len(value):,} characters) … {value[-200:]}"
    if isinstance(value, Mapping):
        if depth == _DEEPEST:
            return "…"
        found = {
            name[:200]: _cut(value[name], depth + 1, name)
            for name in list(value)[:_MOST_ITEMS]
        }
        if len(value) > _MOST_ITEMS:
            found["…"] = f"{len(value) - _MOST_ITEMS:,} more fields"
        return found
    if isinstance(value, Sequence):
        if depth == _DEEPEST:
            return "…"
        kept = [_cut(each, depth + 1) for each in value[:_MOST_ITEMS]]
        more = len(value) - _MOST_ITEMS
        return [*kept, f"… {more:,} more"] if more > 0 else kept
    return value
