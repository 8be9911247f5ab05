"""The round trip of a message between primary and worker, by size, beside Node's.

    python tests/bench/cluster_messages.py

Rows of JSON: a request to a worker and its answer (asyncio in the primary, a plain
handler in the worker), and the same through Node's cluster if `node` is there.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from pathlib import Path

import logagg

SIZES = (10, 100, 1000, 10_000, 100_000, 1_000_000)


async def main() -> None:
    """Be the primary."""
    cluster = logagg.Cluster(__file__, workers=1, sinks=["file:/dev/null"])
    ready = asyncio.Event()
    cluster.on("ready")(lambda _worker: ready.set())
    async with cluster:
        await ready.wait()
        worker = cluster.workers[0]
        for size in SIZES:
            payload = {"b": "x" * size}
            rounds = max(50, min(3000, 20_000_000 // size))
            began = time.perf_counter()
            for _ in range(rounds):
                await worker.request(payload)
            micros = (time.perf_counter() - began) / rounds * 1e6
            row = {"who": "logagg", "bytes": size, "round_trip_us": round(micros)}
            print(json.dumps(row), flush=True)
        began = time.perf_counter()
        receipts = [worker.send(n) for n in range(20_000)]
        await receipts[-1]
        rate = 20_000 / (time.perf_counter() - began)
        print(
            json.dumps({"who": "logagg", "one_way_per_second": round(rate)}), flush=True
        )
    if shutil.which("node"):
        subprocess.run(["node", str(Path(__file__).with_suffix(".js"))], check=True)


if logagg.is_primary:
    asyncio.run(main())
else:
    import threading

    assert logagg.worker is not None
    logagg.worker.on("request")(lambda message: message)
    logagg.worker.on("message")(lambda _message: None)
    logagg.worker.ready()
    threading.Event().wait()
