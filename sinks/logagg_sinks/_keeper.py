"""Looks after rotated files: compresses them, and removes those that must go.

Theory of operation
-------------------
All of it happens in a thread of low priority, never in the way of a write. The writer's
thread and this one both rename files in the directory, so both hold `lock` while they
do; nothing slow happens under it (a file that goes is renamed first and unlinked after,
since unlinking a large file takes time).

A file is compressed into a hidden `.part` file next to it. While that lasts, the writer
may rotate and give the original another number, so when it is finished the original is
looked up again by its inode. The compressed file is complete and synced before it takes
its name, and only then does the original go: whenever the process dies, every record is
in the one or the other. Files of a run that died are found and finished by the next.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable

from logagg_sinks._archive import Compression, compress
from logagg_sinks._place import Place
from logagg_sinks._rotation import Backup, Names, Piece, doomed, suffix

__all__ = ["Keeper"]

log = logging.getLogger("logagg.file")


class Keeper:
    """Keeps the rotated pieces of one log file in order.

    Args:
        names: The names of the file and its pieces.
        clock: Seconds since the epoch.
        count: Called with a reason and a number for what was done.
        compression: How pieces are compressed; None leaves them as they are.
        backups: How many pieces are kept; 0 for all.
        max_age: Seconds since its last record after which a piece goes; 0 for never.
        max_total_bytes: How many bytes the file and its pieces may have; 0 for any.
        reserve: How many of them are left to the file itself, which grows.
    """

    def __init__(
        self,
        names: Names,
        *,
        clock: Callable[[], float],
        count: Callable[[str, int], None],
        compression: Compression | None,
        backups: int,
        max_age: float,
        max_total_bytes: int,
        reserve: int,
    ) -> None:
        self.names = names
        self.lock = threading.Lock()  # held while files are renamed
        self._clock = clock
        self._count = count
        self._compression = compression
        self._backups = backups
        self._max_age = max_age
        self._max_total_bytes = max_total_bytes
        self._reserve = reserve

    @property
    def busy(self) -> bool:
        """Whether it has anything to look after at all."""
        limits = self._backups, self._max_age, self._max_total_bytes
        return self._compression is not None or any(limits)

    def tidy(self, place: Place) -> None:
        """Remove what must go and compress the rest. Runs in the keeper's own thread.

        Never raises: what could not be done is logged and tried again the next time.
        """
        try:
            self._sweep(place)
            self._remove(place)
            if self._compression is not None and self._compress_all(place):
                self._remove(place)
        except OSError as error:
            log.warning("looking after rotated files in %s: %s", place.path, error)

    def _sweep(self, place: Place) -> None:
        """Finish what a process that died has left."""
        hidden = f".{self.names.base}."
        for name in place.names():
            if name.startswith(hidden) and name.endswith((".part", ".gone")):
                place.remove(name)
        with self.lock:
            for backup in self.names.backups(place.names()):
                plain = [name for name in backup.names if not suffix(name)]
                if plain and len(backup.names) > 1:
                    # Both are whole; the one that will be compressed again stays.
                    for name in backup.names:
                        if suffix(name):
                            place.remove(name)

    def _remove(self, place: Place) -> None:
        with self.lock:
            names = place.names()
            pieces = _pieces(place, names)
            room = None
            if self._max_total_bytes:
                own = pieces.get(self.names.base, Piece(0, 0.0)).size
                room = max(0, self._max_total_bytes - max(own, self._reserve))
            gone = doomed(
                self.names.backups(names),
                pieces,
                now=self._clock(),
                keep=self._backups,
                max_age=self._max_age,
                room=room,
            )
            for number, name in enumerate(gone):
                place.rename(name, self._hidden(f"{number}.gone"))
        for number in range(len(gone)):
            place.remove(self._hidden(f"{number}.gone"))
        if gone:
            self._count("removed", len(gone))

    def _hidden(self, end: str) -> str:
        return f".{self.names.base}.{end}"

    def _compress_all(self, place: Place) -> bool:
        """Compress what is not yet, the oldest first; whether there was any."""
        done: set[int] = set()
        while True:
            with self.lock:
                found = self._plain(place, done)
            if found is None:
                return bool(done)
            source, inode = found
            done.add(inode)
            try:
                self._compress(place, source)
            finally:
                os.close(source)

    def _plain(self, place: Place, done: set[int]) -> tuple[int, int] | None:
        """Open the oldest piece that is a regular file and not yet compressed."""
        for backup in self.names.backups(place.names()):
            for name in backup.names:
                if suffix(name):
                    continue
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                try:
                    fd = os.open(name, flags, dir_fd=place.fd)
                except OSError:
                    continue
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode) and status.st_ino not in done:
                    return fd, status.st_ino
                os.close(fd)
        return None

    def _compress(self, place: Place, source: int) -> None:
        assert self._compression is not None
        status = os.fstat(source)
        part = self._hidden(f"{status.st_ino}.part")
        place.remove(part)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(part, flags, 0o600, dir_fd=place.fd)
        try:
            try:
                compress(self._compression, source, target)
                _dress(target, status)
            finally:
                os.close(target)
            self._replace(place, part, status)
        except BaseException:
            place.remove(part)
            raise

    def _replace(self, place: Place, part: str, status: os.stat_result) -> None:
        """Put the compressed file in the place of its original, if it still has one."""
        assert self._compression is not None
        gone = self._hidden("original.gone")
        with self.lock:
            name = self._find(place, self.names.backups(place.names()), status)
            if name is not None:
                place.rename(part, name + self._compression.suffix)
                place.rename(name, gone)
        if name is None:  # removed in the meantime
            place.remove(part)
            return
        place.sync()
        place.remove(gone)
        self._count("compressed", 1)

    @staticmethod
    def _find(
        place: Place, backups: list[Backup], status: os.stat_result
    ) -> str | None:
        for backup in backups:
            for name in backup.names:
                there = place.status(name)
                if there is not None and os.path.samestat(there, status):
                    return name
        return None


def _pieces(place: Place, names: list[str]) -> dict[str, Piece]:
    found = {}
    for name in names:
        status = place.status(name)
        if status is not None:
            found[name] = Piece(status.st_size, status.st_mtime)
    return found


def _dress(target: int, status: os.stat_result) -> None:
    """Give a compressed file the owner, mode and time of its original."""
    try:
        os.fchown(target, status.st_uid, status.st_gid)
    except PermissionError:
        pass  # only root may give files away
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
