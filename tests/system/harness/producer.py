"""A program that logs numbered records and keeps a ledger of what it was promised.

Its only argument is a JSON object; see `OPTIONS`. It runs until its count is reached,
its time is over, or SIGTERM comes, which ends it in good order.

The ledger is a small file that is mapped into memory: it stays whatever happens to the
process. `attempted` is raised before each call and `returned` behind it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import signal
import struct
import sys
import time
from typing import Any

LEDGER = struct.Struct("6q")
"""attempted, returned, the longest call (ns), calls over 1 ms, finished, pid."""

OPTIONS: dict[str, Any] = {
    "path": "",  # the log file; empty: LOGAGG_SOCKET decides
    "sinks": None,  # sink URLs besides
    "options": {},  # further arguments of logagg.Handler
    "run": "r",
    "worker": "w",
    "first": 0,  # the first number
    "count": 1000,
    "seconds": 0.0,  # 0: until `count`
    "rate": 0.0,  # records a second, 0: as fast as can be
    "size": 40,  # characters of the payload
    "ledger": "",
    "wait": False,  # attach with a record of its own, say so, wait for a line on stdin
    "forget": [],  # variables to drop from the environment once attached
    "close": True,  # end with logging.shutdown(); else by os._exit
}


def payload(run: str, worker: str, n: int, size: int) -> str:
    """The text of a record: different for each, of a known length, not all ASCII."""
    seed = f"{run}/{worker}/{n}:é\n"
    return (seed * (size // len(seed) + 1))[: max(size, 1)]


def checksum(run: str, worker: str, n: int, text: str) -> str:
    """What proves that a payload belongs to its number and came whole."""
    data = f"{run}\0{worker}\0{n}\0{text}".encode()
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def main(config: dict[str, Any]) -> None:
    import logagg

    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    book = open(config["ledger"], "r+b")  # noqa: SIM115 - it lives as long as we do
    ledger = mmap.mmap(book.fileno(), LEDGER.size)
    handler = logagg.Handler(
        config["path"] or None, sinks=config["sinks"], **config["options"]
    )
    logging.basicConfig(handlers=[handler], level="DEBUG")
    log = logging.getLogger("harness")
    if config["wait"]:
        log.debug("ready")
        for name in config["forget"]:
            os.environ.pop(name, None)
        print("ready", flush=True)
        sys.stdin.readline()
    run, worker, size = config["run"], config["worker"], config["size"]
    pause = 1 / config["rate"] if config["rate"] else 0.0
    until = time.monotonic() + config["seconds"] if config["seconds"] else None
    n = first = config["first"]
    longest = slow = 0
    started = time.monotonic()
    while not ended:
        if until is None and n - first >= config["count"]:
            break
        if until is not None and time.monotonic() > until:
            break
        text = payload(run, worker, n, size)
        extra = {"run": run, "w": worker, "n": n, "sum": checksum(run, worker, n, text)}
        LEDGER.pack_into(ledger, 0, n + 1, n, longest, slow, 0, os.getpid())
        before = time.perf_counter_ns()
        log.info(text, extra=extra)
        took = time.perf_counter_ns() - before
        n += 1
        longest = max(longest, took)
        slow += took > 1_000_000
        LEDGER.pack_into(ledger, 0, n, n, longest, slow, 0, os.getpid())
        if pause:
            ahead = started + (n - first) * pause - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
    if not config["close"]:
        os._exit(0)
    logging.shutdown()
    LEDGER.pack_into(ledger, 0, n, n, longest, slow, 1, os.getpid())


if __name__ == "__main__":
    main({**OPTIONS, **json.loads(sys.argv[1])})
