"""Whether a path lies on another machine: NFS, Lustre, SMB and their like.

Files on such a file system are seen by every machine that mounts it, while locks and
pids, which distinguish living owners from dead ones, may hold on one machine only.

`lies_elsewhere` is pure and decides by the kernel's list of mounts: the source names a
host (`host:/path`, `//host/share`), or the kind is one whose source names none. The rule
is that of `df --local` (gnulib's mountlist). `is_elsewhere` reads this machine's list,
once for each path; it never touches a file system that is another machine's.
"""

from __future__ import annotations

import functools
import os

from logagg.platform.system import PROC

__all__ = ["is_elsewhere", "lies_elsewhere"]

_KINDS = frozenset(
    b"acfs afs auristorfs beegfs coda fhgfs gpfs ibrix ocfs2 vxfs".split()
)
_ESCAPES = ((b"\\", b"\\134"), (b" ", b"\\040"), (b"\t", b"\\011"), (b"\n", b"\\012"))


@functools.cache
def is_elsewhere(path: str) -> bool:
    """Whether an absolute path, existing or not, lies on another machine.

    False where the kernel does not list its mounts.
    """
    # As it is written first: a server that is gone must not be contacted.
    return _on_remote_mount(path) or _on_remote_mount(os.path.realpath(path))


def _on_remote_mount(path: str) -> bool:
    try:
        mounts = os.open(f"{PROC}/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    text = b""
    try:
        while chunk := os.read(mounts, 1 << 16):
            text += chunk
    except OSError:
        pass
    finally:
        os.close(mounts)
    return lies_elsewhere(text, os.fsencode(path))


def lies_elsewhere(mounts: bytes, path: bytes) -> bool:
    """Whether a path lies on another machine, by the text of /proc/PID/mountinfo.

    Args:
        mounts: The text; lines that make no sense are passed over.
        path: An absolute path without `.` and `..`.
    """
    for plain, escaped in _ESCAPES:
        path = path.replace(plain, escaped)
    path = path.rstrip(b"/") + b"/"
    longest = b""
    found = False
    for line in mounts.splitlines():
        head, _, tail = line.partition(b" - ")
        place, what = head.split(b" "), tail.split(b" ")
        if len(place) < 5 or len(what) < 2:
            continue
        point = place[4].rstrip(b"/") + b"/"
        # Of several on one point the last is the one that is seen.
        if path.startswith(point) and len(point) >= len(longest):
            longest = point
            found = _names_a_host(what[0], what[1])
    return found


def _names_a_host(kind: bytes, source: bytes) -> bool:
    if kind in _KINDS or source.startswith(b"//"):
        return True
    return b":" in source and not source.startswith(b"/dev/")
