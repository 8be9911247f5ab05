"""A worker's side of the connection: the pipe, the control connection, the spool.

Theory of operation
-------------------
An `Attachment` is a process's one line to one consumer, shared by all handlers with
the same address. It is made lazily, on the first record. It owns

- a pipe. It writes lines into it; the consumer holds the read end, and so does it: if
  the consumer dies, the pipe and what is in it are handed to the next one;
- a control connection: hello, acknowledgements, flush;
- the records that are not acknowledged yet (`_kept`), for the same case: they are
  handed over too, and the consumer drops what it has already;
- while the pipe cannot take a record within its bound, a spool segment.

No thread is started. The state of the connection is looked at when a record comes and
LOOK_NS have passed since the last look, when the pipe is full, on flush and on close.

Order: seq counts the records of the attachment. Lines go either to the pipe or to the
segment, never to both; the consumer, by the seqs, reads a segment at its place. A line
that went into the pipe in part is completed, or closed by a newline and reported as
torn, and then stands in the segment as a whole.

Re-entry: a signal handler or `__del__` that logs in the middle of a write of the same
thread finds `_busy` set; its record is queued and written when the outer one is done.

Fork: the child closes what it inherited and begins anew, with a new seq; the parent's
records are the parent's. Everything mutable is guarded by `lock`, which the child
replaces: no lock is shared between processes and a lock held by another thread of the
parent does not matter.

Bounds: a call waits OVERFLOW_TIMEOUT at most for room (policy "spool"), and
ATTACH_TIMEOUT at most when a consumer must be found. Kept records take KEEP_BYTES.
"""

from __future__ import annotations

import atexit
import os
from enum import StrEnum
from threading import RLock
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import TYPE_CHECKING, Any

from logagg import wire
from logagg.address import identifier_of
from logagg.kept import Ended, Kept

if TYPE_CHECKING:
    import socket

    from logagg.spool import Segment

__all__ = ["Attachment", "Overflow", "attachment"]

PROTOCOL = 1
LOOK_NS = 200_000_000
ATTACH_TIMEOUT = 0.5
OVERFLOW_TIMEOUT = 0.1
KEEP_BYTES = 16 * 1024 * 1024
CLOSE_TIMEOUT = 5.0
RETRY_NS = 500_000_000
COMPLAIN_NS = 10_000_000_000
_PIPE_SIZES = (1 << 20, 1 << 18, 1 << 16)
_F_SETPIPE_SZ = 1031
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


class Attachment:
    """One process's line to one consumer. See the head of the module.

    Attributes:
        lock: Guards everything; re-entrant.
        seq: The seq of the newest record.
        dropped: Records that could be neither sent nor parked.
        second: The second of the newest record's stamp.
        recent: By thread, which LogRecord it sent last.
    """

    def __init__(self, path: str, sinks: list[str], *, elect: bool) -> None:
        self.lock = RLock()
        self.path = path
        self.users = 0
        self.overflow = Overflow.SPOOL
        self._elect = elect
        self._sinks = list(sinks)
        self._reset()

    def _reset(self) -> None:
        """Begin anew: at the start, and in a forked child."""
        pid = os.getpid()
        self.worker = _worker_name(pid)
        self._stream = f"{pid}-{clock_gettime_ns(CLOCK_MONOTONIC):x}"
        self._heads: dict[str, bytes] = {}
        self.seq = 0
        self.dropped = 0
        self._told_dropped = 0
        self._complain_at = 0
        self._offset = 0
        self._last = 0
        self.second = -1
        self._start = b""
        self._busy = False
        self._queued: list[tuple[str, bytes]] = []
        self._direct = False  # lines go to the pipe
        self._socket: socket.socket | None = None
        self._read = self._write = -1
        self._torn = 0  # the seq of a line that the pipe ends in a part of
        self._look_at = 0
        self._retry_at = 0
        self._failures = 0
        self._acknowledged = 0
        self._flushed = 0
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._older = Kept()
        self._handed = 0  # how often all that is kept has gone elsewhere
        self._segment: Segment | None = None
        self._ended: list[Ended] = []
        self._refused = ""
        self.recent: dict[int | None, tuple[int, float]] = {}

    # ---- the hot path -------------------------------------------------------------

    def send(self, level: str, body: bytes) -> None:
        """Give a record to the kernel: into the pipe, or parked on disk.

        When it returns, the record survives the end of this process; or it was dropped
        and counted. Does not raise for anything the consumer or the disk does.

        Args:
            level: The level's name, lower case.
            body: The fields behind `seq`, as `logagg.encode.body` makes them.
        """
        with self.lock:
            if self._busy:
                self._queued.append((level, body))
                return
            self._busy = True
            try:
                self._send(level, body)
            finally:
                self._busy = False
                if self._queued:
                    self._send_queued()

    def _send(self, level: str, body: bytes) -> None:
        monotonic = clock_gettime_ns(CLOCK_MONOTONIC)
        if monotonic > self._look_at:
            self._look(monotonic)
            monotonic = clock_gettime_ns(CLOCK_MONOTONIC)
        now = monotonic + self._offset
        if now <= self._last:
            now = self._last + 1
        self._last = now
        second = now // _SECOND
        if second != self.second:
            self.second = second
            self._start = wire.line_start(second)
        head = self._heads.get(level)
        if head is None:
            head = self._head(level)
        self.seq = seq = self.seq + 1
        line = b"%b%09d%b%d,%b\n" % (
            self._start, now - second * _SECOND, head, seq, body,
        )  # fmt: skip
        if not self._direct:
            self._indirect(line)
            return
        size = len(line)
        self._kept.append(line)
        self._kept_bytes += size
        try:
            done = os.write(self._write, line)
        except BlockingIOError:
            done = 0
        if done != size:
            self._full(line, done)
        elif self._kept_bytes > KEEP_BYTES // 4:
            self._look(monotonic)

    def _head(self, level: str) -> bytes:
        safe = "".join(c if c.isprintable() and c not in '"\\' else "_" for c in level)
        safe = safe[:32].encode("utf-8", "replace").decode()
        head = wire.head(safe or "notset", self.worker)
        if len(self._heads) < 1000:
            self._heads[level] = head
        return head

    def _send_queued(self) -> None:
        """Write what was logged in the middle of a write, after it."""
        while self._queued:
            self._busy = True
            try:
                level, body = self._queued.pop(0)
                self._send(level, body)
            finally:
                self._busy = False

    # ---- when the pipe does not take a line -----------------------------------------

    def _full(self, line: bytes, done: int) -> None:
        """Finish a line of which the pipe took `done` bytes, or put it elsewhere.

        The line is in `_kept`.
        """
        if self.overflow is Overflow.DROP_NEW and not done:
            self._unkeep(line)
            self._drop("the pipe is full")
            return
        handed = self._handed
        patience = None if self.overflow is Overflow.BLOCK else OVERFLOW_TIMEOUT
        done = self._push(line, done, patience)
        if done == len(line):
            return
        if done:
            self._torn = self.seq
        self._direct = False
        self._retry_at = clock_gettime_ns(CLOCK_MONOTONIC) + LOOK_NS // 10
        if self._handed == handed:  # else it went over with all that is kept
            self._unkeep(line)
            self._park(line)

    def _unkeep(self, line: bytes) -> None:
        if not self._kept:  # a look while waiting has sealed it
            self._kept = self._older.unseal()
            self._kept_bytes = sum(map(len, self._kept))
        self._kept.pop()
        self._kept_bytes -= len(line)

    def _push(self, line: bytes, done: int, patience: float | None) -> int:
        """Write the rest of a line, waiting for room; return how much is written."""
        import select

        poll = select.poll()
        poll.register(self._write, select.POLLOUT)
        deadline = None
        if patience is not None:
            deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(patience * _SECOND)
        while done < len(line):
            now = clock_gettime_ns(CLOCK_MONOTONIC)
            wait = LOOK_NS if deadline is None else min(deadline - now, LOOK_NS)
            if wait <= 0:
                break
            if not poll.poll(wait / 1e6):
                self._look(now)
                if self._socket is None:
                    break
                continue
            try:
                done += os.write(self._write, line[done:])
            except BlockingIOError:
                # poll says there is room for a page; a whole small line needs more.
                poll.poll(1)
        return done

    def _indirect(self, line: bytes) -> None:
        """Send or park a line while lines do not go straight to the pipe."""
        if clock_gettime_ns(CLOCK_MONOTONIC) >= self._retry_at:
            self._resume()
            if self._direct:
                self._kept.append(line)
                self._kept_bytes += len(line)
                try:
                    done = os.write(self._write, line)
                except BlockingIOError:
                    done = 0
                if done != len(line):
                    self._full(line, done)
                return
        if self.overflow is Overflow.DROP_NEW:
            self._drop("no consumer takes records")
            return
        self._park(line)

    def _park(self, line: bytes) -> None:
        """Append a line to the spool; from now on lines go there."""
        from logagg import spool

        self._direct = False
        try:
            if self._segment is None:
                name = identifier_of(self.path)
                self._segment = spool.Segment(name, self._stream, self.seq)
                self._retry_at = clock_gettime_ns(CLOCK_MONOTONIC) + LOOK_NS // 10
            parked = sum(each.size_bytes for each in self._ended)
            if parked + self._segment.size_bytes + len(line) > spool.CAP_BYTES:
                self._drop(f"the spool {self._segment.path} is at its cap")
                return
            self._segment.append(line, self.seq)
        except (OSError, ValueError) as error:
            self._drop(f"cannot spool: {error}")

    def _end_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.end()
            if segment.last >= segment.first:
                self._ended.append(
                    Ended(segment.path, segment.first, segment.last, segment.size_bytes)
                )

    def _drop(self, why: str) -> None:
        self.dropped += 1
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_NS
            self._complain(f"{self.dropped} records dropped so far: {why}")

    def _complain(self, text: str) -> None:
        """Tell the user on stderr, as the last resort."""
        try:
            os.write(2, f"logagg: {text} (consumer {self.path})\n".encode())
        except OSError:
            pass

    # ---- the connection ---------------------------------------------------------------

    def _look(self, now: int) -> None:
        """Read what the consumer said; notice that it is gone; keep memory bounded."""
        self._look_at = now + LOOK_NS
        if self._socket is None:
            if now >= self._retry_at and self._segment is None:
                self._attach()
            return
        self._seal()
        if not self._hear():
            self._lost()
            return
        if self.dropped != self._told_dropped:
            self._tell({"dropped": self.dropped})
            self._told_dropped = self.dropped
        if self._older.size_bytes > KEEP_BYTES and self._direct:
            self._await_acknowledgement()

    def _seal(self) -> None:
        if self._kept:
            self._older.seal(self._kept, self._kept_bytes, self.seq)
            self._kept = []
            self._kept_bytes = 0

    def _await_acknowledgement(self) -> None:
        """Too much is unacknowledged: wait a little, then let records go to the spool."""
        deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(OVERFLOW_TIMEOUT * _SECOND)
        while self._older.size_bytes > KEEP_BYTES // 2:
            now = clock_gettime_ns(CLOCK_MONOTONIC)
            if now >= deadline and self.overflow is not Overflow.BLOCK:
                self._direct = False
                self._retry_at = now + LOOK_NS // 10
                return
            if not self._wait_heard(min((deadline - now) / _SECOND, 0.1)):
                self._lost()
                return

    def _wait_heard(self, timeout: float) -> bool:
        import select

        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll(max(timeout, 0.001) * 1000)
        return self._hear()

    def _hear(self) -> bool:
        """Take all that the consumer has said; False when it is gone."""
        import orjson

        assert self._socket is not None
        while True:
            try:
                packet = self._socket.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not packet:
                return False
            try:
                message = orjson.loads(packet)
            except orjson.JSONDecodeError:
                continue
            if isinstance(message, dict):
                self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        if "ack" in message:
            self._acknowledged = message["ack"]
            self._older.acknowledge(self._acknowledged)
            while self._ended and self._ended[0].last <= self._acknowledged:
                self._ended.pop(0)
        if "flushed" in message:
            self._flushed = message["flushed"]
        if "welcome" in message:
            self._failures = 0
        if "error" in message:
            text = str(message["error"])
            if text != self._refused:
                self._refused = text
                self._complain(text)

    def _tell(
        self, message: dict[str, Any], descriptors: list[int] | None = None
    ) -> bool:
        import socket

        import orjson

        if self._socket is None:
            return False
        packet = orjson.dumps(message)
        try:
            if descriptors:
                socket.send_fds(self._socket, [packet], descriptors)
            else:
                self._socket.send(packet)
        except OSError:
            return False
        return True

    def _attach(self) -> None:
        """Connect, hand over the pipe and what is not acknowledged, go direct."""
        from logagg import launch

        try:
            if self._write < 0:
                self._make_pipe()
            if self._elect:
                self._socket = launch.ensure(self.path, ATTACH_TIMEOUT)
            else:
                self._socket = launch.connect(self.path)
            offset = launch.read_offset(self.path)
            if not self._introduce():
                raise ConnectionError("the consumer hung up")
        except (OSError, ValueError, RuntimeError) as error:
            self._fail(error)
            return
        if offset is None:
            from logagg.clock import measure_offset

            offset = self._offset or measure_offset()
        self._offset = offset
        self._direct = self._segment is None

    def _make_pipe(self) -> None:
        import fcntl

        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for size in _PIPE_SIZES:
            try:
                fcntl.fcntl(self._write, _F_SETPIPE_SZ, size)
            except OSError:  # beyond what this user may have in all
                continue
            break

    def _introduce(self) -> bool:
        """Say hello. The descriptors are read end, stdout, stderr, kept records."""
        from multiprocessing.process import current_process

        self._seal()
        kept = self._older.file()
        hello = {
            "hello": PROTOCOL,
            "kind": "records",
            "pid": os.getpid(),
            "process": current_process().name,
            "worker": self.worker,
            "stream": self._stream,
            "sinks": self._sinks,
            "acknowledged": self._acknowledged,
            "dropped": self.dropped,
            "torn": self._torn,
            "again": self._handed > 0,
            "segments": [each.announcement() for each in self._ended],
        }
        descriptors = [self._read, *_standard_streams()]
        if kept is not None:
            descriptors.append(kept)
        try:
            done = self._tell(hello, descriptors)
        finally:
            if kept is not None:
                os.close(kept)
        if done:
            self._handed += 1
            self._told_dropped = self.dropped
            for each in self._ended:
                each.told = True
        return done

    def _fail(self, error: Exception) -> None:
        """Nobody could be reached: park records, try again later, ever more seldom."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._direct = False
        wait = min(RETRY_NS << min(self._failures, 6), 30 * _SECOND)
        self._failures += 1
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        self._retry_at = now + wait
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_NS
            self._complain(f"no consumer, records are spooled: {error}")
        self._spill()

    def _spill(self) -> None:
        """Put what is kept on disk, so that it survives this process too.

        What stands in the pipe is among it: nobody but this process holds the pipe.
        """
        from logagg import spool

        self._seal()
        lines = self._older.lines()
        if not lines:
            return
        last = wire.seq_of(lines[-1])
        try:
            name = identifier_of(self.path)
            segment = spool.Segment(name, self._stream, wire.seq_of(lines[0]))
            segment.append(b"".join(lines), last)
        except (OSError, ValueError):
            return  # it stays in memory
        segment.end()
        self._ended.append(
            Ended(segment.path, segment.first, segment.last, segment.size_bytes)
        )
        self._ended.sort(key=lambda each: each.first)
        self._older = Kept()
        self._handed += 1

    def _lost(self) -> None:
        """The consumer is gone: attach to the next one, which gets all that is kept."""
        assert self._socket is not None
        self._socket.close()
        self._socket = None
        self._direct = False
        self._failures += 1
        if self._failures > 2:  # it dies as fast as it is started
            wait = min(RETRY_NS << min(self._failures, 6), 30 * _SECOND)
            self._retry_at = clock_gettime_ns(CLOCK_MONOTONIC) + wait
            self._say_why()
            return
        self._attach()

    def _say_why(self) -> None:
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if now < self._complain_at:
            return
        self._complain_at = now + COMPLAIN_NS
        try:
            with open(self.path + ".err", "rb") as file:
                words = file.read()[-2000:].decode("utf-8", "replace").strip()
        except OSError:
            words = ""
        last = words.rpartition("\n")[2] or "it says nothing"
        self._complain(f"the consumer keeps ending: {last}")

    def _resume(self) -> None:
        """Leave the spool for the pipe when somebody is there and there is room."""
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        self._retry_at = now + LOOK_NS // 10
        if self._socket is None:
            self._attach()
            if self._socket is None:
                return
        elif not self._hear():
            self._lost()
            return
        if self._older.size_bytes > KEEP_BYTES or not self._has_room():
            return
        if self._torn and not self._close_torn():
            return
        self._end_segment()
        for each in self._ended:
            if not each.told:
                each.told = self._tell(each.announcement())
                if not each.told:
                    return
        self._direct = True

    def _close_torn(self) -> bool:
        """End a line that the pipe holds a part of; tell the consumer to drop it."""
        if not self._tell({"torn": self._torn}):
            return False
        try:
            os.write(self._write, b"\n")
        except BlockingIOError:
            return False
        self._torn = 0
        return True

    def _has_room(self) -> bool:
        import fcntl
        import select
        import struct
        import termios

        poll = select.poll()
        poll.register(self._write, select.POLLOUT)
        if not poll.poll(0):
            return False
        waiting = fcntl.ioctl(self._read, termios.FIONREAD, b"\0\0\0\0")
        size = fcntl.fcntl(self._write, 1032)  # F_GETPIPE_SZ
        return bool(struct.unpack("i", waiting)[0] * 2 <= size)

    def want(self, sinks: list[str]) -> None:
        """Ask for more sinks; those that it has already are left out."""
        with self.lock:
            fresh = [sink for sink in sinks if sink not in self._sinks]
            self._sinks += fresh
            if fresh:
                self._tell({"sinks": fresh})

    # ---- flush, close, fork ---------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Wait until all records logged before are with the durable sinks.

        Blocks for `timeout` seconds at most; other threads may log meanwhile.

        Returns:
            Whether they are. False: the time is over, or no consumer can be reached;
            the records are still in the pipe, in memory or on disk.
        """
        deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(timeout * _SECOND)
        with self.lock:
            if self._busy:
                return False
            target = self.seq
        if not target:
            return True
        asked = False
        while True:
            with self.lock:
                if self._busy:
                    return False
                self._busy = True
                try:
                    done, asked = self._flush_step(target, asked)
                finally:
                    self._busy = False
                    if self._queued:
                        self._send_queued()
            if done:
                return True
            left = (deadline - clock_gettime_ns(CLOCK_MONOTONIC)) / _SECOND
            if left <= 0:
                return False
            self._pause(min(left, 0.05))

    def _flush_step(self, target: int, asked: bool) -> tuple[bool, bool]:
        if not self._direct:
            if clock_gettime_ns(CLOCK_MONOTONIC) >= self._retry_at:
                self._resume()
            asked = False
        elif self._socket is not None and not self._hear():
            self._lost()
            asked = False
        if self._socket is not None and self._direct and not asked:
            asked = self._tell({"flush": target})
        return self._flushed >= target, asked

    def _pause(self, timeout: float) -> None:
        """Wait for the consumer to say something, without the lock."""
        import select

        connection = self._socket
        poll = select.poll()
        if connection is not None and connection.fileno() >= 0:
            poll.register(connection, select.POLLIN)
        poll.poll(timeout * 1000)

    def close(self, timeout: float) -> bool:
        """Flush, then let go. Returns as `flush`. May be called again, and by anyone.

        A record that comes afterwards attaches anew.
        """
        if self._write < 0 and self._segment is None:
            return True
        done = self.flush(timeout)
        with self.lock:
            if self._busy:
                return done
            self._busy = True
            try:
                self._end_segment()
                self._tell({"bye": self.seq, "dropped": self.dropped})
                if not done and not self._direct:
                    self._spill()
                self._release()
                seq, dropped = self.seq, self.dropped
            finally:
                self._reset()
        if not done:
            self._complain(
                f"closed before all of {seq} records were confirmed: {dropped} were "
                "dropped, the rest is with the consumer or in the spool"
            )
        return done

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
        for end in (self._read, self._write):
            if end >= 0:
                os.close(end)

    def forked(self) -> None:
        """In a forked child: close what is the parent's and begin anew."""
        self.lock._at_fork_reinit()  # type: ignore[attr-defined] # as logging does
        try:
            self._release()
            if self._segment is not None:
                self._segment.abandon()
        finally:
            self._reset()


def _standard_streams() -> list[int]:
    """Descriptors to pass for stdout and stderr; the null device for closed ones."""
    found = []
    for stream in (1, 2):
        try:
            os.fstat(stream)
            found.append(stream)
        except OSError:
            found.append(_null())
    return found


def _null() -> int:
    global _null_descriptor
    if _null_descriptor < 0:
        _null_descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return _null_descriptor


_null_descriptor = -1
_attachments: dict[str, Attachment] = {}


def attachment(path: str, sinks: list[str], *, elect: bool) -> Attachment:
    """The process's attachment to an address, made on the first call for it.

    Args:
        path: The socket's path.
        sinks: Sink URLs that this user of it wants.
        elect: Whether a consumer is started when nobody is there.
    """
    found = _attachments.get(path)
    if found is None:
        fresh = Attachment(path, sinks, elect=elect)
        found = _attachments.setdefault(path, fresh)
    found.want(sinks)
    found.users += 1
    return found


def _worker_name(pid: int) -> str:
    """The slot that the supervisor gave, or the pid; `SLOT.PID` in a slot's children."""
    slot = os.environ.get("LOGAGG_SLOT", "")
    if not slot.isalnum() or not slot.isascii():
        return str(pid)
    owner = os.environ.get("LOGAGG_SLOT_PID", "")
    return slot if owner in ("", str(pid)) else f"{slot}.{pid}"


def _forked() -> None:
    for each in list(_attachments.values()):
        each.forked()


def _close_all() -> None:
    for each in list(_attachments.values()):
        each.close(CLOSE_TIMEOUT)


os.register_at_fork(after_in_child=_forked)
atexit.register(_close_all)
