"""One attached worker: its pipe, its control connection, the order of its lines.

States of a worker's source
---------------------------

    state      what holds                             leaves it            for
    JOINING    attached, not read: its sinks are      `start_reading`      READING
               being opened, and durable sinks
               report what they have of its kept
               records; the merge is held back
    READING    pipe and segments are read             end of the pipe,     DRAINING
                                                      or a fault
    DRAINING   the pipe is not read any more; the     all segments read:   DEPARTED
               segments are, those included that      second `finish`
               were found on disk at its end
    DEPARTED   pipe closed; what is not safe yet      all acknowledged:    (removed)
               is still tracked                       `finished`

Faults that end the source: too long a line, another name. What was read before counts.

Two inputs are ordered against each other: what a worker writes into its pipe, and the
control messages that it sends. A worker sends a message *before* the lines that it
concerns (a segment that stands between two lines of the pipe, a line that is torn). So
each read of the pipe is followed by `receive`: every message that was sent before those
lines were written is known by the time that they are ordered.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from enum import Enum
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

from msgspec import UNSET

from logagg.consumer.segment_reader import SegmentReader, WorkerSegments
from logagg.consumer.source import CHUNK_BYTES, FlushAnswers, SourceEnded
from logagg.core.line import MAX_LINE_BYTES, PREFIX, is_line, seq_of
from logagg.core.merge import AsStamped
from logagg.core.sequence import Sequence
from logagg.ipc.connection import send_packet
from logagg.ipc.protocol import (
    ConsumerPacket,
    RecordsHello,
    WorkerPacket,
    decode,
    encode,
)
from logagg.platform import exit_status, packets

__all__ = ["SourceState", "WorkerSource"]

LONGEST_HEAD = 400  # prefix, level and worker: both names are bounded by their makers

ACK_INTERVAL_NS = 50_000_000  # of acks that no `flush` waits for
STEP_BYTES = 4096  # of a read's budget: what one chunk, or one hole in the seqs, costs
MOST_PACKETS = 1000  # at once: more than wait there now, but a peer may send on


class SourceState(Enum):
    """See the head of the module."""

    JOINING = "joining"
    READING = "reading"
    DRAINING = "draining"
    DEPARTED = "departed"


class WorkerSource:
    """One attached process: a `Source` and an `AckedSource`.

    Args:
        connection: Its control connection.
        pipe: The read end of its pipe.
        hello: Its hello.
        peer: Its pid as the kernel knows it.
        identifier: Names the directories of its segments if its hello does not.
        kept: The lines that it kept because they were not acknowledged.

    Attributes:
        state: See the head of the module.
        name: Its slot or pid, as its lines have it.
        pid: Its pid in its own words; `peer` is the kernel's.
        hello: Its hello.
        sequence: The order and the counters of its lines.
        marks: See `AckedSource`; the numbers are seqs.
        safe: The seq up to which it was acknowledged.
        flush_to: The seq up to which it waits in `flush`; 0: it does not.
        resumed: An earlier consumer may have written what its segments hold.
        stamps: Where its lines belong in the order; `answers`: those to its flushes.
        segments: Its spool segments, and what it kept for a new consumer.
        lines: Lines of the pipe that are read and not taken yet.
        wanted: Sinks that it has requested since its hello, a list per request.
        goodbye: It has announced its end; `stays`: only that of its attachment.
        exit_status: How its process ended, as `os.wait` has it; None: not known.
        hung_up: Its control connection has ended.
        dropped: Records that it dropped, in all.
        on_departure: Called at its end with the reason.
        successor: The stream's next source: what this one's pipe holds is all.
    """

    identity = None
    shows_delay = True

    def __init__(
        self,
        connection: socket.socket,
        pipe: int,
        hello: RecordsHello,
        peer: int,
        identifier: str,
        kept: SegmentReader | None = None,
    ) -> None:
        self.connection = connection
        self.pipe, self.peer, self.hello = pipe, peer, hello
        self.pid, self.name, self.stream = hello.pid, hello.worker, hello.stream
        self.state = SourceState.JOINING
        self.attached_at = clock_gettime_ns(CLOCK_MONOTONIC)
        self.safe = self._ack_sent = hello.acknowledged
        self.sequence = Sequence(self.safe + 1)
        self.sequence.torn.update(hello.torn)
        self.dropped, self.resumed = hello.dropped, hello.resumes
        self.stamps, self.answers = AsStamped(), FlushAnswers()
        spool = hello.spool or identifier
        self.segments = WorkerSegments(hello.stream, spool, self.sequence)
        self.lines: list[bytes] = []
        self.marks: list[tuple[bytes, int]] = []
        self.flush_to = self._last_seq = self._ack_sent_at = self.bytes_read = 0
        self.bytes_taken = 0
        self.goodbye = self.stays = self.hung_up = self.drained = False
        self.exit_status: int | None = None
        self.wanted: list[list[str]] = []
        self._mark = b'","worker":"%b","seq":' % self.name.encode()
        self.on_departure: Callable[[WorkerSource, str], None] = lambda *_: None
        self.successor: WorkerSource | None = None
        self._starts_inside_a_line = hello.resumes
        self._possible_duplicates: list[bytes] = []
        self.hold_key, self._end_reason, self._has_claimed = b"", "end of pipe", False
        os.set_blocking(pipe, False)
        connection.setblocking(False)
        if kept is not None:
            self.segments.add_reader(kept)
        for notice in hello.segments:
            self.segments.add(notice)

    @property
    def readable(self) -> bool:
        """Whether its sinks are open, so that its lines may be read."""
        return self.state is not SourceState.JOINING

    def start_reading(self, *, if_gone: bool = False) -> None:
        """See `Source`: its sinks are open, or this consumer ends."""
        if if_gone:
            self.receive()
        if self.state is SourceState.JOINING and (self.hung_up or not if_gone):
            self.state = SourceState.READING

    # ---- reading ------------------------------------------------------------------

    def read(self, budget: int) -> tuple[list[bytes], bool]:
        """Take the lines that are next; see `Source.read`.

        The next line is the one with the lowest seq of all ways, the pipe and segments.
        So a chunk of the pipe is read before it is decided which way goes on.
        """
        found: list[bytes] = []
        sequence = self.sequence
        drained, flush_to = False, 0
        self.bytes_taken = 0
        while budget > 0:
            if not self.lines and not drained:
                segments_before = len(self.segments)
                # A flush counts from the next chunk on: the message may have come
                # after the read, and its lines too.
                flush_to = self.flush_to
                chunk = self._from_pipe()
                # A segment that was announced meanwhile follows lines that were
                # written before it and are unread yet: the pipe must be read again.
                drained = (
                    len(chunk) < CHUNK_BYTES and len(self.segments) == segments_before
                )
                budget -= len(chunk) + STEP_BYTES
                if not self.lines and not drained:
                    continue  # in the middle of a long line: no other way is next
            pulled = bool(self.segments.unread) and self.segments.pull()
            if self.segments.blocked:
                break  # the line that is next may be there
            if pulled:
                budget -= CHUNK_BYTES
                found += self._merged()
            elif self.lines:
                # Without segments nothing can fill a hole in the pipe's seqs.
                chosen, self.lines = sequence.accept(self.lines)
                if self.lines:
                    sequence.give_up_before(seq_of(self.lines[0]))
                    budget -= STEP_BYTES
                found += chosen
            if drained and not self.lines and not self.segments.pull():
                if self.segments.blocked:
                    break
                return self._all_read(found, flush_to)
        self._add_mark(found)
        return found, False

    def _all_read(self, found: list[bytes], flush_to: int) -> tuple[list[bytes], bool]:
        """End a read that left nothing: close the holes that a flush or an end shows."""
        self._add_mark(found)
        if self.sequence.expected <= flush_to:
            # The flush was sent after these seqs were written, so they were dropped.
            self.sequence.give_up_before(flush_to + 1)
            self.marks.append((b"", flush_to))
        at_end = self.state is SourceState.DRAINING
        if at_end and not found:
            self.sequence.end()
            raise SourceEnded(self._end_reason)
        return found, not at_end

    def _add_mark(self, lines: list[bytes]) -> None:
        if lines:
            self.marks.append((self.stamps.highest(lines), self.sequence.expected - 1))

    def _from_pipe(self) -> bytes:
        """Read one chunk into `lines`, and then the messages sent before it."""
        if self.state is SourceState.DRAINING:
            return b""
        try:
            chunk = os.read(self.pipe, CHUNK_BYTES)
        except BlockingIOError:
            if self.successor is None:
                return b""
            chunk = b""
        except OSError as error:
            return self._fail(f"its pipe cannot be read: {error.strerror}")
        if not chunk:
            self.state = SourceState.DRAINING
            if self.successor is not None:
                self.sequence.tail = b""  # the whole line comes by the other pipe
            self.receive()
            return b""
        self.bytes_read += len(chunk)
        self.bytes_taken += len(chunk)
        lines = self.sequence.split(chunk)
        if len(self.sequence.tail) > MAX_LINE_BYTES:
            self.sequence.end()
            return self._fail(f"a line longer than {MAX_LINE_BYTES} bytes")
        if self._starts_inside_a_line and lines:
            # An earlier consumer read the begin of the first line. The whole of it is
            # among the kept records.
            self._starts_inside_a_line = False
            if not lines[0].startswith(PREFIX):
                lines = lines[1:]
        if lines and not self._has_own_name(lines[0], lines[-1]):
            self.sequence.damaged += len(lines)
            return self._fail("it sends lines under another worker's name")
        self.lines = lines
        self.receive()
        return chunk

    def _fail(self, reason: str) -> bytes:
        self._end_reason = reason
        self.state = SourceState.DRAINING
        return b""

    def _has_own_name(self, *lines: bytes) -> bool:
        """Whether lines have this worker's name; one that is torn passes."""
        return all(
            self._mark in line[:LONGEST_HEAD] or not is_line(line) for line in lines
        )

    def _merged(self) -> list[bytes]:
        """Lines of the way that has the next one: a segment or the pipe."""
        sequence = self.sequence
        ways: list[SegmentReader | WorkerSource] = [
            each for each in self.segments.unread if each.lines
        ]
        if self.lines:
            ways.append(self)
        way = min(ways, key=lambda each: seq_of(each.lines[0]))
        first = seq_of(way.lines[0])
        if first > sequence.expected:
            sequence.give_up_before(first)  # no way has what is missing
        chosen, way.lines = sequence.accept(way.lines, pipe=way is self)
        if self.resumed and way is not self:
            self._possible_duplicates += chosen
        return chosen

    @property
    def pending(self) -> bool:
        """Whether there is something to read besides the pipe."""
        return bool(
            self.segments.unread
            or self.lines
            or self.state is SourceState.DRAINING
            or self.successor is not None  # whether its pipe is closed or not
            or self.sequence.expected <= self.flush_to
        )

    @property
    def is_flushing(self) -> bool:
        """See `Source.is_flushing`."""
        return self.flush_to > 0 and self.drained

    def take_possible_duplicates(self) -> list[bytes]:
        """Lines from segments since the last call that may be written already."""
        found, self._possible_duplicates = self._possible_duplicates, []
        return found

    # ---- the control connection ---------------------------------------------------

    def receive(self) -> None:
        """Handle the messages that have come; new sinks go to `wanted`."""
        for _ in range(0 if self.hung_up else MOST_PACKETS):
            try:
                packet = packets.receive(self.connection, 65536)[0]
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self.hung_up = True
                break
            try:
                self._handle(decode(WorkerPacket, packet))
            except ValueError:  # garbage after a good hello
                self.sequence.damaged += 1
                self.hung_up = True
                break

    def _handle(self, message: WorkerPacket) -> None:
        if message.sinks is not UNSET:
            self.wanted.append(message.sinks)
        if message.flush is not UNSET:
            self.flush_to = max(self.flush_to, message.flush)
        if message.dropped is not UNSET:
            self.dropped = message.dropped
        if message.torn is not UNSET:
            self.sequence.torn.add(message.torn)
        if message.bye is not UNSET:
            self.goodbye = True
            self.stays = message.stays
            self._last_seq = message.bye
        if (notice := message.notice) is not None:
            self.segments.add(notice)

    def send(self, message: ConsumerPacket) -> bool:
        """Send a message to the worker; False when it cannot receive now."""
        return send_packet(self.connection, encode(message))

    def acknowledge(self, number: int) -> None:
        """All records up to a seq are safe; a worker that waits in `flush` learns now."""
        self.safe = max(self.safe, number)
        self.segments.remove_safe(self.safe)
        if self.successor is not None:
            self.successor.acknowledge(number)
        if self.flush_to:
            self.send_ack(clock_gettime_ns(CLOCK_MONOTONIC))

    def send_ack(self, now_ns: int) -> None:
        """Send what is safe: at once when it waits, else every ACK_INTERVAL_NS."""
        self.segments.remove_safe(self.safe)
        if self.flush_to and self.safe >= self.flush_to:
            if self.send(self.answers.packet(self.safe, self.flush_to)):
                self.answers.sent()
                self.flush_to = 0
                self._ack_sent = self.safe
        elif self.safe > self._ack_sent and now_ns - self._ack_sent_at > (
            ACK_INTERVAL_NS
        ):
            if self.send(ConsumerPacket(ack=self.safe)):
                self._ack_sent = self.safe
            self._ack_sent_at = now_ns

    # ---- the end ------------------------------------------------------------------

    def finish(self, reason: str) -> bool:
        """Handle the end of the pipe; False when segments are left, which go first."""
        if not self._has_claimed:
            try:
                claimed = self.segments.claim_orphans(known=self.successor is not None)
            except OSError:
                return False  # none can be opened now: tried again in the next cycle
            self._has_claimed = True
            if claimed:
                return False
        self._depart(reason)
        return True

    def _depart(self, reason: str) -> None:
        """Close the pipe. Records that are not safe yet stay tracked."""
        self.state = SourceState.DEPARTED
        if self.sequence.expected <= self._last_seq:
            # It has logged more, by its goodbye, which will not come any more.
            self.sequence.give_up_before(self._last_seq + 1)
            self.marks.append((b"", self._last_seq))
        self._close_pipe()
        if not self.goodbye:
            self.exit_status = exit_status.exit_status(self.connection, self.peer)
        self.on_departure(self, reason)

    @property
    def finished(self) -> bool:
        """Whether it has departed and all its records are safe."""
        return (
            self.state is SourceState.DEPARTED
            and self.safe >= self.sequence.expected - 1
        )

    def close(self) -> None:
        """Release all descriptors, and remove the segments that are safe."""
        self.segments.remove_safe(self.safe)
        self.segments.close()
        self._close_pipe()
        self.connection.close()

    def _close_pipe(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    # ---- counters -----------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counters for status and metrics."""
        return {
            "worker": self.name,
            "pid": self.pid,
            "peer": self.peer,
            "process": self.hello.process,
            "bytes": self.bytes_read,
            "last_seq": self.sequence.expected - 1,
            "acknowledged": self.safe,
            "attached": (clock_gettime_ns(CLOCK_MONOTONIC) - self.attached_at) / 1e9,
            **self.losses(),
        }

    def losses(self) -> dict[str, int]:
        """Counters of what went wrong, by kind, and of records."""
        sequence = self.sequence
        # A dropped record leaves a hole in the seqs too; it is counted once.
        explained = self.dropped - self.hello.drops_acknowledged
        return {
            "records": sequence.accepted,
            "lost": max(sequence.lost - explained, 0),
            "dropped": self.dropped,
            "damaged": sequence.damaged,
            "duplicates": sequence.duplicates,
        }
