"""One file that whole lines are appended to, without ever leaving half of one.

Theory of operation
-------------------
There is one writer, so the file's length is known: `size` is how much of it is good,
and `size` only grows when a write has gone in completely. From that follow:

- A write that fails in the middle (disk full, size limit, I/O error) is taken back by
  cutting the file to `size`. When even that fails, `dirty` stays set and it is done
  before anything else is written.
- A file that another program truncated (`copytruncate`) is shorter than `size`; then
  nothing is cut. O_APPEND writes at the new end, so no hole of NULs appears.
- Once a second the name is compared with the open file. When the file was moved away,
  the name is opened anew; when it was deleted, what was written since the last look
  is carried over into the new file, so nothing is lost with it.
- A torn last line (its writer was killed) is mended at opening: see `_tail`.

Everything here blocks; it runs in the sink's own thread, except `write`, which aiofiles
runs there.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime

import aiofiles.threadpool
from aiofiles.threadpool.binary import AsyncFileIO

from logagg import failpoints
from logagg.errors import ConfigError
from logagg_sinks import _tail
from logagg_sinks._lane import Lane
from logagg_sinks._place import Opened, Ownership, Place

__all__ = ["Appender"]

LOOK_INTERVAL = 1.0
"""Seconds between two looks whether the name still leads to the open file."""

log = logging.getLogger("logagg.file")


class Appender:
    """A file opened for appending lines.

    Args:
        path: Where it is.
        lane: The thread that everything runs in.
        ownership: What a new file gets.
        json: The lines are JSON, so a torn one can be told from a whole one.
        below: How many of the path's last directories were made from templates.
    """

    def __init__(
        self,
        path: Path,
        lane: Lane,
        *,
        ownership: Ownership,
        json: bool = True,
        below: int = 0,
    ) -> None:
        self.path = path
        self.name = path.name
        self.size = 0
        self.dirty = False
        self.regular = True
        self.created = False  # when it was opened last
        self.modified: float | None = None  # when it was written before it was opened
        self.place: Place | None = None
        self._lane = lane
        self._ownership = ownership
        self._json = json
        self._below = below
        self.openings = 0  # how often it was opened
        self._handle: AsyncFileIO | None = None
        self._raw: io.FileIO | None = None
        self._fd = -1
        self._carried = b""  # what must go into the file before anything else
        self._looked = 0.0  # when the name was last compared with the file
        self._safe = 0  # the size at that moment

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._handle is not None

    @property
    def due(self) -> bool:
        """Whether `look` has something to do."""
        since = clock_gettime(CLOCK_MONOTONIC) - self._looked
        return self.dirty or bool(self._carried) or since >= LOOK_INTERVAL

    def open(self, ownership: Ownership | None = None) -> None:
        """Open the file, or make it; mend a torn last line.

        Raises:
            ConfigError: It is not a file that it is safe to write to.
            OSError: It cannot be opened now.
        """
        if self.place is None:
            self.place = self.find_place()
        opened = self.place.open(self.name, ownership or self._ownership)
        self._adopt(opened)
        if failpoints.ACTIVE:
            failpoints.hit("file_opened")
        if self.regular and self.size:
            self._mend()
        self._carry()
        self._looked, self._safe = clock_gettime(CLOCK_MONOTONIC), self.size

    def find_place(self) -> Place:
        """The directory, opened for the caller, who must close it.

        Raises:
            ConfigError: It cannot be had, or anybody could write to it.
        """
        parts = self.path.parent.parts
        at = len(parts) - self._below
        return Place(Path(*parts[:at]), parts[at:])

    def _adopt(self, opened: Opened) -> None:
        raw = io.FileIO(opened.fd, "ab", closefd=True)
        self._raw = raw
        self._handle = aiofiles.threadpool.wrap(raw, executor=self._lane)
        self._fd = opened.fd
        self.regular = opened.regular
        self.size = opened.status.st_size if opened.regular else 0
        self.created = opened.created
        self.modified = None if opened.created else opened.status.st_mtime
        self.dirty = False
        self.openings += 1

    def _mend(self) -> None:
        keep, extra = _tail.mend(self._fd, self.size, json=self._json)
        if keep < self.size:
            log.warning(
                "%s ended in half a record (%d bytes): kept as a record of its own",
                self.path,
                self.size - keep,
            )
        self._carried = extra + self._carried
        if keep < self.size:
            os.ftruncate(self._fd, keep)
        self.size = keep

    def _carry(self) -> None:
        """Append what comes from a mended end or a deleted file.

        On failure nothing of it is in the file, and it is tried again at the next look.
        """
        data = self._carried
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BaseException:
            self.dirty = True
            self.settle()
            raise
        self.size += len(data)
        self._carried = b""

    async def write(self, data: bytes, start: int, end: int) -> None:
        """Append `data[start:end]`, whole lines.

        Loss: when it raises nothing of them is in the file, or `dirty` is set and
        `settle` takes it out before the next write.

        Raises:
            OSError: The system refused it.
        """
        handle = self._handle
        assert handle is not None
        rest = memoryview(data)[start:end]
        self.dirty = True  # until all of it is in: a cancelled call may have begun
        while rest:
            written = await handle.write(rest)
            rest = rest[written:]
            if failpoints.ACTIVE and rest:
                failpoints.hit("file_part")
        self.dirty = False
        self.size += end - start

    def take_back(self, size: int) -> None:
        """Make what was written behind `size` go at the next `settle`."""
        self.size, self.dirty = size, True

    def copy_fd(self) -> int:
        """A descriptor of the open file, to be closed by the caller; -1 when closed."""
        if self._fd == -1 or not self.regular:
            return -1
        try:
            return os.dup(self._fd)
        except OSError:  # it is being closed, in the thread
            return -1

    def settle(self, *, keep_lines: bool = False) -> None:
        """Take out what a failed or cancelled write left.

        Args:
            keep_lines: Take out only the torn line at the end.

        Raises:
            OSError: Cutting the file was refused too; `dirty` stays set.
        """
        if not self.dirty:
            return
        if self.regular and self._fd != -1:
            actual = os.fstat(self._fd).st_size
            good = self.size
            if keep_lines and actual > good:
                good = _tail.last_line_end(self._fd, good, actual)
            if actual > good:
                os.ftruncate(self._fd, good)
            self.size = min(actual, good)
        self.dirty = False

    def look(self) -> None:
        """Settle, and follow the name when the file was moved, deleted or truncated.

        Raises:
            ConfigError: What the name leads to now is not safe to write to.
            OSError: It cannot be opened now.
        """
        if self._handle is None:
            self.open()
            return
        self.settle()
        self._carry()
        if not self.regular:
            self._looked = clock_gettime(CLOCK_MONOTONIC)
            return
        assert self.place is not None
        mine = os.fstat(self._fd)
        self.size = mine.st_size  # copytruncate, or nothing new
        there = None if self.place.moved() else self.place.status(self.name)
        if there is None or not os.path.samestat(mine, there):
            self.reopen()
        self._looked, self._safe = clock_gettime(CLOCK_MONOTONIC), self.size

    def reopen(self) -> None:
        """Open the name anew, whatever it leads to now.

        When the old file has no name any more, what it got since the last look is
        carried over.
        """
        if self._handle is not None and self.regular:
            self.settle()
            mine = os.fstat(self._fd)
            if mine.st_nlink == 0 and mine.st_size > self._safe:
                self._carried += _read(self._fd, self._safe, mine.st_size)
        self._shut()
        self.open()

    def rotate(self, rename: Callable[[Place], None]) -> None:
        """Let `rename` move the file out of the way, then start a new one."""
        assert self.place is not None
        self.settle()
        before = os.fstat(self._fd)
        there = self.place.status(self.name)
        if there is None or not os.path.samestat(before, there):
            self.reopen()  # somebody else has moved it out of the way
            return
        rename(self.place)
        if failpoints.ACTIVE:
            failpoints.hit("file_renamed")
        place, self.place = self.place, None
        self._shut()
        self.place = place
        self.open(_like(before))

    def close(self) -> None:
        """Close the file; whole lines stay. May be called twice."""
        if self._carried:
            try:
                self.look()
            except (OSError, ConfigError) as error:
                lost = self._carried.count(b"\n")
                log.warning("%s: %d records are lost: %s", self.path, lost, error)
                self._carried = b""
        self._shut()

    def _shut(self) -> None:
        if self._handle is not None:
            try:
                self.settle(keep_lines=True)
            except OSError as error:
                log.warning("%s may end in half a record: %s", self.path, error)
            raw, self._raw, self._handle, self._fd = self._raw, None, None, -1
            if raw is not None:
                raw.close()
        if self.place is not None:
            self.place.close()
            self.place = None


def _like(status: os.stat_result) -> Ownership:
    """A new file in a row looks like the one before it."""
    uid = status.st_uid if status.st_uid != os.geteuid() else -1
    gid = status.st_gid if status.st_gid != os.getegid() else -1
    return Ownership(status.st_mode & 0o777, uid, gid)


def _read(fd: int, start: int, end: int) -> bytes:
    parts = []
    while start < end:
        part = os.pread(fd, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)
