"""The shared listeners that a worker's program has open, and their copies."""

from __future__ import annotations

import os
import socket
from collections.abc import Container
from typing import Any

from logagg.platform.packets import bind_nowhere

__all__ = ["OpenListeners", "copies", "replace"]


class OpenListeners:
    """Descriptors of shared listeners, each as long as it is that listener's."""

    def __init__(self) -> None:
        self._inodes: dict[int, int] = {}

    def add(self, fd: int) -> None:
        """Note a listener."""
        self._inodes[fd] = os.fstat(fd).st_ino

    def discard(self, fd: int) -> None:
        """Forget a descriptor."""
        self._inodes.pop(fd, None)

    def __contains__(self, fd: int) -> bool:
        return fd in self._inodes and self._inodes[fd] == os.fstat(fd).st_ino

    def silence(self, but: Container[int]) -> None:
        """Take no more connections, in whatever language the server accepts them.

        A listener without clients is put in the place of each, under its number. The
        event loop is still woken for the shared one, finds nothing, and leaves what
        came to the siblings. Blocking listeners are left alone: in `accept` already,
        they would not notice.

        Args:
            but: The inodes of those that are left alone.
        """
        quiet = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        plain: Any = socket.socket.__mro__[1]  # the C class
        bind_nowhere(quiet, plain.bind)
        plain.listen(quiet, 1)
        quiet.setblocking(False)
        for fd, inode in list(self._inodes.items()):  # the program may add some
            try:
                if inode not in but and fd in self and not os.get_blocking(fd):
                    replace(fd, quiet.fileno())
            except OSError:
                pass  # closed meanwhile
        quiet.close()


def copies(fd: int) -> set[int]:
    """The descriptors of this process for the same socket."""
    status = os.fstat(fd)
    found = set()
    for each in map(int, os.listdir("/dev/fd")):
        try:
            other = os.fstat(each)
        except OSError:  # that of the directory itself
            continue
        if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
            found.add(each)
    return found


def replace(fd: int, by: int) -> None:
    """Put a copy of `by` under the number `fd`; children inherit it if they did `fd`."""
    os.dup2(by, fd, inheritable=os.get_inheritable(fd))
