"""The benchmark: every peer, interleaved in rounds, judged by the file that it wrote.

    python tests/bench/run.py                  all of it (about half an hour)
    python tests/bench/run.py --first          five peers, 4 x 50,000 typical records
    python tests/bench/run.py --quick          all peers, few records, two rounds
    python tests/bench/run.py --peers logagg,unlocked --workers 4 --sizes small,typical
    python tests/bench/run.py --peers logagg --tree ../other-checkout

Each measurement is a process of its own (`cell.py`). A round measures every cell once,
peers next to each other, each round in another order; the tables give medians over the
rounds, and ratios that are medians of the ratios within a round, so that what else the
machine does meanwhile hits all alike. A peer that is not installed is told as missing.

Results go to `tests/bench/out/`: `NAME.md`, `NAME.json`, and pictures with `--plots`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import report
import startup
from peers import FIRST, PEERS
from workload import SIZES

HERE = Path(__file__).parent
TIMEOUT = 600

Cell = tuple[str, str, int, int]


def main() -> None:
    """Run what the command line asks for and write the results."""
    options = _parsed()
    names = options.peers.split(",") if options.peers else list(PEERS)
    if options.first:
        names = [*FIRST, "nothing"]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        sys.exit(f"unknown peer {unknown[0]!r}: choose from {', '.join(PEERS)}")
    missing = {name: PEERS[name].missing() for name in names}
    present = [name for name in names if not missing[name]]
    if options.tree:
        ours = [name for name in present if name.startswith("logagg")]
        present += [f"{name}@{options.tree}" for name in ours]
    groups = _groups(options)
    rows: list[dict[str, Any]] = []
    began = time.time()
    for turn in range(options.rounds):
        for size, workers, calls in groups:
            order = present[turn % len(present) :] + present[: turn % len(present)]
            for name in order:
                row = measured((name, size, workers, calls), options.folder)
                row["round"] = turn
                rows.append(row)
                _progress(turn, row)
    facts = report.facts(options.folder) | {
        "command": " ".join(["python", "tests/bench/run.py", *sys.argv[1:]]),
        "rounds": options.rounds,
        "minutes": round((time.time() - began) / 60, 1),
    }
    result = {
        "facts": facts,
        "missing": {PEERS[n].title: what for n, what in missing.items() if what},
        "startup": startup.measured(max(options.rounds * 4, 12)),
        "rows": rows,
    }
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    text = report.markdown(result)
    (out / f"{options.name}.json").write_bytes(
        orjson.dumps(result, option=orjson.OPT_INDENT_2)
    )
    (out / f"{options.name}.md").write_text(text)
    sys.stdout.write(text)
    if options.plots:
        import plots

        plots.draw(result, out)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", action="store_true", help="five peers, one workload")
    parser.add_argument("--quick", action="store_true", help="2 rounds, few records")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--peers", help="comma-separated; default: all")
    parser.add_argument("--sizes", help="comma-separated, measured with 4 workers")
    parser.add_argument("--workers", help="comma-separated, measured with typical")
    parser.add_argument("--records", type=int, help="in a cell; default 200,000")
    parser.add_argument("--folder", help="where peers write; default: a temporary one")
    parser.add_argument("--tree", help="also measure logagg from another checkout")
    parser.add_argument("--name", default="bench", help="of the result's files")
    parser.add_argument("--plots", action="store_true", help="draw curves (matplotlib)")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.records = options.records or (20_000 if options.quick else 200_000)
    return options


def _groups(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Sizes, workers and calls to measure. Large records are fewer."""
    total = options.records
    if options.first:
        return [("typical", 4, total // 4)]
    sizes = options.sizes.split(",") if options.sizes else list(SIZES)
    for size in sizes:
        if size not in SIZES:
            sys.exit(f"unknown size {size!r}: choose from {', '.join(SIZES)}")
    default = "4" if options.sizes else "1,4,16,64"
    counts = [int(text) for text in (options.workers or default).split(",")]
    groups = []
    if "typical" in sizes:
        groups += [
            ("typical", count, (total if count == 4 else total // 2) // count)
            for count in counts
        ]
    groups += [
        (size, 4, total // 4 // (2 if size == "small" else 5))
        for size in sizes
        if size != "typical"
    ]
    return groups


def measured(cell: Cell, folder: str | None) -> dict[str, Any]:
    """Run one cell in a process of its own; what fails becomes the row's `error`."""
    name, size, workers, calls = cell
    peer, _, tree = name.partition("@")
    environment = dict(os.environ)
    if tree:
        places = (os.path.abspath(tree), os.path.abspath(os.path.join(tree, "sinks")))
        environment["PYTHONPATH"] = ":".join(places)
    command = [
        *(sys.executable, str(HERE / "cell.py"), "--peer", peer, "--size", size),
        *("--workers", str(workers), "--calls", str(calls)),
    ]
    if folder:
        command += ["--folder", folder]
    load = os.getloadavg()[0]
    row: dict[str, Any]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        row = {"error": f"took longer than {TIMEOUT} s"}
    else:
        last = done.stdout.rpartition(b"\n{")[2] if b"\n{" in done.stdout else b""
        text = b"{" + last if last else done.stdout
        try:
            row = orjson.loads(text)
        except orjson.JSONDecodeError:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            row = {"error": words[-1] if words else f"status {done.returncode}"}
    row |= {"peer": name, "size": size, "workers": workers, "calls": calls}
    row["load"] = load
    return row


def _progress(turn: int, row: dict[str, Any]) -> None:
    what = row.get("error") or f"{row['records_s']:,} records/s"
    sys.stderr.write(
        f"round {turn + 1} {row['size']} x {row['workers']} {row['peer']}: {what}\n"
    )


if __name__ == "__main__":
    main()
