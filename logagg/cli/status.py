"""`logagg status`, and the one way to print a table."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec

from logagg.cli.command import command, say_json
from logagg.core.units import span_text
from logagg.errors import ConsumerGone
from logagg.ipc import consumer_client
from logagg.ipc.paths import listening
from logagg.ipc.runs import run_control
from logagg.options import FilePath, Option
from logagg.render.markup import inline

__all__ = ["consumer_parts", "run_parts", "show", "status"]

Part = str | Sequence[Sequence[str]]


class StatusOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg status`."""

    json: Annotated[bool, Option("One JSON object per run and per consumer.")] = False
    socket: Annotated[FilePath, Option("Only the consumer at this socket.")] = ""


@command(StatusOptions)
def status(options: StatusOptions) -> None:
    """Show this user's runs (slots, restarts) and consumers (workers, sinks, losses)."""
    found_runs = [] if options.socket else run_control.runs()
    paths = [options.socket] if options.socket else listening()
    if not paths and not found_runs:
        raise ConsumerGone("no run and no consumer is running")
    runs = [run_control.status(each) for each in found_runs]
    consumers = [consumer_client.status(path) for path in paths]
    if options.json:
        for each in [*({"run": run} for run in runs), *consumers]:
            say_json(each)
        return
    parts: list[Part] = []
    for found in [*map(run_parts, runs), *map(consumer_parts, consumers)]:
        parts += ["", *found] if parts else found
    show(*parts)


def run_parts(found: dict[str, Any]) -> Iterator[Part]:
    """The status of a run as texts and tables."""
    up = span_text(found["uptime"])
    yield f"run {found['pid']}: {found['program']}  up {up}, {found['reloads']} reloads"
    heads = ["SLOT", "PID", "STATE", "UP", "RESTARTS", "RSS", "CONNS", "TASKS"]
    yield [[*heads, "LAST EXIT"], *map(_slot_row, found["slots"])]
    for each in found["listeners"]:
        waiting = f", {each['waiting']} waiting" if each.get("waiting") else ""
        yield f"listens on {each['address']} (policy {each['policy']}{waiting})"
    if any(found["tasks"].values()):
        yield "tasks: " + ", ".join(f"{n} {k}" for k, n in found["tasks"].items())
    consumer = found["consumer"]
    sinks = ", ".join(consumer["sinks"])
    yield f"consumer {consumer['pid']} ({consumer['restarts']} restarts) → {sinks}"


def _slot_row(slot: dict[str, Any]) -> list[str]:
    state = slot["state"]
    if state == "waiting":
        state = f"waiting {slot['starts_in']} s"
    return [
        str(slot["slot"]),
        str(slot.get("pid", "-")),
        state,
        span_text(slot["uptime"]) if "uptime" in slot else "-",
        str(slot["restarts"]),
        f"{slot['rss_bytes'] >> 20} MiB" if "rss_bytes" in slot else "-",
        str(slot.get("connections", "-")),
        str(slot.get("tasks", "-")),
        slot["last_exit"] or "",
    ]


def consumer_parts(found: dict[str, Any]) -> Iterator[Part]:
    """The status of a consumer as texts and tables."""
    yield f"consumer {found['pid']}  {found['socket']}"
    yield (
        "up {0}, {records} records, {pending} waiting, {late} late, "
        "{workers_ended} workers ended, {refused} refused"
    ).format(span_text(found["uptime"]), **found)
    if found["alarms"]:
        yield f"{found['alarms']} alarms, the last: {found['last_alarm']}"
    if found["workers"]:
        heads = "WORKER PID RECORDS UNACKED LOST DROPPED DAMAGED PROCESS"
        yield [heads.split(), *map(_worker_row, found["workers"])]
    heads = "WRITTEN QUEUED DROPPED RETRIES SINK"
    yield [heads.split(), *map(_sink_row, found["sinks"])]


def _worker_row(each: dict[str, Any]) -> list[str]:
    unacknowledged = each["last_seq"] - each["acknowledged"]
    counts = (unacknowledged, each["lost"], each["dropped"], each["damaged"])
    start = (each["worker"], each["pid"], each["records"])
    return [*map(str, (*start, *counts)), each["process"]]


def _sink_row(each: dict[str, Any]) -> list[str]:
    dropped = sum(each["dropped"].values())
    error = f"  ({each['error']})" if each["error"] else ""
    delivery = each.get("delivery") or {}
    if delivery.get("state", "ok") != "ok":
        waiting = f"{delivery['queued_records']} wait"
        error += f"  ({delivery['state']}, {waiting}: {delivery['last_error']})"
    counts = (each["written"], each["queued_records"], dropped, each["retries"])
    return [*map(str, counts), each["url"] + error]


# ---- tables ---------------------------------------------------------------------------

_PIPE_WIDTH = 10_000  # columns: what is read by a program is never cut


def show(*parts: str | Sequence[Sequence[str]]) -> None:
    """Print lines of text and tables on standard output.

    On a terminal, what does not fit in the last column is folded, wide characters count
    as two, and the heads are bold. Elsewhere it is plain text, each row on one line.

    Args:
        parts: Texts, and tables as rows of cells, the first of them the heads (empty:
            none). A column of numbers is aligned at the right. Nothing in them acts on
            the terminal or begins another row.
    """
    from rich.console import Console  # 60 ms: only where a table is shown

    terminal = sys.stdout.isatty()
    file = io.StringIO()
    console = Console(
        file=sys.stdout if terminal else file,
        width=None if terminal else _PIPE_WIDTH,
        highlight=False,
    )
    for part in parts:
        text = inline(part) if isinstance(part, str) else columns(part)
        console.print(text, markup=False, soft_wrap=isinstance(part, str))
    if not terminal:
        lines = (line.rstrip() for line in file.getvalue().splitlines())
        print("\n".join(lines))


def columns(rows: Sequence[Sequence[str]]) -> object:
    """A table for `rich.console.Console.print`."""
    from rich.table import Table  # see `show`
    from rich.text import Text  # see `show`

    heads, *body = rows
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=bool(heads)
    )
    count = len(heads or body[0])
    for number in range(count):
        right = bool(body) and all(_is_number(row[number]) for row in body)
        table.add_column(
            heads[number] if heads else "",
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=number + 1 < count,
        )
    for row in body:
        table.add_row(*(Text(inline(cell)) for cell in row))
    return table


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()
