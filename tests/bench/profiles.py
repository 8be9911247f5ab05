"""Where the time of a log call and of the consumer goes.

    python tests/bench/profiles.py            the parts, by measurement
    python tests/bench/profiles.py --sample   the consumer's functions, by py-spy

A log call is taken apart by measuring its parts alone, in bursts that the pipe holds, as
processor time; the figure is the lower quartile. The consumer is taken apart by its
processor time at several rates: a line through them has the cost of a record as its
slope, and the fixed cost of being busy as its beginning.
"""

from __future__ import annotations

import argparse
import collections
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import orjson
import scene
from peers import JsonFormatter

BURST = 1000
BURSTS = 30
RATES = ((1, 0.005), (20, 0.005), (50, 0.005), (100, 0.005), (200, 0.005))


def cost(call: Callable[[], Any], pause: float = 0.012) -> float:
    """Nanoseconds of processor time for a call: the lower quartile of many bursts."""
    found = []
    for _ in range(BURSTS):
        before = time.process_time_ns()
        for _ in range(BURST):
            call()
        found.append((time.process_time_ns() - before) / BURST)
        time.sleep(pause)  # the consumer empties the pipe meanwhile
    return sorted(found)[BURSTS // 4]


def log_call() -> dict[str, float]:
    """The parts of a call, in nanoseconds."""
    extra = scene.fields(1, 5)
    parts: dict[str, float] = {"(the loop itself)": cost(lambda: None, 0)}
    with scene.folder() as place:
        silent = logging.getLogger("silent")
        silent.propagate = False
        silent.setLevel(logging.INFO)
        silent.handlers[:] = [logging.NullHandler()]
        arguments = ("bench", 20, __file__, 1, "order %d placed", (5,), None)
        parts["logging.LogRecord()"] = cost(lambda: logging.LogRecord(*arguments), 0)
        parts["log.info, a handler that does nothing"] = cost(
            lambda: silent.info("order %d placed", 5, extra=extra), 0
        )
        plain = logging.getLogger("plain")
        plain.propagate = False
        plain.setLevel(logging.INFO)
        handler = logging.FileHandler(place / "plain.log")
        handler.setFormatter(JsonFormatter())
        plain.handlers[:] = [handler]
        parts["log.info, FileHandler + orjson"] = cost(
            lambda: plain.info("order %d placed", 5, extra=extra)
        )
        log = scene.logger(place / "out.log")
        log.info("first")
        parts["log.info, nothing, as the product sets logging up"] = cost(
            lambda: silent.info("order %d placed", 5, extra=extra), 0
        )
        parts["log.info, logagg"] = cost(
            lambda: log.info("order %d placed", 5, extra=extra)
        )
        ours: Any = log.handlers[0]
        one, two = (
            log.makeRecord("bench", 20, "x.py", 1, "order %d placed", (5,), None)
            for _ in range(2)
        )
        for record in (one, two):
            vars(record).update(extra)

        def emits() -> None:
            one.created = two.created = time.time()
            ours.emit(one)
            ours.emit(two)

        parts["Handler.emit"] = cost(emits, 0.025) / 2
        attached = ours._attachment
        fields = {"logger": "bench", "message": "order 5 placed", "pid": 1}
        fields |= {"process": "MainProcess", "thread": "MainThread", **extra}
        body = orjson.dumps(fields)[1:-1]
        parts["  orjson.dumps"] = cost(lambda: orjson.dumps(fields), 0)
        parts["  Attachment.send"] = cost(lambda: attached.send("info", body))
        write, line = attached._write, b"\n"
        parts["    os.write of one byte"] = cost(lambda: os.write(write, line))
        ours.close()
    return parts


def consumer() -> dict[str, float]:
    """The consumer's cost: fixed while busy, and for a record."""
    points = []
    with scene.folder() as place:
        log = scene.logger(place / "out.log")
        log.info("first")
        pid = scene.consumer(place)
        time.sleep(0.5)
        for burst, pause in RATES:
            before, start, n = measure.cpu_ns(pid), time.monotonic(), 0
            while time.monotonic() < start + 1.5:
                for _ in range(burst):
                    log.info("order %d placed", n, extra=scene.fields(1, n))
                    n += 1
                time.sleep(pause)
            took = time.monotonic() - start
            points.append((n / took, (measure.cpu_ns(pid) - before) / took))
        log.handlers[0].close()
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope /= sum((x - mean_x) ** 2 for x, _ in points)
    return {
        "while busy, percent of a core": (mean_y - slope * mean_x) / 1e7,
        "for each record, ns": slope,
    }


def sample(seconds: float) -> list[tuple[float, str]]:
    """The consumer's own functions under load, by share of samples, by py-spy."""
    counts: collections.Counter[str] = collections.Counter()
    with scene.folder() as place, tempfile.NamedTemporaryFile() as raw:
        deadline = time.monotonic() + seconds + 2
        pids = [scene.fork(_load, place / "out.log", deadline) for _ in range(2)]
        pid = scene.consumer(place)
        time.sleep(0.7)
        beside = Path(sys.executable).with_name("py-spy")
        program = str(beside) if beside.exists() else "py-spy"
        command = [program, "record", "-p", pid, "-d", int(seconds), "-r", 500, "-F"]
        command += ["--gil", "-f", "raw", "-o", raw.name]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        for each in pids:
            os.waitpid(each, 0)
        for line in Path(raw.name).read_text().splitlines():
            stack, _, number = line.rpartition(" ")
            counts[stack.rpartition(";")[2]] += int(number)
    total = sum(counts.values())
    return [(100 * n / total, where) for where, n in counts.most_common(30)]


def _load(path: Path, deadline: float) -> None:
    log = scene.logger(path)
    while time.monotonic() < deadline:
        for n in range(200):
            log.info("order %d placed", n, extra=scene.fields(1, n))
        time.sleep(0.002)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", action="store_true")
    options = parser.parse_args()
    if options.sample:
        for share, where in sample(5):
            sys.stdout.write(f"{share:5.1f} %  {where}\n")
        return
    for name, value in log_call().items():
        sys.stdout.write(f"{value:8,.0f} ns  {name}\n")
    for name, value in consumer().items():
        sys.stdout.write(f"{value:8,.1f}     consumer, {name}\n")


if __name__ == "__main__":
    main()
