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
import stat
from dataclasses import dataclass
from typing import Any

from logagg.address import spool_dir, spool_dirs
from logagg.wire import seq_of

__all__ = ["CAP_BYTES", "Parking", "Segment", "open_segment", "orphans"]

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
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a file system without locks
            self.end()
            raise

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


@dataclass(slots=True)
class _Ended:
    """A segment that is complete: its file, the seqs in it, its length in bytes."""

    path: str
    first: int
    last: int
    size_bytes: int
    told: bool = False


class Parking:
    """All that one attachment has parked: the open segment and the ended ones."""

    __slots__ = ("_ended", "_identifier", "_segment", "_stream", "_told_open")

    def __init__(self, identifier: str, stream: str) -> None:
        self._identifier = identifier
        self._stream = stream
        self._segment: Segment | None = None
        self._told_open = False
        self._ended: list[_Ended] = []

    @property
    def is_open(self) -> bool:
        """Whether a segment is being written."""
        return self._segment is not None

    def append(self, line: bytes, seq: int) -> None:
        """Park one line; it is with the kernel on return.

        Raises:
            OSError, ConfigError: It cannot be parked; nothing of it remains.
        """
        if self._segment is None:
            self._segment = Segment(self._identifier, self._stream, seq)
            self._told_open = False
        segment = self._segment
        parked = sum(each.size_bytes for each in self._ended) + segment.size_bytes
        if parked + len(line) > CAP_BYTES:
            raise OSError(errno.EDQUOT, f"the spool is at its cap of {CAP_BYTES} bytes")
        segment.append(line, seq)

    def end(self) -> None:
        """Complete the open segment, if there is one."""
        segment, self._segment = self._segment, None
        if segment is not None:
            self._complete(segment)

    def spill(self, lines: list[bytes]) -> None:
        """Park lines that are older than the open segment, as one of their own.

        Raises:
            OSError, ConfigError: They cannot be parked.
        """
        segment = Segment(self._identifier, self._stream, seq_of(lines[0]))
        try:
            segment.append(b"".join(lines), seq_of(lines[-1]))
        finally:
            self._complete(segment)

    def _complete(self, segment: Segment) -> None:
        segment.end()
        if segment.last >= segment.first:
            self._ended.append(
                _Ended(segment.path, segment.first, segment.last, segment.size_bytes)
            )
            self._ended.sort(key=lambda each: each.first)

    def acknowledge(self, seq: int) -> None:
        """Forget ended segments whose records are all safe."""
        while self._ended and self._ended[0].last <= seq:
            self._ended.pop(0)

    def announcements(self, *, again: bool) -> list[dict[str, Any]]:
        """What tells the consumer of segments: of all of them, or the untold.

        The open one has no `last` yet; the consumer reads what is in it as it comes.
        """
        found: list[dict[str, Any]] = [
            {"segment": each.path, "first": each.first, "last": each.last}
            for each in self._ended
            if again or not each.told
        ]
        segment = self._segment
        if segment is not None and (again or not self._told_open):
            found.append({"segment": segment.path, "first": segment.first})
        return found

    def told(self, path: str) -> None:
        """Note that the consumer knows of a segment."""
        if self._segment is not None and self._segment.path == path:
            self._told_open = True
        for each in self._ended:
            if each.path == path:
                each.told = True

    def abandon(self) -> None:
        """Forget everything in a forked child: it is the parent's."""
        if self._segment is not None:
            self._segment.abandon()
            self._segment = None
        self._ended.clear()


def open_segment(path: str) -> int:
    """Open a segment for reading.

    Raises:
        OSError: It is missing, or not a plain file of ours with one name.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(path, flags)
    status = os.fstat(file)
    plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    if not plain or status.st_uid != os.getuid():
        os.close(file)
        raise OSError(errno.EINVAL, f"{path} is not a plain file of ours")
    return file


def orphans(identifier: str) -> list[str]:
    """Segments of an address that no living process holds, oldest first.

    Files that are not ours or not plain files are left out, and those of which it cannot
    be told.
    """
    found = []
    paths = []
    for folder in spool_dirs(identifier):
        try:
            paths += [os.path.join(folder, name) for name in os.listdir(folder)]
        except OSError:
            continue
    for path in sorted(paths, key=os.path.basename):
        if not path.endswith(SUFFIX):
            continue
        try:
            file = open_segment(path)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            pass
        else:
            found.append(path)
        finally:
            os.close(file)
    return found
