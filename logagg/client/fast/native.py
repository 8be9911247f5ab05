"""The C form of the log call, where it was built, with what it needs. Bound at import.

`logagg.Handler` is loaded by way of this module.

`logagg._native.emit` reads and writes the slots of the objects of this package, and
leaves to it what is not ordinary (see the head of `emit.c`). Without it, all calls are
made in Python: on a Python for which it was not built, on a free-threaded one, in a
subinterpreter, or with `LOGAGG_PURE=1`. What is logged is the same in both forms.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import BuiltinFunctionType
from typing import Any

import orjson

from logagg._native import load
from logagg.client import context_fields, handler
from logagg.client.fast import record_factory
from logagg.client.handler import Handler
from logagg.client.lifecycle import pid_cell
from logagg.client.line_delivery import LineDelivery
from logagg.client.resend_buffer import ResendBuffer
from logagg.client.transport import Transport
from logagg.core.record import PARSED_LOGGERS
from logagg.core.secrets import is_secret

__all__ = [
    "METHODS", "PASSED", "Handler", "emit", "is_used", "make_events", "originals",
]  # fmt: skip

METHODS = ("debug", "info", "warning", "error", "critical", "log")
"""The methods of a logger that have a C form."""

PASSED = (
    "_log", "callHandlers", "filter", "findCaller", "handle", "isEnabledFor",
    "makeRecord",
)  # fmt: skip
"""Methods that a call of a logger passes; if one is replaced, Python makes the call."""

originals = {name: vars(logging.Logger)[name] for name in METHODS}
"""The methods of `logging.Logger` when this module was loaded."""

_real_time = time.time_ns if sys.version_info >= (3, 13) else time.time
"""The clock of LogRecord."""

_PLAIN, _SECRET, _SPECIAL = range(3)
_MARKS = frozenset(("_logger", "_name", "event"))
"""Fields that structlog sets for itself, and the name of its text."""

emit: Any = load("emit")


def _is_special(name: str) -> bool:
    """Whether a field of that name, not a secret's, is more than a field."""
    return (
        name.rstrip("_") in context_fields.TAKEN or name[:4] == "otel" or name in _MARKS
    )


def is_used() -> bool:
    """Whether ordinary log calls are made in C."""
    return _is_bound


def _classify(name: str) -> tuple[int, bytes]:
    """For `emit.c`: the kind of a field's name, and its form in a line."""
    encoded = b",%b:" % orjson.dumps(name)
    if is_secret(name):
        return _SECRET, encoded
    return _SPECIAL if _is_special(name) else _PLAIN, encoded


def _own_parts() -> dict[str, Any]:
    """The objects of this package, by the name that `emit.c` has for them."""
    return {
        "Transport": Transport,
        "LineDelivery": LineDelivery,
        "ResendBuffer": ResendBuffer,
        "emit": Handler.emit,
        "handle": Handler.handle,
        "level_names": handler.LEVELS,
        "left_loggers": PARSED_LOGGERS,
        "classify": _classify,
        "paths": record_factory.paths,
        "names_of_path": record_factory.names_of_path,
        "make_record": record_factory.make_record,
        "running": context_fields.running,
        "pid_cell": pid_cell,
    }


def _parts_of_logging() -> dict[str, Any]:
    """As `_own_parts`, of the standard library."""
    lock = type(threading.RLock())
    model = vars(logging.LogRecord("", 0, "", 0, "", (), None))
    return {
        "LogRecord": logging.LogRecord,
        "Logger": logging.Logger,
        "RootLogger": logging.RootLogger,
        "RLock": lock,
        "acquire": lock.acquire,
        "release": lock.release,
        "modules": sys.modules,
        "logging": vars(logging),
        "time": vars(time),
        "threading": vars(threading),
        "threads": threading._active,  # type: ignore[attr-defined]
        "real_time": _real_time,
        "real_ident": threading.get_ident,
        "thread_name": threading.Thread.name,
        "number_to_name": logging._levelToName,
        "template": dict.fromkeys(model),
        "attributes": tuple(model),
        "expected_methods": {name: getattr(logging.Logger, name) for name in PASSED},
        "start_time": logging._startTime,  # type: ignore[attr-defined]
        "returns_record": sys.version_info >= (3, 12),
        "left_methods": tuple(originals.values()),
    }


def _bind() -> bool:
    """Give the C code its parts, and `Handler` its C form of `handle`."""
    builtins = (_real_time, threading.get_ident)
    if emit is None or not all(type(each) is BuiltinFunctionType for each in builtins):
        return False  # a frozen clock, or greenlets in the place of threads
    if not emit.bind(_own_parts() | _parts_of_logging()):
        return False
    emit.use_factory(record_factory.make_record)
    for name, method in emit.methods(Handler, "handler").items():
        setattr(Handler, name, method)
    return True


def make_events(bound: type[Any], methods: dict[str, Any]) -> None:
    """Give a structlog bound logger's class the C forms of its methods.

    Args:
        bound: The class.
        methods: By name, those of its methods that log, and their aliases; what is not
            ordinary is left to them.
    """
    if not _is_bound:
        return
    made = emit.methods(bound, "event")
    for name, method in methods.items():
        level = method.__name__
        setattr(bound, f"_left_{level}", method)
        setattr(bound, name, made[level])


_is_bound = _bind()
