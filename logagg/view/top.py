"""`logagg top`: a live table of a consumer's status.

The status is requested once an interval; rates come from the difference. A terminal
shows the same text as a pipe, in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from logagg.core.units import span_text
from logagg.errors import ConsumerGone, LogaggError
from logagg.ipc import consumer_client
from logagg.render import markup
from logagg.render.markup import StyledText
from logagg.view.terminal import ReaderGone, Terminal

_WORKER = (
    ("worker", "worker"),
    ("pid", "pid"),
    ("process", "process"),
    ("records", "records"),
    ("bytes", "bytes"),
    ("lag", "lag"),
    ("dropped", "dropped"),
    ("restarts", "restarts"),
)
_SINK = (
    ("url", "sink"),
    ("written", "written"),
    ("queued_records", "queue"),
    ("queued_bytes", "queue bytes"),
    ("retries", "retries"),
    ("dropped", "dropped"),
    ("error", "error"),
)
_RATED = ("records", "bytes", "written")
_TEXTS = ("worker", "process", "sink", "error")


@dataclass(frozen=True, slots=True)
class Table:
    """A table's texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(
    state: Mapping[str, Any], before: Mapping[str, Any], seconds: float
) -> list[Table]:
    """The tables of workers and sinks, with rates since an earlier status. Pure."""
    made = []
    for kind, columns, key in (("workers", _WORKER, "worker"), ("sinks", _SINK, "url")):
        rows = [row for row in state.get(kind, []) if isinstance(row, Mapping)]
        earlier = {
            (row.get(key), row.get("pid")): row
            for row in before.get(kind, [])
            if isinstance(row, Mapping)
        }
        used = [(f, name) for f, name in columns if any(f in row for row in rows)]
        names: list[str] = []
        for field, name in used:
            names += [name, f"{name}/s"] if field in _RATED else [name]
        shown = []
        for row in rows:
            cells: list[str] = []
            old = earlier.get((row.get(key), row.get("pid")))
            for field, _ in used:
                value = row.get(field)
                is_plain = field == "pid" and isinstance(value, int)
                cells.append(str(value) if is_plain else _cell(value))
                if field in _RATED:
                    cells.append(_rate(row, old, field, seconds))
            shown.append(cells)
        made.append(Table(kind, names, shown))
    return made


def _cell(value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, Mapping):
        counts = (f"{name}={_cell(count)}" for name, count in value.items())
        return markup.inline(" ".join(counts))[:200]
    return markup.inline(str(value))[:60]


def _rate(
    row: Mapping[str, Any], old: Mapping[str, Any] | None, field: str, seconds: float
) -> str:
    new, past = row.get(field), (old or {}).get(field)
    if seconds <= 0 or not isinstance(new, int) or not isinstance(past, int):
        return "-"
    return f"{max(new - past, 0) / seconds:,.0f}"


def summary(state: Mapping[str, Any]) -> str:
    """The consumer itself, on one line."""
    parts = [
        f"run {_cell(state.get('run'))}",
        f"pid {markup.inline(str(state.get('pid', '?')))}",
    ]
    uptime = state.get("uptime")
    if isinstance(uptime, (int, float)):
        parts.append(f"up {span_text(uptime)}")
    names = ("records", "late", "pending", "viewers", "refused", "workers_ended")
    parts += [
        f"{state[name]:,} {name.replace('_', ' ')}"
        for name in names
        if isinstance(state.get(name), int)
    ]
    return "  ".join(parts)


def as_segments(state: Mapping[str, Any], found: Iterable[Table]) -> list[StyledText]:
    """The tables as text, numbers to the right."""
    shown: list[StyledText] = [("message", summary(state)), ("", "\n")]
    for table in found:
        shown.append(("", "\n"))
        rows = [table.columns, *table.rows]
        widths = [max(map(markup.width, cells)) for cells in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            cells = []
            for cell, name, width in zip(row, table.columns, widths, strict=True):
                space = " " * (width - markup.width(cell))
                cells.append(cell + space if name in _TEXTS else space + cell)
            text = "  ".join(cells).rstrip()
            shown += [("key" if not number else "", text), ("", "\n")]
        if not table.rows:
            shown += [("dim", f"no {table.title}"), ("", "\n")]
    return shown


def run(
    find: Callable[[], str | None], interval: float, *, once: bool, color: str
) -> int:
    """Show the tables until Ctrl-C or `q`; return the exit status.

    Raises:
        ConsumerGone: No consumer answers at the start; later its absence is shown.
    """
    path = find()
    if path is None:
        raise ConsumerGone("no logagg is running here")
    status = _Refresh(find, consumer_client.status(path))
    with Terminal(color, quiet=False, keys=not once) as terminal:
        try:
            if once or not terminal.is_terminal:
                return _print(terminal, status, interval, once=once)
            return _full_screen(terminal, status, interval)
        except ReaderGone:
            return 0


class _Refresh:
    """The last two statuses of a consumer, and the seconds between them."""

    def __init__(self, find: Callable[[], str | None], state: dict[str, Any]) -> None:
        self._find = find
        self._state = self._before = state
        self._requested_at = time.monotonic()
        self._seconds = 0.0
        self.gone = False

    def update(self) -> None:
        """Request the status again; without an answer the last one stays."""
        try:
            state = consumer_client.status(self._find() or "")
        except LogaggError:
            self.gone = True
            return
        now = time.monotonic()
        self._before, self._state = self._state, state
        self._seconds, self._requested_at = now - self._requested_at, now
        self.gone = False

    def text(self) -> list[StyledText]:
        """The summary and the tables."""
        state = self._state
        shown = as_segments(state, tables(state, self._before, self._seconds))
        if self.gone:
            note = "the consumer has ended; waiting for the next\n"
            shown.insert(0, ("level.warning", note))
        return shown


def _print(terminal: Terminal, status: _Refresh, interval: float, *, once: bool) -> int:
    while not terminal.stopping and "q" not in terminal.wait(interval):
        status.update()
        if status.gone:
            raise ConsumerGone("the consumer has ended")
        terminal.show(status.text())
        if once:
            break
    return 0


def _full_screen(terminal: Terminal, status: _Refresh, interval: float) -> int:
    from rich.console import Console  # slow to import, and only for a terminal
    from rich.live import Live as Screen  # the same
    from rich.text import Text  # the same

    console = Console(no_color=not terminal.color, highlight=False)
    with Screen(console=console, screen=True, auto_refresh=False) as screen:
        while not terminal.stopping:
            text = markup.paint(status.text(), terminal.color)
            shown = Text.from_ansi(text, no_wrap=True, overflow="ellipsis")
            screen.update(shown, refresh=True)
            if "q" in terminal.wait(interval):
                break
            status.update()
    return 0
