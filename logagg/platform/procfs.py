"""Memory and sockets of processes, and usable cores, read from /proc and /sys.

The portable form asks ps(1), which knows nothing of sockets.

Sockets: for servers that Python's `socket` does not see, since they are in C, Rust or
another language, or serve in a child of their own (granian). A process that is gone
meanwhile has none.

Cores: affinity and cgroup quota are obeyed. A container that may use two cores of a host
with sixty-four gets 2, whether it was limited by a cpuset (affinity) or by a quota
(`docker --cpus`, Kubernetes limits).
"""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from logagg.platform.system import LINUX, PROC, available_cpus

__all__ = [
    "SEES_SOCKETS",
    "available_memory",
    "children",
    "cpu_seconds",
    "family",
    "has_ended",
    "has_socket",
    "is_stopped",
    "listens",
    "polls",
    "rss_bytes",
    "usable_cores",
]

SEES_SOCKETS = LINUX
"""Whether `listens` and `polls` find what is there."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class _Process(NamedTuple):
    parent: int
    rss_bytes: int
    state: str


_GONE = _Process(0, 0, "Z")
_UNKNOWN = _Process(0, 0, "")


def _table() -> dict[int, _Process]:
    """All processes, as ps(1) lists them, by pid. Takes some milliseconds.

    Raises:
        OSError: It cannot be started: no descriptor, process or memory is free.
    """
    done = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,rss=,stat="],  # noqa: S607 - the system's own
        stdout=subprocess.PIPE,
        check=False,
    )
    rows = map(bytes.split, done.stdout.splitlines())
    found = {
        int(pid): _Process(int(parent), int(rss) * 1024, state.decode())
        for pid, parent, rss, state, *_ in rows
    }
    if not found:
        raise OSError("ps lists no process")
    return found


def _listed(pid: int) -> _Process:
    """A process's row, without a state where ps(1) cannot be started."""
    try:
        return _table().get(pid, _GONE)
    except OSError:
        return _UNKNOWN


def is_stopped(pid: int) -> bool:
    """Whether a process is suspended by a signal (Ctrl-Z)."""
    if not LINUX:
        return _listed(pid).state.startswith("T")
    try:
        stat = Path(f"{PROC}/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] == b"T"


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to take its status."""
    return _listed(pid).state.startswith("Z")


def rss_bytes(pid: int) -> int:
    """The resident memory of a process; 0 when it is gone."""
    if not LINUX:
        return _listed(pid).rss_bytes
    try:
        return int(Path(f"{PROC}/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used; 0 when it is gone, or not known."""
    try:
        stat = Path(f"{PROC}/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICKS
    except (OSError, ValueError, IndexError):
        return 0.0


def available_memory() -> int:
    """The bytes that new processes can have, within the cgroup's limit; a guess."""
    try:
        words = Path(f"{PROC}/meminfo").read_text().split()
        free = int(words[words.index("MemAvailable:") + 1]) * 1024
    except (OSError, ValueError, IndexError):
        return 1 << 62
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no limit: "max"
        return free
    return min(free, limit - used)


def family(pid: int) -> list[int]:
    """The process and its descendants; without the kernel's help just the process."""
    found = [pid]
    for each in found:
        found += children(each)
    return found


def children(pid: int) -> list[int]:
    """The children of a process; none without the kernel's help."""
    found: list[int] = []
    try:
        if not LINUX:
            return [child for child, row in _table().items() if row.parent == pid]
        for task in Path(f"{PROC}/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        pass
    return found


def listens(pids: list[int], ports: set[int]) -> bool:
    """Whether one of the processes has a listening TCP socket of its own on a port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"{PROC}/{pids[0]}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) in ports:
                inodes.add(f"socket:[{words[9]}]")
    return bool(inodes) and any(inodes & set(_links(pid).values()) for pid in pids)


def polls(pids: list[int], inodes: set[int]) -> bool:
    """Whether an epoll of the processes watches a socket with one of these inodes."""
    return any(_polls(pid, inodes) for pid in pids)


def has_socket(pids: list[int], inode: int) -> bool:
    """Whether one of the processes has a socket open."""
    return any(f"socket:[{inode}]" in _links(pid).values() for pid in pids)


def _links(pid: int) -> dict[str, str]:
    """The targets of a process's descriptors, by number."""
    links = {}
    try:
        for fd in Path(f"{PROC}/{pid}/fd").iterdir():
            links[fd.name] = str(fd.readlink())
    except OSError:
        pass
    return links


def _polls(pid: int, inodes: set[int]) -> bool:
    for fd, link in _links(pid).items():
        if link != "anon_inode:[eventpoll]":
            continue
        try:
            lines = Path(f"{PROC}/{pid}/fdinfo/{fd}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.replace(":", " ").split()
            if "ino" in words and int(words[words.index("ino") + 1], 16) in inodes:
                return True
    return False


# ---- cores ----------------------------------------------------------------------


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use; at least 1.

    A quota of a part of a core is rounded up.

    Args:
        root: The directory of /proc and /sys, for tests.
    """
    cores = available_cpus()
    quota = _quota(root) if LINUX else None
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(cores, 1)


def _quota(root: Path) -> float | None:
    """The smallest CPU quota of the process's cgroup and of all above it, in cores."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, read = root / "sys/fs/cgroup", _v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _v1
        else:
            continue
        here = base / path.strip("/")
        # Inside a container the path is the host's and does not exist here: then only
        # the mounted root, which is the container's own group, has a quota.
        while here != base and not here.is_dir():
            here = here.parent
        for directory in (here, *here.parents):
            found = read(directory)
            if found is not None:
                quotas.append(found)
            if directory == base:
                break
    return min(quotas, default=None)


def _v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _v1(directory: Path) -> float | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None
