"""Sources: what a consumer reads, and the set of them that each cycle polls.

Three kinds share the `Source` protocol: an attached worker (`worker_source`), a captured
stdout or stderr (`output_source`), and records that dead processes left on disk
(`orphan_source`). Those whose records are acknowledged are also an `AckedSource`.

A source never blocks and cannot hurt another: it returns at most about a budget of bytes
per read, and one whose peer breaks the rules, or whose reading fails in any way, ends
alone.

Lines that are read wait in the merge, for lines of sources that were not read to their
end (many segments, a worker that is not readable yet). When they are too many, only the
source that holds them back is read, and the instant up to which all were read stays.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from logagg.core.line import dump_line, prefix_tail, record_id, sort_key
from logagg.core.merge import AsStamped, Merger
from logagg.ipc.protocol import ConsumerPacket
from logagg.platform.pipe_watch import pipe_watch
from logagg.platform.system import pipe_bytes

__all__ = [
    "CHUNK_BYTES", "AckedSource", "Clock", "FlushAnswers", "Source", "SourceEnded",
    "SourceSet", "file_identity", "stamped_line",
]  # fmt: skip

CHUNK_BYTES = 256 * 1024
"""Bytes per `read(2)`: a quarter of a worker's pipe."""

BUDGET_BYTES = 16 * 1024 * 1024
"""Bound of one cycle's reading from all sources together (16 MiB)."""

MOST_LAST_READS = 10
"""Of a worker that is gone more may wait on disk; the next consumer reads that."""

CYCLE = 0.010
"""Seconds between two cycles while records come."""

BUSY_CYCLE, BUSY_LINES = 0.025, 200
"""And after so many lines, all of workers: a cycle has a price of its own."""

FAST_CYCLE, FILLED = 0.001, 0.375
"""A shorter one, if a worker would else fill more than this share of its pipe."""


class SourceEnded(Exception):
    """The source gives nothing any more; the argument is the reason."""


class Clock(Protocol):
    """The host's common clock, as a consumer keeps it."""

    @property
    def offset_ns(self) -> int:
        """Common time minus CLOCK_MONOTONIC."""

    def now_ns(self) -> int:
        """Common time."""


class Source(Protocol):
    """One pipe that the cycle reads.

    Attributes:
        pipe: Descriptor to poll.
        pid: The process at its other end; 0: none.
        drained: The last read left nothing in the pipe. Set by `SourceSet`.
        hold_key: While it is not readable, or was not read to its end, nothing that
            sorts after this is released.
        bytes_taken: Bytes that the last read took from a worker's pipe, else 0.
    """

    pipe: int
    pid: int
    drained: bool
    hold_key: bytes

    @property
    def bytes_taken(self) -> int: ...

    @property
    def stamps(self) -> AsStamped:
        """Where its lines belong in the order."""

    @property
    def identity(self) -> tuple[int, int] | None:
        """The file that may be read by one source only, and that no sink may write to."""

    @property
    def readable(self) -> bool:
        """Whether it may be read yet."""

    def start_reading(self, *, if_gone: bool = False) -> None:
        """Become readable, or do so if its process is gone."""

    @property
    def pending(self) -> bool:
        """Whether there is something to read besides the pipe."""

    @property
    def is_flushing(self) -> bool:
        """Whether its process waits in `flush`, with an empty pipe: it stamps nothing."""

    @property
    def shows_delay(self) -> bool:
        """Whether its lines are written right after they are stamped."""

    def read(self, budget: int) -> tuple[list[bytes], bool]:
        """Take lines, up to about `budget` bytes.

        Returns:
            Wire lines, and whether nothing that was written before is left unread.

        Raises:
            SourceEnded: It is at its end, and everything before it was returned.
        """

    def take_possible_duplicates(self) -> list[bytes]:
        """Lines since the last call that an earlier consumer may have written."""

    def finish(self, reason: str) -> bool:
        """Handle the end; False when more has been found, which is to be read."""


class AckedSource(Protocol):
    """A source whose records are acknowledged when the durable sinks have them.

    Attributes:
        marks: (key, number): when all lines up to the sort key have been released,
            those up to this number have been. Oldest first.
    """

    marks: list[tuple[bytes, int]]

    @property
    def finished(self) -> bool:
        """Whether it is at its end and everything is acknowledged."""

    def acknowledge(self, number: int) -> None:
        """All its records up to a number are safe."""

    def send_ack(self, now_ns: int) -> None:
        """Pass that on, if it is due."""

    def close(self) -> None:
        """Release all descriptors."""


class FlushAnswers:
    """Answers to the `flush` of one worker: whether its records are with the sinks.

    Args:
        dropped: How many records the sinks have dropped so far; of any worker, for sinks
            do not count them apart.
    """

    def __init__(self, dropped: Callable[[], int] = lambda: 0) -> None:
        self._dropped = dropped
        self._before = dropped()

    def packet(self, safe: int, flush_to: int) -> ConsumerPacket:
        """The answer to a `flush`."""
        incomplete = self._dropped() != self._before
        return ConsumerPacket(ack=safe, flushed=flush_to, incomplete=incomplete)

    def sent(self) -> None:
        """The worker has the answer."""
        self._before = self._dropped()


class SourceSet:
    """The sources that are read.

    Between cycles nothing watches the pipes: `poll` with no timeout leaves no trace on
    them, while to watch them would cost every write a wake-up call. Only `wait`, after a
    while without records, does so.

    Args:
        failed: Called with the name and the exception of a source that ends by one.

    Attributes:
        read_ns: The last instant after which all sources were read.
        pause: Seconds from the last cycle to the next one.
        possible_duplicates: Identities of lines that an earlier consumer may have
            written, until they are released.
    """

    def __init__(
        self, failed: Callable[[str, BaseException], None] = lambda *_: None
    ) -> None:
        self.read_ns = 0
        self.pause = CYCLE
        self.possible_duplicates: set[bytes] = set()
        self._capacity: dict[int, int] = {}  # of workers' pipes
        self._most_filled = 0.0  # of them in this cycle, as a share
        self._has_others = self._has_waited = False
        self._by_pipe: dict[int, Source] = {}
        self._poll = select.poll()
        # For the whole life: when it is needed, there may be no free descriptor.
        self._watch = pipe_watch()
        self._captured: set[tuple[int, int]] = set()
        self._hold_from = 0
        self._failed = failed

    def __len__(self) -> int:
        return len(self._by_pipe)

    def __iter__(self) -> Iterator[Source]:
        return iter(self._by_pipe.values())

    def add(self, source: Source) -> bool:
        """Read a source from the next cycle on; False when it is read already."""
        if source.identity is not None:
            if source.identity in {each.identity for each in self}:
                return False  # two readers would tear each other's lines
            self._captured.add(source.identity)
        # It attached after the last cycle's accept, hence so did its first record.
        source.hold_key = sort_key(self._hold_from)
        self._by_pipe[source.pipe] = source
        self._poll.register(source.pipe, select.POLLIN)
        return True

    def discard(self, source: Source) -> None:
        """Read a source no more: another consumer does."""
        self._forget(source.pipe)

    def _forget(self, pipe: int) -> None:
        del self._by_pipe[pipe]
        self._capacity.pop(pipe, None)
        self._poll.unregister(pipe)

    def captures(self, descriptor: int) -> bool:
        """Whether text written to a descriptor comes back as records."""
        return file_identity(descriptor) in self._captured

    @property
    def all_flushing(self) -> bool:
        """Whether every source waits for this consumer: nothing is being stamped."""
        return all(each.is_flushing for each in self)

    def read(self, merger: Merger, now_ns: int) -> int:
        """Read all that can be read into the merger; return the number of lines.

        Args:
            merger: Receives the lines.
            now_ns: The cycle's begin, before anything is read.
        """
        self._most_filled, self._has_others = 0.0, False
        if merger.full and (holding := self._holding(sort_key(self.read_ns))):
            first = min(holding, key=lambda each: each.hold_key)
            for each in holding:
                if each is not first or not each.readable:
                    merger.hold_back(each.hold_key)
            self.pause = CYCLE
            return self._read_one(first, merger, BUDGET_BYTES) if first.readable else 0
        by_pipe = self._by_pipe
        ready = {pipe for pipe, _ in self._poll.poll(0)}
        ready.update(pipe for pipe, each in by_pipe.items() if each.pending)
        budget = max(BUDGET_BYTES // max(len(ready), 1), 65536)
        moved = 0
        for pipe in ready:
            source = by_pipe[pipe]
            if source.readable:
                moved += self._read_one(source, merger, budget)
        self._set_pause(moved, (now_ns - self.read_ns) / 1e9)
        self.read_ns = now_ns
        return moved

    def _set_pause(self, moved: int, elapsed: float) -> None:
        """Let no worker fill its pipe before the next cycle, at the rate of this one."""
        busy = moved >= BUSY_LINES and not self._has_others
        most = min(BUSY_CYCLE if busy else CYCLE, 2 * self.pause)
        if self._has_waited:  # what came may have come at the end
            elapsed, self._has_waited = self.pause, False
        if self._most_filled:
            most = min(most, elapsed * FILLED / self._most_filled)
        self.pause = max(most, FAST_CYCLE)

    def read_rest(self, merger: Merger, now_ns: int) -> None:
        """Read once more at the consumer's end, also those that were not readable yet.

        Those of them whose processes live are left: they send it to the next consumer.
        """
        for source in self:
            if not source.readable:
                source.start_reading(if_gone=True)
        for _ in range(MOST_LAST_READS):
            if not self.read(merger, now_ns):
                break

    def _holding(self, key: bytes) -> list[Source]:
        """The sources for which lines that sort after a key wait."""
        return [
            each
            for each in self
            if each.hold_key < key and not (each.readable and each.drained)
        ]

    def _read_one(self, source: Source, merger: Merger, budget: int) -> int:
        try:
            lines, drained = source.read(budget)
        except SourceEnded as end:
            self._end(source, str(end))
            return 0
        except Exception as error:  # noqa: BLE001 - its peer may have sent anything
            self._failed(f"the reading of process {source.pid}", error)
            self._end(source, f"its reading failed: {error}")
            return 0
        if lines:
            self.possible_duplicates.update(
                map(record_id, source.take_possible_duplicates())
            )
            taken = source.bytes_taken
            if taken:
                self._note_filled(source.pipe, taken)
            else:
                self._has_others = True
            if source.drained and source.shows_delay:
                # The pipe was empty at the last cycle: an older stamp came late.
                merger.observe(lines[0], self.read_ns)
            if source.pending or not taken:
                taken = sum(map(len, lines))
            if not drained:
                source.hold_key = source.stamps.highest(lines)
                merger.hold_back(source.hold_key)
            usual, placed = source.stamps.place(lines)
            merger.add(usual, drained=True, size_bytes=taken)
            if placed:
                merger.add_placed(placed)
        source.drained = drained
        return len(lines)

    def _note_filled(self, pipe: int, taken: int) -> None:
        size = self._capacity.get(pipe)
        if size is None:
            size = self._capacity[pipe] = pipe_bytes(pipe)
        self._most_filled = max(self._most_filled, taken / size)

    def _end(self, source: Source, reason: str) -> None:
        """Handle the end of a source; it is read on when it has found more."""
        try:
            if not source.finish(reason):
                return
        except Exception as error:  # noqa: BLE001 - nothing more can be done for it
            self._failed(f"the end of process {source.pid}", error)
        pipe = next(pipe for pipe, each in self._by_pipe.items() if each is source)
        self._forget(pipe)

    def hold_unread(self, merger: Merger) -> None:
        """Hold back in the merger what may follow lines of sources not readable yet.

        Called after new connections were accepted.
        """
        self._hold_from = self.read_ns
        for source in self:
            if not source.readable:
                merger.hold_back(source.hold_key)

    async def wait(self, woken: asyncio.Event, most: float) -> None:
        """Wait until a pipe is readable, or the event is set, `most` seconds at most."""
        loop = asyncio.get_running_loop()
        watched = [pipe for pipe, each in self._by_pipe.items() if each.readable]
        self._watch.begin(loop, watched, woken.set)
        self.pause, self._has_waited = CYCLE, True
        try:
            await asyncio.wait_for(woken.wait(), most)
        except TimeoutError:
            pass
        finally:
            self._watch.end(loop, watched)


def file_identity(descriptor: int) -> tuple[int, int]:
    """Device and inode of the file that a descriptor is open on."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def stamped_line(
    now_ns: int, level: str, worker: str, seq: int, fields: dict[str, Any]
) -> bytes:
    """A wire line made in the consumer."""
    return b"%b%d,%b" % (
        sort_key(now_ns)[:-1] + prefix_tail(level, worker),
        seq,
        dump_line(fields)[1:],
    )
