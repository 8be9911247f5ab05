"""Errors of the program's logging handlers (`handleError`), each as one record.

`logging` prints them on stderr: a traceback, the stack of the call and the message.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from functools import wraps

from logagg.integrations import excepthooks

__all__ = ["install"]

_LONGEST = 1000  # characters of the message that is quoted


def install(
    name_of: Callable[[object], str], handle: Callable[[logging.LogRecord], object]
) -> None:
    """Make one record of each error that a handler would print, from now on.

    A handler with a `handleError` of its own is left alone.

    Args:
        name_of: The name of a stream that is captured; empty: it is not.
        handle: Sends a record.
    """
    original = logging.Handler.handleError
    busy = threading.local()

    @wraps(original)
    def handle_error(self: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        wanted = logging.raiseExceptions and name_of(sys.stderr)
        # An error of what sends the record is printed.
        if not wanted or error is None or getattr(busy, "on", False):
            original(self, record)
            return
        busy.on = True
        try:
            handle(_record(self, record, error))
        finally:
            busy.on = False

    logging.Handler.handleError = handle_error  # type: ignore[method-assign]


def _record(
    handler: logging.Handler, record: logging.LogRecord, error: BaseException
) -> logging.LogRecord:
    """The record of an error, with the place of the call that it was met at."""
    kind = type(handler).__name__
    return logging.makeLogRecord(
        {
            "name": "logging",
            "levelname": "ERROR",
            "levelno": logging.ERROR,
            "msg": f"{kind} failed: {excepthooks.summary(error)}",
            "exc_info": (type(error), error, error.__traceback__),
            "failed_logger": record.name,
            "failed_message": _quoted(record.msg),
            "file": record.pathname,
            "line": record.lineno,
        }
    )


def _quoted(message: object) -> str:
    try:
        return str(message)[:_LONGEST]
    except Exception:  # noqa: BLE001 - a broken __str__ may be the error
        return f"<{type(message).__name__}>"
