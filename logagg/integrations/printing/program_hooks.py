"""Uncaught exceptions that a hook of the program's own gets, each as one record.

A program, or a library for it (`rich.traceback.install`), may set `sys.excepthook` and
`threading.excepthook`. The hook is called as without logagg; what its thread prints
meanwhile on a captured stream is held. The exception is one record, unless the hook logs
it by itself, and the text that shows it (Python's form, or any other from `Traceback` to
the exception's name) is left out. The hook's other texts go on as the text that they are.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from logagg.client.handler import noting
from logagg.dialects.plain_text import without_colours
from logagg.integrations import excepthooks
from logagg.integrations.printing.timestamped_stdio import holding

__all__ = ["install", "reporting", "sending"]

_HEAD = "Traceback (most recent call last)"
_MAKER = "_make_invoke_excepthook"
"""The function of `threading` that makes what calls the hook at a thread's end."""

_ENDS: tuple[tuple[Any, str], ...] = (
    (os, "_exit"), (os, "abort"), (os, "kill"), (signal, "raise_signal"),
)  # fmt: skip
"""Functions with which a hook may end the process: nothing is held any more then."""


class _Report:
    """The record of an exception, and the text that a hook prints of it.

    Args:
        error: The exception.
        send: Makes the record, unless the hook has made one.
    """

    def __init__(self, error: BaseException, send: Callable[[], None]) -> None:
        self._error = error
        self._send = send
        self._held: dict[io.RawIOBase, bytes] = {}
        self._finished = False

    def write(self, stream: io.RawIOBase, data: bytes) -> None:
        """Hold what was printed."""
        self._held[stream] = self._held.get(stream, b"") + data
        if self._finished:
            self._go_on()

    def has(self, error: BaseException) -> bool:
        """Whether an exception is the hook's: its text is not wanted."""
        return error is self._error

    def finish(self) -> None:
        """Send the record and the text without the exception; what follows goes on."""
        if not self._finished:
            self._finished = True
            held, holding.by = holding.by, None
            try:
                self._send()
                self._go_on()
            finally:
                holding.by = held

    def _go_on(self) -> None:
        while self._held:
            stream, data = self._held.popitem()
            rest = _besides(data.decode(errors="surrogateescape"), self._error)
            held, holding.by = holding.by, None
            try:
                if rest.strip():
                    stream.write(rest.encode(errors="surrogateescape"))
            finally:
                holding.by = held


def _besides(text: str, error: BaseException) -> str:
    """A text without the lines that show an exception."""
    plain = without_colours(text)
    whole = "".join(traceback.format_exception(error))
    if whole in plain:
        before, _, after = plain.partition(whole)
        return before + after
    lines = plain.splitlines(keepends=True)
    first = next((n for n, line in enumerate(lines) if _HEAD in line), None)
    if first is None:
        return text
    name = type(error).__name__
    last = max((n for n, line in enumerate(lines) if name in line), default=first)
    if last <= first:
        return text
    more = {each.strip() for each in whole.splitlines()}
    while last + 1 < len(lines) and lines[last + 1].strip() in more:
        last += 1
    return "".join(lines[:first] + lines[last + 1 :])


@contextmanager
def reporting(
    error: BaseException, what: str, level: int, *, wanted: bool = True
) -> Iterator[None]:
    """Within, a hook is called for an exception, of which one record is made.

    Args:
        error: The exception.
        what: The begin of the record's message.
        level: The record's level.
        wanted: Whether there is a record if the hook makes none.
    """
    logged = not wanted

    def note(record: logging.LogRecord, _: dict[str, Any]) -> None:
        nonlocal logged
        logged |= (record.exc_info or (None, None))[1] is error

    def send() -> None:
        if not logged:
            info = (type(error), error, error.__traceback__)
            summary = excepthooks.summary(error)
            logger = logging.getLogger("logagg")
            logger.log(level, "%s %s", what, summary, exc_info=info)

    before = holding.by
    report = holding.by = _Report(error, send)
    originals = [getattr(module, name) for module, name in _ENDS]
    for (module, name), original in zip(_ENDS, originals, strict=True):
        setattr(module, name, _after(report.finish, original))
    try:
        with noting(note):
            yield
    finally:
        for (module, name), original in zip(_ENDS, originals, strict=True):
            setattr(module, name, original)
        holding.by = before
        report.finish()


def _after(first: Callable[[], None], original: Callable[..., Any]) -> Any:
    @wraps(original)
    def call(*args: Any, **options: Any) -> Any:
        first()
        return original(*args, **options)

    return call


def sending(hook: Callable[..., object]) -> Callable[..., object]:
    """A `sys.excepthook` that calls another one, and makes one record."""

    @wraps(hook)
    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        reported = isinstance(holding.by, _Report) and holding.by.has(error)
        if reported or not issubclass(kind, Exception):
            hook(kind, error, trace)
            return
        with reporting(error, "uncaught", logging.CRITICAL):
            hook(kind, error, trace)

    return report


def install() -> None:
    """Make one record of each exception that a thread's hook gets, from now on."""
    original = getattr(threading, _MAKER, None)
    if original is None:  # of another Python: what the hook prints is text
        return

    def make() -> Callable[[threading.Thread], None]:
        invoke = original()

        def call(thread: threading.Thread) -> None:
            error = sys.exc_info()[1]
            if not isinstance(error, Exception) or excepthooks.is_default(
                threading.excepthook
            ):
                invoke(thread)
                return
            with reporting(error, "uncaught in a thread:", logging.ERROR):
                invoke(thread)

        return call

    setattr(threading, _MAKER, make)
