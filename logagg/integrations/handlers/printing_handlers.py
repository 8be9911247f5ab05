"""Handlers of the program that print: their records are sent instead of the text.

A handler that is no `StreamHandler` may print in its `emit`, by `print`, `click.echo` or
`tqdm.write`. While a handler handles a record, what its thread prints on a captured
stream is held until the line ends. The line that has the record's message in it, and the
text of its exception, stand for the record, which is sent in their place; anything else
goes on as the text that it is. A handler that prints something else has its text as ever.

So it is with a `StreamHandler` or a sink of loguru's on a stream of the program's own
kind that passes on what it is given: a tee has its text, and the log has the record.

`handle` is replaced, and its code has the file name of `logging`'s own: what a handler
finds when it walks the stack (loguru's recipe does) is as before.
"""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from sys import getrefcount
from typing import Any

from logagg.dialects.plain_text import without_colours
from logagg.dialects.rendered_events import parse_event
from logagg.integrations.printing.timestamped_stdio import holding

__all__ = ["PrintedRecord", "StreamThatPrints", "held", "install", "sink_that_prints"]

_NEW_RECORDS = sys.version_info >= (3, 12)  # a filter may give another record


class PrintedRecord:
    """The text that a handler prints of one record while it handles it.

    Args:
        record: The record.
        send: Sends it; called once, as soon as its message was printed.
    """

    def __init__(
        self,
        record: logging.LogRecord,
        send: Callable[[logging.LogRecord], object],
    ) -> None:
        self._record = record
        self._send = send
        self._sent = False
        self._held: dict[io.RawIOBase, bytes] = {}

    def write(self, stream: io.RawIOBase, data: bytes) -> None:
        """Take what was printed: up to the end of a line it is held."""
        data = self._held.pop(stream, b"") + data
        if data.endswith(b"\n"):
            self._go_on(stream, data)
        else:
            self._held[stream] = data

    def close(self) -> None:
        """The record was handled: nothing is held any more."""
        while self._held:
            self._go_on(*self._held.popitem())

    def has(self, error: BaseException) -> bool:
        """Whether an exception is the record's, and goes with it."""
        info = self._record.exc_info
        if not info or info[1] is not error:
            return False
        self._send_once()
        return True

    def _go_on(self, stream: io.RawIOBase, data: bytes) -> None:
        rest = data
        with suppress(Exception):  # a message that cannot be made: it stays text
            rest = self._besides(data.decode()).encode()
        if rest:
            held, holding.by = holding.by, None
            try:
                stream.write(rest)
            finally:
                holding.by = held

    def _besides(self, text: str) -> str:
        """A text without the record, which is sent if it is in the text."""
        record = self._record
        left = text
        if not self._sent:
            plain = without_colours(text)
            span = _span_of(record.getMessage(), plain)
            if span is None:
                return text
            self._send_once()
            left = plain[: span[0]] + plain[span[1] :]
        for part in (_exception_of(record), record.stack_info):
            if part and part in left:
                before, _, after = left.partition(part)
                left = before + after.removeprefix("\n")
        return left if left.strip() else ""

    def _send_once(self) -> None:
        if not self._sent:
            self._sent = True
            self._send(self._record)


def _span_of(message: str, text: str) -> tuple[int, int] | None:
    """Begin and end of the lines of a text that have the message in them."""
    if not message:
        return None
    found = re.search(rf"(?<!\w){re.escape(message)}(?!\w)", text)
    start, end = found.span() if found else (-1, -1)
    if start < 0:
        start = end = _rendered_at(message, text)
        if start < 0:
            return None
    last = text.find("\n", end)
    return text.rfind("\n", 0, start) + 1, len(text) if last < 0 else last + 1


def _rendered_at(message: str, text: str) -> int:
    """Where a line of JSON begins that has the message as a value; -1: nowhere."""
    start = 0
    for line in text.splitlines(keepends=True):
        event = parse_event(line.strip())
        if event is not None and message in event.values():
            return start
        start += len(line)
    return -1


def _exception_of(record: logging.LogRecord) -> str | None:
    if record.exc_text or not record.exc_info or record.exc_info[1] is None:
        return record.exc_text
    return logging.Formatter().formatException(record.exc_info)


@contextmanager
def held(
    record: logging.LogRecord, send: Callable[[Any], object]
) -> Iterator[PrintedRecord]:
    """Within, what this thread prints of a record is held, and the record is sent."""
    before = holding.by
    printed = holding.by = PrintedRecord(record, send)
    try:
        yield printed
    finally:
        printed.close()
        holding.by = before


class StreamThatPrints:
    """A stream that loguru writes to, and that may print what it is given.

    Args:
        stream: The stream, of the program's own kind.
        send: Sends a message of loguru's.
    """

    def __init__(self, stream: Any, send: Callable[[Any], object]) -> None:
        self._stream = stream
        self._send = send

    def write(self, message: Any) -> None:
        """Write a message; the record goes to the log in place of what is printed."""
        with held(_as_printed(message), lambda _: self._send(message)):
            self._stream.write(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def sink_that_prints(
    sink: Callable[[Any], None], send: Callable[[Any], object]
) -> Callable[[Any], None]:
    """A loguru sink that does what a function does, but sends what it would print.

    Args:
        sink: The function.
        send: Sends a message of loguru's.
    """

    @wraps(sink)
    def sink_or_send(message: Any) -> None:
        with held(_as_printed(message), lambda _: send(message)):
            sink(message)

    return sink_or_send


def _as_printed(message: Any) -> logging.LogRecord:
    """A record with the message, and the text of the exception, that loguru has made."""
    text, said = without_colours(str(message)), message.record["message"]
    _, _, after = text.partition(said)
    _, _, exception = after.partition("\n")
    fields = {"msg": without_colours(said), "exc_text": exception.rstrip("\n") or None}
    return logging.makeLogRecord(fields)


def install(
    send: Callable[[logging.LogRecord], object],
    note: Callable[[logging.LogRecord], object],
) -> None:
    """Send the records of handlers that print on captured streams, from now on.

    Args:
        send: Sends a record.
        note: Gets each record that its handler has not let go: it may hold it back, and
            give it to another handler later.
    """

    def handle(self: logging.Handler, record: logging.LogRecord) -> Any:
        passed: Any = self.filter(record)
        if _NEW_RECORDS and isinstance(passed, logging.LogRecord):
            record = passed
        if passed:
            self.acquire()
            before = holding.by
            printed = holding.by = PrintedRecord(record, send)
            references = getrefcount(record)
            try:
                self.emit(record)
                if getrefcount(record) > references:
                    note(record)
            finally:
                printed.close()
                holding.by = before
                self.release()
        return passed

    original = logging.Handler.handle
    code = original.__code__
    handle.__code__ = handle.__code__.replace(
        co_filename=code.co_filename, co_name=code.co_name
    )
    handle.__doc__ = original.__doc__
    # These write to their stream, not by print: they are spared what it costs.
    logging.StreamHandler.handle = original  # type: ignore[method-assign]
    logging.Handler.handle = handle  # type: ignore[method-assign]
