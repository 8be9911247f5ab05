"""What it costs to import and to make the handler, beside the standard library.

Each figure is the median over fresh interpreters, interleaved, with the import of
nothing subtracted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CASES = {
    "nothing": "pass",
    "import logging": "import logging",
    "import logging.handlers": "import logging.handlers",
    "import logagg": "import logagg",
    "import logagg; logagg.Handler": "import logagg; logagg.Handler",
    "import structlog": "import structlog",
    "import loguru": "import loguru",
}

_PROGRAM = """\
import time
start = time.perf_counter_ns(), time.process_time_ns()
{}
print(time.perf_counter_ns() - start[0], time.process_time_ns() - start[1])
"""


def measured(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of wall and processor time for each case."""
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, code in CASES.items():
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM.format(code)],
                capture_output=True,
                check=False,
            )
            if not done.returncode:
                wall, cpu = map(int, done.stdout.split())
                found[name].append((wall, cpu))
    result = {}
    for name, pairs in found.items():
        if pairs and name != "nothing":
            result[name] = {
                "wall_ms": round(statistics.median(p[0] for p in pairs) / 1e6, 2),
                "cpu_ms": round(statistics.median(p[1] for p in pairs) / 1e6, 2),
            }
    return result
