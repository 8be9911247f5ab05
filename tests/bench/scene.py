"""A logagg of its own for a measurement: a private folder, a handler, its consumer."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A private folder, also for sockets and spools; removed at the end."""
    place = Path(tempfile.mkdtemp(prefix="bench-"))
    os.environ["XDG_RUNTIME_DIR"] = os.environ["XDG_STATE_HOME"] = str(place)
    os.environ.pop("LOGAGG_SOCKET", None)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def logger(path: Path, **options: Any) -> logging.Logger:
    """A logger that writes to a file through the product, and nowhere else."""
    import logagg

    log = logging.getLogger("bench")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers[:] = [logagg.Handler(path, **options)]
    return log


def consumer(place: Path, timeout: float = 10.0) -> int:
    """Wait for the consumer of a folder; return its pid."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = measure.processes("logagg.consumer.consumer", str(place))
        if found:
            return found[0]
        time.sleep(0.01)
    raise TimeoutError("no consumer was started")


def fork(work: Any, *arguments: Any) -> int:
    """Run a function in a forked child, which then ends; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(*arguments)
        logging.shutdown()
        status = 0
    finally:
        os._exit(status)


def fields(w: int, n: int) -> dict[str, Any]:
    """The seven fields of a typical record."""
    return {
        "w": w,
        "n": n,
        "user": "u-184467",
        "path": "/api/v2/orders",
        "status": 200,
        "amount": 129.95,
        "cached": False,
    }
