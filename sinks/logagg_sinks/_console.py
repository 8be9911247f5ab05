"""Records for a person at a terminal, through structlog's ConsoleRenderer.

Shown are the local time to the millisecond, level, message, logger, worker and the
extra fields, then the traceback behind a gutter. What a terminal would act on is made
visible first, so the only escape codes that come out are the renderer's own colors.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping
from typing import Any

import structlog.dev

from logagg_sinks._text import FIXED, GUTTER, traceback_lines, visible

__all__ = ["Console"]

_TAKEN = frozenset((*FIXED, "stack", "exc_info"))


class _Quoted(str):
    """Escaped text, which the renderer's `repr` must not escape once more."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self}'"


class Console:
    """Renders records as lines for a terminal.

    Args:
        colors: Escape codes for colors are written.
    """

    def __init__(self, *, colors: bool) -> None:
        self._renderer = structlog.dev.ConsoleRenderer(
            colors=colors,
            sort_keys=False,
            event_key="message",
            exception_formatter=structlog.dev.plain_traceback,
        )

    def render(self, record: Mapping[str, Any]) -> str:
        """The record's line and its traceback's lines, newline included."""
        shown: dict[str, Any] = {
            "timestamp": _clock(str(record.get("timestamp", ""))),
            "level": visible(str(record.get("level", ""))),
            "message": visible(str(record.get("message", ""))),
            "logger": visible(str(record.get("logger", ""))),
        }
        worker = record.get("worker")
        if worker:
            shown["worker"] = _safe(worker)
        for key, value in record.items():
            if key not in _TAKEN:
                shown[visible(key)] = _safe(value)
        if "exc_info" in record:
            shown["exc_info "] = _safe(record["exc_info"])
        lines = traceback_lines(record)
        if lines:
            shown["exception"] = "\n".join(GUTTER + line for line in lines)
        return self._renderer(None, "", shown) + "\n"


def _safe(value: object) -> object:
    if not isinstance(value, str) or (value.isascii() and value.isprintable()):
        return value
    text = visible(value)
    return value if text == value else _Quoted(text)


@functools.lru_cache(maxsize=8)
def _local_minute(minute: str) -> str:
    instant = dt.datetime.fromisoformat(minute + ":00+00:00")
    return instant.astimezone().strftime("%Y-%m-%d %H:%M")


def _clock(stamp: str) -> str:
    """Local time to the millisecond; the stamp itself, made visible, if it is none."""
    try:
        return _local_minute(stamp[:16]) + stamp[16:23]
    except ValueError:
        return visible(stamp)
