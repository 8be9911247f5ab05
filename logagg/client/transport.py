"""A process's transport to a consumer: from a record's body to a line on its way.

Theory of operation
-------------------
All handlers of a process that have the same address share one `Transport`. It numbers
and stamps the lines and writes them into the pipe; its `LineDelivery` does the rest.

No thread is started. The connection is checked when a record comes and CHECK_NS have
passed since the last check, when the pipe is full, on flush and on close.

Re-entry: a signal handler or `__del__` that logs in the middle of a call of the same
thread finds `_busy` set; its record is queued and written by that call, in a loop.

Exceptions: one that a signal handler raises (Ctrl-C) may leave any call in the middle.
The line may be in the pipe whole, in part, or not at all, so the delivery becomes
`BROKEN`, by plain stores: the next exception may come with the next call. What comes
next, a record, a flush or the close, repairs it (`_ready`).

Fork: the child begins with a new `LineDelivery` and new seqs; the parent's records are
the parent's. `latest` stands in memory that the kernel clears in a child, so each log
call finds out before it takes the lock, with or without a hook. No lock is shared
between processes, and a lock that another thread of the parent held does not matter.

The end: daemon threads stop for ever in the middle of a log call when the interpreter
ends, and then what `__del__` logs finds the lock held. From the exit handler on the
lock is an `ExitLock`, which is taken away from a thread that runs no more.
"""

from __future__ import annotations

import os
from collections import deque
from threading import RLock
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import TYPE_CHECKING, Any, TypeVar, cast

from logagg.client import closing
from logagg.client.attachment import Destination
from logagg.client.context_fields import process_fields
from logagg.client.delivery_state import CONNECTED, RELEASED, DeliveryState, Overflow
from logagg.client.lifecycle import (
    ExitLock,
    close_with_multiprocessing,
    wiped_cell,
)
from logagg.client.line_delivery import KEEP_BYTES, LineDelivery
from logagg.core.line import LevelParts, line_start
from logagg.ipc.descriptors import close_inherited

if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import LogRecord
    from weakref import ref

__all__ = ["Overflow", "Transport", "redirect"]

MAX_THREADS = 1000
MAX_AHEAD_NS = 1_000_000_000
_CHECK_BYTES = KEEP_BYTES // 4
_SECOND = 1_000_000_000
_FOREVER = 1e9
_BROKEN = DeliveryState.BROKEN  # a plain name: to find it no code runs
_CLOSED = DeliveryState.CLOSED

_Result = TypeVar("_Result")


class Transport:
    """One process's lines to one consumer. See the head of the module.

    Attributes:
        lock: Guards everything; re-entrant.
        last: The newest stamp.
        users: How many handlers use it.
        destination: The consumer's address, the sinks, the overflow policy.
        delivery: What carries the lines; another one after close and in a forked child.
        seq: The seq of the newest line.
        earliest: With `latest`, when records are made that need no further context:
            about now, and never in a process that has fields of its own.
        latest: A cell; 0 in a forked child, which is to call `renew`.
        process_fields: See `logagg.client.context_fields`; None before a record.
        recent: By thread, the LogRecord that it sent last.
    """

    __slots__ = (
        "__weakref__", "_answered", "_busy", "_has_more", "_level_parts", "_pid",
        "_queued", "_second_ns", "_sends_queued", "_start", "delivery", "destination",
        "earliest", "last", "latest", "lock", "process_fields", "recent", "seq", "users",
    )  # fmt: skip

    def __init__(self, path: str, sinks: list[str], *, elect: bool) -> None:
        self.lock: Any = RLock()
        self.users = 0
        self.destination = Destination(path, sinks, elect=elect)
        self.latest = wiped_cell()
        self._answered = 0  # the newest seq of which a `flush` has reported
        self._busy = self._sends_queued = False
        self._has_more = False  # records are queued, or a notice waits
        self._queued: deque[tuple[str, bytes]] = deque()
        self._reset(*closing.ended.pop(path, (0, 0)))

    def _reset(self, seq: int = 0, last: int = 0) -> None:
        """Begin anew: at the start, after close, in a forked child.

        Args:
            seq: After close, the newest seq: the numbering of the process goes on.
            last: As `seq`, the newest stamp.
        """
        delivery = LineDelivery(self.destination, seq)
        self._level_parts = LevelParts(delivery.worker)
        self._pid = os.getpid()
        self.recent: dict[int | None, ref[LogRecord]] = {}
        self.process_fields: dict[str, str | int] | None = None
        self.earliest = -1
        self.latest[0] = -1
        self._second_ns = -_SECOND
        self._start = b""
        self.delivery, self.seq, self.last = delivery, seq, last

    # One function on purpose, as `Handler.emit` is.
    def send(self, level: str, body: bytes) -> None:  # noqa: C901
        """Pass a record to the kernel: into the pipe, or to the spool on disk.

        When it returns, the record survives the end of this process; or it was dropped
        and counted. Does not raise for anything that the consumer or the disk does.

        Args:
            level: The level's name, lower case.
            body: The fields after `seq`, as `logagg.core.encode.body` makes them.
        """
        with self.lock:
            if self._busy:
                self._queued.append((level, body))
                self._has_more = True
                return
            self._busy = True
            queued_after = -1
            try:
                while True:
                    delivery = self.delivery
                    monotonic = clock_gettime_ns(CLOCK_MONOTONIC)
                    if monotonic > delivery.next_check:
                        monotonic = self._check(monotonic)
                        delivery = self.delivery
                    now = monotonic + delivery.offset
                    if now <= self.last:
                        now = self.last + 1
                    self.last = now
                    fraction = now - self._second_ns
                    if not 0 <= fraction < _SECOND:
                        fraction = self._turn_second(now)
                    seq = self.seq + 1
                    line = b"%b%09d%b%d,%b\n" % (
                        self._start, fraction, self._level_parts[level], seq, body,
                    )  # fmt: skip
                    size = len(line)
                    if delivery.fd >= 0:
                        resend = delivery.resend
                        resend.open_bytes = kept = resend.open_bytes + size
                        resend.open_lines.append(line)
                        self.seq = seq
                        try:
                            done = os.write(delivery.fd, line)
                        except OSError:  # no room, or the application has closed it
                            done = 0
                        if done != size:
                            delivery.overflow(line, seq, done)
                        elif kept > _CHECK_BYTES:
                            self._check(monotonic)
                        elif not self._has_more:
                            return
                    elif self._resume():
                        continue  # with a stamp of the consumer's clock
                    else:
                        delivery.spool(line, seq)
                        self.seq = seq
                    self._has_more = False
                    if delivery.state is _CLOSED:  # by a fork, as below
                        self.seq = self.delivery.newest
                    if not self._queued:
                        break
                    queued_after = self.seq
                    level, body = self._queued[0]
                    del self._queued[0]
                    self._has_more = True  # perhaps: more than one may be queued
            except BaseException as error:
                if delivery.state is _CLOSED and isinstance(error, Exception):
                    return  # a fork in a signal handler: the line is the parent's
                broken = self.delivery
                broken.fd = -1
                broken.next_check = 0
                if broken.state is not _CLOSED:
                    broken.state = _BROKEN
                if max(self.seq, broken.newest) == queued_after:
                    self._queued.appendleft((level, body))
                self._busy = False
                self._send_queued()  # unless that is who called
                raise
            finally:
                self._busy = False
        self.delivery.notices.write()

    def _check(self, now: int) -> int:
        """Check process and connection; returns the monotonic clock afterwards."""
        delivery = self._ready()
        if len(self.recent) > MAX_THREADS:
            self.recent.clear()
        if delivery.state is DeliveryState.DETACHED:
            closing.in_use[self.destination.path] = self
        if closing.leaving:
            closing.close_leaving()
        delivery.check(now)
        self._has_more |= bool(delivery.notices.waiting)
        now = delivery.follow_clock()
        if self.last > now + delivery.offset + MAX_AHEAD_NS:
            self.last = 0  # a new consumer has followed the wall clock's step back
            delivery.end_ascent()
        return now

    def _resume(self) -> bool:
        """Try to return to the pipe; True also when the clock is another one now."""
        delivery, offset = self.delivery, self.delivery.offset
        resumed = delivery.resume()
        self._has_more |= bool(delivery.notices.waiting)
        return resumed or delivery.offset != offset

    def _ready(self) -> LineDelivery:
        """The delivery: another one after close, and whole after an exception."""
        self.renew()
        close_with_multiprocessing(closing.close_all)
        if self.delivery.state is _CLOSED:
            self._reset(self.seq, self.last)
        elif self.delivery.state is _BROKEN:
            closing.in_use[self.destination.path] = self
            self.delivery.start_over()
            self.seq = max(self.seq, self.delivery.newest)
        return self.delivery

    def _turn_second(self, now: int) -> int:
        """Format a new second; return the nanoseconds in it."""
        second = now // _SECOND
        start = line_start(second)
        fields = process_fields()
        self.latest[0] = -1 if fields else second + 2
        self.process_fields = fields
        self.earliest = second - 1
        self._start = start
        self._second_ns = second * _SECOND
        return now - self._second_ns

    def _send_queued(self) -> None:
        """Send the records of re-entrant calls; `send` goes on with the rest."""
        with self.lock:
            if self._busy or self._sends_queued or not self._queued:
                return
            before = max(self.seq, self.delivery.newest)
            level, body = self._queued[0]
            del self._queued[0]
            self._sends_queued = self._has_more = True
            try:
                self.send(level, body)
            except BaseException:
                if max(self.seq, self.delivery.newest) == before:
                    self._queued.appendleft((level, body))
                raise
            finally:
                self._sends_queued = False

    def _call(self, step: Callable[[LineDelivery], _Result]) -> _Result | None:
        """Take one step with nothing in between; None inside a call of this thread."""
        with self.lock:
            delivery = self.delivery
            result = self._step(step)
        delivery.notices.write()
        return result

    def _step(self, step: Callable[[LineDelivery], _Result]) -> _Result | None:
        """As `_call`, while the lock is held; writes no notices."""
        if self._busy:
            return None
        self._busy = True
        delivery = self.delivery
        try:
            delivery = self._ready()
            return step(delivery)
        except BaseException as error:
            if delivery.state is _CLOSED and isinstance(error, Exception):
                return None  # as in `send`
            broken = self.delivery
            broken.fd = -1
            broken.next_check = 0
            if broken.state is not _CLOSED:
                broken.state = _BROKEN
            raise
        finally:
            self._busy = False
            self._send_queued()

    def _finish(self, line: bytes, seq: int, done: int) -> None:
        """For `emit.c`, with the lock held; `notices` are written after it."""
        self._step(lambda delivery: delivery.overflow(line, seq, done))

    def add_sinks(self, sinks: list[str]) -> None:
        """Request sinks besides those that are requested already."""
        with self.lock:
            known = self.destination.sinks
            fresh = [sink for sink in sinks if sink not in known]
            known += fresh
        if fresh and self.delivery.state is not DeliveryState.DETACHED:
            self._call(lambda delivery: delivery.add_sinks(fresh))

    def descriptors(self) -> list[int]:
        """The numbers of all descriptors that are open now."""
        return self.delivery.descriptors()

    # ---- flush, close, fork ---------------------------------------------------------

    def request_flush(self) -> None:
        """Have the consumer answer when it has written everything; never waits."""
        with self.lock:
            if self.delivery.state is DeliveryState.PIPE:
                self._call(lambda delivery: delivery.flush(self.seq))

    def flush(self, timeout: float | None) -> bool:
        """Wait until all records logged before are with the durable sinks.

        Blocks for `timeout` seconds at most (None: as long as it takes); other threads
        may log meanwhile. Of records before a `close`, that call has reported.

        Returns:
            Whether they are. False: the time is over, or no consumer can be reached, and
            the records are still in the pipe, in memory or on disk; or records were
            dropped, here or by a durable sink, since the last call that was answered.
        """
        answered = self._answered
        timeout = _FOREVER if timeout is None else min(timeout, _FOREVER)
        deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(timeout * _SECOND)
        self._call(LineDelivery.retry_now)
        target = self.seq
        delivery = self.delivery
        while delivery.flushed < target:
            if not self._call(lambda _: delivery.flush(target)):
                break
            left = (deadline - clock_gettime_ns(CLOCK_MONOTONIC)) / _SECOND
            if delivery.flushed >= target or left <= 0:
                break
            delivery.wait(left)
        if delivery.flushed < target:
            return False
        self._answered = max(self._answered, target)
        return delivery.drops.lost <= answered

    def close(self, timeout: float, *, at_exit: bool = False) -> bool:
        """Flush and release everything; returns as `flush`. May be called repeatedly.

        A record that comes afterwards attaches anew and has the next seq.

        Args:
            timeout: How long to wait, in seconds.
            at_exit: The process ends; otherwise it only detaches.
        """
        with self.lock:
            if self.delivery.state in RELEASED:
                closing.forget(self)
                return True
        deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(timeout * _SECOND)
        for last in (False, False, True):
            left = max(deadline - clock_gettime_ns(CLOCK_MONOTONIC), 0)
            flushed = self.flush(left / _SECOND)
            with self.lock:
                done = self.delivery.flushed >= self.seq  # others may have logged
                if done or last or not flushed:
                    self._end(complete=done, at_exit=at_exit)
                    break
        return done and flushed

    def _end(self, *, complete: bool, at_exit: bool) -> None:
        self._call(lambda it: it.close(self.seq, complete=complete, at_exit=at_exit))
        if self.delivery.state is _CLOSED:
            closing.forget(self)

    def close_if_flushed(self) -> bool:
        """Close without waiting, once all is safe or on disk; whether it is closed."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            if self._busy:
                return False
            self.request_flush()
            waits = (
                self.delivery.state in CONNECTED and self.delivery.flushed < self.seq
            )
            if not waits:
                self.close(0)
            return not waits
        finally:
            self.lock.release()

    def renew(self) -> None:
        """Begin anew if this is a forked child in which no hook has run."""
        if self._pid != os.getpid():
            close_inherited()
            closing.forked()
            self.forked()

    def forked(self) -> None:
        """In a forked child: release what is the parent's and begin anew."""
        if self._pid == os.getpid():
            return
        if not self.lock._is_owned():  # else a call of this thread goes on in the child
            self.lock._at_fork_reinit()  # as logging does
        self.delivery.abandon()
        self._queued.clear()
        self._reset()
        self._busy = False

    def prepare_exit(self) -> None:
        """From now on a thread that holds the lock may stop for ever."""
        if not isinstance(self.lock, ExitLock):
            self.lock = ExitLock(self.lock, self._seize)

    def _seize(self) -> None:
        """The thread that had the lock runs no more, in the middle of anything."""
        self._busy = False
        self.delivery.fd = -1
        self.delivery.next_check = 0
        if self.delivery.state is not _CLOSED:
            self.delivery.state = _BROKEN


def redirect(old: str, path: str, sinks: list[str]) -> None:
    """Let handlers whose consumer has ended log on, to one that is started on demand.

    Args:
        old: The socket of the consumer that has ended.
        path: The socket of the other one.
        sinks: The sinks that the one that has ended had.
    """
    found = cast("Transport | None", closing.known.pop(old, None))
    if found is None:
        return
    found.close(0)
    with found.lock:
        overflow = found.destination.overflow
        sinks = [*sinks, *found.destination.sinks]
        found.destination = Destination(path, sinks, elect=True)
        found.destination.overflow = overflow
        found._reset(found.seq, found.last)
    closing.in_use.pop(old, None)
    closing.known.setdefault(path, found)
