"""Secrets within a text, by their own form. Pure.

Replaced are: the password of a URL or DSN, and a token in its place; the signature of a
signed URL; a value after `Authorization:`, `Bearer`, `Basic`, or a secret's name
(`password=x`, `"api_key": "x"`, also in JSON within JSON, `--password x`, `<token>x<`);
all of a cookie header; JSON Web Tokens, private keys, and keys of the services whose keys
have a form of their own. A secret that looks like any other word is not recognized.

Every expression has bounded repeats, or begins where it cannot begin again within what
it has matched, so the time is linear in the length of the text.
"""

from __future__ import annotations

import re

from logagg.core.secrets import PLACEHOLDER, is_secret

__all__ = ["hide"]

_URL = re.compile(
    r"(?<=://)([^\s/@:\"'<>]{0,200}+):"
    r"(?:[^\s/\"'<>]{1,200}|(?!\d{1,5}/)[^\s@:\"'<>]{1,200}+)(?=@)"
)
_USER = re.compile(r"(?<=://)(?=[^\s/@:\d]{0,200}+\d)[^\s/@:\"'<>]{16,200}+(?=@)")
_SIGNED = re.compile(
    r"([?&](?:sig|signature|[\w-]{1,20}-signature)=)[^\s&\"'#]++", re.IGNORECASE
)
_SCHEME = re.compile(
    r"\b(authorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?)(?:[a-z-]{1,20} {1,3})?[^\s\"']{3,}"
    r"|\b((?:bearer|basic|digest|apikey|negotiate) {1,3})"
    r"(?=[\w.~+/-]{0,200}[\d=])[\w.~+/=-]{8,}",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"(?<![\w.-])([\w.-]{2,200}+)(?:\\{0,8}[\"'])?\s{0,3}(?::=|=>|[:=]|%3[DA])\s{0,3}",
    re.IGNORECASE,
)
_BEFORE = re.compile(r"([\w-]{2,20}) \Z")
_COMPOUND = frozenset({"key", "keys", "code", "codes", "string", "phrase", "auth"})
_VALUE = re.compile(
    r"[bru]{0,2}(?:\"(?:\\.|[^\"\\\n])++\"?|'(?:\\.|[^'\\\n])++'?)"
    r"|(?P<quote>\\{1,8}[\"'])(?:(?!(?P=quote))[^\n])++(?:(?P=quote))?"
    r"|[\[({][^\])}\n]++[\])}]?"
    r"|(?!//)[^\s\"'&,;)\]}]++",
    re.IGNORECASE,
)
_COOKIES = re.compile(r"[^\n\"']++")
_OPTION = re.compile(
    r"(?<!\S)(--?([\w-]{2,200}+)\s{1,3})"
    r"(?!-|(?:is|are|was|and|or|to|the|an?|must|can|cannot|not|in|on|for|with|needs?"
    r"|requires?|from|has|option)\b)"
)
_ELEMENT = re.compile(r"<([\w.:-]{2,200}+)>([^<\n]++)(?=</)")
_TOKENS = re.compile(
    r"(?<![\w-])(?:eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)*"
    r"|AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|gl(?:pat|rt|dt)-[\w-]{20,}|npm_\w{30,}"
    r"|xox[abeoprs]-[\w-]{10,}|xapp-[\w-]{10,}|sk-[\w-]{20,}|[rs]k_(?:live|test)_\w{10,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|hvs\.[\w-]{20,}|pypi-[\w-]{20,}|ya29\.[\w-]{20,}"
    r"|do[opr]_v1_\w{30,}|shp(?:at|ca|pa|ss)_\w{20,}|dckr_pat_[\w-]{20,}|hf_[A-Za-z]{30,}"
    r"|whsec_\w{16,}|sq0(?:atp|csp)-[\w-]{16,}|AGE-SECRET-KEY-1\w{20,})"
    r"|(?<=hooks\.slack\.com/services/)[\w/-]{20,}"
)
_BEGIN, _END = "-----BEGIN ", "-----END "
_KEY = "PRIVATE KEY"
_KEYS = (_KEY, f"{_KEY} BLOCK")


def hide(text: str) -> tuple[str, int]:
    """Replace the secrets in a text; return it and their number."""
    text, count = _without_keys(text) if _KEY in text else (text, 0)
    if "://" in text and "@" in text:
        text, number = _URL.subn(rf"\1:{PLACEHOLDER}", text)
        text, more = _USER.subn(PLACEHOLDER, text)
        count += number + more
    if "=" in text:
        text, number = _SIGNED.subn(rf"\1{PLACEHOLDER}", text)
        count += number
    text, number = _TOKENS.subn(PLACEHOLDER, text)
    count += number
    text, number = _SCHEME.subn(_after_scheme, text)
    count += number
    for mark, expression in (("--", _OPTION), ("</", _ELEMENT)):
        if mark in text:
            text, number = _without_named(text, expression)
            count += number
    if "=" in text or ":" in text or "%3" in text:
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
        if name.start() < at or not _is_name(text, name):
            continue
        is_cookies = name[1].lower().endswith("cookie") and ":" in name[0]
        form = _COOKIES if is_cookies else _VALUE
        value = form.match(text, name.end()) or _VALUE.match(text, name.end())
        if value is None or text.startswith(PLACEHOLDER, name.end()):
            continue
        parts += [text[at : name.end()], PLACEHOLDER]
        at = value.end()
        count += 1
    return "".join([*parts, text[at:]]), count


def _is_name(text: str, found: re.Match[str]) -> bool:
    """Whether a name, perhaps of two words, is that of a secret."""
    name = found[1]
    if is_secret(name):
        return True
    if name.lower() not in _COMPOUND:
        return False
    before = _BEFORE.search(text[max(found.start() - 21, 0) : found.start()])
    return before is not None and is_secret(f"{before[1]} {name}")


def _without_named(text: str, expression: re.Pattern[str]) -> tuple[str, int]:
    """The text without the values of secret options, or of secret elements."""
    parts: list[str] = []
    at = count = 0
    for found in expression.finditer(text):
        if found.start() < at:
            continue
        if expression is _ELEMENT:
            if is_secret(found[1]):
                parts += [text[at : found.start(2)], PLACEHOLDER]
                at = found.end(2)
                count += 1
        elif is_secret(found[2]) and (value := _VALUE.match(text, found.end())):
            parts += [text[at : found.end()], PLACEHOLDER]
            at = value.end()
            count += 1
    return "".join([*parts, text[at:]]), count


def _without_keys(text: str) -> tuple[str, int]:
    """The text without its private keys, each from its first line to its last."""
    parts, at, count = [], 0, 0
    while (begin := text.find(_BEGIN, at)) >= 0:
        head = text.find("-----", begin + len(_BEGIN))
        if head < 0 or not text[begin:head].endswith(_KEYS):
            parts.append(text[at : begin + len(_BEGIN)])
            at = begin + len(_BEGIN)
            continue
        end = text.find(_END, head)
        close = text.find("-----", end + len(_END)) if end >= 0 else -1
        parts += [text[at:begin], PLACEHOLDER]
        at = close + 5 if close >= 0 else len(text)
        count += 1
    return "".join([*parts, text[at:]]), count
