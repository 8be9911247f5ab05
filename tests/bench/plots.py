"""Pictures of a benchmark's rows: scale-up, cost, latency. Needs matplotlib.

python tests/bench/plots.py tests/bench/out/bench.json
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import orjson
import report
from peers import PEERS
from workload import SIZES

SCALE = (
    ("records_s", "records a second, to the last byte in the file", "scale-rate"),
    ("cost", "processor time a record, all processes (µs)", "scale-cost"),
    ("p99_us", "99th percentile of a call (µs)", "scale-p99"),
    ("consumer_us", "processor time of the writing process a record (µs)", "scale-writer"),
)  # fmt: skip


def draw(result: dict[str, Any], out: Path) -> list[Path]:
    """Draw all pictures that the rows allow; return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    rows = [row for row in result["rows"] if "error" not in row]
    for row in rows:
        row["cost"] = report.cost(row)
    drawn = [_scale(rows, *what, out) for what in SCALE]
    drawn.append(_sizes(rows, out))
    return [path for path in drawn if path is not None]


def _title(name: str) -> str:
    base, _, tree = name.partition("@")
    return PEERS[base].title + (f" ({tree})" if tree else "")


def _middle(rows: list[dict[str, Any]], column: str) -> float:
    return float(statistics.median(row[column] for row in rows))


def _scale(
    rows: list[dict[str, Any]], column: str, label: str, name: str, out: Path
) -> Path | None:
    """A curve for each peer over the number of workers."""
    from matplotlib import pyplot

    typical = [row for row in rows if row["size"] == "typical" and row.get(column)]
    counts = sorted({row["workers"] for row in typical})
    if len(counts) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(10, 6))
    for peer in dict.fromkeys(row["peer"] for row in typical):
        points = [
            (count, _middle(found, column))
            for count in counts
            if (
                found := [
                    row
                    for row in typical
                    if row["peer"] == peer and row["workers"] == count
                ]
            )
        ]
        wide = 3 if peer.startswith("logagg") else 1
        axes.plot(*zip(*points, strict=True), "o-", label=_title(peer), linewidth=wide)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("worker processes")
    axes.set_ylabel(label)
    return _save(figure, axes, out / f"{name}.png")


def _sizes(rows: list[dict[str, Any]], out: Path) -> Path | None:
    """The cost of a record for each size, four workers."""
    from matplotlib import pyplot

    four = [row for row in rows if row["workers"] == 4]
    sizes = [size for size in SIZES if any(row["size"] == size for row in four)]
    if len(sizes) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(10, 6))
    peers = list(dict.fromkeys(row["peer"] for row in four))
    for index, peer in enumerate(peers):
        heights = []
        for size in sizes:
            found = [r for r in four if r["peer"] == peer and r["size"] == size]
            heights.append(_middle(found, "cost") if found else 0)
        places = [place + index * 0.8 / len(peers) for place in range(len(sizes))]
        axes.bar(places, heights, 0.8 / len(peers), label=_title(peer))
    axes.set_yscale("log")
    axes.set_xticks([place + 0.4 for place in range(len(sizes))], sizes)
    axes.set_ylabel("processor time a record, all processes (µs)")
    return _save(figure, axes, out / "sizes-cost.png")


def _save(figure: Any, axes: Any, path: Path) -> Path:
    from matplotlib import pyplot

    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def main() -> None:
    """Draw the pictures of a result that was written before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    draw(orjson.loads(options.result.read_bytes()), options.result.parent)


if __name__ == "__main__":
    main()
