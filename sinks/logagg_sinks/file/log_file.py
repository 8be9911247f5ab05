"""One log file and its rotated pieces: when to rotate, and where to write.

An `Appender` writes; this module decides before each write whether to follow the name
(the file was moved or deleted from outside), to rotate by time, or to rotate by size in
the middle of the data. A write is split at line ends only. A rotation that is refused
goes on in the same file, with an alarm, and is tried again later.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import CLOCK_MONOTONIC, clock_gettime

from logagg.errors import ConfigError
from logagg_sinks._executor import SerialExecutor
from logagg_sinks.file.appender import Appender
from logagg_sinks.file.directory import LogDirectory
from logagg_sinks.file.file_options import FileOptions
from logagg_sinks.file.fsync import Syncer
from logagg_sinks.file.pieces.rotator import Rotator
from logagg_sinks.file.rotation import LogName, cut

__all__ = ["LogFile"]

TIDY_INTERVAL = 3600.0
"""Seconds after which rotated files are tidied even when nothing was rotated."""

RETRY_INTERVAL = 30.0
"""Seconds after which a rotation that was refused is tried again."""


class LogFile:
    """A log file that rotates.

    Args:
        appender: The file.
        name: The log.
        rotator: Renames its files.
        tidy: Has the sink's rotated files tidied in the background, soon.
        alarm: Called with what an operator should know; empty when it has passed.
        executor: The thread for writing.
        clock: Seconds since the epoch.
        options: When to rotate.
        sync: Forces written data to the disk.
    """

    def __init__(
        self,
        appender: Appender,
        name: LogName,
        rotator: Rotator,
        *,
        tidy: Callable[[], None],
        alarm: Callable[[str], None],
        executor: SerialExecutor,
        clock: Callable[[], float],
        options: FileOptions,
        sync: Syncer,
    ) -> None:
        self.appender = appender
        self._name = name
        self._rotator = rotator
        self._tidy = tidy
        self._alarm = alarm
        self._executor = executor
        self._clock = clock
        self._max_bytes = options.max_bytes
        self._schedule = options.schedule()
        self._sync = sync
        self._period: int | None = None  # of the records in the file
        self._check_at = 0.0  # when the period may change
        self._tidied_at = 0.0
        # The length of the file that the journal knows of; -1 for none.
        self._noted = -1
        self._note_at = 0.0  # when a note that was refused is tried again
        self._rotates = options.needs_journal or name.dated
        self._retry_at = 0.0  # when a refused rotation is tried again

    async def open(self) -> None:
        """Open the file and finish the work of an earlier run.

        Raises:
            ConfigError: It is not a file that it is safe to write to.
            OSError: It cannot be opened now.
        """
        await self._check_name()
        self.tidy()

    async def _check_name(self) -> None:
        opened = self.appender.openings
        await self._executor.call(self._follow)
        if self.appender.openings != opened:
            self._opened()
        if self._clock() - self._tidied_at >= TIDY_INTERVAL:
            self.tidy()

    def _follow(self) -> None:
        """Follow the name; note a new file, and again once it has bytes."""
        file = self.appender
        opened = file.openings
        file.check_name()
        if file.openings != opened:
            self._note_new()
        else:
            self._note()

    def _note_new(self) -> None:
        self._noted, self._note_at = -1, 0.0
        self._note()

    def _note(self, *, last: bool = False) -> None:
        """Note the file in the journal, once empty and once with bytes.

        A refused note is retried later, and a `last` time at the end: a file that is not
        in the journal does not count as the sink's own.
        """
        file = self.appender
        if not self._rotates or not file.regular or file.fd == -1:
            return
        size, now = file.size, clock_gettime(CLOCK_MONOTONIC)
        known = self._noted > 0 or self._noted == size
        if known or (now < self._note_at and not last):
            return
        try:
            self._rotator.opened(self._name, file.fd, created=file.created)
        except (OSError, ConfigError) as error:
            self._note_at = now + RETRY_INTERVAL
            self._alarm(f"rotated files cannot be managed: {_text(error)}")
            return
        self._noted = size
        if self._note_at:
            self._note_at = 0.0
            self._alarm("")

    def _opened(self) -> None:
        """Find the period of a newly opened file, and sync its directory."""
        file = self.appender
        if self._schedule is not None:
            written = file.modified if file.size else None
            self._period = self._schedule.period(written or self._clock())
            self._check_at = 0.0
        self._sync.opened(file)

    def tidy(self) -> None:
        """Tidy the rotated files in the background."""
        if self.appender.regular:
            self._tidied_at = self._clock()
            self._tidy()

    async def write(
        self,
        data: bytes,
        start: int,
        progress: Callable[[int], None],
        *,
        urgent: bool = False,
    ) -> None:
        """Append whole lines from `start`, rotating where it is due.

        Args:
            data: Whole lines.
            start: How many bytes of them are written already.
            progress: Called with the number of bytes written, after each part.
            urgent: There is a critical record among them.

        Raises:
            ConfigError: The name leads to a file that is not safe to write to.
            OSError: The system refused it; everything passed to `progress` stays.
        """
        file = self.appender
        retried = False
        while start < len(data):
            if file.due or not file.is_open:
                await self._check_name()
            if self._period_ended():
                await self._try_rotation()
            end = self._end(data, start)
            if end == start:
                if await self._try_rotation():
                    continue
                end = len(data)
            before = file.size
            try:
                await file.write(data, start, end)
                try:
                    await self._sync.written(file, urgent=urgent)
                except OSError:
                    file.rewind(before, memoryview(data)[start:end])
                    await self._executor.call(file.discard_partial)
                    raise
            except OSError as error:
                # Whole lines that were written stay, so a batch larger than the room
                # left on the disk progresses piece by piece.
                kept = await self._executor.call(
                    lambda: file.discard_partial(keep_lines=True)
                )
                if kept:
                    start += kept
                    progress(start)
                    retried = False
                if error.errno == errno.EFBIG and file.size and not retried:
                    retried = True
                    self._retry_at = 0.0
                    if await self._try_rotation():
                        continue
                raise
            start = end
            progress(start)

    def _period_ended(self) -> bool:
        if self._schedule is None or not self.appender.regular:
            return False
        now = self._clock()
        if now < self._check_at <= now + 60:
            return False
        self._check_at = now + self._schedule.rest(now)
        period = self._schedule.period(now)
        if self._period is None or not self.appender.size:
            self._period = period
        return period > self._period

    def _end(self, data: bytes, start: int) -> int:
        if not self._max_bytes or not self.appender.regular:
            return len(data)
        end = cut(data, start, self._max_bytes - self.appender.size)
        if end == start and self.appender.size == 0:
            return data.find(b"\n", start) + 1 or len(data)
        return end

    async def _try_rotation(self) -> bool:
        """Rotate, unless it was refused just now.

        Raises:
            ConfigError, OSError: It was refused, and the file is not open any more.
        """
        now = clock_gettime(CLOCK_MONOTONIC)
        if now < self._retry_at:
            return False
        try:
            await self.rotate()
        except (OSError, ConfigError) as error:
            self._retry_at = now + RETRY_INTERVAL
            self._alarm(f"cannot be rotated and grows on: {_text(error)}")
            if not self.appender.is_open:
                raise
            return False
        self._retry_at = 0.0
        self._alarm("")
        return True

    async def rotate(self) -> None:
        """Rename the file to a rotated piece and start a new one.

        Raises:
            ConfigError, OSError: It was refused; the file is written as before.
        """
        label = ""
        if self._schedule is not None and self._period is not None:
            label = self._schedule.label(self._period)

        def rename(
            directory: LogDirectory, fd: int, reopen: Callable[[], None]
        ) -> None:
            self._rotator.rotate(directory, self._name, fd, label, reopen)

        def run() -> None:
            self.appender.rotate(rename)
            self._note_new()

        self._sync.soon(self.appender)
        await self._executor.call(run)
        self._opened()
        self.tidy()

    async def reopen(self) -> None:
        """Open the name anew."""
        self._sync.soon(self.appender)
        await self._executor.call(self._reopen)
        self._opened()

    def _reopen(self) -> None:
        self.appender.reopen()
        self._note_new()

    async def close(self) -> None:
        """Close the file; background work goes on."""
        self._sync.soon(self.appender)
        await self._executor.call(self._close)

    def _close(self) -> None:
        self._note(last=True)
        self.appender.close()


def _text(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
