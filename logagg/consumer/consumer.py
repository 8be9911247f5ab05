"""The consumer: the one process that reads, orders and fans out.

Theory of operation
-------------------
It is started on a listening socket that another process made (`logagg.ipc.launcher`),
so connections may wait in it already; `logagg.consumer.listener` handles them.

Reading goes in cycles. In between nothing watches the pipes, so a worker's write wakes
no process, which keeps it as cheap as a write can be, and each cycle moves many records
at once:

    10 ms          between two cycles while records come
    1 to 25 ms     under load: what makes no worker's pipe more than 3/8 full
    IDLE_CYCLES    cycles without a record, then the pipes are watched until one is
                   readable, IDLE_WAIT (0.25 s) at most

So a record reaches its sinks about 10 ms, under load 25 ms, and the merge's window (20 ms
on a quiet machine, see `logagg.core.merge`) after its log call.

A cycle: now = T; read every readable source; accept connections; add the consumer's own
records; release up to the watermark; number the batch and offer it to the sinks and the
viewers; acknowledge to workers what the durable sinks have.
After a consumer that died it takes over: see `logagg.consumer.orphan_source`.

One part that fails takes no other along: a source or a viewer that raises ends alone, a
sink has failed or drops what it cannot take, a task that dies is reported. An error of
the cycle itself ends the consumer in good order, and the next one takes over.

Life: it ends when the last worker has gone, everything is written and LINGER seconds
passed without a new one, unless its configuration has `stay`. FAILING_WAIT after the end
of a run it gives up sinks that fail. It ends before that when only guests are left.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from time import CLOCK_MONOTONIC, clock_gettime, clock_gettime_ns
from typing import Any

import msgspec

from logagg.abc import Batch
from logagg.consumer.acks import AckTracker
from logagg.consumer.clock_steps import ClockWatch
from logagg.consumer.event_log import EventLog
from logagg.consumer.listener import ConsumerListener
from logagg.consumer.orphan_source import OrphanSource, Takeover
from logagg.consumer.output_source import OutputSource
from logagg.consumer.source import CYCLE, FlushAnswers, SourceSet
from logagg.consumer.subscribers import Subscribers
from logagg.consumer.worker_source import SourceState, WorkerSource
from logagg.core.line import received_suffix, record_id
from logagg.core.merge import Merger, OfTheDead, Stamps
from logagg.errors import ExitStatus, LogaggError
from logagg.fanout.fanout import Fanout
from logagg.fanout.registry import SINK_WAITS, SinkRegistry
from logagg.fanout.watched_tasks import WatchedTasks, limit_searches
from logagg.ipc import failpoints, launcher, paths
from logagg.ipc.descriptors import set_limits
from logagg.ipc.protocol import ConsumerConfig, HolderPacket, StreamHello, ViewerControl
from logagg.ownership import TargetOwners
from logagg.platform.held_signals import CONSUMER_SIGNALS, to_the_end
from logagg.platform.terminal_text import complain

__all__ = ["Consumer", "main"]

IDLE_CYCLES = 10
IDLE_WAIT = 0.25
LINGER = float(os.environ.get("LOGAGG_LINGER") or 0.5)
FIRST_WAIT = 10.0
STOP_TIMEOUT = 5.0
GIVE_WAY_TIMEOUT = 0.3
CLOSE_TIMEOUT = 10.0
FAILING_WAIT = 25.0  # longer than a run waits for its consumer
MAX_FUTURE_NS = 1_000_000_000
MAX_STATUS_WORKERS = 200


class Consumer:
    """One consumer; `run` is its life. All state belongs to its event loop.

    Args:
        config: From the process that starts it.
        reread: Gives the sinks as they are configured now, for a reload.
    """

    def __init__(
        self, config: ConsumerConfig, reread: Callable[[], list[str]] | None = None
    ) -> None:
        self._config = config
        self._reread = reread
        self._identifier = paths.identifier_of(config.socket)
        self._run_id = os.urandom(4).hex()
        self._started_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        self._records = 0
        self._stop_at = 0.0
        self._woken = asyncio.Event()
        self._clock = ClockWatch(config.socket, config.offset)
        self._now_ns = self._clock.now_ns
        self._merger = Merger()
        self._workers: list[WorkerSource] = []  # departed ones too, until all is safe
        self._acks = AckTracker()
        self._events = EventLog(self._now_ns, self.wake)
        self._tasks = WatchedTasks(self._events.part_failed)
        self._sources = SourceSet(self._events.part_failed)
        self._owners = TargetOwners(
            config.socket, self._has_configuration, self._events.not_locked
        )
        rest = (self._now_ns, self.stop, self._tasks, self._owners)
        self._fanout = Fanout(self._events.event, self._release_acks, *rest)
        self._registry = SinkRegistry(self._fanout, self._sources.captures)
        self.open_sinks = self._registry.want
        self._subscribers = Subscribers(self._first_line, self._events.part_failed)
        self._listener = ConsumerListener(
            self, self._subscribers, socket.socket(fileno=config.fd), config.socket
        )
        self._takeover = Takeover(config, self._fanout, self._tasks, self._add_orphans)

    # ---- life ---------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until there is nothing to do any more.

        Returns:
            The exit status: FAILED when a required sink has failed, UNWRITTEN when
            records were left unwritten.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._callback_failed)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGUSR1, self._fanout.reopen)
        loop.add_signal_handler(
            signal.SIGHUP, lambda: self.start_task(self.reload(None), "the reload")
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CONSUMER_SIGNALS)
        self._events.take_warnings()
        if failpoints.ACTIVE:
            failpoints.hit("start")
        waits = self._config.restarted
        for url in self._config.sinks:
            error = await self._registry.add(url, [1, 2], wanted=True, waits=waits)
            if error:
                complain(f"logagg: {error}")
            if error and not error.startswith(SINK_WAITS):
                self._listener.stop(anyway=True)
                return 2
        self._listener.start()
        end_metrics = await self._start_metrics()
        with limit_searches():
            try:
                await self._serve()
            finally:
                left = await self._end()
                if end_metrics is not None:
                    await end_metrics()
        paths.forget_spool_dir(self._identifier, self._config.spool)
        status = ExitStatus.UNWRITTEN if left else ExitStatus.OK
        return ExitStatus.FAILED if self._fanout.failed else status

    def _callback_failed(self, _: Any, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(str(context.get("message")))
        self._events.part_failed("a callback", error)

    async def _end(self) -> int:
        """Write what was read and acknowledge it; return how many records were lost."""
        self._sources.read_rest(self._merger, self._now_ns())
        self._offer_rest()
        if failpoints.ACTIVE:
            failpoints.hit("closing")
        left = await self._fanout.close(CLOSE_TIMEOUT, self._offer_rest)
        self._release_acks()
        self._acks.send(sys.maxsize)  # now: it is the last time
        self._subscribers.push()
        return left

    async def _start_metrics(self) -> Callable[[], Awaitable[None]] | None:
        """Serve metrics where they are wanted; return what ends that."""
        address, listener = self._config.metrics, self._config.metrics_fd
        if listener is None and not address:
            return None
        from logagg.consumer.metrics import start  # aiohttp: only when it is wanted

        return await start(listener, address, self.status, self._events.event)

    async def _serve(self) -> None:
        last_use = clock_gettime(CLOCK_MONOTONIC)
        quiet = 0
        while True:
            moved = self.cycle()
            busy = self._subscribers.push() or moved or len(self._merger)
            quiet = 0 if busy else quiet + 1
            now = clock_gettime(CLOCK_MONOTONIC)
            if self._sources or self._listener.holders.count or moved:
                last_use = now
            if self._may_end(now, last_use):
                if self._listener.stop(anyway=0 < self._stop_at < now):
                    return
                last_use = now
            if quiet > IDLE_CYCLES and not self._fanout.blocked:
                self._woken.clear()
                await self._sources.wait(self._woken, IDLE_WAIT)
            else:
                await asyncio.sleep(self._sources.pause)

    def _may_end(self, now: float, last_use: float) -> bool:
        if self._is_left_to_guests(now):
            self.stop(GIVE_WAY_TIMEOUT)
        if self._stop_at:
            # All that has come is written; workers that still log get STOP_TIMEOUT.
            return now > self._stop_at or (not self._sources and self._fanout.idle)
        if self._config.stay:
            return False
        if not self._fanout.idle:
            # A sink that makes progress is waited for, however long it takes.
            used = self._sources or self._listener.holders.count
            left_at = now if used else self._listener.holders.left_at
            return 0 < left_at < now - FAILING_WAIT and self._fanout.failing
        return now - last_use > (LINGER if self._listener.seen else FIRST_WAIT)

    def _is_left_to_guests(self, now: float) -> bool:
        """Whether a run is over and all that still log can have their own consumer."""
        left_at, guests = self._listener.holders.left_at, self._attached
        return (
            0 < left_at < now - (0 if self._fanout.idle else STOP_TIMEOUT)
            and 0 < len(guests) == len(self._sources)
            and all(each.hello.elects for each in guests)
        )

    def wake(self) -> None:
        """Begin a cycle now."""
        self._woken.set()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """End as soon as all that has come is written, in `timeout` seconds at most."""
        if not self._stop_at:
            self._stop_at = clock_gettime(CLOCK_MONOTONIC) + timeout
        self.wake()

    def give_way(self, successor: str) -> None:
        """See `ListenerHost`."""
        if self._has_configuration():
            raise ValueError("this consumer has a configuration of its own")
        self._owners.successor = successor
        self.stop(GIVE_WAY_TIMEOUT)

    def _has_configuration(self) -> bool:
        return self._config.stay or self._listener.holders.count > 0

    # ---- configuration ------------------------------------------------------------

    async def reload(self, urls: list[str] | None) -> str:
        """Read the configuration again, or replace its sinks, from the next batch on.

        Args:
            urls: The new sinks; None: the configuration's; without one, reopen all.

        Returns:
            What is wrong with it, and then everything is as it was; or nothing.
        """
        try:
            if urls is None and self._reread is None:
                self._fanout.reopen()
                return ""
            urls = self._reread() if urls is None and self._reread else urls
            error = await self._registry.reconfigure(urls or [])
        except (LogaggError, OSError) as failure:
            error = str(failure)
        except Exception as failure:  # noqa: BLE001 - a sink's or `reread`'s own fault
            error = f"{type(failure).__name__}: {failure}"
        names = ", ".join(each.name for each in self._fanout.runners.values())
        self._events.reloaded(error, names)
        return error

    async def owner(self, urls: list[str]) -> str:
        """See `ListenerHost`."""
        return await self._registry.owner(urls, self._identifier)

    # ---- sources ------------------------------------------------------------------

    def start_task(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """See `ListenerHost`."""
        self._tasks.start(work, name)

    def add_worker(self, worker: WorkerSource) -> None:
        """See `ListenerHost`."""
        worker.on_departure = self._worker_departed
        worker.answers = FlushAnswers(lambda: self._fanout.dropped)
        worker.stamps = Stamps(worker.hello.clocks, self._clock.offset_ns)
        self._workers.append(worker)
        self._acks.sources.append(worker)
        self._sources.add(worker)

    def _worker_departed(self, worker: WorkerSource, reason: str) -> None:
        self._listener.disconnect(worker)
        self._events.worker_ended(worker, reason)

    def forget_worker(self, worker: WorkerSource) -> None:
        """See `ListenerHost`."""
        self._workers.remove(worker)
        self._acks.sources.remove(worker)
        self._sources.discard(worker)
        worker.close()

    @property
    def _attached(self) -> list[WorkerSource]:
        gone = SourceState.DEPARTED
        return [each for each in self._workers if each.state is not gone]

    def add_output(self, pipe: int, hello: StreamHello) -> None:
        """See `ListenerHost`."""
        last_lines = self._events.last_lines_of(hello.pid)
        source = OutputSource(pipe, hello, self._clock, last_lines)
        if not self._sources.add(source):
            source.close()  # it was handed over twice

    def has_sources(self) -> bool:
        """See `ListenerHost`."""
        return bool(self._sources)

    def add_event(self, message: HolderPacket) -> None:
        """See `ListenerHost`."""
        self._events.of_holder(message)

    # ---- the cycle ----------------------------------------------------------------

    def cycle(self) -> int:
        """Read, order, release, offer, acknowledge; return how many lines moved."""
        self._clock.check(self._workers, self._events)
        now = self._now_ns()
        if self._fanout.blocked:
            # Nothing was read, so no line can be known to be final.
            self._sources.pause = CYCLE
            self._acknowledge()
            return 0
        age = (clock_gettime_ns(CLOCK_MONOTONIC) - self._started_ns) / 1e9
        held = self._takeover.holds(age, self._workers) and not self._stop_at
        moved = 0
        if not (held and self._merger.full):
            moved = self._sources.read(self._merger, now)
        self._listener.poll()
        self._sources.hold_unread(self._merger)
        if failpoints.ACTIVE and moved:
            failpoints.hit("after_read")
        self._events.report(now, self._sources, self._workers, self._merger)
        moved += self._events.add_to(self._merger)
        # A worker may have changed to a coming offset during the reading.
        latest = self._now_ns() + self._clock.ahead_ns + MAX_FUTURE_NS
        self._events.drop_foreign_lines(self._merger, self._acks, latest)
        if not held:
            flushing = self._sources.all_flushing
            before = self._sources.read_ns
            self._offer(self._merger.release(before, flushing=flushing))
        self._fanout.tick()
        self._acknowledge()
        return moved

    def _offer(self, lines: list[bytes]) -> None:
        if not lines:
            return
        self._records += len(lines)
        batch = Batch(lines, received_suffix(self._now_ns()))
        duplicates = frozenset[bytes]()
        if self._sources.possible_duplicates:
            open_ = self._sources.possible_duplicates
            duplicates = frozenset(open_.intersection(map(record_id, lines)))
            open_ -= duplicates
        self._fanout.put(batch, duplicates)
        self._subscribers.offer(lines, batch)

    def _offer_rest(self) -> None:
        self._events.add_to(self._merger)
        self._offer(self._merger.release(self._now_ns(), all_ended=True))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Note what the newest batch holds of each source; send what is safe."""
        released_before = self._merger.released_before
        announced = self._events.take_announced(released_before)
        self._acks.record(self._fanout.number, released_before, announced)
        if any(worker.flush_to for worker in self._workers):
            self._fanout.flush()
        self._release_acks()
        if self._acks.send(clock_gettime_ns(CLOCK_MONOTONIC)):
            self._workers = [each for each in self._workers if not each.finished]
        self._takeover.forget(self._sources, self._workers)

    def _release_acks(self) -> None:
        """Acknowledge the batches that the durable sinks have."""
        if failpoints.ACTIVE and self._acks:
            failpoints.hit("before_ack")
        self._acks.release(self._fanout.safe)

    async def check_resumed(self, worker: WorkerSource) -> None:
        """See `ListenerHost`."""
        await self._takeover.check(worker)

    def _add_orphans(self, orphans: OrphanSource) -> None:
        orphans.stamps = OfTheDead(self._now_ns())
        self._acks.sources.append(orphans)
        self._sources.add(orphans)
        self.wake()

    # ---- what there is to see -----------------------------------------------------

    def _first_line(self) -> ViewerControl:
        return ViewerControl(run=self._run_id, workers=len(self._attached))

    def status(self) -> dict[str, Any]:
        """Counters of everything, as JSON."""
        sinks = self._fanout.statistics()
        return {
            "run": self._run_id,
            "pid": os.getpid(),
            "reloadable": self._reread is not None,
            "socket": self._config.socket,
            "uptime": (clock_gettime_ns(CLOCK_MONOTONIC) - self._started_ns) / 1e9,
            "records": self._records,
            "pending": len(self._merger),
            "late": self._merger.late,
            "window": self._merger.window_ns / 1e9,
            "refused": self._listener.refused,
            "viewers": len(self._subscribers),
            **self._events.statistics(),
            "workers": [
                each.statistics() for each in self._workers[:MAX_STATUS_WORKERS]
            ],
            "lag": max((sink["oldest"] for sink in sinks), default=0.0),
            "sinks": sinks,
        }


def main(config: dict[str, Any]) -> None:
    """Run a consumer: what `logagg.ipc.launcher.spawn` starts."""
    gc.freeze()
    set_limits()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    async def live() -> int:
        return await to_the_end(Consumer(msgspec.convert(config, ConsumerConfig)).run())

    status = asyncio.run(live())
    # Not that of an uncaught exception, after which it is started again.
    sys.exit(launcher.SINK_FAILED if status == ExitStatus.FAILED else status)
