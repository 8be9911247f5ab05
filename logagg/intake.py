"""What the consumer knows of each process that gives it records.

A `Worker` is one attached process: its pipe, its control connection, the sequence of
its lines, its spool segments. It is a *source* of the consumer's cycle (as captured
output, `logagg.captured`, is another): `read` takes what the kernel holds, up to a
bound, and never blocks.

Nothing a source sends can hurt another source: a line is bounded, a packet is bounded,
a bad packet or an endless line ends that source and is counted.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence as SequenceOf
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

import orjson

from logagg import failpoints, wire
from logagg.sequence import Sequence
from logagg.spool import open_segment, orphans
from logagg.wire import KEY_END, MAX_LINE_BYTES, PREFIX, seq_of

__all__ = ["Ended", "Segment", "Worker", "released", "stamped_line"]

CHUNK_BYTES = 256 * 1024
LONGEST_HEAD = 400  # prefix, level and worker: both names are bounded by their makers

ACK_INTERVAL_NS = 50_000_000


def number(value: object) -> int:
    """A number that a peer said.

    Raises:
        ValueError: It is none that can be counted with.
    """
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"not a number from 0 on: {str(value)[:50]}")
    return value


class Ended(Exception):
    """The source will give nothing any more; the argument says why."""


class Segment:
    """A file of lines to take in: a spool segment, or what a worker kept.

    Attributes:
        lines: Lines that are read and not taken yet.
        path: Its name, empty for an anonymous file.
        last: The seq of its last line; None while its worker still writes to it.
    """

    def __init__(self, descriptor: int, path: str, last: int | None) -> None:
        self.descriptor = descriptor
        self.path = path
        self.last = last
        self.lines: list[bytes] = []
        self._tail = b""

    def pull(self) -> bool:
        """See that there are lines; False at the end of what is there by now.

        The file is closed at its end, unless its worker still writes to it.
        """
        while not self.lines and self.descriptor >= 0:
            chunk = os.read(self.descriptor, CHUNK_BYTES)
            if not chunk:
                if self.last is not None:
                    self.close()
                break
            lines = chunk.split(b"\n")
            lines[0] = self._tail + lines[0]
            self._tail = lines.pop()
            self.lines = lines
        return bool(self.lines)

    def first_key(self) -> bytes:
        """The sort key of its first line, without moving on; empty when it has none."""
        start = os.pread(self.descriptor, KEY_END, 0)
        return start if start.startswith(PREFIX) and len(start) == KEY_END else b""

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Worker:
    """One attached process.

    Attributes:
        name: Its slot or pid, as its lines say.
        pid: Its pid by its own word; `peer` is the kernel's.
        supervised: Whether the supervisor will say how it ended.
        sequence: The order and the counters of its lines.
        released: (key, seq) marks of chunks that the merger has not released yet.
        safe: The seq up to which it was acknowledged.
        lines: Lines of the pipe that are read and not taken yet.
        suspicious: Whether a consumer before us may have written what segments hold.
        ready: Whether its sinks are open, so that its lines may be read.
        drained: Whether the last read left nothing in the pipe.
        bytes_taken: How much the last read took from the pipe.
        gone: Whether its pipe has ended.
        taken: Spool segments whose files must be removed when they are safe.
        settled_drops: Drops before the seq that a consumer before us acknowledged.
        told_dropped: Drops of which a consumer before us has told in the stream.
    """

    def __init__(
        self,
        connection: socket.socket,
        pipe: int,
        hello: dict[str, Any],
        peer: int,
        spool_dirs: SequenceOf[str] = (),
    ) -> None:
        self.connection = connection
        self.pipe = pipe
        self.peer = peer
        self.pid = number(hello["pid"])
        self.name = str(hello["worker"])
        self._mark = b'","worker":"%b","seq":' % self.name.encode()
        self.process = str(hello.get("process", ""))
        if not self.name.isprintable() or '"' in self.name or len(self.name) > 64:
            raise ValueError("a worker's name must be plain text")
        self.supervised = hello.get("supervised") is True
        self.stream = str(hello["stream"])
        self.attached_at = clock_gettime_ns(CLOCK_MONOTONIC)
        self.safe = number(hello.get("acknowledged", 0))
        self.sequence = Sequence(self.safe + 1)
        self.segments: list[Segment] = []
        self.reported_dropped = number(hello.get("dropped", 0))
        self.settled_drops = number(hello.get("settled", 0))
        self.told_dropped = number(hello.get("told", 0))
        self.marks: list[tuple[bytes, int]] = []
        self.flush_to = 0
        self.goodbye = False
        self._last_seq = 0
        self.heard_end = False
        self.bytes_read = 0
        self.bytes_taken = 0
        self.asked: list[list[str]] = []
        self._spool_dirs = spool_dirs
        self._fragment = bool(hello.get("again"))
        self._suspects: list[bytes] = []
        self.suspicious = self._fragment
        self.lines: list[bytes] = []
        self.taken: list[Segment] = []
        self.hold_key = b""
        self.ready = False
        self.drained = False
        self.gone = False
        self._told = self.safe
        self._told_at = 0
        self._at_end = False
        os.set_blocking(pipe, False)
        connection.setblocking(False)

    # ---- reading ------------------------------------------------------------------

    def read(self, budget: int) -> tuple[list[bytes], bool]:
        """Take lines that are next, up to about `budget` bytes.

        Returns:
            The lines, and whether nothing that was written before is left unread.

        Raises:
            Ended: The pipe is at its end, everything before it was returned.
        """
        found: list[bytes] = []
        sequence = self.sequence
        drained = False
        flush_to = 0
        self.bytes_taken = 0
        while budget > 0:
            if not self.lines and not drained:
                known = len(self.taken)
                # What is heard only now may have been said behind lines unread yet.
                flush_to = self.flush_to
                chunk = self._from_pipe()
                # A segment told of since may stand behind lines that are unread yet.
                drained = len(chunk) < CHUNK_BYTES and len(self.taken) == known
                budget -= len(chunk)
                if not self.lines and not drained:
                    continue  # a long line goes on: nothing behind it is next
            if self.segments and self._pull_segments():
                budget -= CHUNK_BYTES
                found += self._merged()
            elif self.lines:
                chosen, self.lines = sequence.admit(self.lines)
                if self.lines:
                    sequence.skip_to(seq_of(self.lines[0]))
                found = found + chosen if found else chosen
            if drained and not self.lines and not self._pull_segments():
                if sequence.expected <= flush_to:
                    # Said behind everything that was written: the rest was dropped.
                    sequence.skip_to(flush_to + 1)
                    self.marks.append((b"", flush_to))
                if self._at_end and not found:
                    sequence.end()
                    raise Ended("end of pipe")
                return found, not self._at_end
        return found, False

    def _from_pipe(self) -> bytes:
        """Read one chunk into `_lines`; hear what was said before it was written."""
        try:
            chunk = os.read(self.pipe, CHUNK_BYTES)
        except BlockingIOError:
            return b""
        if not chunk:
            self._at_end = True
            self.hear()
            return b""
        self.bytes_read += len(chunk)
        self.bytes_taken += len(chunk)
        lines = self.sequence.split(chunk)
        if len(self.sequence.tail) > MAX_LINE_BYTES:
            self.sequence.end()
            raise Ended(f"a line longer than {MAX_LINE_BYTES} bytes")
        if self._fragment and lines:
            # The rest of a line whose beginning went to the consumer before us; the
            # whole of it is among the kept records.
            self._fragment = False
            if not lines[0].startswith(PREFIX):
                del lines[0]
        if lines and not (self._is_ours(lines[0]) and self._is_ours(lines[-1])):
            self.sequence.damaged += len(lines)
            raise Ended("it sends lines under another worker's name")
        self.lines = lines
        self.hear()
        return chunk

    def _is_ours(self, line: bytes) -> bool:
        """Whether a line bears our name; what is no line at all is not judged here."""
        return not line.startswith(PREFIX) or self._mark in line[:LONGEST_HEAD]

    def _pull_segments(self) -> bool:
        """See that segments have lines; False when none has more for now."""
        found = False
        for segment in list(self.segments):
            if segment.pull():
                found = True
            elif segment.descriptor < 0:
                self.segments.remove(segment)
        return found

    def _merged(self) -> list[bytes]:
        """Lines of whichever way has the next one: a segment or the pipe."""
        sequence = self.sequence
        ways: list[Segment | Worker] = [each for each in self.segments if each.lines]
        if self.lines:
            ways.append(self)
        way = min(ways, key=lambda each: seq_of(each.lines[0]))
        first = seq_of(way.lines[0])
        if first > sequence.expected:
            sequence.skip_to(first)
        chosen, way.lines = sequence.admit(way.lines, pipe=way is self)
        if self.suspicious and way is not self:
            self._suspects += chosen
        return chosen

    @property
    def pending(self) -> bool:
        """Whether there is something to read besides the pipe."""
        return bool(
            self.segments or self.lines or self.sequence.expected <= self.flush_to
        )

    # ---- the control connection ---------------------------------------------------

    def hear(self) -> None:
        """Take what the worker said; what the consumer must act on goes to `asked`."""
        while not self.heard_end:
            try:
                packet = self.connection.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                packet = b""
            if not packet:
                self.heard_end = True
                break
            try:
                self._heard(orjson.loads(packet))
            except (ValueError, TypeError, KeyError):  # garbage behind a good hello
                self.sequence.damaged += 1
                self.heard_end = True
                break

    def _heard(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise TypeError("a packet is an object")
        if "sinks" in message:
            self.asked.append([str(url) for url in message["sinks"]])
        if "flush" in message:
            self.flush_to = max(self.flush_to, number(message["flush"]))
        if "dropped" in message:
            self.reported_dropped = number(message["dropped"])
        if "torn" in message:
            self.sequence.torn.add(number(message["torn"]))
        if "bye" in message:
            self.goodbye = True
            self._last_seq = number(message["bye"])
        if "segment" in message:
            self.add_segment(message)

    def add_segment(self, message: dict[str, Any]) -> None:
        """Take in what the worker said of a spool segment.

        With a `last` it is complete; without, lines are still being added, and they are
        read as they come. One that is missing was taken in and removed already.
        """
        path = str(message["segment"])
        last = number(message["last"]) if "last" in message else None
        for known in self.taken:
            if known.path == path:
                known.last = last
                return
        try:
            if not self.owns(path):
                raise OSError("not a segment of this worker")
            descriptor = open_segment(path)
        except OSError:
            if last is not None:
                self.sequence.forgive(number(message["first"]), last)
            return
        segment = Segment(descriptor, path, last)
        self.segments.append(segment)
        self.taken.append(segment)

    def owns(self, path: str) -> bool:
        """Whether a path is that of a segment of this worker's, by its name."""
        folder, name = os.path.split(path)
        return name.startswith(f"{self.stream}-") and folder in self._spool_dirs

    def add_kept(self, descriptor: int) -> None:
        """Take in what the worker kept because it was not acknowledged.

        Raises:
            ValueError: It is not a file that can be read without waiting.
        """
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("kept records must come in a plain file")
        segment = Segment(descriptor, "", 0)
        self.segments.append(segment)
        self.taken.append(segment)

    def oldest_key(self) -> bytes:
        """The sort key of the oldest line in the segments; empty when there is none."""
        keys = [segment.first_key() for segment in self.segments]
        return min(filter(None, keys), default=b"")

    def take_suspects(self) -> list[bytes]:
        """Lines from segments since the last call: they may be written already."""
        suspects, self._suspects = self._suspects, []
        return suspects

    def statistics(self) -> dict[str, Any]:
        """Counters for status and metrics."""
        return {
            "worker": self.name,
            "pid": self.pid,
            "peer": self.peer,
            "process": self.process,
            "bytes": self.bytes_read,
            "last_seq": self.sequence.expected - 1,
            "acknowledged": self.safe,
            "attached": (clock_gettime_ns(CLOCK_MONOTONIC) - self.attached_at) / 1e9,
            **self.losses(),
        }

    def claim_orphans(self, identifier: str) -> bool:
        """The process is gone: take the segments that it left behind on disk, once."""
        if self.gone:
            return False
        self.gone = True
        known = {segment.path for segment in self.taken}
        still_open = [each for each in self.segments if each.last is None]
        for segment in still_open:
            segment.last = 0  # nobody writes to it any more: what is there is all
        claimed = False
        for path in orphans(identifier):
            name = os.path.basename(path)
            if path not in known and name.startswith(self.stream + "-"):
                self.add_segment({"segment": path, "first": 0, "last": 0})
                claimed = True
        return claimed or bool(still_open)

    def losses(self) -> dict[str, int]:
        """The counters of what went wrong."""
        sequence = self.sequence
        # A dropped record leaves a hole in the seqs too; it is counted once.
        explained = self.reported_dropped - self.settled_drops
        return {
            "records": sequence.admitted,
            "lost": max(sequence.lost - explained, 0),
            "dropped": self.reported_dropped,
            "damaged": sequence.damaged,
            "duplicates": sequence.duplicates,
        }

    def depart(self) -> None:
        """Let go of the pipe; records that are not safe yet still are our business.

        What it said it had logged and is not here will not come any more.
        """
        if self.sequence.expected <= self._last_seq:
            self.sequence.skip_to(self._last_seq + 1)
            self.marks.append((b"", self._last_seq))
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    @property
    def finished(self) -> bool:
        """Whether a departed worker's records are all safe."""
        return self.safe >= self.sequence.expected - 1

    def tell(self, message: dict[str, Any]) -> bool:
        """Say something to the worker; False when it cannot hear now."""
        try:
            self.connection.send(orjson.dumps(message))
        except OSError:
            return False
        return True

    def mark(self, lines: list[bytes]) -> None:
        """Note where the sequence stands after these lines."""
        self.marks.append((lines[-1][:KEY_END], self.sequence.expected - 1))

    def released(self, horizon: bytes) -> int:
        """The seq up to which the merger has released; 0 when there is no news."""
        return released(self.marks, horizon)

    def acknowledge(self, seq: int) -> None:
        """All records up to a seq are safe: remove their segments, note it to tell."""
        self.safe = max(self.safe, seq)
        self.remove_safe()

    def remove_safe(self) -> None:
        """Remove the segments that were read to their end and are safe."""
        if not self.taken:
            return
        done = [
            each
            for each in self.taken
            if each.last is not None and each.last <= self.safe and each.descriptor < 0
        ]
        for segment in done:
            self.taken.remove(segment)
            if segment.path:
                if failpoints.ACTIVE:
                    failpoints.hit("unlink")
                try:
                    os.unlink(segment.path)
                except OSError:
                    pass

    def tell_safe(self, now_ns: int) -> None:
        """Tell the worker what is safe: at once when it waits, else now and then."""
        self.remove_safe()
        if self.flush_to and self.safe >= self.flush_to:
            told = self.tell({"ack": self.safe, "flushed": self.flush_to})
            if told:
                self.flush_to = 0
                self._told = self.safe
        elif self.safe > self._told and now_ns - self._told_at > ACK_INTERVAL_NS:
            if self.tell({"ack": self.safe}):
                self._told = self.safe
            self._told_at = now_ns

    def close(self) -> None:
        """Let go of all descriptors."""
        for segment in self.segments:
            segment.close()
        self.segments.clear()
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
        self.connection.close()


def released(marks: list[tuple[bytes, int]], horizon: bytes) -> int:
    """Take the marks whose keys sort before the horizon; the number of the last, or 0."""
    number = 0
    count = 0
    for key, marked in marks:
        if key >= horizon:
            break
        number = marked
        count += 1
    del marks[:count]
    return number


def stamped_line(
    now_ns: int, level: str, worker: str, seq: int, fields: dict[str, Any]
) -> bytes:
    """A wire line of the consumer's own making."""
    return b"%b%d,%b" % (
        wire.sort_key(now_ns)[:-1] + wire.head(level, worker),
        seq,
        orjson.dumps(fields)[1:-1],
    )
