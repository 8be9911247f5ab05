"""What each library loses when its process dies right after a log call has returned.

    python tests/bench/deaths.py [--calls 5000] [--rounds 3]

Each peer logs so many records in a process of its own, which then ends without any
further code: by `os._exit`, or by SIGKILL. What its files hold once they do not grow any
more is counted; the table has the most that was lost in a round. Beside it the processor
time of a call, all threads of the process, at least. Peers that are not installed are
named as missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = re.compile(rb"\b0 (\d+) order placed")
QUIET = 1.0

Call = Callable[[int], object]


def _logagg(path: Path) -> Call:
    import logagg

    logging.basicConfig(handlers=[logagg.Handler(path)], level="INFO")
    logagg.install()
    log = logging.getLogger("bench")
    return lambda n: log.info("0 %d order placed", n)


def _file_handler(path: Path) -> Call:
    logging.basicConfig(filename=path, level="INFO")
    log = logging.getLogger("bench")
    return lambda n: log.info("0 %d order placed", n)


def _queue(path: Path) -> Call:
    import logging.handlers
    import queue

    records: Any = queue.SimpleQueue()
    logging.basicConfig(handlers=[logging.handlers.QueueHandler(records)], level="INFO")
    file = logging.FileHandler(path)
    logging.handlers.QueueListener(records, file).start()
    log = logging.getLogger("bench")
    return lambda n: log.info("0 %d order placed", n)


def _loguru(path: Path) -> Call:
    from loguru import logger

    logger.remove()
    logger.add(path, enqueue=True, serialize=True)
    return lambda n: logger.info(f"0 {n} order placed")


def _picologging(path: Path) -> Call:
    import picologging

    log = picologging.getLogger("bench")
    log.setLevel(picologging.INFO)
    log.addHandler(picologging.FileHandler(str(path)))
    return lambda n: log.info("0 %d order placed", n)


def _logust(path: Path, *, enqueue: bool = False) -> Call:
    from logust import logger

    logger.remove()
    logger.add(path, serialize=True, enqueue=enqueue)
    return lambda n: logger.info(f"0 {n} order placed")


def _logust_enqueue(path: Path) -> Call:
    return _logust(path, enqueue=True)


def _logxide(path: Path) -> Call:
    from logxide import logging as log_module

    log = log_module.getLogger("bench")
    log.setLevel(logging.INFO)
    log.addHandler(log_module.FileHandler(str(path)))
    return lambda n: log.info("0 %d order placed", n)


def _bqlog(path: Path) -> Call:
    from bq.log import log as factory

    name = "appenders_config.file"
    made = factory.create_log(
        "bench",
        f"{name}.type=text_file\n{name}.levels=[all]\n{name}.time_zone=utc\n"
        f"{name}.base_dir_type=1\n{name}.file_name={path}\nlog.thread_mode=async\n",
    )
    return lambda n: made.info("0 {} order placed", n)


PEERS: dict[str, tuple[str, Callable[[Path], Call]]] = {
    "logagg": ("logagg", _logagg),
    "FileHandler": ("logging", _file_handler),
    "QueueHandler/QueueListener": ("logging", _queue),
    "loguru (enqueue)": ("loguru", _loguru),
    "picologging FileHandler": ("picologging", _picologging),
    "logust": ("logust", _logust),
    "logust (enqueue)": ("logust", _logust_enqueue),
    "logxide": ("logxide", _logxide),
    "bqlog (async)": ("bq", _bqlog),
}


def die(peer: str, how: str, calls: int) -> None:
    """Be the process that logs and dies."""
    call = PEERS[peer][1](Path("out.log"))
    call(-1)
    time.sleep(0.3)  # its threads and processes have started
    before = time.process_time_ns()
    for n in range(calls):
        call(n)
    os.write(1, b"%d" % ((time.process_time_ns() - before) / calls))
    if how == "kill -9":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def survivors(folder: Path) -> int:
    """How many different records there are once the files have ceased to grow."""
    found: set[bytes] = set()
    since, size = time.monotonic(), -1
    while time.monotonic() - since < QUIET:
        files = [path for path in folder.rglob("*") if path.is_file()]
        texts = [path.read_bytes() for path in files]
        if sum(map(len, texts)) != size:
            since, size = time.monotonic(), sum(map(len, texts))
            found = {n for text in texts for n in RECORD.findall(text)}
        time.sleep(0.02)
    return len(found)


def main() -> None:
    """Let all peers die, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--die", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.die:
        die(*options.die, options.calls)
    print("| | lost at os._exit | lost at kill -9 | CPU of a call, µs |")
    print("|---|---|---|---|")
    for peer, (needs, _) in PEERS.items():
        if importlib.util.find_spec(needs) is None:
            print(f"| {peer} | not installed | | |")
            continue
        lost, times = {"os._exit": 0, "kill -9": 0}, []
        for _ in range(options.rounds):
            for how, most in lost.items():
                with tempfile.TemporaryDirectory() as folder:
                    command = [sys.executable, __file__, "--die", peer, how]
                    command += ["--calls", str(options.calls)]
                    places = {"XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder}
                    done = subprocess.run(
                        command, cwd=folder, capture_output=True, check=False,
                        env=os.environ | places,
                    )  # fmt: skip
                    times.append(int(done.stdout.split()[-1]) / 1000)
                    left = options.calls - survivors(Path(folder))
                    lost[how] = max(most, left)
        row = " | ".join(f"{number:,}" for number in lost.values())
        print(f"| {peer} | {row} | {min(times):.2f} |", flush=True)


if __name__ == "__main__":
    main()
