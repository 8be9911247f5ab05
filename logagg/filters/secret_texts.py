"""Secrets within a text, by their own form. Pure.

What is replaced: the password of a URL or DSN, what follows `Authorization:`, `Bearer`
or `Basic`, the value after a secret's name (`password=x`, `"api_key": "x"`), JSON Web
Tokens, private keys, and keys of the services whose keys have a form of their own. A
secret that looks like any other word is not recognized.

Every expression has bounded repeats, or begins where it cannot begin again within what
it has matched, so the time is linear in the length of the text.
"""

from __future__ import annotations

import re

from logagg.core.secrets import PLACEHOLDER, is_secret

__all__ = ["hide"]

_URL = re.compile(r"(?<=://)([^\s/@:\"'<>]{0,200}):[^\s/@\"'<>]{1,200}(?=@)")
_SCHEME = re.compile(
    r"\b(authorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?)(?:[a-z-]{1,20} {1,3})?[^\s\"']{3,}"
    r"|\b((?:bearer|basic|digest|apikey|negotiate) {1,3})"
    r"(?=[\w.~+/-]{0,200}[\d=])[\w.~+/=-]{8,}",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<![\w.-])([\w.-]{2,200}+)[\"']?\s{0,3}[:=]\s{0,3}")
_VALUE = re.compile(
    r"\"[^\"\n]{1,500}\"?|'[^'\n]{1,500}'?|(?!//)[^\s\"'&,;)\]}]{1,500}"
)
_TOKENS = re.compile(
    r"(?<![\w-])(?:eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)*"
    r"|AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|npm_\w{30,}"
    r"|xox[abeoprs]-[\w-]{10,}|sk-[\w-]{20,}|[rs]k_(?:live|test)_\w{10,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|hvs\.[\w-]{20,}|pypi-[\w-]{20,})"
)
_BEGIN, _END = "-----BEGIN ", "-----END "
_KEY = "PRIVATE KEY-----"


def hide(text: str) -> tuple[str, int]:
    """Replace the secrets in a text; return it and their number."""
    text, count = _without_keys(text) if _KEY in text else (text, 0)
    if "://" in text and "@" in text:
        text, number = _URL.subn(rf"\1:{PLACEHOLDER}", text)
        count += number
    text, number = _TOKENS.subn(PLACEHOLDER, text)
    count += number
    text, number = _SCHEME.subn(_after_scheme, text)
    count += number
    if "=" in text or ":" in text:
        text, number = _without_values(text)
        count += number
    return text, count


def _after_scheme(found: re.Match[str]) -> str:
    return f"{found[1] or found[2]}{PLACEHOLDER}"


def _without_values(text: str) -> tuple[str, int]:
    """The text without the values that stand after secrets' names."""
    parts: list[str] = []
    at = count = 0
    for name in _NAME.finditer(text):
        if name.start() < at or not is_secret(name[1]):
            continue
        value = _VALUE.match(text, name.end())
        if value is None or text.startswith(PLACEHOLDER, name.end()):
            continue
        parts += [text[at : name.end()], PLACEHOLDER]
        at = value.end()
        count += 1
    return "".join([*parts, text[at:]]), count


def _without_keys(text: str) -> tuple[str, int]:
    """The text without its private keys, each from its first line to its last."""
    parts, at, count = [], 0, 0
    while (begin := text.find(_BEGIN, at)) >= 0:
        head = text.find("-----", begin + len(_BEGIN))
        if head < 0 or not text[begin:head].endswith("PRIVATE KEY"):
            parts.append(text[at : begin + len(_BEGIN)])
            at = begin + len(_BEGIN)
            continue
        end = text.find(_END, head)
        close = text.find("-----", end + len(_END)) if end >= 0 else -1
        parts += [text[at:begin], PLACEHOLDER]
        at = close + 5 if close >= 0 else len(text)
        count += 1
    return "".join([*parts, text[at:]]), count
