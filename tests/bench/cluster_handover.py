"""From a client's connect until a worker has it: policy rr beside kernel.

    python tests/bench/cluster_handover.py [--connections 3000] [--workers 2]

A row of JSON for each policy: the time from `connect` until the first byte, which the
worker sends as soon as it has accepted, one connection after the other. The difference
is what handing over costs, once for a connection. Microseconds.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

APP = """
import asyncio, sys
async def greet(reader, writer):
    writer.write(b"x")
    await reader.read()
    writer.close()
async def main():
    server = await asyncio.start_server(greet, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""
LOGAGG = [sys.executable, "-m", "logagg", "run", "--sink", "file:/dev/null"]
FIRST = 200  # not counted: caches, and the workers' start


def connect(port: int) -> float:
    """Seconds from connecting until the first byte."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.recv(1)
        return time.perf_counter() - began


def main() -> None:
    """Measure each policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "app.py").write_text(APP)
        for policy in ("kernel", "rr"):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            words = ["-w", str(options.workers), "--policy", policy]
            words += ["--bind", f"127.0.0.1:{port}", "app.py", str(port)]
            run = subprocess.Popen([*LOGAGG, *words], cwd=directory)
            deadline = time.monotonic() + 20
            while True:
                try:
                    connect(port)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            times = [connect(port) for _ in range(FIRST + options.connections)]
            micros = sorted(each * 1e6 for each in times[FIRST:])
            run.send_signal(signal.SIGTERM)
            run.wait()
            row = {
                "policy": policy,
                "connections": len(micros),
                "p50_us": round(micros[len(micros) // 2]),
                "p99_us": round(micros[len(micros) * 99 // 100]),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
