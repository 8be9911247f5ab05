"""The worker's own view: `logagg.worker` inside a program that `logagg run` started.

Theory of operation
-------------------
One daemon thread reads the channel. It answers the supervisor's own questions at once
(ping, shutdown, answers), so a worker whose main thread computes still counts as
present, and it is the watch for the supervisor's death: end of file means TERM to this
process and, 1.2 s later, KILL to its process group.

Messages go from the reader to the handlers, in order, in a second thread (`dispatch`)
that is started with the first handler. A handler that is a coroutine
function runs on the program's event loop: the one that ran when the handler was
registered, when the program began to listen, or when it last awaited something of
this object.

A forked child has no channel: in it `logagg.worker` is None.
"""

from __future__ import annotations

import heapq
import inspect
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from logagg.errors import ClosedError, WireError
from logagg.supervisor.channel import Decoder, Frame, encode, receive
from logagg.supervisor.dispatch import THREAD, Dispatcher
from logagg.supervisor.handlers import Handlers
from logagg.supervisor.messages import Outbox
from logagg.supervisor.pending import Pending
from logagg.supervisor.start import Start

__all__ = ["Worker", "broadcast", "current", "on_shutdown"]

logger = logging.getLogger("logagg")

EVENTS = ("message", "request", "disconnect")
REQUEST_TIMEOUT = 5.0
FAREWELL = 1.2
_ASYNCHRONOUS = {
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCHLD,
}
"""What the channel's thread leaves to the program's own threads.

The frame that announces a stop wakes that thread just when TERM comes, and a thread that
wakes may be the one to get it. A main thread that waits for an event, a lock or a queue
would then not be interrupted, and Python's handler, which only it can run, never would.
"""
F = TypeVar("F", bound=Callable[..., Any])

_current: Worker | None = None


def current() -> Worker | None:
    """This process's worker object; None outside `logagg run`."""
    return _current


def on_shutdown(function: F) -> F:
    """Register a function for this worker's shutdown; outside a worker do nothing.

    It is called, with the seconds that are left if it takes an argument, when the
    supervisor asks this worker to end, before TERM is sent.
    """
    return function if _current is None else _current.on_shutdown(function)


def broadcast(message: Any) -> Pending[None]:
    """Send a message to every worker, this one included. See `Worker.broadcast`.

    Raises:
        ClosedError: This process is no worker; a `Cluster` has its own `broadcast`.
    """
    if _current is None:
        raise ClosedError("this process is not a worker of logagg run")
    return _current.broadcast(message)


class Worker:
    """This process, as a worker of a supervisor.

    Attributes:
        slot: The stable number, 1…N; a replacement of this worker has the same.
        id: This worker's own number; no other worker of the run ever has it.
        pid: The process id.
    """

    def __init__(self, start: Start) -> None:
        global _current
        self.slot = start.slot
        self.id = start.id
        self.pid = os.getpid()
        self.share = start.share
        self._max_connections = start.max_connections
        self.limited = start.max_connections > 0
        self._connections = 0
        self._handlers = Handlers(EVENTS)
        self._shutdown_hooks: list[Callable[..., Any]] = []
        self._socket = socket.socket(fileno=start.channel)
        self._send_lock = threading.Lock()
        self._outbox = Outbox(self._transmit)
        self._answers: dict[int, Pending[tuple[Frame, list[int]]]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._next_question = 0
        self._lock = threading.Lock()  # guards the questions and their deadlines
        self._dispatcher = Dispatcher(self._handlers, self._transmit)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.on_task: Callable[[Frame], None] | None = None
        self.on_ready: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        _current = self
        os.register_at_fork(after_in_child=self._forked)
        threading.Thread(target=self._read, name="logagg-channel", daemon=True).start()

    def __repr__(self) -> str:
        return f"<logagg.worker slot={self.slot} id={self.id} pid={self.pid}>"

    # ---- what programs call -------------------------------------------------------

    def send(self, message: Any, sock: socket.socket | None = None) -> Pending[None]:
        """Send a message to the supervisor's program.

        Outside an event loop the call blocks while the other side does not keep up;
        inside one it never blocks: await the receipt to be slowed down.

        Args:
            message: Plain JSON values.
            sock: A socket to pass along; close yours when you no longer need it.

        Returns:
            The receipt, to be awaited or not: settled when the handler has run.

        Raises:
            WireError: It is not JSON, or longer than 4 MiB.
            WouldBlock: 64 MiB wait already.
        """
        fds = [] if sock is None else [sock.fileno()]
        return self._post({"k": "message", "b": message}, fds)

    def broadcast(self, message: Any) -> Pending[None]:
        """Send a message to every worker, this one included.

        All workers get all broadcasts in the same order. The receipt is settled when
        all their handlers have run; a worker that dies meanwhile is not waited for.
        """
        return self._post({"k": "broadcast", "b": message}, [])

    def _post(self, frame: Frame, fds: list[int]) -> Pending[None]:
        wait = None if self._dispatcher.adopt_running() else 1e9
        if threading.current_thread().name == THREAD:
            wait = None  # a handler that waits here would wait for itself
        return self._outbox.post(frame, fds, wait=wait)

    def request(self, message: Any, timeout: float = REQUEST_TIMEOUT) -> Pending[Any]:
        """Ask the supervisor's program and get what its handler returns.

        Raises:
            TimeoutError: From the result, after `timeout` seconds.
            RuntimeError: From the result: the handler raised, or there is none.
        """
        self._dispatcher.adopt_running()
        answer: Pending[Any] = Pending()
        question = self._question({"k": "request", "b": message}, [], timeout)

        def settle(done: Any) -> None:
            error = done.exception()
            if error is not None:
                answer.fail(error)
                return
            frame = done.result()[0]
            if "error" in frame:
                answer.fail(RuntimeError(frame["error"]))
            else:
                answer.settle(frame.get("b"))

        question.add_done_callback(settle)
        return answer

    def on(self, event: str) -> Callable[[F], F]:
        """Register a handler, as a decorator: `@worker.on("message")`.

        Events: "message" (message, sock), "request" (message) whose return value is
        the answer, "disconnect" () when the supervisor is gone. A handler may take
        fewer arguments. Plain functions run one at a time in a thread of their own;
        coroutine functions on the program's event loop.
        """

        def register(function: F) -> F:
            self._dispatcher.adopt_running()
            self._handlers.add(event, function)
            self._dispatcher.start()
            return function

        return register

    async def messages(self) -> AsyncIterator[Any]:
        """Iterate over the messages; each is acknowledged when the next is asked for."""
        import asyncio

        self._dispatcher.adopt_running()
        queue: asyncio.Queue[Any] = asyncio.Queue(1)
        taken = asyncio.Semaphore(0)

        async def put(message: Any) -> None:
            await queue.put(message)
            await taken.acquire()

        self.on("message")(put)
        try:
            while True:
                message = await queue.get()
                yield message
                taken.release()
        finally:
            self._handlers.remove("message", put)

    def ready(self) -> None:
        """Say that this worker can do its work; a first `listen` says the same."""
        self.tell({"k": "ready"})
        if self.on_ready is not None:
            self.on_ready()

    def adopt_loop(self, loop: Any) -> None:
        """Run coroutine handlers on that event loop."""
        self._dispatcher.adopt(loop)

    def on_shutdown(self, function: F) -> F:
        """Call the function (with the seconds that are left) when this worker must stop.

        It runs before TERM is sent: the signal comes when all hooks have returned, or
        at the deadline. Use it as a decorator, also as `@logagg.on_shutdown`.
        """
        self._dispatcher.adopt_running()
        self._shutdown_hooks.append(function)
        self.tell({"k": "hooks", "n": len(self._shutdown_hooks)})
        return function

    # ---- what the doors and the bootstrap call ------------------------------------

    def tell(self, frame: Frame) -> None:
        """Send a frame and do not wait; nothing happens when the supervisor is gone."""
        try:
            self._transmit(encode(frame), [])
        except OSError:
            pass

    def ask(
        self, question: Frame, fds: list[int], timeout: float = REQUEST_TIMEOUT
    ) -> tuple[Frame, list[int]]:
        """Ask the supervisor itself and block for the answer.

        Raises:
            TimeoutError: No answer within `timeout` seconds.
            ClosedError: The supervisor is gone.
        """
        return self._question(question, fds, timeout).result()

    def listening(self, host: str, port: int) -> None:
        """Tell that the program listens."""
        self._dispatcher.adopt_running()
        self.tell({"k": "listening", "host": host, "port": port})
        if self.on_ready is not None:
            self.on_ready()

    def accepted(self) -> None:
        """Count a connection, and ask to be replaced when it was the last one allowed."""
        self._connections += 1
        if self._connections == self._max_connections:
            self.tell({"k": "spent"})

    # ---- the channel --------------------------------------------------------------

    def _transmit(self, data: bytes, fds: list[int]) -> None:
        with self._send_lock:
            if fds:
                sent = socket.send_fds(self._socket, [data], fds)
                data = data[sent:]
            if data:
                self._socket.sendall(data)

    def _question(
        self, frame: Frame, fds: list[int], timeout: float
    ) -> Pending[tuple[Frame, list[int]]]:
        answer: Pending[tuple[Frame, list[int]]] = Pending()
        with self._lock:
            self._next_question += 1
            number = self._next_question
            self._answers[number] = answer
            deadline = time.monotonic() + timeout
            heapq.heappush(self._deadlines, (deadline, number))
            if self._deadlines[0][1] == number:
                os.eventfd_write(self._wake, 1)
        head = {**frame, "q": number, **({"fds": len(fds)} if fds else {})}
        try:
            self._transmit(encode(head), fds)
        except WireError:
            self._answers.pop(number, None)
            raise
        except OSError:
            answer.fail(ClosedError("the supervisor is gone"))
        return answer

    def _read(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ASYNCHRONOUS)
        decoder = Decoder()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            try:
                ready = poll.poll(self._expire())
                if any(fd == self._wake for fd, _ in ready):
                    os.eventfd_read(self._wake)
                if all(fd == self._wake for fd, _ in ready):
                    continue
                data, fds = receive(self._socket)
                frames = decoder.feed(data, fds)
            except (OSError, WireError):
                data, frames = b"", []
            if not data:
                self._gone()
                return
            for frame, passed in frames:
                self._heard(frame, passed)

    def _expire(self) -> float | None:
        """Fail what was not answered in time; milliseconds until the next deadline."""
        expired: list[Pending[tuple[Frame, list[int]]]] = []
        wait: float | None = None
        with self._lock:
            while self._deadlines:
                deadline, number = self._deadlines[0]
                left = deadline - time.monotonic()
                if number in self._answers and left > 0:
                    wait = left * 1000 + 1
                    break
                heapq.heappop(self._deadlines)
                answer = self._answers.pop(number, None)
                if answer is not None:
                    expired.append(answer)
        for answer in expired:
            answer.fail(TimeoutError("no answer from the supervisor in time"))
        return wait

    def _heard(self, frame: Frame, fds: list[int]) -> None:
        kind = frame["k"]
        if kind == "answer":
            answer = self._answers.pop(frame["q"], None)
            if answer is not None:
                answer.settle((frame, fds))
        elif kind == "ack":
            self._outbox.acknowledged(frame["ids"])
        elif kind == "ping":
            self._pong(frame["n"])
        elif kind in ("message", "request"):
            self._dispatcher.put(frame, fds)
        elif kind == "shutdown" and not self._shutdown_hooks:
            self.tell({"k": "hooks_done"})
        elif kind == "shutdown":
            threading.Thread(
                target=self._shut_down, args=(frame["timeout"],), daemon=True
            ).start()
        elif kind == "drain" and self.on_drain is not None:
            self.on_drain()
        elif kind in ("task", "cancel") and self.on_task is not None:
            self.on_task(frame)

    def _pong(self, number: int) -> None:
        """Answer from the event loop, if the program has one: that is what may hang."""
        answer = {"k": "pong", "n": number, "connections": self._connections}
        loop = self._dispatcher.loop
        if loop is not None and loop.is_running():
            try:
                loop.call_soon_threadsafe(self.tell, answer)
                return
            except RuntimeError:
                pass  # closed meanwhile
        self.tell(answer)

    def _gone(self) -> None:
        """The supervisor has died: end, with all children."""
        error = ClosedError("the supervisor is gone")
        self._outbox.fail(error)
        for answer in list(self._answers.values()):
            answer.fail(error)
        for call in self._handlers.get("disconnect"):
            try:
                call()
            except Exception:
                logger.exception("a disconnect handler failed")
        os.kill(self.pid, signal.SIGTERM)
        time.sleep(FAREWELL)
        if os.getpgrp() == self.pid:
            os.killpg(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)

    def _shut_down(self, timeout: float) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)  # hooks start programs
        deadline = time.monotonic() + timeout
        for hook in self._shutdown_hooks:
            left = max(deadline - time.monotonic(), 0.0)
            try:
                result = hook(left) if _takes_argument(hook) else hook()
                if inspect.isawaitable(result):
                    self._dispatcher.on_loop(result).result(left)
            except Exception:
                logger.exception("a shutdown hook failed")
        signal.pthread_sigmask(signal.SIG_BLOCK, _ASYNCHRONOUS)  # TERM follows
        self.tell({"k": "hooks_done"})

    def _forked(self) -> None:
        global _current
        if _current is self:
            _current = None
        self._socket.close()
        os.close(self._wake)


def _takes_argument(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return True
