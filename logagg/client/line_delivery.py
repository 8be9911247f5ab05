"""LineDelivery of finished lines to one consumer: through a pipe, or through the disk.

A `LineDelivery` is always in one of the states of `logagg.client.delivery_state`. It owns
the attachment (pipe and connection), the lines that are not acknowledged, which are
handed to the next consumer when this one dies, and a spool on disk for while the pipe
takes no lines. A consumer drops the lines that it has already written, so a line may be
handed over twice without harm.

What can be lost: nothing while the disk takes what the pipe does not. Otherwise a line
is dropped, counted in `drops`, reported to the consumer and noted on stderr. While no
consumer can be reached, unacknowledged lines are on disk too, and survive this process.

Bounds: OVERFLOW_TIMEOUT for room in the pipe (policy `spool`), half a second to find a
consumer, KEEP_BYTES (and what 0.2 s bring) of memory.

Not safe for threads, signals or forks: `logagg.client.transport` guards every call, and
an exception that leaves one in the middle leaves state BROKEN.
"""

from __future__ import annotations

import os
from time import CLOCK_MONOTONIC, clock_gettime_ns

from logagg.client.attachment import Attachment, Destination, worker_name
from logagg.client.delivery_state import TRANSITIONS, Overflow
from logagg.client.delivery_state import DeliveryState as State
from logagg.client.resend_buffer import DropLedger, ResendBuffer
from logagg.client.spool_writer import SpoolWriter
from logagg.errors import ClosedError
from logagg.ipc import client_messages, failpoints
from logagg.ipc.clock import StampClock
from logagg.ipc.connection import StderrNotices

__all__ = ["KEEP_BYTES", "LineDelivery"]

CHECK_NS = 200_000_000
RESUME_NS = 20_000_000
FLUSH_RETRY_NS = 300_000_000
OVERFLOW_TIMEOUT = 0.1
KEEP_BYTES = 16 * 1024 * 1024
RETRY_NS = 500_000_000
MAX_RETRY_NS = 2_000_000_000
_SECOND = 1_000_000_000


class LineDelivery:
    """One process's way to one consumer. See the head of the module.

    The log call itself uses `fd`, `next_check`, `offset` and `resend`. `seq` is that of
    the process's newest line so far, which an earlier delivery had.

    Attributes:
        state: Where lines go.
        fd: The pipe's write end in state PIPE, else -1.
        next_check: The monotonic instant from which a log call calls `check`.
        offset: The common clock minus the monotonic clock, in nanoseconds.
        resend: The lines that are not acknowledged.
        worker: The name in the lines: the slot, or the pid.
        drops: The records that could be neither sent nor spooled.
        notices: What is to be written to stderr, with no lock held.
        flushed: The seq up to which the consumer has answered `flush`.
    """

    __slots__ = (
        "_acknowledged", "_attachment", "_clock", "_closed_torn", "_destination",
        "_failures", "_flush_requested", "_handovers", "_refusal", "_retry_at", "_spool",
        "_started_over", "_stream", "_torn", "drops", "fd", "flushed", "next_check",
        "notices", "offset", "resend", "state", "worker",
    )  # fmt: skip

    def __init__(self, destination: Destination, seq: int = 0) -> None:
        pid = os.getpid()
        self._destination, self._attachment = destination, Attachment(destination)
        self.worker = worker_name(pid)
        self._stream = f"{pid}-{clock_gettime_ns(CLOCK_MONOTONIC):x}"
        self.state = State.DETACHED
        self.fd, self.next_check, self.offset = -1, 0, 0
        self._clock = StampClock()
        self._retry_at = self._flush_requested = 0
        self._failures = 0  # attempts that failed, consumers that ended, since an ack
        self._acknowledged = self.flushed = seq  # those are another stream's
        self.resend = ResendBuffer()
        self._handovers = 0  # how often all of `resend` went to a consumer or to disk
        self._started_over = False  # a hello may have been sent that is not known
        self._spool = SpoolWriter(destination.identifier, self._stream)
        self._torn = 0  # the seq of the line that the pipe ends in a part of
        self._closed_torn: list[int] = []  # those whose part may still be in the pipe
        self.drops, self.notices = DropLedger(), StderrNotices()
        self._refusal = ""

    def _enter(self, state: State) -> None:
        if self.state is State.CLOSED:  # a fork came in the middle of a call
            raise ClosedError("closed")
        if failpoints.ACTIVE:
            assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state
        pipe = self._attachment.pipe
        self.fd = pipe.write if state is State.PIPE and pipe is not None else -1

    # ---- lines that the pipe does not take at once ---------------------------------

    def overflow(self, line: bytes, seq: int, done: int) -> None:
        """Finish a line of which the pipe took `done` bytes, or spool or drop it.

        Blocks as the policy allows. The line is the newest in `resend`.
        """
        if self.state is State.CLOSED:
            return  # a fork in a signal handler: the line is the parent's, and sent there
        if not self._attachment.is_own:
            self.start_over()
            return  # the line went along
        pipe = self._attachment.pipe
        assert pipe is not None
        policy = self._destination.overflow
        if policy is Overflow.DROP_NEW and not done:
            self._drop(seq, "the pipe is full")
            self.resend.remove_newest()
            return
        handovers = self._handovers
        timeout = None if policy is Overflow.BLOCK else OVERFLOW_TIMEOUT
        done = pipe.push(line, done, timeout, self._check_while_full)
        if done == len(line) or self._attachment.pipe is not pipe:
            return
        if done:
            self._torn = seq
            if failpoints.ACTIVE:
                failpoints.hit("torn")
        if self.state is State.PIPE:  # else the consumer went away while this waited
            self._leave_pipe()
        if self._handovers == handovers:
            self.spool(line, seq)
            self.resend.remove_newest()

    def _check_while_full(self) -> bool:
        """As `check`, but never leaves the pipe: it ends in a part of a line."""
        if self.next_check:  # not since it attached: see `_attach`
            self.next_check = clock_gettime_ns(CLOCK_MONOTONIC) + CHECK_NS
        if self._attachment.connected:
            self.resend.seal()
            self._receive()
        return self._attachment.connected

    def _leave_pipe(self) -> None:
        self._enter(State.TORN if self._torn else State.SPOOLING)
        self._retry_at = clock_gettime_ns(CLOCK_MONOTONIC) + RESUME_NS

    def spool(self, line: bytes, seq: int) -> None:
        """Append a line to the spool; drop it where that fails or is not wanted."""
        if self.state is State.CLOSED:
            return  # a fork in a signal handler: the line is the parent's, and sent there
        if self._destination.overflow is Overflow.DROP_NEW:
            full = self._attachment.connected
            self._drop(seq, "the pipe is full" if full else "no consumer takes records")
            return
        try:
            if failpoints.ACTIVE:
                failpoints.hit("spool")
            begins = not self._spool.is_open
            self._spool.append(line, seq)
            if begins:
                self._spool.announce(self._attachment.send)
        except (OSError, ValueError) as error:
            self._drop(seq, f"cannot spool: {error}")

    def _drop(self, seq: int, reason: str) -> None:
        self.drops.add(seq)
        self.notices.note(f"{self.drops.count} records dropped so far: {reason}")

    def resume(self) -> bool:
        """Try to return to the pipe; True when lines go there again.

        Cheap before `_retry_at`, so a log call may call it for every record.
        """
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        if now < self._retry_at or self.state is State.CLOSED:
            return False
        self._retry_at = now + RESUME_NS
        if not self._attachment.connected:
            self._attach()
        else:
            self._receive()
        pipe = self._attachment.pipe
        if pipe is None or not self._attachment.connected:
            return False
        if self.resend.sealed_bytes > KEEP_BYTES or not pipe.has_room():
            if self.state is State.PIPE:  # attached just now, and the pipe is full
                self._leave_pipe()
            return False
        if self.state is State.TORN and not self._close_torn(pipe.write):
            return False
        if self.state is State.SPOOLING:
            self._spool.end()
            if self._spool.announce(self._attachment.send):
                self._enter(State.PIPE)
        return self.state is State.PIPE

    def _close_torn(self, fd: int) -> bool:
        """End the part of a line in the pipe, which the consumer then discards."""
        if not self._attachment.send(client_messages.torn(self._torn)):
            return False
        try:
            os.write(fd, b"\n")
        except BlockingIOError:
            return False
        # This consumer may die before it has read that far: the next one needs it too.
        self._closed_torn.append(self._torn)
        self._torn = 0
        self._enter(State.SPOOLING)
        return True

    # ---- the connection ------------------------------------------------------------

    def check(self, now: int) -> None:
        """Receive messages, notice a dead consumer, keep memory bounded.

        Args:
            now: The monotonic clock.
        """
        self.next_check = now + CHECK_NS
        if not self._attachment.connected:
            if now >= self._retry_at and not self._spool.is_open:
                self._attach()
            return
        self.resend.seal()
        if self._receive():
            self.drops.report(self._attachment.send)
            if self.resend.sealed_bytes > KEEP_BYTES and self.state is State.PIPE:
                self._await_acknowledgement()

    def _await_acknowledgement(self) -> None:
        """Too much is unacknowledged: wait OVERFLOW_TIMEOUT, then leave the pipe."""
        blocks = self._destination.overflow is Overflow.BLOCK
        deadline = clock_gettime_ns(CLOCK_MONOTONIC) + int(OVERFLOW_TIMEOUT * _SECOND)
        while self.resend.sealed_bytes > KEEP_BYTES // 2:
            now = clock_gettime_ns(CLOCK_MONOTONIC)
            if now >= deadline and not blocks:
                self._leave_pipe()
                return
            self._attachment.wait(0.1 if blocks else (deadline - now) / _SECOND)
            if not self._receive():
                return

    def follow_clock(self) -> int:
        """Apply a new offset when its time has come; return the monotonic clock."""
        now, change = self._clock.follow(self.newest)
        self.offset = self._clock.offset
        self.next_check = min(self.next_check, change or self.next_check)
        return now

    def end_ascent(self) -> None:
        """Stamps go back: what holds lines with rising stamps gets no more of them."""
        self.resend.seal()
        self._spool.end()

    def _receive(self) -> bool:
        """Handle all messages that have arrived; False when the consumer was gone."""
        if not self._attachment.is_own:
            self.start_over()
            return False
        messages, connected = self._attachment.receive()
        for message in messages:
            self._on_message(message)
        if not connected:
            self._on_disconnect()
        return connected

    def _on_message(self, message: client_messages.ConsumerMessage) -> None:
        if message.ack is not None:
            self._acknowledged = message.ack
            self._failures = 0  # the consumer not only starts, it works
            self.resend.seal()  # there may be no later acknowledgement of the open lines
            self.resend.acknowledge(message.ack)
            self.drops.acknowledge(message.ack)
            self._closed_torn = [seq for seq in self._closed_torn if seq > message.ack]
            self._spool.acknowledge(message.ack)
            self._clock.acknowledge(message.ack)
        if message.drops_announced is not None:
            self.drops.announced = message.drops_announced
        if message.flushed is not None:
            self.flushed = message.flushed
            self.drops.note_answer(message.flushed, incomplete=message.incomplete)
        if message.switch is not None:
            self._clock.switch = message.switch
        if message.error is not None and message.error != self._refusal:
            self._refusal = message.error
            self.notices.note(self._refusal, anyway=True)

    def _attach(self) -> None:
        if not self._attachment.is_own:
            self.start_over()
            return
        try:
            hello = self._hello()
            offsets = self._attachment.attach(hello, self.resend)
        except Exception as error:  # noqa: BLE001 - at its end an interpreter lacks much
            self.offset = self.offset or self._clock.use(None, 0)
            self._enter(State.OFFLINE)
            self._back_off()
            fate = self._spool.fate(self._destination.overflow)
            where = self._destination.path
            self.notices.note(f"no consumer at {where}, records {fate}: {error}")
            return
        self._handovers += 1
        self._flush_requested = 0
        self.drops.reported = hello.drops
        self._spool.mark_announced(hello.segments)
        self._clock.use(offsets, self.newest)
        self.follow_clock()
        self.next_check = 0  # before the next stamp: see `Transport._check`
        if self._torn:
            self._enter(State.TORN)
        else:
            self._enter(State.SPOOLING if self._spool.is_open else State.PIPE)

    def _hello(self) -> client_messages.Hello:
        hello = self._attachment.new_hello(self.worker, self._stream)
        hello.acknowledged = self._acknowledged
        self.drops.describe(hello)
        hello.torn = self._closed_torn + ([self._torn] if self._torn else [])
        hello.again = self._started_over or self._handovers > 0
        hello.segments = self._spool.announcements()
        hello.clocks = self._clock.describe(self.newest)
        return hello

    def _on_disconnect(self) -> None:
        """The consumer is gone: attach to the next one, unless it ends repeatedly."""
        self._attachment.disconnect()
        self._failures += 1
        if self._failures <= 2:
            self._enter(State.DETACHED)
            self._attach()
            return
        self._enter(State.CRASH_LOOP)
        self._back_off()
        self.notices.note(f"the consumer keeps ending: {self._attachment.last_error()}")

    def start_over(self) -> None:
        """Give the pipe up and attach with another one, in the middle of anything.

        The consumer gets all that is not acknowledged, and drops what it has.
        """
        if self.state is not State.BROKEN:
            self._enter(State.BROKEN)
        self._spool.repair(end=True)
        self._attachment.disconnect()
        pipe = self._attachment.give_up_pipe()
        self._torn, self._closed_torn, self._flush_requested = 0, [], 0
        self._started_over = True
        self._enter(State.DETACHED)
        try:
            self._attach()
        finally:
            if pipe is not None:  # not before: at its end the consumer must know more
                pipe.close()

    @property
    def newest(self) -> int:
        """The newest seq of a line that is kept, spooled, dropped or acknowledged."""
        self._spool.repair()  # an exception may just have left an append
        parts = (self.resend, self._spool, self.drops)
        return max(self._acknowledged, *(part.newest for part in parts))

    def descriptors(self) -> list[int]:
        """The numbers of all that is open."""
        return [*self._attachment.descriptors, *self._spool.descriptors]

    def _back_off(self) -> None:
        """Set the time of the next attempt; until then nothing depends on this process.

        All unacknowledged lines go to disk, those in the pipe among them: no process
        but this one holds the pipe now.
        """
        delay = min(RETRY_NS << min(self._failures, 6), MAX_RETRY_NS)
        self._failures += 1
        self._retry_at = clock_gettime_ns(CLOCK_MONOTONIC) + delay
        if self._destination.overflow is not Overflow.DROP_NEW:
            self._handovers += self._spool.take(self.resend)

    def add_sinks(self, urls: list[str]) -> None:
        """Request more sinks; a later consumer finds them in the hello."""
        self._attachment.send(client_messages.add_sinks(urls))

    # ---- flush and close -----------------------------------------------------------

    def flush(self, target: int) -> bool:
        """Take one step towards `flushed` being `target`, without waiting.

        Returns:
            Whether another step may help: False when it is closed, and when no consumer
            can be reached and every record is on disk.
        """
        if self.state is State.CLOSED:
            return False
        if self.state is not State.PIPE:
            self.resume()
            soon = clock_gettime_ns(CLOCK_MONOTONIC) + FLUSH_RETRY_NS
            self._retry_at = min(self._retry_at, soon)
        else:
            self._receive()
        if self.state is State.PIPE and self._flush_requested < target > self.flushed:
            # Else their gaps would count as losses.
            self.drops.report(self._attachment.send)
            if self._attachment.send(client_messages.flush(target)):
                self._flush_requested = target
        return self.state is not State.OFFLINE or bool(self.resend)

    def retry_now(self) -> None:
        """Let the next `resume` try at once: the caller waits for the consumer."""
        self._retry_at = 0

    def wait(self, timeout: float) -> None:
        """Wait for a message, or, while lines go to disk, for the next attempt."""
        most = 0.2 if self.state is State.PIPE else 0.02
        self._attachment.wait(min(timeout, most))

    def close(self, seq: int, *, complete: bool, at_exit: bool = True) -> None:
        """Report the end and release everything.

        Args:
            seq: The seq of the last line.
            complete: Whether all lines are known to be safe.
            at_exit: Whether the process ends.
        """
        if not complete:
            # Their consumer may die before it has read them.
            self._handovers += self._spool.take(self.resend)
            if not self._attachment.connected:  # nothing has the rest
                self.drops.add_lines(self.resend.lines())
        self._spool.end()
        self._spool.announce(self._attachment.send)
        bye = client_messages.bye(seq, self.drops.count, at_exit=at_exit)
        self._attachment.send(bye)
        if not complete:
            self.notices.note(
                f"closed before all {seq} records were confirmed: {self.drops.count} "
                "were dropped, the rest is with the consumer or in the spool",
                anyway=True,
            )
        self.abandon()

    def abandon(self) -> None:
        """Release all, but the spool: in a forked child that is the parent's."""
        self._spool.abandon()
        if self.state is not State.CLOSED:
            self._enter(State.CLOSED)
        self.next_check = 0
        self._attachment.release()
