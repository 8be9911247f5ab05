"""Events of structlog and loguru that are handed to `logging`, or printed, as a text.

Whatever the last processor is, the text that it makes has the event with it from now on
(`logagg.dialects.structlog_texts`); a handler sends that. Nothing else about structlog
changes: what a program prints, or writes into files of its own, is the same; and a
processor that walks the stack to the call (`CallsiteParameterAdder`) passes by the
functions here, which seem to be structlog's own.

loguru gives a handler of `logging` that is one of its sinks (`PropagateHandler` of its
manual) a record with a text of message and traceback; that text has them apart with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import FunctionType, ModuleType
from typing import Any

from logagg.dialects.structlog_texts import LoguruText, keeping
from logagg.integrations.import_hooks import when_imported

__all__ = ["install"]

_installed = False


class _Bound:
    """A bound logger as the processing of an event reads it, with another last step."""

    __slots__ = ("_bound", "_context", "_logger", "_processors")

    def __init__(self, bound: Any, module: ModuleType) -> None:
        self._bound = bound
        self._context = bound._context
        self._logger = bound._logger
        steps = bound._processors  # in place: tests that capture logs replace them so
        self._processors = steps
        if steps:
            self._processors = (*steps[:-1], _as_of(module, keeping(steps[-1])))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)


def install() -> None:
    """Do so from now on; may be called twice, and before structlog is imported."""
    global _installed
    if not _installed:
        _installed = True
        when_imported("structlog._base", _replace)
        when_imported("loguru._simple_sinks", _replace_sink)


def _replace(module: ModuleType) -> None:
    kind: Any = module.BoundLoggerBase
    original, bound_of = kind._process_event, _Bound

    def process(self: Any, *args: Any, **options: Any) -> Any:
        return original(bound_of(self, module), *args, **options)

    kind._process_event = wraps(original)(_as_of(module, process))


class _LoguruMessage:
    """A message of loguru's, as a sink reads it."""

    __slots__ = ("_text", "record")

    def __init__(self, message: Any) -> None:
        self.record = message.record
        event = dict(self.record["extra"])
        if "message" in event:
            event["message_"] = event["message"]
        event["message"] = self.record["message"]
        self._text = LoguruText(str(message))
        self._text.event = event

    def __str__(self) -> str:
        return self._text


def _replace_sink(module: ModuleType) -> None:
    kind: Any = module.StandardSink
    original = kind.write

    @wraps(original)
    def write(self: Any, message: Any) -> None:
        original(self, _LoguruMessage(message))

    kind.write = write


def _as_of(module: ModuleType, made: Any) -> Callable[..., Any]:
    """A function with all that it needs in its closure, as one of another module."""
    code = made.__code__.replace(co_filename=str(module.__file__))
    return FunctionType(code, vars(module), made.__name__, None, made.__closure__)
