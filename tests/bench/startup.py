"""What it costs to start: to import, to make the handler, to log a first record.

Each figure is the median over fresh interpreters, interleaved, from the first line of the
program on. Bytecode is cached, as it is for those who install a wheel: these
figures are of the `logagg` that this Python has, best of an installed wheel.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

_FIRST = (
    "import logging, logagg; h = logagg.Handler('app.log'); "
    "logging.getLogger().addHandler(h); logging.warning('first')"
)

CASES = {
    "nothing": "pass",
    "import logging": "import logging",
    "import logging.handlers": "import logging.handlers",
    "import logagg": "import logagg",
    "import logagg; logagg.Handler": "import logagg; logagg.Handler",
    "import logagg, the first record": _FIRST,
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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = os.environ | {"XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for turn in range(-1, rounds):  # the first one makes the bytecode
            for name, code in CASES.items():
                done = subprocess.run(
                    [sys.executable, "-c", _PROGRAM.format(code)],
                    capture_output=True, check=False, cwd=folder, env=environment,
                )  # fmt: skip
                if not done.returncode and turn >= 0:
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
