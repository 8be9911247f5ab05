"""Descriptors, memory and numbers, as the system has them."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap

__all__ = [
    "LINUX", "MAX_SOCKET_PATH", "NO_SIGNAL", "PROC", "RSS_UNIT", "SO_DOMAIN",
    "available_cpus", "bind_with_mode", "change_mode", "fdatasync", "memory_file",
    "opened_path", "pipe_bytes", "reopen_terminal", "set_pipe_bytes", "wipe_on_fork",
]  # fmt: skip

LINUX = sys.platform == "linux" and os.environ.get("LOGAGG_PORTABLE", "") in ("", "0")
"""Whether Linux's own calls are used, not the portable forms."""

PROC = "/proc" if LINUX else "/nonexistent"
"""Where the kernel shows processes; nothing is there in the portable form."""

MAX_SOCKET_PATH = 107 if LINUX else 103  # sun_path with its NUL: 108, and 104 on BSD
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0) if LINUX else 0
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""The unit of `ru_maxrss`, in bytes."""

SO_DOMAIN = getattr(socket, "SO_DOMAIN", -1)
_LEAST_PIPE = 16384  # of macOS, when it is short of memory for pipes
_WIPE_ON_FORK = 18  # linux/mman.h; the mmap module does not name it


def opened_path(file: int) -> str:
    """The path that a file was opened by, where its directory is now.

    Returns:
        It ends in ` (deleted)` once that entry is removed, though another leads to the
        file; empty where the system does not show it.
    """
    try:
        return os.readlink(f"{PROC}/self/fd/{file}")
    except OSError:
        return ""


def fdatasync(file: int) -> None:
    """Write to the disk a file's content, and of its attributes what reading needs."""
    (os.fdatasync if LINUX else os.fsync)(file)


def set_pipe_bytes(pipe: int, *sizes: int) -> None:
    """Give a pipe the first of these sizes that the user's limit allows, if any."""
    if LINUX:
        for size in sizes:
            try:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
            except OSError:
                continue
            return


def pipe_bytes(pipe: int) -> int:
    """How much fits into a pipe, at least."""
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) if LINUX else _LEAST_PIPE


def reopen_terminal(descriptor: int) -> int | None:
    """A descriptor of the same terminal that can be written only.

    Returns:
        None where this is no terminal that can be read, and where the system lets this
        user open it no more (after `su`), or opens the same thing again (BSD).
    """
    readable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    if not LINUX or not readable or not os.isatty(descriptor):
        return None
    try:
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"{PROC}/self/fd/{descriptor}", flags)
    except OSError:
        return None


def memory_file(name: str) -> int:
    """An anonymous file, in memory where possible; its descriptor."""
    if LINUX:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    folder = os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - made anew and removed
    path = os.path.join(folder, f"{name}-{os.urandom(12).hex()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    os.unlink(path)
    return file


def bind_with_mode(listener: socket.socket, path: str, mode: int) -> None:
    """Bind a Unix socket to a new path, which never has more rights than the mode.

    Where others can write the directory, the path may lead elsewhere a moment later: its
    mode is changed only where that is this user's socket and has no other name.

    Raises:
        OSError: It cannot be bound, or its mode cannot be changed.
    """
    if not LINUX:
        listener.bind(path)
        os.chmod(
            path, mode, follow_symlinks=os.chmod not in os.supports_follow_symlinks
        )
        return
    os.fchmod(listener.fileno(), mode)  # bind makes the path with it, less the umask
    listener.bind(path)
    if stat.S_IMODE(os.lstat(path).st_mode) == mode:
        return  # nothing is to be changed, so no descriptor has to be free
    made = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(made)
        mine = stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid()
        if not mine or status.st_nlink > 1:
            raise PermissionError(errno.EPERM, "another user changes its directory")
        os.chmod(f"{PROC}/self/fd/{made}", mode)
    finally:
        os.close(made)


def change_mode(path: str, mode: int) -> None:
    """Change the mode of a directory of this user's, wherever the path leads by now.

    Raises:
        OSError: It is another user's, no directory, or cannot be changed.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(path, flags)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "is another user's directory", path)
        os.fchmod(directory, mode)
    finally:
        os.close(directory)


def wipe_on_fork(page: mmap.mmap) -> None:
    """Have the kernel clear a page in each child.

    Raises:
        OSError: It cannot.
    """
    if not LINUX:
        raise OSError("pages are not cleared in children")
    page.madvise(_WIPE_ON_FORK)


def available_cpus() -> int:
    """How many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
