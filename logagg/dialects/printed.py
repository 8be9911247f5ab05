"""The record that a printed line is. Pure.

A line on a captured stdout or stderr, or on the standard input of `logagg send`, has a
level, a message and fields of its own if it is a JSON object (structlog, pino and many
others print those) or if a logger formatted it. Anything else is a message.
"""

from __future__ import annotations

import re
from typing import Any

from logagg.core.record import RESERVED
from logagg.core.secrets import scrubbed
from logagg.core.tracebacks import has_header
from logagg.dialects.access_logs import printed_access
from logagg.dialects.foreign.conversion import adopt
from logagg.dialects.plain_text import level_of_text, without_colours
from logagg.dialects.rendered_events import parse_event, scrubbed_json
from logagg.dialects.traceback_text import traceback_fields

__all__ = [
    "indented_traceback",
    "is_one_text",
    "newest_state",
    "printed_fields",
    "printed_traceback",
]

_OWN = RESERVED - {"logger", "message", "exception", "stack", "level_number"}
_LEVEL = re.compile(r"[a-z0-9_.+-]{1,32}")  # it stands in a line without being encoded
_TRACEBACK = re.compile(
    r"(?:  \+ Exception Group )?Traceback \(most recent call last\):"
)
_INDENTED = re.compile(
    r"^([ \t]*[|>]?[ \t]+)Traceback \(most recent call last\):\n\1  File \"",
    re.MULTILINE,
)
_IN_FRAMES = re.compile(r'^[ |]*  File "', re.MULTILINE)
_OVERWRITTEN = (
    3  # states of a line that overwrites itself, from which it is a progress bar
)


def printed_fields(
    text: str, *, redact: bool = True
) -> tuple[str | None, dict[str, Any]]:
    """Take a line apart.

    Args:
        text: The line, without its newline.
        redact: Replace the values of JSON fields that are named like secrets.

    Returns:
        The level, or None if the line states none, and the fields, `message` among
        them. A JSON object with neither level nor message is a message as it stands. A
        line of an access log is of level info, with its fields. A line that states a
        level loses the escapes that set colours; any other has them.
        Fields that only a worker or the consumer sets get an underscore.
    """
    event = parse_event(text) if text.endswith("}") else None
    if event is None:
        plain = without_colours(text)
        level = level_of_text(plain)
        if level is None and (access := printed_access(plain)):
            return "info", {"message": plain, **access}
        message = text if level is None else plain
        return level, {"message": scrubbed_json(message) if redact else message}
    found = adopt(event)
    level = str(found.pop("level"))
    stated = _states_level(event) and _LEVEL.fullmatch(level) is not None
    if not isinstance(found.get("message"), str):
        if not stated:
            return None, {"message": scrubbed_json(text) if redact else text}
        found["message"] = ""
    elif redact:
        found["message"] = scrubbed_json(found["message"])
    found.pop(
        "timestamp", None
    )  # the line has its own time, of the moment it was printed
    fields = {name: found[name] for name in found if name not in _OWN}
    for name in _OWN.intersection(found):
        free = f"{name}_"
        while free in fields:
            free += "_"
        fields[free] = found[name]
    return level if stated else None, scrubbed(fields) if redact else fields


def printed_traceback(
    text: str, *, redact: bool = True
) -> tuple[str | None, dict[str, Any]]:
    """Take a traceback apart, and the text that was printed before it.

    Returns:
        As `printed_fields` for that text, with `exception`; without a text the message is
        the exception's line. The level is `error` if the text states none.
    """
    header = _TRACEBACK.search(text)
    before = text[: header.start()] if header else ""
    if not before.strip() or _IN_FRAMES.search(before):
        return "error", traceback_fields(text)
    level, fields = printed_fields(before.rstrip(), redact=redact)
    found = traceback_fields(text[len(before) :])
    return level or "error", {**fields, "exception": found["exception"]}


def indented_traceback(
    text: str, *, redact: bool = True
) -> tuple[str | None, dict[str, Any]] | None:
    """Take a traceback apart whose lines all begin alike, and the text around it.

    Returns:
        As `printed_traceback`; None: there is no such traceback.
    """
    found = _INDENTED.search(text)
    if found is None:
        return None
    indent = found[1]
    lines = text[found.start() :].split("\n")
    size = next(
        (i for i, e in enumerate(lines) if not e.startswith(indent)), len(lines)
    )
    around = [text[: found.start()].rstrip("\n"), *lines[size:]]
    traced = [around.pop(0), *(line.removeprefix(indent) for line in lines[:size])]
    level, fields = printed_traceback("\n".join(traced), redact=redact)
    after = "\n".join(around).strip()
    if after:
        fields["message"] += f"\n{after}"
    return level, fields


def is_one_text(lines: list[str]) -> bool:
    """Whether lines that one call has printed are a single text.

    Not if a later one states a level or is a JSON object, if a traceback begins in them,
    or if one overwrites itself: they are records of their own then.
    """
    for number, line in enumerate(lines):
        if "\r" in line:
            return False
        if line[:1] == "{" and parse_event(line) is not None:
            return False
        if number and level_of_text(without_colours(line)) is not None:
            return False
    return not has_header(lines)


def _states_level(event: dict[str, Any]) -> bool:
    names = ("level", "lvl", "severity", "levelname", "log.level", "Level", "loglevel")
    return any(isinstance(event.get(name), str | int) for name in names)


def newest_state(line: bytes) -> bytes | None:
    """The last state of a line that overwrites itself with carriage returns.

    Returns:
        None for a line that does not: with fewer than three states, every byte counts.
    """
    states = line.split(b"\r")
    if len(states) < _OVERWRITTEN:
        return None
    return next((each for each in reversed(states) if each.strip()), b"")
