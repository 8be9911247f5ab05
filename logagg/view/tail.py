"""`logagg tail`: show what matches, of the past lines first, then of new ones.

The loop is the only place where sources, filter, renderer and terminal meet. Its memory
is bounded: the last N lines, and the lines that came while it was paused.

Exit status: 0 ended, or the stop condition was met; 1 nothing matched (only where an
end was requested); 2 wrong usage; 3 no consumer; 130 Ctrl-C. A closed output pipe ends
it with 0.
"""

from __future__ import annotations

import re
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from logagg.core.levels import STANDARD, number_in
from logagg.core.line import parse_line
from logagg.filters.fields import texts
from logagg.filters.matcher import Match
from logagg.filters.regex import LIMIT
from logagg.render.layout import LayoutOptions, project
from logagg.render.markup import StyledText
from logagg.render.renderer import Renderer, rule
from logagg.view.last_lines import most_bytes
from logagg.view.sources import Cursor, TailSource
from logagg.view.terminal import Interrupted, ReaderGone, Terminal

_PAUSED_LINES = 10_000  # kept while paused; older ones are dropped, counted
_FLUSH_AFTER = 0.5  # seconds after which repeats are shown though more may come
_CURSOR_INTERVAL = 1.0
_WRITE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TailPlan:
    """The options of one run, apart from its source.

    Attributes:
        match: The filter.
        layout: The format of records.
        count: Number of past lines; None for all.
        follow: Continue with new lines.
        before: Lines of context before a match.
        after: Lines of context after it.
        most: Stop after so many matches; None for no limit.
        until: Stop after a record in whose text this is found.
        timeout: Stop after so many seconds; None for never.
        cursor_file: The file for the place of the last line shown.
        color: `auto`, `always` or `never`.
        quiet: Show no notes.
    """

    match: Match
    layout: LayoutOptions = field(default_factory=LayoutOptions)
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
        """Whether lines around matches are shown, so that sources must not filter."""
        return bool(self.before or self.after)


@dataclass(frozen=True, slots=True)
class ContextLine:
    """A line to show.

    Attributes:
        line: The line, or b"" for a break between groups.
        match: The number, from 1, of the match that it is or is near to.
        context: It is not a match itself.
    """

    line: bytes
    match: int
    context: bool = False


class Context:
    """Lines before and after each match, as grep's -A and -B; overlaps merge."""

    def __init__(self, before: int, after: int) -> None:
        self._before: deque[bytes] = deque(maxlen=before)
        self._after = after
        self._left = 0
        self._count = 0
        self._skipped = False  # lines were left out since the last group

    def feed(
        self, lines: Sequence[bytes], matched: Sequence[bytes]
    ) -> Iterator[ContextLine]:
        """The lines to show of these, given those that match (the same objects)."""
        matches = iter(matched)
        wanted = next(matches, None)
        for line in lines:
            if line is wanted:
                wanted = next(matches, None)
                self._count += 1
                if self._skipped and self._count > 1:
                    yield ContextLine(b"", self._count)
                for earlier in self._before:
                    yield ContextLine(earlier, self._count, True)
                self._before.clear()
                self._skipped = False
                self._left = self._after
                yield ContextLine(line, self._count)
            elif self._left:
                self._left -= 1
                yield ContextLine(line, self._count, True)
            elif self._before.maxlen:
                if len(self._before) == self._before.maxlen:
                    self._skipped = True
                self._before.append(line)
            else:
                self._skipped = True


def last_matches(lines: Iterable[ContextLine], count: int) -> list[ContextLine]:
    """The last so many matches and their context, fewer where the lines are long."""
    kept: deque[ContextLine] = deque()
    held, most = 0, most_bytes(count)
    for item in lines:
        kept.append(item)
        held += len(item.line)
        while kept and (
            kept[0].match <= item.match - count or (held > most and len(kept) > 1)
        ):
            held -= len(kept.popleft().line)
    while kept and not kept[0].line:
        kept.popleft()
    return list(kept)


class Printer:
    """Writer of lines to the terminal; knows when to stop.

    Attributes:
        shown: Number of matches shown.
        done: A stop condition was met.
        cursor: The place of the last line shown.
        errors_only: Show nothing below level error.
    """

    def __init__(self, plan: TailPlan, terminal: Terminal) -> None:
        self._plan = plan
        self._terminal = terminal
        self._renderer = Renderer(plan.layout)
        self._json = plan.layout.format == "json"
        self._whole = plan.layout.fields is None and not plan.layout.hide
        self._unchanged = (
            self._json
            and self._whole
            and plan.most is None
            and plan.until is None
            and not terminal.is_terminal
        )
        self._out: list[bytes] = []
        self._out_bytes = 0
        self.shown = 0
        self.done = False
        self.cursor: Cursor | None = None
        self.errors_only = False

    def lines(self, lines: Sequence[bytes]) -> None:
        """Show matching lines."""
        if not lines or self.done:
            return
        if self._unchanged:
            self._terminal.write(b"\n".join(lines) + b"\n")
            self.shown += len(lines)
            self._remember(lines[-1])
            return
        self.with_context(ContextLine(line, 0) for line in lines)

    def with_context(self, items: Iterable[ContextLine]) -> None:
        """Show matching lines and their context."""
        for item in items:
            if self.done:
                break
            if item.line:
                self._record(item)
            else:
                self._show([("rule", "--"), ("", "\n")])
        self._write()

    def rule(self, text: str) -> None:
        """Show a rule that the user asked for."""
        self.flush()
        self._show(rule(text))
        self._write()

    def flush(self) -> None:
        """Show repeats that are held back."""
        self._show(self._renderer.flush())
        self._write()

    def _show(self, shown: Sequence[StyledText]) -> None:
        if shown:
            self._put(self._terminal.encoded(shown))

    def _put(self, data: bytes) -> None:
        """Write later: the records of a batch together."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > _WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if data:
            self._terminal.write(data)

    def _record(self, item: ContextLine) -> None:
        record = parse_line(item.line)
        if self.errors_only and (number_in(record) or 0) < STANDARD["error"]:
            return
        if self._json:
            self._put_json(item.line, record)
        else:
            self._show(self._renderer.feed(record))
        self._remember(item.line)
        if item.context:
            return
        self.shown += 1
        plan = self._plan
        if plan.until is not None and any(
            plan.until.search(text[:LIMIT]) for text in texts(record)
        ):
            self.done = True
        if plan.most is not None and self.shown >= plan.most:
            self.done = True

    def _put_json(self, line: bytes, record: dict[str, Any]) -> None:
        if not self._whole:
            line = orjson.dumps(project(record, self._plan.layout))
        self._put(self._terminal.json(line) + b"\n")

    def _remember(self, line: bytes) -> None:
        if self._plan.cursor_file is not None:
            self.cursor = Cursor.of_line(line) or self.cursor


class Tail:
    """One run of the command."""

    def __init__(self, plan: TailPlan, source: TailSource, terminal: Terminal) -> None:
        self._plan = plan
        self._source = source
        self._terminal = terminal
        self._printer = Printer(plan, terminal)
        self._context = Context(plan.before, plan.after) if plan.context else None
        self._paused: deque[bytes] | None = None
        self._dropped = 0
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
        except Interrupted:
            pass
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
        context, count = self._context, self._plan.count
        if context is None:
            for lines in self._source.past(count):
                self._printer.lines(lines)
                if self._over():
                    return
            return
        around = (
            item
            for lines in self._source.past(0 if count == 0 else None)
            for item in context.feed(lines, self._plan.match.lines(lines))
        )
        if count is None:
            self._printer.with_context(around)
        elif count:
            self._printer.with_context(last_matches(around, count))

    def _follow(self) -> None:
        last_lines_at = time.monotonic()
        while not self._over():
            lines = self._source.poll()
            if lines:
                self._take(lines)
                last_lines_at = time.monotonic()
                self._save_cursor()
                if self._over():
                    return
            if self._source.ended():
                return
            if time.monotonic() - last_lines_at > _FLUSH_AFTER:
                self._printer.flush()
            self._save_cursor()
            timeout = 0 if lines else self._timeout()
            for key in self._terminal.wait(timeout, *self._source.descriptors()):
                self._press(key)

    def _timeout(self) -> float:
        pause = min(self._source.pause(), _FLUSH_AFTER)
        if self._deadline is not None:
            pause = min(pause, self._deadline - time.monotonic())
        return pause

    def _take(self, lines: list[bytes]) -> None:
        if self._paused is None:
            self._print(lines)
        else:
            self._dropped += max(len(self._paused) + len(lines) - _PAUSED_LINES, 0)
            self._paused.extend(lines)

    def _print(self, lines: list[bytes]) -> None:
        if self._context is None:
            self._printer.lines(lines)
        else:
            matched = self._plan.match.lines(lines)
            self._printer.with_context(self._context.feed(lines, matched))

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
            self._paused = deque(maxlen=_PAUSED_LINES)
            terminal.note("paused; Space continues")
        elif key == " " and self._paused is not None:
            lines, self._paused = list(self._paused), None
            lost = f", {self._dropped} older ones dropped" if self._dropped else ""
            terminal.note(f"{len(lines)} records came meanwhile{lost}")
            self._dropped = 0
            self._print(lines)

    def _save_cursor(self, *, force: bool = False) -> None:
        path, cursor = self._plan.cursor_file, self._printer.cursor
        saved_at, saved = self._saved
        now = time.monotonic()
        if path is None or cursor is None or cursor == saved:
            return
        if force or now - saved_at >= _CURSOR_INTERVAL:
            cursor.save(path)
            self._saved = (now, cursor)
