"""Records parked on disk by a worker whose pipe cannot take them.

A *segment* is one private file of whole wire lines with consecutive seqs. A worker
opens one when it starts to park records and ends it when its pipe has room again; the
consumer takes ended segments in the order of their seqs. While its owner lives, a
segment is locked (flock), so a consumer can tell an orphan: a segment nobody holds
belongs to a process that died, and is taken at the next start.

Guarantees: a segment never ends in a torn line because of a failed write (it is cut
back to the last whole line); its file has mode 0600 in a private directory; all segments
of one process together stay below its cap. What cannot be parked raises OSError: the
caller drops the record and counts it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from logagg.address import spool_dir

__all__ = ["CAP_BYTES", "Segment", "orphans"]

CAP_BYTES = 1024 * 1024 * 1024
"""A process's share of the disk (1 GiB); beyond it the newest records are dropped.

The newest rather than the oldest, so that what was promised stays promised and a gap
has one place in the order. Precedent: Vector's disk buffers start at 256 MiB.
"""

SUFFIX = ".spool"


class Segment:
    """One file of parked lines, being written by the process that owns it.

    Attributes:
        path: The file; the consumer removes it when its records are safe.
        first: The seq of its first line.
        last: The seq of its last line, `first - 1` while it is empty.
        size_bytes: Its length.
    """

    __slots__ = ("_file", "first", "last", "path", "size_bytes")

    def __init__(self, identifier: str, stream: str, first: int) -> None:
        folder = spool_dir(identifier)
        self.path = os.path.join(folder, f"{stream}-{first:020d}{SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, 0o600)
        self.first = first
        self.last = first - 1
        self.size_bytes = 0
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def append(self, line: bytes, seq: int) -> None:
        """Write one whole line, newline included; it is with the kernel on return.

        Raises:
            OSError: It could not be written; nothing of it remains.
        """
        done = 0
        try:
            while done < len(line):
                done += os.write(self._file, line[done:] if done else line)
        except OSError:
            if done:
                os.ftruncate(self._file, self.size_bytes)
            raise
        self.size_bytes += done
        self.last = seq

    def end(self) -> None:
        """Let go of the file; it stays for the consumer, unless it is empty."""
        if self._file < 0:
            return
        if self.last < self.first:
            try:
                os.unlink(self.path)
            except OSError:
                pass
        os.close(self._file)
        self._file = -1

    def abandon(self) -> None:
        """Forget the file in a forked child: it is the parent's."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def orphans(identifier: str) -> list[str]:
    """Segments of an address that no living process holds, oldest first.

    Files that are not ours or not plain files are left out.
    """
    folder = spool_dir(identifier, create=False)
    found = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    for name in names:
        path = os.path.join(folder, name)
        if not name.endswith(SUFFIX):
            continue
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
        else:
            found.append(path)
        finally:
            os.close(file)
    return found
