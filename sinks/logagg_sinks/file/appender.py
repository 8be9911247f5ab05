"""One open file that whole lines are appended to.

Theory of operation
-------------------
There is one writer, so the file's length is known: `size` is its valid part and grows
only when a write is complete. From that follow:

- A write that fails in the middle (disk full, size limit, I/O error) is undone by
  truncating the file to where it began: `size`, unless another program appended text
  since, which is found by comparing and stays. When that fails too, `dirty` stays set
  and it is done before anything else is written.
- A file that another program truncated (`copytruncate`) is shorter than `size`; then
  nothing is cut. O_APPEND writes at the new end, so no hole of NULs appears.
- Once a second the name is compared with the open file. When the file was moved away,
  the name is opened anew, a moment later if nothing has its place; when it was deleted,
  the bytes written since the last comparison are carried over into the new file.
- A truncated last line (its writer was killed) is repaired at opening: see `repair`.
  Where that is refused (the disk is still full), it is done before anything is written.

Everything blocks and runs in the sink's writing thread, except `write`, which aiofiles
runs there.
"""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime

import aiofiles.threadpool
from aiofiles.threadpool.binary import AsyncFileIO

from logagg.abc import failpoints
from logagg.errors import ConfigError
from logagg_sinks._executor import SerialExecutor
from logagg_sinks.file.directory import LogDirectory, Opened, Ownership
from logagg_sinks.file.file_locks import begin_writing, end_writing
from logagg_sinks.file.repair import last_line_end, repair

__all__ = ["Appender"]

CHECK_INTERVAL = 1.0
MISSING_INTERVAL = 0.2
"""Until a name is opened anew that has no file: logrotate, which has just moved it, may
be about to make one, and would move away, or replace, a file that it finds there."""
"""Seconds between two checks that the name still leads to the open file."""

log = logging.getLogger("logagg.file")


class Appender:
    """A file opened for appending lines.

    Args:
        path: The file.
        executor: The writing thread.
        ownership: Mode and owner of a new file.
        json: The lines are JSON, so a truncated one is recognized.
        below: How many of the path's last directories come from templates.
        prepare: Called with the directory before the file is opened.

    Attributes:
        size: The valid bytes of the file.
        dirty: A failed write may have left bytes after `size`.
        regular: It is a file on disk, not a device.
        created: It did not exist when it was opened.
        modified: Its modification time when it was opened; None for a new file.
        openings: How often it was opened.
    """

    def __init__(
        self,
        path: Path,
        executor: SerialExecutor,
        *,
        ownership: Ownership,
        json: bool = True,
        below: int = 0,
        prepare: Callable[[LogDirectory], None] = lambda _: None,
    ) -> None:
        self.path = path
        self.name = path.name
        self.size = 0
        self.dirty = False
        self.regular = True
        self.created = False
        self.modified: float | None = None
        self.openings = 0
        self.directory: LogDirectory | None = None
        self._executor = executor
        self._ownership = ownership
        self._json = json
        self._below = below
        self._prepare = prepare
        self._handle: AsyncFileIO | None = None
        self._raw: io.FileIO | None = None
        self._fd = -1
        self._pending = memoryview(b"")  # what is being written while `dirty` is set
        self._carried = b""  # goes into the file before anything else
        self._is_torn = False  # its last line may be truncated; before even that
        self._checked_at = 0.0  # when the name was last compared with the file
        self._checked_size = 0  # the size at that moment
        self._is_missing = False  # the name had no file then

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._handle is not None

    @property
    def due(self) -> bool:
        """Whether `check_name` has something to do."""
        since = clock_gettime(CLOCK_MONOTONIC) - self._checked_at
        unfinished = self.dirty or self._is_torn or bool(self._carried)
        return unfinished or since >= CHECK_INTERVAL

    def open(self) -> None:
        """Open the file, or create it; repair a truncated last line.

        Raises:
            ConfigError: It is not a file that it is safe to write to.
            OSError: It cannot be opened now.
        """
        if self.directory is None:
            self.directory = self.open_directory()
        self._prepare(self.directory)
        self._begin(self.directory.open(self.name, self._ownership))

    def _begin(self, opened: Opened) -> None:
        self._adopt(opened)
        if failpoints.ACTIVE:
            failpoints.hit("file_opened")
        self._is_torn = self.regular and self.size > 0
        try:
            self._repair()
            self._carry_over()
        except OSError as error:
            log.warning("%s cannot be written to yet: %s", self.path, error)
        self._checked_at, self._checked_size = clock_gettime(CLOCK_MONOTONIC), self.size

    def open_directory(self) -> LogDirectory:
        """The directory, opened for the caller, who must close it.

        Raises:
            ConfigError: It is unusable, or anybody could write to it.
        """
        parts = self.path.parent.parts
        at = len(parts) - self._below
        return LogDirectory(Path(*parts[:at]), parts[at:])

    def _adopt(self, opened: Opened) -> None:
        if opened.regular and not begin_writing(opened.fd) and self._has_owner_file:
            os.close(opened.fd)
            raise OSError(errno.EBUSY, "another process writes or compresses it")
        raw = io.FileIO(opened.fd, "ab", closefd=True)
        self._raw = raw
        self._handle = aiofiles.threadpool.wrap(raw, executor=self._executor)
        self._fd = opened.fd
        self.regular = opened.regular
        self.size = opened.status.st_size if opened.regular else 0
        self.created = opened.created
        self.modified = None if opened.created else opened.status.st_mtime
        self.dirty = False
        self.openings += 1

    @property
    def _has_owner_file(self) -> bool:
        """Else the lock of the log's file is the owner's own: see `logagg.ownership`."""
        assert self.directory is not None
        fd = self.directory.fd
        return os.access(".", os.W_OK, dir_fd=fd, effective_ids=True)

    def _repair(self) -> None:
        if not self._is_torn:
            return
        size = os.fstat(self._fd).st_size  # others may have appended
        start = self.size = size
        if size:
            start, self.size = repair(self._fd, size, json=self._json)
        self._is_torn = False
        self._checked_size = min(self._checked_size, start)
        torn = size - start
        if torn:
            log.warning(
                "%s ended in a truncated line (%d bytes): kept as a record of its own",
                self.path,
                torn,
            )

    def _carry_over(self) -> None:
        """Append the bytes of a repaired end or a deleted file.

        On failure none of them is in the file, and the next check tries again.
        """
        data = self._carried
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BaseException:
            self.rewind(self.size, memoryview(data))
            self.discard_partial()
            raise
        self.size += len(data)
        self._carried = b""

    async def write(self, data: bytes, start: int, end: int) -> None:
        """Append `data[start:end]`, whole lines.

        Loss: when it raises, none of them is in the file, or `dirty` is set and
        `discard_partial` removes them before the next write.

        Raises:
            OSError: The system refused it.
        """
        handle = self._handle
        assert handle is not None
        rest = memoryview(data)[start:end]
        self.rewind(self.size, rest)  # until all is in: a cancelled call may have begun
        while rest:
            written = await handle.write(rest)
            rest = rest[written:]
            if failpoints.ACTIVE and rest:
                failpoints.hit("file_part")
        self._settle(self.size + end - start)

    def rewind(self, size: int, data: memoryview) -> None:
        """Have `data` after `size` removed by the next `discard_partial`."""
        self.size, self._pending, self.dirty = size, data, True

    def _settle(self, size: int) -> None:
        self.size, self._pending, self.dirty = size, memoryview(b""), False

    @property
    def fd(self) -> int:
        """The descriptor of the open file; -1 when closed."""
        return self._fd

    def copy_fd(self) -> int:
        """A descriptor of the open file, to be closed by the caller; -1 when closed."""
        if self._fd == -1 or not self.regular:
            return -1
        try:
            return os.dup(self._fd)
        except OSError:  # it is being closed, in the thread
            return -1

    def discard_partial(self, *, keep_lines: bool = False) -> int:
        """Remove what a failed or cancelled write left.

        Args:
            keep_lines: Keep whole lines and remove only a truncated last one.

        Returns:
            How many bytes of it stay.

        Raises:
            OSError: Truncating was refused too; `dirty` stays set.
        """
        if not self.dirty:
            return 0
        if not self.regular or self._fd == -1:
            self._settle(self.size)
            return 0
        actual = -1
        while actual != os.fstat(self._fd).st_size:  # others may append meanwhile
            actual = os.fstat(self._fd).st_size
            begin = good = self._partial_start(actual)
            if keep_lines and actual > begin:
                good = last_line_end(self._fd, begin, actual)
        if actual > good:
            os.ftruncate(self._fd, good)
        self._settle(good)
        return good - begin

    def _partial_start(self, actual: int) -> int:
        """Where the failed write begins; the file's end when it left nothing there."""
        begin = min(self.size, actual)
        data = bytearray()
        while begin + len(data) < actual:
            part = os.pread(self._fd, actual - begin - len(data), begin + len(data))
            if not part:
                break
            data += part
        end = memoryview(data)
        at = 0
        while at < len(data) and end[at:] != self._pending[: len(data) - at]:
            at = data.find(b"\n", at) + 1 or len(data)
        return begin + at

    def check_name(self) -> None:
        """Follow the name when the file was moved, deleted or truncated.

        Raises:
            ConfigError: The name leads to a file that is not safe to write to.
            OSError: It cannot be opened now.
        """
        if self._handle is None:
            self.open()
            return
        self.discard_partial()
        self._repair()
        self._carry_over()
        if not self.regular:
            self._checked_at = clock_gettime(CLOCK_MONOTONIC)
            return
        assert self.directory is not None
        mine = os.fstat(self._fd)
        self.size = mine.st_size  # copytruncate, or nothing new
        there = None if self.directory.moved() else self.directory.status(self.name)
        waits = there is None and mine.st_nlink > 0 and not self._is_missing
        if not waits and (there is None or not os.path.samestat(mine, there)):
            self.reopen()
        self._is_missing = waits
        self._checked_at, self._checked_size = clock_gettime(CLOCK_MONOTONIC), self.size
        if waits:
            self._checked_at -= CHECK_INTERVAL - MISSING_INTERVAL

    def reopen(self) -> None:
        """Open the name anew; carry over what a deleted file got since the last check."""
        if self._handle is not None and self.regular:
            self.discard_partial()
            mine = os.fstat(self._fd)
            if mine.st_nlink == 0 and mine.st_size > self._checked_size:
                with os.fdopen(os.dup(self._fd), "rb") as old:
                    old.seek(self._checked_size)
                    self._carried += old.read()
        self._shut()
        self.open()

    def rotate(
        self, rename: Callable[[LogDirectory, int, Callable[[], None]], None]
    ) -> None:
        """Have the file renamed, and start a new one.

        Args:
            rename: Renames the file; is given the directory, the file's descriptor, and
                a function to be called then, which opens the new file.

        Raises:
            ConfigError, OSError: It was refused; the file is written as before.
        """
        assert self.directory is not None
        self.discard_partial()
        self._repair()
        before = os.fstat(self._fd)
        there = self.directory.status(self.name)
        if there is None or not os.path.samestat(before, there):
            self.reopen()  # another program has moved it away
            return
        directory = self.directory
        new: list[Opened] = []
        rename(
            directory,
            self._fd,
            lambda: new.append(directory.open(self.name, _like(before))),
        )
        self.directory = None
        self._shut()
        self.directory = directory
        self._begin(new[0])

    def close(self) -> None:
        """Close the file; whole lines stay. May be called twice."""
        if self._carried:
            try:
                self.check_name()
            except (OSError, ConfigError) as error:
                lost = self._carried.count(b"\n")
                log.warning("%s: %d records are lost: %s", self.path, lost, error)
                self._carried = b""
        self._shut()

    def _shut(self) -> None:
        if self._handle is not None:
            try:
                self.discard_partial(keep_lines=True)
            except OSError as error:
                log.warning("%s may end in a truncated line: %s", self.path, error)
            if self.regular:
                end_writing(self._fd)
            raw, self._raw, self._handle, self._fd = self._raw, None, None, -1
            if raw is not None:
                raw.close()
        if self.directory is not None:
            self.directory.close()
            self.directory = None


def _like(status: os.stat_result) -> Ownership:
    """Mode and owner of a rotated file, for the one that follows it."""
    uid = status.st_uid if status.st_uid != os.geteuid() else -1
    gid = status.st_gid if status.st_gid != os.getegid() else -1
    return Ownership(status.st_mode & 0o777, uid, gid)
