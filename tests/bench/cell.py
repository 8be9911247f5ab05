"""Measure one peer once: so many workers, so many calls of one size. A process a cell.

    python tests/bench/cell.py --peer logagg --size typical --workers 4 --calls 50000

The parent forks the workers, which attach, log a warm-up and wait. When the warm-up
stands in the file they are all let go at once. Wall time runs from that instant to the
last byte of the last record in the file. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import array
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import measure
import orjson
from peers import PEERS, Peer
from workload import SIZES, WARM_UP

PATIENCE = 20.0


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=sorted(PEERS), required=True)
    parser.add_argument("--size", choices=SIZES, default="typical")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the written file")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    os.environ["XDG_RUNTIME_DIR"] = os.environ["XDG_STATE_HOME"] = str(folder)
    os.environ.pop("LOGAGG_SOCKET", None)
    try:
        cell = (options.peer, options.size, options.workers, options.calls)
        if options.peer == "node":
            row = node(folder, *cell[1:])
        else:
            row = run(PEERS[options.peer](folder / "out.log", options.size), *cell[2:])
        row = dict(zip(("peer", "size", "workers", "calls"), cell, strict=True)) | row
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(orjson.dumps(row).decode() + "\n")


def run(peer: Peer, workers: int, calls: int) -> dict[str, Any]:
    """Measure a Python peer."""
    peer.start()
    go, release = os.pipe(), os.pipe()
    children = []
    gc.collect()
    for w in range(workers):
        ready = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ready[0])
            _child(peer, w, calls, go, release, ready[1])
        os.close(ready[1])
        children.append((pid, os.fdopen(ready[0], "rb")))
    try:
        row = _watch(peer, calls, children, go, release)
    except BaseException:
        for pid, _ in children:
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        peer.stop()
    if peer.writes:
        row |= measure.judge(peer.path, workers, calls)
    return row


def _child(
    peer: Peer,
    w: int,
    calls: int,
    go: tuple[int, int],
    release: tuple[int, int],
    out: int,
) -> None:
    """Be a worker; never return."""
    try:
        os.close(go[1])
        os.close(release[1])
        call = peer.worker(w)
        for n in range(-WARM_UP, 0):
            call(n)
        os.write(out, b"r")
        os.read(go[0], 1)
        before = time.process_time_ns()
        spent, cpu = measure.timed(call, calls)
        done = time.time_ns()
        os.write(out, b"d")
        os.read(release[0], 1)
        total = time.process_time_ns() - before
        peak = measure.peak_bytes()
        report = {"cpu": cpu, "total": total, "done": done, "peak": peak}
        head = orjson.dumps(report)
        with os.fdopen(out, "wb") as file:
            file.write(len(head).to_bytes(4, "big") + head + spent.tobytes())
        peer.leave()
    except BaseException:  # noqa: BLE001 - whatever it is, the parent must not hang
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _watch(
    peer: Peer,
    calls: int,
    children: list[tuple[int, Any]],
    go: tuple[int, int],
    release: tuple[int, int],
) -> dict[str, Any]:
    os.close(go[0])
    os.close(release[0])
    consumer = peer.consumer()  # a peer that listens in the parent starts here
    for _, pipe in children:
        assert pipe.read(1) == b"r", "a worker failed"
    growth = measure.Growth(peer.path)
    if peer.writes:
        growth.wait(len(children) * WARM_UP, PATIENCE)
    consumer = peer.consumer()
    warm = growth.lines
    ours = time.thread_time_ns()
    before = measure.cpu_ns(consumer) if consumer else 0
    start = time.time_ns()
    os.close(go[1])
    for _, pipe in children:
        assert pipe.read(1) == b"d", "a worker failed"
    wanted = warm + len(children) * calls
    complete = growth.wait(wanted, PATIENCE) if peer.writes else True
    end = peer.path.stat().st_mtime_ns if peer.writes else time.time_ns()
    spent = measure.cpu_ns(consumer) - before if consumer else 0
    if consumer == os.getpid():
        spent -= time.thread_time_ns() - ours  # what this thread waited and counted
    os.close(release[1])
    peak = measure.peak_bytes(consumer) if consumer else 0
    reports, latencies = [], []
    for pid, pipe in children:
        length = int.from_bytes(pipe.read(4), "big")
        reports.append(orjson.loads(pipe.read(length)))
        latencies.append(array.array("Q", pipe.read()))
        os.waitpid(pid, 0)
    records = calls * len(children)
    end = max(end, *(report["done"] for report in reports)) if not complete else end
    last_call = max(report["done"] for report in reports)
    return {
        "complete": complete,
        "wall_s": (end - start) / 1e9,
        "records_s": round(records / ((end - start) / 1e9)),
        "calls_s": round(records / ((last_call - start) / 1e9)),
        "worker_us": sum(report["total"] for report in reports) / records / 1000,
        "call_cpu_us": sum(report["cpu"] for report in reports) / records / 1000,
        "consumer_us": spent / records / 1000,
        "worker_peak": max(report["peak"] for report in reports),
        "consumer_peak": peak,
        **measure.percentiles(latencies),
    }


def node(folder: Path, size: str, workers: int, calls: int) -> dict[str, Any]:
    """Measure Node's cluster: its program does what `run` does and prints the row."""
    script = Path(__file__).with_name("cluster.js")
    path = folder / "out.log"
    command = ["node", str(script), str(path), size, str(workers), str(calls)]
    done = subprocess.run(command, capture_output=True, check=True)
    row: dict[str, Any] = orjson.loads(done.stdout)
    return row | measure.judge(path, workers, calls)


if __name__ == "__main__":
    main()
