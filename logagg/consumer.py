"""The consumer: the one process that reads, orders and fans out.

Theory of operation
-------------------
It is started on a listening socket that someone else made (`logagg.launch`), so
connections may be waiting in it already; `logagg.reception` deals with them.

Reading goes in cycles of CYCLE seconds while there is something to do. In between
nothing watches the pipes (`poll` with no timeout leaves no trace on them, an epoll set
costs every write a call): a worker's write then wakes nobody, which keeps it as cheap
as a write can be, and each cycle moves many records at once. When nothing came for a
while, the pipes are put into an epoll set, which the event loop watches, until one is
readable.

A cycle: now = T; read every readable source; merge; release up to the watermark; number
the batch and offer it to the lanes and viewers. When the lanes are done with a batch,
the workers whose lines were in it are acknowledged.

After a consumer that died: workers hand over their pipes and what was not acknowledged.
Before anything is released, RESTART_HOLD gives them the time to come, so that the order
goes on. What they kept may be written already: the durable sinks are asked which of it
they have (`Sink.recall`), and that is not written to them again.

Life: it ends when the last worker has gone, everything is written and LINGER seconds
passed without a new one (`stay` keeps it for ever).
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from time import CLOCK_MONOTONIC, clock_gettime, clock_gettime_ns
from typing import Any

from logagg import address, failpoints, launch, wire
from logagg.abc import Batch
from logagg.captured import Stream
from logagg.clock_watch import ClockWatch
from logagg.errors import LogaggError
from logagg.fanout import Fanout
from logagg.intake import Ended, Worker
from logagg.leftovers import Leftovers
from logagg.order import Merger
from logagg.promises import Promises
from logagg.reception import Reception
from logagg.report import Reporter
from logagg.targets import Targets
from logagg.viewers import Ring

__all__ = ["Consumer", "main"]

CYCLE = 0.010
FAST_CYCLE = 0.001
FAST_BYTES = 192 * 1024
"""Who wrote more than this in a cycle would fill its pipe soon: the next one is fast."""
BUDGET_BYTES = 16 * 1024 * 1024
IDLE_CYCLES = 10
IDLE_WAIT = 0.25
LINGER = float(os.environ.get("LOGAGG_LINGER") or 0.5)
FIRST_WAIT = 10.0
STOP_GRACE = 5.0
CLOSE_GRACE = 10.0
RESTART_HOLD = 0.4
MAX_FUTURE_NS = 1_000_000_000
EVENT_PATIENCE_NS = 5_000_000_000


class Consumer:
    """One consumer; `run` is its life. All state belongs to its event loop."""

    def __init__(
        self, config: dict[str, Any], reread: Callable[[], list[str]] | None = None
    ) -> None:
        """Be a consumer.

        Args:
            config: What `logagg.launch` and `logagg serve` say.
            reread: Gives the sinks as they are configured now, for a reload.
        """
        self.path = str(config["socket"])
        self.clock = ClockWatch(self.path, int(config["offset"]))
        self.now_ns = self.clock.now_ns
        self.identifier = address.identifier_of(self.path)
        self.run_id = os.urandom(4).hex()
        self.merger = Merger()
        self.ring = Ring()
        self.sources: dict[int, Worker | Stream | Leftovers] = {}
        self.records = 0
        self.report = Reporter(self.now_ns, self.wake)
        self.fanout = Fanout(self.report.event, self._finished, self.now_ns)
        self.targets = Targets(self.fanout, self.captures)
        self.reception = Reception(self, socket.socket(fileno=int(config["fd"])))
        self._reread = reread
        self._reloading: asyncio.Task[str] | None = None
        self._endpoint = (config.get("metrics_fd"), str(config.get("metrics") or ""))
        self._stay = bool(config.get("stay"))
        self._restarted = bool(config.get("restarted"))
        self._wanted = [str(url) for url in config.get("sinks", [])]
        self._started_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        self._poll = select.poll()
        self._wake = asyncio.Event()
        self._departed: list[Worker] = []
        self._suspects: set[bytes] = set()
        self._promises = Promises()
        self._captured: set[tuple[int, int]] = set()
        self._last_cycle = 0
        self._fast = False
        self._last_look = 0
        self._gathering: asyncio.Task[None] | None = None
        self._stop_at = 0.0
        self._leftovers: list[Leftovers] = []
        self._leftovers_at = RESTART_HOLD if self._restarted else 0.0

    # ---- life ---------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until there is nothing to do any more.

        Returns:
            The exit status: 0, or 1 when records were left unwritten.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, launch.consumer_signals())
        if failpoints.ACTIVE:
            failpoints.hit("start")
        for url in self._wanted:
            error = await self.targets.add(url, [1, 2], wanted=True)
            if error:
                print(f"logagg: {error}", file=sys.stderr)
                self.reception.close_door(anyway=True)
                return 2
        self.reception.open()
        endpoint = await self._metrics()
        await self._serve()
        self._offer(self.merger.release(self.now_ns(), all_ended=True))
        if failpoints.ACTIVE:
            failpoints.hit("closing")
        left = await self.fanout.close(CLOSE_GRACE)
        self.reception.serve_viewers()
        if endpoint is not None:
            await endpoint()
        address.forget_spool_dir(self.identifier)
        return 1 if left else 0

    async def _metrics(self) -> Callable[[], Awaitable[None]] | None:
        """Begin to answer where metrics are wanted; return what ends it."""
        listener, place = self._endpoint
        if listener is None and not place:
            return None
        from logagg.metrics import start

        return await start(listener, place, self.status, self.report.event)

    async def _serve(self) -> None:
        last_use = clock_gettime(CLOCK_MONOTONIC)
        quiet = 0
        while True:
            moved = self.cycle()
            busy = self.reception.serve_viewers() or moved or len(self.merger)
            quiet = 0 if busy else quiet + 1
            now = clock_gettime(CLOCK_MONOTONIC)
            if self.sources or self.reception.holds or moved:
                last_use = now
            if self._may_end(now, last_use):
                if self.reception.close_door(anyway=0 < self._stop_at < now):
                    return
                last_use = now
            if quiet > IDLE_CYCLES and not self.fanout.blocked:
                await self._sleep()
            else:
                await asyncio.sleep(FAST_CYCLE if self._fast else CYCLE)

    def _may_end(self, now: float, last_use: float) -> bool:
        if self._stop_at:
            # Everything that is with us is written; who still logs has its time.
            done = not self.sources and self.fanout.idle
            return done or now > self._stop_at
        if self._stay or not self.fanout.idle:
            return False
        return now - last_use > (LINGER if self.reception.seen else FIRST_WAIT)

    async def _sleep(self) -> None:
        """Wait for a readable pipe, or news, or the time to look around."""
        loop = asyncio.get_running_loop()
        self._wake.clear()
        with select.epoll() as watch:
            for pipe, source in self.sources.items():
                if not isinstance(source, Worker) or source.ready:
                    watch.register(pipe, select.EPOLLIN)
            loop.add_reader(watch, self._wake.set)
            try:
                await asyncio.wait_for(self._wake.wait(), IDLE_WAIT)
            except TimeoutError:
                pass
            finally:
                loop.remove_reader(watch)

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def stop(self) -> None:
        """End as soon as everything that is with us is written, in 5 s at most."""
        if not self._stop_at:
            self._stop_at = clock_gettime(CLOCK_MONOTONIC) + STOP_GRACE
        self.wake()

    def _reopen(self) -> None:
        self.fanout.reopen()

    def _hang_up(self) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self.reload())

    async def reload(self) -> str:
        """Read the configuration again, if there is one; open all targets anew.

        Returns:
            What is wrong with it, and then everything is as it was; or nothing.
        """
        if self._reread is None:
            self._reopen()
            return ""
        try:
            urls = self._reread()
        except (LogaggError, OSError) as error:
            return self._refused(str(error))
        return await self.reconfigure(urls)

    async def reconfigure(self, urls: list[str]) -> str:
        """Have these sinks of our own from the next batch on, and no others.

        No record is lost: new sinks are open before old ones go, and those write what
        waits for them before they are closed.

        Returns:
            What is wrong with them, and then everything is as it was; or nothing.
        """
        error = await self.targets.reconfigure(urls)
        if error:
            return self._refused(error)
        shown = ", ".join(lane.name for lane in self.fanout.lanes.values())
        message = f"the configuration was read again; sinks: {shown}"
        self.report.event(message, {"event": "reload", "level": "info"})
        return ""

    def _refused(self, why: str) -> str:
        print(f"logagg: not reloaded: {why}", file=sys.stderr, flush=True)
        details = {"event": "reload_refused", "level": "error"}
        self.report.event(f"the configuration was not read again: {why}", details)
        return why

    # ---- the cycle ----------------------------------------------------------------

    def register(self, source: Worker | Stream | Leftovers) -> None:
        """Read this source from the next cycle on."""
        if isinstance(source, Worker):
            # It came after the last look at the door, hence so did its first record.
            source.hold_key = wire.sort_key(self._last_look)
        elif isinstance(source, Stream):
            if self._reads(source.pipe):
                source.close()  # two readers would tear each other's lines
                return
            self._captured.add(_file_of(source.pipe))
            self.report.listen(source)
        self.sources[source.pipe] = source
        self._poll.register(source.pipe, select.POLLIN)
        self.wake()

    def captures(self, descriptor: int) -> bool:
        """Whether what is written to a descriptor is read here."""
        return _file_of(descriptor) in self._captured

    def _reads(self, descriptor: int) -> bool:
        """Whether a captured stream is among the sources already."""
        streams = (each for each in self.sources.values() if isinstance(each, Stream))
        return _file_of(descriptor) in [_file_of(each.pipe) for each in streams]

    def cycle(self) -> int:
        """Read, order, release, offer; return how many lines moved."""
        self.clock.look(self._workers, self.report)
        now = self.now_ns()
        if self.fanout.blocked:
            # Nothing was read, so nothing can be known to be final.
            self._collect_marks()
            self._tell_workers()
            return 0
        moved = self._read(now)
        self.reception.look()
        for source in self.sources.values():
            if isinstance(source, Worker) and not source.ready:
                self.merger.hold(source.hold_key)
        self._last_look = now
        if failpoints.ACTIVE and moved:
            failpoints.hit("after_read")
        self._last_cycle = now
        self.report.look(now, self.sources.values(), self.merger)
        events = self.report.take()
        if events:
            self.merger.add(events, drained=True)
            moved += len(events)
        # A worker may have changed to a coming offset while we were reading.
        latest = self.now_ns() + self.clock.ahead_ns + MAX_FUTURE_NS
        strangers = self.merger.strangers(latest)
        if strangers:
            self._refuse_lines(strangers)
        age = (clock_gettime_ns(CLOCK_MONOTONIC) - self._started_ns) / 1e9
        if age >= self._leftovers_at and self.fanout.lanes:
            self._leftovers_at = float("inf")
            self._take_leftovers()
        held = self._gathering or (self._restarted and age < RESTART_HOLD)
        held = held or not self.fanout.lanes  # nobody there yet to write it
        if not held or self._stop_at:
            self._offer(self.merger.release(now, all_ended=self._all_wait()))
        self.fanout.tick()
        self._collect_marks()
        self._tell_workers()
        return moved

    def _read(self, now: int) -> int:
        ready = {pipe for pipe, _ in self._poll.poll(0)}
        ready.update(pipe for pipe, each in self.sources.items() if each.pending)
        moved = 0
        self._fast = False
        budget = max(BUDGET_BYTES // max(len(ready), 1), 65536)
        for pipe in ready:
            source = self.sources[pipe]
            if isinstance(source, Worker) and not source.ready:
                continue
            try:
                if isinstance(source, Stream):
                    lines, drained = source.read(budget, now, self.clock.offset_ns)
                else:
                    lines, drained = source.read(budget)
            except Ended as end:
                self._ended(source, str(end))
                continue
            if lines:
                if not isinstance(source, Stream):
                    self._suspects.update(map(wire.identity, source.take_suspects()))
                if isinstance(source, Worker):
                    source.mark(lines)
                    self._fast |= source.bytes_taken > FAST_BYTES
                    if source.drained:
                        self.merger.observe(lines[0], self._last_cycle)
                self.merger.add(lines, drained=drained)
                moved += len(lines)
            source.drained = drained
        return moved

    def _all_wait(self) -> bool:
        """Whether every source waits for us: nothing is being stamped meanwhile."""
        return all(
            isinstance(source, Worker) and source.flush_to and source.drained
            for source in self.sources.values()
        )

    def _refuse_lines(self, lines: list[bytes]) -> None:
        sample = lines[0][:200].decode("utf-8", "backslashreplace")
        self.report.event(
            f"{len(lines)} lines that are no records were dropped",
            {"event": "damaged", "level": "error", "sample": sample},
        )

    def _offer(self, lines: list[bytes]) -> None:
        if not lines:
            return
        self.records += len(lines)
        batch = Batch(lines, wire.closing(self.now_ns()))
        suspects = frozenset[bytes]()
        if self._suspects:
            suspects = frozenset(self._suspects.intersection(map(wire.identity, lines)))
            self._suspects -= suspects
        self.fanout.put(batch, suspects)
        self.ring.add(lines, batch.closing, batch.size_bytes)
        for viewer in self.reception.viewers:
            viewer.offer(lines, batch.closing)

    # ---- acknowledgements ---------------------------------------------------------

    def _workers(self) -> list[Worker]:
        present = [each for each in self.sources.values() if isinstance(each, Worker)]
        return present + self._departed

    def _collect_marks(self) -> None:
        """Find out whose lines went with the newest batch, and up to which seq."""
        number = self.fanout.number
        horizon = self.merger.horizon
        told = self.report.told(horizon)
        givers: list[Worker | Leftovers] = [*self._workers(), *self._leftovers]
        self._promises.note(number, horizon, givers, told)
        self._finished()

    def _finished(self) -> None:
        """Lanes are done with batches: what was in them is safe."""
        if failpoints.ACTIVE and self._promises:
            failpoints.hit("before_ack")
        self._promises.keep(self.fanout.safe)

    def _tell_workers(self) -> None:
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        for worker in self._workers():
            worker.tell_safe(now)
        for worker in [each for each in self._departed if each.finished]:
            self._departed.remove(worker)
            worker.remove_safe()
            worker.close()

    # ---- after a death ------------------------------------------------------------

    async def recall(self, worker: Worker) -> None:
        """Learn what of a worker's kept records is written, before it is read."""
        worker.suspicious |= self._restarted
        key = worker.oldest_key() if worker.suspicious else b""
        if key:
            await self.fanout.recall(key)

    def _take_leftovers(self) -> None:
        """Read what processes that are gone have parked on disk."""
        present = {worker.stream for worker in self._workers()}
        leftovers = Leftovers.find(self.identifier, present)
        if leftovers is not None:
            self._gathering = asyncio.create_task(self._read_leftovers(leftovers))

    async def _read_leftovers(self, leftovers: Leftovers) -> None:
        await self.fanout.recall(leftovers.oldest_key())
        self._leftovers.append(leftovers)
        self.register(leftovers)
        self._gathering = None
        self.wake()

    def _ended(self, source: Worker | Stream | Leftovers, why: str) -> None:
        if isinstance(source, Worker) and source.claim_orphans(self.identifier):
            return
        self._poll.unregister(source.pipe)
        del self.sources[source.pipe]
        if isinstance(source, Worker):
            self.reception.hang_up(source)
            source.depart()
            self._departed.append(source)
            self.report.ended(source, why)
        else:
            source.close()

    def foreign_event(self, details: dict[str, Any]) -> None:
        """A record that the supervisor sends; behind a process's last words if asked."""
        pid = details.pop("after_pid", None)
        if isinstance(pid, int):
            deadline = self.now_ns() + EVENT_PATIENCE_NS
            self.report.event_after(pid, details, deadline)
        else:
            self.report.event(str(details.pop("message", "")), details)

    # ---- what there is to see -----------------------------------------------------

    def head(self) -> dict[str, Any]:
        """What a viewer is told first."""
        workers = sum(isinstance(each, Worker) for each in self.sources.values())
        return {"run": self.run_id, "workers": workers}

    def status(self) -> dict[str, Any]:
        """Counters of everything, as JSON."""
        now = clock_gettime_ns(CLOCK_MONOTONIC)
        workers = [worker.statistics() for worker in self._workers()]
        sinks = self.fanout.statistics()
        return {
            "run": self.run_id,
            "pid": os.getpid(),
            "reloadable": self._reread is not None,
            "socket": self.path,
            "uptime": (now - self._started_ns) / 1e9,
            "records": self.records,
            "pending": len(self.merger),
            "late": self.merger.late,
            "window": self.merger.window_ns / 1e9,
            "refused": self.reception.refused,
            "viewers": len(self.reception.viewers),
            "workers_ended": self.report.exits,
            "ended": dict(self.report.totals),
            "workers": workers[:200],
            "lag": max((sink["oldest"] for sink in sinks), default=0.0),
            "sinks": sinks,
        }


def _file_of(descriptor: int) -> tuple[int, int]:
    """What a descriptor is open on, whatever its number."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def main(config: dict[str, Any]) -> None:
    """Be a consumer: what `logagg.launch.spawn` starts."""
    gc.freeze()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # three for each worker
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    async def live() -> int:
        return await Consumer(config).run()

    sys.exit(asyncio.run(live()))
