"""The files that a sink made, as far as the journal proves it; and changes of them.

Only such files are renamed or removed. Whatever else has a fitting name keeps it, and
rotation uses the next number. Each change leaves every record in at least one file,
wherever the process dies:

- A file is renamed by a second link, which replaces nothing, then the old name goes.
- A name is removed only while it leads to the very file that was meant.

What a killed process left is finished at the next change: temporary names carry the
journal's id, and a temporary file is locked for as long as its maker lives. A file that
is open for writing is locked as well; such a one is not removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import NamedTuple

from logagg_sinks.file.directory import LogDirectory
from logagg_sinks.file.file_locks import lock_file
from logagg_sinks.file.pieces.journal import Claim, Journal, head_of
from logagg_sinks.file.rotation import LogName, Names, names_of, suffix

__all__ = ["OwnFile", "OwnFiles"]


class OwnFile(NamedTuple):
    """A rotated file of the sink."""

    name: str
    claim: Claim
    status: os.stat_result


class OwnFiles:
    """The files of one sink. All methods but `names` belong into a transaction.

    Args:
        journal: What the sink made.
        dated: Rotated files are named after their period.
        literal: The user gave their names; else records do.
    """

    def __init__(self, journal: Journal, *, dated: bool, literal: bool) -> None:
        self.journal = journal
        self._literal = literal
        self._dated = dated

    def names(self, name: LogName) -> Names:
        """The names of a log's pieces."""
        series = os.path.basename(name.series)
        return names_of(series, os.path.basename(name.name), dated=self._dated)

    def note(self, name: LogName, fd: int, *, is_open: bool, kept: bool) -> None:
        status = os.fstat(fd)
        self.journal.add(
            Claim(
                name.series,
                name.name,
                status.st_ino,
                status.st_size,
                head_of(fd, status.st_size),
                open=is_open,
                kept=kept,
            )
        )

    def aside(self, name: str, status: os.stat_result) -> str:
        """A temporary name for a file that is about to lose this one; see `sweep`."""
        end = f"{_mark(status)}x{secrets.token_hex(4)}.gone"
        return self.journal.hidden(name, end)

    def taken(self, directory: LogDirectory) -> list[str]:
        """All names in a directory, and those that moved files are to get again."""
        names = directory.names()
        moved = self.journal.leftovers(names)
        return names + [name for _, name, end in moved if end.endswith(".gone")]

    def newest_date(self) -> str:
        """The newest date in a name of the sink's own files, or nothing.

        Raises:
            ConfigError, OSError: It cannot be found out now.
        """
        self.journal.load()
        newest = ""
        for below in {place[0] for place in self.journal.claims}:
            folder = os.path.join(self.journal.base, below)
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                with contextlib.suppress(FileNotFoundError):
                    place = below, os.lstat(os.path.join(folder, name)).st_ino
                    if place in self.journal.claims:
                        newest = max(newest, _date_of(self.journal.claims[place], name))
        return newest

    def rotated(
        self, directory: LogDirectory, below: str, names: Names
    ) -> Iterator[OwnFile]:
        """The sink's own rotated files of a log, the oldest first."""
        for backup in names.backups(directory.names()):
            for name in backup.names:
                found = self.journal.known(directory, below, name)
                if found is not None:
                    yield OwnFile(name, *found)

    def sweep(self, directory: LogDirectory) -> None:
        """Finish the work of a process that died, or was refused.

        A name that was moved aside goes when it led to the file that was meant, which
        has another name or nothing added; any other is put back once it is free.
        """
        for hidden, name, end in self.journal.leftovers(directory.names()):
            status = directory.status(hidden)
            if status is None:
                continue
            if end.endswith(".part"):
                self._sweep_part(directory, hidden)
            elif end.startswith(f"{_mark(status)}x") or (
                status.st_nlink > 1 and end.startswith(f"{status.st_ino:x}x")
            ):
                directory.remove(hidden)
            else:
                with contextlib.suppress(OSError):
                    directory.put_back(hidden, name)

    @staticmethod
    def _sweep_part(directory: LogDirectory, hidden: str) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(hidden, flags, dir_fd=directory.fd)
        except OSError:
            return
        try:
            if lock_file(fd):
                directory.remove(hidden)
        finally:
            os.close(fd)

    def logs(self, directory: LogDirectory, below: str) -> list[LogName]:
        """The logs in a directory, each with the name of its newest file."""
        newest: dict[str, str] = {}
        present = {}
        for name in directory.names():
            status = directory.status(name)
            if status is not None:
                present[status.st_ino] = name
        for place, claim in list(self.journal.claims.items()):
            if place[0] != below:
                continue
            if place[1] not in present:
                self.journal.drop(place)
                continue
            base = os.path.basename(claim.series)
            if "\0" in base:
                date = _date_of(claim, present[place[1]])
                if not date:
                    continue
                base = base.replace("\0", date)
            newest[claim.series] = max(newest.get(claim.series, ""), base)
        return [
            LogName(series, os.path.join(below, base), self._literal)
            for series, base in newest.items()
        ]

    def remove(self, directory: LogDirectory, below: str, name: str) -> tuple[int, ...]:
        """Remove a file of the sink's own that is in no use; return it, still open."""
        found = self.journal.owner_of(directory, below, name)
        if found is None:
            return ()
        claim, status, fd = found
        try:
            if (
                not claim.kept
                and lock_file(fd)
                and directory.remove_exactly(name, status, self.aside)
            ):
                if status.st_nlink == 1:
                    self.journal.drop(claim.place)
                return (fd,)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return ()

    def remove_doubles(self, directory: LogDirectory, name: LogName) -> list[int]:
        """Finish renames and compressions that a killed process began."""
        below = os.path.dirname(name.name)
        names = self.names(name)
        own = list(self.rotated(directory, below, names))
        base = directory.status(names.base)
        if base is not None and any(os.path.samestat(base, o.status) for o in own):
            directory.remove_exactly(names.base, base, self.aside)
        newest = self.journal.known(directory, below, names.base)
        if newest is not None:  # it may be the original, if a user took later ones away
            own.append(OwnFile(names.base, *newest))
        packed = {each.claim.of for each in own if suffix(each.name)}
        self._forget_originals(own)
        seen: set[int] = set()
        removed: list[int] = []
        for each in own:  # the older place is the new one of a renamed file
            if each.status.st_ino in seen:
                directory.remove_exactly(each.name, each.status, self.aside)
            elif (
                each.claim.key in packed
                and not suffix(each.name)
                and each.status.st_size == each.claim.length  # nothing was appended
            ):
                directory.sync()
                removed += self.remove(directory, below, each.name)
            seen.add(each.status.st_ino)
        return removed

    def _forget_originals(self, own: list[OwnFile]) -> None:
        """Forget what a compressed file replaced: another file may get that inode."""
        plain = {each.claim.key for each in own if not suffix(each.name)}
        for each in own:
            if each.claim.of and each.claim.of not in plain:
                self.journal.add(each.claim._replace(of=""))


def _date_of(claim: Claim, name: str) -> str:
    """The date in the name that a file has now, or nothing."""
    series = os.path.basename(claim.series)
    return names_of(series, "", dated=False).date_of(name) if "\0" in series else ""


def _mark(status: os.stat_result) -> str:
    """Identifies a file and its length in a temporary name."""
    return f"{status.st_ino:x}x{status.st_size:x}"
