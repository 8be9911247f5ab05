"""Records of logbook, sent in the place of the text that its console handlers write.

Levels keep logbook's names; the fields are those of `extra`, also from its processors.
Handlers on files, and those of the program that format their text by an `emit` of their
own, are left alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any
from weakref import ref

from logagg.dialects.loguru_messages import add_extra, with_origin

__all__ = ["replace_emit"]

_LEVELS = {"CRITICAL": 50, "ERROR": 40, "WARNING": 30, "NOTICE": 25, "INFO": 20}
_LEVELS |= {"DEBUG": 10, "TRACE": 5}
_FROM_LOGGING = ("stack_info", "taskName")
"""Attributes that logbook takes for fields in a record that came from `logging`."""


class _Sent(threading.local):
    """Per thread: the record that was sent last."""

    last: Callable[[], object] = staticmethod(lambda: None)


def replace_emit(
    module: ModuleType,
    captures: Callable[[object], bool],
    send: Callable[[logging.LogRecord, logging.LogRecord | None], object],
) -> None:
    """Replace what writes to the console, in the module `logbook.handlers`.

    Args:
        module: The module.
        captures: Whether a stream is captured.
        send: Sends a record in place of the one of `logging` that was given to logbook.
    """
    kind: Any = module.StreamHandler
    original = kind.emit
    sent = _Sent()

    @wraps(original)
    def emit(self: Any, record: Any) -> None:
        if not captures(getattr(self, "stream", None)):
            original(self, record)
        elif sent.last() is not record:  # else by another handler on the console
            made = _log_record(record)
            send(made, with_origin(made))
            sent.last = ref(record)

    kind.emit = emit


def _log_record(record: Any) -> logging.LogRecord:
    level = str(record.level_name)
    extra = dict(record.extra)
    own = {name: extra.pop(name) for name in _FROM_LOGGING if name in extra}
    made = logging.makeLogRecord(
        {
            "name": record.channel or "logbook",
            "msg": record.message,
            "args": (),
            "levelname": level,
            "levelno": _LEVELS.get(level, logging.INFO),
            "pathname": record.filename,
            "module": record.module,
            "lineno": record.lineno,
            "funcName": record.func_name,
            "exc_info": record.exc_info or None,
            **own,
        }
    )
    add_extra(made, extra)
    return made
