"""Locks on open files: one that is written is neither compressed nor removed.

They are flock(2)'s: they belong to an opening of the file and end with it, also when the
process is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections import Counter

__all__ = ["begin_writing", "end_writing", "lock_file", "unlock_file"]


def lock_file(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file, unless another opening of it is locked. Never waits.

    A file system without locks counts as locked.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True


_writing: Counter[tuple[int, int]] = Counter()
_writing_lock = threading.Lock()


def begin_writing(fd: int) -> bool:
    """Lock an open file that is written, so that it is neither compressed nor removed.

    Several sinks of one process may write a file: one that is reloaded does for a moment.

    Returns:
        False when another process writes or compresses it.
    """
    with _writing_lock:
        place = _place(fd)
        if not _writing[place] and not lock_file(fd):
            return False
        if not lock_file(fd, shared=True):
            return False
        _writing[place] += 1
        return True


def end_writing(fd: int) -> None:
    """Take back the lock of `begin_writing`."""
    with _writing_lock:
        unlock_file(fd)  # a copy may be open for a sync
        place = _place(fd)
        _writing[place] -= 1
        if _writing[place] <= 0:
            del _writing[place]


def _place(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def unlock_file(fd: int) -> None:
    """Take back a lock, of all copies of the descriptor."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
