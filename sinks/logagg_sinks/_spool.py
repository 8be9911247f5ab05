"""Records parked until their target has taken them: on disk, or in memory only.

Theory of operation
-------------------
A spool is one growing text of NDJSON, cut into files. A position is a number of bytes
since its beginning; a segment's name is the position of its first byte, so that a
position is found without an index, and a missing file is a hole, not a puzzle.

    lock       held by the process that uses the spool; its text is the pid
    id         makes the names of batches unique
    cursor     {"start": delivered up to here, "until": end of the batch in hand}
    00000000000000000000.ndjson …   the records, as in a log file

Guarantees: what `append` returned from survives the death of the process (not a power
cut: nothing is synced). Files are private (0600 in 0700). A line torn by a full disk or
a power cut is taken off, everything else is kept. `until` is written before a batch is
first sent, so a successor sends the very same batch again, not another one that
overlaps it.

One thread at a time may use a spool. `records`, `start` and `end` may be read by any.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections import deque
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from logagg import wire

__all__ = ["DiskSpool", "Look", "MemorySpool", "Spool", "SpoolFullError", "look"]

SEGMENT_BYTES = 8 * 1024 * 1024
_LONGEST_READ = 64 * 1024 * 1024
_SUFFIX = ".ndjson"


class SpoolFullError(Exception):
    """There is no room until something was delivered."""


class _Cursor(msgspec.Struct):
    start: int = 0
    until: int = 0


class Spool(Protocol):
    """What a sink needs of a spool.

    Attributes:
        id: Names the spool, for the names of batches.
        start: The position up to which records are delivered.
        until: The end of the batch that was being sent; 0 when there was none.
        end: The position behind the last record.
        records: How many records are between the two.
    """

    id: str
    start: int
    until: int
    end: int
    records: int

    def append(self, data: bytes, records: int) -> None:
        """Add whole lines, or raise `SpoolFullError` or OSError and add nothing."""

    def read(self, position: int, most: int) -> tuple[int, bytes]:
        """Read whole lines of about so many bytes, one at least if there is one.

        Returns:
            Where they begin (later than `position` where there is a hole) and they.
        """

    def begin(self, until: int) -> None:
        """Note the end of the batch that is about to be sent."""

    def done(self, position: int, records: int) -> None:
        """Everything before the position, so many records, need not be kept."""

    def close(self) -> None:
        """Let go; what is left stays for the next one to open it."""


class MemorySpool:
    """A spool that is lost with the process."""

    def __init__(self, most_bytes: int) -> None:
        self.id = uuid.uuid4().hex
        self.start = self.until = self.end = self.records = 0
        self._most = most_bytes
        self._chunks: deque[tuple[int, bytes]] = deque()

    def append(self, data: bytes, records: int) -> None:
        """Add whole lines."""
        if self.records and self.end - self.start + len(data) > self._most:
            raise SpoolFullError
        self._chunks.append((self.end, data))
        self.end += len(data)
        self.records += records

    def read(self, position: int, most: int) -> tuple[int, bytes]:
        """Read whole lines."""
        parts: list[bytes] = []
        size = 0
        for first, data in self._chunks:
            if first + len(data) <= position:
                continue
            parts.append(data[max(0, position - first) :])
            size += len(parts[-1])
            if size >= most:
                break
        return position, b"".join(parts)

    def begin(self, until: int) -> None:
        """Note the end of the batch that is about to be sent."""
        self.until = until

    def done(self, position: int, records: int) -> None:
        """Forget what was delivered."""
        self.start = position
        self.records -= records
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= position:
            self._chunks.popleft()

    def close(self) -> None:
        """Nothing is left."""


class DiskSpool:
    """A spool in a directory of its own.

    Args:
        folder: The directory; made when it is missing.
        most_bytes: `append` refuses what would make it larger.
        segment_bytes: A file that is larger is followed by a new one.

    Raises:
        BlockingIOError: Another process uses it.
        OSError: It cannot be made or read.

    Attributes:
        torn: How many unfinished lines were taken off when it was opened.
    """

    def __init__(
        self, folder: Path, most_bytes: int, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.folder = folder
        self.torn = 0
        self._most = most_bytes
        self._segment_bytes = segment_bytes
        self._reader: tuple[int, int] | None = None  # first position, descriptor
        self._writer: int | None = None
        self._cursor_file = -1
        self._lock = _lock(folder)
        try:
            self._recover()
        except BaseException:
            self.close()
            raise

    def _recover(self) -> None:
        self.id = _identity(self.folder / "id")
        self._cursor_file = _open(self.folder / "cursor", os.O_RDWR | os.O_CREAT)
        cursor = _read_cursor(self._cursor_file)
        self._segments: dict[int, int] = {}  # first position to size, ascending
        paths = sorted(self.folder.glob("*" + _SUFFIX))
        for path in paths:
            if not path.stem.isdecimal():
                continue
            size, torn = _mend(path)
            self.torn += torn
            delivered = int(path.stem) + size <= cursor.start
            if not size or (delivered and path != paths[-1]):
                path.unlink()
            else:
                self._segments[int(path.stem)] = size
        first = min(self._segments, default=cursor.start)
        self.start = max(cursor.start, first)
        self.end = max((at + size for at, size in self._segments.items()), default=0)
        self.end = max(self.end, self.start)
        self.until = cursor.until if self.start < cursor.until <= self.end else 0
        self.records = 0
        position = self.start
        while position < self.end:
            position, data = self.read(position, 1 << 20)
            if not data:
                break
            self.records += data.count(b"\n")
            position += len(data)

    def append(self, data: bytes, records: int) -> None:
        """Add whole lines."""
        if self.records and self.end - self.start + len(data) > self._most:
            raise SpoolFullError
        first = next(reversed(self._segments), None)
        full = first is None or self._segments[first] >= self._segment_bytes
        if self._writer is None or first is None or full:
            first = self._next_segment()
        descriptor = self._writer
        assert descriptor is not None
        size = self._segments[first]
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        self._segments[first] = size + len(data)
        self.end += len(data)
        self.records += records

    def _next_segment(self) -> int:
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._writer = _open(self._path(self.end), flags)
        self._segments[self.end] = 0
        return self.end

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:020}{_SUFFIX}"

    def read(self, position: int, most: int) -> tuple[int, bytes]:
        """Read whole lines."""
        for first, size in self._segments.items():
            if first + size <= position:
                continue
            position = max(position, first)
            left = first + size - position
            descriptor = self._descriptor(first)
            while True:
                data = os.pread(descriptor, min(most, left), position - first)
                end = data.rfind(b"\n") + 1
                if end or most >= min(left, _LONGEST_READ):
                    return position, data[:end]
                most *= 4
        return position, b""

    def _descriptor(self, first: int) -> int:
        if self._reader is not None:
            if self._reader[0] == first:
                return self._reader[1]
            os.close(self._reader[1])
            self._reader = None
        descriptor = _open(self._path(first), os.O_RDONLY)
        self._reader = (first, descriptor)
        return descriptor

    def begin(self, until: int) -> None:
        """Note the end of the batch that is about to be sent."""
        self.until = until
        self._write_cursor()

    def done(self, position: int, records: int) -> None:
        """Move the start; files before it are removed."""
        self.start = position
        self.records -= records
        self._write_cursor()
        newest = next(reversed(self._segments), None)
        for first, size in list(self._segments.items()):
            if first + size > position:
                break
            if first == newest:  # it tells `recall` what came last
                break
            if self._reader is not None and self._reader[0] == first:
                os.close(self._reader[1])
                self._reader = None
            self._path(first).unlink(missing_ok=True)
            del self._segments[first]

    def _write_cursor(self) -> None:
        text = b'{"start":%d,"until":%d}' % (self.start, self.until)
        os.pwrite(self._cursor_file, text.ljust(63) + b"\n", 0)

    def recall(self, since: bytes) -> frozenset[bytes]:
        """The identities of records at or after a sort key that are or were in it.

        It knows what is not delivered yet, and of the rest what came last.
        """
        found: set[bytes] = set()
        for first in reversed(self._segments):
            with open(self._path(first), "rb") as file:
                new = {wire.identity(line) for line in file if wire.key(line) >= since}
            if not new:
                break
            found |= new
        return frozenset(found)

    def drop(self) -> int:
        """Throw away what is in it; return how many records that were."""
        records = self.records
        self.done(self.end, records)
        return records

    def close(self) -> None:
        """Let go; a spool without records leaves no files."""
        if self._lock < 0:
            return
        empty = getattr(self, "records", 1) == 0
        reader = self._reader[1] if self._reader is not None else None
        for descriptor in (self._cursor_file, self._writer, reader):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._reader = self._writer = None
        self._cursor_file = -1
        if empty:
            shutil.rmtree(self.folder, ignore_errors=True)
        lock, self._lock = self._lock, -1
        os.close(lock)


class Look(NamedTuple):
    """What a spool looks like from outside.

    Attributes:
        records: How many records are not delivered.
        size_bytes: How many bytes these are.
        first: The first of them.
        user: The process that has locked it, or 0.
    """

    records: int
    size_bytes: int
    first: bytes
    user: int


def look(folder: Path) -> Look:
    """Look at a spool without touching it, whoever uses it."""
    try:
        with open(folder / "cursor", "rb") as file:
            start = _read_cursor(file.fileno()).start
    except FileNotFoundError:
        start = 0
    records = size = 0
    first = b""
    for path in sorted(folder.glob("*" + _SUFFIX)):
        try:
            with open(path, "rb") as file:
                file.seek(max(0, start - int(path.stem)))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    first = first or line
                    records += 1
                    size += len(line)
        except (FileNotFoundError, ValueError):
            continue  # delivered this moment; or no segment
    return Look(records, size, first, _user(folder / "lock"))


def _user(path: Path) -> int:
    try:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20).strip() or 0)
    except (OSError, ValueError):  # no lock file, or no locks there
        pass
    return 0


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock(folder: Path) -> int:
    """Lock the directory's lock file; the one that it holds now, not a removed one."""
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "lock"
        try:
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue  # removed by its last user this moment
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


def _identity(path: Path) -> str:
    """The id in the file; a new one when there is none that makes sense."""
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        text = os.read(descriptor, 64).decode("ascii", "replace").strip()
        if len(text) == 32 and text.isalnum():
            return text
        text = uuid.uuid4().hex
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode() + b"\n", 0)
        return text
    finally:
        os.close(descriptor)


def _read_cursor(descriptor: int) -> _Cursor:
    """The cursor; when it is damaged, everything is sent again rather than lost."""
    try:
        cursor = msgspec.json.decode(os.pread(descriptor, 256, 0), type=_Cursor)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Cursor()
    return cursor if cursor.start >= 0 else _Cursor()


def _mend(path: Path) -> tuple[int, int]:
    """Take an unfinished line off a segment; return its size and 1 if there was one."""
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
        if end == size:
            return size, 0
        os.ftruncate(descriptor, end)
        return end, 1
    finally:
        os.close(descriptor)
