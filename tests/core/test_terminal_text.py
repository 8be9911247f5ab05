"""Text for a terminal: all that acts, reorders or hides is an escape, and no more."""

from __future__ import annotations

import sys
import unicodedata

import orjson
import pytest

from logagg.platform.terminal_text import complain, inline, json_visible, visible

READ = (
    "é ü Ω ж 日本語 ﷺ עברית हिन्दी",
    "👩🏽\u200d💻 👨\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 ❤\ufe0f\u200d🔥 ⚠\ufe0f 🇩🇪 👍🏿 ™\ufe0f",
    "1\ufe0f\u20e3 #\ufe0f\u20e3",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\u0645\u06cc\u200c\u062e\u0648 \u0915\u094d\u200d\u0937",
    "葛\U000e0100城",
)
HIDDEN = (
    ("pass\u200dword", "pass\\u200dword"),
    ("pass\u200cword", "pass\\u200cword"),
    ("pa\u200bss", "pa\\u200bss"),
    ("密\u200d码", "密\\u200d码"),
    ("🔥\u200d\u200d🔥", "🔥\\u200d\\u200d🔥"),
    ("🔥\u200d", "🔥\\u200d"),
    ("\u200d🔥", "\\u200d🔥"),
    ("\ufe0f", "\\ufe0f"),
    ("a\ufe0fb", "a\\ufe0fb"),
    ("1\ufe0f2", "1\\ufe0f2"),
    ("⚠\ufe0f\ufe0f", "⚠\ufe0f\\ufe0f"),
    ("👍\U000e0101", "👍\\U000e0101"),
    ("葛\U000e0100\U000e0101", "葛\U000e0100\\U000e0101"),
    ("x\U000e0041", "x\\U000e0041"),
    ("🏴\U000e0041", "🏴\\U000e0041"),
    ("\u202egpj.exe", "\\u202egpj.exe"),
    ("\u2066a\u2069 \u200e\u200f\u061c", "\\u2066a\\u2069 \\u200e\\u200f\\u061c"),
    ("a\u00ad\u3164\ufeffb", "a\\xad\\u3164\\ufeffb"),
)


@pytest.mark.parametrize("text", READ)
def test_text_that_a_person_reads_stays(text: str) -> None:
    """Emojis, flags, keycaps and scripts that need joiners."""
    assert visible(text) == inline(text) == json_visible(text) == text


@pytest.mark.parametrize(("text", "shown"), HIDDEN)
def test_a_character_that_hides_or_reorders_is_an_escape(text: str, shown: str) -> None:
    """The escape stands where the character is; in JSON it means the same."""
    assert visible(text) == inline(text) == shown
    line = orjson.dumps({"k": text}).decode()
    assert json_visible(line).encode().decode() != line
    assert orjson.loads(json_visible(line)) == {"k": text}


def test_every_such_character_is_an_escape_on_its_own() -> None:
    """All of Unicode's controls and formats, and other ones without a width."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    signs = set(map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2)))
    signs |= {"\U000110bd", "\U000110cd"}  # they are seen
    others = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0}
    others |= {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10)}
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        kind = unicodedata.category(char)
        acts = kind in kinds or code in others or 0xE0000 <= code <= 0xE0FFF
        if kind == "Cn" and not acts:
            continue  # Unicode may give it such a meaning
        assert (inline(f"a{char}b") == f"a{char}b") is (not acts or char in signs), code


def test_a_complaint_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """It may quote a target's answer or a name."""
    complain("logagg: no\x1b[2J\u202e\nwhy")
    assert capsys.readouterr().err == "logagg: no\\x1b[2J\\u202e\nwhy\n"
