"""Small file systems and read-only places, without special rights.

A user namespace lets anyone mount: `unshare -rm`. What is mounted there is seen by the
processes started in it only, their consumer included.
"""

from __future__ import annotations

import functools
import shlex
import subprocess
from collections.abc import Sequence


@functools.cache
def possible() -> bool:
    """Whether this machine lets us make a namespace with mounts."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def small_disk(folder: object, size: str = "1m") -> str:
    """A shell command that mounts a small disk (tmpfs) on a directory."""
    return f"mount -t tmpfs -o size={size},mode=700 none {shlex.quote(str(folder))}"


def read_only(folder: object) -> str:
    """A shell command that makes a directory read-only."""
    name = shlex.quote(str(folder))
    return f"mount --bind {name} {name} && mount -o remount,bind,ro {name}"


def jailed(command: Sequence[str], *mounts: str) -> list[str]:
    """A command line that runs another behind some mounts."""
    script = " && ".join([*mounts, 'exec "$@"'])
    return ["unshare", "-rm", "sh", "-c", script, "jail", *command]
