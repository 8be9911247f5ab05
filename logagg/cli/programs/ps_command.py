"""`logagg ps`: all runs and programs of this user at a glance."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec

from logagg.cli.command import command, say, say_json
from logagg.cli.status import Part, show
from logagg.core.units import span_text
from logagg.ipc.runs import named_runs
from logagg.ipc.runs.named_runs import RunState
from logagg.options import Option
from logagg.platform.procfs import cpu_seconds

__all__ = ["measured", "project_parts", "ps"]

SAMPLE = 0.25
"""Seconds between two readings of processor time."""


class PsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg ps`."""

    json: Annotated[bool, Option("One JSON object per program.")] = False


@command(PsOptions)
def ps(options: PsOptions) -> None:
    """Show all runs and programs of this user: state, workers, use, port, log.

    CPU and memory are those of all workers of a program: 100 % is one core.
    """
    found = named_runs.running()
    if not found and not options.json:
        say("nothing runs; start programs: logagg up, or logagg run")
        return
    rows = measured(found)
    if options.json:
        for each, program in rows:
            say_json({"project": each.name, "pid": each.run.pid, **program})
        return
    parts: list[Part] = []
    for each in found:
        own = [program for owner, program in rows if owner is each]
        parts += ["", *project_parts(each, own)] if parts else project_parts(each, own)
    show(*parts)


def measured(found: Sequence[RunState]) -> list[tuple[RunState, dict[str, Any]]]:
    """The programs of runs, with what their workers use."""
    rows = [(each, program) for each in found for program in each.programs]
    pids = [[s["pid"] for s in p["slots"] if "pid" in s] for _, p in rows]
    before, began = [sum(map(cpu_seconds, own)) for own in pids], time.monotonic()
    time.sleep(SAMPLE)
    spent = time.monotonic() - began
    after = [sum(map(cpu_seconds, own)) for own in pids]
    return [
        (
            each,
            {
                **_row(program),
                "cpu_percent": round(max(late - early, 0.0) / spent * 100, 1),
                "log": each.state["consumer"]["sinks"],
                "directory": each.state["directory"],
            },
        )
        for (each, program), early, late in zip(rows, before, after, strict=True)
    ]


def _row(program: dict[str, Any]) -> dict[str, Any]:
    slots = program["slots"]
    return {
        "name": program["name"],
        "state": program["state"],
        "command": program["program"],
        "workers": len(slots),
        "ready": sum(slot["state"] == "ready" for slot in slots),
        "rss_bytes": sum(slot.get("rss_bytes", 0) for slot in slots),
        "restarts": sum(slot["restarts"] for slot in slots),
        "uptime": program["uptime"],
        "ports": [each["address"] for each in program["listeners"]],
        "last_exit": program.get("last_exit"),
    }


def project_parts(each: RunState, rows: Sequence[dict[str, Any]]) -> Iterator[Part]:
    """One run or project as a head, a table of programs, and its logs."""
    yield f"{each.name}  pid {each.run.pid}  {each.state['directory']}"
    heads = ["NAME", "STATE", "WORKERS", "CPU", "MEMORY", "RESTARTS", "UP", "PORT"]
    yield [heads, *map(_cells, rows)]
    yield "log: " + ", ".join(each.state["consumer"]["sinks"])


def _cells(row: dict[str, Any]) -> list[str]:
    over = row["state"] in ("stopped", "ended", "failed", "waiting")
    ports = ", ".join(address.rpartition(":")[2] for address in row["ports"])
    state = row["state"]
    if state == "failed" and row["last_exit"]:
        state = f"failed: {row['last_exit'].partition(',')[0]}"
    return [
        row["name"],
        state,
        "-" if over else f"{row['ready']}/{row['workers']}",
        "-" if over else f"{row['cpu_percent']:.0f} %",
        "-" if over else f"{row['rss_bytes'] >> 20} MiB",
        "-" if over else str(row["restarts"]),
        span_text(row["uptime"]),
        ports or "-",
    ]
