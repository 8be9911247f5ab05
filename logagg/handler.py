"""The drop-in `logging.Handler`.

Theory of operation
-------------------
`emit` makes the record's body (one `orjson.dumps`) and gives it to the process's
`Attachment`, which stamps it and writes it into the pipe. The body is made outside any
lock; stamp, seq and write happen under the attachment's lock, so the order in the pipe
is the order of the stamps.

The record is never changed. What other parts of the program put on it (extras, a
formatter's `message`, another handler's `exc_text`) is read, not trusted: any value
gets through as safe text (see `logagg.encode`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from logging import LogRecord
from time import CLOCK_REALTIME, clock_gettime_ns
from typing import Any
from weakref import ref

from logagg import address, records
from logagg.attach import CLOSE_TIMEOUT, Attachment, Overflow, attachment
from logagg.encode import body, exception_field, safe_text, scrubbed_body
from logagg.errors import ConfigError
from logagg.secret_names import PLACEHOLDER, is_secret
from logagg.wire import timestamp

__all__ = ["Handler"]

_LEVELS = {
    "DEBUG": "debug", "INFO": "info", "WARNING": "warning", "ERROR": "error",
    "CRITICAL": "critical",
}  # fmt: skip

_MODEL = tuple(vars(logging.makeLogRecord({})))
_COUNT = len(_MODEL)
_LAST = _MODEL[-1]
_HAS_TASK = "taskName" in _MODEL
_PLAIN = frozenset(_MODEL) | {"asctime", "message", "taskName"}
_OWN = frozenset(
    (
        "timestamp", "level", "worker", "seq", "level_number", "exception", "stack",
        "received", "late",
    )
)  # fmt: skip
TAKEN = _PLAIN | _OWN | {"logger", "pid"}
free: set[str] = set()  # names of extras seen that are neither ours nor a secret's
MAX_NAMES = 10_000
_CONTEXTVARS = "structlog.contextvars"
_modules = sys.modules

FLUSH_TIMEOUT = 5.0


class Handler(logging.Handler):
    """Send records to the one consumer of their target, which writes them in order.

    A log call builds one line and writes it to this process's own pipe. When the call
    returns, the record is with the kernel: the process may be killed, it is not lost.
    A call does not raise, starts no thread and takes no lock that another process
    could hold. It waits at most 0.1 s for a full pipe (`overflow="spool"`) and 0.5 s
    when a consumer must be started and others are in the way.

    The handler finds its consumer by `LOGAGG_SOCKET` when that is set, else by its
    target: all processes that name the same file share one consumer, which the first
    of them starts and which ends by itself behind the last.

    Args:
        filename: The file to append to, as NDJSON. Its directory must exist.
        sinks: Sink URLs (`"file:app.log"`, `"stdout:?format=console"`, …), besides
            `filename`. With neither, and no `LOGAGG_SOCKET`, records go to stderr.
        maxBytes: Rotate the file before it grows beyond this many bytes; 0: never.
        backupCount: How many rotated files to keep; 0 with `maxBytes`: all of them.
        overflow: What a call does when the pipe is full: `"spool"` (park the record on
            disk after 0.1 s), `"block"`, or `"drop_new"` (counted and announced).
        level: As for every handler.
        location: Also send `file`, `line` and `function` of the call.
        redact: Replace the values of extra fields whose names are those of secrets
            (`password`, `api_token`, … at any depth) before they leave the process.
            Default: yes, unless `LOGAGG_REDACT` is `no`.

    Raises:
        ConfigError: The file's directory is missing or not writable, the file is a
            directory, or an option has no meaning; nothing was started.

    A formatter that you set decides the text of `message`; the exception stays apart
    from it, in `exception`, with type, message, stack, causes and notes.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | None = None,
        *,
        sinks: Sequence[str] | str | None = None,
        maxBytes: int = 0,  # noqa: N803 - the names of RotatingFileHandler
        backupCount: int = 0,  # noqa: N803
        overflow: str = "spool",
        level: int | str = logging.NOTSET,
        location: bool = False,
        redact: bool | None = None,
    ) -> None:
        self._attachment = connected(
            filename, sinks, maxBytes, backupCount, overflow=overflow
        )
        self._location = location
        self._redact = redacting(redact)
        self._open = True
        self._bare = True
        records.install()
        super().__init__(level)

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Use the attachment's lock; logging resets it in a forked child, as ours."""
        super().createLock()
        self.lock = self._attachment.lock

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802
        """Set what makes `message`; None and the stdlib's defaults mean the bare text.

        `logging.basicConfig` gives every handler without a formatter its default
        one, `LEVEL:NAME:text`; that is nobody's wish here and is taken for none.
        """
        super().setFormatter(fmt)
        style = getattr(getattr(fmt, "_style", None), "_fmt", "")
        default = style in ("%(message)s", logging.BASIC_FORMAT)
        self._bare = fmt is None or (type(fmt) is logging.Formatter and default)

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit; no lock is held while the record is encoded."""
        if self.filters:
            passed = self.filter(record)
            if not passed:
                return passed
            if isinstance(passed, logging.LogRecord):
                record = passed
        self.emit(record)
        return record if sys.version_info >= (3, 12) else True

    # One function on purpose: each call saved is worth 60 ns on every record.
    def emit(self, record: logging.LogRecord) -> None:  # noqa: C901
        """Send the record. Never raises; see `logging.Handler.handleError`."""
        try:
            attached = self._attachment
            thread = record.thread
            recent = attached.recent.get(thread)
            if recent is not None and recent() is record:
                return  # it came by another handler or a second logger already
            attached.recent[thread] = ref(record)
            message = record.msg
            arguments = record.args
            plain = type(record) is LogRecord
            fields: dict[str, Any] = {"logger": record.name}
            if not plain or not self._bare or type(message) is not str:
                message = self._message(record, fields)
            elif arguments:
                try:
                    message = message % arguments
                except Exception:  # noqa: BLE001 - a bad format, or a broken __str__
                    message = self._message(record, fields)
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
                for name in names[start:]:
                    if name in free:
                        fields[name] = attributes[name]
                    elif name not in _PLAIN:
                        add(fields, name, attributes[name], redact=self._redact)
            if (
                self._location
                or _CONTEXTVARS in _modules
                or record.created.__class__ is not float
                or not attached.second - 1 < record.created < attached.second + 2
            ):
                self._add_context(record, fields)
            if record.exc_info or record.exc_text or record.stack_info:
                self._add_exception(record, fields)
            if _HAS_TASK and attributes.get("taskName") is not None:
                fields["task_name"] = attributes["taskName"]
            level = _LEVELS.get(record.levelname)
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
            attached.send(level, encoded)
        except Exception:  # noqa: BLE001 - logging's contract: tell, never raise
            self.handleError(record)

    def _message(self, record: LogRecord, fields: dict[str, Any]) -> object:
        """The message of a record that is not a plain string with good arguments."""
        if self._bare:
            return _message(record, fields)
        return self._formatted(record, fields)

    def _add_context(self, record: logging.LogRecord, fields: dict[str, Any]) -> None:
        created = record.created
        try:
            age = created - clock_gettime_ns(CLOCK_REALTIME) / 1e9
            if abs(age) > 1:
                # It was made at another time: replayed, or under a frozen clock.
                fields["created"] = timestamp(int(created * 1e9)).decode()
        except (TypeError, ValueError, OverflowError):
            fields["created"] = safe_text(created)
        if self._location:
            fields["file"] = record.pathname
            fields["line"] = record.lineno
            fields["function"] = record.funcName
        contextvars = sys.modules.get("structlog.contextvars")
        if contextvars is not None:
            for name, value in contextvars.get_contextvars().items():
                add(fields, name, value, redact=self._redact)

    def _formatted(self, record: logging.LogRecord, fields: dict[str, Any]) -> object:
        """Let the user's formatter make the message, without the traceback."""
        bare = copy(record)
        bare.exc_info = None
        bare.exc_text = None
        bare.stack_info = None
        try:
            return self.format(bare)
        except Exception as error:  # noqa: BLE001 - a formatter can raise anything
            fields["format_error"] = f"{type(error).__name__}: {safe_text(error)}"
            return _message(record, fields)

    def _add_exception(self, record: logging.LogRecord, fields: dict[str, Any]) -> None:
        info = record.exc_info
        error = info[1] if info else None
        if error is not None:
            assert info is not None
            text = None
            formatter = self.formatter
            if (
                formatter is not None
                and type(formatter).formatException
                is not logging.Formatter.formatException
            ):
                text = formatter.formatException(info)
            fields["exception"] = exception_field(error, info[2], text)
        elif record.exc_text:  # it came from another process, as text
            stack = record.exc_text
            kind, _, message = stack.rpartition("\n")[2].partition(": ")
            fields["exception"] = {"type": kind, "message": message, "stack": stack}
        if record.stack_info:
            fields["stack"] = record.stack_info

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:  # type: ignore[override]
        """Wait until all that this process logged before is with the durable sinks.

        Blocks for `timeout` seconds at most.

        Returns:
            Whether it is. When not, nothing is lost: the records are in the pipe, with
            the consumer, or in the spool.
        """
        return self._attachment.flush(timeout)

    def close(self) -> None:
        """Flush and let go, within 5 seconds. May be called twice."""
        if self._open:
            self._open = False
            self._attachment.users -= 1
            if self._attachment.users <= 0:
                self._attachment.close(CLOSE_TIMEOUT)
            else:
                self._attachment.flush(CLOSE_TIMEOUT)
        super().close()

    def __repr__(self) -> str:
        level = logging.getLevelName(self.level)
        return f"<{type(self).__name__} {self._attachment.path} ({level})>"


Handler.__module__ = "logagg"


def connected(
    filename: str | os.PathLike[str] | None,
    sinks: Sequence[str] | str | None,
    max_bytes: int = 0,
    backups: int = 0,
    *,
    overflow: str,
) -> Attachment:
    """The process's attachment for what a user asked for; nothing is started yet.

    Raises:
        ConfigError: As `Handler` does.
    """
    policy = _policy(overflow)
    urls = _urls(filename, sinks, max_bytes, backups)
    socket = os.environ.get("LOGAGG_SOCKET", "")
    if not urls and not socket:
        urls = ["stderr:?format=console"]
    path = socket or address.socket_path(address.identity(urls))
    attached = attachment(path, urls, elect=not socket)
    attached.overflow = policy
    return attached


def redacting(wanted: bool | None) -> bool:
    """Whether secrets are replaced: by argument, by environment, by default."""
    if wanted is not None:
        return wanted
    return os.environ.get("LOGAGG_REDACT", "").lower() not in (
        "no",
        "0",
        "false",
        "off",
    )


def _policy(overflow: str) -> Overflow:
    try:
        return Overflow(overflow)
    except ValueError:
        known = ", ".join(Overflow)
        raise ConfigError(f"overflow={overflow!r}: choose one of {known}") from None


def _urls(
    filename: str | os.PathLike[str] | None,
    sinks: Sequence[str] | str | None,
    max_bytes: int,
    backups: int,
) -> list[str]:
    """The sinks as URLs that mean the same in every directory."""
    if isinstance(sinks, str):
        sinks = [sinks]
    urls = []
    if filename is not None:
        path = _checked(os.fspath(filename))
        options = []
        for name, value in (("maxBytes", max_bytes), ("backupCount", backups)):
            if value < 0 or int(value) != value:
                raise ConfigError(f"{name}={value!r}: expected a number from 0 on")
        if max_bytes:
            options.append(f"max_bytes={int(max_bytes)}")
        if backups:
            options.append(f"backups={int(backups)}")
        urls.append(_file_url(path, "&".join(options)))
    elif max_bytes or backups:
        raise ConfigError("maxBytes and backupCount need a filename")
    urls += [absolute(sink) for sink in sinks or ()]
    return urls


def absolute(sink: object) -> str:
    """A sink's URL in the form that means the same in every directory.

    Raises:
        ConfigError: It is a file that cannot be written.
    """
    from logagg.sinks import build  # loads the sink's module, for its own checks

    text = str(getattr(sink, "url", sink))
    scheme, colon, rest = text.partition(":")
    if not colon:
        text = f"file:{text}"
    build(text)
    if scheme != "file" and colon:
        return text
    target, _, query = (rest if colon else text).partition("?")
    if "%" in target:
        from urllib.parse import unquote

        target = unquote(target)
    return _file_url(_checked(target), query)


def _file_url(path: str, query: str) -> str:
    quoted = path.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f"file:{quoted}?{query}" if query else f"file:{quoted}"


def _checked(name: Any) -> str:
    """The absolute form of a file that can be written, or an error that says why."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigError(f"filename={name!r}: expected the path of a file")
    path: str = os.path.abspath(name)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"cannot log to {path}: the directory {folder} is missing")
    if os.path.isdir(path):
        raise ConfigError(f"cannot log to {path}: it is a directory")
    where = path if os.path.exists(path) else folder
    if not os.access(where, os.W_OK):
        raise ConfigError(f"cannot log to {path}: no permission to write {where}")
    return path


def _message(record: logging.LogRecord, fields: dict[str, Any]) -> object:
    """The text of a message that is not a plain string."""
    message = record.msg
    if isinstance(message, Mapping) and not record.args:
        return _from_mapping(message, fields)
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - str() of anything can raise anything
        fields["format_error"] = f"{type(error).__name__}: {safe_text(error)}"
        arguments = record.args
        if isinstance(arguments, tuple):
            fields["args"] = list(arguments)
        elif arguments:
            fields["args"] = arguments
        return safe_text(message)


def _from_mapping(message: Mapping[Any, Any], fields: dict[str, Any]) -> object:
    """Take a structured message apart: its text, and the rest as fields."""
    rest = dict(message)
    text: object = ""
    for name in ("message", "event", "msg"):
        if name in rest:
            text = rest.pop(name)
            break
    for name, value in rest.items():
        add(fields, name, value)
    return text if isinstance(text, str) else safe_text(text)


def add(
    fields: dict[str, Any], name: Any, value: object, *, redact: bool = True
) -> None:
    """Add a field of the caller's, replaced if its name is a secret's.

    A clashing name gets underscores; none is dropped.
    """
    if type(name) is not str:
        name = safe_text(name)
    if is_secret(name):
        value = PLACEHOLDER if redact else value
    elif name not in TAKEN and len(free) < MAX_NAMES:
        free.add(name)
    while name in TAKEN or name in fields:
        name += "_"
    fields[name] = value
