"""The viewer's hold on its process: output, signals, keys, and waiting for all of them.

`Terminal` is entered once by a command. While it is entered SIGINT and SIGTERM only set
`stopping` (a second SIGINT leaves at once), the keyboard gives single keys when both
ends are a terminal, and `wait` returns early when a key, a signal or the end of the
reader comes. All is put back on leaving, whatever happened.

A closed output pipe is an end, not an error: writes then raise `ReaderGone`.
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

from logagg.view.color import wants_color
from logagg.view.segments import Segment, inline, paint


class ReaderGone(BrokenPipeError):  # a state, as ConsumerGone
    """Nobody reads our output any more."""


class Terminal:
    """Standard output and error as one place to show things.

    Attributes:
        is_terminal: Standard output is a terminal.
        stopping: The number of the signal that asked us to end, or 0.
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
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
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

    # --- output ---

    def write(self, data: bytes) -> None:
        """Write all of it.

        Blocks as long as the reader does; a signal ends it between two writes only
        when it is the second one.

        Raises:
            ReaderGone: The pipe is closed.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody made our end non-blocking
                select.select([], [self._fd], [])
            except BrokenPipeError:
                raise ReaderGone from None

    def show(self, segments: Sequence[Segment]) -> None:
        """Write segments, in color when it is wanted.

        Raises:
            ReaderGone: The pipe is closed.
        """
        if segments:
            self.write(self.encoded(segments))

    def encoded(self, segments: Sequence[Segment]) -> bytes:
        """What `show` writes; what the encoding does not know becomes an escape."""
        text = paint(segments, self.color)
        return text.encode(self._encoding, "backslashreplace")

    def note(self, text: str) -> None:
        """Say something of our own, on standard error, unless asked to be quiet."""
        if self._quiet:
            return
        line = paint([("note", f"-- {inline(text)}"), ("", "\n")], self._note_color)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line)
            sys.stderr.flush()

    # --- waiting ---

    def wait(self, timeout: float, *descriptors: int) -> str:
        """Wait until a descriptor can be read, a key or a signal comes.

        Args:
            timeout: Seconds to wait at most.
            descriptors: What to wait for beside keys and signals.

        Returns:
            The keys that were pressed, often none.

        Raises:
            ReaderGone: Our output pipe was closed, even if we had nothing to write.
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
        if self.stopping and number == signal.SIGINT:
            self._cooked()
            os._exit(130)
        self.stopping = number

    def _on_continue(self, _number: int, _frame: FrameType | None) -> None:
        self._single_keys()  # the shell has put its own settings back

    def _single_keys(self) -> None:
        """Give keys at once and unseen; Ctrl-C and Ctrl-Z stay signals."""
        if os.tcgetpgrp(0) != os.getpgrp():
            return  # in the background the terminal is not ours to change
        if not self._restore:
            self._restore = termios.tcgetattr(0)
        tty.setcbreak(0, termios.TCSADRAIN)

    def _cooked(self) -> None:
        if self._restore:
            with contextlib.suppress(termios.error, OSError):
                if os.tcgetpgrp(0) == os.getpgrp():
                    termios.tcsetattr(0, termios.TCSADRAIN, self._restore)
