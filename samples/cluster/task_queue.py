"""A task queue: idle workers pull heavy work, the primary collects the results.

python samples/cluster/task_queue.py
"""

import asyncio
import os
import signal
import tempfile

import logagg


@logagg.task()
def heavy_work(number):
    return sum(n * n for n in range(number))


@logagg.task(retries=1)
def fragile(path):
    """Kill its own worker the first time; the retry runs on another."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


async def main():
    async with logagg.Cluster(__file__, workers=3, level="WARNING") as cluster:
        futures = [cluster.submit(heavy_work, n * 10_000) for n in range(8)]
        print("results", [await future for future in futures], flush=True)
        path = f"{tempfile.gettempdir()}/logagg-sample-{os.getpid()}"
        print("fragile", await cluster.run(fragile, path, timeout=30), flush=True)
        os.unlink(path)


if logagg.is_primary:
    asyncio.run(main())
