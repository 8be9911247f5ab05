"""Parts that decide about loss beside simple models: any calls in any order.

Hypothesis draws the calls; a failure is made as short as it gets. The segment log has
its machine in `test_segment_log.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import support
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from logagg.abc import Batch
from logagg.client.delivery_state import DeliveryState
from logagg.client.resend_buffer import DropLedger, ResendBuffer
from logagg.client.transport import Transport
from logagg.consumer.acks import AckTracker
from logagg.core.line import KEY_END, received_suffix, seq_of
from logagg.errors import SinkUnavailable
from logagg.fanout.fanout import Fanout
from logagg.ipc.protocol import ConsumerPacket
from logagg.platform.packets import packet_socket, receive, send
from logagg.sinks import wrap
from logagg.testing import MemorySink

START = 1_795_568_400 * 1_000_000_000


def line(seq: int, size: int = 1) -> bytes:
    """A line as a log call makes it."""
    return support.wire_line(START + seq, seq, body=b'"m":"%b"' % (b"x" * size)) + b"\n"


class Keeping(RuleBasedStateMachine):
    """What a process keeps until it is acknowledged, beside a list of generations."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ResendBuffer()
        self.drops = DropLedger()
        self.seq = 0
        self.safe = 0
        self.sealed: list[list[bytes]] = []
        self.open: list[bytes] = []
        self.dropped: list[int] = []

    @rule(size=st.integers(1, 40))
    def log(self, size: int) -> None:
        self.seq += 1
        self.open.append(line(self.seq, size))
        self.buffer.open_lines.append(self.open[-1])
        self.buffer.open_bytes += len(self.open[-1])

    @rule()
    def drop(self) -> None:
        self.seq += 1
        self.dropped.append(self.seq)
        self.drops.add(self.seq)

    @rule()
    def check(self) -> None:
        self.buffer.seal()
        self._seal()

    def _seal(self) -> None:
        if self.open:
            self.sealed.append(self.open)
            self.open = []

    @precondition(lambda self: self.open or self.sealed)
    @rule()
    def take_the_newest_out(self) -> None:
        if not self.open:
            self.open = self.sealed.pop()
        self.open.pop()
        self.buffer.remove_newest()

    @rule(part=st.floats(0, 1))
    def acknowledge(self, part: float) -> None:
        """All lines that were sealed up to a seq are safe; never an open one."""
        newest = self.seq if not self.open else seq_of(self.open[0]) - 1
        self.safe = max(self.safe, int(part * newest))
        self.buffer.acknowledge(self.safe)
        self.drops.acknowledge(self.safe)
        while self.sealed and seq_of((self.sealed[0] or [b""])[-1]) <= self.safe:
            self.sealed.pop(0)

    @rule()
    def hand_over(self) -> None:
        """The file for the next consumer has all that is not acknowledged, in order."""
        file = self.buffer.file()
        self._seal()
        wanted = b"".join(b"".join(each) for each in self.sealed)
        if file is None:
            assert not wanted
            return
        with open(file, "rb") as opened:
            assert opened.read() == wanted

    @invariant()
    def nothing_else_is_kept(self) -> None:
        lines = [each for part in (*self.sealed, self.open) for each in part]
        assert self.buffer.open_lines == self.open
        assert self.buffer.open_bytes == sum(map(len, self.open))
        assert self.buffer.sealed_bytes == sum(
            len(each) for part in self.sealed for each in part
        )
        if self.open or not any(not part for part in self.sealed):
            assert self.buffer.newest == (seq_of(lines[-1]) if lines else 0)

    @invariant()
    def drops_add_up(self) -> None:
        assert self.drops.count == len(self.dropped)
        assert self.drops.lost == (self.dropped[-1] if self.dropped else 0)
        before = sum(each <= self.safe for each in self.dropped)
        assert self.drops.up_to(self.safe) == before


class Worker(SimpleNamespace):
    """A source of lines as the tracker knows it, with the lines that it has brought."""

    marks: list[tuple[bytes, int]]
    acknowledged: int
    read: int
    announced: int
    finished: bool

    def __hash__(self) -> int:
        return id(self)

    def acknowledge(self, number: int) -> None:
        assert number > self.acknowledged
        self.acknowledged = number

    def send(self, packet: ConsumerPacket) -> bool:
        assert isinstance(packet.drops_announced, int)
        assert packet.drops_announced >= self.announced
        self.announced = packet.drops_announced
        return True

    def send_ack(self, now_ns: int) -> None:
        """Nothing is sent in this test."""

    def close(self) -> None:
        assert self.finished


class Acknowledging(RuleBasedStateMachine):
    """Batches of several workers' lines; sinks finish them when they like."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = AckTracker()
        self.workers: list[Worker] = []
        self.clock = 0
        self.batch = self.safe = 0
        self.waiting: list[tuple[bytes, Worker, int]] = []  # read, in no batch
        self.batch_of: dict[tuple[Worker, int], int] = {}
        self.told: list[tuple[int, Worker, int]] = []

    @initialize(number=st.integers(1, 3))
    def attach(self, number: int) -> None:
        for _ in range(number):
            self.workers.append(
                Worker(marks=[], acknowledged=0, read=0, announced=0, finished=False)
            )
        self.tracker.sources += self.workers

    @rule(which=st.integers(0, 2), lines=st.integers(1, 4))
    def read(self, which: int, lines: int) -> None:
        worker = self.workers[which % len(self.workers)]
        for _ in range(lines):
            self.clock += 1
            worker.read += 1
            self.waiting.append((b"%09d" % self.clock, worker, worker.read))
        worker.marks.append((self.waiting[-1][0], worker.read))

    @rule(part=st.floats(0, 1), drops=st.booleans(), which=st.integers(0, 2))
    def release(self, part: float, drops: bool, which: int) -> None:
        """The lines before an instant go to the sinks."""
        before = b"%09d" % int(part * (self.clock + 1))
        self.batch += 1
        ready = [each for each in self.waiting if each[0] < before]
        self.waiting = self.waiting[len(ready) :]
        for _, worker, number in ready:
            self.batch_of[worker, number] = self.batch
        announced = []
        if drops:
            worker = self.workers[which % len(self.workers)]
            announced = [(worker, self.batch)]
            self.told.append((self.batch, worker, self.batch))
        self.tracker.record(self.batch, before, announced)

    @rule(part=st.floats(0, 1))
    def become_safe(self, part: float) -> None:
        self.safe = max(self.safe, int(part * self.batch))
        self.tracker.release(self.safe)

    @invariant()
    def only_what_is_safe_is_acknowledged(self) -> None:
        for worker in self.workers:
            for number in range(1, worker.acknowledged + 1):
                assert self.batch_of[worker, number] <= self.safe
            allowed = [
                n for batch, w, n in self.told if w is worker and batch <= self.safe
            ]
            assert worker.announced == max(allowed, default=0)

    def teardown(self) -> None:
        if not self.workers:
            return
        self.release(1.0, drops=False, which=0)
        self.become_safe(1.0)
        assert not self.tracker
        assert [each.acknowledged for each in self.workers] == [
            each.read for each in self.workers
        ]
        for each in self.workers:
            each.finished = True
        assert self.tracker.send(0)
        assert not self.tracker.sources


class Target(MemorySink):
    """A durable target that fails and hangs when it is told to."""

    durable = True

    def __init__(self, shared: Delivering) -> None:
        super().__init__()
        self.shared = shared

    @property
    def url(self) -> str:
        return "target:one"

    async def open(self) -> None:
        assert self.shared.users == 0, "two have the target open"
        self.shared.users += 1

    async def write(self, batch: Batch) -> None:
        await self.shared.go.wait()
        if self.shared.down:
            raise SinkUnavailable("it is down")
        self.shared.taken += map(seq_of, batch.lines)

    async def close(self) -> None:
        self.shared.users -= 1


class Delivering(RuleBasedStateMachine):
    """A sink's runner, its changed forms and its spool beside a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.environment = pytest.MonkeyPatch()
        for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME"):
            self.environment.setenv(name, self.folder)
        self.loop = asyncio.new_event_loop()
        self.go = asyncio.Event()
        self.go.set()
        self.down = False
        self.users = 0
        self.taken: list[int] = []
        self.seq = 0
        self.ends: dict[int, int] = {}  # by batch, the last number
        self.safe = 0
        self.form = 0
        self.fanout = self._fanout()

    def _fanout(self) -> Fanout:
        made = Fanout(lambda *_: None, lambda: None, failed=lambda: None)
        self.loop.run_until_complete(made.add("one?0", self._sink()))
        self.form, self.ends, self.safe = 0, {}, 0
        return made

    def _sink(self) -> Any:
        return wrap(Target(self), queue_records=30, policy="spool")

    @rule(records=st.integers(1, 20))
    def put(self, records: int) -> None:
        lines = [line(self.seq + n)[:-1] for n in range(1, records + 1)]
        self.seq += records
        self.fanout.put(Batch(lines, received_suffix(START + self.seq)), frozenset())
        self.ends[self.fanout.number] = self.seq

    @rule()
    def fail_or_recover(self) -> None:
        self.down = not self.down

    @rule()
    def hang_or_go_on(self) -> None:
        if self.go.is_set():
            self.go.clear()
        else:
            self.go.set()

    @rule(turns=st.integers(1, 30), wait=st.sampled_from([0, 0, 0.002]))
    def pass_time(self, turns: int, wait: float) -> None:
        for _ in range(turns):
            self.loop.run_until_complete(asyncio.sleep(wait))

    @rule()
    def change_its_options(self) -> None:
        async def replace() -> None:
            keys = (f"one?{self.form + n}" for n in range(2))
            self.fanout.replace(*keys, self._sink())

        self.loop.run_until_complete(replace())
        self.form += 1

    @rule(grace=st.sampled_from([0.0, 0.05]))
    def end_and_begin_anew(self, grace: float) -> None:
        """What waits is for the next consumer, which comes after it."""
        undelivered = self.loop.run_until_complete(self.fanout.close(grace))
        assert undelivered == 0
        self.users = 0  # of a predecessor that hangs: its process is gone
        self.fanout = self._fanout()

    @rule(before=st.integers(1, 60), after=st.integers(1, 60))
    def end_while_a_changed_form_waits(self, before: int, after: int) -> None:
        """Each of the two forms leaves a spool of its own."""
        self.go.clear()
        self.put(before)
        self.change_its_options()
        self.put(after)
        self.end_and_begin_anew(0.0)

    @invariant()
    def each_comes_once_and_in_order(self) -> None:
        assert self.taken == list(range(1, len(self.taken) + 1))

    @invariant()
    def safe_is_what_is_written_or_on_disk(self) -> None:
        assert self.fanout.safe >= self.safe
        self.safe = self.fanout.safe
        kept = sum(each["spool_records"] for each in self.fanout.statistics())
        assert len(self.taken) + kept >= self.ends.get(self.safe, 0)

    @invariant()
    def nothing_is_dropped(self) -> None:
        assert self.fanout.dropped == 0

    def teardown(self) -> None:
        self.down = False
        self.go.set()

        async def finish() -> None:
            async with asyncio.timeout(60):
                while not self.fanout.idle:
                    await asyncio.sleep(0.001)
            assert await self.fanout.close(5) == 0

        try:
            self.loop.run_until_complete(finish())
            assert self.taken == list(range(1, self.seq + 1))
        finally:
            self.loop.close()
            self.environment.undo()
            shutil.rmtree(self.folder, ignore_errors=True)


class Consumer:
    """A listening socket, and all lines that came to it in any way."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = packet_socket()
        self._listener.bind(path)
        self._listener.listen()
        self._listener.setblocking(False)
        self._connection: socket.socket | None = None
        self._earlier: list[socket.socket] = []
        self._open: list[int] = []
        self._pipe = -1
        self._rest = b""
        self.seen: set[int] = set()
        self.order: list[bytes] = []
        self.acknowledged = 0

    def read(self) -> None:
        """Take the worker's connection, and what its pipe has."""
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(True)
            packet, fds, _ = receive(connection, 1 << 16, 8)
            if self._connection is not None:
                self._earlier.append(self._connection)
            self._connection, self._pipe, self._rest = connection, fds[0], b""
            self._open += fds
            os.set_blocking(fds[0], False)
            hello = orjson.loads(packet)
            self.acknowledged = max(self.acknowledged, hello["acknowledged"])
            for each in fds[3:]:
                self._take(Path(f"/dev/fd/{each}").read_bytes().split(b"\n"))
        if self._connection is None:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, 1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                self.order += self._take(lines)

    def _take(self, lines: list[bytes]) -> list[bytes]:
        whole = [each for each in lines if each.endswith(b'"end":1')]
        self.seen.update(map(seq_of, whole))
        return whole

    def acknowledge(self, part: float, **more: int) -> None:
        """Say that lines are safe: a part of those that came without a gap."""
        highest = self.acknowledged
        while highest + 1 in self.seen:
            highest += 1
        self.acknowledged += int(part * (highest - self.acknowledged))
        if self._connection is not None:
            packet = orjson.dumps({"ack": self.acknowledged, **more})
            with contextlib.suppress(OSError):
                send(self._connection, packet)

    def die(self) -> None:
        """Let go of everything, as the kernel does."""
        self._listener.close()
        os.unlink(self._path)
        for connection in (self._connection, *self._earlier):
            if connection is not None:
                connection.close()
        for each in self._open:
            os.close(each)


class Sending(RuleBasedStateMachine):
    """A process's transport; consumers come, die at any moment, and others follow."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.environment = pytest.MonkeyPatch()
        for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME"):
            self.environment.setenv(name, str(self.folder))
        self.path = str(self.folder / "socket")
        self.consumer: Consumer | None = Consumer(self.path)
        self.transport = Transport(self.path, ["file:/a"], elect=False)
        self.seq = 0
        self.safe = 0
        self.safe_elsewhere: set[int] = (
            set()
        )  # what a consumer had when all was flushed

    @rule(
        size=st.sampled_from([1, 1, 100, 9000]), number=st.sampled_from([1, 1, 3, 12])
    )
    def log(self, size: int, number: int) -> None:
        for _ in range(number):
            self.transport.send("info", b'"m":"%b","end":1' % (b"x" * size))
            self.seq += 1

    @rule()
    def check(self) -> None:
        """The next log call looks after the connection."""
        self.transport.delivery.next_check = 0
        self.transport.delivery._retry_at = 0

    @precondition(lambda self: self.consumer)
    @rule()
    def read(self) -> None:
        assert self.consumer
        self.consumer.read()

    @precondition(lambda self: self.consumer)
    @rule(part=st.floats(0, 1))
    def acknowledge(self, part: float) -> None:
        assert self.consumer
        self.consumer.read()
        self._take_segments()
        self.consumer.acknowledge(part)
        self.safe = max(self.safe, self.consumer.acknowledged)

    def _take_segments(self) -> None:
        assert self.consumer
        for each in self.folder.rglob("*.spool"):
            if each.is_file():
                self.consumer._take(each.read_bytes().split(b"\n"))

    @precondition(lambda self: self.consumer)
    @rule()
    def die(self) -> None:
        assert self.consumer
        self.consumer.die()
        self.consumer = None

    @precondition(lambda self: not self.consumer)
    @rule()
    def come_back(self) -> None:
        self.consumer = Consumer(self.path)

    @rule()
    def break_a_call(self) -> None:
        """An exception has left a call in the middle: what the pipe has is unknown."""
        delivery = self.transport.delivery
        if delivery.state not in (DeliveryState.CLOSED, DeliveryState.BROKEN):
            delivery.fd, delivery.next_check = -1, 0
            delivery.state = DeliveryState.BROKEN

    @invariant()
    def no_line_of_a_pipe_overtakes_another(self) -> None:
        if self.consumer:
            keys = [each[:KEY_END] for each in self.consumer.order]
            assert keys == sorted(keys)

    @invariant()
    def nothing_is_dropped(self) -> None:
        assert self.transport.delivery.drops.count == 0

    def teardown(self) -> None:
        try:
            if self.consumer is None:
                self.come_back()
            assert self.consumer
            for _ in range(3):  # whatever state it is in, it attaches
                self.check()
                self.log(1, 1)
                self.consumer.read()
            self._take_segments()
            missing = set(range(self.safe + 1, self.seq + 1)) - self.consumer.seen
            assert not missing
            self.consumer.acknowledge(1.0, flushed=self.seq)
            assert self.transport.flush(60)
            assert self.transport.close(0, at_exit=True) is True
        finally:
            self.transport.close(0)
            if self.consumer is not None:
                self.consumer.die()
            self.environment.undo()
            shutil.rmtree(self.folder, ignore_errors=True)


STEADY = settings(max_examples=40, stateful_step_count=30, deadline=None)

TestKeeping = Keeping.TestCase
TestKeeping.settings = settings(STEADY, max_examples=100)
TestAcknowledging = Acknowledging.TestCase
TestAcknowledging.settings = settings(STEADY, max_examples=100)
TestDelivering = pytest.mark.slow(Delivering.TestCase)
TestDelivering.settings = STEADY
TestSending = pytest.mark.slow(Sending.TestCase)
TestSending.settings = STEADY
