"""A simulated run: real slots, tasks, messages and channels; workers without processes.

The loop's clock jumps to the next timer when no socket is ready. Each worker has a real
channel, a socket pair with a small buffer, and at its other end a program whose fate is
drawn from one seed: it takes what comes, raises, is slow, has no descriptor free, is
stopped, closes its channel, crashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import selectors
import socket
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from support import no_free_descriptor

from logagg.errors import ClosedError, StartFailed, WorkerDied, WouldBlock
from logagg.supervisor.child.task_runner import TaskInfo
from logagg.supervisor.messaging import frame_connection
from logagg.supervisor.messaging.event_handlers import EventHandlers
from logagg.supervisor.messaging.frames import Frame, encode_value
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.messaging.outbox import close_descriptor
from logagg.supervisor.process.worker_process import (
    Crash,
    Exit,
    WorkerProcess,
    WorkerState,
)
from logagg.supervisor.router import Router
from logagg.supervisor.run_context import EVENTS, RunContext
from logagg.supervisor.run_options import OnFailure, Restart
from logagg.supervisor.slots.drain import Drain
from logagg.supervisor.slots.reconciler import Slots
from logagg.supervisor.tasks import TaskQueue

STOP_TIMEOUT = 10.0
READY_TIMEOUT = 8.0
ENDS = ["return", "return", "raise", "later", "later raise"]
"""How handlers end, at both ends of a channel."""


class _JumpingSelector(selectors.EpollSelector):
    """Waits for nothing: where no socket is ready the clock jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing is left to wait for"
            self.now += max(timeout, 0.0)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop on which no time passes."""

    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


class Connection(frame_connection.FrameConnection):
    """An end of a channel, of a process that may have no descriptor free."""

    starved = False

    def __init__(self, sock: socket.socket, other: str, **more: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        super().__init__(sock, other, **more)
        self.peer._clock = self._loop.time

    def _receive(self) -> bool:
        if not self.starved:
            return super()._receive()
        with no_free_descriptor():
            return super()._receive()

    def pause(self) -> None:
        """Read no more for now."""
        if not self.closed:
            self._loop.remove_reader(self._socket.fileno())

    def resume(self) -> None:
        """Read again."""
        if not self.closed:
            self._loop.add_reader(self._socket.fileno(), self._readable)


class Program:
    """What runs in a worker, at the other end of its channel."""

    def __init__(self, worker: Worker, sock: socket.socket) -> None:
        self.worker, self.world = worker, worker.world
        self.chance = self.world.chance
        self.connection = Connection(
            sock, "the supervisor", handle=self.handle, start=asyncio.ensure_future,
            report=self.report, disconnected=lambda: None,
        )  # fmt: skip
        self.peer = self.connection.peer
        self.received: list[int] = []
        self.ended: set[int] = set()
        self.receipts: list[AwaitableFuture[Any]] = []
        self.task: Frame | None = None
        self.serves = False

    def after(self, delay: float, function: Callable[..., Any], *args: Any) -> None:
        """Do something later, unless it is dead then; while it is stopped, not yet."""

        def act() -> None:
            if self.worker.exit is not None:
                return
            if self.worker.paused:
                self.world.loop.call_later(1.0, act)
            else:
                function(*args)

        self.world.loop.call_later(delay, act)

    def ready(self) -> None:
        """Declare that it can do its work, and ask for a task."""
        self.peer.send({"k": "ready"})
        if not self.serves:
            self.serves = True
            self.peer.send({"k": "idle"})

    def report(self, what: str, error: BaseException) -> None:
        """Handlers may raise, but no frame is wrong."""
        if what == "frame":
            self.world.wrong.append(error)

    def handle(self, frame: Frame, fd: int) -> None:
        """Take a frame of the supervisor."""
        close_descriptor(fd)
        match frame["k"]:
            case "message":
                self.received.append(frame["b"]["n"])
                number = frame["b"]["n"]
                calls = self.world.calls(lambda: self.ended.add(number))
                self.peer.handle_message(frame, calls)
            case "request":
                value = 2 * frame["b"]
                self.peer.handle_request(frame, self.world.calls(lambda: value)[:1])
            case "task":
                self._begin(frame)
            case "cancel" if self.worker.obeys and self.task is not None:
                self.after(self.worker.delay, self._answer, frame["q"])
            case "shutdown" if self.worker.hooks and self.worker.obeys:
                self.after(self.worker.delay, self.peer.send, {"k": "hooks_done"})
            case "drain":
                self.peer.answer(frame, {})

    def _begin(self, frame: Frame) -> None:
        assert self.task is None, "two tasks at a time"
        self.task = frame
        self.world.begun[frame["b"]["args"][0]] += 1
        took = 0.1 if self.world.calm else self.chance.choice([0.0, 1.0, 30.0])
        self.after(took, self._answer, frame["q"])

    def _answer(self, number: int) -> None:
        task = self.task
        if task is not None and task["q"] == number:
            self.task = None
            self.peer.answer(task, {"b": task["b"]["args"][0]})

    def talk(self) -> None:
        """Send the supervisor something."""
        if self.worker.exit is not None or self.worker.paused:
            return
        number = self.world.next_number()
        kind = self.chance.choice(["message", "message", "broadcast", "request"])
        with contextlib.suppress(WouldBlock, OSError):
            if kind == "request":
                receipt: Any = self.peer.request(number, 5.0)
            else:
                with self.world.passed(kind == "message") as sock:
                    fd = -1 if sock is None else sock.fileno()
                    value = encode_value(self.world.body(number))
                    receipt = self.peer.post(kind, value, fd)
            self.receipts.append(receipt)

    def end(self) -> None:
        """Lose all that a process has when it ends."""
        self.connection.close()
        self.peer.close(ClosedError("ended"))


class Worker(WorkerProcess):
    """A worker without a process, whose fate is drawn when it starts."""

    pids = itertools.count(1000)

    def __init__(self, slot: int, world: World) -> None:
        chance, self._loop = world.chance, asyncio.get_running_loop()
        self.slot, self.pid = slot, next(self.pids)
        self.id = self.pid
        self.state, self.exit = WorkerState.STARTING, None
        self.voluntary = self.recycle = self.was_ready = False
        self.why, self.hooks, self.crash = "", 0, Crash()
        self.hooks_done, self.reaped = asyncio.Event(), asyncio.Event()
        self.max_tasks, self.tasks_done = 0, 0
        self.world = world
        self._owner = world.owner
        self.started = self._loop.time()
        self.paused = False
        self.obeys = world.calm or chance.random() < 0.8
        self.delay = 0.1 if world.calm else chance.choice([0.0, 0.1, 3.0, 15.0])
        self.listened = world.calm or chance.random() < 0.5
        sock, other = socket.socketpair()
        self.channel = self._connect(sock)
        self.peer = self.channel.peer
        self.program = Program(self, other)
        if world.calm or chance.random() < 0.8:
            ready = 0.5 if world.calm else chance.uniform(0.0, 2 * READY_TIMEOUT)
            self.program.after(ready, self.program.ready)
        if not world.calm and chance.random() < 0.4:
            code = chance.choice([0, 1, 1])
            self._loop.call_later(chance.uniform(0.0, 20.0), self.end, code)

    def pause(self) -> None:
        """Stop it, as SIGSTOP does."""
        if self.exit is None:
            self.paused = True
            self.program.connection.pause()

    def resume(self) -> None:
        """Let it go on."""
        if self.exit is None and self.paused:
            self.paused = False
            self.program.connection.resume()

    def starve(self, seconds: float) -> None:
        """Have it without a free descriptor for a while."""
        self.program.connection.starved = True
        self._loop.call_later(seconds, self.feed)

    def feed(self) -> None:
        """Give it descriptors again."""
        self.program.connection.starved = False

    def hang_up(self) -> None:
        """Close its channel and live on, as an `exec` does."""
        self.program.end()

    def end(self, code: int | None, signum: int | None = None) -> None:
        """Let the process end; a dead one ends no more. See `WorkerProcess.reap`."""
        if self.exit is None:
            self.program.end()
            assert self.channel is not None
            self.channel.drain()
            uptime = self._loop.time() - self.started
            self.exit = Exit(code, signum, self.voluntary, self.why, uptime, 0)
            self._move("reaped")
            self.peer.close(WorkerDied("gone"))
            self.hooks_done.set()
            self._owner.ended(self)
            self.reaped.set()
            self._owner.changed(self)

    def signal(self, signum: int, *, group: bool = False) -> None:
        """KILL ends it soon, TERM later or never."""
        if signum == 9:
            self._loop.call_soon(self.end, None, 9)
        elif self.obeys:
            self.program.after(self.delay, self.end, 0)


class Sent(NamedTuple):
    """A message, request or broadcast of the supervisor's program."""

    kind: str
    number: int
    receipt: AwaitableFuture[Any]
    workers: list[Worker]


class World:
    """One seed: slots, their workers, and what happens to them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.calm = self.starved = False
        self.launched: list[Worker] = []
        self.wanted = self.chance.randint(1, 4)
        self.asked: list[asyncio.Future[Any]] = []
        self.loop = asyncio.get_running_loop()
        self.begun: Counter[int] = Counter()
        self.submitted: list[tuple[int, TaskInfo, AwaitableFuture[Any]]] = []
        self.sent: list[Sent] = []
        self.got: dict[int, list[int]] = {}
        self.wrong: list[BaseException] = []
        self._numbers = itertools.count(1)
        self.exits: list[WorkerProcess] = []
        options: Any = SimpleNamespace(
            restart=self.chance.choice(list(Restart)),
            on_failure=OnFailure.KEEP,
            ready_timeout=READY_TIMEOUT,
            stop_timeout=STOP_TIMEOUT,
        )
        events: Any = SimpleNamespace(record=self.record, record_exit=self.recorded)
        listeners: Any = SimpleNamespace(round_robins=list, all=[])
        handlers = EventHandlers(EVENTS)
        handlers.add("message", self.take)
        handlers.add("request", self.reply)
        self.context = RunContext(options, handlers, events, listeners)
        self.tasks = TaskQueue(self.loop, 0, lambda *_: None, self.abort)
        self.router = Router(self.context, self.tasks, lambda *_: None)
        self.owner: Any = SimpleNamespace(
            handle=self.router.handle,
            start=self.context.start,
            report=self.router.report,
            ended=self.ended,
            disconnected=self.router.disconnected,
            changed=self.changed,
        )
        self.slots = Slots(
            options,
            events,
            launch=self.launch,
            prepare_stop=Drain(self.tasks, listeners, STOP_TIMEOUT),
            gave_up=lambda _slot, _trace: None,
            changed=self.check,
        )

    # ---- the supervisor ----------------------------------------------------------

    def record(self, _level: str, event: str, message: str, **_: Any) -> None:
        """No frame was wrong, and no handler of ours but by intent."""
        assert event != "bad_frame", message

    def recorded(self, worker: WorkerProcess, *_: Any, **__: Any) -> None:
        """Each end is recorded once."""
        assert worker not in self.exits
        self.exits.append(worker)

    def launch(self, slot: int) -> Worker:
        """Start a worker, if there is room."""
        assert not self.slots.stopping, "started while all is being stopped"
        if not self.calm and self.chance.random() < 0.1:
            raise StartFailed("no room")
        try:
            worker = Worker(slot, self)
        except OSError as error:
            raise StartFailed("no descriptor") from error
        self.launched.append(worker)
        self.context.workers[worker.id] = worker
        return worker

    def ended(self, worker: WorkerProcess) -> None:
        """See `Supervisor._ended`."""
        self.context.workers.pop(worker.id, None)
        self.tasks.died(worker)

    def changed(self, worker: Any) -> None:
        """Pass on that a worker became ready or ended."""
        self.slots.observe(worker)

    def check(self) -> None:
        """Each living worker is one that its slot knows, or is being stopped."""
        slots = self.slots.by_number.values()
        known = {worker for s in slots for worker in (s.worker, s.fresh)}
        for worker in self.launched:
            if worker.exit is None:
                assert worker in self.slots.living
                assert worker in known or not worker.is_active, (worker.pid, "lost")

    def abort(self, worker: Any) -> None:
        """End a worker that does not give up its task."""
        worker.recycle = True
        self.slots.stop(worker, "its cancelled task did not end", 2.0)

    # ---- what happens ------------------------------------------------------------

    async def step(self) -> None:
        """Let one thing happen, then a little time pass."""
        happenings: list[Callable[[], Any]] = [
            self.scale, self.reload, self.recycle, self.disconnect, self.fork,
            self.submit, self.submit, self.broadcast, self.freeze, self.starve,
        ]  # fmt: skip
        living = [worker for worker in self.launched if worker.exit is None]
        if living:
            victim = self.chance.choice(living)
            happenings += [
                lambda: victim.end(None, 9),
                lambda: victim.end(self.chance.choice([0, 1])),
                victim.pause,
                victim.resume,
                victim.hang_up,
                lambda: victim.starve(self.chance.choice([0.0, 1.0, 20.0])),
                lambda: setattr(victim, "hooks", 1),
                lambda: victim.kill(15),
                lambda: self.slots.stop(victim, "aborted", 2.0),
                *[lambda: self.send(victim)] * 3,
                *[victim.program.talk] * 3,
            ]
        for _ in range(self.chance.choice([1, 1, 2, 5, 20])):
            self.chance.choice(happenings)()
        if self.asked and self.chance.random() < 0.2:
            self.chance.choice(self.asked).cancel()
        await asyncio.sleep(self.chance.choice([0.0, 0.0, 0.01, 1.0, 10.0]))
        self.check()

    def freeze(self) -> None:
        """Stop the supervisor for a while: all its timers are late."""
        self.loop.jumping.now += self.chance.choice([1.0, 100.0])  # type: ignore[attr-defined]

    def starve(self) -> None:
        """Have the supervisor without a free descriptor for a while."""
        self._starve(on=True)
        self.loop.call_later(self.chance.choice([0.0, 1.0]), self._starve)

    def _starve(self, *, on: bool = False) -> None:
        self.starved = on
        for worker in self.launched:
            if worker.channel is not None:
                worker.channel.starved = on  # type: ignore[attr-defined]

    def submit(self) -> None:
        """Submit a task; some have a time limit, some are given up."""
        timeout = self.chance.choice([None, 5.0])
        info = TaskInfo("work", self.chance.choice([0, 0, 1]), timeout)
        number = len(self.submitted)
        task = self.tasks.submit(info, (number,), {}, block=False)
        self.submitted.append((number, info, task))
        if self.chance.random() < 0.2:
            self.loop.call_later(self.chance.uniform(0.0, 20.0), task.cancel)

    def ask(self, request: Any) -> None:
        """Ask for something and do not wait for it."""
        self.asked.append(asyncio.ensure_future(request))

    def scale(self) -> None:
        """Want another number."""
        self.wanted = self.chance.randint(0, 6)
        self.ask(self.slots.scale(self.wanted))

    def reload(self) -> None:
        """Replace all."""
        self.ask(self.slots.reload())

    def recycle(self) -> None:
        """Replace one."""
        if self.slots.by_number:
            slot = self.chance.choice(list(self.slots.by_number.values()))
            self.ask(self.slots.replace(slot, "old"))

    def disconnect(self) -> None:
        """Stop one for good."""
        if self.slots.by_number:
            slot = self.chance.choice(list(self.slots.by_number.values()))
            self.ask(self.slots.retire(slot, "disconnected", 1.0))

    def fork(self) -> None:
        """Open one more."""
        with contextlib.suppress(StartFailed):
            self.slots.open()

    # ---- messages ----------------------------------------------------------------

    def next_number(self) -> int:
        """A number for a message; later ones have higher numbers."""
        return next(self._numbers)

    def body(self, number: int) -> dict[str, Any]:
        """The content of a message, of any length."""
        return {"n": number, "x": "x" * self.chance.choice([0, 500, 3000])}

    @contextlib.contextmanager
    def passed(self, may: bool) -> Any:
        """A socket to pass along, or none."""
        if may and not self.starved and self.chance.random() < 0.3:
            with socket.socket() as sock:
                yield sock
        else:
            yield None

    def calls(self, value: Callable[[], Any]) -> list[Callable[[], Any]]:
        """Handlers that end in some way; the last one ends with the value."""
        return [self._call(value) for _ in range(self.chance.choice([1, 1, 2]))]

    def _call(self, value: Callable[[], Any]) -> Callable[[], Any]:
        end = "return" if self.calm else self.chance.choice(ENDS)
        delay = self.chance.choice([0.0, 0.1, 20.0])

        async def later() -> Any:
            await asyncio.sleep(delay)
            return now()

        def now() -> Any:
            result = value()
            if "raise" in end:
                raise KeyError("no")
            return result

        return later if "later" in end else now

    def send(self, worker: Worker) -> None:
        """Send a worker a message, or ask it something."""
        number = self.next_number()
        kind = self.chance.choice(["message", "message", "request"])
        try:
            if kind == "request":
                receipt: Any = worker.request(number, self.chance.choice([0.5, 30.0]))
            else:
                with self.passed(may=True) as sock:
                    receipt = worker.send(self.body(number), sock)
        except WouldBlock:
            return
        self.sent.append(Sent(kind, number, receipt, [worker]))

    def broadcast(self) -> None:
        """Send all workers a message."""
        number = self.next_number()
        workers = [w for w in self.launched if w.is_active]
        receipt = self.router.broadcast(self.body(number))
        self.sent.append(Sent("broadcast", number, receipt, workers))

    def take(self, worker: Worker, message: Any, sock: socket.socket | None) -> Any:
        """The program's handler of messages."""
        if sock is not None:
            sock.close()
        self.got.setdefault(worker.id, []).append(message["n"])
        return self._call(lambda: None)()

    def reply(self, _worker: Worker, message: Any) -> Any:
        """The program's handler of requests; some answers are not JSON."""
        odd = not self.calm and self.chance.random() < 0.2
        return self._call(lambda: object() if odd else message)()

    # ---- the judge ---------------------------------------------------------------

    def judge(self) -> None:
        """Each receipt has the outcome that the world has seen."""
        assert not self.wrong
        for each in self.sent:
            assert each.receipt.done(), each
            error = each.receipt.exception()
            if error is None:
                self._judge_handled(each)
            elif isinstance(error, WorkerDied):
                (worker,) = each.workers
                assert worker.exit is not None or worker.program.connection.closed
            elif isinstance(error, WouldBlock):
                assert each.kind != "request"
                if each.kind == "message":
                    assert each.number not in each.workers[0].program.received
            elif isinstance(error, TimeoutError):
                assert each.kind == "request"
            else:
                assert each.kind == "request", error
                assert isinstance(error, RuntimeError), error
        ours = {each.number for each in self.sent}
        for worker in self.launched:
            assert len(worker.program.received) == len(set(worker.program.received))
            received = [n for n in worker.program.received if n in ours]
            assert received == sorted(set(received)), received
        for numbers in self.got.values():
            assert numbers == sorted(set(numbers)), numbers
        for number, info, task in self.submitted:
            assert task.done(), number
            assert self.begun[number] <= 1 + info.retries
            if not task.cancelled() and task.exception() is None:
                assert task.result() == number

    def _judge_handled(self, each: Sent) -> None:
        if each.kind == "request":
            assert each.receipt.result() == 2 * each.number
            return
        for worker in each.workers:
            program = worker.program
            handled = each.number in program.ended
            gone = worker.exit is not None or program.connection.closed
            assert handled or (gone and each.kind == "broadcast"), each
