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
    "handler": True,  # make a logagg.Handler; else `logagg run` has
    "ledgers": "",  # a folder: the ledger is a new file there, the worker's name is its own
    "uid": 0,  # become this user …
    "drop_after": 0,  # … after so many records
    "close_every": 0,  # after so many records close all descriptors, as a daemon does
    "own": "",  # a folder: and open files there, which get the numbers
}

OWN = b"the application's own\n"
"""What stands in the files that a producer opens for itself, and nothing else."""


def payload(run: str, worker: str, n: int, size: int) -> str:
    """The text of a record: different for each, of a known length, not all ASCII."""
    seed = f"{run}/{worker}/{n}:é\n"
    return (seed * (size // len(seed) + 1))[: max(size, 1)]


def checksum(run: str, worker: str, n: int, text: str) -> str:
    """What proves that a payload belongs to its number and came whole."""
    data = f"{run}\0{worker}\0{n}\0{text}".encode()
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def in_queue_ns() -> int:
    """How long this thread has been ready to run but did not, in nanoseconds.

    On a busy machine a call that waits for nothing takes long all the same; the kernel
    counts that apart. Where it does not (`schedstat` is missing), 0.
    """
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1])
    except OSError:
        return 0


def make_ledger(config: dict[str, Any]) -> None:
    """Make a ledger of this process's own, and take its name."""
    slot = os.environ.get("LOGAGG_SLOT", "")
    name = f"{config['worker']}{slot}-{os.getpid()}-{time.monotonic_ns()}"
    path = os.path.join(config["ledgers"], name)
    with open(path + ".new", "wb") as file:
        file.write(LEDGER.pack(0, 0, 0, 0, 0, os.getpid()))
    os.rename(path + ".new", path)
    config.update(worker=name, ledger=path)


def close_all(folder: str, n: int) -> None:
    """Close all descriptors as daemonising libraries do; open files of our own."""
    os.closerange(3, 256)
    for number in range(8):
        own = os.open(
            os.path.join(folder, f"{os.getpid()}.{n}.{number}"),
            os.O_RDWR | os.O_CREAT,
        )
        os.write(own, OWN)


def become(uid: int) -> None:
    """Drop all privileges, as a server does that was started by root."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def main(config: dict[str, Any]) -> None:  # noqa: C901 - one straight loop, its options
    import logagg

    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    if config["ledgers"]:
        make_ledger(config)
    book = open(config["ledger"], "r+b")  # noqa: SIM115 - it lives as long as we do
    ledger = mmap.mmap(book.fileno(), LEDGER.size)
    if config["handler"]:
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
        queued = in_queue_ns()
        before = time.perf_counter_ns()
        log.info(text, extra=extra)
        took = time.perf_counter_ns() - before
        if took > 20_000_000:
            took -= in_queue_ns() - queued
        n += 1
        longest = max(longest, took)
        slow += took > 1_000_000
        LEDGER.pack_into(ledger, 0, n, n, longest, slow, 0, os.getpid())
        if config["close_every"] and n % config["close_every"] == 0:
            close_all(config["own"], n)
        if config["uid"] and n - first == config["drop_after"]:
            become(config["uid"])
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
