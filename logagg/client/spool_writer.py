"""Records spooled on disk by a worker whose pipe cannot take them.

A *segment* is one private file of whole wire lines with rising seqs. A worker opens one
when it begins to spool and ends it when its pipe has room again; the consumer reads
segments in the order of their seqs. As long as a process has segments that are not
acknowledged it holds a lock (flock) on one of them. Those of a stream without a lock are
orphans of a process that died, which the next consumer ingests: a lock is right where
pids are used again, in containers and after a start of the machine.

Guarantees: a segment never ends in a torn line because of a failed write (it is cut
back to the last whole line, and ended: the consumer may have read the part); its file
has mode 0600 in a private directory; all segments of a process together stay below its
cap. Where a write fails, the line goes to the next place (`logagg.ipc.paths.spool_dirs`).
For a line that no place takes an OSError is raised: the caller drops the record and
counts it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby

from logagg.client.delivery_state import Overflow
from logagg.client.resend_buffer import ResendBuffer
from logagg.core.line import key_of, seq_of
from logagg.errors import ConfigError
from logagg.ipc.client_messages import Segment
from logagg.ipc.descriptors import OwnDescriptor, no_fork
from logagg.ipc.paths import owners_of, spool_dir, spool_dirs

__all__ = [
    "CAP_BYTES", "NO_DESCRIPTOR", "PASSING", "SpoolSegment", "SpoolWriter",
    "open_segment", "orphans", "stream_of",
]  # fmt: skip

CAP_BYTES = 1024 * 1024 * 1024
"""A process's share of the disk (1 GiB); beyond it the newest records are dropped.

The newest rather than the oldest, so that what was promised stays promised and a gap
has one place in the order. Precedent: Vector's disk buffers start at 256 MiB.
"""

SUFFIX = ".spool"

NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
"""Errors of a process, or a host, at its limit of open files: they pass."""

PASSING = (*NO_DESCRIPTOR, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of the disk, not of a file: it is there, and may be read a little later."""


class SpoolSegment:
    """One file of spooled lines, written by the process that owns it.

    Attributes:
        path: The file; the consumer removes it when its records are safe.
        first: The seq of its first line.
        last: The seq of its last line, `first - 1` while it is empty.
        size_bytes: Its length.
        announced: Whether the consumer knows of its present form: open, or ended.
        is_open: Whether its owner may still append to it.
    """

    __slots__ = (
        "_appending", "_file", "announced", "first", "is_open", "last", "path",
        "size_bytes",
    )  # fmt: skip

    def __init__(self, folder: str, stream: str, first: int) -> None:
        self.path = os.path.join(folder, f"{stream}-{first:020d}{SUFFIX}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        self.first = first
        self.last = first - 1
        self.size_bytes = 0
        self._appending = (0, self.last)  # the length and the newest seq of a write
        self.announced = False
        self.is_open = True
        try:
            self._file = self._opened(flags)
        except FileExistsError:  # made by a child that was forked in between
            self.path = os.path.join(folder, f"{stream}-{first:020d}.1{SUFFIX}")
            self._file = self._opened(flags)
        try:
            fcntl.flock(self._file.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a file system without locks
            self.end()
            raise

    def _opened(self, flags: int) -> OwnDescriptor:
        with no_fork:
            return OwnDescriptor(os.open(self.path, flags, 0o600))

    @property
    def is_own(self) -> bool:
        """Whether its descriptor still leads to it."""
        return self._file.is_own

    @property
    def number(self) -> int:
        """Its descriptor, -1 when it is closed."""
        return self._file.number

    @property
    def is_empty(self) -> bool:
        """Whether no line was appended."""
        return self.last < self.first

    def append(self, lines: bytes, seq: int) -> None:
        """Write whole lines, the last with this seq; the kernel has them on return.

        Raises:
            OSError: They could not be written; nothing of them remains.
        """
        done = 0
        self._appending = (len(lines), seq)
        while done < len(lines):
            done += os.write(self._file.number, lines[done:] if done else lines)
        self.size_bytes, self.last = self.size_bytes + done, seq

    def cut_back(self) -> bool:
        """After an append that did not return: keep it if it is whole, else cut it off.

        Returns:
            Whether a part was cut off.

        Raises:
            OSError: The file is out of reach.
        """
        length, seq = self._appending
        size = os.fstat(self._file.number).st_size
        if size == self.size_bytes + length:
            self.size_bytes, self.last = size, seq
        if size == self.size_bytes:
            return False
        os.ftruncate(self._file.number, self.size_bytes)
        return True

    def end(self) -> None:
        """Append no more; it stays, locked, for the consumer, unless it is empty."""
        if not self.is_open:
            return
        self.is_open = self.announced = False
        if self.is_empty:
            try:
                os.unlink(self.path)
            except OSError:
                pass
            self.abandon()

    def abandon(self) -> None:
        """Close the file, which releases its lock, and leave it alone."""
        self.is_open = False
        self._file.close()


class SpoolWriter:
    """All that a process has spooled for one consumer and that is not acknowledged."""

    __slots__ = ("_abandoned", "_identifier", "_open", "_segments", "_stream")

    def __init__(self, identifier: str, stream: str) -> None:
        self._identifier = identifier
        self._stream = stream
        self._abandoned = False
        self._open: SpoolSegment | None = None
        self._segments: list[SpoolSegment] = []  # that have ended, by their seqs

    @property
    def is_open(self) -> bool:
        """Whether a segment is being written."""
        return self._open is not None

    def fate(self, overflow: Overflow) -> str:
        """A text about records that go here: whether there is a place for them."""
        if overflow is Overflow.DROP_NEW:
            return "are dropped"
        try:
            spool_dir(self._identifier)
        except (OSError, ValueError) as error:
            return f"are dropped (cannot spool: {error})"
        return "are spooled"

    def append(self, line: bytes, seq: int) -> None:
        """Spool one line; the kernel has it on return.

        Raises:
            OSError, ConfigError: It cannot be spooled; nothing of it remains.
        """
        if self._open is not None and not self._open.is_own:
            self.end()  # the application has closed its descriptor
        size = sum(each.size_bytes for each in self._all())
        if size + len(line) > CAP_BYTES:
            raise OSError(errno.EDQUOT, f"the spool is at its cap of {CAP_BYTES} bytes")
        refused: dict[str, OSError] = {}
        while True:
            if self._open is None:
                self._open = self._new_segment(seq, refused)
                self._release_locks()
            folder = os.path.dirname(self._open.path)
            try:
                return self._open.append(line, seq)
            except OSError as error:
                refused[folder] = error
                self.repair(end=True)

    def _new_segment(self, first: int, refused: dict[str, OSError]) -> SpoolSegment:
        """A segment in the first place that takes one.

        Args:
            first: The seq of its first line.
            refused: The places that take nothing now; more are added.

        Raises:
            OSError, ConfigError: None does; the first reason.
        """
        while True:
            self._check_owner()
            try:
                folder = spool_dir(self._identifier, refused)
            except (OSError, ConfigError):
                for error in refused.values():
                    raise error from None
                raise
            try:
                segment = SpoolSegment(folder, self._stream, first)
            except OSError as error:
                if error.errno in NO_DESCRIPTOR:
                    raise
                refused[folder] = error
                continue
            try:
                self._check_owner()
            except OSError:
                segment.abandon()
                raise
            return segment

    def _check_owner(self) -> None:
        if self._abandoned:  # by a fork in a signal handler, in the middle of a call
            raise OSError(errno.EBADF, "the spool is the parent's")

    def repair(self, *, end: bool = False) -> None:
        """After an append that did not return, leave whole lines only.

        Args:
            end: End the open segment anyway.
        """
        segment = self._open
        try:
            cut = segment is not None and segment.is_own and segment.cut_back()
        except OSError:
            cut = True
        if cut or end:
            self.end()

    @property
    def newest(self) -> int:
        """The newest seq of all segments that are not acknowledged; 0: there is none."""
        return max((each.last for each in self._all()), default=0)

    @property
    def descriptors(self) -> list[int]:
        """The descriptors of the segments that it holds open."""
        return [each.number for each in self._all() if each.number >= 0]

    def end(self) -> None:
        """End the open segment, if there is one."""
        segment, self._open = self._open, None
        if segment is not None:
            self._end(segment)

    def add(self, lines: list[bytes]) -> None:
        """Spool lines that are older than the open segment, as a segment of their own.

        Raises:
            OSError, ConfigError: They cannot be spooled.
        """
        data, refused = b"".join(lines), dict[str, OSError]()
        while True:
            segment = self._new_segment(seq_of(lines[0]), refused)
            try:
                return segment.append(data, seq_of(lines[-1]))
            except OSError as error:
                refused[os.path.dirname(segment.path)] = error
            finally:
                with suppress(OSError):  # ended: its reader takes whole lines only
                    segment.cut_back()
                self._end(segment)

    def take(self, resend: ResendBuffer) -> bool:
        """Spool all kept lines; False: there are none, or they stay in memory.

        Segments are read one after the other, so no two may overlap: lines before and
        after one that is there already make a segment each. So do lines before and after
        a step back of their stamps: the first line of a segment has the lowest one.
        """
        lines = [line for line in resend.lines() if not self._has(seq_of(line))]
        if not resend:
            return False
        starts = sorted(each.first for each in self._all())
        try:
            for _, run in groupby(lines, lambda line: bisect(starts, seq_of(line))):
                for rising in _rising(list(run)):
                    self.add(rising)
        except (OSError, ValueError):
            return False
        resend.clear()
        return True

    def _has(self, seq: int) -> bool:
        """Whether a run was spooled by a `take` that failed at a later one."""
        return any(each.first <= seq <= each.last for each in self._all())

    def _end(self, segment: SpoolSegment) -> None:
        segment.end()
        if not segment.is_empty:
            self._segments.append(segment)
            self._segments.sort(key=lambda each: each.first)
            self._release_locks()

    def _release_locks(self) -> None:
        """Hold one lock: that of the open segment, else of the newest."""
        for each in self._segments if self._open else self._segments[:-1]:
            each.abandon()

    def acknowledge(self, seq: int) -> None:
        """Forget ended segments whose records are all safe."""
        while self._segments and self._segments[0].last <= seq:
            self._segments.pop(0).abandon()

    def announcements(self) -> list[Segment]:
        """All segments, for a hello."""
        return [_announcement(each) for each in self._all()]

    def announce(self, send: Callable[[bytes], bool]) -> bool:
        """Announce new segments (an open one is read as it grows); False: not now."""
        for each in self._all():
            if not each.announced:
                if not send(_announcement(each).encode()):
                    return False
                each.announced = True
        return True

    def mark_announced(self, segments: Sequence[Segment]) -> None:
        """Note that the consumer knows of segments."""
        known = {each.path for each in segments}
        for each in self._all():
            each.announced |= each.path in known

    def _all(self) -> list[SpoolSegment]:
        return [*self._segments, self._open] if self._open else self._segments

    def abandon(self) -> None:
        """Forget everything: the end, or a forked child, where it is the parent's."""
        self._abandoned = True
        for each in self._all():
            each.abandon()
        self._open = None
        self._segments.clear()


def _rising(lines: list[bytes]) -> list[list[bytes]]:
    """Lines in runs whose stamps do not go back."""
    breaks = [
        at for at in range(1, len(lines)) if key_of(lines[at]) < key_of(lines[at - 1])
    ]
    return [lines[a:b] for a, b in zip([0, *breaks], [*breaks, None], strict=True)]


def _announcement(segment: SpoolSegment) -> Segment:
    last = None if segment.is_open else segment.last
    return Segment(segment.path, segment.first, last)


def open_segment(path: str) -> int:
    """Open a segment for reading.

    Raises:
        OSError: It is missing, or not a plain file of this user with one name.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(path, flags)
    status = os.fstat(file)
    plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    if not plain or status.st_uid not in owners_of(path):
        os.close(file)
        raise OSError(errno.EINVAL, f"{path} is not a plain file of this user")
    return file


def orphans(identifier: str) -> list[str]:
    """Segments of an address whose process has ended, oldest first.

    Files that `open_segment` refuses, or whose lock cannot be tried, are left out.

    Raises:
        OSError: No descriptor is free, or the disk cannot be read now.
    """
    found = []
    held = set()
    paths = []
    for folder in spool_dirs(identifier):
        try:
            paths += [os.path.join(folder, name) for name in os.listdir(folder)]
        except OSError as error:
            _raise_if_passing(error)
    for path in sorted(paths, key=os.path.basename):
        if not path.endswith(SUFFIX):
            continue
        try:
            file = open_segment(path)
        except OSError as error:
            _raise_if_passing(error)
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            held.add(stream_of(path))
        else:
            found.append(path)
        finally:
            os.close(file)
    return [path for path in found if stream_of(path) not in held]


def stream_of(path: str) -> str:
    """The stream that a segment belongs to: one process's seqs."""
    return os.path.basename(path).rpartition("-")[0]


def _raise_if_passing(error: OSError) -> None:
    if error.errno in PASSING:
        raise error
