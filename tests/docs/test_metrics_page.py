"""The page of metrics lists what `/metrics` serves, and nothing else."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import FOLDER

PROGRAM = """\
import logging, sys, logagg
logging.basicConfig(handlers=[logagg.Handler()], level="INFO")
logging.info("one")
assert logging.getLogger().handlers[0].flush()
print(flush=True)
sys.stdin.read()
"""


def served(path: Path) -> str:
    """The text of `/metrics`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        found = b""
        while piece := connection.recv(65536):
            found += piece
    return found.decode()


@pytest.mark.slow
def test_the_page_lists_every_metric_and_its_labels(isolated: Path) -> None:
    """Of the consumer, a worker, a file and a network sink."""
    log = isolated / "log.sock"
    consumer = subprocess.Popen(
        [
            sys.executable, "-m", "logagg", "serve", "--socket", str(log),
            "--metrics", f"unix:{isolated}/m.sock", "--sink", f"file:{isolated}/a.log",
            "--sink", "http://127.0.0.1:1/in?spool=off&grace=1s",
            "--sink", f"file:{isolated}/no.log?match=none=1&policy=drop_old",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert consumer.stderr is not None
    try:
        assert "LOGAGG_SOCKET" in consumer.stderr.readline()
        worker = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={"LOGAGG_SOCKET": str(log)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        deadline = time.monotonic() + 20
        while "logagg_worker_records" not in (text := served(isolated / "m.sock")):
            assert time.monotonic() < deadline, text
        worker.communicate()
    finally:
        consumer.send_signal(signal.SIGTERM)
        consumer.communicate()
    kinds = dict(re.findall(r"^# TYPE (logagg_\w+) (\w+)$", text, re.MULTILINE))
    listed = {}
    for line in (FOLDER / "metrics.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        for name in re.findall(r"`(logagg_\w+)", cells[0]) if cells else ():
            listed[name] = cells[1]
    assert listed == kinds
