"""Recall: which records a log's files hold already, for a consumer that resumes.

The lines of a file are in the order of time but for late ones, which come after lines
with later timestamps. So `written_since` reads files backwards, newest first, until a
whole block has only lines older than the instant by MARGIN_BYTES. A compressed file
cannot be read backwards: it is expanded from its start, in parts. Only regular files of
the user, of root or of the directory's owner are read, and no more than the limits below
in bytes and time: records beyond may be written twice. A file that is compressed or
renamed between listing and opening is found by listing once more.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from logagg.wireformat import KEY_END, PREFIX, received_suffix, record_id
from logagg_sinks import _compression
from logagg_sinks.file.repair import SEARCH_BYTES

__all__ = ["Listed", "written_since"]

BLOCK_BYTES = 1024 * 1024
MOST_BYTES = 1024 * 1024 * 1024
"""The most that is read of a log: less than a second's reading."""
MOST_RECORDS = 500_000
"""The most record identities per log, give or take a block: about 100 MB. Records
further back than either limit may be written twice."""
MOST_EXPANDED_BYTES = 256 * 1024 * 1024
"""How much of a compressed file is expanded."""
MOST_SECONDS = 30.0
"""How long all of it may take."""
MOST_LISTINGS = 20
"""How often the files are listed while others rename them."""
_PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""Errors of the disk, not of a file: its content may be known a little later."""
MARGIN_BYTES = 64 * 1024 * 1024
"""How many bytes of older lines are read beyond the instant. Late lines come in long
runs: what a worker kept, 16 MiB and more, while it was suspended."""

_Block: TypeAlias = tuple[int, list[bytes]]
"""How many bytes were read, and the whole lines among them."""


class Listed(NamedTuple):
    """A file as it was listed; the newest sort last.

    Attributes:
        modified: Its modification time in nanoseconds.
        path: Its name then.
        inode: Its inode.
        size: Its length then.
    """

    modified: int
    path: Path
    inode: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Listed:
        """A file that is there now. Raises OSError."""
        status = os.lstat(path)
        return cls(status.st_mtime_ns, path, status.st_ino, status.st_size)

    @property
    def key(self) -> tuple[int, int, int]:
        """Identifies the file, whatever its name; its inode alone may come again."""
        return self.inode, self.modified, self.size


def written_since(
    listing: Callable[[], Iterable[list[Listed]]], since: bytes
) -> frozenset[bytes]:
    """The identities of the records in a sink's files, stamped at or after `since`.

    Args:
        listing: Lists the files of each log.
        since: The sort key of the oldest record wanted.
    """
    deadline = time.monotonic() + MOST_SECONDS
    found: set[bytes] = set()
    done: set[tuple[int, int, int]] = set()
    for _ in range(MOST_LISTINGS):
        is_complete = True
        logs = [[each for each in log if each.key not in done] for log in listing()]
        for files in sorted((sorted(log, reverse=True) for log in logs), reverse=True):
            search = _Search(found, since, deadline)
            for each in files:
                if search.over or search.file(each):
                    done.add(each.key)
                else:
                    is_complete = False  # its content has another name now
        if is_complete or time.monotonic() > deadline:
            break
    return frozenset(found)


class _Search:
    """The search of one log.

    Args:
        found: Where identities are put.
        since: The sort key of the oldest record wanted.
        deadline: When to stop, on the monotonic clock.
    """

    def __init__(self, found: set[bytes], since: bytes, deadline: float) -> None:
        self._found = found
        self._since = since
        self._deadline = deadline
        self._most = len(found) + MOST_RECORDS
        self._left = MOST_BYTES
        self._older = 0  # bytes of older lines since the last one that is not

    @property
    def over(self) -> bool:
        """Whether nothing more is to be read."""
        return (
            self._older > MARGIN_BYTES
            or self._left <= 0
            or len(self._found) > self._most
            or time.monotonic() > self._deadline
        )

    def file(self, listed: Listed) -> bool:
        """Search a file; one that is damaged or of another user is skipped.

        Returns:
            False when the name does not lead to it any more.

        Raises:
            OSError: It cannot be read now: what it holds would be written again.
        """
        path = listed.path
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(path, flags)
        except OSError as error:
            if error.errno in _PASSING:
                raise
            return error.errno != errno.ENOENT
        try:
            status = os.fstat(fd)
            if status.st_ino != listed.inode:
                return False
            friends = (os.geteuid(), 0, os.stat(path.parent).st_uid)
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in friends:
                return True
            kind = _compression.kind_of(path.name)
            if kind is None:
                self._lines(_backwards(fd, status.st_size))
            else:
                self._packed(kind, fd)
        except OSError as error:
            if error.errno in _PASSING:
                raise
        finally:
            os.close(fd)
        return True

    def _packed(self, kind: _compression.Compression, fd: int) -> None:
        before, self._older = self._older, 0
        fresh = len(self._found)
        try:
            self._lines(_forwards(_compression.unpack(kind, fd)), every=True)
        except ValueError:
            pass  # damaged: what is before the damage is known
        if len(self._found) == fresh:
            self._older += before

    def _lines(self, blocks: Iterator[_Block], *, every: bool = False) -> None:
        """Search blocks of lines, until one is too old unless `every` is to be read."""
        known = False
        expanded = 0
        for read, lines in blocks:
            size = sum(map(len, lines))
            self._left -= read
            expanded += read
            if every and expanded > MOST_EXPANDED_BYTES:
                return
            if not size and not self.over:
                continue  # in the middle of a long line
            records = [line for line in lines if _is_record(line)]
            known = known or bool(records)
            fresh = [record_id(a) for a in records if a[:KEY_END] >= self._since]
            self._found.update(fresh)
            if fresh:
                self._older = 0
            elif known or not every:  # text of other programs is passed over
                self._older += size
            if self.over and not (every and self._older > MARGIN_BYTES):
                return


_RECEIVED = b',"received":"'
_SUFFIX_BYTES = len(received_suffix(0).rstrip())


def _is_record(line: bytes) -> bool:
    """Whether a line is a whole record of a log, not the beginning of one.

    A death or a full disk leaves a beginning, which has the identity of its record, and
    a repair that was refused leaves it in the file: the record is still to be written.
    """
    return (
        line.startswith(PREFIX)
        and line.endswith(b'"}')
        and line.startswith(_RECEIVED, len(line) - _SUFFIX_BYTES)
    )


def _backwards(fd: int, size: int) -> Iterator[_Block]:
    """The lines of a file in blocks, the last block first."""
    end = size
    rest = b""
    is_long = False  # `rest` was the end of a line that is too long: it is passed over
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        read = os.pread(fd, end - start, start)
        if is_long and b"\n" not in read:
            lines = []
        else:
            lines = (read + rest).split(b"\n")
            if is_long:
                lines[-1] = b""
            rest = lines.pop(0) if start else b""
            is_long = len(rest) > SEARCH_BYTES
        if is_long:
            rest = b""
        yield end - start, lines
        end = start


def _forwards(parts: Iterable[bytes]) -> Iterator[_Block]:
    """The lines of a stream in blocks."""
    rest = b""
    is_long = False  # as of `_backwards`
    for part in parts:
        if is_long and b"\n" not in part:
            yield len(part), []
            continue
        lines = (rest + part).split(b"\n")
        if is_long:
            lines[0] = b""
        rest = lines.pop()
        is_long = len(rest) > SEARCH_BYTES
        if is_long:
            rest = b""
        yield len(part), lines
    yield 0, [rest]
