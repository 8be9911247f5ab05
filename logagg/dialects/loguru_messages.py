"""loguru's records as `LogRecord`s. Pure.

The text that loguru formats is not used: the message, the fields of `bind`,
`contextualize` and keyword arguments, and the exception are taken from its record.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["log_record"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def log_record(record: dict[str, Any]) -> logging.LogRecord:
    """Convert a loguru record into a `LogRecord`.

    Args:
        record: What loguru passes to a sink as `message.record`.

    Fields of `extra` that are named like an attribute of `LogRecord` get an underscore.
    """
    error = record["exception"]
    made = logging.makeLogRecord(
        {
            "name": record["name"] or "loguru",
            "msg": record["message"],
            "args": (),
            "levelname": record["level"].name,
            "levelno": record["level"].no,
            "pathname": record["file"].path,
            "filename": record["file"].name,
            "module": record["module"],
            "lineno": record["line"],
            "funcName": record["function"],
            "created": record["time"].timestamp(),
            "thread": record["thread"].id,
            "threadName": record["thread"].name,
            "process": record["process"].id,
            "processName": record["process"].name,
            "exc_info": tuple(error) if error else None,
        }
    )
    extra, attributes = record["extra"], made.__dict__
    for name, value in extra.items():
        free = name
        if name in _STANDARD:
            while free in extra or free in attributes:
                free += "_"
        attributes[free] = value
    return made
