"""A process's captured stdout and stderr, whose lines carry the time of their writing.

What a worker prints goes through a pipe to the consumer, which reads it a moment later.
To be ordered among the worker's records, each line that Python code prints has a time
mark before its newline (`logagg.core.line.mark_printed`), which the consumer takes off.
Bytes that are written in other ways (C code, `os.write`, subprocesses) have none and get
the time at which they are read.

The stream is what python makes with `-u`: every write goes to the descriptor at once, so
nothing printed is lost with the process. When the program puts something else on the
descriptor (`os.dup2`), no marks are added any more.

A print makes several writes, and other threads, and forked processes, may write between
them. Their output is in frames that name the thread, so that the consumer makes the
lines of each by themselves (`logagg.core.line.frame_thread`). The worker's first thread
writes without: what is in no frame is its own, and costs nothing more.

While a handler of the program handles a record, what its thread prints may be the text
of that record: it is held then (`logagg.integrations.handlers.printing_handlers`).
"""

from __future__ import annotations

import io
import os
import sys
import threading
from _thread import get_ident, get_native_id  # gevent replaces those of `threading`
from collections.abc import Collection
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any, Protocol

from logagg.core.line import frame_thread, mark_printed

__all__ = ["Holder", "holding", "install", "install_worker"]


class Holder(Protocol):
    """Takes what a thread prints in place of the stream."""

    def write(self, stream: io.RawIOBase, data: bytes) -> None:
        """Take what was written on a stream."""

    def has(self, error: BaseException) -> bool:
        """Whether the text of an exception is not wanted."""


class _Holding(threading.local):
    """Per thread: who takes what it prints; None: it is written.

    Attributes:
        unfinished: The descriptor on which it has begun a line that does not overwrite
            itself; 0: none.
    """

    by: Holder | None = None
    unfinished = 0


_NEWLINE = 10

holding = _Holding()


class _Plain:
    """The thread that writes without frames; 0: none, as in a forked process."""

    thread = 0

    def forget(self) -> None:
        self.thread = 0


_plain = _Plain()
os.register_at_fork(after_in_child=_plain.forget)


class _MarkedStream(io.FileIO):
    """A descriptor's raw stream that marks the ends of lines, and who writes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        status = os.fstat(descriptor)
        self._captured = (status.st_dev, status.st_ino)

    def write(self, data: Any) -> int:
        """Write all of it; blocks as the descriptor does."""
        text = bytes(data)
        holder = holding.by
        if text and holder is None:
            goes_on = text[-1] != _NEWLINE and b"\r" not in text
            holding.unfinished = self.fileno() if goes_on else 0
        plain = get_ident() == _plain.thread
        if b"\n" in text or holder is not None or not plain:
            status = os.fstat(self.fileno())
            if (status.st_dev, status.st_ino) == self._captured:
                if holder is not None:
                    holder.write(self, text)
                    return len(text)
                marked = text
                if b"\n" in text:
                    marked = mark_printed(text, clock_gettime_ns(CLOCK_MONOTONIC))
                pieces = [marked]
                if not plain:  # by a number that no later thread of the process has
                    pieces = frame_thread(marked, b"%x" % get_native_id())
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[super().write(rest) or 0 :]
                return len(text)
        return super().write(text) or 0


def install_worker() -> None:
    """Call `install` in a worker, whose first thread writes without frames."""
    _plain.thread = get_ident()
    install()


def install(names: Collection[str] = ("stdout", "stderr")) -> None:
    """Replace `sys.stdout` and `sys.stderr`, or one of them, by marked streams."""
    for name in names:
        descriptor = 1 if name == "stdout" else 2
        old = getattr(sys, name)
        if not isinstance(old, io.TextIOWrapper) or isinstance(
            old.buffer, _MarkedStream
        ):
            continue
        old.flush()
        fresh = io.TextIOWrapper(
            _MarkedStream(descriptor),
            encoding=old.encoding,
            errors=old.errors,
            newline="\n",
            write_through=True,
        )
        fresh.mode = "w"  # type: ignore[misc]
        setattr(sys, name, fresh)
        setattr(sys, f"__{name}__", fresh)
