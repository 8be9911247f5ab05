"""A viewer's process: output, signals, keys, and one wait for all of them.

A command enters `Terminal` once. Inside, SIGINT and SIGTERM only set `stopping` (a
second SIGINT exits at once), single keys are read when both ends are a terminal, and
`wait` returns early at a key or a signal. Everything is restored on leaving.

A closed output pipe is an end, not an error: it raises `ReaderGone`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType
from typing import Any, Self

from logagg.render.markup import (
    StyledText,
    inline,
    json_visible,
    paint,
    wants_color,
)


class Interrupted(Exception):
    """A signal asks for the end, in the middle of reading."""


class ReaderGone(BrokenPipeError):  # a state, as ConsumerGone
    """The reader of standard output has closed it."""


class Terminal:
    """Standard output for records, standard error for notes.

    Attributes:
        is_terminal: Standard output is a terminal.
        color: Escape codes are written.
        stopping: The number of the signal that requested the end, or 0.
    """

    def __init__(self, color: str, *, quiet: bool, keys: bool = False) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.color = wants_color(color, os.environ, self.is_terminal)
        self._note_color = wants_color(color, os.environ, sys.stderr.isatty())
        self._quiet = quiet
        self._keys = keys and self.is_terminal and sys.stdin.isatty()
        self._fd = sys.stdout.fileno()
        self._encoding = sys.stdout.encoding or "utf-8"
        self.stopping = 0
        self._restore: list[Any] = []
        self._wake_read = self._wake_write = -1

    def __enter__(self) -> Self:
        sys.stdout.flush()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._old_wake = signal.set_wakeup_fd(
            self._wake_write, warn_on_full_buffer=False
        )
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {n: signal.signal(n, self._on_signal) for n in numbers}
        if self._keys:
            self._single_keys()
            self._handlers[signal.SIGCONT] = signal.signal(
                signal.SIGCONT, self._on_continue
            )
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wake)
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._cooked()

    def check(self) -> None:
        """Raise `Interrupted` when a signal asks for the end."""
        if self.stopping:
            raise Interrupted

    # --- output ---

    def write(self, data: bytes) -> None:
        """Write all of it; blocks while the reader does not read.

        Raises:
            ReaderGone: The pipe is closed.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # another process set O_NONBLOCK
                select.select([], [self._fd], [])
            except BrokenPipeError:
                raise ReaderGone from None

    def show(self, segments: Sequence[StyledText]) -> None:
        """Write styled text.

        Raises:
            ReaderGone: The pipe is closed.
        """
        if segments:
            self.write(self.encoded(segments))

    def json(self, line: bytes) -> bytes:
        """A line of JSON as it may be written: on a terminal nothing in it acts there."""
        if not self.is_terminal:
            return line
        text = json_visible(line.decode("utf-8", "replace"))
        return text.encode("utf-8", "backslashreplace")

    def encoded(self, segments: Sequence[StyledText]) -> bytes:
        """The bytes that `show` writes; escapes for what the encoding lacks."""
        text = paint(segments, self.color)
        return text.encode(self._encoding, "backslashreplace")

    def note(self, text: str) -> None:
        """Write a message to standard error, unless quiet."""
        if self._quiet:
            return
        line = paint([("note", f"-- {inline(text)}"), ("", "\n")], self._note_color)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line)
            sys.stderr.flush()

    # --- waiting ---

    def wait(self, timeout: float, *descriptors: int) -> str:
        """Wait for a readable descriptor, a key or a signal, at most `timeout` seconds.

        Returns:
            The keys that were pressed, often none.

        Raises:
            ReaderGone: The output pipe was closed, though nothing was written.
        """
        poll = select.poll()
        poll.register(self._fd, 0)
        poll.register(self._wake_read, select.POLLIN)
        if self._keys:
            poll.register(0, select.POLLIN)
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        pressed = ""
        for descriptor, event in poll.poll(max(timeout, 0) * 1000):
            if descriptor == self._fd and event & (select.POLLERR | select.POLLHUP):
                raise ReaderGone
            if descriptor == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 512)
            elif descriptor == 0 and self._keys:
                with contextlib.suppress(OSError):
                    pressed = os.read(0, 64).decode("utf-8", "replace")
                if not pressed:
                    self._keys = False
        return pressed

    # --- signals and keys ---

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stopping:
            self._cooked()
            os._exit(128 + number)
        self.stopping = number

    def _on_continue(self, _number: int, _frame: FrameType | None) -> None:
        self._single_keys()  # the shell has restored its own settings

    def _single_keys(self) -> None:
        """Read keys at once, without echo; Ctrl-C and Ctrl-Z stay signals."""
        if not _in_foreground():
            return  # a background process must not change the terminal
        if not self._restore:
            self._restore = termios.tcgetattr(0)
        tty.setcbreak(0, termios.TCSADRAIN)

    def _cooked(self) -> None:
        if self._restore:
            with contextlib.suppress(termios.error, OSError):
                if _in_foreground():
                    termios.tcsetattr(0, termios.TCSADRAIN, self._restore)


def _in_foreground() -> bool:
    """Whether standard input is the controlling terminal, and this process its job."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # a terminal, but not the one that controls this process
        return False
