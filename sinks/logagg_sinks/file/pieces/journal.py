"""The journal of the files that a sink made: what it may rename, compress and remove.

Theory of operation
-------------------
A name proves nothing: `app.log.2024` may be a user's copy. So the sink notes each file
that it made, in a hidden file beside the log (`.app.log.journal`): the inode, the
length, and a hash of the first bytes, in which the first timestamp is. A file is the
sink's own when all of these agree; everything else is only read. The device is that of
the directory: a number of its own may change when the machine starts.

Entries are lines of JSON that are appended; a truncated one is ignored. A file that is
still written is noted as `open`: it may have grown since, its first bytes stay.

Renaming, compressing and removing happen inside `transaction`, which excludes other
threads and, by flock, other processes: a predecessor that still compresses and its
successor never change the same names at once. The journal's random `id` is part of each
temporary name, so a leftover is recognized by it; see `hidden`.

The journal is trusted only when it belongs to this user or to root, and only they may
write to it. Without it nothing is renamed, compressed or removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import orjson

from logagg.abc import fdatasync
from logagg_sinks.file.directory import LogDirectory
from logagg_sinks.file.file_locks import lock_file, unlock_file

__all__ = ["Claim", "Journal", "head_of"]

HEAD_BYTES = 256
LOCK_TIMEOUT = 1.0
"""Seconds to wait for another process that holds the lock."""
COMPACT_BYTES = 64 * 1024
"""A journal of more bytes, most of them outdated, is written anew."""

DATES = 100
"""How many of the dates of files a compact journal keeps."""

_ENTRY_BYTES = 200  # about the length of an entry

_Place: TypeAlias = tuple[str, int]
"""The directory of a file, below the base, and its inode."""


class Claim(NamedTuple):
    """A file that the sink made.

    Attributes:
        series: The log: its path below the base, a NUL in place of the date.
        name: The path below the base under which it was noted.
        inode: Its inode.
        length: Its length then.
        head: A hash of its first bytes, and how many of them.
        open: It may have grown since.
        kept: It was there before, so it is never compressed or removed.
        of: For a compressed file, the `key` of its original while that is there.
    """

    series: str
    name: str
    inode: int
    length: int
    head: str
    open: bool = False
    kept: bool = False
    of: str = ""

    @property
    def key(self) -> str:
        """Identifies the file and its content."""
        return f"{self.inode}:{self.length}:{self.head}"

    @property
    def place(self) -> _Place:
        """Where the file is, and its inode."""
        return os.path.dirname(self.name), self.inode

    def proven_by(self, fd: int, status: os.stat_result) -> bool:
        """Whether an open file is this one."""
        size = status.st_size
        return (
            stat.S_ISREG(status.st_mode)
            and status.st_ino == self.inode
            and (size >= self.length if self.open else size == self.length)
            and self.head == head_of(fd, int(self.head.partition("/")[2]))
        )


def head_of(fd: int, length: int) -> str:
    """A hash of a file's first bytes, with their number, at most HEAD_BYTES."""
    data = os.pread(fd, min(length, HEAD_BYTES), 0)
    return f"{hashlib.blake2b(data, digest_size=8).hexdigest()}/{len(data)}"


class Journal:
    """The entries of one sink.

    Args:
        base: The directory that all of the sink's files are below.
        name: The journal's name in it.

    Attributes:
        id: Random text that is part of each temporary name; empty until it is opened.
        claims: The files that were noted, by place.
        dates: Dates that files were named by, or were about to be.
    """

    def __init__(self, base: Path, name: str) -> None:
        self.base = base
        self.name = name
        self.id = ""
        self.claims: dict[_Place, Claim] = {}
        self.dates: set[str] = set()
        self._proven: dict[_Place, tuple[Claim, int, int]] = {}
        self._lock = threading.RLock()
        self._depth = 0
        self._fd = -1
        self._read_to = 0
        self._entries = 0
        self._is_truncated = False  # the file ends in a part of an entry

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Exclude all others, and know what they noted. May be nested.

        Blocks for at most LOCK_TIMEOUT.

        Raises:
            ConfigError: The directory is not safe to use.
            OSError: The journal cannot be used, or another process holds it.
        """
        with self._lock:
            if not self._depth:
                self._acquire()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth and self._fd != -1:
                    unlock_file(self._fd)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction if there is a journal; never makes one.

        Raises:
            ConfigError: The directory is not safe to use.
            OSError: It cannot be used, or another process holds it.
        """
        with contextlib.ExitStack() as held:
            if os.path.lexists(self.base / self.name):
                held.enter_context(self.transaction())
            yield

    def load(self) -> None:
        """Read the journal if there is one; never makes one. Raises as `reading`."""
        with self.reading():
            pass

    def _acquire(self) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            if self._fd == -1:
                self._open()
            while not lock_file(self._fd):
                if time.monotonic() >= deadline:
                    raise BlockingIOError(
                        errno.EWOULDBLOCK, f"another process holds {self.name}"
                    )
                time.sleep(0.01)
            try:
                if self._is_current():
                    self._refresh()
                    return
            except BaseException:
                unlock_file(self._fd)  # else it would be held for good
                raise
            self.close()  # it was written anew, or removed

    def _is_current(self) -> bool:
        """Whether the open journal is the one that has the name now."""
        try:
            there = os.stat(self.base / self.name, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        directory = LogDirectory(self.base)
        try:
            fd = os.open(self.name, flags | os.O_CLOEXEC, 0o600, dir_fd=directory.fd)
            try:
                sole = directory.is_only_name(self.name, fd)
            except OSError:
                os.close(fd)
                raise
        finally:
            directory.close()
        status = os.fstat(fd)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid not in (os.geteuid(), 0)
            or status.st_mode & 0o022
            or not sole
        ):
            os.close(fd)
            raise PermissionError(
                errno.EPERM,
                f"{self.name} is not a journal of this user that only it may write to; "
                "remove it",
            )
        self._fd, self._read_to, self._entries, self._is_truncated = fd, 0, 0, False
        self.id, self.claims, self.dates = "", {}, set()

    def _refresh(self) -> None:
        """Read what was appended since; begin an empty journal."""
        size = os.fstat(self._fd).st_size
        data = b""
        while self._read_to + len(data) < size:
            more = os.pread(self._fd, size - self._read_to, self._read_to + len(data))
            if not more:
                break
            data += more
        self._read_to += len(data)
        for line in data.split(b"\n"):
            self._take(line)
        if data:
            self._is_truncated = not data.endswith(b"\n")
        if not self.id:
            self._append(_entry({"id": secrets.token_hex(8)}))

    def _take(self, line: bytes) -> None:
        try:
            found = orjson.loads(line)
            if "id" in found:
                self.id = self.id or str(found["id"])
            elif "date" in found:
                self.dates.add(str(found["date"]))
            elif "gone" in found:
                self.claims.pop((str(found["gone"][0]), int(found["gone"][1])), None)
            else:
                claim = Claim(**found)
                self.claims[claim.place] = claim
            self._entries += 1
        except (ValueError, TypeError, KeyError, IndexError):
            pass  # truncated, or not an entry

    def _append(self, data: bytes) -> None:
        """Add entries, after the end of one that its writer could not finish."""
        if self._is_truncated:
            data = b"\n" + data
        written = os.write(self._fd, data)
        self._read_to += written
        self._is_truncated = written != len(data)
        if self._is_truncated:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for line in data.split(b"\n"):
            self._take(line)

    def add(self, claim: Claim) -> None:
        """Note a file. Inside a transaction. Raises OSError."""
        if self.claims.get(claim.place) != claim:
            self._append(_entry(claim._asdict()))

    def add_date(self, date: str) -> None:
        """Note a date before a file is named by it. As `add`."""
        if date not in self.dates:
            self._append(_entry({"date": date}))

    def drop(self, place: _Place) -> None:
        """Forget a file. Inside a transaction. Raises OSError."""
        if place in self.claims:
            self._append(_entry({"gone": list(place)}))

    def compact(self) -> None:
        """Write the journal anew when most of it is outdated. Raises OSError."""
        with self.transaction():
            useful = (len(self.claims) + min(len(self.dates), DATES) + 1) * 2
            if self._entries < max(useful, COMPACT_BYTES // _ENTRY_BYTES):
                return
            new = f"{self.name}.{self.id}-{secrets.token_hex(4)}.part"
            dates = sorted(self.dates)[-DATES:]
            data = _entry({"id": self.id})
            data += b"".join(_entry({"date": each}) for each in dates)
            data += b"".join(_entry(each._asdict()) for each in self.claims.values())
            directory = LogDirectory(self.base)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                fd = os.open(new, flags, 0o600, dir_fd=directory.fd)
                try:
                    lock_file(fd)
                    if os.write(fd, data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(fd)
                    directory.rename(new, self.name)
                finally:
                    os.close(fd)
            except OSError:
                directory.remove(new)
                raise
            finally:
                directory.close()
            self._entries = len(self.claims) + len(dates)

    def sync(self) -> None:
        """Force the entries to the disk. Raises OSError."""
        with self._lock:
            if self._fd != -1:
                fdatasync(self._fd)

    def hidden(self, name: str, end: str) -> str:
        """A temporary name that no other program uses, beside a file."""
        return f".{name}.{self.id}-{end}"

    def leftovers(self, names: list[str]) -> list[tuple[str, str, str]]:
        """The temporary names in a directory: each with its file's name and its end."""
        end = r"([0-9a-fx]+\.(?:part|gone))"
        pattern = re.compile(rf"\.(.+)\.{self.id}-{end}", re.DOTALL)
        found = [(name, pattern.fullmatch(name)) for name in names]
        return [(name, match[1], match[2]) for name, match in found if match]

    def owner_of(
        self, directory: LogDirectory, below: str, name: str
    ) -> tuple[Claim, os.stat_result, int] | None:
        """Open a file that the sink made; None when that is not proven.

        Returns:
            The entry, the file's status, and its descriptor, to be closed.
        """
        status = directory.status(name)
        if status is None:
            return None
        claim = self.claims.get((below, status.st_ino))
        if claim is None or status.st_dev != os.fstat(directory.fd).st_dev:
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(name, flags, dir_fd=directory.fd)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            if claim.proven_by(fd, status):
                return claim, status, fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def known(
        self, directory: LogDirectory, below: str, name: str
    ) -> tuple[Claim, os.stat_result] | None:
        """The claim and the status of a file that the sink made, or None.

        The content is read once, and again when its length or the time of its last
        change differ. That is enough for a rename; before a removal, `owner_of` reads it.
        """
        status = directory.status(name)
        if status is None:
            return None
        place = below, status.st_ino
        claim = self.claims.get(place)
        if claim is None:
            self._proven.pop(place, None)
            return None
        if self._proven.get(place) == (claim, status.st_size, status.st_mtime_ns):
            return claim, status
        found = self.owner_of(directory, below, name)
        if found is None:
            return None
        claim, status, fd = found
        os.close(fd)
        self._proven[claim.place] = claim, status.st_size, status.st_mtime_ns
        return claim, status

    def close(self) -> None:
        """Close the file. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)


def _entry(fields: dict[str, object]) -> bytes:
    return orjson.dumps(fields) + b"\n"
