"""One run of the simulation: workers that log, consumers that come and go.

The product's own code runs: `Transport` and all below it in the workers, `Consumer` with
the listener, the sources, the merge, the fan-out, the runner and the real file sink in
the consumers, and the start-up election between them. What is left out is the handler's
encoding, forks, and whatever runs in other processes by design.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import loops
import msgspec
import seam
from draws import AT_STEPS, Draw, Script, draw
from judge import STDERR, Ledger, judge
from world import Process, Schedule, Thread, Violation, World

import logagg.sinks
import logagg_sinks._executor
import logagg_sinks.file.file_sink
from logagg.abc import Batch
from logagg.client import sink_urls
from logagg.client.delivery_state import DeliveryState
from logagg.client.line_delivery import LineDelivery
from logagg.client.spool_writer import stream_of
from logagg.client.transport import Transport
from logagg.consumer.consumer import Consumer
from logagg.core.line import received_suffix
from logagg.fanout.fanout import spool_of
from logagg.fanout.registry import SinkRequest
from logagg.ipc import descriptors, paths
from logagg.ipc.connection import StderrNotices
from logagg.ipc.protocol import ConsumerConfig
from logagg.testing import make_line

known_sinks = functools.cache(logagg.sinks.known)  # the same for all processes

__all__ = ["Outcome", "run", "shrink"]

SECOND = 1_000_000_000
MAX_CHAOS = 8
FIRST_DESCRIPTOR = 256
BURST = 600
LONG_AGO = 1_700_000_000 * SECOND
MOST_INTERRUPTS = 4
CLOCK_STEPS = (-3600, -30, -2, -1, 1, 2, 30, 3600)


@dataclass
class Outcome:
    """What came of a seed.

    Attributes:
        fault: The promise that was broken; empty: none.
        story: What happened, a line each.
        seconds: Virtual time.
        counts: How often each kind of thing happened.
    """

    seed: int
    schedule: Schedule
    fault: str = ""
    story: list[str] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)


class Scene:
    """A world with a log file, its workers and its consumers."""

    def __init__(self, world: World, folder: Path, drawn: Draw) -> None:
        self.world = world
        self.folder = folder
        self.drawn = drawn
        self.ledger = Ledger()
        self.counts: collections.Counter[str] = collections.Counter()
        self.consumers: list[Process] = []
        self.workers: list[Process] = []
        self._loops: dict[Process, loops.Loop] = {}
        self._transports: dict[Process, Transport] = {}
        self._unconfirmed: list[Process] = []
        self._over: set[Process] = set()
        self._deliveries: set[LineDelivery] = set()
        self._handed_over: dict[Process, int] = {}
        self._living: dict[Process, Consumer] = {}
        self._registered: set[Process] = set()  # with multiprocessing, for their end
        self._killed = False

    def play(self) -> None:
        """Let the workers do their work, then calm down, and judge.

        Raises:
            Violation: A promise was broken.
        """
        world = self.world
        self._leave_behind(self.drawn.left_behind)
        for script in self.drawn.scripts:
            self._start_worker(script)
        if self.drawn.stranger:
            stranger = world.process("stranger")
            self.ledger.strangers.add(str(stranger.pid))
            stranger.start(lambda: self._be_strange(stranger))
        world.chaos = self._chaos
        if set(AT_STEPS) & set(self.drawn.rates):
            world.at_step = self._at_step
        world.run(lambda: not any(each.alive for each in self.workers))
        world.note("calm")
        world.calm = True
        if world.hung:
            self._judge_beside_hung_sink()
            world.hung = False
        world.run(lambda: not any(each.alive for each in self.consumers))
        # What is left on disk is for the next consumer, whoever starts it.
        left = [stream_of(str(path)) for path in self.folder.rglob("*-*.spool")]
        pid = int(left[0].partition("-")[0]) if left and self.drawn.pid_returns else 0
        last = self._start_worker([("log", 10), ("flush", 5.0)], pid)
        world.run(lambda: not last.alive)
        world.run(lambda: not any(each.alive for each in self.consumers))
        self.ledger.drops = sum(each.drops.count for each in self._deliveries)
        if self.ledger.drops and self.drawn.takes_everything:
            raise Violation(f"{self.ledger.drops} records were dropped")
        judge(self.ledger, self.folder, strict_order=self.drawn.strict_order)

    def _leave_behind(self, count: int) -> None:
        """Spool a record each, as consumers do that end one beside the other."""
        url = f"file:{self.folder / 'app.log'}{self.drawn.sink}"
        key = SinkRequest(url).key
        spools = [spool_of(key, logagg.sinks.build(url)) for _ in range(count)]
        for number, spool in enumerate(spools):
            call = self.ledger.begin(-1, -1, number, 0)
            call.ended = 1
            line = make_line(number, worker="left", id=call.name, base_ns=LONG_AGO)
            spool.append(Batch([line], received_suffix(LONG_AGO)))
        for spool in spools:
            spool.close()

    # ---- consumers ------------------------------------------------------------------

    def spawn(self, listener: Any, config: dict[str, Any], *_: Any) -> None:
        """Stands in for `launcher.spawn`: start a consumer on a listening socket."""
        world = self.world
        world.step()
        if world.decide("spawn"):
            raise OSError(11, "no process could be started")
        process = world.process(f"consumer{len(self.consumers) + 1}")
        descriptor = os.dup(listener.fileno())
        process.own(descriptor)
        self.consumers.append(process)
        world.note(f"starts {process.name}")
        process.start(lambda: self._consume(process, {**config, "fd": descriptor}))

    def _consume(self, process: Process, config: dict[str, Any]) -> None:
        world = self.world
        loop = self._loops[process] = loops.Loop(world, process)

        async def live() -> int:
            listens = os.fstat(config["fd"]).st_ino
            try:
                made = Consumer(msgspec.convert(config, ConsumerConfig))
            except OSError as error:  # no descriptor for what it needs: it ends at once
                world.note(f"cannot start: {error}")
                self._consumer_died()
                with contextlib.suppress(OSError):
                    if os.fstat(config["fd"]).st_ino == listens:
                        os.close(config["fd"])
                return 1
            self._living[process] = made
            return await made.run()

        world.block(None, 20_000_000 + world.random_time())  # an interpreter starts
        asyncio.set_event_loop(loop)
        status = loop.run_until_complete(loop.create_task(live()))
        world.note(f"ends with status {status}")
        self.counts[f"status {status}"] += 1
        process.release()

    # ---- workers --------------------------------------------------------------------

    def _start_worker(self, script: Script, pid: int = 0) -> Process:
        process = self.world.process(f"worker{len(self.workers) + 1}")
        process.pid = pid or process.pid
        self.workers.append(process)
        process.start(lambda: self._work(process, script))
        return process

    def _work(self, process: Process, script: Script) -> None:
        world = self.world
        made = self._transport(self.workers.index(process))
        self._transports[process] = made
        self._follow(process, script, 0)
        while len(process.threads) > 1:
            with contextlib.suppress(KeyboardInterrupt):
                world.block(lambda: len(process.threads) == 1, SECOND)
        done = False
        is_child = self.workers.index(process) in self.drawn.children
        if not is_child or process in self._registered:
            for _ in range(MAX_CHAOS + 1):
                try:
                    with self.ledger.call(process.number, 0, world.steps):
                        done = made.close(5.0, at_exit=True)
                    break
                except KeyboardInterrupt:
                    continue
        self._over.add(process)  # what a handler logs from here on has no exit handler
        world.note(f"exit: {done}")
        self._unconfirmed.append(process)  # a signal may have logged since
        process.release()

    def _transport(self, number: int) -> Transport:
        """What the handlers of a worker share."""
        path = self.folder / "app.log"
        urls = [f"file:{path}{self.drawn.sink}"]
        if number == 0 and self.drawn.refused_sink:
            urls.append("nowhere:x")
        if number == 0 and self.drawn.hung_sink:
            urls.append(f"file:{self.folder}/{seam.HUNG}/other.log")
        address = paths.socket_path(paths.identity(urls[:1]))
        made = Transport(address, urls, elect=True)
        for policy in self.drawn.policies:
            made.users += 1
            sink_urls._choose_overflow(made, policy)
        made.users = 0  # nothing of it is for another process
        made._queued = _Queue()
        return made

    def _be_strange(self, process: Process) -> None:
        """Log a little, and then write what is no record."""
        made = self._transport(-1)
        for _ in range(3):
            made.send("info", b'"logger":"app","message":"m"')
        pipe = made.delivery._attachment.pipe
        start = b'{"timestamp":"2026-09-21T15:36:40.5%08dZ","level":"info",'
        start = start % self.world.steps + b'"worker":"%d","seq":' % process.pid
        for garbage in (
            start + b'99999999999999999999,"message":"m"',
            start + b"9" * 3000 + b',"message":"m"', start + b"9" * 5000 + b',"m":1',
            b"[" * 3000, b"\0\xff" * 500, b'{"timestamp":"',
            start + b'-5,"message":"m"', start + b'12345678901234567,"message":"m"',
        ):  # fmt: skip
            if pipe is not None and pipe.write >= 0:
                with contextlib.suppress(OSError):
                    seam.OS.write(pipe.write, garbage + b"\n")
        made.close(5.0, at_exit=True)
        process.release()

    def _judge_beside_hung_sink(self) -> None:
        """A sink that does not answer must not keep others from their records."""
        world = self.world
        until = world.now + 60 * SECOND
        waits = world.process("waits").start(lambda: world.block(None, 60 * SECOND))
        world.run(lambda: world.now >= until and waits.greenlet.dead)
        if self._killed or not self.drawn.is_well:
            return
        log = b"".join(each.read_bytes() for each in self.folder.glob("app.log*"))
        gone = [
            each.name
            for each in self.ledger.calls
            if each.ended and b'"%b"' % each.name.encode() not in log
        ]
        if gone:
            raise Violation(f"a sink that hangs keeps another from {gone[:10]}")

    def _follow(self, process: Process, script: Script, stream: int) -> None:
        world, made = self.world, self._transports[process]
        for action, *arguments in script:
            try:
                match action:
                    case "log":
                        self._log(process, stream, *arguments)
                    case "flush":
                        with self.ledger.call(process.number, stream, world.steps):
                            self._flush(process, *arguments)
                    case "sleep":
                        world.block(None, *arguments)
                    case "close":
                        with self.ledger.call(process.number, stream, world.steps):
                            done = made.close(5.0, at_exit=False)
                        world.note(f"close: {done}")
                        if not done:
                            self.ledger.leave(process.number)
                    case "thread":
                        inner = list(*arguments)
                        process.start(lambda i=inner: self._follow(process, i, 1), "1")
            except KeyboardInterrupt:
                world.note("KeyboardInterrupt")

    def _log(self, process: Process, stream: int, size: int) -> None:
        call = self.ledger.begin(process.number, process.pid, stream, self.world.steps)
        body = b'"logger":"app","message":"%b","id":"%b"'
        made = self._transports[process]
        try:
            with self.ledger.call(process.number, stream, call.begun):
                made.send("info", body % (b"x" * size, call.name.encode()))
        finally:
            self._deliveries.add(made.delivery)  # after a close it is another one
        self.world.step()
        call.ended = self.world.steps

    def _flush(self, process: Process, timeout: float) -> None:
        before = self.ledger.missing(())
        done = self._transports[process].flush(timeout)
        self.world.note(f"flush: {done}")
        if not done:
            return
        everything = b"".join(
            each.read_bytes() for each in self.folder.rglob("*") if each.is_file()
        )
        mine = {
            each.name
            for each in self.ledger.calls
            if each.worker == process.number and not each.nested
        }
        promised = mine.intersection(before) - self.ledger.left
        gone = [each for each in promised if b'"%b"' % each.encode() not in everything]
        if len(gone) > sum(each.drops.count for each in self._deliveries):
            raise Violation(f"flush: True, and {sorted(gone)[:10]} are nowhere")

    # ---- chaos ----------------------------------------------------------------------

    def _chaos(self) -> None:
        """Now and then, before somebody runs: a death, a pause, a step, a signal."""
        kinds = self.drawn.chaos
        chosen = self.world.decide("chaos", len(kinds) * 8)
        if not chosen or self.counts["chaos"] >= MAX_CHAOS:
            return
        kind, which = kinds[(chosen - 1) // 8], (chosen - 1) % 8
        self.counts["chaos"] += 1
        self.counts[kind] += 1
        alive = [each for each in self.world.processes if each.alive and each.threads]
        if kind == "clock":
            self.world.wall_offset += CLOCK_STEPS[which] * SECOND
            self.world.note(f"the wall clock steps by {CLOCK_STEPS[which]} s")
            return
        if kind.endswith("_consumer") or kind == "reload":
            alive = [each for each in alive if each in self.consumers]
        elif kind != "suspend":
            alive = [each for each in alive if each in self._transports]
        if kind == "fill_disk":
            self.world.full_until = self.world.now + (1 + which) * SECOND
            self.world.note(f"the disk is full for {1 + which} s")
            return
        if alive:
            victim = alive[which % len(alive)]
            self._killed |= kind.startswith(("kill", "term"))
            self.world.note(f"{kind}: {victim.name}")
            getattr(self, f"_{kind}")(victim, which)

    def _at_step(self, thread: Thread) -> None:
        """Now and then, in the middle of a worker's call: a signal or a fork."""
        victim = thread.process
        if thread.name != "main" or victim not in self._transports:
            return
        for kind in AT_STEPS:
            if self.world.decide(kind) and self.counts["at steps"] < MAX_CHAOS:
                self.counts["at steps"] += 1
                self.counts[kind] += 1
                getattr(self, f"_{kind.removesuffix('_here')}")(victim, 0)

    def _suspend(self, victim: Process, which: int) -> None:
        victim.suspended_until = self.world.now + (1 + which) * 150_000_000

    def _kill_consumer(self, victim: Process, _: int) -> None:
        """What a consumer alone had of processes that are gone is lost with it."""
        victim.kill()
        self._consumer_died()

    def _consumer_died(self) -> None:
        for worker in self._unconfirmed:
            self.ledger.excuse(worker.number, self._spooled())
        self.ledger.excused |= self.ledger.left
        for worker, made in self._transports.items():
            self._handed_over[worker] = made.delivery._handovers

    def _spooled(self) -> bytes:
        """What processes have on disk for their consumer."""
        files = [each for each in self.folder.rglob("*.spool") if each.is_file()]
        return b"".join(each.read_bytes() for each in files)

    def _term_consumer(self, victim: Process, _: int) -> None:
        loop = self._loops.get(victim)
        if loop is not None and signal.SIGTERM in loop.handlers:
            loop.signal(signal.SIGTERM)

    def _kill_worker(self, victim: Process, _: int) -> None:
        """What a worker alone had since its consumer's death is lost with it.

        A consumer that is told to end reads nothing more after its time: as if dead.
        """
        made = self._transports[victim]
        queue = made._queued  # the interrupted call was to send them
        assert isinstance(queue, _Queue)
        in_hand = [queue.taken] if made._busy or made._sends_queued else []
        for _, body in (*queue, *in_hand):
            self.ledger.excused.add(body.rpartition(b'"id":"')[2].strip(b'"').decode())
        self.ledger.excuse_queued(victim.number)
        if made.delivery.state is DeliveryState.TORN:
            self.ledger.cut.add(str(victim.pid))
        victim.kill()
        self._unconfirmed.append(victim)
        now = self.world.now / SECOND
        reads_no_more = any(
            process.alive and 0 < consumer._stop_at < now
            for process, consumer in self._living.items()
        )
        if reads_no_more or self._handed_over.get(victim) == made.delivery._handovers:
            self.ledger.excuse(victim.number, self._spooled())

    def _signal(self, victim: Process, _: int, records: int = 3) -> None:
        def handle() -> None:
            for _ in range(0 if victim in self._over else records):
                self._log(victim, -1 - len(self.ledger.calls), 30)

        self._deliver(victim, handle)

    def _burst(self, victim: Process, which: int) -> None:
        """One handler logs more records than calls may be nested."""
        self._signal(victim, which, 3 if self.counts["burst"] > 1 else BURST)

    def _fork(self, victim: Process, _: int) -> None:
        """A child lives on: it has what its parent has open, but for what it closes.

        A fork waits for a thread that is about to open something; here it is left out.
        """
        if seam.NO_FORK.held[victim]:
            return
        closed = {each.number for each in descriptors._owned}
        child = self.world.process(f"child of {victim.name}")
        numbers = victim.descriptors.union(each.fileno() for each in victim.owners)
        for number in sorted(numbers - closed):
            with contextlib.suppress(OSError):
                child.own(os.dup(number))

    def _reload(self, victim: Process, which: int) -> None:
        loop, consumer = self._loops.get(victim), self._living.get(victim)
        if loop is None or consumer is None or not loop.is_running():
            return
        options = ("", "?backups=98", "?max_bytes=9kB&backups=98")[which % 3]
        if self.drawn.fills:
            options = self.drawn.sink + options.replace("?", "&")
        urls = [f"file:{self.folder / 'app.log'}{options}"]

        def reload() -> None:
            consumer.start_task(consumer.reload(urls), "the reload")

        loop.call_soon_threadsafe(reload)

    def _interrupt(self, victim: Process, _: int) -> None:
        """Once a run: that a second one comes in the repair after the first is left out."""
        self.counts["interrupts"] += 1
        if self.counts["interrupts"] > MOST_INTERRUPTS:
            return

        def handle() -> None:
            raise KeyboardInterrupt

        self._deliver(victim, handle)

    def _deliver(self, victim: Process, handle: Callable[[], None]) -> None:
        for thread in victim.threads:
            if thread.name == "main":
                thread.signals.append(handle)


def run(seed: int, schedule: Schedule | None = None) -> Outcome:
    """Play one seed, or one schedule of it, to its end, and judge it."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # of killed processes
    try:
        outcome = _run(seed, schedule)
        gc.collect()  # what was killed, before its warnings mean something
    finally:
        sys.unraisablehook = hook
    return outcome


def _run(seed: int, schedule: Schedule | None) -> Outcome:
    drawn = draw(seed)
    world = World(seed, schedule, drawn.rates)
    outcome = Outcome(seed, world.schedule)
    with _reproducible(), _folder() as folder:
        scene = Scene(world, folder, drawn)
        with _redirected(world, scene, drawn):
            try:
                scene.play()
            except Violation as violation:
                outcome.fault = str(violation)
                if violation.__cause__ is not None:
                    outcome.fault += "\n" + "".join(
                        traceback.format_exception(violation.__cause__)
                    )
            finally:
                world.close()
                gc.collect()
    outcome.story = world.log
    outcome.steps = world.steps
    outcome.seconds = world.seconds
    outcome.counts = dict(scene.counts)
    return outcome


@contextmanager
def _reproducible() -> Iterator[None]:
    """Keep away what differs from one real process to the next.

    Descriptors have the same numbers, since sets of them are iterated; and objects in
    cycles, some of which have descriptors, live until the end, not until a collection.
    """
    collects = gc.isenabled()
    with warnings.catch_warnings(action="ignore"):  # of what others have left open
        gc.collect()
    gc.freeze()
    gc.disable()
    handlers = logging.root.handlers[:]  # each consumer adds one, for all its life
    taken = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    while taken[-1] < FIRST_DESCRIPTOR:
        taken.append(os.dup(taken[0]))
    os.close(taken.pop())
    try:
        yield
    finally:
        for each in taken:
            os.close(each)
        logging.root.handlers[:] = handlers
        if collects:
            gc.enable()


@contextmanager
def _folder() -> Iterator[Path]:
    """A directory in memory that is home, state and runtime directory at once."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = Path(tempfile.mkdtemp(prefix="lg", dir=base))
    names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(folder)))
    try:
        yield folder
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _redirected(world: World, scene: Scene, drawn: Draw) -> Iterator[None]:
    """The product's modules in the simulated world."""
    replaced: dict[tuple[str, str], Any] = {
        ("logagg.ipc.launcher", "spawn"): scene.spawn,
        ("logagg.sinks", "known"): known_sinks,
        ("logagg.fanout.registry", "known"): known_sinks,
        ("logagg.ipc.paths", "_LASTING"): str(scene.folder),
        ("logagg.consumer.listener", "is_pid_of"): lambda *_: True,
        ("logagg.client.line_delivery", "KEEP_BYTES"): drawn.kept_bytes,
        ("logagg.client.transport", "_CHECK_BYTES"): drawn.kept_bytes // 4,
        ("logagg.client.closing", "ended"): _Forgetful(),
        ("logagg.platform.exit_status", "exit_status"): lambda *_: None,
        ("logagg.client.transport", "close_with_multiprocessing"): (
            lambda _: scene._registered.add(world.here)
        ),
        ("logagg.client.sink_urls", "_notices"): StderrNotices(),
    }
    executor = logagg_sinks._executor.SerialExecutor
    own = executor.submit, executor.shutdown
    stderr = os.open(scene.folder / STDERR, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    replaced["logagg.client.attachment", "standard_streams"] = lambda **_: (
        contextlib.nullcontext([stderr] * 2)
    )
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # of killed processes
    seam.FCNTL.pipe_size = drawn.pipe_size
    world.stderr = stderr
    world.stderr_is_full = drawn.stderr_is_full
    world.hung = drawn.hung_sink
    (scene.folder / seam.HUNG).mkdir()
    full = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    if drawn.stderr_is_full:
        world.stderr = full[1]
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full[1], b"x" * 4096)
    executor.submit = loops.serial_submit  # type: ignore[method-assign]
    executor.shutdown = loops.serial_shutdown  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings(), seam.install(world, replaced):
            warnings.simplefilter("ignore")  # of coroutines that were killed
            yield
    finally:
        for each in (stderr, *full):
            os.close(each)
        executor.submit, executor.shutdown = own  # type: ignore[method-assign]
        sys.unraisablehook = hook


class _Queue(collections.deque[tuple[str, bytes]]):
    """Records of re-entrant calls; the one that was taken last may be in no file yet."""

    taken: tuple[str, bytes] = ("", b"")

    def __delitem__(self, index: SupportsIndex) -> None:
        """Take one out."""
        self.taken = self[index]
        super().__delitem__(index)


class _Forgetful(dict[str, tuple[int, int]]):
    """What a real process knows of its own closed transports, and no other's."""

    def __setitem__(self, *_: object) -> None:
        """Forget at once."""


def shrink(found: Outcome, runs: int = 200) -> Outcome:
    """Leave decisions out as long as the same kind of fault comes.

    Args:
        found: A run that failed.
        runs: How many shorter schedules to try at most.
    """
    best, left = found, runs

    def attempt(rest: Schedule) -> bool:
        nonlocal best, left
        left -= 1
        tried = run(found.seed, rest)
        if tried.fault[:8] != found.fault[:8]:
            return False
        tried.schedule = rest
        best = tried
        return True

    for kind in sorted({kind for kind, _ in found.schedule.values()}):
        rest = {n: each for n, each in best.schedule.items() if each[0] != kind}
        if len(rest) < len(best.schedule):
            attempt(rest)
    size = len(best.schedule) // 2
    while size and left > 0:
        at = 0
        while at < len(best.schedule) and left > 0:
            numbers = sorted(best.schedule)
            rest = numbers[:at] + numbers[at + size :]
            if not attempt({n: best.schedule[n] for n in rest}):
                at += size
        size //= 2
    return best
