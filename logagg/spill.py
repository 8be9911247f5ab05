"""Where the batches of a sink that does not keep up wait on disk, in order.

Theory of operation
-------------------
Segments of SEGMENT_BYTES, appended to at one end and read back at the other; a segment
that has been read to its end is removed, so the disk holds little more than what waits.
A segment is a header of fixed length (how far it has been read) and then finished NDJSON
lines. The stamp at the end of a line tells its batch, so what comes back are the very
batches that went in.

The sink of a durable target gets a private directory of its own in the user's state
directory (mode 0700, files 0600, locked while it is used), and what is in it when a
consumer ends or dies is delivered by the next one that opens the same sink: each batch
once, except that the batch that was being written when the consumer was killed may come
twice where the sink cannot tell what it has. Without a name the segments have none
either and die with us.

Nothing here waits, except for the disk: it must be a local one. `append` writes a batch
or nothing; it refuses when `limit_bytes` is reached or the disk is full, never raises.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections import deque
from collections.abc import Iterator

from logagg import address, wire
from logagg.abc import Batch
from logagg.errors import ConfigError

__all__ = ["Spill"]

SEGMENT_BYTES = 8 * 1024 * 1024
READ_BYTES = 1024 * 1024
PEEK_BYTES = 64 * 1024  # most batches are smaller
MOST_FOLDERS = 64  # of consumers that write to the same target at once
PARENT = "sinks"
MIDDLE = 10**15  # segments are numbered from here, both ways
_HEADER = b"logagg spill, read to %020d\n"
_HEADER_BYTES = len(_HEADER % 0)
_CLOSING_BYTES = len(wire.closing(0))


class _Segment:
    """One file: written to `size_bytes`, read to `place`."""

    __slots__ = ("fd", "path", "place", "records", "size_bytes")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.place = _HEADER_BYTES
        self.size_bytes = _HEADER_BYTES
        self.records = 0

    def recover(self) -> None:
        """Find out how far it was read, and cut off a line that is not whole."""
        header = os.pread(self.fd, _HEADER_BYTES, 0)
        size = os.fstat(self.fd).st_size
        digits = header[-21:-1]
        if len(header) == _HEADER_BYTES and digits.isdigit():
            self.place = min(max(int(digits), _HEADER_BYTES), size)
        self.size_bytes = self.place
        for start, chunk in self.chunks():
            self.records += chunk.count(b"\n")
            end = chunk.rfind(b"\n")
            if end >= 0:
                self.size_bytes = start + end + 1
        os.ftruncate(self.fd, max(self.size_bytes, _HEADER_BYTES))

    def chunks(self, first_bytes: int = READ_BYTES) -> Iterator[tuple[int, bytes]]:
        """What is unread, in pieces, with the place of each."""
        place = self.place
        while chunk := os.pread(self.fd, first_bytes, place):
            yield place, chunk
            place += len(chunk)
            first_bytes = READ_BYTES

    def write(self, data: bytes) -> bool:
        """Append all of it, or nothing."""
        view = memoryview(data)
        end = self.size_bytes
        try:
            while view:
                done = os.pwrite(self.fd, view, end)
                end += done
                view = view[done:]
        except OSError:
            try:
                os.ftruncate(self.fd, self.size_bytes)
            except OSError:
                pass
            return False
        self.size_bytes = end
        return True

    def remove(self) -> None:
        """Close it and take its name away."""
        os.close(self.fd)
        if self.path:
            try:
                os.unlink(self.path)
            except OSError:
                pass


class Spill:
    """Batches on disk, first in, first out. Used by one task.

    Args:
        name: The name of the directory that outlives us, made when it is needed; empty:
            nothing outlives us.
        limit_bytes: How much may wait.

    Attributes:
        name: As given.
        folder: The directory that is used, when there is one.
        records: How many records wait.
        size_bytes: How much room they take.
        recovered: How many records were found when it was opened.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.name = name
        self.folder = ""
        self.records = 0
        self.size_bytes = 0
        self.recovered = 0
        self._limit = limit_bytes
        self._segments: deque[_Segment] = deque()
        self._lock = -1
        self._next = MIDDLE
        self._before = MIDDLE - 1

    # ---- opening ------------------------------------------------------------------

    def recover(self) -> None:
        """Take over what an earlier consumer left, if there is something.

        Reads all of it once, to count it.
        """
        if not self.name or self._lock >= 0:
            return
        for parent in address.spool_dirs(PARENT):
            for each in self._folders(parent):
                if not os.path.isdir(each):
                    break
                if os.listdir(each) and self._claim(each):
                    self._take_over()
                    return

    def _take_over(self) -> None:
        for name in sorted(os.listdir(self.folder)):
            path = os.path.join(self.folder, name)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            segment = _Segment(fd, path)
            segment.recover()
            if name.isdigit():
                self._next = max(self._next, int(name) + 1)
                self._before = min(self._before, int(name) - 1)
            if not segment.records:
                segment.remove()
                continue
            self._segments.append(segment)
            self.records += segment.records
            self.size_bytes += segment.size_bytes - segment.place
        self.recovered = self.records

    def _folders(self, parent: str) -> Iterator[str]:
        for number in range(1, MOST_FOLDERS):
            yield os.path.join(parent, f"{self.name}-{number}")

    def _claim(self, folder: str) -> bool:
        """Lock a directory, unless another consumer has it.

        Raises:
            OSError: It cannot be locked at all.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            lock = os.open(folder, flags)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(lock), os.stat(folder))
            private = os.fstat(lock).st_uid == os.getuid()
        except (BlockingIOError, FileNotFoundError):
            mine = private = False
        except OSError:
            os.close(lock)
            raise
        if not mine or not private:
            os.close(lock)
            return False
        self._lock, self.folder = lock, folder
        return True

    def _open(self, *, first: bool = False) -> _Segment | None:
        """A fresh segment, the last one or the first; None when the disk refuses."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            if not self.name:
                with tempfile.TemporaryFile(dir=address.spool_dir(PARENT)) as file:
                    fd, path = os.dup(file.fileno()), ""
            else:
                if self._lock < 0 and not self._make_folder():
                    return None
                number = self._before if first else self._next
                path = os.path.join(self.folder, f"{number:016d}")
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
                if first:
                    self._before -= 1
                else:
                    self._next += 1
        except (OSError, ConfigError):
            return None
        segment = _Segment(fd, path)
        try:
            os.pwrite(fd, _HEADER % _HEADER_BYTES, 0)
        except OSError:
            segment.remove()
            return None
        if first:
            self._segments.appendleft(segment)
        else:
            self._segments.append(segment)
        return segment

    def _make_folder(self) -> bool:
        for folder in self._folders(address.spool_dir(PARENT)):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                pass
            if self._claim(folder):
                return True
        return False

    # ---- in and out ---------------------------------------------------------------

    def append(self, batch: Batch) -> bool:
        """Write a batch behind the others; False: no room, nothing was written."""
        data = batch.data
        if self.size_bytes + len(data) > self._limit:
            return False
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.size_bytes > SEGMENT_BYTES:
            segment = self._open()
        if segment is None or not segment.write(data):
            return False
        segment.records += len(batch)
        self.records += len(batch)
        self.size_bytes += len(data)
        return True

    def prepend(self, batch: Batch) -> bool:
        """Write a batch before all others; False: no room, nothing was written."""
        if not self.records:
            return self.append(batch)
        if self.size_bytes + batch.size_bytes > self._limit:
            return False
        segment = self._open(first=True)
        if segment is None:
            return False
        if not segment.write(batch.data):
            self._segments.popleft().remove()
            return False
        segment.records = len(batch)
        self.records += len(batch)
        self.size_bytes += batch.size_bytes
        return True

    def peek(self) -> tuple[Batch, int]:
        """The first batch, and how many bytes it takes; there must be one."""
        segment = self._segments[0]
        data = b""
        for _, chunk in segment.chunks(PEEK_BYTES):
            data += chunk
            found = _first_batch(data)
            if found is not None:
                return found
        return _whole(data)

    def advance(self, records: int, size_bytes: int) -> None:
        """The first batch is done with."""
        segment = self._segments[0]
        segment.place += size_bytes
        segment.records -= records
        self.records -= records
        self.size_bytes -= size_bytes
        if segment.place >= segment.size_bytes:
            self._segments.popleft().remove()
            return
        try:
            os.pwrite(segment.fd, _HEADER % segment.place, 0)
        except OSError:
            pass  # at worst the next consumer writes a batch twice

    def identities(self, since: bytes) -> frozenset[bytes]:
        """Of the records that wait and are stamped since a sort key: what they are."""
        found = set()
        for segment in self._segments:
            tail = b""
            for _, chunk in segment.chunks():
                *lines, tail = (tail + chunk).split(b"\n")
                found |= {wire.identity(line) for line in lines if line >= since}
        return frozenset(found)

    def first_key(self) -> bytes:
        """The smallest sort key that may wait; empty when nothing does."""
        if not self.records:
            return b""
        return wire.key(self.peek()[0].lines[0])

    def close(self) -> None:
        """Let go. What waits stays for the next consumer, where it has a name."""
        while self._segments:
            segment = self._segments.popleft()
            if segment.path and segment.records:
                os.close(segment.fd)
            else:
                segment.remove()
        if self._lock >= 0:
            try:
                os.rmdir(self.folder)
            except OSError:
                pass
            os.close(self._lock)
            self._lock = -1


def _first_batch(data: bytes) -> tuple[Batch, int] | None:
    """The batch at the beginning, once it is known where it ends."""
    end = data.find(b"\n") + 1
    if not end:
        return None
    closing = data[end - _CLOSING_BYTES : end]
    last = data.rfind(b"\n") + 1
    if data[last - _CLOSING_BYTES : last] == closing:
        return None  # it may go on behind what has been read
    place = end
    while data[end - _CLOSING_BYTES : end] == closing:
        place = end
        end = data.find(b"\n", place) + 1
        if not end:
            return None
    return _cut(data[:place], closing), place


def _whole(data: bytes) -> tuple[Batch, int]:
    """All that is left of a segment: one batch, or several."""
    end = data.find(b"\n") + 1
    closing = data[end - _CLOSING_BYTES : end]
    last = data.rfind(b"\n") + 1
    if data[last - _CLOSING_BYTES : last] != closing:
        found = _first_batch(data)
        if found is not None:
            return found
    return _cut(data[:last], closing), last


def _cut(data: bytes, closing: bytes) -> Batch:
    return Batch(data.split(closing)[:-1], closing)
