"""Exceptions that a program prints on a captured stream, as records with their parts."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from logagg.integrations import excepthooks
from logagg.integrations.printing.timestamped_stdio import holding

__all__ = ["exception_record", "sending"]


def sending(
    original: Any,
    name_of: Callable[[object], str],
    handle: Callable[[logging.LogRecord], object],
) -> Any:
    """`print_exception`, and so `print_exc`, whose captured text would lack the parts.

    Args:
        original: What prints on other streams.
        name_of: The name of a stream that is captured; empty: it is not.
        handle: Sends a record.
    """
    busy = threading.local()

    @wraps(original)
    def print_exception(exc: Any, /, *args: Any, **options: Any) -> None:
        stream = options.get("file", args[3] if len(args) > 3 else None)
        stream = sys.stderr if stream is None else stream
        value = options.get("value", args[0] if args else None)
        error = exc if isinstance(exc, BaseException) else value
        printed = holding.by
        if printed and error is not None and name_of(stream) and printed.has(error):
            return  # a handler prints that of its record
        # An error of the handler itself is printed, in the middle of its own call; so is
        # one that ends a line (`print("failed: ", end="")`).
        busy_or_text = getattr(busy, "on", False) or _has_begun_line(stream)
        if busy_or_text or error is None or not name_of(stream):
            original(exc, *args, **options)
            return
        busy.on = True
        try:
            handle(exception_record(error, name_of(stream)))
        finally:
            busy.on = False

    return print_exception


def _has_begun_line(stream: Any) -> bool:
    try:
        return holding.unfinished > 0 and holding.unfinished == stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False


def exception_record(error: BaseException, name: str) -> logging.LogRecord:
    """The record of an exception that was about to be printed on a stream."""
    return logging.makeLogRecord(
        {
            "name": name,
            "levelname": "ERROR",
            "levelno": logging.ERROR,
            "msg": excepthooks.summary(error),
            "exc_info": (type(error), error, error.__traceback__),
            "stream": name,
        }
    )
