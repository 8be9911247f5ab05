"""Reads files of lines: spool segments, and what a worker kept for a new consumer."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from msgspec import UNSET

from logagg.client.spool_writer import (
    NO_DESCRIPTOR,
    PASSING,
    open_segment,
    orphans,
)
from logagg.consumer.source import CHUNK_BYTES
from logagg.core.line import KEY_END, MAX_LINE_BYTES, PREFIX, seq_of
from logagg.core.sequence import Sequence
from logagg.ipc import failpoints, paths
from logagg.ipc.protocol import SegmentNotice

__all__ = ["SegmentReader", "WorkerSegments", "remove_segment", "with_descriptor"]

DESCRIPTOR_RETRY = 0.1
DISK_TIMEOUT = 30.0
"""Seconds for a disk that cannot be read to come back: the worker's order waits."""

_Result = TypeVar("_Result")


class DiskRetry:
    """Distinguishes errors that are waited out from those that are final.

    A lack of descriptors is waited out for ever, a disk that cannot be read for
    DISK_TIMEOUT; a file that is missing, or not to be touched, is not waited for.
    """

    def __init__(self) -> None:
        self._since = 0.0

    def waits(self, error: OSError) -> bool:
        """Whether to try again after an error."""
        if error.errno in NO_DESCRIPTOR or error.errno not in PASSING:
            return error.errno in NO_DESCRIPTOR
        self._since = self._since or monotonic()
        return monotonic() - self._since < DISK_TIMEOUT

    def succeeded(self) -> None:
        """Begin anew."""
        self._since = 0.0


class SegmentReader:
    """One file of whole lines, read chunk by chunk.

    A segment is open only while a chunk of it is read: any number of them may wait, and
    all together need one descriptor.

    Args:
        path: Its name, empty for an anonymous file.
        last: The seq of its last line; None while its worker still writes to it.
        descriptor: The anonymous file.

    Attributes:
        lines: Lines that are read and not taken yet.
        at_end: All of it was read, or it cannot be read any more.
        is_lost: It cannot be read, or not to its end: it stays where it is.
        blocked: No descriptor was free at the last attempt, or the disk could not be
            read; a later one may succeed.
    """

    def __init__(self, path: str, last: int | None, descriptor: int = -1) -> None:
        self.path = path
        self.last = last
        self.lines: list[bytes] = []
        self.at_end = self.is_lost = False
        self.blocked = False
        self._retry = DiskRetry()
        self._descriptor = descriptor
        self._offset = 0
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._is_too_long = False
        self._newest = 0  # the highest seq of the lines that were read

    @classmethod
    def of_kept(cls, descriptor: int) -> SegmentReader:
        """The unacknowledged lines that a worker hands over.

        Raises:
            ValueError: It is not a file that can be read without waiting.
        """
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("kept records must come in a plain file")
        return cls("", 0, descriptor)

    def pull(self) -> bool:
        """Have lines at hand; False at the end of what is there by now, or if blocked."""
        while not self.lines and not self.at_end:
            try:
                chunk = self._read(CHUNK_BYTES, self._offset)
                self.blocked = False
                self._retry.succeeded()
            except OSError as error:
                self.blocked = self._retry.waits(error)
                if not self.blocked:
                    self.is_lost = True
                    self.close()
                break
            if not chunk:
                if self.last is not None:
                    self.close()
                break
            self._offset += len(chunk)
            self.lines = self._split(chunk)
            self._newest = max([self._newest, *map(seq_of, self.lines[-1:])])
        return bool(self.lines)

    def _split(self, chunk: bytes) -> list[bytes]:
        """The lines that end in a chunk; the rest waits for the next.

        For each MAX_LINE_BYTES without an end there is an empty line, which counts as
        damaged: a sparse file costs neither memory nor a long pause.
        """
        *lines, rest = chunk.split(b"\n")
        if lines:
            self._tail.append(lines[0])
            lines[0] = b"" if self._is_too_long else b"".join(self._tail)
            self._tail, self._tail_bytes, self._is_too_long = [], 0, False
        self._tail_bytes += len(rest)
        if not self._is_too_long:
            self._tail.append(rest)
        if self._tail_bytes > MAX_LINE_BYTES:
            self._tail, self._tail_bytes, self._is_too_long = [], 0, True
            lines.append(b"")
        return lines

    def _read(self, size: int, offset: int) -> bytes:
        if self._descriptor >= 0:
            return os.pread(self._descriptor, size, offset)
        file = open_segment(self.path)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def first_key(self) -> bytes:
        """The sort key of its first line, without moving on; empty when it has none.

        Raises:
            OSError: No descriptor is free, or the disk cannot be read now.
        """
        try:
            start = self._read(KEY_END, 0)
        except OSError as error:
            if self._retry.waits(error):
                raise
            return b""
        return start if start.startswith(PREFIX) and len(start) == KEY_END else b""

    def is_safe(self, acknowledged: int) -> bool:
        """Whether it was read to its end, and all of it is acknowledged.

        The last seq of what a process has left is known only when it was read.
        """
        if not self.at_end or self.is_lost or self.last is None:
            return False
        return max(self.last, self._newest) <= acknowledged

    def close(self) -> None:
        """Read nothing more. May be called twice."""
        self.at_end = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def remove_segment(path: str) -> None:
    """Remove a segment of which all records are safe."""
    if failpoints.ACTIVE:
        failpoints.hit("unlink")
    try:
        os.unlink(path)
    except OSError:
        pass


async def with_descriptor(call: Callable[[], _Result]) -> _Result:
    """The result of a call, repeated until a descriptor is free and the disk answers.

    Raises:
        OSError: The disk could not be read for DISK_TIMEOUT seconds.
    """
    retry = DiskRetry()
    while True:
        try:
            return call()
        except OSError as error:
            if not retry.waits(error):
                raise
            await asyncio.sleep(DESCRIPTOR_RETRY)


class WorkerSegments:
    """All segments of one worker.

    Args:
        stream: Names the worker's files.
        identifier: The address, which names their directories.
        sequence: Excuses the seqs of segments that an earlier consumer has removed.

    Attributes:
        unread: Segments that have, or may get, lines to read. `len` counts those also
            that are read and not yet removed, because they are not safe.
        blocked: At the last `pull` one of them could not be read for now, so it is
            unknown which line is next.
    """

    def __init__(self, stream: str, identifier: str, sequence: Sequence) -> None:
        self.unread: list[SegmentReader] = []
        self.blocked = False
        self._taken: list[SegmentReader] = []
        self._stream = stream
        self._identifier = identifier
        self._folders = paths.spool_dirs(identifier)
        self._sequence = sequence
        self._retry = DiskRetry()

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, notice: SegmentNotice) -> None:
        """Take in a segment that the worker announced.

        With a `last` it is complete; without, lines are still being added, and they are
        read as they come. One that is missing was taken in and removed already; the seqs
        of one that cannot be read for another reason count as lost.
        """
        last = None if notice.last is UNSET else notice.last
        for known in self._taken:
            if known.path == notice.segment:
                known.last = last
                return
        if not self._owns(notice.segment):
            return
        try:
            os.lstat(notice.segment)
        except FileNotFoundError:
            if last is not None:
                self._sequence.excuse(notice.first, last)
            return
        except OSError:
            pass
        self.add_reader(SegmentReader(notice.segment, last))

    def add_reader(self, segment: SegmentReader) -> None:
        """Take in a file."""
        self.unread.append(segment)
        self._taken.append(segment)

    def _owns(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name.startswith(f"{self._stream}-") and folder in self._folders

    def pull(self) -> bool:
        """Have lines at hand; False when no segment has more for now."""
        found = self.blocked = False
        for segment in list(self.unread):
            if segment.pull():
                found = True
            elif segment.blocked:
                self.blocked = True
            elif segment.at_end:
                self.unread.remove(segment)
        return found

    def oldest_key(self) -> bytes:
        """The sort key of the oldest first line; empty when there is none.

        Raises:
            OSError: No descriptor is free, or the disk cannot be read now.
        """
        keys = [segment.first_key() for segment in self.unread]
        return min(filter(None, keys), default=b"")

    def remove_safe(self, acknowledged: int) -> None:
        """Remove the segments that were read to their end and are safe."""
        if not self._taken:
            return
        for segment in [each for each in self._taken if each.is_safe(acknowledged)]:
            self._taken.remove(segment)
            if segment.path:
                remove_segment(segment.path)

    def claim_orphans(self, *, known: bool = False) -> bool:
        """Take in what the process left on disk, now that it writes nothing more.

        Args:
            known: Only what was announced: what came after it is another source's.

        Returns:
            Whether there is anything to read that there was not before.

        Raises:
            OSError: No descriptor is free, or the disk cannot be read now; nothing has
                changed.
        """
        try:
            left = [] if known else orphans(self._identifier)
        except OSError as error:
            if self._retry.waits(error):
                raise
            left = []  # the next consumer takes them in
        taken = {segment.path for segment in self._taken}
        unfinished = [each for each in self.unread if each.last is None]
        for segment in unfinished:
            segment.last = 0  # what is there is all
        claimed = False
        for path in left:
            name = os.path.basename(path)
            if path not in taken and name.startswith(self._stream + "-"):
                self.add(SegmentNotice(path, first=0, last=0))
                claimed = True
        return claimed or bool(unfinished)

    def close(self) -> None:
        """Close all files."""
        for segment in self.unread:
            segment.close()
        self.unread.clear()
