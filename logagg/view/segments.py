"""Text with a meaning attached, made harmless, and painted at the very end. Pure.

Everything that is shown is first a list of segments `(style, text)`; a style says what
the text *is* (`level.error`, `key`, `gutter.3`), and only `paint` knows colors. So the
terminal and a web page can share all that comes before.

Guarantee: text that went through `visible` or `inline` cannot move a cursor, retitle a
window, start an escape sequence, hide behind the right-to-left override or make a line
break of its own: control characters of C0 and C1, DEL, the bidirectional controls, the
line separators of Unicode and lone surrogates come out as escapes one can read.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable

Segment = tuple[str, str]

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(
    f"[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u2028\u2029\ud800-\udfff{_BIDI}]"
)
_UNSAFE_INLINE = re.compile(f"[\\x00-\\x1f\\x7f-\\x9f\u2028\u2029\ud800-\udfff{_BIDI}]")
_NAMES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}

# The 16 base colors, so that the user's own theme decides what they look like.
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


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    code = ord(char)
    return _NAMES.get(char) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def visible(text: str) -> str:
    """The text with everything but tab and newline that is not plain made visible."""
    return _UNSAFE.sub(_escape, text)


def inline(text: str) -> str:
    """As `visible`, and on one line: tab and newline are escapes as well."""
    return _UNSAFE_INLINE.sub(_escape, text)


def json_visible(line: str) -> str:
    r"""A line of JSON, the same value, with what a terminal could obey as `\u009b`."""
    return _UNSAFE_INLINE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def worker_code(worker: str) -> str:
    """The color of a worker's tag, the same in every run."""
    number = int(worker) - 1 if worker.isdecimal() and len(worker) < 10 else None
    if number is None:
        number = zlib.crc32(worker.encode("utf-8", "replace"))
    return _WORKERS[number % len(_WORKERS)]


def _code(style: str) -> str:
    code = _CODES.get(style)
    if code is not None:
        return code
    kind, _, rest = style.partition(".")
    return worker_code(rest) if kind in ("worker", "gutter") and rest else ""


def paint(segments: Iterable[Segment], color: bool) -> str:
    """The text of the segments, with escape codes when `color`.

    A style that ends in `+hit` is shown inverse.
    """
    if not color:
        return "".join(text for _, text in segments)
    parts = []
    for style, text in segments:
        base, _, hit = style.partition("+")
        code = _code(base)
        if hit:
            code = f"{code};{_HIT}" if code else _HIT
        parts.append(f"\x1b[{code}m{text}\x1b[0m" if code and text else text)
    return "".join(parts)


def width(text: str) -> int:
    """Columns on a terminal, near enough: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def cut(text: str, limit: int | None) -> str:
    """The text, or its two ends and its true length when it is over the limit."""
    if limit is None or len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}…{text[-half:]} ({len(text):,} characters)"


def marked(style: str, text: str, hits: Iterable[re.Pattern[str]]) -> list[Segment]:
    """The text as segments in which what a pattern finds is a hit."""
    spans = [
        found.span()
        for hit in hits
        for found in hit.finditer(text, 0, 16_384)
        if found.end() > found.start()
    ]
    if not spans:
        return [(style, text)]
    result: list[Segment] = []
    place = 0
    for start, end in sorted(spans):
        if start > place:
            result.append((style, text[place:start]))
        if end > place:
            result.append((style + "+hit", text[max(start, place) : end]))
            place = end
    if place < len(text):
        result.append((style, text[place:]))
    return result
