"""Styled text: escaping, display width, highlights, colors. Pure.

Output is first a list of `(style, text)`; a style names the meaning (`level.error`,
`key`, `gutter.3`), and only `paint` knows colors, so that a terminal and a web page can
share the layout.

Guarantee: text that went through `visible` or `inline` cannot move a cursor, retitle a
window, start an escape sequence, reorder or hide text or begin a line
(`logagg.platform.terminal_text`).
"""

from __future__ import annotations

import functools
import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping

from logagg.filters.regex import LIMIT
from logagg.platform.terminal_text import inline, json_visible, visible

__all__ = [
    "StyledText", "clip", "cut", "inline", "json_visible", "marked", "paint", "visible",
    "wants_color", "width", "worker_code",
]  # fmt: skip

StyledText = tuple[str, str]

# The 16 base colors: the user's theme decides on their shades.
_CODES = {
    "time": "2",
    "late": "1",
    "level.debug": "2",
    "level.warning": "33",
    "level.error": "31",
    "level.critical": "1;37;41",
    "message": "1",
    "key": "2",
    "exception": "31",
    "rule": "2",
    "note": "2",
    "dim": "2",
}
# Without red and yellow, which mean errors and warnings.
_WORKERS = ("36", "32", "35", "34", "96", "92", "95", "94")
_HIT = "7"


def worker_code(worker: str) -> str:
    """The color code of a worker's tag, the same in every run."""
    number = int(worker) - 1 if worker.isdecimal() and len(worker) < 10 else None
    if number is None:
        number = zlib.crc32(worker.encode("utf-8", "replace"))
    return _WORKERS[number % len(_WORKERS)]


@functools.lru_cache(1024)
def _code(style: str) -> str:
    base, _, hit = style.partition("+")
    code = _CODES.get(base)
    if code is None:
        kind, _, rest = base.partition(".")
        code = worker_code(rest) if kind in ("worker", "gutter") and rest else ""
    return f"{code};{_HIT}" if hit and code else _HIT if hit else code


def paint(segments: Iterable[StyledText], color: bool) -> str:
    """Join the text of segments, with escape codes when `color`.

    A style that ends in `+hit` is shown inverse.
    """
    if not color:
        return "".join([text for _, text in segments])
    return "".join(
        [
            f"\x1b[{code}m{text}\x1b[0m" if text and (code := _code(style)) else text
            for style, text in segments
        ]
    )


def width(text: str) -> int:
    """Columns on a terminal, approximately: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def cut(text: str, limit: int | None) -> str:
    """Shorten text over the limit to its two ends and its true length."""
    if limit is None or len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}…{text[-half:]} ({len(text):,} characters)"


def clip(text: str, columns: int) -> str:
    """Shorten text in the middle to a display width."""
    if width(text) <= columns:
        return text
    if len(text) > 4 * columns:
        text = f"{text[: 2 * columns]}…{text[-2 * columns :]}"
    head = tail = ""
    while width(head) + width(tail) < columns - 1:
        if width(head) <= width(tail):
            head += text[len(head)]
        else:
            tail = text[-len(tail) - 1] + tail
    if width(head) + width(tail) >= columns:  # the last one was a wide character
        head = head[:-1]
    return f"{head}…{tail}"


def marked(
    style: str, text: str, hits: tuple[re.Pattern[str], ...]
) -> list[StyledText]:
    """Split text so that what a pattern finds is a hit."""
    if not hits:
        return [(style, text)]
    spans = [
        found.span()
        for hit in hits
        for found in hit.finditer(text, 0, LIMIT)
        if found.end() > found.start()
    ]
    result: list[StyledText] = []
    place = 0
    for start, end in sorted(spans):
        if start > place:
            result.append((style, text[place:start]))
        if end > place:
            result.append((style + "+hit", text[max(start, place) : end]))
            place = end
    if place < len(text) or not spans:
        result.append((style, text[place:]))
    return result


def wants_color(flag: str, environ: Mapping[str, str], is_terminal: bool) -> bool:
    """Decide whether escape codes may be written to a stream.

    The first rule that applies wins: the flag `always` or `never`; `NO_COLOR` (no escape
    codes at all, not even bold); `FORCE_COLOR` or `CLICOLOR_FORCE`, unless `0`;
    `TERM=dumb` (none); otherwise a terminal is colored. An empty variable counts as
    unset.

    Args:
        flag: `auto`, `always` or `never`.
        environ: The environment of the process that owns the stream.
        is_terminal: Whether the stream is a terminal.
    """
    if flag in ("always", "never"):
        return flag == "always"
    if environ.get("NO_COLOR"):
        return False
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        if environ.get(name, "") not in ("", "0"):
            return True
    if environ.get("TERM") == "dumb":
        return False
    return is_terminal
