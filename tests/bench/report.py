"""Turn the rows of a run into medians, ratios and a page of Markdown."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers import PEERS

LIBRARIES = (
    "orjson", "structlog", "concurrent-log-handler", "loguru", "picologging",
    "logagg-service",
)  # fmt: skip

Row = dict[str, Any]


def facts(folder: str | None) -> dict[str, Any]:
    """The machine and the versions of what was measured."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    for program, flag in (("node", "--version"), ("rsyslogd", "-v")):
        if shutil.which(program):
            done = subprocess.run([program, flag], capture_output=True, check=False)
            first = done.stdout.decode().splitlines()[0].removeprefix(program)
            versions[program] = first.partition("(")[0].strip()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    where = os.path.realpath(folder or tempfile.gettempdir())
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            check=True,
            cwd=Path(__file__).parent,
        )
        versions["commit"] = done.stdout.decode().strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "kernel": platform.release().split("-")[0],
        "file_system": _file_system(where),
        "versions": versions,
    }


def _file_system(path: str) -> str:
    best = ("", "?")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) > len(best[0]):
            best = (place, kind)
    return best[1]


def groups(rows: list[Row]) -> dict[tuple[str, int], dict[str, list[Row]]]:
    """The rows by (size, workers), then by peer."""
    found: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for row in rows:
        group = found.setdefault((row["size"], row["workers"]), {})
        group.setdefault(row["peer"], []).append(row)
    return found


def median(rows: list[Row], name: str) -> float:
    """The median of a column over the rounds; NaN when nobody measured it."""
    values = [row[name] for row in rows if name in row]
    return statistics.median(values) if values else float("nan")


def cost(row: Row) -> float:
    """Processor time for a record, of all processes, in microseconds."""
    return float(row["worker_us"] + row["consumer_us"])


def ratio(mine: list[Row], theirs: list[Row], name: str = "records_s") -> float:
    """The median of the ratios within a round."""
    by_round = {row["round"]: row for row in theirs if name in row}
    values = [
        row[name] / by_round[row["round"]][name]
        for row in mine
        if name in row and row["round"] in by_round
    ]
    return statistics.median(values) if values else float("nan")


def cpu_ratio(mine: list[Row], theirs: list[Row]) -> float:
    """How much more processor time the others take: the median within a round."""
    by_round = {row["round"]: row for row in theirs if "worker_us" in row}
    values = [
        cost(by_round[row["round"]]) / cost(row)
        for row in mine
        if "worker_us" in row and row["round"] in by_round
    ]
    return statistics.median(values) if values else float("nan")


HEAD = (
    "| | records/s | logagg is | cpu/record | logagg is | worker cpu/call "
    "| consumer cpu/record | call p50 | p99 | p999 | max | peak memory "
    "| lost | damaged | disorder | back |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)

LEGEND = """\
`records/s` to the last byte in the file; `logagg is`: how many times faster, or how many
times less processor time, in the same rounds; `cpu/record` of all processes; times in µs;
`peak memory` of a worker + of the writing process, MB; `lost` records; `damaged` lines;
`disorder`: lines before an earlier one of their own worker; `back`: lines whose timestamp
is before that of the line above. All are medians over the rounds, but the last four are
the worst round.
"""


def markdown(result: dict[str, Any]) -> str:
    """The whole page."""
    known = result["facts"]
    versions = ", ".join(f"{n} {v}" for n, v in known["versions"].items())
    text = (
        f"# Benchmark, {known['date']}\n\n"
        f"`{known['command']}`: {known['rounds']} rounds, interleaved, "
        f"{known['minutes']} minutes.\n\n"
        f"{known['cpu']}, {known['cores']} cores, {known['memory_gb']} GB, Linux "
        f"{known['kernel']}, {known['file_system']}. {versions}.\n\n{LEGEND}\n"
    )
    for title, what in result["missing"].items():
        text += f"- {title}: missing ({what} is not installed)\n"
    for (size, workers), peers in groups(result["rows"]).items():
        calls = next(iter(peers.values()))[0]["calls"]
        text += f"\n## {size}, {workers} workers x {calls:,} calls\n\n{HEAD}"
        order = sorted(peers, key=lambda name: list(PEERS).index(name.split("@")[0]))
        text += "".join(_line(name, peers) for name in order)
    text += "\n## Start\n\n| | wall ms | cpu ms |\n|---|---|---|\n"
    for name, row in result["startup"].items():
        text += f"| `{name}` | {row['wall_ms']} | {row['cpu_ms']} |\n"
    return text


def _line(name: str, peers: dict[str, list[Row]]) -> str:
    base, _, tree = name.partition("@")
    title = PEERS[base].title + (f" ({tree})" if tree else "")
    rows = [row for row in peers[name] if "error" not in row]
    if not rows:
        return f"| {title} | failed: {peers[name][0]['error']} |\n"
    ours = peers.get("logagg-structlog" if name == "byteslogger" else "logagg", [])
    ours = [row for row in ours if "error" not in row]
    faster = f"{ratio(ours, rows):.2f}×" if ours and name != "logagg" else ""
    cheaper = f"{cpu_ratio(ours, rows):.2f}×" if ours and name != "logagg" else ""
    writes = PEERS[base].writes
    memory = f"{median(rows, 'worker_peak') / 1e6:.0f}"
    if median(rows, "consumer_peak"):
        memory += f" + {median(rows, 'consumer_peak') / 1e6:.0f}"
    wrong = [
        max(row.get(column, 0) for row in rows)
        for column in ("lost", "damaged", "disorder", "back")
    ]
    cells = [
        title,
        f"{median(rows, 'records_s'):,.0f}",
        faster,
        f"{statistics.median(map(cost, rows)):.2f}",
        cheaper,
        f"{median(rows, 'worker_us'):.2f}",
        f"{median(rows, 'consumer_us'):.2f}" if median(rows, "consumer_us") else "",
        f"{median(rows, 'p50_us'):.1f}",
        f"{median(rows, 'p99_us'):.1f}",
        f"{median(rows, 'p999_us'):,.0f}",
        f"{median(rows, 'max_us'):,.0f}",
        memory,
        *(f"{value:,}" if writes else "" for value in wrong),
    ]
    return "| " + " | ".join(cells) + " |\n"
