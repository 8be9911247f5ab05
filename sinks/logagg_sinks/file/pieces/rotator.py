"""Rotation: the file that is written becomes a rotated one, and a new one begins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from logagg.abc import failpoints
from logagg.errors import ConfigError
from logagg_sinks.file.directory import LogDirectory
from logagg_sinks.file.pieces.journal import Journal
from logagg_sinks.file.pieces.own_files import OwnFiles
from logagg_sinks.file.rotation import LogName

__all__ = ["Rotator"]

_TRIES = 3  # of renames that another program disturbs


class Rotator:
    """Rotates the files of one sink.

    Args:
        own: The sink's files.
    """

    def __init__(self, own: OwnFiles) -> None:
        self._own = own

    def opened(self, name: LogName, fd: int, *, created: bool) -> None:
        """Note a file that was opened for writing.

        Raises:
            ConfigError, OSError: The journal cannot be used.
        """
        with self._own.journal.transaction():
            status = os.fstat(fd)
            place = (os.path.dirname(name.name), status.st_ino)
            known = self._own.journal.claims.get(place)
            mine = known is not None and known.name == name.name and not known.kept
            kept = not (created or name.literal or mine)
            self._own.note(name, fd, is_open=True, kept=kept)

    def prepare(self, directory: LogDirectory, name: LogName) -> None:
        """Check a name before the file is opened for writing.

        Raises:
            ConfigError: It is a rotated file of another sink.
            OSError: It cannot be found out.
        """
        if name.literal:
            self._refuse_rotated(directory, os.path.basename(name.name))
        self._finish_rotation(directory, name)
        if name.dated:
            with contextlib.suppress(OSError, ConfigError):  # a double then, no loss
                self._finish_compression(directory, name)

    def _refuse_rotated(self, directory: LogDirectory, base: str) -> None:
        """Refuse what another sink made: it may compress or remove it."""
        if directory.status(base) is None:
            return
        for each in directory.names():
            if not each.endswith(".journal") or each == self._own.journal.name:
                continue
            found = None
            other = Journal(directory.path, each)
            with contextlib.suppress(OSError, ConfigError):  # of another user
                other.load()
                found = other.owner_of(directory, "", base)
            other.close()
            if found is None:
                continue
            os.close(found[2])
            if not found[0].open:
                series = found[0].series.replace("\0", "{date}")
                raise ConfigError(
                    f"file {directory.path / base} is a rotated file of {series}, whose "
                    "sink may compress or remove it; name another file"
                )

    def _finish_rotation(self, directory: LogDirectory, name: LogName) -> None:
        """Remove the second name that a killed rotation left a file, before opening it.

        Raises:
            OSError: It was refused.
        """
        base = os.path.basename(name.name)
        status = directory.status(base)
        if status is None or status.st_nlink < 2:
            return
        below = os.path.dirname(name.name)
        self._own.journal.load()
        if (below, status.st_ino) not in self._own.journal.claims:
            return
        with self._own.journal.transaction():
            self._own.sweep(directory)
            for backup in self._own.names(name).backups(directory.names()):
                for piece in backup.names:
                    there = directory.status(piece)
                    if there is not None and os.path.samestat(there, status):
                        directory.remove_exactly(base, there, self._own.aside)
                        return

    def _finish_compression(self, directory: LogDirectory, name: LogName) -> None:
        """Remove an original that a killed compression left, before it is written on.

        It is the newest again when the later days' files were taken away.

        Raises:
            ConfigError, OSError: It was refused.
        """
        status = directory.status(os.path.basename(name.name))
        if status is None:
            return
        self._own.journal.load()
        claims = self._own.journal.claims
        claim = claims.get((os.path.dirname(name.name), status.st_ino))
        if claim is not None and any(each.of == claim.key for each in claims.values()):
            with self._own.journal.transaction():
                for double in self._own.remove_doubles(directory, name):
                    os.close(double)

    def rotate(
        self,
        directory: LogDirectory,
        name: LogName,
        fd: int,
        label: str,
        reopen: Callable[[], None],
    ) -> None:
        """Rename the file that is written to a rotated one, and start a new one.

        Args:
            directory: The directory.
            name: The log.
            fd: The file.
            label: Its period, for dated names.
            reopen: Opens the new file. When it fails the file gets its name back.

        Raises:
            ConfigError, OSError: It was refused; the file keeps its name.
        """
        base = os.path.basename(name.name)
        with self._own.journal.transaction():
            self._own.sweep(directory)
            place = (os.path.dirname(name.name), os.fstat(fd).st_ino)
            known = self._own.journal.claims.get(place)
            kept = known.kept if known else not name.literal
            # It stays noted as open until it is closed: a rotation that fails may leave
            # it under its new name, and written on.
            self._own.note(name, fd, is_open=True, kept=kept)
            if failpoints.ACTIVE:
                failpoints.hit("file_claimed")
            target = self._rename(directory, name, fd, label)
            if failpoints.ACTIVE:
                failpoints.hit("file_renamed")
            try:
                reopen()
            except (OSError, ConfigError):
                status = os.fstat(fd)
                with contextlib.suppress(OSError):
                    directory.move(target, base, status, self._own.aside)
                raise
            with contextlib.suppress(OSError):
                self._own.note(name, fd, is_open=False, kept=kept)

    def _rename(
        self, directory: LogDirectory, name: LogName, fd: int, label: str
    ) -> str:
        names = self._own.names(name)
        below = os.path.dirname(name.name)
        for tries in range(_TRIES):
            rotated = list(self._own.rotated(directory, below, names))
            if any(each.status.st_nlink > 1 for each in rotated):
                for double in self._own.remove_doubles(directory, name):
                    os.close(double)
                rotated = list(self._own.rotated(directory, below, names))
            present = self._own.taken(directory)
            own = {each.name: each.status for each in rotated}
            own[names.base] = os.fstat(fd)
            moves = names.moves(present, own, label)
            try:
                for old, new in moves:
                    if failpoints.ACTIVE:
                        failpoints.hit("file_rename")
                    directory.move(old, new, own[old], self._own.aside)
            except FileExistsError:
                if tries + 1 == _TRIES:
                    raise
            else:
                return moves[-1][1]
        raise AssertionError
