"""Compression of rotated files, each replaced by a copy that was compared with it.

A file is compressed into a temporary one, which is synced, expanded again and compared,
and then linked to its name; only then is the original removed. Meanwhile the writer may
rotate and give the original another number, so it is found again by its inode. Both are
locked, so no other process compresses the same file.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable

from logagg.abc import failpoints
from logagg_sinks._compression import Compression, compress, is_copy
from logagg_sinks.file.directory import LogDirectory
from logagg_sinks.file.file_locks import lock_file
from logagg_sinks.file.pieces.journal import Claim, head_of
from logagg_sinks.file.pieces.own_files import OwnFiles
from logagg_sinks.file.rotation import LogName, suffix

__all__ = ["Compressor"]


class Compressor:
    """Compresses the rotated files of one sink.

    Args:
        own: The sink's files.
        kind: The compression.
        count: Called with a reason and a number for what was done.
        alarm: Called with what an operator should know.
    """

    def __init__(
        self,
        own: OwnFiles,
        kind: Compression,
        count: Callable[[str, int], None],
        alarm: Callable[[str], None],
    ) -> None:
        self._own = own
        self._compression = kind
        self._count = count
        self._alarm = alarm

    def run(self, directory: LogDirectory, name: LogName) -> bool:
        """Compress plain pieces, the oldest first; return whether there was any."""
        done: set[int] = set()
        while True:
            with self._own.journal.transaction():
                found = self._next_plain(directory, name, done)
            if found is None:
                return bool(done)
            claim, source = found
            done.add(claim.inode)
            try:
                self._compress(directory, name, claim, source)
            finally:
                os.close(source)

    def _next_plain(
        self, directory: LogDirectory, name: LogName, done: set[int]
    ) -> tuple[Claim, int] | None:
        """Open and lock the oldest piece that is not yet compressed."""
        below = os.path.dirname(name.name)
        for each in self._own.rotated(directory, below, self._own.names(name)):
            if suffix(each.name) or each.claim.kept or each.claim.inode in done:
                continue
            packed = each.name + self._compression.suffix
            if packed in self._own.taken(directory):
                self._alarm(f"{each.name} is not compressed: {packed} is in the way")
                continue
            found = self._own.journal.owner_of(directory, below, each.name)
            if found is None:
                continue
            claim, _, fd = found
            try:
                if lock_file(fd):
                    return self._note_closed(claim, below, each.name, fd), fd
            except BaseException:
                os.close(fd)  # else it would stay locked
                raise
            os.close(fd)
        return None

    def _note_closed(self, claim: Claim, below: str, name: str, fd: int) -> Claim:
        """The claim of a file, which is not written any more: it could be locked."""
        if claim.open:  # of an earlier day
            written = LogName(claim.series, os.path.join(below, name))
            self._own.note(written, fd, is_open=False, kept=False)
        return self._own.journal.claims[claim.place]

    def _compress(
        self, directory: LogDirectory, name: LogName, claim: Claim, source: int
    ) -> None:
        base = os.path.basename(name.name)
        part = self._own.journal.hidden(base, f"{secrets.token_hex(8)}.part")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            self._own.journal.transaction()
        ):  # else it could be swept before it is locked
            target = os.open(part, flags, 0o600, dir_fd=directory.fd)
            lock_file(target)
        try:
            os.lseek(source, 0, os.SEEK_SET)
            compress(self._compression, source, target)
            if not is_copy(self._compression, target, source):
                raise OSError(errno.EIO, "the compressed copy is not the same")
            _dress(target, os.fstat(source))
            if failpoints.ACTIVE:
                failpoints.hit("file_compressed")
            if self._replace(directory, name, claim, part, (source, target)):
                self._count("compressed", 1)
        finally:
            os.close(target)
            directory.remove(part)

    def _replace(
        self,
        directory: LogDirectory,
        name: LogName,
        claim: Claim,
        part: str,
        files: tuple[int, int],
    ) -> bool:
        """Replace the original, if it is still there, by its compressed form."""
        source, target = files
        below = os.path.dirname(name.name)
        status = os.fstat(target)
        with self._own.journal.transaction():
            where = self._find(directory, name, source)
            if where is None:
                return False
            packed = where + self._compression.suffix
            head = head_of(target, status.st_size)
            made = Claim(
                claim.series,
                os.path.join(below, packed),
                status.st_ino,
                status.st_size,
                head,
                of=claim.key,
            )
            self._own.journal.add(made)
            try:
                directory.link(part, packed)
            except OSError:
                self._own.journal.drop(made.place)
                raise
            directory.remove(part)
        if failpoints.ACTIVE:
            failpoints.hit("file_linked")
        self._own.journal.sync()
        directory.sync()
        with self._own.journal.transaction():
            where = self._find(directory, name, source)
            original = os.fstat(source)
            if where is None or original.st_size != claim.length:
                return False
            if not directory.remove_exactly(where, original, self._own.aside):
                return False
            self._own.journal.drop(claim.place)
            self._own.journal.add(made._replace(of=""))  # the inode is free for others
        return True

    def _find(self, directory: LogDirectory, name: LogName, source: int) -> str | None:
        """The name that an open piece has now."""
        status = os.fstat(source)
        for backup in self._own.names(name).backups(directory.names()):
            for each in backup.names:
                there = directory.status(each)
                if there is not None and os.path.samestat(there, status):
                    return each
        return None


def _dress(target: int, status: os.stat_result) -> None:
    """Copy owner, mode and time of the original to its compressed form."""
    try:
        os.fchown(target, status.st_uid, status.st_gid)
    except PermissionError:
        pass  # only root may give files away
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
