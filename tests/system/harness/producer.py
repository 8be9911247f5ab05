"""A program that logs numbered records and keeps a ledger of what it was promised.

Its only argument is a JSON object; see `OPTIONS`. It runs until its count is reached,
its time is over, or SIGTERM comes, which ends it in good order.

The ledger is a small file that is mapped into memory: it stays whatever happens to the
process. `attempted` is raised before each call and `returned` behind it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
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
    "chain": "",  # the file of a `causes.Chain`: a record says which one it came after …
    "chain_every": 20,  # … after so many without
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


class Chain:
    """A file that hands the last link on from process to process, under its lock; see
    `causes`.

    It is opened for each link, so that an application which closes all descriptors, or
    gives up its rights, can go on with it.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def log(self, worker: str, n: int, log: Any) -> None:
        """Log a record with the last link as its cause; then it is the last.

        Args:
            worker: The producer's name.
            n: The record's number.
            log: Logs it, with further fields.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            known = os.pread(fd, 1000, 0)
            log({"after": json.loads(known)} if known else {})
            # One write of a fixed length: a process that is killed leaves a whole link.
            os.pwrite(fd, json.dumps([worker, n]).ljust(200).encode(), 0)
        finally:
            os.close(fd)


def ran_ns(log: Callable[[], None]) -> int:
    """Nanoseconds that a call took, without what it waited for a processor."""
    queued = in_queue_ns()
    before = time.perf_counter_ns()
    log()
    took = time.perf_counter_ns() - before
    return took - (in_queue_ns() - queued) if took > 20_000_000 else took


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
    chain = Chain(config["chain"]) if config["chain"] else None
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
        took = 0

        def emit(more: dict[str, Any], text: str = text, extra: Any = extra) -> None:
            nonlocal took
            took = ran_ns(lambda: log.info(text, extra={**extra, **more}))

        if chain is not None and n % config["chain_every"] == 0:
            chain.log(worker, n, emit)
        else:
            emit({})
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
