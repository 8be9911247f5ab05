"""Records as text, for sinks: the form of `logagg tail`, and lines by a template.

Everything that comes from a record is escaped: nothing in it can act on a terminal or
pass for another record.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from logagg.render.layout import LayoutOptions
from logagg.render.markup import inline, json_visible, paint, wants_color
from logagg.render.renderer import TERMINAL_GAP, Renderer
from logagg.render.template import Template

__all__ = ["ConsoleText", "Template", "inline", "json_visible", "wants_color"]


class ConsoleText:
    """Renderer of a stream's records in the form of `logagg tail`.

    Values are never cut. Use one object a stream, and feed it all records in order: it
    marks a new day, and on a terminal a gap, above the record that follows.

    Args:
        color: Write escape codes (see `wants_color`).
        terminal: The stream is a terminal.
    """

    def __init__(self, *, color: bool, terminal: bool = False) -> None:
        self._color = color
        self._renderer = Renderer(
            LayoutOptions(
                today=dt.datetime.now().astimezone().date(),
                gap=TERMINAL_GAP if terminal else None,
            )
        )

    def render(self, record: Mapping[str, Any]) -> str:
        """The record's lines, newline included."""
        return paint(self._renderer.feed(record), self._color)
