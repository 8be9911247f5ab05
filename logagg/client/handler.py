"""The drop-in `logging.Handler`.

Theory of operation
-------------------
`emit` makes the record's body (one `orjson.dumps`) and passes it to the process's
`Transport`, which stamps it and writes it into the pipe. The body is made outside any
lock; stamp, seq and write happen under the transport's lock, so the order in the pipe
is the order of the stamps.

The record is never changed. What other parts of the program put on it (extras, a
formatter's `message`, another handler's `exc_text`) may be anything: any value is sent
as safe text (see `logagg.core.encode`), and no field of the caller's is dropped. A name
that clashes gets underscores.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from logging import LogRecord
from threading import get_ident
from time import CLOCK_REALTIME, clock_gettime_ns
from typing import TYPE_CHECKING, Any, Unpack
from weakref import ref

from logagg.client import dialect_functions as dialects
from logagg.client.closing import leave
from logagg.client.context_fields import (
    MODEL,
    STANDARD_NAMES,
    TRACE,
    add_field,
    add_surroundings,
    is_merged,
    running,
    set_own,
    unreserved,
)
from logagg.client.sink_urls import handler_query, open_transport, redaction_wanted
from logagg.core import encode
from logagg.core.encode import body, safe_text, scrubbed_body
from logagg.core.levels import STANDARD, decorated
from logagg.core.line import timestamp_bytes
from logagg.core.record import PARSED_LOGGERS

if TYPE_CHECKING:
    from logagg.client.sink_urls import FileArguments

__all__ = ["Handler"]

LEVELS = {name.upper(): name for name in STANDARD}

_COUNT = len(MODEL)
_LAST = MODEL[-1]
_HAS_TASK = "taskName" in MODEL
_MOST_FIELDS = encode.MAX_VALUES - 100  # with those that are added here
_CONTEXTVARS = "structlog.contextvars"
_JSON = frozenset("{[")
"""How a text begins that may be JSON, with secrets in it."""
_modules = sys.modules

_FRAMEWORKS = {
    "celery": "celery", "gunicorn": "gunicorn", "rq": "running_task",
    "dramatiq": "running_task", "huey": "running_task", "gevent": "running_task",
}  # fmt: skip
"""By library, the module of `logagg.integrations` that it needs where it is used."""
_ANY_TIME = "handlers.rendered_messages"
"""Also for a library that is imported later: secrets would stand in its texts."""

FLUSH_TIMEOUT = 5.0

_contexts: list[Callable[[LogRecord, dict[str, Any]], None]] = []


class Handler(logging.Handler):
    """Send records to the one consumer of their target, which writes them in order.

    A log call writes one line to this process's own pipe. When it returns, the record is
    with the kernel: it survives the death of the process. A call does not raise, starts
    no thread, and waits at most 0.1 s for a full pipe (`overflow="spool"`) and 0.5 s for
    another process that starts the consumer. Making one changes nothing in `logging`.

    The consumer is found by `LOGAGG_SOCKET` when that is set, else by the target: all
    that name the same file share one, from the first process to the last.

    Args:
        filename: The file to append to, as NDJSON. Its directory must exist; those of a
            template (`"{worker}/{logger}.log"`) are made.
        sinks: Sink URLs (`"file:app.log"`, `"stdout:?format=console"`, …), besides
            `filename`. With neither, and no `LOGAGG_SOCKET`, records go to stderr.
        arguments: Positional arguments of `RotatingFileHandler` after its file name
            (`fileConfig` gives them), or of `TimedRotatingFileHandler`.
        overflow: Policy when the pipe is full: `"spool"` (write the record to disk
            after 0.1 s), `"block"`, or `"drop_new"` (counted and announced).
        level: As for every handler.
        location: Also send `file`, `line` and `function` of the call.
        redact: Replace the values of extra fields whose names are those of secrets
            (`password`, `api_token`, … at any depth) before they leave the process.
            Default: yes, unless `LOGAGG_REDACT` is `no`.

    Raises:
        ConfigError: The file cannot be written, a sink's scheme or level is unknown, or
            an argument is invalid; nothing was started.

    The file's rotation has the names of the standard library's handlers: `maxBytes`
    (also as text, `"50MB"`; 0: never), `backupCount` (0: all are kept), `when`,
    `interval`, `utc`, `atTime`, and `use_gzip`. `encoding`, `errors`, `mode` and `delay`
    are accepted for what is always so: UTF-8, appended to, opened at the first record.

    The consumer checks the options of a sink URL, and reports one that it refuses on
    stderr, once. A formatter of the application's makes the text of `message`; the
    exception stays apart, in `exception`, with type, message, stack, causes and notes.
    """

    _contextual = False  # whether `_add_context` has anything to add to every record

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        *arguments: Any,
        sinks: Sequence[str] | str | None = None,
        overflow: str = "spool",
        level: int | str = logging.NOTSET,
        location: bool = False,
        redact: bool | None = None,
        **rotation: Unpack[FileArguments],
    ) -> None:
        query = ""
        if arguments or rotation:
            query = handler_query(arguments, {**rotation})
        self._transport = open_transport(filename, sinks, query, overflow=overflow)
        self._location = location
        if location:
            self._contextual = True
        self._redact = redaction_wanted(redact)
        self._open = True
        self._bare = True
        self._written: set[int] = set()  # threads in between loguru's write and flush
        super().__init__(level)
        used = (_FRAMEWORKS[each] for each in _FRAMEWORKS.keys() & _modules.keys())
        for module in (_ANY_TIME, *used):
            import_module(f"logagg.integrations.{module}").install()

    def _at_fork_reinit(self) -> None:
        """Other hooks may log in the child before the transport's own hook has run."""
        super()._at_fork_reinit()  # type: ignore[misc]
        self._transport.forked()

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802
        """Set what makes `message`; None and the stdlib's defaults mean the bare text.

        `logging.basicConfig` gives every handler without a formatter its default one,
        `LEVEL:NAME:text`, without being asked to; it is treated as none.
        """
        super().setFormatter(fmt)
        style = getattr(getattr(fmt, "_style", None), "_fmt", "")
        default = style in ("%(message)s", logging.BASIC_FORMAT)
        self._bare = fmt is None or (type(fmt) is logging.Formatter and default)

    def handle(self, record: LogRecord) -> Any:
        """Filter and emit; no lock is held while the record is encoded."""
        if self.filters:
            passed = self.filter(record)
            if not passed:
                return passed
            if isinstance(passed, logging.LogRecord):
                record = passed
        self.emit(record)
        return record if sys.version_info >= (3, 12) else True

    def handle_for(self, record: LogRecord, origin: LogRecord | None) -> None:
        """Handle a record in place of the one that it was made from: one is sent."""
        last = self._transport.recent.get(origin.thread) if origin else None
        if last is None or last() is not origin:
            self.handle(record)
            if origin:
                self._transport.recent[origin.thread] = ref(origin)

    # One function on purpose: each call saved is worth 60 ns on every record.
    def emit(self, record: LogRecord) -> None:  # noqa: C901
        """Send the record. Never raises; see `logging.Handler.handleError`."""
        try:
            transport = self._transport
            thread = record.thread
            recent = transport.recent.get(thread)
            if recent is not None and recent() is record:
                return  # sent already, by another handler or logger
            original = record
            arguments = record.args
            if arguments is None or record.name in PARSED_LOGGERS:
                found = dialects.parsed(record, transport.destination.path)
                if found is None:
                    return  # sent already, before it was queued
                record = found
                arguments = record.args
            message = record.msg
            plain = type(record) is LogRecord
            known: Collection[str] = unreserved
            fields: dict[str, Any] = {"logger": record.name}
            if not plain or not self._bare or type(message) is not str:
                message = self._message(record, fields)
                known = ()  # the message may have made fields of these names
            elif arguments:
                try:
                    message = message % arguments
                except Exception:  # noqa: BLE001 - a bad format, or a broken __str__
                    message = self._message(record, fields)
                    known = ()
                else:
                    if message[:1] in _JSON and self._redact:
                        message = dialects.scrubbed_json(message)
            elif message[:1] in _JSON:
                message = self._rendered(message, record, fields)
                known = ()
            # So much of the line is known to be text, and need not be searched.
            text = len(message) if len(fields) == 1 and type(message) is str else 0
            fields["message"] = message
            fields["pid"] = record.process
            fields["process"] = record.processName
            fields["thread"] = record.threadName
            attributes = record.__dict__
            if not plain or len(attributes) > _COUNT:
                names = list(attributes)
                # A record's own attributes come first, unless one was deleted.
                start = _COUNT if plain and names[_COUNT - 1] == _LAST else 0
                if len(names) > _MOST_FIELDS:
                    fields[encode.TRUNCATED_FIELDS] = str(len(names) - _MOST_FIELDS)
                    del names[_MOST_FIELDS:]
                for name in names[start:]:
                    if name in known:
                        fields[name] = attributes[name]
                    elif name not in STANDARD_NAMES:
                        add_field(fields, name, attributes[name], redact=self._redact)
                if not known:
                    dialects.remove_marks(fields, original.msg)
            if (
                self._contextual
                or _CONTEXTVARS in _modules
                or TRACE in _modules
                or record.created.__class__ is not float
                or not transport.earliest < record.created < transport.latest[0]
            ):
                self._add_context(record, fields)
            if record.exc_info or record.exc_text or record.stack_info:
                self._add_exception(record, fields)
            if _HAS_TASK and attributes.get("taskName") is not None:
                fields.setdefault("task_name", attributes["taskName"])
            level = LEVELS.get(record.levelname)
            if level is None:
                level = decorated(record.levelname, record.levelno)
            if level is None:
                level = record.levelname.lower()
                fields["level_number"] = record.levelno
            encoded = body(fields, text)
            if (
                self._redact
                and len(fields) > 5  # else there is nothing but text and numbers
                and (encoded.rfind(b":{", text) > 0 or encoded.rfind(b":[", text) > 0)
            ):
                encoded = scrubbed_body(encoded)
            transport.send(level, encoded)
            # Now, as what was encoded may have logged a record of its own.
            transport.recent[thread] = ref(original)
        except Exception:  # noqa: BLE001 - logging's contract: report, never raise
            self.handleError(record)

    def _message(self, record: LogRecord, fields: dict[str, Any]) -> object:
        """The message of a record that is not a plain string with good arguments."""
        message = record.msg
        if isinstance(message, str | bytes) and type(message) not in (str, bytes):
            found = dialects.rendered_event(record)
            if found is not None:
                rest, made = found
                self._add_exception(made, fields)
                return self._event(rest, record, fields, frozenset())
        if not self._bare:
            own = STANDARD_NAMES
            try:
                text, event = dialects.formatted(self, record, own, redact=self._redact)
            except Exception as error:  # noqa: BLE001 - a formatter can raise anything
                fields["format_error"] = f"{type(error).__name__}: {safe_text(error)}"
            else:
                if event is not None:
                    return self._event(event, record, fields, record.__dict__)
                return self._rendered(text, record, fields)
        if isinstance(message, Mapping) and not record.args:
            return self._event(message, record, fields, frozenset())
        try:
            return self._clean(record.getMessage())
        except Exception as error:  # noqa: BLE001 - str() of anything can raise anything
            fields["format_error"] = f"{type(error).__name__}: {safe_text(error)}"
            arguments = record.args
            if isinstance(arguments, tuple):
                fields["args"] = list(arguments)
            elif arguments:
                fields["args"] = arguments
            return safe_text(message)

    def _clean(self, text: object) -> object:
        """A text without its secrets, if all of it is JSON."""
        if self._redact and type(text) is str and text[:1] in _JSON:
            return dialects.scrubbed_json(text)
        return text

    def _rendered(self, text: Any, record: LogRecord, fields: dict[str, Any]) -> object:
        """Split the JSON of a formatter; a text that is none is the message."""
        event = dialects.parse_event(text)
        if event is None or (
            self._bare and ("event" not in event or _CONTEXTVARS not in _modules)
        ):
            return self._clean(text)
        extra = set(record.__dict__).difference(STANDARD_NAMES)
        return self._event(event, record, fields, extra)

    def _event(
        self,
        event: Mapping[Any, Any],
        record: LogRecord,
        fields: dict[str, Any],
        known: Collection[str],
    ) -> object:
        """Split a structured message into its text and fields, `known` ones left out."""
        if len(event) > _MOST_FIELDS:
            fields[encode.TRUNCATED_FIELDS] = str(len(event) - _MOST_FIELDS)
            event = dict(islice(event.items(), _MOST_FIELDS))
        text, rest, exception = dialects.event_fields(event, record)
        if exception is not None:
            fields["exception"] = exception
        for name, value in rest.items():
            if name not in known:
                add_field(fields, name, value, redact=self._redact)
        return self._clean(text if isinstance(text, str) else safe_text(text))

    def _add_context(self, record: LogRecord, fields: dict[str, Any]) -> None:
        if not self._transport.latest[0]:
            self._transport.renew()
        created = record.created
        try:
            age = created - clock_gettime_ns(CLOCK_REALTIME) / 1e9
            if abs(age) > 1:
                # It was made at another time: replayed, or under a frozen clock.
                fields["created"] = timestamp_bytes(int(created * 1e9)).decode()
        except (TypeError, ValueError, OverflowError):
            fields["created"] = safe_text(created)
        if self._location:
            set_own(fields, "file", record.pathname)
            set_own(fields, "line", record.lineno)
            set_own(fields, "function", record.funcName)
        if (contextvars := _modules.get(_CONTEXTVARS)) is not None:
            for name, value in contextvars.get_contextvars().items():
                if not is_merged(fields.get(name), value):
                    add_field(fields, name, value, redact=self._redact)
        for add in _contexts:
            add(record, fields)
        add_surroundings(fields, self._transport.process_fields)

    def _add_exception(self, record: LogRecord, fields: dict[str, Any]) -> None:
        exception = dialects.exception_of(record, self.formatter)
        if exception is not None:
            fields["exception"] = exception
        if record.stack_info:
            set_own(fields, "stack", record.stack_info)

    def write(self, message: Any) -> None:
        """Send a loguru message as a record: `logger.add(handler)` calls this.

        The `flush` that loguru calls next, in the same thread, does not wait.
        """
        if (record := dialects.log_record(message.record)).levelno >= self.level:
            self.handle_for(record, dialects.with_origin(record))
        self._written.add(get_ident())

    def stop(self) -> None:
        """Close: loguru calls this when the handler is removed."""
        self.close()

    def flush(self, timeout: float | None = FLUSH_TIMEOUT) -> bool:  # type: ignore[override]
        """Wait until all that this process logged before is with the durable sinks.

        Blocks for `timeout` seconds at most; None: as long as it takes. Does not wait
        where the handler's own lock is held, as `logging.shutdown` does before `close`.

        Returns:
            Whether it is. If not, the records are in the pipe, with the consumer, or in
            the spool; or some were dropped, here or by a durable sink, since the last
            call: then that is counted, and the log has a record of it.
        """
        if self._written and get_ident() in self._written:
            self._written.discard(get_ident())
            return False
        if self.lock is not None and self.lock._is_owned():  # type: ignore[attr-defined]
            return False
        return self._transport.flush(timeout)

    def close(self) -> None:
        """Flush and release. May be called twice.

        All handlers of a process together, closed by `dictConfig`, `logging.shutdown`
        or the exit, wait 5 seconds at most; other threads log meanwhile. What is not
        confirmed by then is with the consumer or in the spool, and stderr names it.
        """
        if self._open:
            self._open = False
            leave(self._transport)
        super().close()

    def descriptors(self) -> list[int]:
        """The numbers that it has open now, for `files_preserve` of a daemon library."""
        return self._transport.descriptors()

    def __repr__(self) -> str:
        level = logging.getLevelName(self.level)
        return f"<{type(self).__name__} {self._transport.destination.path} ({level})>"


Handler.__module__ = "logagg"


def add_context(add: Callable[[LogRecord, dict[str, Any]], None]) -> None:
    """Let a function add fields to every record of this process from now on."""
    _contexts.append(add)
    Handler._contextual = True


@contextmanager
def noting(note: Callable[[LogRecord, dict[str, Any]], None]) -> Iterator[None]:
    """Within, a function gets every record of this process with its fields."""
    before = Handler._contextual
    add_context(note)
    try:
        yield
    finally:
        _contexts.remove(note)
        Handler._contextual = before


def add_running(fields_now: Callable[[], dict[str, Any] | None]) -> None:
    """Let a function give fields of what runs now to every record, structlog's too."""
    if fields_now not in running:
        running.append(fields_now)
    Handler._contextual = True
