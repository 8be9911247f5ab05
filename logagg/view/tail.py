"""`logagg tail`: show what matches, first of what is there, then of what comes.

The loop is the only place where sources, filter, look and terminal meet. It holds no
more than what was asked to be held: the last N lines, and what came while paused.

Exit status: 0 ended, or what to stop at was met; 1 nothing matched (only where an end
was asked for); 2 wrong usage; 3 no consumer; 130 Ctrl-C. A closed pipe ends it quietly.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from logagg.view import render, segments
from logagg.view.conditions import texts
from logagg.view.cursor import Cursor
from logagg.view.flow import Chosen, Context, Flow, Shape, last_matches
from logagg.view.levels import STANDARD, number_in
from logagg.view.match import Match, parse_line
from logagg.view.render import Look
from logagg.view.segments import Segment
from logagg.view.sources import Source
from logagg.view.terminal import ReaderGone, Terminal

_HELD = 10_000  # lines kept while paused; older ones are dropped, counted
_FLUSH_AFTER = 0.5  # seconds after which a row of repeats is shown though it may go on
_CURSOR_INTERVAL = 1.0
_TOGETHER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What tail is to do, apart from where lines come from.

    Attributes:
        match: What to show.
        look: How.
        shape: With which rules, differences and repeats.
        count: How many past lines; None for all.
        follow: Go on with what comes.
        before: Lines of context before a match.
        after: And behind it.
        most: Stop after so many matches; None for no limit.
        until: Stop after a record whose text this finds.
        timeout: Stop after so many seconds; None for never.
        cursor_file: Where to keep the place of the last line shown.
        color: `auto`, `always` or `never`.
        quiet: No notes.
    """

    match: Match
    look: Look = field(default_factory=Look)
    shape: Shape = field(default_factory=Shape)
    count: int | None = 10
    follow: bool = True
    before: int = 0
    after: int = 0
    most: int | None = None
    until: re.Pattern[str] | None = None
    timeout: float | None = None
    cursor_file: str | None = None
    color: str = "auto"
    quiet: bool = False

    @property
    def context(self) -> bool:
        """Lines around matches are wanted, so sources must not filter."""
        return bool(self.before or self.after)


class Printer:
    """Lines in, text out; counts, and knows when it is time to stop.

    Attributes:
        shown: Matches shown.
        done: What to stop at was met.
        cursor: The place of the last line shown.
        errors_only: Show nothing below level error.
    """

    def __init__(self, plan: Plan, terminal: Terminal) -> None:
        self._plan = plan
        self._terminal = terminal
        self._flow = Flow(plan.look, plan.shape)
        self._json = plan.look.format == "json"
        self._whole = plan.look.fields is None and not plan.look.hide
        self._bulk = (
            self._json
            and self._whole
            and plan.most is None
            and plan.until is None
            and not terminal.is_terminal
        )
        self._out: list[bytes] = []
        self._held = 0
        self.shown = 0
        self.done = False
        self.cursor: Cursor | None = None
        self.errors_only = False

    def lines(self, lines: Sequence[bytes]) -> None:
        """Show matching lines."""
        if not lines or self.done:
            return
        if self._bulk:
            self._terminal.write(b"\n".join(lines) + b"\n")
            self.shown += len(lines)
            self._remember(lines[-1])
            return
        self.chosen(Chosen(line, 0) for line in lines)

    def chosen(self, items: Iterable[Chosen]) -> None:
        """Show lines with what stands around them."""
        for item in items:
            if self.done:
                break
            if item.line:
                self._one(item)
            else:
                self._show([("rule", "--"), ("", "\n")])
        self._write()

    def rule(self, text: str) -> None:
        """Show a rule of the reader's own."""
        self.flush()
        self._show(self._flow.mark(text))
        self._write()

    def flush(self) -> None:
        """Show what is held back."""
        self._show(self._flow.flush())
        self._write()

    def _show(self, shown: Sequence[Segment]) -> None:
        if shown:
            self._put(self._terminal.encoded(shown))

    def _put(self, data: bytes) -> None:
        """Write later: the records of one batch go out together."""
        self._out.append(data)
        self._held += len(data)
        if self._held > _TOGETHER_BYTES:
            self._write()

    def _write(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        self._held = 0
        if data:
            self._terminal.write(data)

    def _one(self, item: Chosen) -> None:
        record = parse_line(item.line)
        if self.errors_only and not _is_error(record):
            return
        if self._json:
            self._show_json(item.line, record)
        else:
            self._show(self._flow.feed(record))
        self._remember(item.line)
        if item.context:
            return
        self.shown += 1
        plan = self._plan
        if plan.until is not None and any(
            plan.until.search(text[:16_384]) for text in texts(record)
        ):
            self.done = True
        if plan.most is not None and self.shown >= plan.most:
            self.done = True

    def _show_json(self, line: bytes, record: dict[str, Any]) -> None:
        if not self._whole:
            line = orjson.dumps(render.project(record, self._plan.look))
        if self._terminal.is_terminal:
            text = segments.json_visible(line.decode("utf-8", "replace"))
            line = text.encode("utf-8", "backslashreplace")
        self._put(line + b"\n")

    def _remember(self, line: bytes) -> None:
        if self._plan.cursor_file is not None:
            self.cursor = Cursor.of_line(line) or self.cursor


def _is_error(record: dict[str, Any]) -> bool:
    number = number_in(record)
    return number is not None and number >= STANDARD["error"]


class Tail:
    """One run of the command."""

    def __init__(self, plan: Plan, source: Source, terminal: Terminal) -> None:
        self._plan = plan
        self._source = source
        self._terminal = terminal
        self._printer = Printer(plan, terminal)
        self._context = Context(plan.before, plan.after) if plan.context else None
        self._paused: deque[bytes] | None = None
        self._missed = 0
        self._deadline = (
            time.monotonic() + plan.timeout if plan.timeout is not None else None
        )
        self._saved: tuple[float, Cursor | None] = (0.0, None)

    def run(self) -> int:
        """Show everything; return the exit status.

        Raises:
            ConfigError, ConsumerGone: As the source does.
        """
        try:
            self._past()
            self._follow()
            self._printer.flush()
        except ReaderGone:
            return 0
        finally:
            self._save_cursor(force=True)
        if self._terminal.stopping == signal.SIGINT:
            return 130
        if self._terminal.stopping:
            return 128 + self._terminal.stopping
        if self._expired() and not self._source.reachable():
            return 3
        ended = not self._plan.follow or self._expired() or self._source.ended()
        return 1 if ended and not self._printer.done and not self._printer.shown else 0

    def _over(self) -> bool:
        return bool(self._printer.done or self._terminal.stopping or self._expired())

    def _expired(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _past(self) -> None:
        if self._context is None:
            for lines in self._source.past(self._plan.count):
                self._printer.lines(lines)
                if self._over():
                    return
            return
        context, match, count = self._context, self._plan.match, self._plan.count
        batches = self._source.past(0 if count == 0 else None)
        around = (
            item
            for lines in batches
            for item in context.feed(lines, match.lines(lines))
        )
        if count is None:
            self._printer.chosen(around)
        elif count:
            self._printer.chosen(last_matches(around, count))

    def _follow(self) -> None:
        held_since = time.monotonic()
        while not self._over():
            lines = self._source.poll()
            if lines:
                self._take(lines)
                held_since = time.monotonic()
                self._save_cursor()
                if self._over():
                    return
            if self._source.ended():
                return
            if time.monotonic() - held_since > _FLUSH_AFTER:
                self._printer.flush()
            self._save_cursor()
            keys = self._terminal.wait(
                0 if lines else self._timeout(), *self._source.descriptors()
            )
            for key in keys:
                self._press(key)

    def _timeout(self) -> float:
        pause = min(self._source.pause(), _FLUSH_AFTER)
        if self._deadline is not None:
            pause = min(pause, self._deadline - time.monotonic())
        return pause

    def _take(self, lines: list[bytes]) -> None:
        if self._paused is not None:
            self._missed += max(len(self._paused) + len(lines) - _HELD, 0)
            self._paused.extend(lines)
        else:
            self._print(lines)

    def _print(self, lines: list[bytes]) -> None:
        if self._context is None:
            self._printer.lines(lines)
        else:
            matched = self._plan.match.lines(lines)
            self._printer.chosen(self._context.feed(lines, matched))

    def _press(self, key: str) -> None:
        terminal, printer = self._terminal, self._printer
        if key in "\r\n":
            printer.rule(time.strftime("%H:%M:%S"))
        elif key == "q":
            printer.done = True
        elif key == "c":
            terminal.write(b"\x1b[H\x1b[2J\x1b[3J")
        elif key == "e":
            printer.errors_only = not printer.errors_only
            terminal.note("errors only" if printer.errors_only else "all levels again")
        elif key == " " and self._paused is None:
            self._paused = deque(maxlen=_HELD)
            terminal.note("paused; Space goes on")
        elif key == " " and self._paused is not None:
            lines, self._paused = list(self._paused), None
            lost = f", {self._missed} older ones dropped" if self._missed else ""
            terminal.note(f"{len(lines)} records came meanwhile{lost}")
            self._missed = 0
            self._print(lines)

    def _save_cursor(self, *, force: bool = False) -> None:
        path, cursor = self._plan.cursor_file, self._printer.cursor
        saved_at, saved = self._saved
        now = time.monotonic()
        if path is None or cursor is None or cursor == saved:
            return
        if force or now - saved_at >= _CURSOR_INTERVAL:
            write_cursor(path, cursor)
            self._saved = (now, cursor)


def write_cursor(path: str, cursor: Cursor) -> None:
    """Replace the cursor file; a reader sees the old or the new one, whole."""
    new = f"{path}.{os.getpid()}.new"
    with open(new, "w", encoding="utf-8") as file:
        file.write(f"{cursor}\n")
    os.replace(new, path)


def read_cursor(path: str) -> Cursor | None:
    """The cursor in a file, or None when there is no such file yet.

    Raises:
        ConfigError: The file holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return Cursor.parse(file.read())
    except FileNotFoundError:
        return None
