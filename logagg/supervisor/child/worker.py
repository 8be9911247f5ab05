"""The worker's own view: `logagg.worker` inside a program that `logagg run` started.

The channel's thread (`parent_channel`) handles frames of the supervisor; handlers of
messages run in a second thread (`handler_thread`), or on the program's event loop when
they are coroutine functions: the loop that ran when the handler was registered, when the
program began to listen, or when it last awaited something of this object.

When the supervisor dies, this process gets TERM, and its process group KILL 1.2 s later.

A forked child has no channel: in it `logagg.worker` is None.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from logagg.errors import ClosedError
from logagg.supervisor.child.handler_thread import HandlerThread
from logagg.supervisor.child.launch_spec import LaunchSpec
from logagg.supervisor.child.parent_channel import (
    ASYNCHRONOUS_SIGNALS,
    ParentChannel,
)
from logagg.supervisor.messaging.event_handlers import (
    EventHandlers,
    positional_parameters,
)
from logagg.supervisor.messaging.frames import Frame, encode_value
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.messaging.peer import Peer

__all__ = ["Worker", "broadcast", "current", "on_shutdown"]

logger = logging.getLogger("logagg")

EVENTS = ("message", "request", "disconnect")
REQUEST_TIMEOUT = 5.0
ORPHAN_GRACE = 1.2
"""From TERM to KILL when the supervisor is gone; less than the guard's grace."""
F = TypeVar("F", bound=Callable[..., Any])

_current: Worker | None = None


def current() -> Worker | None:
    """This process's worker object; None outside `logagg run`."""
    return _current


def on_shutdown(function: F) -> F:
    """Register a function for this worker's shutdown; outside a worker do nothing.

    It is called, with the seconds that are left if it takes an argument, when the
    supervisor stops this worker, before TERM is sent.
    """
    return function if _current is None else _current.on_shutdown(function)


def broadcast(message: Any) -> AwaitableFuture[None]:
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

    def __init__(self, spec: LaunchSpec) -> None:
        global _current
        self.slot = spec.slot
        self.id = spec.id
        self.pid = os.getpid()
        self.share = spec.share
        self.policy = spec.policy
        self.limited = spec.max_connections > 0
        self.on_task: Callable[[Frame], None] | None = None
        self.on_ready: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        self._max_connections = spec.max_connections
        self._connections = 0
        self._handlers = EventHandlers(EVENTS)
        self._shutdown_hooks: list[Callable[..., Any]] = []
        self._thread = HandlerThread(self._handlers)
        self._signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        _current = self
        os.register_at_fork(after_in_child=self._forked)
        self._channel = ParentChannel(
            spec.channel,
            handle=self._handle,
            start=self._thread.run_on_loop,
            closed=self._supervisor_gone,
        )
        self._channel.open()

    def __repr__(self) -> str:
        return f"<logagg.worker slot={self.slot} id={self.id} pid={self.pid}>"

    @property
    def peer(self) -> Peer:
        """This end of the channel; for logagg itself."""
        return self._channel.peer

    # ---- what programs call -------------------------------------------------------

    def send(
        self, message: Any, sock: socket.socket | None = None
    ) -> AwaitableFuture[None]:
        """Send a message to the supervisor's program.

        Outside an event loop the call blocks while the other side does not keep up;
        inside one it never blocks: await the receipt to be slowed down.

        Args:
            message: Plain JSON values.
            sock: A socket to pass along; close yours when you no longer need it.

        Returns:
            The receipt, to be awaited or not: resolved when the handlers have ended.

        Raises:
            WireError: It is not JSON, or longer than 4 MiB.
            WouldBlock: 64 MiB wait already.
        """
        return self._post("message", message, -1 if sock is None else sock.fileno())

    def broadcast(self, message: Any) -> AwaitableFuture[None]:
        """Send a message to every worker, this one included.

        All workers get all broadcasts in the same order. The receipt is resolved when
        all their handlers have ended; a worker that dies meanwhile is not waited for.
        It fails with `WouldBlock` when too much waits for one of them to get it.
        """
        return self._post("broadcast", message)

    def _post(self, kind: str, message: Any, fd: int = -1) -> AwaitableFuture[None]:
        # A handler that waits here for the other side would wait for itself.
        wait = not self._thread.adopt_running() and not self._thread.is_current()
        return self.peer.post(kind, encode_value(message), fd, wait=wait)

    def request(
        self, message: Any, timeout: float = REQUEST_TIMEOUT
    ) -> AwaitableFuture[Any]:
        """Ask the supervisor's program and get what its handler returns.

        Raises:
            WireError: The message is not JSON, or longer than 4 MiB.
            TimeoutError: From the result, after `timeout` seconds.
            RuntimeError: From the result: the handler raised, or there is none.
        """
        self._thread.adopt_running()
        return self.peer.request(message, timeout)

    def on(self, event: str) -> Callable[[F], F]:
        """Register a handler, as a decorator: `@worker.on("message")`.

        Events: "message" (message, sock), "request" (message) whose return value is
        the answer, "disconnect" () when the supervisor is gone. A handler may take
        fewer arguments. Plain functions run one at a time in a thread of their own;
        coroutine functions on the program's event loop.
        """

        def register(function: F) -> F:
            self._thread.adopt_running()
            self._handlers.add(event, function)
            self._thread.start()
            return function

        return register

    async def messages(self) -> AsyncIterator[Any]:
        """Iterate over the messages; each is acknowledged when the next is asked for."""
        import asyncio  # a loop runs here: it is loaded

        self._thread.adopt_running()
        queue: asyncio.Queue[tuple[Any, asyncio.Future[None]]] = asyncio.Queue()
        untaken: set[asyncio.Future[None]] = set()

        async def put(message: Any) -> None:
            taken = asyncio.get_running_loop().create_future()
            untaken.add(taken)
            queue.put_nowait((message, taken))
            await taken

        def take(taken: asyncio.Future[None]) -> None:
            untaken.discard(taken)
            if not taken.done():
                taken.set_result(None)

        self.on("message")(put)
        try:
            while True:
                message, taken = await queue.get()
                yield message
                take(taken)
        finally:
            self._handlers.remove("message", put)
            for each in list(untaken):  # of an iteration that was given up
                take(each)

    def ready(self) -> None:
        """Declare that this worker can do its work; a first `listen` does the same."""
        self.peer.send({"k": "ready"})
        self._is_ready()

    def adopt_loop(self, loop: Any) -> None:
        """Run coroutine handlers on that event loop."""
        self._thread.adopt(loop)

    def on_shutdown(self, function: F) -> F:
        """Call the function (with the seconds that are left) when this worker must stop.

        It runs before TERM is sent: the signal comes when all hooks have returned, or
        at the deadline. Use it as a decorator, also as `@logagg.on_shutdown`.
        """
        self._thread.adopt_running()
        self._shutdown_hooks.append(function)
        self.peer.send({"k": "hooks", "n": len(self._shutdown_hooks)})
        return function

    # ---- what the patched socket and the bootstrap call -------------------------------

    def ask(
        self, question: Frame, fd: int = -1, timeout: float | None = None
    ) -> tuple[Frame, int]:
        """Ask the supervisor itself and block for the answer's frame and descriptor.

        A supervisor that is suspended answers when it goes on.

        Raises:
            TimeoutError: No answer within `timeout` seconds.
            ClosedError: The supervisor is gone.
            OSError: It is refused, or no descriptor is free, here or there.
        """
        answer, descriptor = self.peer.ask(question, fd, timeout=timeout).result()
        if "errno" in answer:
            code = int(answer["errno"])
            raise OSError(code, os.strerror(code))
        return answer, descriptor

    def listening(self, host: str, port: int) -> None:
        """Announce that the program listens."""
        self._thread.adopt_running()
        self.peer.send({"k": "listening", "host": host, "port": port})
        self._is_ready()

    def closed(self, host: str, port: int) -> None:
        """Announce that the program has closed its listener."""
        self.peer.send({"k": "closed", "host": host, "port": port})

    def accepted(self) -> None:
        """Count a connection; at the limit request this worker's replacement."""
        self._connections += 1
        if self._connections == self._max_connections:
            self.peer.send({"k": "spent"})

    def _is_ready(self) -> None:
        if self.on_ready is not None:
            self.on_ready()

    # ---- frames of the supervisor, in the channel's thread --------------------------

    def _handle(self, frame: Frame, fd: int) -> None:
        match frame["k"]:
            case "ping":
                self._pong(frame["n"])
            case "message":
                self._thread.put("message", lambda: self._message(frame, fd))
            case "request":
                self._thread.put("request", lambda: self._request(frame))
            case "task" | "cancel" if self.on_task is not None:
                self.on_task(frame)
            case "drain":
                if self.on_drain is not None:
                    self.on_drain()
                self.peer.answer(frame, {})
            case "shutdown" if self._shutdown_hooks:
                threading.Thread(
                    target=self._shut_down, args=(frame["timeout"],), daemon=True
                ).start()
            case "shutdown":
                self.peer.send({"k": "hooks_done"})

    def _message(self, frame: Frame, fd: int) -> None:
        sock = socket.socket(fileno=fd) if fd >= 0 else None
        calls = self._handlers.get("message", frame.get("b"), sock)
        self.peer.handle_message(frame, calls)

    def _request(self, frame: Frame) -> None:
        calls = self._handlers.get("request", frame.get("b"))
        self.peer.handle_request(frame, calls)

    def _pong(self, number: int) -> None:
        """Answer from the event loop, if the program has one: that is what may hang."""
        answer = {"k": "pong", "n": number, "connections": self._connections}
        loop = self._thread.loop
        if loop is not None and loop.is_running():
            try:
                loop.call_soon_threadsafe(self.peer.send, answer)
                return
            except RuntimeError:
                pass  # closed meanwhile
        self.peer.send(answer)

    def _supervisor_gone(self) -> None:
        """End this process and all its children."""
        for call in self._handlers.get("disconnect"):
            try:
                call()
            except Exception:
                logger.exception("a disconnect handler failed")
        os.kill(self.pid, signal.SIGTERM)
        time.sleep(ORPHAN_GRACE)
        if os.getpgrp() == self.pid:
            os.killpg(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)

    def _shut_down(self, timeout: float) -> None:
        # Hooks may start programs, which inherit this thread's signal mask.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._signal_mask)
        deadline = time.monotonic() + timeout
        for hook in self._shutdown_hooks:
            left = max(deadline - time.monotonic(), 0.0)
            try:
                result = hook(left) if positional_parameters(hook) else hook()
                if inspect.isawaitable(result):
                    self._thread.run_on_loop(result).result(left)
            except Exception:
                logger.exception("a shutdown hook failed")
        signal.pthread_sigmask(signal.SIG_BLOCK, ASYNCHRONOUS_SIGNALS)  # TERM follows
        self.peer.send({"k": "hooks_done"})

    def _forked(self) -> None:
        global _current
        if _current is self:
            _current = None
