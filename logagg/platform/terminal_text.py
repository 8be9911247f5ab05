"""Text as a terminal may get it: nothing in it acts there, reorders or hides text.

Escaped are control characters (C0, DEL, C1), those that set a direction, Unicode's line
separators, lone surrogates, and characters without a width of their own (zero-width
spaces and joiners, soft hyphens, fillers, tags, variation selectors), which can hide
within a word, or carry a text that is not seen.

Exempt is what a person reads as one character: a joiner between two emojis or between
letters of scripts that need it (Arabic, those of India and South East Asia), one
variation selector after an emoji or an ideograph, a keycap, a flag made of tags.
"""

from __future__ import annotations

import re
import sys

__all__ = ["complain", "inline", "json_visible", "visible"]

_LINES = "\u2028\u2029\ud800-\udfff"
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_HIDDEN = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f"
    "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_TAGS = "\U000e0000-\U000e0fff"
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_ALWAYS = f"\x7f-\x9f{_LINES}{_BIDI}{_HIDDEN}"
_UNSAFE = re.compile(f"[\0-\x08\x0b-\x1f{_ALWAYS}{_JOINERS}{_TAGS}]")
_UNSAFE_INLINE = re.compile(f"[\0-\x1f{_ALWAYS}{_JOINERS}{_TAGS}]")
_LAST = "\U000dffff"
_NAMES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}

_EMOJI = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299"
    "\U0001f000-\U0001faff]"
)
_JOINED = re.compile(
    "[\u0620-\u06d5\u06ee-\u109f\u1780-\u17b3\u17b6-\u180a\u1810-\u18af\u1900-\u1cff"
    "\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00011000-\U00011fff]|" + _EMOJI.pattern
)
_IDEOGRAPH = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_BLACK_FLAG = "\U0001f3f4"
_FLAG = re.compile(f"{_BLACK_FLAG}[\U000e0020-\U000e007e]{{2,6}}\U000e007f")
_MOST_TAGS = 7


def _is_read(text: str, at: int) -> bool:
    """Whether a character is a part of what is read as one character."""
    before, char, after = text[max(at - 1, 0) : at], text[at], text[at + 1 : at + 2]
    if char in "\u200c\u200d":
        joins = before == "\ufe0f" or _JOINED.match(before)
        return bool(joins and _JOINED.match(after))
    if char in "\ufe0e\ufe0f":
        if before and before in "0123456789#*":
            return after == "\u20e3"
        return _EMOJI.match(before) is not None
    if "\U000e0100" <= char <= "\U000e01ef":
        return _IDEOGRAPH.match(before) is not None
    if "\U000e0020" <= char <= "\U000e007f":
        start = text.rfind(_BLACK_FLAG, max(at - _MOST_TAGS, 0), at)
        flag = _FLAG.match(text, start) if start >= 0 else None
        return flag is not None and at < flag.end()
    return False


class _Escapes(dict[str, str]):
    """Escapes of characters, each made when it is first needed."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __missing__(self, char: str) -> str:
        self[char] = made = self._made(char)
        return made

    def _made(self, char: str) -> str:
        code = ord(char)
        if self._as_json and code > 0xFFFF:
            high, low = divmod(code - 0x10000, 0x400)
            return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
        if code > 0xFFFF:
            return f"\\U{code:08x}"
        if self._as_json or code > 255:
            return f"\\u{code:04x}"
        return _NAMES.get(char) or f"\\x{code:02x}"

    def replace(self, found: re.Match[str]) -> str:
        """The escape of a character, or itself where it is read as a part of one."""
        char = found[0]
        if (char in _JOINERS or char > _LAST) and _is_read(found.string, found.start()):
            return char
        return self[char]


_ESCAPES = _Escapes(as_json=False)
_JSON_ESCAPES = _Escapes(as_json=True)


def visible(text: str) -> str:
    """Escape everything but tab, newline and plain text."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(_ESCAPES.replace, text)


def inline(text: str) -> str:
    """Escape as `visible` does, and tab and newline too: one line."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE_INLINE.sub(_ESCAPES.replace, text)


def json_visible(line: str) -> str:
    r"""Escape a line of JSON for a terminal, such as `\u009b`, its value unchanged."""
    return _UNSAFE_INLINE.sub(_JSON_ESCAPES.replace, line)


def complain(text: str) -> None:
    """Print lines of text on stderr, in which nothing acts on a terminal."""
    print(visible(text), file=sys.stderr, flush=True)
