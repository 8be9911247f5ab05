"""What is fuzzed: functions that take any bytes, and raise only for a fault.

socket   a script (`attack`) against a whole consumer in this process
pipe     bytes in a worker's pipe
output   bytes that a program prints under `logagg run`
client   a packet from the consumer, as the client decodes it
metrics  what a client of the metrics endpoint sends
control  a request to a run, and a run's answer
frames   bytes on the channel between supervisor and worker
handover packets of a worker that is handed connections
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import orjson
from attack import Attacker

from logagg.consumer import metrics as metrics_endpoint
from logagg.consumer.consumer import Consumer
from logagg.consumer.event_log import EventLog
from logagg.consumer.output_source import OutputSource
from logagg.consumer.source import SourceEnded
from logagg.consumer.worker_source import WorkerSource
from logagg.core.line import PREFIX, key_ns, level_of
from logagg.core.merge import Merger
from logagg.errors import LogaggError, WireError
from logagg.ipc import client_gate, client_messages, launcher
from logagg.ipc.protocol import (
    ConsumerConfig,
    RecordsHello,
    StreamHello,
    decode,
)
from logagg.ipc.runs.run_messages import RunReply, decode_run_request
from logagg.platform import endpoints
from logagg.supervisor.messaging.frames import FRAMES, Decoder, misfit
from logagg.supervisor.sockets.bind_address import BindAddress
from logagg.supervisor.sockets.handoff import PACKET_BYTES, packet, receive_packet
from logagg.supervisor.sockets.round_robin import RoundRobin

SCRIPTS_OF_A_CONSUMER = 100
CYCLES = 4


class Scene:
    """A consumer in this process, with a file, and its attacker."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lgz", dir="/tmp"))
        self.path = str(self.folder / "c.sock")
        self.loop = asyncio.new_event_loop()
        self.faults: list[tuple[str, BaseException]] = []
        self.played = 0
        self.loop.run_until_complete(self._begin())
        self.attacker = Attacker(self.path, self.cycles)

    async def _begin(self) -> None:
        listener = launcher.listen(self.path)
        config = {
            "socket": self.path,
            "fd": listener.detach(),
            "offset": time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            "stay": True,
        }
        failed = lambda _, name, error: self._failed(name, error)  # noqa: E731
        with mock.patch.object(EventLog, "part_failed", failed):
            self.consumer = Consumer(msgspec.convert(config, ConsumerConfig))
        self.loop.set_exception_handler(
            lambda _, context: self._failed(
                str(context.get("message")), context.get("exception") or RuntimeError()
            )
        )
        error = await self.consumer._registry.add(
            f"file:{self.folder}/app.log?max_bytes=1MB&backups=1", [1, 2], wanted=True
        )
        assert not error, error
        self.consumer._listener.start()

    def _failed(self, name: str, error: BaseException) -> None:
        self.faults.append((name, error))

    def cycles(self) -> None:
        """Let the consumer work."""
        self.loop.run_until_complete(self._cycles())

    async def _cycles(self) -> None:
        for _ in range(CYCLES):
            self.consumer.cycle()
            self.consumer._subscribers.push()
            await asyncio.sleep(0)
        orjson.dumps(self.consumer.status())

    def play(self, script: bytes) -> None:
        """Play a script; raise what went wrong inside."""
        self.played += 1
        self.attacker.play(script)
        for name, error in self.faults:
            raise AssertionError(f"{name} failed") from error

    def close(self) -> None:
        """End the consumer as it ends, and its loop."""
        try:
            self.consumer._listener.stop(anyway=True)
            self.loop.run_until_complete(self.consumer._end())
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)


_scene: list[Scene] = []


def attack(data: bytes) -> None:
    """Play a script; a consumer serves many of them."""
    if _scene and _scene[0].played >= SCRIPTS_OF_A_CONSUMER:
        close_scene()
    if not _scene:
        _scene.append(Scene())
    try:
        _scene[0].play(data)
    except BaseException:
        _scene.clear()
        raise


def close_scene() -> None:
    """End what targets have begun, with what their process's end would close."""
    while _endpoint:
        _endpoint.pop().close()
    while _scene:
        with warnings.catch_warnings(action="ignore"):
            _scene.pop().close()
            gc.collect()


def pipe(data: bytes) -> None:
    """What comes out is records, whatever a worker writes into its pipe."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    hello = RecordsHello(pid=1, worker="1", stream="1-a")
    worker = WorkerSource(here, read, hello, os.getpid(), "fuzz")
    worker.start_reading()
    merger = Merger()
    now = 1_795_568_400 * 1_000_000_000
    try:
        with there, contextlib.suppress(SourceEnded):
            for start in range(0, len(data), 32_768):
                os.write(write, data[start : start + 32_768])
                lines, drained = worker.read(1 << 20)
                merger.add(lines, drained=drained)
            os.close(write)
            write = -1
            while True:
                lines, drained = worker.read(1 << 20)
                merger.add(lines, drained=drained)
        merger.reject_foreign(now)
        orjson.dumps([worker.losses(), worker.statistics()])
        for line in merger.release(now, all_ended=True):
            assert line.startswith(PREFIX)
            assert b"\n" not in line
            key_ns(line)
            level_of(line)
    finally:
        if write >= 0:
            os.close(write)
        worker.close()


class _Clock:
    offset_ns = 0

    def now_ns(self) -> int:
        return 1_795_568_400 * 1_000_000_000


def output(data: bytes) -> None:
    """Whole records of JSON, one for each printed line at most."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    hello = StreamHello(slot=1, pid=1, stream="stderr")
    last: deque[str] = deque(maxlen=20)
    source = OutputSource(read, hello, _Clock(), last)  # type: ignore[arg-type]
    found: list[bytes] = []
    try:
        with contextlib.suppress(SourceEnded):
            for start in range(0, len(data), 32_768):
                os.write(write, data[start : start + 32_768])
                found += source.read(1 << 20)[0]
            os.close(write)
            write = -1
            while True:
                found += source.read(1 << 20)[0]
    finally:
        if write >= 0:
            os.close(write)
        source.close()
    for line in found:
        assert isinstance(orjson.loads(line + b"}"), dict)
    ends = (b"\n", b"\r", b"\0[")  # of lines, of states, of what has no thread's key
    assert len(found) <= sum(map(data.count, ends)) + 1


def client(data: bytes) -> None:
    """The client takes any packet for a message."""
    message = client_messages.decode(data)
    for number in (message.ack, message.flushed, message.drops_announced):
        assert number is None or type(number) is int


class _Metrics:
    """An endpoint in this process, and what was reported about it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.reports: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.reports.append(context))
        listener = endpoints.listen("127.0.0.1:0", "metrics")
        self.port = listener.getsockname()[1]
        status = {"sinks": [], "workers": [], "ended": {}}
        self.end = self.loop.run_until_complete(
            metrics_endpoint.serve(listener, lambda: status)
        )

    async def answer(self, data: bytes) -> bytes:
        """The answer to bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 60)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    def close(self) -> None:
        """End it."""
        self.loop.run_until_complete(self.end())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


_endpoint: list[_Metrics] = []


def metrics(data: bytes) -> None:
    """An answer in HTTP or none, and nothing reported, whatever is asked."""
    with mock.patch.object(client_gate, "LIFETIME", 0.01):
        if not _endpoint:
            _endpoint.append(_Metrics())
        found = _endpoint[0].loop.run_until_complete(_endpoint[0].answer(data))
    assert found[:5] in (b"", b"HTTP/"), found[:80]
    assert found.count(b"HTTP/1.1 200") + found.count(b"HTTP/1.0 200") <= 1
    assert _endpoint[0].reports == []


def control(data: bytes) -> None:
    """A message, or an error of logagg's own."""
    with contextlib.suppress(LogaggError):
        decode_run_request(data)
    with contextlib.suppress(LogaggError):
        decode(RunReply, data)


def frames(data: bytes) -> None:
    """Frames of known kinds or not, or an error; however the bytes come."""
    decoder, size = Decoder(), 1 + sum(data[:2])
    fds = [os.open("/dev/null", os.O_RDONLY)] if data[:1] > b"\x7f" else []
    try:
        for start in range(0, len(data), size):
            for frame, fd in decoder.feed(data[start : start + size], fds):
                if fd >= 0:
                    os.close(fd)
                if frame["k"] in FRAMES:
                    assert isinstance(misfit(frame), str)
            fds = []
    except WireError:
        pass
    finally:
        decoder.close()


def handover(data: bytes) -> None:
    """A worker sends what it likes; the others get each connection once."""
    asyncio.run(_handover(data))


async def _handover(data: bytes) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        place = listener.getsockname()
        shared = RoundRobin(
            BindAddress(socket.AF_INET, *place),
            listener, sticky=None, choose=None, silent=lambda *_: None,
        )  # fmt: skip
        bad = stack.enter_context(shared.channel(1, 1).worker_sock.dup())
        good = stack.enter_context(shared.channel(2, 2).worker_sock.dup())
        bad.settimeout(0)
        good.settimeout(0)
        good.send(packet(b"open"))
        client = stack.enter_context(socket.create_connection(place))
        with contextlib.suppress(OSError):  # its channel is full, or closed to it
            for start in range(0, len(data), PACKET_BYTES):
                bad.send(data[start : start + PACKET_BYTES].ljust(PACKET_BYTES, b"\0"))
        taken: list[int] = []
        for _ in range(2):
            for worker in (good, bad):
                await asyncio.sleep(0)
                with contextlib.suppress(OSError):
                    taken += receive_packet(worker)[1]
                    worker.send(packet(b"ack"))
        shared.remove(1)
        async with asyncio.timeout(60):
            while not taken:
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    taken += receive_packet(good)[1]
        shared.close()
        (fd,) = taken
        with socket.socket(fileno=fd) as connection:
            assert connection.getpeername() == client.getsockname()


TARGETS: dict[str, Any] = {
    "socket": attack, "pipe": pipe, "output": output, "client": client,
    "metrics": metrics, "control": control, "frames": frames, "handover": handover,
}  # fmt: skip
