"""Batches that wait on disk for a sink that does not keep up, in order.

A thin layer on `logagg.segment_log`: the lines of a batch end with the same stamp, so
the batches that went in come back. For a durable target the log is named and
outlives the process: the next consumer that opens the same sink delivers what is in it,
each batch once, except that the batch that was being written when the consumer was
killed may come twice if the sink does not know what it has. Without a name the records
are lost with the process.

Several predecessors may have left a log each (consumers that died, a sink whose options
have changed). All are taken over, the oldest records first; what is added goes into the
last one. Where its disk takes nothing, another log follows in the next place (see
`logagg.ipc.paths.spool_dirs`).

Everything blocks for a local disk only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from logagg.abc import Batch
from logagg.core.line import KEY_END, key_of, received_suffix
from logagg.errors import ConfigError
from logagg.ipc import paths
from logagg.segment_log import SegmentLog
from logagg.spool_directory import QUEUE, SERVICE, claim, take_over, tidy

__all__ = ["SinkSpool"]

PEEK_BYTES = 64 * 1024  # most batches are smaller
SEGMENT_BYTES = 8 * 1024 * 1024
_SUFFIX_BYTES = len(received_suffix(0))


class SinkSpool:
    """Batches on disk, first in, first out. Used by one task.

    Args:
        name: The name of the sink's directory, made when it is needed; empty: nothing
            outlives the process.
        limit_bytes: How much may wait.
        url: The sink, secrets left out, for `logagg spool ls`.
        bases: The directories in which a predecessor's is sought; without them all
            those where one may be.

    Attributes:
        recovered: How many records were found when it was opened.
        must_sync: Whether a batch is to survive a power cut; see `Sink.must_sync`.
    """

    def __init__(
        self, name: str, limit_bytes: int, url: str = "", *bases: Path
    ) -> None:
        self.name = name
        self.recovered = 0
        self._url = url
        self._bases = bases
        self._limit = limit_bytes
        self.must_sync: Callable[[Batch], bool] = lambda _: False
        self._logs: list[SegmentLog] = []  # the oldest first; the last one grows

    @property
    def records(self) -> int:
        """How many records wait."""
        return sum(log.records for log in self._logs)

    @property
    def size_bytes(self) -> int:
        """How much room they take."""
        return sum(log.size_bytes for log in self._logs)

    @property
    def folder(self) -> Path | None:
        """The directory in use, if there is one."""
        return self._logs[-1].folder if self._logs else None

    def recover(self) -> None:
        """Take over what earlier consumers left. Reads all of it once, to count it.

        Any thread may call it, while records are added; again for those ended since.

        Raises:
            OSError: It cannot be read; what was found before that is taken over.
        """
        if not self.name:
            return
        found: list[SegmentLog] = []
        try:
            for base in self._bases or map(Path, paths.spool_dirs(SERVICE)):
                found += take_over(
                    base / self.name, QUEUE, self._limit, segment_bytes=SEGMENT_BYTES
                )
            found.sort(key=_first_key)
        finally:
            self.recovered += sum(log.records for log in found)
            self._logs[:0] = found  # in place: what comes meanwhile is added by others

    def append(self, batch: Batch) -> bool:
        """Add a batch, in the next place where a disk refuses it.

        Returns:
            False, and nothing is added: the limit or the disks leave no room.
        """
        data = batch.data
        if self.size_bytes + len(data) > self._limit:
            return False
        refused: list[str] = []
        while True:
            try:
                log = self._growing(refused)
            except (OSError, ConfigError):
                return False
            try:
                return log.append(data, len(batch), sync=self.must_sync(batch))
            except OSError:
                refused.append(self._place(log))

    def _growing(self, refused: list[str]) -> SegmentLog:
        """The log that grows, in the first place that is not refused.

        Raises:
            OSError, ConfigError: There is none.
        """
        if self._logs and self._place(self._logs[-1]) not in refused:
            return self._logs[-1]
        if refused and self._logs and not self._logs[-1].records:
            self._release(self._logs.pop())
        while True:
            place = paths.spool_dir(SERVICE, refused)
            try:
                log = self._open(Path(place))
            except (OSError, ConfigError):
                refused.append(place)
                continue
            self._logs.append(log)
            return log

    def _place(self, log: SegmentLog) -> str:
        """The directory of `logagg.ipc.paths.spool_dirs` in which a log is."""
        folder = log.folder
        if folder is None:
            return ""
        return str(folder.parent.parent if self.name else folder)

    def _open(self, parent: Path) -> SegmentLog:
        size = SEGMENT_BYTES
        if not self.name:
            return SegmentLog(parent, self._limit, segment_bytes=size, named=False)
        folder = parent / self.name
        return claim(folder, self._url, self._limit, prefix=QUEUE, segment_bytes=size)

    def peek(self) -> Batch | None:
        """The first batch; None when its file has been removed.

        Raises:
            OSError: It cannot be read now.
        """
        log, size, most = self._logs[0], -1, PEEK_BYTES
        while True:
            position, data = log.read(log.start, most)
            if not data:
                return None
            if position > log.start:
                log.done(position, 0)
            batch = _first_batch(data)
            if batch.size_bytes < len(data) or len(data) == size:
                return batch
            size, most = len(data), most * 4

    def advance(self, batch: Batch) -> None:
        """Consume the batch that `peek` returned."""
        log = self._logs[0]
        with contextlib.suppress(OSError):  # at worst a successor writes it again
            log.done(log.start + batch.size_bytes, len(batch))
        self._leave_empty()

    def drop(self) -> int:
        """Consume the log that `peek` reads; return how many records that were."""
        records = self._logs[0].drop() if self._logs else 0
        self._leave_empty()
        return records

    def _leave_empty(self) -> None:
        """Go on to the next log at the end of one."""
        while len(self._logs) > 1 and not self._logs[0].records:
            self._logs.pop(0).close()

    def record_ids(self, since: bytes) -> frozenset[bytes]:
        """The ids of the records that wait and are stamped since a sort key.

        Any thread may call it.
        """
        logs = list(self._logs)
        return frozenset().union(*(log.record_ids(since) for log in logs))

    def close(self) -> None:
        """Release it. What waits stays for the next consumer, where it has a name."""
        logs, self._logs = self._logs, []
        for log in logs:
            self._release(log)

    def _release(self, log: SegmentLog) -> None:
        log.close()
        if self.name and log.folder is not None:
            tidy(log.folder.parent)


def _first_key(log: SegmentLog) -> bytes:
    """The sort key of the first line that waits; late for one that cannot be read."""
    try:
        return key_of(log.read(log.start, KEY_END)[1]) or b"~"
    except OSError:
        return b"~"


def _first_batch(data: bytes) -> Batch:
    """The leading lines that have the same stamp."""
    end = data.find(b"\n") + 1
    suffix = data[max(0, end - _SUFFIX_BYTES) : end]  # all of a line that is damaged
    place = end
    while end and data[end - len(suffix) : end] == suffix:
        place = end
        end = data.find(b"\n", place) + 1
    return Batch(data[:place].split(suffix)[:-1], suffix)
