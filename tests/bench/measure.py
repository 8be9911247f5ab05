"""Clocks, percentiles, memory, and the judgement of a written file.

Nothing here knows a peer. Processor time is read from the kernel's own per-process
clocks in nanoseconds, wall time ends with the file's modification time, so that waiting
for the end costs the measured processes nothing.
"""

from __future__ import annotations

import array
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson


def cpu_ns(pid: int) -> int:
    """Processor time of another process, all threads; 0 when it has ended."""
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)  # its CPUCLOCK_SCHED
    except OSError:
        return 0


def peak_bytes(pid: int | str = "self") -> int:
    """The largest resident memory that a process has had."""
    return _status(pid, "VmHWM:")


def resident_bytes(pid: int | str = "self") -> int:
    """The resident memory of a process now."""
    return _status(pid, "VmRSS:")


def _status(pid: int | str, name: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def processes(*words: str) -> list[int]:
    """The pids of processes whose command line has all these words."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes().decode()
            except (OSError, UnicodeDecodeError):
                continue
            if all(word in line for word in words):
                found.append(int(name))
    return found


def timed(call: Callable[[int], None], count: int) -> tuple[array.array[int], int]:
    """Make `count` calls; return each one's nanoseconds, and the processor time.

    The latency of a call includes the loop and one reading of the clock.
    """
    spent = array.array("Q", bytes(8 * count))
    clock = time.perf_counter_ns
    cpu = time.process_time_ns()
    last = clock()
    for n in range(count):
        call(n)
        now = clock()
        spent[n] = now - last
        last = now
    return spent, time.process_time_ns() - cpu


def percentiles(parts: list[array.array[int]]) -> dict[str, float]:
    """p50, p99, p999 and the maximum over all workers' calls, in microseconds."""
    merged = sorted(value for part in parts for value in part)
    if not merged:
        return {}
    last = len(merged) - 1

    def at(share: float) -> float:
        return round(merged[min(int(share * len(merged)), last)] / 1000, 2)

    return {
        "p50_us": at(0.5),
        "p99_us": at(0.99),
        "p999_us": at(0.999),
        "max_us": round(merged[last] / 1000, 1),
    }


class Growth:
    """How many lines a growing file has, read piece by piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._at = 0

    def look(self) -> int:
        """Count the lines that came since the last look."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                while chunk := file.read(1 << 20):
                    self.lines += chunk.count(b"\n")
                    self._at += len(chunk)
        except FileNotFoundError:
            pass
        return self.lines

    def wait(self, count: int, patience: float, interval: float = 0.004) -> bool:
        """Wait for so many lines; give up when none came for `patience` seconds."""
        quiet_since = time.monotonic()
        before = self._at
        while self.look() < count:
            now = time.monotonic()
            if self._at != before:
                before, quiet_since = self._at, now
            elif now - quiet_since > patience:
                return False
            time.sleep(interval)
        return True


def judge(path: Path, workers: int, calls: int) -> dict[str, int]:
    """Read what a peer wrote and count what is wrong with it.

    Returns:
        `lost`: records that stand nowhere; `damaged`: lines that are no record;
        `repeated`; `disorder`: lines that stand before an earlier one of their own
        worker; `back`: lines whose timestamp is before that of the line above;
        `bytes`: the length of a measured record's line, on average.
    """
    seen = [bytearray(calls) for _ in range(workers)]
    last = [-1 << 40] * workers
    damaged = repeated = disorder = back = size = count = 0
    newest: Any = None
    with path.open("rb") as file:
        for line in file:
            try:
                w, n, stamp = identify(orjson.loads(line))
            except (ValueError, KeyError, IndexError, TypeError):
                damaged += 1
                continue
            if w < 0:
                continue
            if newest is not None and stamp < newest:
                back += 1
            else:
                newest = stamp
            if n < last[w]:
                disorder += 1
            last[w] = n
            if n < 0:
                continue
            size += len(line)
            count += 1
            if seen[w][n]:
                repeated += 1
            seen[w][n] = 1
    found = sum(sum(each) for each in seen)
    return {
        "lost": workers * calls - found,
        "damaged": damaged,
        "repeated": repeated,
        "disorder": disorder,
        "back": back,
        "bytes": round(size / max(count, 1)),
    }


def identify(record: dict[str, Any]) -> tuple[int, int, Any]:
    """A record's worker, number and time; worker -1 for a service's own records."""
    if "record" in record:  # loguru's serialized form
        record = record["record"]
        record = {
            **record["extra"],
            "message": record["message"],
            "timestamp": record["time"]["timestamp"],
        }
    if record.get("logger") == "logagg":
        return -1, 0, 0
    stamp = record["timestamp"]
    if "w" in record:
        return int(record["w"]), int(record["n"]), stamp
    words = (record.get("message") or record["event"]).split(" ", 2)
    return int(words[0]), int(words[1]), stamp
