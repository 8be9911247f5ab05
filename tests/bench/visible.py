"""How long from a log call until the record can be seen: in the file, in `logagg tail`.

    python tests/bench/visible.py [--rate 250] [--workers 4] [--seconds 5]

The workers log at a rate, each record with the instant of its call on the monotonic
clock, which is one for the whole machine. A follower reads what is new in the file every
half millisecond; another one reads the lines of `logagg tail`.
"""

from __future__ import annotations

import argparse
import array
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import measure
import orjson
import scene


def work(path: Path, w: int, rate: float, deadline: float) -> None:
    """Log at a rate until the deadline."""
    log = scene.logger(path)
    n = 0
    next_at = time.monotonic()
    while time.monotonic() < deadline:
        stamp = time.monotonic_ns()
        log.info("order %d placed", n, extra={**scene.fields(w, n), "t": stamp})
        n += 1
        next_at += 1 / rate
        time.sleep(max(next_at - time.monotonic(), 0))


def new_lines(path: Path, deadline: float) -> Iterator[bytes]:
    """The lines that come into a file, as they come."""
    tail = b""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        while time.monotonic() < deadline:
            chunk = file.read()
            if not chunk:
                time.sleep(0.0005)
                continue
            lines = (tail + chunk).split(b"\n")
            tail = lines.pop()
            yield from lines


def ages(lines: Iterable[bytes], found: array.array[int], since: int) -> None:
    """Note how old each record is when its line is seen; those before count not."""
    for line in lines:
        now = time.monotonic_ns()
        at = line.find(b'"t":')
        stamp = int(line[at + 4 : line.find(b",", at)]) if at > 0 else 0
        if stamp > since:
            found.append(now - stamp)


def run(rate: float, workers: int, seconds: float) -> dict[str, dict[str, float]]:
    """Measure; return the percentiles by way."""
    result = {}
    with scene.folder() as place:
        path = place / "out.log"
        deadline = time.monotonic() + seconds + 2
        pids = [scene.fork(work, path, w, rate, deadline) for w in range(workers)]
        scene.consumer(place)
        while not path.exists() or not path.stat().st_size:
            time.sleep(0.01)
        command = [sys.executable, "-m", "logagg", "tail", "-n", "0", "--json", "-q"]
        tail = subprocess.Popen(command, stdout=subprocess.PIPE)
        since = time.monotonic_ns() + 1_500_000_000  # the viewer starts meanwhile
        seen_file, seen_tail = array.array("q"), array.array("q")
        watch = threading.Thread(target=ages, args=(tail.stdout, seen_tail, since))
        watch.start()
        ages(new_lines(path, deadline), seen_file, since)
        for pid in pids:
            os.waitpid(pid, 0)
        tail.terminate()
        watch.join()
        tail.wait()
        for name, found in (("file", seen_file), ("logagg tail", seen_tail)):
            result[name] = measure.percentiles([found]) | {"records": len(found)}
    return result


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=250, help="per worker and second")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    result = run(options.rate, options.workers, options.seconds)
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "visible.json").write_bytes(orjson.dumps(result))
    for name, row in result.items():
        sys.stdout.write(f"{name}: {row}\n")


if __name__ == "__main__":
    main()
