"""When what was written is forced to the disk, so that a power cut does not take it.

A write that returned survives the death of every process, since it is with the kernel;
fsync is about the machine. Decision: the default is `interval`. A sync every few
seconds in a thread of its own delays no write and bounds what a power cut can take;
the kernel alone would keep it for 30 s or more. A record of level `critical` is synced
before its write counts as done (journald does the same), since it is often the last.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
from collections.abc import Callable

from logagg import failpoints
from logagg.errors import ConfigError
from logagg_sinks._appender import Appender
from logagg_sinks._lane import Lane

__all__ = ["Fsync", "Syncer"]

log = logging.getLogger("logagg.file")


class Fsync(enum.Enum):
    """When written records are forced to the disk."""

    NEVER = "never"
    INTERVAL = "interval"
    ALWAYS = "always"


class Syncer:
    """Syncs one file as asked for.

    Args:
        policy: When.
        interval: Seconds between two syncs, for `interval`.
        lane: The thread that syncs.
        count: Called with a reason and a number.
    """

    def __init__(
        self,
        policy: Fsync,
        interval: float,
        lane: Lane,
        count: Callable[[str, int], None],
    ) -> None:
        self._policy = policy
        self._interval = interval
        self._lane = lane
        self._count = count
        self._timer: asyncio.TimerHandle | None = None  # set while writes are unsynced

    async def written(self, file: Appender, *, urgent: bool) -> None:
        """Called after each write.

        Args:
            file: Where it went.
            urgent: There was a critical record among what was written.

        Raises:
            OSError: The disk did not take what had to be safe now.
        """
        if self._policy is Fsync.NEVER:
            return
        if self._policy is Fsync.ALWAYS or urgent:
            fd = file.copy_fd()
            if fd != -1:
                await asyncio.wrap_future(self._lane.submit(_sync, fd))
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval, self.soon, file)

    def soon(self, file: Appender) -> None:
        """Sync the file in the background, if anything was written to it since."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        fd = file.copy_fd()
        if fd != -1:
            self._lane.submit(self._background, fd)

    def opened(self, file: Appender) -> None:
        """Sync the directory in the background: a new file's name is in it."""
        if self._policy is not Fsync.NEVER and file.created:
            self._lane.submit(self._directory, file)

    def _background(self, fd: int) -> None:
        try:
            _sync(fd)
        except OSError as error:
            self._failed(error)

    def _directory(self, file: Appender) -> None:
        try:
            place = file.find_place()
        except ConfigError:
            return  # the directory has gone in the meantime
        try:
            place.sync()
        except OSError as error:
            self._failed(error)
        finally:
            place.close()

    def _failed(self, error: OSError) -> None:
        self._count("sync_failed", 1)
        log.warning("the disk did not take what was written: %s", error)


def _sync(fd: int) -> None:
    try:
        if failpoints.ACTIVE:
            failpoints.hit("file_sync")
        os.fdatasync(fd)
    finally:
        os.close(fd)
