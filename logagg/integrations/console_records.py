"""Records of the program's console handlers, sent as records instead of as their text.

A program sets up logging itself: `basicConfig`, `dictConfig`, handlers by hand, rich,
loguru, structlog. What such handlers write to the captured stdout or stderr would
arrive as text, without level, logger, fields and exception. Theory of operation:

- `StreamHandler.emit` and the `emit` of rich's handler are replaced. When the stream is
  a captured one, the record goes to the worker's transport; the handler's level and
  filters have been applied by then, and a message that a formatter of the program's own
  kind has changed is sent so (`as_formatted`). Any other stream is written as before,
  so files and buffers of the program work as written.
- What any other handler prints of a record is replaced by the record, too
  (`logagg.integrations.handlers.printing_handlers`).
- Above the root logger a `RootHandler` gets what no handler there sends to the console:
  after `basicConfig(filename=…)` or a `dictConfig` with files only, records still come.
  It goes when the program puts a console handler on the root logger, so that the levels
  and filters set there hold. The root logger itself has the program's handlers only.
- A record that passes several handlers is sent once: the transport knows the last
  record of each thread.
- structlog and loguru end in a function that is given text; they are configured to
  hand over the event instead.
- Children that the worker spawns do the same (`logagg.integrations.inherit`), and so do
  Python interpreters that it starts, through `startup/sitecustomize.py`.

- An exception that the program prints (`traceback.print_exc`) is one record, and so is
  a warning (`warnings.warn`), and an uncaught exception, in any thread
  (`logagg.integrations.excepthooks`).

Nothing here is undone: it belongs to a worker process, from its start to its end.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from inspect import iscoroutinefunction
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from logagg.client.fast import log_calls
from logagg.client.handler import Handler
from logagg.dialects.formatter_texts import as_formatted
from logagg.dialects.structlog_texts import event_record
from logagg.integrations import (
    celery,
    excepthooks,
    google_cloud,
    inherit,
    running_task,
)
from logagg.integrations.handlers import (
    logbook_records,
    printing_handlers,
    rendered_messages,
)
from logagg.integrations.handlers.queue_handlers import QueueHandlers, sent_as_it_is
from logagg.integrations.handlers.root_handler import (
    RootHandler,
    RootPlace,
    above_root,
)
from logagg.integrations.import_hooks import when_imported
from logagg.integrations.printing import (
    handler_errors,
    printed_exceptions,
    printed_warnings,
    program_hooks,
    timestamped_stdio,
)

__all__ = ["install"]

_CAPTURED = "LOGAGG_CAPTURED"
_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
_ATTACH = "logagg.integrations.console_records:install"


class Console:
    """Decides where the records of one worker's console handlers go.

    Args:
        handler: Sends records; also those of all loggers while no other does.
    """

    def __init__(self, handler: RootHandler) -> None:
        self.handler = handler
        self._captured = _captured_files()
        self._printed = frozenset(self._captured)  # by this process itself
        self.root = RootPlace(handler, self.reaches, above_root())

    def captures(self, stream: object) -> bool:
        """Whether what is written to a stream arrives at the consumer as text.

        By the open file, not by the number: a program may have put a file of its own
        on descriptor 1 or 2, or a buffer in the place of `sys.stderr`.
        """
        return self.name_of(stream) != ""

    def name_of(self, stream: object) -> str:
        """`stdout` or `stderr`, if the stream is captured as that, else nothing."""
        try:
            return self._captured.get(_file_of(stream.fileno()), "")  # type: ignore[attr-defined]
        except (AttributeError, OSError, ValueError):
            return ""

    def name_of_own(self, stream: object) -> str:
        """As `name_of`, but nothing for a stream that has its text for others, too."""
        return "" if self.passes_on(stream) else self.name_of(stream)

    def capture(self, stream: Any) -> None:
        """Count a stream as captured: another process writes its text to stderr."""
        self._captured[_file_of(stream.fileno())] = "stderr"

    def reaches(self, handler: logging.Handler) -> bool:
        """Whether a handler's records get to the consumer."""
        return inherit.reaches_log(handler) or self.captures(_stream_of(handler))

    def route(self, emit: Callable[[Any, logging.LogRecord], None]) -> Any:
        """Wrap a handler class's `emit`: captured streams get the record."""

        @wraps(emit)
        def routed(handler: Any, record: logging.LogRecord) -> None:
            stream = _stream_of(handler)
            if self.passes_on(stream):
                with printing_handlers.held(record, self.send):
                    emit(handler, record)
            elif self.captures(stream):
                self.send(record, as_formatted(handler, record))
            else:
                emit(handler, record)

        return routed

    def send(
        self, record: logging.LogRecord, made: logging.LogRecord | None = None
    ) -> None:
        """Send a record, unless it was sent when a handler held it back.

        Args:
            made: Sent in its place.
        """
        if sent_as_it_is.refs and sent_as_it_is.has(record):
            return
        if made is None or made is record:
            self.handler.emit(record)
        else:
            self.handler.handle_for(made, record)

    def passes_on(self, stream: Any) -> bool:
        """Whether a stream is of the program's own kind, and may print what it is given.

        It has no file of its own: none, or that of the stream that it prints on.
        """
        if stream is None or isinstance(stream, io.IOBase):
            return False
        try:
            return _file_of(stream.fileno()) in self._printed
        except (AttributeError, OSError, ValueError):
            return hasattr(stream, "write")


def install_worker(level: int | str) -> Console:
    """Call `install` in a worker, whose stdout and stderr are the captured ones."""
    files = (_file_of(descriptor) for descriptor in (1, 2))
    os.environ[_CAPTURED] = ",".join(f"{device}:{inode}" for device, inode in files)
    return install(level)


def install_interpreter(level: int | str) -> None:
    """Call `install` in an interpreter that a worker, or `logagg.start`, has started.

    Not where its stderr goes elsewhere: the program reads what it prints there, and
    must find all of it. Without capture (`start`) console handlers print as ever, and
    the root logger's handler sends the records besides.
    """
    if _file_of(2) in _captured_files():
        install(level)
    elif (inherited := inherit.beside()) is not None:
        install(inherited)


def install(level: int | str) -> Console:
    """Send this process's records to its consumer, however the program sets up logging.

    For a worker, and for the processes that it starts.

    Args:
        level: The root logger's level until the program sets one.
    """
    log_calls.install()
    console = Console(RootHandler())
    root = logging.getLogger()
    console.root.place()
    root.setLevel(level.upper() if isinstance(level, str) else level)
    logging.StreamHandler.emit = console.route(logging.StreamHandler.emit)  # type: ignore[method-assign]
    logging.StreamHandler.__init_subclass__ = _own_emits(console)  # type: ignore[method-assign]
    console.root.watch()
    console.root.watch_handlers()
    queued = QueueHandlers(console.handler, console.reaches)
    printing_handlers.install(console.handler.emit, queued.note)
    captured = [n for n in ("stdout", "stderr") if console.captures(getattr(sys, n))]
    timestamped_stdio.install(captured)
    traceback.print_exception = printed_exceptions.sending(
        traceback.print_exception, console.name_of_own, console.handler.handle
    )
    handler_errors.install(console.name_of_own, console.handler.handle)
    printed_warnings.install(console.name_of_own, console.handler.handle)
    when_imported("rich.logging", lambda module: _rich(console, module))
    when_imported("rich.console", lambda module: _rich_console(console, module))
    when_imported("rich.traceback", _rich_traceback)
    when_imported("loguru._logger", lambda module: _loguru(console, module))
    when_imported("logbook.handlers", lambda module: _logbook(console, module))
    rendered_messages.install()
    when_imported("structlog._output", lambda module: _structlog(console, module))
    when_imported("dramatiq.cli", lambda module: _dramatiq(console, module))
    celery.install(then=console.root.place)
    running_task.install()
    google_cloud.install()
    if _captured_files():
        excepthooks.install()
        program_hooks.install()
    inherit.hand_down(_ATTACH)
    inherit.hand_down_to_interpreters()
    return console


def _stream_of(handler: logging.Handler) -> object:
    stream = getattr(handler, "stream", None)
    if stream is None:
        console = getattr(handler, "console", None)  # rich's handler
        stream = getattr(console, "file", None)
    return stream


def _captured_files() -> dict[tuple[int, int], str]:
    """The files that the consumer reads, as the worker named them, with their names."""
    pairs = (each.partition(":") for each in os.environ.get(_CAPTURED, "").split(","))
    files = [(int(device), int(inode)) for device, colon, inode in pairs if colon]
    return dict(zip(files, ("stdout", "stderr"), strict=False))


def _file_of(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _own_emits(console: Console) -> Any:
    """Route console handlers of the program that write by an `emit` of their own."""

    def made(cls: Any, /, **options: Any) -> None:
        super(logging.StreamHandler, cls).__init_subclass__(**options)
        if "emit" in vars(cls) and not issubclass(cls, logging.FileHandler):
            cls.emit = console.route(cls.emit)

    return classmethod(made)


def _rich(console: Console, module: ModuleType) -> None:
    handler: Any = module.RichHandler
    handler.emit = console.route(handler.emit)


def _rich_console(console: Console, module: ModuleType) -> None:
    """Send the exception that `Console.print_exception` would print."""
    kind: Any = module.Console
    original = kind.print_exception

    @wraps(original)
    def print_exception(self: Any, *args: Any, **options: Any) -> None:
        error = sys.exc_info()[1]
        direct = not self.record and not self._buffer_index  # else it is for a text
        name = console.name_of_own(self.file) if direct else ""
        if error is None or not name:
            original(self, *args, **options)
        else:
            console.handler.handle(printed_exceptions.exception_record(error, name))

    kind.print_exception = print_exception


def _rich_traceback(module: ModuleType) -> None:
    original = module.install

    @wraps(original)
    def install(*args: Any, **options: Any) -> Any:
        before = original(*args, **options)
        sys.excepthook = program_hooks.sending(sys.excepthook)
        return before

    module.install = install  # type: ignore[attr-defined]


def _dramatiq(console: Console, module: ModuleType) -> None:
    """Its processes log into pipes, and the first one writes the text to stderr."""
    for name in ("setup_parent_logging", "setup_worker_logging", "setup_fork_logging"):
        setattr(module, name, _set_up_dramatiq(console, getattr(module, name)))


def _set_up_dramatiq(console: Console, original: Any) -> Any:
    def set_up(args: Any, *rest: Any, **options: Any) -> Any:
        made = original(args, *rest, **options)
        if not args.log_file:
            console.capture(options["stream"] if options else rest[-1])
            console.root.place()
        return made

    return set_up


def _loguru(console: Console, module: ModuleType) -> None:
    """Replace sinks on captured streams, the default one too, by one that sends.

    A sink that is a function, and prints, has its text replaced by the record.
    """
    add = module.Logger.add
    sent = threading.local()
    messages = import_module("logagg.dialects.loguru_messages")
    log_record, with_origin = messages.log_record, messages.with_origin

    def send(message: Any, handler: logging.Handler | None = None) -> None:
        record = log_record(message.record)
        if handler and (record.levelno < handler.level or not handler.filter(record)):
            return
        if getattr(sent, "time", None) is message.record["time"]:
            return  # by another sink on the console
        sent.time = message.record["time"]
        console.handler.handle_for(record, with_origin(record))

    @wraps(add)
    def adding(self: Any, sink: Any, **options: Any) -> Any:
        if isinstance(sink, _FUNCTIONS) and not iscoroutinefunction(sink):
            return add(self, printing_handlers.sink_that_prints(sink, send), **options)
        handler = None
        if isinstance(sink, logging.Handler) and not isinstance(sink, Handler):
            handler = sink
        if not isinstance(sink, logging.Handler) and console.passes_on(sink):
            passed = printing_handlers.StreamThatPrints(sink, send)
            return add(self, passed, **options)
        if not (console.captures(sink) or (handler and console.reaches(handler))):
            return add(self, sink, **options)
        kept = {k: v for k, v in options.items() if k in ("level", "filter", "catch")}

        def send_all(message: Any) -> None:
            send(message, handler)

        # Not formatting the exception saves what most of a call would cost.
        return add(self, send_all, format=lambda _: "{message}", **kept)

    module.Logger.add = adding


def _logbook(console: Console, module: ModuleType) -> None:
    logbook_records.replace_emit(module, console.captures, console.handler.handle_for)


_LEVEL_OF = {
    "debug": "debug", "info": "info", "warn": "warning", "warning": "warning",
    "error": "error", "err": "error", "failure": "error", "exception": "error",
    "critical": "critical", "fatal": "critical", "msg": "info", "log": "info",
}  # fmt: skip


def _structlog(console: Console, module: ModuleType) -> None:
    """Send an event instead of printing its text, where the text would be captured."""
    for name in ("PrintLogger", "WriteLogger", "BytesLogger"):
        logger = getattr(module, name, None)
        for method, level in _LEVEL_OF.items():
            if logger is not None and hasattr(logger, method):
                setattr(logger, method, _printing(console, vars(logger)[method], level))


def _printing(console: Console, method: Any, level: str) -> Any:
    @wraps(method)
    def log(self: Any, message: Any) -> Any:
        event = getattr(message, "event", None)
        if event is None or not console.captures(getattr(self, "_file", None)):
            return method(self, message)
        console.handler.handle(event_record(event, level))
        return None

    return log
