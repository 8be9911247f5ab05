"""Records that went through a `logging.handlers.QueueHandler`, as they were before. Pure.

A `QueueHandler` formats a record, exception and all, into its message, since a queue may
lead to another process: `args` and `exc_info` are None then, and only then. Under
`logagg run` and `logagg.start` (`logagg.integrations.handlers.queue_handlers`) the text
is a `QueuedText`, which knows the record that it was made from. Elsewhere the text is
taken apart again.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from copy import copy
from logging import LogRecord
from typing import Any

import orjson

from logagg.core.encode import body
from logagg.dialects.structlog_texts import RenderedText, rendered_event

__all__ = ["QueuedText", "before_queue"]

_TRACEBACK = "Traceback (most recent call last):\n"
_GROUP = "  + Exception Group Traceback (most recent call last):\n"
_STACK = "Stack (most recent call last):\n"


class QueuedText(str):
    """The text that a `QueueHandler` made of a record.

    It is text in every respect. Pickled, it keeps the record's message, and of its
    exception the text.

    Attributes:
        record: What the text was made from.
        sent: The address that the record was sent to already; empty: to none.
    """

    __slots__ = ("record", "sent")
    record: LogRecord
    sent: str

    def __reduce__(self) -> tuple[Any, ...]:
        record, event = self.record, None
        if (found := rendered_event(record)) is not None:
            fields, record = found
            with suppress(Exception):  # of values of any kind, what can be pickled
                event = orjson.loads(b"{%b}" % body(fields))
        text = record.exc_text
        if record.exc_info and record.exc_info[1] is not None:
            text = logging.Formatter().formatException(record.exc_info)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments of any kind
            message = str(self)
        return queued, (str(self), message, text, record.stack_info, self.sent, event)


def queued(
    text: str,
    message: str,
    exception: str | None,
    stack: str | None,
    sent: str,
    event: dict[str, Any] | None = None,
) -> QueuedText:
    """A text that was pickled."""
    made = QueuedText(text)
    made.sent = sent
    made.record = logging.makeLogRecord(
        {"msg": message, "exc_text": exception, "stack_info": stack}
    )
    if event is not None:
        made.record.msg = RenderedText(message)
        made.record.msg.event = event
    return made


def before_queue(record: LogRecord, address: str) -> LogRecord | None:
    """A copy of a record without `args` that has its parts apart, or the record itself.

    Args:
        record: The record.
        address: Where it is about to be sent.

    Returns:
        None: it was sent there before it was put into the queue.
    """
    text = record.msg
    if type(text) is QueuedText:
        if text.sent == address:
            return None
        made = copy(record)
        origin = text.record
        made.msg, made.args = origin.msg, origin.args
        made.exc_info, made.exc_text = origin.exc_info, origin.exc_text
        made.stack_info = origin.stack_info
        return made
    if type(text) is not str or record.exc_info or record.exc_text:
        return record
    return _taken_apart(record, text)


def _taken_apart(record: LogRecord, text: str) -> LogRecord:
    """Undo what `Formatter` does by default: prefix, then exception, then stack."""
    message = text.removeprefix(f"{record.levelname}:{record.name}:")
    message, stack = _parted(message, _STACK)
    message, exception = _parted(message, _TRACEBACK, _GROUP)
    if message == text:
        return record
    made = copy(record)
    made.msg, made.exc_text = message, exception
    made.stack_info = stack or made.stack_info
    return made


def _parted(text: str, *headers: str) -> tuple[str, str | None]:
    """The text before the first line that is one of the headers, and from it on."""
    found = [f"\n{text}".find(f"\n{header}") for header in headers]
    starts = [start for start in found if start >= 0]
    if not starts:
        return text, None
    return text[: max(min(starts) - 1, 0)], text[min(starts) :]
