"""How fast a big NDJSON file is filtered, beside grep, jq and lnav where installed.

    python tests/bench/view_filter.py [--bytes 1GB] [--file PATH] [--rounds 3]

Makes a file of records as an application writes them (or takes yours), then runs each
question with each tool that can ask it, output to a pipe that is drained, best of some
rounds, file in the page cache. Every tool must give the same number of lines, which is
printed too. `grep` answers on text, so only where text decides.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from logagg.core.units import wire_time

BASE = 1_795_568_351_000_000_000
STACK = (
    "Traceback (most recent call last):\n"
    '  File "/srv/app/pay.py", line 41, in charge\n    total = price / count\n'
    "ZeroDivisionError: division by zero"
)


@dataclass(frozen=True)
class Question:
    """What is asked of each tool; "" where a tool cannot."""

    name: str
    logagg: list[str]
    jq: str
    grep: str = ""
    lnav: str = ""


def questions(last_ns: int) -> list[Question]:
    """The questions, the time range being the last tenth of the file."""
    since = wire_time(last_ns - (last_ns - BASE) // 10)
    return [
        Question(
            "level>=error",
            ["-l", "error"],
            'select(.level=="error" or .level=="critical")',
            '^.{55}(error|critical)"',
        ),
        Question("last tenth by time", ["-S", since], f'select(.timestamp>="{since}")'),
        Question(
            "rare text",
            ["-g", "needle in"],
            'select(.message|test("needle in";"i"))',
            "needle in",
        ),
        Question(
            "logger=app.db",
            ["logger=app.db"],
            'select(.logger=="app.db")',
            '"logger":"app\\.db"',
        ),
        Question("worker=2", ["worker=2"], 'select(.worker=="2")', '"worker":"2"'),
        Question("status>=500", ["status>=500"], "select(.status>=500)"),
        Question(
            "path=/rare", ["path=/rare"], 'select(.path=="/rare")', '"path":"/rare"'
        ),
        Question("everything", [], "."),
    ]


def records() -> Iterator[bytes]:
    """Lines without end, about 330 bytes each."""
    generator = random.Random(7)
    levels = ["debug"] * 30 + ["info"] * 62 + ["warning"] * 5 + ["error"] * 3
    loggers = ["app", "app.db", "app.web", "jobs.mail"]
    number = 0
    while True:
        record = {
            "timestamp": wire_time(BASE + number * 100_000),
            "level": generator.choice(levels),
            "worker": str(number % 4 + 1),
            "seq": number // 4,
            "logger": generator.choice(loggers),
            "message": f"request {number} finished in {generator.random():.3f} s",
            "pid": 4000 + number % 4,
            "process": "MainProcess",
            "thread": "MainThread",
            "status": generator.choice([200, 200, 200, 200, 201, 302, 404, 500]),
            "path": generator.choice(["/", "/api/items", "/api/pay", "/login"]),
            "request_id": f"{generator.getrandbits(64):016x}",
        }
        if number % 50_000 == 49_999:
            record["message"] = "needle in a haystack"
            record["path"] = "/rare"
        if record["level"] == "error":
            record["exception"] = {
                "type": "ZeroDivisionError",
                "message": "division by zero",
                "stack": STACK,
            }
        record["received"] = wire_time(BASE + number * 100_000 + 50_000)
        yield orjson.dumps(record) + b"\n"
        number += 1


def make(path: Path, size_bytes: int) -> None:
    """A file of about that size."""
    done = 0
    with path.open("wb") as file:
        for line in records():
            file.write(line)
            done += len(line)
            if done >= size_bytes:
                return


def measure(command: list[str], rounds: int) -> tuple[float, int]:
    """The best wall time in seconds, and how many lines came out."""
    best, lines = float("inf"), 0
    for _ in range(rounds):
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = 0
            while data := process.stdout.read(1 << 20):
                lines += data.count(b"\n")
        assert process.returncode in (0, 1), command
        best = min(best, time.perf_counter() - began)
    return best, lines


def tools(question: Question, path: str) -> Iterator[tuple[str, list[str]]]:
    """The command of each tool for a question."""
    main = "from logagg.cli.main import main; main()"
    tail = [sys.executable, "-c", main, "tail", "--file", path, "--no-follow", "--json"]
    yield "logagg", [*tail, "-n", "all", *question.logagg]
    if question.grep and shutil.which("grep"):
        yield "grep", ["grep", "-E", question.grep, path]
    if shutil.which("jq"):
        yield "jq", ["jq", "-c", question.jq, path]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", default="200MB", help="size of the file made")
    parser.add_argument("--file", help="a log file to use instead")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    size = int(float(options.bytes[:-2]) * units[options.bytes[-2:].upper()])
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or str(Path(folder) / "bench.log")
        if not options.file:
            make(Path(path), size)
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            file.seek(-4096, os.SEEK_END)
            last = orjson.loads(file.read().splitlines()[-1])
        count = int(subprocess.check_output(["wc", "-l", path]).split()[0])
        last_ns = BASE + (count - 1) * 100_000
        print(f"{size / 1e6:.0f} MB, {count:,} lines, up to {last['timestamp']}")
        print(f"{'question':20} {'tool':8} {'lines':>10} {'s':>7} {'MB/s':>7}   x jq")
        for question in questions(last_ns):
            found = {
                tool: measure(command, 1 if tool == "jq" else options.rounds)
                for tool, command in tools(question, path)
            }
            for tool, (seconds, lines) in found.items():
                times = found["jq"][0] / seconds if "jq" in found else float("nan")
                rate = size / 1e6 / seconds
                print(
                    f"{question.name:20} {tool:8} {lines:>10,} {seconds:>7.2f} "
                    f"{rate:>7.0f} {times:>6.1f}"
                )
        if shutil.which("lnav"):
            command = ["lnav", "-n", "-c", ":filter-in needle in", path]
            seconds, lines = measure(command, 1)
            print(f"{'rare text':20} {'lnav -n':8} {lines:>10,} {seconds:>7.2f}")


if __name__ == "__main__":
    main()
