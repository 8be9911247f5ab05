"""A process's attachment to a consumer: from a record's body to a line on its way.

Theory of operation
-------------------
An `Attachment` is a process's one line to one consumer, shared by all handlers with
the same address. It is made lazily, on the first record. It numbers and stamps the
lines; the `Link` below carries them.

No thread is started. The state of the connection is looked at when a record comes and
LOOK_NS have passed since the last look, when the pipe is full, on flush and on close.

Re-entry: a signal handler or `__del__` that logs in the middle of a write of the same
thread finds `_busy` set; its record is queued and written when the outer one is done.

Fork: the child closes what it inherited and begins anew, with a new seq; the parent's
records are the parent's. Everything mutable is guarded by `lock`, which the child
resets: no lock is shared between processes, and a lock that another thread of the
parent held does not matter.
"""

from __future__ import annotations

import atexit
import os
from threading import RLock
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import TYPE_CHECKING

from logagg import wire
from logagg.channel import Control
from logagg.link import KEEP_BYTES, Link, Overflow

if TYPE_CHECKING:
    from logging import LogRecord
    from weakref import ref

__all__ = ["CLOSE_TIMEOUT", "Attachment", "Overflow", "attachment", "close_path"]

CLOSE_TIMEOUT = 5.0
FLUSH_RETRY_NS = 300_000_000
MAX_THREADS = 1000
_LOOK_BYTES = KEEP_BYTES // 4
_SECOND = 1_000_000_000


class _Heads(dict[str, bytes]):
    """By level, what stands in a line between the nanoseconds and the seq."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def __missing__(self, level: str) -> bytes:
        safe = "".join(c if c.isprintable() and c not in '"\\' else "_" for c in level)
        safe = safe[:32].encode("utf-8", "replace").decode()
        head = wire.head(safe or "notset", self._worker)
        if len(self) < 1000:
            self[level] = head
        return head


class Attachment(Link):
    """One process's line to one consumer. See the head of the module.

    Attributes:
        lock: Guards everything; re-entrant.
        users: How many handlers use it.
        second: The second of the newest record's stamp.
        recent: By thread, which LogRecord it sent last.
    """

    def __init__(self, path: str, sinks: list[str], *, elect: bool) -> None:
        self.lock = RLock()
        self.users = 0
        super().__init__(path, sinks, elect=elect)

    def _reset(self) -> None:
        super()._reset()
        self.second = -1
        self.recent: dict[int | None, ref[LogRecord]] = {}
        self._heads = _Heads(self.worker)
        self._second_ns = -_SECOND
        self._start = b""
        self._last = 0
        self._forking = False
        self._busy = False
        self._queued: list[tuple[str, bytes]] = []

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
                monotonic = clock_gettime_ns(CLOCK_MONOTONIC)
                if monotonic > self._look_at:
                    self._look(monotonic)
                    monotonic = self._follow_switch()
                now = monotonic + self._offset
                if now <= self._last:
                    now = self._last + 1
                self._last = now
                fraction = now - self._second_ns
                if not 0 <= fraction < _SECOND:
                    fraction = self._turn_second(now)
                self.seq = seq = self.seq + 1
                line = b"%b%09d%b%d,%b\n" % (
                    self._start, fraction, self._heads[level], seq, body,
                )  # fmt: skip
                size = len(line)
                if self._direct or self._resumed():
                    self._kept.append(line)
                    self._kept_bytes += size
                    try:
                        done = os.write(self._write, line)
                    except BlockingIOError:
                        done = 0
                    if done != size:
                        self._full(line, done)
                    elif self._kept_bytes > _LOOK_BYTES:
                        self._look(monotonic)
                else:
                    self._park(line)
            finally:
                self._busy = False
                if self._queued:
                    self._send_queued()

    def _look(self, now: int) -> None:
        """As `Link` does, behind what concerns the process itself."""
        if self._pid != os.getpid():  # a fork hook of someone's logs before ours ran
            self._begin_anew()
            self._busy = True
        if len(self.recent) > MAX_THREADS:
            self.recent.clear()
        super()._look(now)
        if self._forking:
            self._look_at = 0

    def _turn_second(self, now: int) -> int:
        """Format a new second; return the nanoseconds in it."""
        self.second = now // _SECOND
        self._second_ns = self.second * _SECOND
        self._start = wire.line_start(self.second)
        return now - self._second_ns

    def _send_queued(self) -> None:
        """Write what was logged in the middle of a write, after it."""
        while self._queued:
            level, body = self._queued.pop(0)
            self.send(level, body)

    def want(self, sinks: list[str]) -> None:
        """Ask for more sinks; those that it has already are left out."""
        with self.lock:
            fresh = [sink for sink in sinks if sink not in self._sinks]
            self._sinks += fresh
            if fresh and self._control is not None:
                self._control.tell({"sinks": fresh})

    # ---- flush, close, fork -------------------------------------------------------

    def flush(self, timeout: float) -> bool:
        """Wait until all records logged before are with the durable sinks.

        Blocks for `timeout` seconds at most; other threads may log meanwhile.

        Returns:
            Whether they are. False: the time is over, or no consumer can be reached;
            the records are still in the pipe, in memory or on disk.
        """
        deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(timeout * _SECOND)
        target = self.seq
        asked: Control | None = None
        self._retry_at = 0  # whoever waits for the consumer may as well look for it
        while self._flushed < target:
            with self.lock:
                if self._busy:
                    return False
                self._busy = True
                try:
                    asked = self._ask_flush(target, asked)
                    hopeless = self._hopeless and self._is_all_parked()
                finally:
                    self._busy = False
                    if self._queued:
                        self._send_queued()
                control = self._control
            left = (deadline - clock_gettime_ns(CLOCK_MONOTONIC)) / _SECOND
            if self._flushed >= target or left <= 0 or hopeless:
                break
            if control is not None and self._direct:
                control.wait(min(left, 0.2))
            else:
                _pause(min(left, 0.02))
        return self._flushed >= target

    def _ask_flush(self, target: int, asked: Control | None) -> Control | None:
        """One step of a flush; returns the connection on which it was asked for."""
        if not self._direct:
            self._resumed()
            soon = clock_gettime_ns(CLOCK_MONOTONIC) + FLUSH_RETRY_NS
            self._retry_at = min(self._retry_at, soon)
        elif self._control is not None and not self._hear():
            self._lost()
        control = self._control
        if control is None or not self._direct or self._flushed >= target:
            return None
        if asked is not control:
            self._tell_drops(control)  # else their holes look like losses
            if control.tell({"flush": target}):
                asked = control
        return asked

    def close(self, timeout: float) -> bool:
        """Flush, then let go. Returns as `flush`. May be called again, and by anyone.

        A record that comes afterwards attaches anew.
        """
        if self._pipe is None and self._parking is None:
            return True
        done = self.flush(timeout)
        with self.lock:
            if self._busy:
                return done
            self._busy = True
            try:
                self._let_go(done)
            finally:
                self._reset()
        return done

    def forked(self) -> None:
        """In a forked child: close what is the parent's and begin anew."""
        self.lock._at_fork_reinit()  # type: ignore[attr-defined] # as logging does
        if self._pid != os.getpid():
            self._begin_anew()

    def before_fork(self) -> None:
        """Until the fork is over, look before each record which process this is.

        Other hooks of a fork may log, in the child too, before ours have run there.
        """
        self._forking = True
        self._look_at = 0

    def after_fork(self) -> None:
        """In the parent: the fork is over."""
        self._forking = False

    def _begin_anew(self) -> None:
        try:
            self._release()
            if self._parking is not None:
                self._parking.abandon()
        finally:
            self._reset()


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


def close_path(path: str, timeout: float) -> None:
    """Flush and close the attachment of an address, if this process has one."""
    found = _attachments.get(path)
    if found is not None:
        found.close(timeout)


def _pause(seconds: float) -> None:
    import select

    select.poll().poll(seconds * 1000)


def _forked() -> None:
    for each in list(_attachments.values()):
        each.forked()


def _before_fork() -> None:
    for each in list(_attachments.values()):
        each.before_fork()


def _after_fork() -> None:
    for each in list(_attachments.values()):
        each.after_fork()


def _close_all() -> None:
    for each in list(_attachments.values()):
        each.close(CLOSE_TIMEOUT)


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_forked
)
atexit.register(_close_all)
