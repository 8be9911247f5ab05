"""Who is at the other end of a Unix socket, as the kernel knows."""

from __future__ import annotations

import socket
import struct
import sys

from logagg.platform.system import LINUX, PROC

__all__ = ["credentials", "is_pid_of"]

_PEER = struct.Struct("3i")
_BSD_PEER = struct.Struct("@IIh16I")  # struct xucred: version, uid, ngroups, groups
_BSD_LEVEL, _BSD_CREDENTIALS, _BSD_PID = 0, 1, 2  # sys/un.h of macOS


def credentials(connection: socket.socket) -> tuple[int, int, int]:
    """The pid, uid and gid of the process at the other end; the pid is 0 if not visible.

    Raises:
        OSError: It is gone.
    """
    if sys.platform == "linux":
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, uid, gid = _PEER.unpack(raw)
        return pid, uid, gid
    raw = connection.getsockopt(_BSD_LEVEL, _BSD_CREDENTIALS, _BSD_PEER.size)
    _, uid, _, gid, *_ = _BSD_PEER.unpack(raw)
    return connection.getsockopt(_BSD_LEVEL, _BSD_PID), uid, gid


def is_pid_of(pid: int, peer_pid: int) -> bool:
    """Whether a process may call itself `pid`, in whatever pid namespace it lives.

    Args:
        pid: The pid in its hello.
        peer_pid: Its pid by the kernel, 0 when that is not visible from here.
    """
    if peer_pid in (pid, 0):
        return True
    if not LINUX:
        return False
    try:
        with open(f"{PROC}/{peer_pid}/status", "rb") as file:
            words = next(line for line in file if line.startswith(b"NSpid:")).split()
    except (OSError, StopIteration):
        return True  # it has ended meanwhile; its records count all the same
    return str(pid).encode() in words[1:]
