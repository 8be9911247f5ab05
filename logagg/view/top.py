"""`logagg top`: a live table of what a consumer says of itself.

Asks for the status once an interval and shows rates from the difference. The table is
rich's; where it is not installed, or standard output is no terminal, plain text comes
instead, in the same columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from logagg.errors import ConsumerGone, LogaggError
from logagg.view import live, segments
from logagg.view.flow import span_text
from logagg.view.segments import Segment
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


@dataclass(frozen=True, slots=True)
class Table:
    """A table ready to be shown."""

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
                cells.append(str(value) if field == "pid" else _cell(value))
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
        return " ".join(f"{name}={count:,}" for name, count in value.items())
    return segments.inline(str(value))[:60]


def _rate(
    row: Mapping[str, Any], old: Mapping[str, Any] | None, field: str, seconds: float
) -> str:
    new, past = row.get(field), (old or {}).get(field)
    if seconds <= 0 or not isinstance(new, int) or not isinstance(past, int):
        return "-"
    return f"{max(new - past, 0) / seconds:,.0f}"


def summary(state: Mapping[str, Any]) -> str:
    """The consumer itself, on one line."""
    parts = [f"run {_cell(state.get('run'))}", f"pid {state.get('pid', '?')}"]
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


def as_segments(state: Mapping[str, Any], found: Iterable[Table]) -> list[Segment]:
    """The tables as text."""
    shown: list[Segment] = [("message", summary(state)), ("", "\n")]
    for table in found:
        widths = [
            max(segments.width(row[i]) for row in [table.columns, *table.rows])
            for i in range(len(table.columns))
        ]
        shown.append(("", "\n"))
        for number, row in enumerate([table.columns, *table.rows]):
            cells = [
                cell + " " * (width - segments.width(cell))
                for cell, width in zip(row, widths, strict=True)
            ]
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
        ConsumerGone: No consumer answers (at the start; later its absence is shown).
    """
    path = find()
    if path is None:
        raise ConsumerGone("no logagg is running here")
    look = _Look(find, live.status(path))
    with Terminal(color, quiet=False, keys=not once) as terminal:
        try:
            if once or not terminal.is_terminal:
                return _plain(terminal, look, interval, once=once)
            return _full(terminal, look, interval)
        except ReaderGone:
            return 0


class _Look:
    """The last two answers of a consumer, and the seconds between them."""

    def __init__(self, find: Callable[[], str | None], state: dict[str, Any]) -> None:
        self._find = find
        self.state = self.before = state
        self._asked = time.monotonic()
        self.seconds = 0.0
        self.gone = False

    def again(self) -> None:
        """Ask once more; when nobody answers the last answer stays."""
        try:
            state = live.status(self._find() or "")
        except LogaggError:
            self.gone = True
            return
        now = time.monotonic()
        self.before, self.state = self.state, state
        self.seconds, self._asked, self.gone = now - self._asked, now, False

    def tables(self) -> list[Table]:
        """What to show."""
        return tables(self.state, self.before, self.seconds)


def _plain(terminal: Terminal, look: _Look, interval: float, *, once: bool) -> int:
    while not terminal.stopping and "q" not in terminal.wait(interval):
        look.again()
        if look.gone:
            raise ConsumerGone("the consumer has ended")
        terminal.show(as_segments(look.state, look.tables()))
        if once:
            break
    return 0


def _full(terminal: Terminal, look: _Look, interval: float) -> int:
    try:
        from rich.console import Console
        from rich.live import Live as Screen
    except ImportError:
        terminal.note("pip install 'logagg-service[top]' gives a table that stays put")
        return _plain(terminal, look, interval, once=False)
    console = Console(no_color=not terminal.color, highlight=False)
    with Screen(console=console, screen=True, auto_refresh=False) as screen:
        while not terminal.stopping:
            screen.update(_rich(look.state, look.tables(), look.gone), refresh=True)
            if "q" in terminal.wait(interval):
                break
            look.again()
    return 0


def _rich(state: Mapping[str, Any], found: Iterable[Table], gone: bool) -> Any:
    from rich.console import Group
    from rich.table import Table as Drawn
    from rich.text import Text

    parts: list[Any] = [Text(summary(state), style="bold", overflow="ellipsis")]
    if gone:
        parts.append(Text("the consumer is gone; waiting for the next", style="yellow"))
    for table in found:
        drawn = Drawn(box=None, expand=False, title=None, pad_edge=False)
        for column in table.columns:
            number = column not in ("worker", "process", "sink", "error")
            drawn.add_column(
                column, justify="right" if number else "left", no_wrap=True
            )
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        parts += [Text(""), drawn]
    return Group(*parts)
