"""One log file and the pieces it was rotated into: when to cut, and where to write.

An `Appender` writes; this decides before each write whether the file must be followed
to a new name (moved or deleted from outside, a new day in its name), rotated by time,
or cut by size in the middle of the data. A write is cut at line ends only.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from logagg import failpoints
from logagg.errors import ConfigError
from logagg_sinks._appender import Appender
from logagg_sinks._keeper import Keeper
from logagg_sinks._lane import Lane
from logagg_sinks._place import Place
from logagg_sinks._rotation import Schedule, cut
from logagg_sinks._sync import Syncer

__all__ = ["LogFile"]

log = logging.getLogger("logagg.file")

T = TypeVar("T")

TIDY_INTERVAL = 3600.0
"""Seconds after which rotated files are looked at even when nothing was rotated."""


class LogFile:
    """A log file that rotates.

    Args:
        appender: The file.
        keeper: Looks after its pieces.
        lane: The thread for writing.
        back: The thread for everything that may take time.
        clock: Seconds since the epoch.
        max_bytes: Rotate before it grows beyond this; 0 never does.
        schedule: When to rotate by time; None never does.
        sync: Sees to it that what was written is safe from a power cut.
    """

    def __init__(
        self,
        appender: Appender,
        keeper: Keeper,
        *,
        lane: Lane,
        back: Lane,
        clock: Callable[[], float],
        max_bytes: int,
        schedule: Schedule | None,
        sync: Syncer,
    ) -> None:
        self.appender = appender
        self.keeper = keeper
        self._lane = lane
        self._back = back
        self._clock = clock
        self._max_bytes = max_bytes
        self._schedule = schedule
        self._sync = sync
        self._period: int | None = None  # that of the records in the file
        self._check_at = 0.0  # when the period may be another one
        self._tidied = 0.0
        self._asked = False  # the background has been asked and has not begun

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._lane.submit(call))

    async def open(self) -> None:
        """Open the file and finish what an earlier run left.

        Raises:
            ConfigError: It is not a file that it is safe to write to.
            OSError: It cannot be opened now.
        """
        await self._look()
        self.tidy()

    async def _look(self) -> None:
        opened = self.appender.openings
        await self._run(self.appender.look)
        if self.appender.openings != opened:
            self._began()
        if self._clock() - self._tidied >= TIDY_INTERVAL:
            self.tidy()

    def _began(self) -> None:
        """Another file is open: which period is it of, and is it safely on disk?"""
        file = self.appender
        if self._schedule is not None:
            written = file.modified if file.size else None
            self._period = self._schedule.period(written or self._clock())
            self._check_at = 0.0
        self._sync.opened(file)

    def tidy(self) -> None:
        """Have the rotated files looked after, in the background."""
        if self.appender.regular and self.keeper.busy:
            self._tidied = self._clock()
            if not self._asked:
                self._asked = True
                self._back.submit(self._tidy)

    def _tidy(self) -> None:
        self._asked = False
        try:
            place = self.appender.find_place()
        except ConfigError as error:
            log.warning("%s", error)
            return
        try:
            self.keeper.tidy(place)
        finally:
            place.close()

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
            progress: Told how many are, each time that a rotation comes between.
            urgent: There is a critical record among them.

        Raises:
            ConfigError: The file's name leads to what is not safe to write to.
            OSError: The system refused it; what `progress` was told of stays.
        """
        file = self.appender
        retried = False
        while start < len(data):
            if file.due or not file.is_open:
                await self._look()
            if self._period_ended():
                await self.rotate()
            end = self._end(data, start)
            if end == start:
                await self.rotate()
                continue
            before = file.size
            try:
                await file.write(data, start, end)
                try:
                    await self._sync.written(file, urgent=urgent)
                except OSError:
                    file.take_back(before)
                    await self._run(file.settle)
                    raise
            except OSError as error:
                # Whole lines that went in stay: so a batch larger than the room that
                # is left gets on, piece by piece.
                await self._run(lambda: file.settle(keep_lines=True))
                if file.size > before:
                    start += file.size - before
                    progress(start)
                    retried = False
                if error.errno == errno.EFBIG and file.size and not retried:
                    retried = True
                    await self.rotate()
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

    async def rotate(self) -> None:
        """Put the file among its rotated pieces and start a new one."""
        label = ""
        if self._schedule is not None and self._period is not None:
            label = self._schedule.label(self._period)
        keeper = self.keeper

        def rename(place: Place) -> None:
            with keeper.lock:
                for old, new in keeper.names.moves(place.names(), label):
                    if failpoints.ACTIVE:
                        failpoints.hit("file_rename")
                    place.rename(old, new)

        self._sync.soon(self.appender)
        await self._run(lambda: self.appender.rotate(rename))
        self._began()
        self.tidy()

    async def reopen(self) -> None:
        """Open the name anew."""
        self._sync.soon(self.appender)
        await self._run(self.appender.reopen)
        self._began()

    async def close(self) -> None:
        """Close the file; what is under way in the background goes on."""
        self._sync.soon(self.appender)
        await self._run(self.appender.close)
