"""Tasks per second beside ProcessPoolExecutor, for small and for real work.

    python tests/bench/cluster_tasks.py

Rows of JSON: tasks per second with two workers, all submitted at once, results awaited
in order; "sum" adds up `size` squares.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor

import logagg

COUNTS = {1: 5000, 1000: 5000, 100_000: 300}


@logagg.task()
def work(size: int) -> int:
    """Add up squares."""
    return sum(n * n for n in range(size))


def measure(name: str, pool: object) -> None:
    """Run all sizes through one pool."""
    for _ in range(4):
        pool.submit(work, 1).result()  # type: ignore[attr-defined]
    for size, count in COUNTS.items():
        began = time.perf_counter()
        futures = [pool.submit(work, size) for _ in range(count)]  # type: ignore[attr-defined]
        for future in futures:
            future.result()
        rate = count / (time.perf_counter() - began)
        print(
            json.dumps({"who": name, "size": size, "per_second": round(rate)}),
            flush=True,
        )


def main() -> None:
    """Be the primary."""
    with ProcessPoolExecutor(2) as executor:
        measure("ProcessPoolExecutor", executor)
    with logagg.Cluster(__file__, workers=2, sinks=["file:/dev/null"]) as cluster:
        measure("logagg", cluster)


if logagg.is_primary and __name__ == "__main__":
    main()
