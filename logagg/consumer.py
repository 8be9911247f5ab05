"""The consumer: the one process that reads, orders and fans out.

Theory of operation
-------------------
It is started on a listening socket that someone else made (`logagg.launch`), so
connections may be waiting in it already. A connection's first packet, the hello, says
what it is; `records` brings the read end of a worker's pipe, `stream` that of a captured
stdout or stderr.

Reading goes in cycles of CYCLE seconds while there is something to do. In between
nothing watches the pipes: a worker's write then wakes nobody, which keeps it as cheap
as a write can be, and each cycle moves many records at once. When nothing came for a
while the loop sleeps until a pipe is readable (an epoll object that holds all pipes is
itself watched by the event loop).

A cycle: now = T; read every readable source; merge; release up to the watermark; number
the batch and offer it to the lanes. When the lanes are done with a batch the workers
whose lines were in it are acknowledged.

Life: it ends when the last worker has gone, everything is written and LINGER seconds
passed without a new one (`stay` keeps it for ever). Ending is safe against a process
that attaches at the same moment: with the start-up lock held, the socket is taken away
and shut, and whoever is in its queue by then is still served.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections import deque
from time import CLOCK_MONOTONIC, clock_gettime, clock_gettime_ns
from typing import Any

import orjson

from logagg import address, launch, wire
from logagg.abc import Batch
from logagg.channel import Control
from logagg.clock import STEP_NS, measure_offset
from logagg.errors import ConfigError, LogaggError
from logagg.fanout import Fanout
from logagg.intake import Ended, Stream, Worker, stamped_line
from logagg.order import Merger
from logagg.sinks import Built, build, parse

__all__ = ["Consumer", "main"]

Asker = Worker | Control

CYCLE = 0.005
BUDGET_BYTES = 16 * 1024 * 1024
IDLE_CYCLES = 10
LINGER = 0.5
FIRST_WAIT = 10.0
CLOSE_GRACE = 10.0
RESTART_HOLD = 0.4
MAX_FUTURE_NS = 1_000_000_000
STEP_CHECK_NS = 1_000_000_000


class Consumer:
    """One consumer; `run` is its life. All state belongs to its event loop."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.path = str(config["socket"])
        self.offset_ns = int(config["offset"])
        self.identifier = address.identifier_of(self.path)
        self.stay = bool(config.get("stay"))
        self._restarted = bool(config.get("restarted"))
        self._listener = socket.socket(fileno=int(config["fd"]))
        self._wanted = [str(url) for url in config.get("sinks", [])]
        self._streams_of_ours = [int(fd) for fd in config.get("streams", (1, 2))]
        self.started_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        self.merger = Merger()
        self.fanout = Fanout(self.event, self._finished)
        self.sources: dict[int, Worker | Stream] = {}
        self.holds = 0
        self.ever_held = False
        self.records = 0
        self.workers_seen = 0
        self.strangers = 0
        self.refused = 0
        self.totals = {"lost": 0, "dropped": 0, "damaged": 0, "duplicates": 0}
        self._events: list[bytes] = []
        self._event_seq = 0
        self._poll = select.epoll()
        self._wake = asyncio.Event()
        self._watching = False
        self._connections: dict[int, socket.socket] = {}
        self._kept_streams: set[int] = set()
        self._opening = asyncio.Lock()
        self._departed: list[Worker] = []
        self._told_step = 0
        self._last_cycle = 0
        self._holders: list[socket.socket] = []
        self._marks: deque[tuple[int, list[tuple[Worker, int]]]] = deque()
        self._step_check = 0
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- life ------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until there is nothing to do any more; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        for number in (signal.SIGHUP, signal.SIGUSR1):
            loop.add_signal_handler(number, self._reopen)
        for url in self._wanted:
            await self.add_sink(url, self._streams_of_ours)
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        self._accept()
        last_use = clock_gettime(CLOCK_MONOTONIC)
        quiet = 0
        while True:
            moved = self.cycle()
            now = clock_gettime(CLOCK_MONOTONIC)
            if moved or len(self.merger):
                quiet = 0
            else:
                quiet += 1
            if self.sources or self.holds or moved:
                last_use = now
            elif self._may_end(now - last_use) and self.fanout.idle:
                if await self._end():
                    break
                last_use = now
            if quiet > IDLE_CYCLES and not self._stopping and not self.fanout.blocked:
                await self._sleep()
            else:
                await asyncio.sleep(CYCLE)
        left = await self.fanout.close(CLOSE_GRACE)
        return 1 if left else 0

    def _may_end(self, unused: float) -> bool:
        if self._stopping:
            return True
        if self.stay:
            return False
        return unused > (LINGER if self.workers_seen else FIRST_WAIT)

    async def _sleep(self) -> None:
        """Wait for a readable pipe, or news, or the time to look whether to end."""
        loop = asyncio.get_running_loop()
        self._wake.clear()
        loop.add_reader(self._poll.fileno(), self._wake.set)
        try:
            await asyncio.wait_for(self._wake.wait(), 0.25)
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(self._poll.fileno())

    def stop(self) -> None:
        """End as soon as everything that is with us is written."""
        self._stopping = True
        self._wake.set()

    def _reopen(self) -> None:
        for lane in self.fanout.lanes.values():
            self._spawn(lane.sink.reopen())

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> bool:
        """Take the socket away; True when nobody came in the last moment."""
        try:
            with launch.election(self.path, 1.0):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._listener)
                self._listener.shutdown(socket.SHUT_RD)
                self._accept()
                if self._connections and not self._stopping:
                    self._listener.close()
                    self._listener = launch.listen(self.path)
                    self._listener.setblocking(False)
                    loop.add_reader(self._listener, self._accept)
                    return False
                self._listener.close()
                for suffix in (".err", ".lock"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path + suffix)
        except LogaggError:
            return self._stopping
        return True

    # ---- connections ---------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                return
            connection.setblocking(False)
            _, uid, _ = address.peer(connection)
            if uid not in (os.getuid(), 0):
                self.refused += 1
                connection.close()
                continue
            self._connections[connection.fileno()] = connection
            loop = asyncio.get_running_loop()
            loop.add_reader(connection, self._hello, connection)
            self._hello(connection)

    def _hello(self, connection: socket.socket) -> None:
        """Read a connection's first packet; what does not understand itself goes."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, 262144, 8)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        asyncio.get_running_loop().remove_reader(connection)
        self._connections.pop(connection.fileno(), None)
        try:
            hello = orjson.loads(packet) if packet else None
            taken = isinstance(hello, dict) and self._greet(
                connection, hello, descriptors
            )
        except (ValueError, KeyError, TypeError, OSError):
            taken = False
        if not taken:
            self.refused += 1 if packet else 0
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            connection.close()

    def _greet(
        self, connection: socket.socket, hello: dict[str, Any], fds: list[int]
    ) -> bool:
        kind = hello.get("kind")
        if kind == "records" and len(fds) in (3, 4):
            self._greet_worker(connection, hello, fds)
        elif kind == "stream" and len(fds) == 1:
            stream = Stream(fds[0], hello)
            self._register(stream)
            connection.close()
        elif kind == "hold":
            self.holds += 1
            self.ever_held = True
            self.workers_seen += 1
            loop = asyncio.get_running_loop()
            loop.add_reader(connection, self._hear_holder, connection)
            self._holders.append(connection)
            urls = [str(url) for url in hello.get("sinks", [])]
            self._spawn(self._want(Control(connection), urls, fds))
        else:
            return False
        self._wake.set()
        return True

    def _greet_worker(
        self, connection: socket.socket, hello: dict[str, Any], fds: list[int]
    ) -> None:
        peer, _, _ = address.peer(connection)
        worker = Worker(connection, fds[0], hello, peer)
        worker.hold_key = wire.sort_key(self.now_ns() - self.merger.window_ns)
        if len(fds) == 4:
            worker.add_kept(fds[3])
        for each in hello.get("segments", []):
            worker.add_segment(each)
        if hello.get("torn"):
            worker.sequence.torn.add(int(hello["torn"]))
        self._register(worker)
        loop = asyncio.get_running_loop()
        loop.add_reader(connection, self._hear_worker, worker)
        self.workers_seen += 1
        urls = [str(url) for url in hello.get("sinks", [])]
        self._spawn(self._want_worker(worker, urls, fds[1:3]))

    async def _want(self, asker: Asker, urls: list[str], streams: list[int]) -> None:
        """Open the sinks that someone wants, each once; tell of trouble."""
        for url in urls:
            error = await self.add_sink(url, streams)
            if error:
                asker.tell({"error": error})
        if not self.fanout.lanes:
            await self.add_sink("stderr:?format=json", streams)
        for stream in streams:
            if stream not in self._kept_streams:
                os.close(stream)
        asker.tell({"welcome": 1})

    async def _want_worker(
        self, worker: Worker, urls: list[str], streams: list[int]
    ) -> None:
        await self._want(worker, urls, streams)
        worker.ready = True
        self._wake.set()

    def _register(self, source: Worker | Stream) -> None:
        self.sources[source.pipe] = source
        self._poll.register(source.pipe, select.EPOLLIN | select.EPOLLHUP)

    def _hear_worker(self, worker: Worker) -> None:
        worker.hear()
        while worker.asked:
            message = worker.asked.pop(0)
            urls = [str(url) for url in message["sinks"]]
            self._spawn(self._want(worker, urls, []))
        if worker.heard_end:
            asyncio.get_running_loop().remove_reader(worker.connection)
        self._wake.set()

    def _hear_holder(self, connection: socket.socket) -> None:
        """A connection that keeps us alive, and may send events, until it leaves."""
        try:
            packet = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        message: Any = None
        with contextlib.suppress(orjson.JSONDecodeError):
            message = orjson.loads(packet) if packet else None
        if isinstance(message, dict) and "event" in message:
            self.event(str(message.pop("message", "")), message)
            return
        asyncio.get_running_loop().remove_reader(connection)
        if not packet:
            connection.close()
            self._holders.remove(connection)
        self.holds -= 1
        self._wake.set()

    # ---- sinks -------------------------------------------------------------------------

    async def add_sink(self, url: str, streams: list[int]) -> str:
        """Open a sink unless it is there; return what is wrong with it, or nothing."""
        async with self._opening:
            return await self._add_sink(url, streams)

    async def _add_sink(self, url: str, streams: list[int]) -> str:
        try:
            parsed = parse(url)
            key = url
            if parsed.scheme in ("stdout", "stderr") and len(streams) == 2:
                descriptor = streams[parsed.scheme == "stderr"]
                status = os.fstat(descriptor)
                key = f"{url} {status.st_dev} {status.st_ino} {status.st_rdev}"
            elif parsed.scheme == "file":
                key = f"file {address.file_identity(parsed.target)}"
            if key in self.fanout.lanes:
                return ""
            built: Built = build(parsed)
            if parsed.scheme in ("stdout", "stderr") and len(streams) == 2:
                built.sink.fd = descriptor  # type: ignore[attr-defined]
                self._kept_streams.add(descriptor)
            await self.fanout.add(key, built)
        except (ConfigError, OSError) as error:
            return f"sink refused: {error}"
        return ""

    # ---- the cycle -----------------------------------------------------------------------

    def now_ns(self) -> int:
        """The common clock now."""
        return clock_gettime_ns(CLOCK_MONOTONIC) + self.offset_ns

    def cycle(self) -> int:
        """Read, order, release, offer; return how many lines moved."""
        now = self.now_ns()
        if now > self._step_check:
            self._watch_clock(now)
        moved = 0
        if not self.fanout.blocked:
            moved = self._read(now)
        if self._events:
            self.merger.add(self._events, drained=True)
            moved += len(self._events)
            self._events = []
        self._last_cycle = now
        bad = self.merger.strangers(now + MAX_FUTURE_NS)
        if bad:
            self.strangers += len(bad)
            self.event(
                f"{len(bad)} lines that are no records were dropped",
                {"event": "damaged", "level": "error", "sample": _sample(bad[0])},
            )
        age = clock_gettime_ns(CLOCK_MONOTONIC) - self.started_ns
        if self._restarted and age < RESTART_HOLD * 1e9 and not self._stopping:
            return moved
        lines = self.merger.release(now, all_ended=self._all_wait())
        if lines:
            self._offer(lines)
        self._collect_marks()
        self._tell_workers()
        return moved

    def _all_wait(self) -> bool:
        """Whether every source waits for us: nothing is being stamped meanwhile."""
        return all(
            isinstance(source, Worker) and source.flush_to and source.drained
            for source in self.sources.values()
        )

    def _read(self, now: int) -> int:
        ready = self._poll.poll(0, max(len(self.sources), 1))
        if not ready:
            return 0
        moved = 0
        budget = max(BUDGET_BYTES // len(ready), 65536)
        for pipe, _ in ready:
            source = self.sources[pipe]
            try:
                if isinstance(source, Worker):
                    if not source.ready:
                        self.merger.hold(source.hold_key)
                        continue
                    lines, drained = source.read(budget)
                    if lines:
                        if source.drained:
                            self.merger.observe(lines[0], self._last_cycle)
                        source.mark(lines)
                else:
                    lines, drained = source.read(budget, now, self.offset_ns)
            except Ended as end:
                self._ended(source, str(end))
                continue
            source.drained = drained
            if lines:
                self.merger.add(lines, drained=drained)
                moved += len(lines)
        return moved

    def _offer(self, lines: list[bytes]) -> None:
        self.records += len(lines)
        self.fanout.put(Batch(lines, wire.closing(self.now_ns())))

    def _workers(self) -> list[Worker]:
        present = [each for each in self.sources.values() if isinstance(each, Worker)]
        return present + self._departed

    def _collect_marks(self) -> None:
        """Find out whose lines went with the newest batch, and up to which seq."""
        horizon = self.merger.horizon
        found = []
        for worker in self._workers():
            if worker.marks:
                seq = worker.released(horizon)
                if seq:
                    found.append((worker, seq))
        if found:
            self._marks.append((self.fanout.number, found))
        self._finished()

    def _finished(self) -> None:
        """Lanes are done with batches: what was in them is safe."""
        safe = self.fanout.safe
        while self._marks and self._marks[0][0] <= safe:
            for worker, seq in self._marks.popleft()[1]:
                worker.acknowledge(seq)
                if worker.flush_to:
                    worker.tell_safe(clock_gettime_ns(CLOCK_MONOTONIC))

    def _tell_workers(self) -> None:
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        for worker in self._workers():
            worker.tell_safe(now)
        for worker in [each for each in self._departed if each.finished]:
            self._departed.remove(worker)
            worker.close()

    def _ended(self, source: Worker | Stream, why: str) -> None:
        if isinstance(source, Worker) and source.claim_orphans(self.identifier):
            return
        self._poll.unregister(source.pipe)
        del self.sources[source.pipe]
        if isinstance(source, Stream):
            source.close()
            return
        if source.connection.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(source.connection)
        source.depart()
        self._departed.append(source)
        if source.sequence.admitted:
            self._tell_exit(source, why)

    def _tell_exit(self, worker: Worker, why: str) -> None:
        sequence = worker.sequence
        how = "said goodbye" if worker.goodbye else f"left without goodbye ({why})"
        self.event(
            f"worker {worker.name} {how}: {sequence.admitted} records",
            {
                "event": "worker_exit",
                "level": "debug" if worker.goodbye else "info",
                "of_worker": worker.name,
                "of_pid": worker.pid,
                "goodbye": worker.goodbye,
                "last_seq": sequence.expected - 1,
                **worker.losses(),
            },
        )

    def event(self, message: str, details: dict[str, Any]) -> None:
        """Put a record of our own into the stream."""
        self._event_seq += 1
        level = str(details.pop("level", "warning"))
        fields = {"logger": "logagg", "message": message, "pid": os.getpid(), **details}
        line = stamped_line(self.now_ns(), level, "consumer", self._event_seq, fields)
        self._events.append(line)
        self._wake.set()

    def _watch_clock(self, now: int) -> None:
        """Look whether the wall clock was stepped away from the common clock."""
        self._step_check = now + STEP_CHECK_NS
        measured = measure_offset()
        step = measured - self.offset_ns - self._told_step
        if abs(step) >= STEP_NS:
            self._told_step += step
            self.event(
                f"the wall clock was stepped by {step / 1e9:+.3f} s; the log's clock "
                "goes on without the step",
                {"event": "clock_step", "step_seconds": step / 1e9},
            )


def _sample(line: bytes) -> str:
    return line[:200].decode("utf-8", "backslashreplace")


def main(config: dict[str, Any]) -> None:
    """Be a consumer: what `logagg.launch.spawn` starts."""
    gc.freeze()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    async def live() -> int:
        return await Consumer(config).run()

    sys.exit(asyncio.run(live()))
