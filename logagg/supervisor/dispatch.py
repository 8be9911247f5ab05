"""Messages inside a worker: from the channel's thread to the program's handlers.

Messages are delivered one after the other in the order in which they came; a request
may overtake messages that wait for a handler to be registered. A plain function runs in
the thread of this module, a coroutine function on the program's event loop, and the
message counts as taken (its receipt is sent) when all its handlers have ended.

`_arrived` guards the inbox and the loop. The window of the sender bounds the inbox.
"""

from __future__ import annotations

import inspect
import logging
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from logagg.errors import WireError
from logagg.supervisor.channel import Frame, encode
from logagg.supervisor.handlers import Handlers

__all__ = ["THREAD", "Dispatcher"]

logger = logging.getLogger("logagg")

THREAD = "logagg-messages"


class Dispatcher:
    """The inbox and its thread.

    Args:
        handlers: What the program registered.
        transmit: Sends encoded bytes with descriptors to the supervisor.

    Attributes:
        loop: The program's event loop, once it has been seen.
    """

    def __init__(
        self, handlers: Handlers, transmit: Callable[[bytes, list[int]], None]
    ) -> None:
        self.loop: Any = None
        self._handlers = handlers
        self._transmit = transmit
        self._inbox: list[tuple[Frame, list[int]]] = []
        self._arrived = threading.Condition()
        self._started = False

    def put(self, frame: Frame, fds: list[int]) -> None:
        """Take a message or request from the channel."""
        with self._arrived:
            self._inbox.append((frame, fds))
            self._arrived.notify_all()

    def adopt(self, loop: Any) -> None:
        """Run coroutine handlers on that event loop from now on."""
        with self._arrived:
            self.loop = loop
            self._arrived.notify_all()

    def adopt_running(self) -> bool:
        """Remember the running loop of this thread; whether there is one."""
        asyncio = sys.modules.get("asyncio")
        loop = None if asyncio is None else asyncio._get_running_loop()
        if loop is None:
            return False
        if loop is not self.loop:
            self.adopt(loop)
        return True

    def _tell(self, frame: Frame) -> None:
        try:
            self._transmit(encode(frame), [])
        except OSError:
            pass  # the supervisor is gone: the channel's thread ends the process

    def start(self) -> None:
        """Begin to deliver, in a thread of its own; again: look anew."""
        with self._arrived:
            self._arrived.notify_all()
            if self._started:
                return
            self._started = True
        threading.Thread(target=self._run, name=THREAD, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._deliverable() is not None)
                index = self._deliverable()
                assert index is not None
                frame, fds = self._inbox.pop(index)
            if frame["k"] == "request":
                self._answer(frame)
            else:
                self._deliver(frame, fds)

    def _deliverable(self) -> int | None:
        """The first that can be delivered: messages wait until there is a handler."""
        messages = "message" in self._handlers
        for index, (frame, _) in enumerate(self._inbox):
            if messages or frame["k"] == "request":
                return index
        return None

    def _deliver(self, frame: Frame, fds: list[int]) -> None:
        sock = socket.socket(fileno=fds[0]) if fds else None
        waiting: list[Any] = []
        for call in self._handlers.get("message", frame.get("b"), sock):
            try:
                result = call()
                if inspect.isawaitable(result):
                    waiting.append(self.on_loop(result))
            except Exception:
                logger.exception("a message handler failed")
        number = frame["id"]
        if not waiting:
            self._tell({"k": "ack", "ids": [number]})
            return
        left = len(waiting)

        def finished(done: Any) -> None:
            nonlocal left
            left -= 1
            if not done.cancelled() and done.exception() is not None:
                logger.error("a message handler failed", exc_info=done.exception())
            if left == 0:
                self._tell({"k": "ack", "ids": [number]})

        for future in waiting:
            future.add_done_callback(finished)

    def _answer(self, frame: Frame) -> None:
        calls = self._handlers.get("request", frame.get("b"))
        number = frame["q"]
        if not calls:
            self._tell({"k": "answer", "q": number, "error": "no request handler"})
            return

        def answer(value: Any) -> None:
            try:
                data = encode({"k": "answer", "q": number, "b": value})
            except WireError as error:
                data = encode({"k": "answer", "q": number, "error": str(error)})
            try:
                self._transmit(data, [])
            except OSError:
                pass

        def failed(error: BaseException) -> None:
            logger.error("a request handler failed", exc_info=error)
            text = f"{type(error).__name__}: {error}"
            self._tell({"k": "answer", "q": number, "error": text[:4000]})

        def finished(done: Any) -> None:
            error = done.exception()
            if error is None:
                answer(done.result())
            else:
                failed(error)

        try:
            result = calls[0]()
        except Exception as error:  # noqa: BLE001  told to the one who asked
            failed(error)
            return
        if inspect.isawaitable(result):
            self.on_loop(result).add_done_callback(finished)
        else:
            answer(result)

    def on_loop(self, awaitable: Any) -> Any:
        """Run a handler's coroutine on the program's loop, waiting for one if need be."""
        import asyncio

        with self._arrived:
            if not self._arrived.wait_for(lambda: self.loop is not None, 1.0):
                logger.warning(
                    "an async handler waits: no event loop of this program has been seen "
                    "yet; register it while the loop runs, or call worker.adopt_loop()"
                )
                self._arrived.wait_for(lambda: self.loop is not None)

        async def run() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self.loop)
