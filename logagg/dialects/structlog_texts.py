"""Texts that structlog has made of events, with the event beside each. Pure.

The last of structlog's processors may make a text of the event: JSON, `key=value`,
columns in colour, or a form of the program's own. Its logger is given that text, with
the fields, secrets among them, inside. It stays text in every respect, and has the event
with it, as the processors before have left it, so that the fields are fields again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

__all__ = [
    "LoguruText", "RenderedBytes", "RenderedText", "event_record", "keeping",
    "remove_marks", "rendered_event",
]  # fmt: skip

Event = dict[str, Any]


class RenderedText(str):
    """The text of an event. Pickled or copied, it is text alone.

    Attributes:
        event: What it was made from.
    """

    __slots__ = ("event",)
    event: Event

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class LoguruText(RenderedText):
    """The text that loguru gives to a handler of `logging`, of its message and fields.

    Its traceback may show the values of variables, secrets among them.
    """

    __slots__ = ()


class RenderedBytes(bytes):
    """As `RenderedText`, of a processor that makes bytes."""

    event: Event

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(self),)


def keeping(last: Callable[..., Any]) -> Callable[..., Any]:
    """A processor that does what the last one does, and keeps the event with its text."""
    before, after = _copied, _with_event

    def process(logger: Any, name: str, event: Any) -> Any:
        kept = before(event)
        return after(last(logger, name, event), kept)  # renderers take things out

    return process


def _copied(event: Any) -> Event | None:
    if not isinstance(event, Mapping):
        return None
    kept = dict(event)
    if kept.get("exc_info") is True:  # another thread may send it
        kept["exc_info"] = sys.exc_info()[1]
    return kept


def _with_event(text: Any, event: Event | None) -> Any:
    """A text that has the event with it; anything else as it is."""
    made: RenderedText | RenderedBytes
    if event is None:
        return text
    if type(text) is str:
        made = RenderedText(text)
    elif type(text) is bytes:
        made = RenderedBytes(text)
    else:
        return text
    made.event = event
    return made


def rendered_event(
    record: logging.LogRecord,
) -> tuple[Event, logging.LogRecord] | None:
    """The event that a record's message was made from.

    Returns:
        The event without its exception, and a record that has that; None: the message is
        no such text.
    """
    message = record.msg
    if not isinstance(message, RenderedText | RenderedBytes) or record.args:
        return None
    fields = dict(message.event)
    made = copy(record)
    info, text = _exception_taken(fields)
    made.exc_info = record.exc_info or info
    made.exc_text = record.exc_text or text
    return fields, made


def remove_marks(fields: Event, message: object) -> None:
    """Take out of fields what structlog, or loguru, has put on a record for itself."""
    if "_logger" in fields and "_name" in fields:
        del fields["_logger"], fields["_name"]
    if type(message) is LoguruText:
        fields.pop("extra_" if "extra" in message.event else "extra", None)


def event_record(event: Event, level: str) -> logging.LogRecord:
    """The record of an event whose text was about to be printed."""
    fields = dict(event)
    level = str(fields.pop("level", level)).lower()
    fields.pop("timestamp", None)  # the record has its own, some microseconds later
    name = fields.pop("logger", None) or fields.pop("logger_name", None) or "structlog"
    info, text = _exception_taken(fields)
    record = logging.makeLogRecord(
        {
            "name": str(name),
            "levelname": level.upper(),
            "levelno": logging.getLevelNamesMapping().get(level.upper(), 20),
            "msg": fields,
            "exc_info": info,
        }
    )
    record.exc_text = text
    return record


def _exception_taken(fields: Event) -> tuple[Any, str | None]:
    """Take an exception out of fields: what `exc_info` has, and a text made of it."""
    info = fields.pop("exc_info", None)
    if info is True or isinstance(info, BaseException):
        error = info if isinstance(info, BaseException) else sys.exc_info()[1]
        info = (type(error), error, error.__traceback__) if error else None
    text = fields.get("exception")
    if isinstance(text, str):
        del fields["exception"]
        return info or None, text
    return info or None, None
