"""What a record costs the consumer when many wait: in the pipe, and parked on disk.

    python tests/bench/backlog.py [--sizes 1000,10000,100000]

The consumer is stopped (SIGSTOP), a worker logs so many records and leaves, which parks
what the pipe cannot hold; then the consumer goes on (SIGCONT) and is measured until the
last record stands in the file.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import measure
import orjson
import scene


def work(path: Path, calls: int) -> None:
    """Log so many records as fast as they go."""
    log = scene.logger(path)
    for n in range(calls):
        log.info("order %d placed", n, extra=scene.fields(0, n))
    log.handlers[0].close()


def run(calls: int) -> dict[str, float]:
    """Measure one size of a backlog."""
    with scene.folder() as place:
        path = place / "out.log"
        keeper = scene.logger(path)  # it keeps the consumer alive
        keeper.info("ready", extra=scene.fields(1, 0))
        pid = scene.consumer(place)
        growth = measure.Growth(path)
        growth.wait(1, 10)
        os.kill(pid, signal.SIGSTOP)
        child = scene.fork(work, path, calls)
        os.waitpid(child, 0)
        before, start = measure.cpu_ns(pid), time.monotonic()
        os.kill(pid, signal.SIGCONT)
        complete = growth.wait(1 + calls, 20)
        spent, took = measure.cpu_ns(pid) - before, time.monotonic() - start
        verdict = measure.judge(path, 2, calls)
        keeper.handlers[0].close()
    return {
        "records": calls,
        "complete": complete,
        "consumer_us": round(spent / calls / 1000, 2),
        "records_s": round(calls / took),
        "lost": verdict["lost"] - calls + 1,  # of the keeper's there is just one
        "damaged": verdict["damaged"],
        "disorder": verdict["disorder"],
        "back": verdict["back"],
    }


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000")
    options = parser.parse_args()
    rows = [run(int(size)) for size in options.sizes.split(",")]
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "backlog.json").write_bytes(orjson.dumps(rows))
    for row in rows:
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
