"""What a record costs in the consumer: processor time, and instructions under callgrind.

    python tests/bench/consumer.py                         times, in C and in Python
    python tests/bench/consumer.py --instructions          and instructions (valgrind)
    python tests/bench/consumer.py --size 8192 --batch 50

The consumer's own object and file sink run in one process with the pipes of `--workers`;
each cycle finds `--batch` records of `--size` bytes in each of them and is waited for
until the file has what it released. The clock is the cycles' own, so that nothing is
waited for and two runs do the same. Instructions are those of a run with twice as many
cycles less those of the other, and less the same difference of the producers alone. They
hardly depend on what else the machine does: they show a change where times cannot.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CYCLES = 200
COUNTED = 20
STEP_NS = 10_000_000
START = 1_795_568_400 * 1_000_000_000


def block(first_ns: int, first: int, count: int, worker: int, size: int) -> bytes:
    """Records of one worker for one cycle."""
    from logagg.core.line import prefix_tail, sort_key

    lines = []
    for n in range(count):
        head = sort_key(first_ns + n * (STEP_NS // count) + worker)[:-1]
        line = b"%b%d," % (head + prefix_tail("info", str(worker)), first + n)
        lines.append(line + b'"message":"' + b"x" * (size - len(line) - 12) + b'"\n')
    return b"".join(lines)


async def run(options: argparse.Namespace, place: Path) -> float:
    """Seconds of processor time for the second half of the cycles."""
    from logagg.consumer.consumer import Consumer
    from logagg.consumer.worker_source import WorkerSource
    from logagg.ipc.protocol import ConsumerConfig, RecordsHello
    from logagg.platform.system import set_pipe_bytes

    path = str(place / "socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    listener.setblocking(False)
    consumer = Consumer(ConsumerConfig(socket=path, fd=listener.detach(), offset=0))
    now = START
    consumer._now_ns = lambda: now
    consumer._clock.check = lambda *_: None
    consumer._takeover.holds = lambda *_: False
    url = f"file:{place / 'out.log'}?fsync=never"
    assert not await consumer._registry.add(url, [1, 2], wanted=True, waits=False)
    pipes, ends = [], []
    for worker in range(options.workers):
        read, write = os.pipe()
        set_pipe_bytes(write, 1 << 20)
        pipes.append(write)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ends.append(there)
        hello = RecordsHello(pid=worker + 1, worker=str(worker), stream=f"{worker}-a")
        source = WorkerSource(here, read, hello, os.getpid(), "bench")
        source.start_reading()
        consumer.add_worker(source)
    spent = 0.0
    for number in range(options.cycles):
        for worker, pipe in enumerate(pipes):
            first = 1 + number * options.batch
            part = block(now, first, options.batch, worker, options.size)
            assert os.write(pipe, part) == len(part), "the batch does not fit the pipe"
        now += STEP_NS
        before = time.process_time()
        if not options.feed:
            consumer.cycle()
            while not consumer._fanout.idle:
                await asyncio.sleep(0.001)
        else:
            for source in consumer._sources:
                os.read(source.pipe, 1 << 20)
        if number >= options.cycles // 2:
            spent += time.process_time() - before
    return (
        spent / (options.cycles - options.cycles // 2) / options.workers / options.batch
    )


def measured(
    options: argparse.Namespace, *words: str, pure: bool, wrap: tuple[str, ...] = ()
) -> str:
    """What a run in a process of its own prints."""
    command = [*wrap, sys.executable, __file__, "--run", *words]
    for name in ("workers", "batch", "size"):
        command += [f"--{name}", str(getattr(options, name))]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "LOGAGG_PURE": str(int(pure)), "PYTHONHASHSEED": "0",
            "XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder,
        }  # fmt: skip
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # to compile counts, too
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout + done.stderr


def instructions(options: argparse.Namespace, *, pure: bool) -> float:
    """Instructions a record: of cycles, without the start and without the producers."""
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    counts = {}
    measured(options, "--cycles", "2", pure=pure)  # makes the bytecode
    for feed in (False, True):
        for cycles in (COUNTED, 2 * COUNTED):
            words = ["--cycles", str(cycles), *(["--feed"] if feed else [])]
            text = measured(options, *words, pure=pure, wrap=valgrind)
            found = re.search(r"Collected : (\d+)", text)
            assert found is not None, text
            counts[feed, cycles] = int(found[1])
    both = [counts[feed, 2 * COUNTED] - counts[feed, COUNTED] for feed in (False, True)]
    return (both[0] - both[1]) / COUNTED / options.workers / options.batch


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--size", type=int, default=340)
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=CYCLES, help=argparse.SUPPRESS)
    parser.add_argument("--feed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        sys.stdout.write(f"{asyncio.run(run(options, Path.cwd()))}\n")
        return
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.rounds):
        for pure, found in times.items():
            found.append(float(measured(options, pure=pure)) * 1e6)
    sys.stdout.write(
        "| form | least, µs | median, µs | instructions |\n|---|---|---|---|\n"
    )
    for pure, found in times.items():
        count = (
            f"{instructions(options, pure=pure):,.0f}" if options.instructions else ""
        )
        row = f"{min(found):.3f} | {sorted(found)[len(found) // 2]:.3f} | {count}"
        sys.stdout.write(f"| {'Python' if pure else 'C'} | {row} |\n")


if __name__ == "__main__":
    main()
