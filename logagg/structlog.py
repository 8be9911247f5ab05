"""structlog straight into the pipe, without `logging` in between.

    import logagg.structlog
    logagg.structlog.configure("app.log")

A bound logger's call merges its context and contextvars, and this module's logger
writes the event dictionary as one line: one encoding, one write. The same guarantees
as `logagg.Handler` hold, and both may be used side by side: they share the process's
pipe, so their records are in one order.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import MutableMapping, Sequence
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from logagg.client import dialect_functions as dialects
from logagg.client.context_fields import (
    TRACE,
    add_field,
    add_surroundings,
    running,
    unreserved,
)
from logagg.client.fast import native
from logagg.client.handler import FLUSH_TIMEOUT
from logagg.client.lifecycle import current_pid, pid_cell
from logagg.client.sink_urls import open_transport, redaction_wanted
from logagg.client.transport import Overflow, Transport
from logagg.core.encode import body, safe_text, scrubbed_body
from logagg.core.exception_fields import exception_field
from logagg.core.levels import STANDARD

__all__ = ["Logger", "LoggerFactory", "configure"]


class Logger:
    """The logger inside a structlog bound logger: each method writes one record.

    The methods take the event dictionary as their only argument, or its entries as
    keywords. They never raise for anything in it, and block as `logagg.Handler` does.
    """

    __slots__ = ("_attachment", "_redact", "name")

    def __init__(self, attachment: Transport, name: str, *, redact: bool) -> None:
        self._attachment = attachment
        self._redact = redact
        self.name = name

    def _write(self, level: str, event: Any, rest: MutableMapping[str, Any]) -> None:
        if type(event) is dict:
            rest = event
            event = rest.pop("event", "")
        thread = threading.current_thread()
        fields: dict[str, Any] = {
            "logger": self.name,
            "message": self._text(event),
            "pid": pid_cell[0] or current_pid(),
            "process": _process(),
            "thread": thread.name,
        }
        for name, value in rest.items():
            if name == "logger":
                fields["logger"] = value
            elif name == "exception":
                fields[name] = value
            elif name != "level" or value != level:  # else add_log_level's
                add_field(fields, name, value, redact=self._redact)
        if not self._attachment.latest[0]:
            self._attachment.renew()
        add_surroundings(fields, self._attachment.process_fields)
        encoded = body(fields)
        if self._redact and (b":{" in encoded or b":[" in encoded):
            encoded = scrubbed_body(encoded)
        self._attachment.send(level, encoded)

    def _text(self, event: object) -> str:
        text = event if type(event) is str else safe_text(event)
        if self._redact and text[:1] in ("{", "["):
            return dialects.scrubbed_json(text)
        return text

    def debug(self, event: Any = "", **rest: Any) -> None:
        """Write a record of level debug."""
        self._write("debug", event, rest)

    def info(self, event: Any = "", **rest: Any) -> None:
        """Write a record of level info."""
        self._write("info", event, rest)

    def warning(self, event: Any = "", **rest: Any) -> None:
        """Write a record of level warning."""
        self._write("warning", event, rest)

    def error(self, event: Any = "", **rest: Any) -> None:
        """Write a record of level error."""
        self._write("error", event, rest)

    def critical(self, event: Any = "", **rest: Any) -> None:
        """Write a record of level critical."""
        self._write("critical", event, rest)

    msg = log = info
    warn = warning
    err = failure = exception = error
    fatal = critical

    def flush(self, timeout: float | None = FLUSH_TIMEOUT) -> bool:
        """As `logagg.Handler.flush`."""
        return self._attachment.flush(timeout)


class LoggerFactory:
    """Make `Logger`s for `structlog.configure(logger_factory=…)`.

    Args:
        filename: As for `logagg.Handler`.
        sinks: As for `logagg.Handler`.
        overflow: As for `logagg.Handler`.
        redact: As for `logagg.Handler`.

    Raises:
        ConfigError: As `logagg.Handler` does.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        *,
        sinks: Sequence[str] | str | None = None,
        overflow: str = Overflow.SPOOL,
        redact: bool | None = None,
    ) -> None:
        self._attachment = open_transport(filename, sinks, overflow=overflow)
        self._redact = redaction_wanted(redact)

    def __call__(self, *args: Any) -> Logger:
        """A logger with the name `structlog.get_logger` was given, or the module's."""
        name = str(args[0]) if args else _caller()
        return Logger(self._attachment, name, redact=self._redact)


def configure(
    filename: str | os.PathLike[str] | None = None,
    *,
    sinks: Sequence[str] | str | None = None,
    level: int | str = "info",
    overflow: str = Overflow.SPOOL,
    redact: bool | None = None,
    processors: Sequence[Processor] = (),
) -> None:
    """Configure structlog to send its events to logagg, in one call.

    Args:
        filename: As for `logagg.Handler`.
        sinks: As for `logagg.Handler`.
        level: Calls below this level do nothing, at next to no cost.
        overflow: As for `logagg.Handler`.
        redact: As for `logagg.Handler`.
        processors: Further processors, run between merging the contextvars and
            structuring the exception.

    Raises:
        ConfigError: As `logagg.Handler` does.
    """
    if isinstance(level, str):
        level = level.lower()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *processors,
            structure_exception,
            _hand_over,
        ],
        wrapper_class=_wrapper(structlog.make_filtering_bound_logger(level)),
        logger_factory=LoggerFactory(
            filename, sinks=sinks, overflow=overflow, redact=redact
        ),
        cache_logger_on_first_use=True,
    )


def _wrapper(base: type[Any]) -> type[Any]:
    """structlog's bound logger, with a shorter way for the ordinary call.

    Ordinary is an event without `%` arguments or exception, whose fields are neither
    reserved nor secrets, when only logagg's processors are configured (tests that
    capture logs replace them). It makes the same line as the processors do.
    """

    def method(level: str) -> Any:
        slowly = getattr(base, level)

        def log(self: Any, event: Any = None, *args: Any, **fields: Any) -> Any:
            if args or not _quickly(self, level, event, fields):
                return slowly(self, event, *args, **fields)
            return None

        log.__name__ = level
        return log

    quick = {
        name: method(name)
        for name in STANDARD
        if getattr(base, name).__name__ != "_nop"
    }
    for alias, name in (("warn", "warning"), ("fatal", "critical"), ("msg", "info")):
        if name in quick and hasattr(base, alias):
            quick[alias] = quick[name]
    bound = type(base.__name__, (base,), quick)
    native.make_events(bound, quick)
    return bound


def _quickly(bound: Any, level: str, event: Any, rest: dict[str, Any]) -> bool:
    """Send an ordinary event; return False, having done nothing, for any other."""
    logger = bound._logger
    processors = bound._processors
    if (
        type(logger) is not Logger
        or type(event) is not str
        or event[:1] in ("{", "[")
        or len(processors) != _COUNT
        or processors[-1] is not _hand_over
    ):
        return False
    context = bound._context
    if context:
        rest = {**context, **rest}
    if not unreserved.issuperset(rest) or "event" in rest:
        return False
    fields: dict[str, Any] = {
        "logger": logger.name,
        "message": event,
        "pid": pid_cell[0] or current_pid(),
        "process": _process(),
        "thread": _thread().name,
    }
    fields.update(rest)
    for name, value in _contextvars().items():
        if name not in rest:
            if name not in unreserved:
                return False
            fields[name] = value
    latest = logger._attachment.latest[0]
    if TRACE in _modules or running or latest <= 0:
        if not latest:
            logger._attachment.renew()
        add_surroundings(fields, logger._attachment.process_fields)
    text = len(event)
    encoded = body(fields, text)
    if (
        logger._redact
        and len(fields) > 5
        and (encoded.rfind(b":{", text) > 0 or encoded.rfind(b":[", text) > 0)
    ):
        encoded = scrubbed_body(encoded)
    logger._attachment.send(level, encoded)
    return True


def structure_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A processor: `exc_info` becomes `exception` as in `logging`'s records."""
    info = event.pop("exc_info", None)
    if info:
        error = info
        if isinstance(info, tuple) and len(info) == 3:
            error = info[1]
        elif not isinstance(info, BaseException):
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            event["exception"] = exception_field(error, error.__traceback__)
    return event


def _hand_over(
    _: WrappedLogger, __: str, event: EventDict
) -> tuple[tuple[EventDict], dict[str, Any]]:
    return (event,), {}


_OURS = (structlog.contextvars.merge_contextvars, structure_exception, _hand_over)
_COUNT = len(_OURS)
if native.is_used():
    native.emit.bind_events(Logger, _hand_over, _COUNT)
_contextvars = structlog.contextvars.get_contextvars
_thread = threading.current_thread
_modules = sys.modules


def _process() -> str:
    process = _modules.get("multiprocessing.process")
    return process.current_process().name if process else "MainProcess"


def _caller() -> str:
    """The module that called for the logger."""
    frame = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "?"))
        if not name.startswith(("structlog.", "logagg.")):
            return name
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "?"
