"""loguru's records as `LogRecord`s. Pure.

The text that loguru formats is not used: the message, the fields of `bind`,
`contextualize` and keyword arguments, and the exception are taken from its record.
A handler of the program may give records of `logging` to loguru (`InterceptHandler` of
loguru's manual): the name, the fields and the exception of those are the record's, too.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["add_extra", "log_record", "with_origin"]

_HANDLE = logging.Handler.handle.__code__  # as it is before `logagg run` replaces it
_MOST_FRAMES = 14  # between loguru's sink and the `handle` of a handler that calls it

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
    add_extra(made, record["extra"])
    return made


def add_extra(record: logging.LogRecord, extra: Mapping[str, Any]) -> None:
    """Add fields to a record; those named like an attribute of it get underscores."""
    attributes = record.__dict__
    for name, value in extra.items():
        free = name
        if name in _STANDARD:
            while free in extra or free in attributes:
                free += "_"
        attributes[free] = value


def with_origin(record: logging.LogRecord) -> logging.LogRecord | None:
    """Complete a record by that of `logging` which is given to loguru just now, if any.

    Returns:
        The latter.
    """
    frame = sys._getframe(1)
    codes = (_HANDLE, logging.Handler.handle.__code__)
    for _ in range(_MOST_FRAMES):
        if frame.f_code in codes:
            origin: logging.LogRecord = frame.f_locals["record"]
            return origin if _completed(record, origin) else None
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def _completed(record: logging.LogRecord, origin: logging.LogRecord) -> bool:
    try:
        if origin is record or origin.getMessage() != record.msg:
            return False
    except Exception:  # noqa: BLE001 - its arguments may be of any kind
        return False
    record.name = origin.name
    record.exc_info = record.exc_info or origin.exc_info
    vars(record).update(vars(origin) | vars(record))
    return True
