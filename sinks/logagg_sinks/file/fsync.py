"""Forcing written data to the disk, so that it survives a power cut.

A write that returned survives the death of every process, since it is in the kernel;
fsync is about the machine. The default is `interval`: a sync every few seconds in a
thread of its own delays no write and bounds the loss in a power cut; the kernel alone
would wait 30 s or more. A record of level `critical` is synced before its write counts
as done (as journald does), since it is often the last.

The kernel reports an error once and then regards the data as written, so a later success
proves nothing about it. Written again, and so proven, is the batch for which a sync was
demanded; of what only the interval would have synced, the part is announced that may be
missing after a power cut.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import logging
import os
from collections.abc import Callable
from pathlib import Path

from logagg.abc import failpoints, fdatasync
from logagg.errors import ConfigError
from logagg_sinks._executor import SerialExecutor
from logagg_sinks.file.appender import Appender

__all__ = ["Fsync", "Syncer"]

log = logging.getLogger("logagg.file")


class Fsync(enum.Enum):
    """When written records are forced to the disk."""

    NEVER = "never"
    INTERVAL = "interval"
    ALWAYS = "always"


class Syncer:
    """Syncs one file by its policy.

    Args:
        policy: When to sync.
        interval: Seconds between two syncs, for `interval`.
        executor: The thread that syncs.
        count: Called with a reason and a number.
    """

    def __init__(
        self,
        policy: Fsync,
        interval: float,
        executor: SerialExecutor,
        count: Callable[[str, int], None],
    ) -> None:
        self._policy = policy
        self._interval = interval
        self._executor = executor
        self._count = count
        self._timer: asyncio.TimerHandle | None = None  # set while writes are unsynced
        self._since = ""  # when the first of them was made

    async def written(self, file: Appender, *, urgent: bool) -> None:
        """Sync, or schedule a sync, after a write.

        Args:
            file: The file that was written.
            urgent: A critical record was among the lines.

        Raises:
            OSError: The sync that the policy demands now has failed.
        """
        if self._policy is Fsync.NEVER:
            return
        if self._policy is Fsync.ALWAYS or urgent:
            fd = file.copy_fd()
            if fd != -1:
                await self._executor.call(self._demanded, fd, self._since, file.path)
        elif self._timer is None:
            self._since = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval, self.soon, file)

    def soon(self, file: Appender) -> None:
        """Sync the file in the background, if anything was written to it since."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        since, self._since = self._since, ""
        fd = file.copy_fd()
        if fd != -1:
            self._executor.submit(self._background, fd, since, file.path)

    def opened(self, file: Appender) -> None:
        """Sync the directory in the background: a new file's name is in it."""
        if self._policy is not Fsync.NEVER and file.created:
            self._executor.submit(self._directory, file)

    def _background(self, fd: int, since: str, path: Path) -> None:
        try:
            _sync(fd)
        except OSError as error:
            self._failed(error, f"{path}, written since {since}")

    def _demanded(self, fd: int, since: str, path: Path) -> None:
        """Sync now; the caller writes its batch again when that fails."""
        try:
            _sync(fd)
        except OSError as error:
            if since:  # other records waited for the interval
                self._failed(error, f"{path}, written since {since}")
            raise

    def _directory(self, file: Appender) -> None:
        try:
            directory = file.open_directory()
        except ConfigError:
            return  # the directory has gone in the meantime
        try:
            directory.sync()
        except OSError as error:
            self._failed(error, f"{file.path}, if it was made just now")
        finally:
            directory.close()

    def _failed(self, error: OSError, what: str) -> None:
        self._count("sync_failed", 1)
        text = "records may be missing after a power cut, the sync failed: %s: %s"
        log.error(text, what, error)


def _sync(fd: int) -> None:
    try:
        if failpoints.ACTIVE:
            failpoints.hit("file_sync")
        fdatasync(fd)
    finally:
        os.close(fd)
