"""Requests per second of one uvicorn application: under `logagg run`, and its peers.

    python tests/bench/cluster_requests.py [--seconds 3] [--workers 2] [--clients 32]

A row of JSON for each way to run it: requests per second with kept connections and with
a connection a request (where handing over costs), latencies in ms, failures. The client
is ours, in one asyncio process, so it takes its share of the machine from all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APP = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
WORKER = """
from uvicorn_worker import UvicornWorker
class Worker(UvicornWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "auto"}
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LOGAGG = [sys.executable, "-m", "logagg", "run", "--sink", "file:/dev/null"]


def ways(port: int, workers: int) -> dict[str, list[str]]:
    """The commands to compare, all on the asyncio loop with the same HTTP parser."""
    server = ["bench_app:app", "--port", str(port), "--no-access-log"]
    server += ["--log-level", "warning", "--loop", "asyncio"]
    run = [*LOGAGG, "-w", str(workers), "--bind", f"127.0.0.1:{port}"]
    return {
        "logagg run --policy kernel": [*run, "-m", "uvicorn", *server],
        "logagg run --policy rr": [*run, "--policy", "rr", "-m", "uvicorn", *server],
        "uvicorn --workers": [
            sys.executable, "-m", "uvicorn", *server, "--workers", str(workers),
        ],
        "gunicorn -k uvicorn": [
            sys.executable, "-m", "gunicorn", "bench_app:app", "-w", str(workers),
            "-k", "bench_worker.Worker", "-b", f"127.0.0.1:{port}",
            "--log-level", "warning",
        ],
    }  # fmt: skip


async def client(port: int, end: float, times: list[float], *, keep: bool) -> int:
    """Ask until the end; the number of failures."""
    failures = 0
    reader = writer = None
    while time.monotonic() < end:
        began = time.perf_counter()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert reader is not None
            writer.write(REQUEST)
            await writer.drain()
            await reader.readuntil(b"\r\n\r\nok")
            times.append(time.perf_counter() - began)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            failures += 1
            writer = None
        if not keep and writer is not None:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    return failures


async def measure(
    port: int, seconds: float, clients: int, *, keep: bool
) -> dict[str, float]:
    """Load the port and say how it went."""
    times: list[float] = []
    end = time.monotonic() + seconds
    jobs = [client(port, end, times, keep=keep) for _ in range(clients)]
    failures = sum(await asyncio.gather(*jobs))
    times.sort()
    return {
        "per_second": round(len(times) / seconds),
        "p50_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[len(times) * 99 // 100] * 1000, 2),
        "failures": failures,
    }


def wait_for(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the port answers; False when the server cannot run here."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), 1),
        ):
            time.sleep(1.5)  # the remaining workers
            return process.poll() is None
        time.sleep(0.05)
    return False


def main() -> None:
    """Measure each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "bench_app.py").write_text(APP)
        Path(directory, "bench_worker.py").write_text(WORKER)
        env = {**os.environ, "PYTHONPATH": directory}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for name, command in ways(port, options.workers).items():
            process = subprocess.Popen(
                command, env=env, cwd=directory, stderr=subprocess.DEVNULL
            )
            row: dict[str, object] = {"way": name, "workers": options.workers}
            if wait_for(port, process):
                for keep, key in ((True, "kept"), (False, "connection_each")):
                    row[key] = asyncio.run(
                        measure(port, options.seconds, options.clients, keep=keep)
                    )
            else:
                row["skipped"] = "it does not run here"
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
