"""The level of a line of text, where its form makes it certain. Pure.

Printed text has no level of its own. Many lines name one all the same, since a logger
formatted them. These forms are recognised at the start of a line:

    INFO:     Started server process          a level and a colon, any case (uvicorn, git)
    ERROR shop.pay: card refused              a level in capitals
    [2026-11-20 09:15:02 +0000] [77] [INFO] …  a time, then the level (gunicorn, celery)
    2026-11-20 09:15:02,100 - shop - ERROR - … logging's formats, loguru, log4j, zap
    2026-11-20T09:15:02Z [warning  ] card refused      structlog
    E1120 09:15:02.100000 77 pay.go:41] …     glog and klog
    time=… level=error msg="card refused"     logfmt
    <3>card refused                           syslog's priority, as systemd reads it

A level word anywhere else means nothing: "no ERROR was found" is an ordinary line.
Colours of a terminal are no part of the form: `without_colours` takes them off.
"""

from __future__ import annotations

import re

from logagg.core.levels import NUMBERS, STANDARD

__all__ = ["level_of_text", "without_colours"]

_LOOK_AT = 200  # characters: a level stands before the message

_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_LEVELS = frozenset((*NUMBERS, "severe", "verbose"))
_NAMES = "|".join(sorted(_LEVELS, key=len, reverse=True))
_TIME = re.compile(
    r"\[?(?:\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
    r"(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?[\]:,]?"
)
_MOST_WORDS = 8  # between the time and the level: name, thread, process, separators
_COLON = re.compile(rf"[\[(<]?({_NAMES})[\])>]?:(?=\s|$|[\w.]+:)", re.IGNORECASE)
_CAPITALS = re.compile(rf"[\[(<]?({_NAMES.upper()})(?:[\])>]|\b)(?=[\s|:\])/-]|$)")
_GLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ")
_LOGFMT = re.compile(rf'(?:^|\s)(?:level|lvl|severity)="?({_NAMES})\b', re.IGNORECASE)
_GLOG_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical"}
_SYSLOG = (
    "critical",
    "critical",
    "critical",
    "error",
    "warning",
    "info",
    "info",
    "debug",
)
_OTHERS = {"severe": "error", "verbose": "debug", "trace": "debug"}
_BY_NUMBER = {number: name for name, number in STANDARD.items()}


def without_colours(text: str) -> str:
    """The text without the escapes that set a terminal's colours and fonts."""
    return _COLOURS.sub("", text) if "\x1b[" in text else text


def level_of_text(text: str) -> str | None:
    """The level that a line of text without colours states, as a standard name.

    Returns:
        None where the form does not make it certain.
    """
    head = text[:_LOOK_AT]
    first = head[:1]
    if first == "<" and head[2:3] == ">" and head[1] in "01234567":
        return _SYSLOG[int(head[1])]
    if first in "IWEF" and (found := _GLOG.match(head)):
        return _GLOG_LEVELS[found[1]]
    found = _COLON.match(head) or _CAPITALS.match(head)
    if found is None and (first.isdigit() or first == "["):
        moment = _TIME.match(head)
        return None if moment is None else _after_time(head[moment.end() :])
    if found is None and "=" in head and re.match(r"(?:time|ts|t|level|lvl)=", head):
        found = _LOGFMT.search(head)
    return None if found is None else _standard(next(filter(None, found.groups())))


def _after_time(text: str) -> str | None:
    """The level among what a formatter puts between the time and the message."""
    words = text.replace("|", " | ").split(maxsplit=_MOST_WORDS)[:_MOST_WORDS]
    for index, word in enumerate(words):
        bare = word.strip("[]()<>:,").partition("/")[0]
        if bare.lower() in _LEVELS and (bare.isupper() or word[-1] in "]):>"):
            return _standard(bare)
        if index == 0 and text.startswith("\t") and bare in _LEVELS:
            return _standard(bare)  # zap
        following = words[index + 1 : index + 2]
        if word[0] == "[" and following == ["]"] and bare.lower() in _LEVELS:
            return _standard(bare)  # structlog pads what is in the brackets
        bracketed = word[0] in "[(" and word[-1] in "])"
        if not (bracketed or word in ("-", "|") or following in (["-"], ["|"])):
            return None
    return None


def _standard(word: str) -> str:
    name = word.lower()
    if name in _OTHERS:
        return _OTHERS[name]
    number = NUMBERS[name]
    return _BY_NUMBER.get(number) or (
        "info" if number < STANDARD["warning"] else "error"
    )
