"""How many cores this process may really use: affinity and cgroup quota obeyed.

A container that may use two cores of a host with sixty-four gets 2, whether it was
limited by a cpuset (affinity) or by a quota (`docker --cpus`, Kubernetes limits).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_cores"]


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use; at least 1.

    A quota of a part of a core is rounded up. `root` is where /proc and /sys are
    looked for (for tests).
    """
    cores = len(os.sched_getaffinity(0))
    quota = _quota(root)
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
        # the mounted root, which is the container's own group, says something.
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
