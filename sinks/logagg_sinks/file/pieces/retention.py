"""Removal of rotated files beyond the limits, and their compression.

All of it runs in a thread of low priority and delays no write: nothing slow happens in
a transaction.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from logagg.errors import ConfigError
from logagg_sinks.file.directory import LogDirectory
from logagg_sinks.file.file_options import FileOptions
from logagg_sinks.file.pieces.compressor import Compressor
from logagg_sinks.file.pieces.own_files import OwnFiles
from logagg_sinks.file.rotation import LogName, Piece, doomed

__all__ = ["Retention"]


class Retention:
    """Looks after the rotated files of one sink.

    Args:
        own: The sink's files.
        options: The limits and the compression.
        clock: Seconds since the epoch.
        count: Called with a reason and a number for what was done.
        alarm: Called with what an operator should know; empty when it has passed.
    """

    def __init__(
        self,
        own: OwnFiles,
        options: FileOptions,
        clock: Callable[[], float],
        count: Callable[[str, int], None],
        alarm: Callable[[str], None],
    ) -> None:
        self._own = own
        self._options = options
        self._clock = clock
        self._count = count
        self._alarm = alarm
        self._compressor = (
            Compressor(own, options.compress, count, alarm)
            if options.compress
            else None
        )

    @property
    def busy(self) -> bool:
        """Whether there is anything to tidy."""
        options = self._options
        limits = options.backups, options.max_age, options.max_total_bytes
        return self._compressor is not None or any(limits)

    def tidy(self) -> None:
        """Remove files beyond the limits and compress the rest.

        Files of names that are no longer written are included. Never raises: a failure
        is logged and tried again the next time.
        """
        try:
            self._own.journal.load()
            for below in sorted({place[0] for place in self._own.journal.claims}):
                if os.path.isdir(self._own.journal.base / below):
                    parts = Path(below).parts
                    directory = LogDirectory(self._own.journal.base, parts)
                    try:
                        self._tidy(directory, below)
                    finally:
                        directory.close()
            if self._own.journal.id:
                self._own.journal.compact()
        except (OSError, ConfigError) as error:
            self._alarm(f"cannot tidy the rotated files: {error}")

    def _tidy(self, directory: LogDirectory, below: str) -> None:
        with self._own.journal.transaction():
            self._own.sweep(directory)
            logs = self._own.logs(directory, below)
        for name in logs:
            self._remove(directory, name)
            if self._compressor is not None and self._compressor.run(directory, name):
                self._remove(directory, name)

    def _remove(self, directory: LogDirectory, name: LogName) -> None:
        """Remove the files of a log that are beyond the limits."""
        below = os.path.dirname(name.name)
        removed: list[int] = []  # closed at the end: that is when a big file goes
        doubles: list[int] = []
        try:
            with self._own.journal.transaction():
                doubles += self._own.remove_doubles(directory, name)
                for each in self._beyond_limits(directory, name):
                    removed += self._own.remove(directory, below, each)
        finally:
            for fd in (*removed, *doubles):
                os.close(fd)
        if removed:
            self._count("removed", len(removed))

    def _beyond_limits(self, directory: LogDirectory, name: LogName) -> list[str]:
        options = self._options
        names = self._own.names(name)
        below = os.path.dirname(name.name)
        own = {each.name: each for each in self._own.rotated(directory, below, names)}
        pieces = {
            each.name: Piece(each.status.st_size, each.status.st_mtime)
            for each in own.values()
            if not each.claim.kept
        }
        backups = [
            backup._replace(names=tuple(n for n in backup.names if n in pieces))
            for backup in names.backups(pieces)
        ]
        now = self._clock()
        current = directory.status(names.base)
        room = None
        if options.max_total_bytes:
            size = current.st_size if current else 0
            room = options.max_total_bytes - max(size, options.max_bytes)
        gone = doomed(
            backups,
            pieces,
            now=now,
            keep=options.backups,
            max_age=options.max_age,
            room=room,
        )
        age = now - current.st_mtime if current else 0.0
        if options.max_age and age > options.max_age and not name.literal:
            gone.append(
                names.base
            )  # of a worker that is gone: what is written is locked
        return gone
