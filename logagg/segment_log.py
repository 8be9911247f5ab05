"""Append-only log of NDJSON lines on disk, for records that wait for a sink.

Theory of operation
-------------------
A log is one growing text that is cut into segment files. A position is a number of
bytes since its beginning, and the name of a segment is the position of its first byte:
a position is found without an index, and a missing file is a hole.

    lock       locked (flock) by the process that uses the log; its text is the pid
    cursor     "COUNT START UNTIL ID CONSUMED SUM", twice: CONSUMED lines up to START; the
               batch in hand ends at UNTIL; the higher COUNT with a right SUM counts
    00000000000000000000.ndjson …   the lines

Lines are appended at the end and consumed from the beginning, each in one piece or not
at all. A segment whose lines are all consumed is removed. With `keep_newest` the newest
one stays, so that `record_ids` knows what was consumed last; it goes when its room is
needed for a write that the disk refuses.

Loss: what `append` accepted survives the death of the process, and a power cut where the
caller asked for that (`sync`). On opening, an unfinished last line is cut off. UNTIL is
written before a batch is first sent, so a successor sends the same batch again and none
that overlaps it. Without a readable cursor everything on disk is delivered again.

Without a folder the segments are memory files, and with `named=False` they are files
without a name: both end with the process.

Everything blocks for the disk only. One thread at a time may use a log; any may read its
numbers and call `record_ids`. An OSError is raised as it came.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import threading
import uuid
import zlib
from pathlib import Path

from logagg.core.line import key_of, record_id
from logagg.ipc.paths import make_folder
from logagg.platform.system import fdatasync, memory_file

__all__ = ["SEGMENT_BYTES", "SegmentLog", "read_cursor", "segment_paths"]

SEGMENT_BYTES = 8 * 1024 * 1024
_LONGEST_READ = 64 * 1024 * 1024
_MOST_IDS = 500_000  # about 100 MB; a segment more at most
_COUNT_BYTES = 1024 * 1024
_SUFFIX = ".ndjson"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CURSOR_BYTES = 128
_closing = threading.Lock()  # of a file that another thread may be reading


class _SegmentFile:
    """One file of a log; its descriptor is -1 while it is not open."""

    __slots__ = ("fd", "first", "size_bytes", "writable")

    def __init__(self, first: int, size_bytes: int = 0, fd: int = -1) -> None:
        self.first = first
        self.size_bytes = size_bytes
        self.fd = fd
        self.writable = fd >= 0

    @property
    def end(self) -> int:
        """The position after its last byte."""
        return self.first + self.size_bytes

    def close(self) -> None:
        """Close the descriptor."""
        with _closing:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd, self.writable = -1, False


class SegmentLog:
    """Lines in order, appended at the end and consumed from the beginning.

    Args:
        folder: The directory of the log, made when it is missing; None keeps the lines
            in memory.
        limit_bytes: `append` refuses what would make the log larger, unless it is
            empty.
        segment_bytes: A segment that has reached this size is followed by a new one.
        keep_newest: Keep the newest segment although it is consumed.
        named: False makes files in `folder` that have no name and need no lock.

    Raises:
        BlockingIOError: Another process uses the log.
        OSError: It cannot be made or read.

    Attributes:
        id: Names the log in the names of batches.
        start: The position up to which lines are consumed.
        until: The end of the batch that was being sent; 0 when there was none.
        end: The position after the last line.
        records: How many lines are between start and end.
        consumed: How many lines were consumed since the log was made.
        torn: How many unfinished lines were cut off when the log was opened.
    """

    def __init__(
        self,
        folder: Path | None,
        limit_bytes: int,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        keep_newest: bool = False,
        named: bool = True,
    ) -> None:
        self.folder = folder
        self.id = uuid.uuid4().hex
        self.start = self.until = self.end = 0
        self.records = self.consumed = 0
        self.torn = 0
        self._limit = limit_bytes
        self._segment_bytes = segment_bytes
        self._keep_newest = keep_newest
        self._segments: list[_SegmentFile] = []  # ascending
        self._reading: _SegmentFile | None = None  # opened for reading only
        self._cursor = self._lock = -1
        self._count = 0  # of the cursor's changes
        self._directory = folder if named else None
        if self._directory is None:
            return
        self._lock = _lock(self._directory)
        try:
            self._recover(self._directory)
        except BaseException:
            self._release()
            raise

    @property
    def size_bytes(self) -> int:
        """How many bytes are not consumed."""
        return self.end - self.start

    def _recover(self, directory: Path) -> None:
        self._cursor = _open(directory / "cursor", os.O_RDWR | os.O_CREAT)
        self._count, start, until, identifier, self.consumed = read_cursor(self._cursor)
        self.id = identifier or self.id
        for path in segment_paths(directory):
            size, torn = _repair(path)
            self.torn += torn
            if size:
                self._segments.append(_SegmentFile(int(path.stem), size))
            else:
                path.unlink()
        for segment, following in zip(self._segments, self._segments[1:], strict=False):
            # A write that failed and could not be taken back may have left more.
            room = following.first - segment.first
            segment.size_bytes = min(segment.size_bytes, room)
        self.start = max(start, self._segments[0].first if self._segments else 0)
        self.end = max([self.start, *(each.end for each in self._segments)])
        self.until = until if self.start < until <= self.end else 0
        self._free(newest=not self._keep_newest)
        position = self.start
        while position < self.end:
            position, data = self.read(position, _COUNT_BYTES)
            if not data:
                break
            self.records += data.count(b"\n")
            position += len(data)
        self._write_cursor()

    # ---- in -----------------------------------------------------------------------

    def append(self, data: bytes, records: int, *, sync: bool = False) -> bool:
        """Add whole lines; with `sync` they survive a power cut, too.

        Returns:
            False, and nothing is added, when the limit leaves no room.

        Raises:
            OSError: They cannot be written; nothing is added.
        """
        if self.records and self.size_bytes + len(data) > self._limit:
            return False
        try:
            self._write(data, sync=sync)
        except OSError as error:
            if error.errno not in _NO_ROOM or not self._free(newest=True):
                raise
            self._write(data, sync=sync)
        self.end += len(data)
        self.records += records
        return True

    def _write(self, data: bytes, *, sync: bool) -> None:
        segment = self._segments[-1] if self._segments else None
        full = segment is not None and segment.size_bytes >= self._segment_bytes
        if segment is None or full or not segment.writable:
            segment = self._new_segment()
        view = memoryview(data)
        position = segment.size_bytes
        try:
            while view:
                written = os.pwrite(segment.fd, view, position)
                position += written
                view = view[written:]
            if sync:
                self._sync(segment)
        except OSError:
            try:
                os.ftruncate(segment.fd, segment.size_bytes)
            except OSError:
                segment.writable = False
            raise
        segment.size_bytes = position

    def _sync(self, segment: _SegmentFile) -> None:
        fdatasync(segment.fd)
        if self._directory is not None and not segment.size_bytes:
            folder = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _new_segment(self) -> _SegmentFile:
        if self._segments and self._segments[-1].first == self.end:
            empty = self._segments.pop()  # a first write that could not be taken back
            empty.close()
            if self._directory is not None:
                self._path(empty.first).unlink(missing_ok=True)
        if self._directory is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            segment = _SegmentFile(self.end, 0, _open(self._path(self.end), flags))
            if self._segments:
                self._segments[-1].close()
        elif self.folder is not None:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                segment = _SegmentFile(self.end, 0, os.dup(file.fileno()))
        else:
            segment = _SegmentFile(self.end, 0, memory_file("logagg-segment"))
        self._segments.append(segment)
        return segment

    def _path(self, first: int) -> Path:
        assert self._directory is not None
        return self._directory / f"{first:020}{_SUFFIX}"

    # ---- out ----------------------------------------------------------------------

    def read(self, position: int, most: int) -> tuple[int, bytes]:
        """Read whole lines of one segment, about `most` bytes, one line at least.

        Returns:
            Where they begin (after `position` where there is a hole), and the lines;
            none at the end of the log.
        """
        for segment in list(self._segments):
            if segment.end <= position:
                continue
            try:
                fd = self._opened(segment)
            except FileNotFoundError:  # it was removed: a hole
                self._segments.remove(segment)
                continue
            position = max(position, segment.first)
            left = segment.end - position
            while True:
                data = os.pread(fd, min(most, left), position - segment.first)
                end = data.rfind(b"\n") + 1
                if end or most >= min(left, _LONGEST_READ):
                    return position, data[:end]
                most *= 4
        return position, b""

    def _opened(self, segment: _SegmentFile) -> int:
        if segment.fd < 0:
            if self._reading is not None:
                self._reading.close()
                self._reading = None
            segment.fd = _open(self._path(segment.first), os.O_RDONLY)
            self._reading = segment
        return segment.fd

    def begin(self, until: int) -> None:
        """Note the end of the batch that is about to be sent."""
        self.until = until
        self._write_cursor()

    def done(self, position: int, records: int) -> None:
        """Consume everything before a position, which is so many records more."""
        self.start = position
        self.records -= records
        self.consumed += records
        try:
            self._write_cursor()
        except OSError:  # there are disks that need room for this, too
            if not self._free(newest=True):
                raise
            self._write_cursor()
        self._free(newest=not self._keep_newest)

    def drop(self) -> int:
        """Consume everything; return how many records that were."""
        records = self.records
        self.done(self.end, records)
        return records

    def _free(self, *, newest: bool) -> bool:
        """Remove consumed segments; return whether there was one."""
        freed = False
        while self._segments and self._segments[0].end <= self.start:
            if len(self._segments) == 1 and not newest:
                break
            segment = self._segments.pop(0)
            segment.close()
            if self._reading is segment:
                self._reading = None
            if self._directory is not None:
                self._path(segment.first).unlink(missing_ok=True)
            freed = True
        return freed

    def _write_cursor(self) -> None:
        if self._cursor >= 0:
            self._count += 1
            words = (self.start, self.until, self.id.encode(), self.consumed)
            text = b"%d %d %d %s %d" % (self._count, *words)
            text += b" %d" % zlib.crc32(text)
            place = self._count % 2 * _CURSOR_BYTES  # the other one stays as it is
            os.pwrite(self._cursor, text.ljust(_CURSOR_BYTES - 1) + b"\n", place)

    def record_ids(self, since: bytes) -> frozenset[bytes]:
        """The ids of records at or after a sort key that are, or were last, in the log.

        The newest half a million; what is consumed meanwhile may be missing too.
        """
        found: set[bytes] = set()
        for segment in self._segments[::-1]:
            lines = self._content(segment).split(b"\n")[:-1]
            new = {record_id(line) for line in lines if key_of(line) >= since}
            found |= new
            if (lines and not new) or len(found) >= _MOST_IDS:
                break
        return frozenset(found)

    def _content(self, segment: _SegmentFile) -> bytes:
        """A whole segment, for any thread; nothing of one that is consumed or gone."""
        size = segment.size_bytes
        if self._directory is None:
            with _closing:
                return os.pread(segment.fd, size, 0) if segment.fd >= 0 else b""
        try:
            with open(_open(self._path(segment.first), os.O_RDONLY), "rb") as file:
                return os.pread(file.fileno(), size, 0)
        except FileNotFoundError:
            return b""

    # ---- the end ------------------------------------------------------------------

    def close(self) -> None:
        """Release it; what is left stays for the next process. May be called twice.

        A log without records leaves no files.
        """
        folder = self._directory
        if self._lock >= 0 and not self.records and folder is not None:
            with contextlib.suppress(OSError):  # the next process removes the rest
                # The lock goes last: then a successor may make its own files here.
                names = folder / "cursor", folder / "lock"
                for path in (*segment_paths(folder), *names):
                    path.unlink()
                folder.rmdir()
        self._release()

    def _release(self) -> None:
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        self._reading = None
        for fd in (self._cursor, self._lock):
            if fd >= 0:
                os.close(fd)
        self._cursor = self._lock = -1


def segment_paths(folder: Path) -> list[Path]:
    """The segments of a log, the oldest first."""
    return sorted(path for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal())


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock(folder: Path) -> int:
    """Lock the file `lock` that the directory holds now, not one that was removed."""
    while True:
        make_folder(folder)
        path = folder / "lock"
        try:
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue  # its last user has just removed the directory
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def read_cursor(descriptor: int) -> tuple[int, int, int, str, int]:
    """Count, start, until, id, consumed; zeros and no id without a whole cursor."""
    found = (0, 0, 0, "", 0)
    for place in (0, _CURSOR_BYTES):
        line = os.pread(descriptor, _CURSOR_BYTES, place).strip()
        text, _, checksum = line.rpartition(b" ")
        if checksum == b"%d" % zlib.crc32(text):
            count, start, until, identifier, *more = text.decode("ascii").split(" ")
            consumed = int(more[0]) if more else 0  # 0.1.0 did not note it
            numbers = int(count), int(start), int(until)
            found = max(found, (*numbers, identifier, consumed))
    return found


def _repair(path: Path) -> tuple[int, int]:
    """Cut an unfinished line off a segment; return its size and 1 if there was one."""
    descriptor = _open(path, os.O_RDWR)
    try:
        size = end = os.fstat(descriptor).st_size
        while end > 0:
            begin = max(0, end - 65536)
            newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            os.ftruncate(descriptor, end)
        return end, int(end < size)
    finally:
        os.close(descriptor)
