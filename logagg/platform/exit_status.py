"""How a process ended that is not a child of this one, as far as Linux reveals it.

Two sources, which complement each other: `/proc` until its parent has reaped it, and,
since Linux 6.16, the pidfd of the peer of a Unix socket from then on.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from logagg.platform.system import LINUX, PROC

__all__ = ["exit_status", "pidfd_status"]

# Of linux/sched.h, asm-generic/socket.h and linux/pidfd.h.
_EXITING = 0x4
_SO_PEERPIDFD = 77
_INFO = struct.Struct("<Q52xi")
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_INFO_EXIT = 1 << 3


def exit_status(connection: socket.socket, pid: int) -> int | None:
    """The wait status of a connection's peer, for `os.waitstatus_to_exitcode`.

    Args:
        connection: A Unix socket that the process connected itself.
        pid: The process.

    Returns:
        None while it runs, and where the kernel does not give its status.
    """
    if not LINUX:
        return None
    try:
        with open(f"{PROC}/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[-1]) if int(fields[6]) & _EXITING else None
    except (ProcessLookupError, FileNotFoundError):
        pass  # its parent has reaped it
    except (OSError, ValueError, IndexError):
        return None
    try:
        descriptor = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    try:
        return pidfd_status(descriptor)
    finally:
        os.close(descriptor)


def pidfd_status(pidfd: int) -> int | None:
    """The wait status of a pidfd's process once it was reaped, by this process or not.

    Returns:
        None before that, and where the kernel does not know it (Linux before 6.16).
    """
    info = bytearray(_INFO.pack(_INFO_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    mask, status = _INFO.unpack(info)
    return int(status) if mask & _INFO_EXIT else None
