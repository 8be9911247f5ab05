"""A long run at full rate: does anybody's memory grow?

    python tests/bench/soak.py 600 [--workers 4]

The workers log typical records without a pause into a file that rotates at 64 MB, two
kept. Once a second the resident memory of the consumer and of the workers is sampled.
Prints the figures and writes all samples to `out/soak.json`. "Flat" means: the highest
of the last third is not more than a tenth above the highest of the second third.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import measure
import orjson
import scene


def work(path: Path, w: int, deadline: float) -> None:
    """Log until the deadline."""
    log = scene.logger(path, maxBytes=64_000_000, backupCount=2)
    n = 0
    while time.monotonic() < deadline:
        for _ in range(1000):
            log.info("order %d placed", n, extra=scene.fields(w, n))
            n += 1
    path.with_name(f"count.{w}").write_text(str(n))


def flat(samples: list[int]) -> bool:
    """Whether memory has stopped growing by the last third."""
    third = len(samples) // 3
    return max(samples[-third:]) <= 1.1 * max(samples[third : 2 * third])


def run(seconds: float, workers: int) -> dict[str, Any]:
    """Log for so long; return the samples and what they say."""
    with scene.folder() as place:
        path = place / "out.log"
        deadline = time.monotonic() + seconds
        logging.raiseExceptions = True
        pids = [scene.fork(work, path, w, deadline) for w in range(workers)]
        consumer = scene.consumer(place)
        before = measure.cpu_ns(consumer)
        theirs, ours = [], []
        while time.monotonic() < deadline - 0.5:
            time.sleep(1.0)
            ours.append(measure.resident_bytes(consumer))
            theirs.append(max(measure.resident_bytes(pid) for pid in pids))
        spent = measure.cpu_ns(consumer) - before
        for pid in pids:
            os.waitpid(pid, 0)
        counts = [int((place / f"count.{w}").read_text()) for w in range(workers)]
        spooled = [str(each) for each in place.rglob("*.spool")]
    return {
        "seconds": seconds,
        "workers": workers,
        "records": sum(counts),
        "records_s": round(sum(counts) / seconds),
        "consumer_us": round(spent / sum(counts) / 1000, 2),
        "consumer_mb": [round(each / 1e6, 1) for each in ours],
        "worker_mb": [round(each / 1e6, 1) for each in theirs],
        "consumer_flat": flat(ours),
        "worker_flat": flat(theirs),
        "spool_left": len(spooled),
    }


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    result = run(max(options.seconds, 6), options.workers)
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "soak.json").write_bytes(orjson.dumps(result))
    for name in ("consumer_mb", "worker_mb"):
        samples = result.pop(name)
        step = max(len(samples) // 10, 1)
        result[f"{name} (every {step} s)"] = samples[::step]
    for name, value in result.items():
        sys.stdout.write(f"{name}: {value}\n")


if __name__ == "__main__":
    main()
