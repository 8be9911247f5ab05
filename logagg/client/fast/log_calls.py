"""Faster forms of what a log call passes, put in the place of `logging`'s own.

Always the record factory (see `record_factory`). Where the C form is built, also the
methods of `logging.Logger`: a call whose record goes to one `logagg.Handler` and nowhere
else makes no LogRecord; any other makes the same one as before and gives it to the same
handlers. Loggers of other classes, filters, levels, `disabled`, `propagate`, a factory
or a method of the application's hold as they did; where one of these is at work, the
method that was replaced makes the call.
"""

from __future__ import annotations

import logging
from types import FunctionType
from typing import Any

from logagg.client.fast import native, record_factory

__all__ = ["install", "is_installed", "uninstall"]

_OWN_FILE = logging.getLogger.__code__.co_filename
_replaced: dict[str, Any] = {}  # by name, the methods that stand in Logger now


def install() -> bool:
    """Make log calls faster; return whether records are made faster now.

    With `uninstall` the only function of logagg that changes anything global in
    `logging`; `logagg run` and `logagg.start` call it. Nothing is changed where the
    application has set a record factory of its own, or where the records of this Python
    have attributes that `make_record` does not know; a method that something else has
    replaced stays.
    """
    if is_installed():
        return True
    if logging.getLogRecordFactory() is not logging.LogRecord:
        return False
    factory = _factory()
    arguments = ("name", 20, __file__, 1, "text %s", ("x",), None, "function", None)
    theirs, ours = logging.LogRecord(*arguments), factory(*arguments)
    kinds = [(name, type(value)) for name, value in vars(theirs).items()]
    if [(name, type(value)) for name, value in vars(ours).items()] != kinds:
        return False
    logging.setLogRecordFactory(factory)
    if native.is_used() and all(map(_is_original, native.PASSED)):
        native.emit.use_factory(factory)
        made = native.emit.methods(logging.Logger, "logger")
        for name in filter(_is_original, native.METHODS):
            _replaced[name] = made[name]
            setattr(logging.Logger, name, made[name])
    return True


def uninstall() -> None:
    """Undo `install`; what the application has replaced since then stays."""
    if is_installed():
        logging.setLogRecordFactory(logging.LogRecord)
    for name, method in _replaced.items():
        if vars(logging.Logger)[name] is method:
            setattr(logging.Logger, name, native.originals[name])
    _replaced.clear()


def is_installed() -> bool:
    """Whether `install` is in effect."""
    return logging.getLogRecordFactory() is _factory()


def _factory() -> Any:
    return native.emit.make_record if native.is_used() else record_factory.make_record


def _is_original(name: str) -> bool:
    """Whether a method of loggers is the one that `logging` has defined."""
    method = vars(logging.Logger).get(name)
    if name in native.originals and method is not native.originals[name]:
        return False
    defined = getattr(logging.Filterer, name, None) if method is None else method
    return type(defined) is FunctionType and defined.__code__.co_filename == _OWN_FILE
