"""The processor time of one log call, in each form, beside a FileHandler's.

    python tests/bench/calls.py
    python tests/bench/calls.py --instructions     also instructions a call (valgrind)

One process a form, rounds interleaved; a call has one argument and four extra fields.
Thread time, so that what else the machine does counts little; the minimum and the
median of 60 times 500 calls, with a flush in between that is not counted. Instructions
are those of a process that makes 2,000 calls more than another one, in user space: what
else the machine does changes them hardly, so they show what times cannot.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import orjson

FORMS = ("filehandler", "handler", "installed", "beside another", "structlog")
ROUNDS = 3
MORE = 2000
EXTRA = {"user_id": 42, "path": "/a/b", "ok": True, "share": 0.25}


class JsonFormatter(logging.Formatter):
    """The same fields, by orjson."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline."""
        fields = {
            "timestamp": record.created, "level": record.levelname,
            "worker": record.process, "logger": record.name,
            "message": record.getMessage(), "pid": record.process,
            "process": record.processName, "thread": record.threadName,
            **{name: getattr(record, name) for name in EXTRA},
        }  # fmt: skip
        return orjson.dumps(fields).decode()


def prepared(form: str) -> tuple[Callable[[int], object], Callable[[], object]]:
    """The call to measure, and what lets the log catch up."""
    log = logging.getLogger("app.views")
    logging.getLogger().setLevel("INFO")
    if form == "filehandler":
        file = logging.FileHandler("file.log")
        file.setFormatter(JsonFormatter())
        log.addHandler(file)
        return lambda n: log.info("served in %d ms", n, extra=EXTRA), lambda: None
    import logagg

    handler = logagg.Handler("app.log")
    if form == "structlog":
        import structlog

        import logagg.structlog

        logagg.structlog.configure("app.log")
        events = structlog.get_logger("app.views")
        return lambda _: events.info("served", **EXTRA), lambda: handler.flush(30)
    logging.getLogger().addHandler(handler)
    if form != "handler":
        logagg.install()
    if form == "beside another":
        logging.getLogger().addHandler(logging.NullHandler())
    call = lambda n: log.info("served in %d ms", n, extra=EXTRA)  # noqa: E731
    return call, lambda: handler.flush(30)


def measure(form: str) -> None:
    """Print the minimum and the median of a form, in nanoseconds."""
    call, catch_up = prepared(form)
    found = []
    for _ in range(60):
        before = time.thread_time_ns()
        for n in range(500):
            call(n)
        found.append((time.thread_time_ns() - before) / 500)
        catch_up()
    print(min(found), sorted(found)[len(found) // 2])


def repeat(form: str, count: int) -> None:
    """Only make calls."""
    call, _ = prepared(form)
    for n in range(count):
        call(n)


def instructions(form: str, pure: str) -> float:
    """The instructions of a call, by callgrind."""
    found = []
    wrap = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    for count in (1, MORE, 2 * MORE):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"LOGAGG_PURE": pure, "PYTHONHASHSEED": "0"}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            done = subprocess.run(
                [*(wrap if count > 1 else ()),  # the first one makes the bytecode
                 sys.executable, __file__, form, str(count)],
                cwd=folder, check=True, capture_output=True, text=True,
                env=environment,
            )  # fmt: skip
        if count == 1:
            continue
        collected = re.search(r"Collected : (\d+)", done.stderr)
        assert collected is not None, done.stderr
        found.append(int(collected[1]))
    return (found[1] - found[0]) / MORE


def main() -> None:
    """Measure all forms, in C and in Python, and print a table."""
    counts = "--instructions" in sys.argv
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for _ in range(ROUNDS):
        for form in FORMS:
            for pure in ("0", "1") if form != "filehandler" else ("0",):
                with tempfile.TemporaryDirectory() as folder:
                    done = subprocess.run(
                        [sys.executable, __file__, form], cwd=folder, check=True,
                        env=os.environ | {"LOGAGG_PURE": pure},
                        capture_output=True, text=True,
                    )  # fmt: skip
                times = tuple(map(float, done.stdout.split()))
                found.setdefault((form, pure), []).append(times)
    print("| form | | min, µs | median, µs | instructions |\n|---|---|---|---|---|")
    for (form, pure), times in found.items():
        language = "Python" if pure == "1" or form == "filehandler" else "C"
        least = min(each[0] for each in times) / 1000
        middle = sorted(each[1] for each in times)[len(times) // 2] / 1000
        number = f"{instructions(form, pure):,.0f}" if counts else ""
        print(f"| {form} | {language} | {least:.2f} | {middle:.2f} | {number} |")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--instructions"]
    if len(words) > 1:
        repeat(words[0], int(words[1]))
    elif words:
        measure(words[0])
    else:
        main()
