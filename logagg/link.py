"""The way from a worker to the consumer: what carries finished lines, whatever happens.

Theory of operation
-------------------
A `Link` owns

- a pipe. Lines are written into it; the consumer holds the read end, and so does the
  link: if the consumer dies, the pipe and what is in it are handed to the next one;
- a control connection: hello, acknowledgements, flush;
- the lines that are not acknowledged yet (`_kept`, `_older`), for the same case: they
  are handed over too, and the consumer drops what it has already;
- while the pipe cannot take a line within its bound, a parking on disk.

Order: lines go either to the pipe (`_direct`) or to the parking, never to both; the
consumer, by the seqs, reads each segment at its place. A line that went into the pipe
in part is completed, or closed by a newline and reported as torn, and then stands in
the parking as a whole.

What can be lost: nothing while the disk takes what the pipe does not; else a line is
dropped, counted in `drops` (the consumer is told), and the user is told on stderr.
When nobody can be reached, what is kept goes to disk too: from then on nothing depends
on this process.

Bounds: OVERFLOW_TIMEOUT for room in the pipe (policy "spool"), ATTACH_TIMEOUT to find a
consumer, KEEP_BYTES (and what 0.2 s bring) of memory.

Not safe by itself for threads, signals or forks: `logagg.attach` guards every call.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

from logagg import failpoints, launch
from logagg.address import identifier_of
from logagg.channel import Control, Pipe, standard_streams
from logagg.clock import measure_offset
from logagg.drops import Drops
from logagg.kept import Kept
from logagg.spool import Parking

__all__ = ["KEEP_BYTES", "LOOK_NS", "Link", "Overflow"]

PROTOCOL = 1
LOOK_NS = 200_000_000
RESUME_NS = 20_000_000
ATTACH_TIMEOUT = 0.5
ATTACH_TRIES = 3
OVERFLOW_TIMEOUT = 0.1
KEEP_BYTES = 16 * 1024 * 1024
RETRY_NS = 500_000_000
MAX_RETRY_NS = 2_000_000_000
COMPLAIN_NS = 10_000_000_000
_SECOND = 1_000_000_000


class Overflow(StrEnum):
    """What a log call does when the pipe is full.

    `SPOOL` waits 0.1 s at most, then parks records in a private file that the consumer
    reads in order. `BLOCK` waits until there is room. `DROP_NEW` does not wait; the
    record is dropped, counted, and the count is told in the stream.
    """

    SPOOL = "spool"
    BLOCK = "block"
    DROP_NEW = "drop_new"


class Link:
    """One process's way to one consumer. See the head of the module.

    Attributes:
        path: The consumer's socket.
        overflow: What happens to a line when the pipe is full.
        worker: The name in its lines: the slot, or the pid.
        seq: The seq of the newest line.
        drops: What could be neither sent nor parked.
    """

    def __init__(self, path: str, sinks: list[str], *, elect: bool) -> None:
        self.path = path
        self._identifier = identifier_of(path)  # now: the directory may go away
        self.overflow = Overflow.SPOOL
        self._elect = elect
        self._sinks = list(sinks)
        self._pipe: Pipe | None = None
        self._control: Control | None = None
        self._reset()

    def _reset(self) -> None:
        """Begin anew: at the start, after close, in a forked child."""
        pid = self._pid = os.getpid()
        self.worker = _worker_name(pid)
        self.seq = 0
        self.drops = Drops()
        self._stream = f"{pid}-{clock_gettime_ns(CLOCK_MONOTONIC):x}"
        self._offset = 0
        self._switch: tuple[int, int] | None = None  # from when on, which offset
        self._complain_at = 0
        self._complaint = ""
        self._write = -1  # the pipe's write end while lines go there
        self._direct = False
        self._torn = 0  # the seq of a line that the pipe ends in a part of
        self._closed: list[int] = []  # those whose part may still stand in the pipe
        self._look_at = 0
        self._retry_at = 0
        self._failures = 0
        self._hopeless = False  # nobody was there at the last try, and none would start
        self._acknowledged = 0
        self._flushed = 0
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._older = Kept()
        self._handed = 0  # how often all that is kept has gone elsewhere
        self._parking: Parking | None = None

    # ---- when the pipe does not take a line ---------------------------------------

    def _full(self, line: bytes, done: int) -> None:
        """Finish a line of which the pipe took `done` bytes, or put it elsewhere.

        The line is in `_kept`.
        """
        assert self._pipe is not None
        if self.overflow is Overflow.DROP_NEW and not done:
            self._unkeep(line)
            self._drop("the pipe is full")
            return
        handed = self._handed
        patience = None if self.overflow is Overflow.BLOCK else OVERFLOW_TIMEOUT
        done = self._pipe.push(line, done, patience, self._look_while_full)
        if done == len(line):
            return
        if done:
            self._torn = self.seq
            if failpoints.ACTIVE:
                failpoints.hit("torn")
        self._leave_pipe()
        if self._handed == handed:  # else it went over with all that is kept
            self._unkeep(line)
            self._park(line)

    def _look_while_full(self) -> bool:
        self._look(clock_gettime_ns(CLOCK_MONOTONIC))
        return self._control is not None

    def _leave_pipe(self) -> None:
        self._direct = False
        self._retry_at = clock_gettime_ns(CLOCK_MONOTONIC) + RESUME_NS

    def _unkeep(self, line: bytes) -> None:
        if not self._kept:  # a look while waiting has sealed it
            self._kept = self._older.unseal()
            self._kept_bytes = sum(map(len, self._kept))
        self._kept.pop()
        self._kept_bytes -= len(line)

    def _park(self, line: bytes) -> None:
        """Put a line into the spool; from now on lines go there."""
        if self.overflow is Overflow.DROP_NEW:
            self._drop("no consumer takes records")
            return
        self._direct = False
        try:
            if failpoints.ACTIVE:
                failpoints.hit("park")
            parking = self._parked()
            begun = not parking.is_open
            parking.append(line, self.seq)
            if begun:
                self._tell_segments(parking)
        except (OSError, ValueError) as error:
            self._drop(f"cannot spool: {error}")

    def _parked(self) -> Parking:
        if self._parking is None:
            self._parking = Parking(self._identifier, self._stream)
        return self._parking

    def _drop(self, why: str) -> None:
        self.drops.add(self.seq)
        self._complain(f"{self.drops.count} records dropped so far: {why}")

    def _tell_drops(self, control: Control) -> None:
        count = self.drops.count
        if count != self.drops.told and control.tell({"dropped": count}):
            self.drops.told = count

    def _complain(self, text: str) -> None:
        """Tell the user on stderr, the last resort, at most once in 10 seconds."""
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if now < self._complain_at:
            return
        self._complain_at = now + COMPLAIN_NS
        try:
            os.write(2, f"logagg: {text}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            pass

    # ---- the connection -----------------------------------------------------------

    def _look(self, now: int) -> None:
        """Read what the consumer said; notice that it is gone; keep memory bounded."""
        self._look_at = now + LOOK_NS
        if self._control is None:
            if now >= self._retry_at and not self._is_parking():
                self._attach()
            return
        self._seal()
        if not self._hear():
            self._lost()
            return
        self._tell_drops(self._control)
        if self._older.size_bytes > KEEP_BYTES and self._direct:
            self._await_acknowledgement()

    def _follow_switch(self) -> int:
        """Change the clock's offset when it is time to; return the monotonic clock."""
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if self._switch is not None:
            if now >= self._switch[0]:
                self._offset, self._switch = self._switch[1], None
            else:
                self._look_at = min(self._look_at, self._switch[0])
        return now

    def _is_parking(self) -> bool:
        return self._parking is not None and self._parking.is_open

    def _seal(self) -> None:
        if self._kept:
            self._older.seal(self._kept, self._kept_bytes, self.seq)
            self._kept = []
            self._kept_bytes = 0

    def _await_acknowledgement(self) -> None:
        """Too much is unacknowledged: wait a little, then leave the pipe."""
        deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(OVERFLOW_TIMEOUT * _SECOND)
        while self._older.size_bytes > KEEP_BYTES // 2 and self._control is not None:
            now = clock_gettime_ns(CLOCK_MONOTONIC)
            if now >= deadline and self.overflow is not Overflow.BLOCK:
                self._leave_pipe()
                return
            self._control.wait(min((deadline - now) / _SECOND, 0.1))
            if not self._hear():
                self._lost()
                return

    def _hear(self) -> bool:
        """Take all that the consumer has said; False when it is gone."""
        assert self._control is not None
        messages, present = self._control.hear()
        for message in messages:
            self._heard(message)
        return present

    def _heard(self, message: dict[str, Any]) -> None:
        if "ack" in message:
            self._acknowledged = message["ack"]
            self._failures = 0  # it not only came up, it did its work
            self._older.acknowledge(self._acknowledged)
            self.drops.acknowledge(self._acknowledged)
            self._closed = [seq for seq in self._closed if seq > self._acknowledged]
            if self._parking is not None:
                self._parking.acknowledge(self._acknowledged)
        if "told" in message:
            self.drops.shown = message["told"]
        if "flushed" in message:
            self._flushed = message["flushed"]
        if "switch" in message:
            self._switch = tuple(message["switch"])
        if "error" in message and message["error"] != self._complaint:
            self._complaint = message["error"]
            self._complain_at = 0
            self._complain(self._complaint)

    def _attach(self) -> None:
        """Connect, hand over the pipe and what is not acknowledged, go direct."""
        try:
            if self._pipe is None:
                self._pipe = Pipe()
            offset = self._connect(self._pipe)
        except Exception as error:  # noqa: BLE001 - at its end an interpreter lacks much
            self._fail(error)
            return
        self._offset, self._switch = offset or (measure_offset(), None)
        self._follow_switch()
        self._hopeless = False
        self._write = self._pipe.write
        self._direct = not self._is_parking() and not self._torn

    def _connect(self, pipe: Pipe) -> launch.Offsets | None:
        """Find the consumer, or start it, and say hello; a few tries for a bad moment.

        Raises:
            OSError, ConfigError: There is none, or it hangs up each time.
        """
        for _ in range(ATTACH_TRIES):
            if self._elect:
                connection = launch.ensure(self.path, ATTACH_TIMEOUT)
            else:
                connection = launch.connect(self.path)
            self._control = Control(connection)
            offset = launch.read_offset(self.path)
            if failpoints.ACTIVE:
                failpoints.hit("hello")
            if self._introduce(self._control, pipe):
                return offset
            self._control.close()
        raise ConnectionError("the consumer hangs up")

    def _introduce(self, control: Control, pipe: Pipe) -> bool:
        """Say hello. The descriptors are read end, stdout, stderr, kept records."""
        process = sys.modules.get("multiprocessing.process")
        self._seal()
        kept = self._older.file()
        segments = []
        if self._parking is not None:
            segments = self._parking.announcements(again=True)
        supervised = self.worker == os.environ.get("LOGAGG_SLOT")
        hello = {
            "hello": PROTOCOL,
            "kind": "records",
            "pid": os.getpid(),
            "process": process.current_process().name if process else "MainProcess",
            "worker": self.worker,
            "supervised": supervised,
            "stream": self._stream,
            "sinks": self._sinks,
            "acknowledged": self._acknowledged,
            "dropped": self.drops.count,
            "settled": self.drops.settled(self._acknowledged),
            "told": self.drops.shown,
            "torn": [*self._closed, *([self._torn] if self._torn else [])],
            "again": self._handed > 0,
            "segments": segments,
        }
        descriptors = [pipe.read, *standard_streams(captured=supervised)]
        if kept is not None:
            descriptors.append(kept)
        try:
            done = control.tell(hello, descriptors)
        finally:
            if kept is not None:
                os.close(kept)
        if done:
            self._handed += 1
            self.drops.told = self.drops.count
            for each in segments:
                self._parked().told(each["segment"])
        return done

    def _fail(self, error: Exception) -> None:
        """Nobody could be reached: park records, try again later, ever more seldom."""
        if not self._offset:
            self._offset = measure_offset()
        self._hang_up()
        self._back_off()
        self._hopeless = True
        self._complain(f"no consumer at {self.path}, records are spooled: {error}")

    def _lost(self) -> None:
        """The consumer is gone: attach to the next one, which gets all that is kept."""
        self._hang_up()
        self._failures += 1
        if self._failures > 2:  # it dies as fast as it is started
            self._back_off()
            self._complain(f"the consumer keeps ending: {self._last_words()}")
        else:
            self._attach()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        self._direct = False

    def _back_off(self) -> None:
        """Wait before the next try; meanwhile nothing may depend on this process.

        What is kept goes to disk, and with it what stands in the pipe: it is among what
        is kept, and nobody but this process holds the pipe now.
        """
        wait = min(RETRY_NS << min(self._failures, 6), MAX_RETRY_NS)
        self._failures += 1
        self._retry_at = clock_gettime_ns(CLOCK_MONOTONIC) + wait
        self._spill()

    def _spill(self, *, at_end: bool = False) -> None:
        self._seal()
        lines = self._older.lines()
        if not lines or (self.overflow is Overflow.DROP_NEW and not at_end):
            return
        try:
            self._parked().spill(lines)
        except (OSError, ValueError):
            return  # it stays in memory
        self._older = Kept()
        self._handed += 1

    def _last_words(self) -> str:
        words = ""
        try:
            with open(self.path + ".err", "rb") as file:
                words = file.read()[-2000:].decode("utf-8", "replace").strip()
        except (OSError, NameError):
            pass
        return words.rpartition("\n")[2] or "it says nothing"

    def _resumed(self) -> bool:
        """Try to go back to the pipe; True when lines go there again."""
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if now < self._retry_at:
            return False
        self._retry_at = now + RESUME_NS
        if self._control is None:
            self._attach()
        elif not self._hear():
            self._lost()
        if self._control is None or self._pipe is None:
            return False
        if self._older.size_bytes > KEEP_BYTES or not self._pipe.has_room():
            return False
        if self._torn and not self._close_torn(self._pipe):
            return False
        self._direct = self._parking is None or self._told_all(self._parking)
        return self._direct

    def _close_torn(self, pipe: Pipe) -> bool:
        """End a line that the pipe holds a part of; tell the consumer to drop it."""
        assert self._control is not None
        if not self._control.tell({"torn": self._torn}):
            return False
        try:
            os.write(pipe.write, b"\n")
        except BlockingIOError:
            return False
        # Whoever was told may die before it reads that far: the next one must know.
        self._closed.append(self._torn)
        self._torn = 0
        return True

    def _told_all(self, parking: Parking) -> bool:
        """Complete the segment and tell of it; False when the consumer cannot hear."""
        parking.end()
        return self._tell_segments(parking)

    def _tell_segments(self, parking: Parking) -> bool:
        """Tell the consumer of segments; it reads an open one as it grows."""
        if self._control is None:
            return False
        for each in parking.announcements(again=False):
            if not self._control.tell(each):
                return False
            parking.told(each["segment"])
        return True

    # ---- the end ------------------------------------------------------------------

    def _is_all_parked(self) -> bool:
        return not self._kept and not self._older.size_bytes

    def _let_go(self, done: bool) -> None:
        if self._control is not None:
            self._control.tell({"bye": self.seq, "dropped": self.drops.count})
        elif not done:
            self._spill(at_end=True)
        if self._parking is not None:
            self._parking.end()
        if not done:
            self._complain_at = 0
            self._complain(
                f"closed before all {self.seq} records were confirmed: "
                f"{self.drops.count} were dropped, the rest is with the consumer or in "
                "the spool"
            )
        self._release()

    def _release(self) -> None:
        self._hang_up()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()


def _worker_name(pid: int) -> str:
    """The slot that the supervisor gave, or the pid; `SLOT.PID` in a slot's children."""
    slot = os.environ.get("LOGAGG_SLOT", "")
    if not slot.isalnum() or not slot.isascii():
        return str(pid)
    owner = os.environ.get("LOGAGG_SLOT_PID", "")
    return slot if owner in ("", str(pid)) else f"{slot}.{pid}"
