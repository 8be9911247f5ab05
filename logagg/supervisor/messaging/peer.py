"""One end of the channel between the supervisor and a worker; both ends are the same.

Theory of operation
-------------------
A `Peer` turns calls into frames and frames into calls. It owns no socket, thread or
loop; its host (`PeerHost`) moves bytes, runs coroutines, and calls `expire` in time.

*Messages* (`post`) are numbered and keep their order (see `outbox`). The receiver
acknowledges each once its handlers have ended.

*Questions* (`ask`) get one answer: requests of programs, tasks, and what a worker asks
the supervisor itself.

*Every receipt and answer is resolved once*: handled (also by a handler that raised),
refused by the other end, not answered in time, or failed by `close`.

*Any thread may call, and a signal handler that interrupts a call of its own thread.*
"""

from __future__ import annotations

import errno
import inspect
import itertools
import os
import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Protocol

from logagg.errors import WireError
from logagg.supervisor.messaging.frames import FRAMES, Frame, encode_value, misfit
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.messaging.outbox import Outbox, close_descriptor

__all__ = ["Peer", "PeerHost", "error_text"]

_NO_DESCRIPTOR = "the receiver has no descriptor free for the socket"
_ERROR_CHARACTERS = 4000

Call = Callable[[], Any]
Answer = AwaitableFuture[tuple[Frame, int]]


class PeerHost(Protocol):
    """The process of a peer: it moves bytes and runs coroutines."""

    def transmit(self, data: memoryview, fd: int) -> int:
        """Send bytes, with a descriptor unless it is negative; return how many.

        0 means no room: the host calls `Peer.writable` when there is some. `OSError`
        means that the other end is gone: the host calls `Peer.close` when it notices.
        """

    def handle(self, frame: Frame, fd: int) -> None:
        """Handle any other frame than acks and answers; the descriptor is the host's."""

    def start(self, awaitable: Any) -> Any:
        """Run a handler's coroutine; return its future."""

    def report(self, what: str, error: BaseException) -> None:
        """Log the error of a "message" or "request" handler, or of a "frame"."""

    def alarm(self, seconds: float) -> None:
        """Call `Peer.expire` that much later, besides earlier alarms."""


class Peer:
    """Messages, questions and other frames to and from the process at the other end.

    Args:
        host: The process at this end.
        other: The name of the other end, for errors.
        clock: Monotonic seconds.
    """

    def __init__(
        self, host: PeerHost, other: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host = host
        self._other = other
        self._clock = clock
        self._lock = threading.RLock()  # guards the questions, also in nested calls
        self._error: Exception | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, Answer] = {}
        self._deadlines: list[tuple[float, int, float]] = []
        self._outbox = Outbox(host.transmit)
        self.send = self._outbox.send
        self.post = self._outbox.post
        self.writable = self._outbox.writable

    @property
    def unacknowledged(self) -> int:
        """How many messages have no receipt yet."""
        return len(self._outbox)

    # ---- questions ----------------------------------------------------------------

    def ask(
        self, question: Frame, fd: int = -1, *, timeout: float | None = None
    ) -> Answer:
        """Send a question; the result is the answer's frame and descriptor (or -1).

        It fails with `TimeoutError` after `timeout` seconds. Raises as `send` does.
        """
        answer: Answer = AwaitableFuture()
        answer.number = number = next(self._numbers)
        first = False
        with self._lock:
            if self._error is not None:
                answer.fail(self._error)
                return answer
            self._asked[number] = answer
            if timeout is not None:
                deadline = self._clock() + timeout
                heappush(self._deadlines, (deadline, number, timeout))
                first = self._deadlines[0][1] == number
        if first and timeout is not None:
            self._host.alarm(timeout)
        try:
            self.send({**question, "q": number}, fd)
        except OSError:
            self._asked.pop(number, None)
            raise
        return answer

    def request(self, message: Any, timeout: float) -> AwaitableFuture[Any]:
        """Ask the program at the other end; the result is what its handler returns.

        Raises:
            WireError: The message is not JSON, or too long.
        """
        result: AwaitableFuture[Any] = AwaitableFuture()

        def answered(answer: Answer) -> None:
            error = answer.exception()
            if error is not None:
                result.fail(error)
                return
            frame, fd = answer.result()
            close_descriptor(fd)
            if "error" in frame:
                result.fail(RuntimeError(str(frame["error"])))
            else:
                result.resolve(frame.get("b"))

        question = {"k": "request", "b": encode_value(message)}
        self.ask(question, timeout=timeout).add_done_callback(answered)  # type: ignore[arg-type]
        return result

    # ---- receiving ----------------------------------------------------------------

    def receive(self, frame: Frame, fd: int) -> None:
        """Handle a frame and its descriptor; what is wrong with it is reported."""
        kind = FRAMES.get(frame["k"])
        try:
            if kind is None or (fd >= 0 and not kind.descriptor):
                close_descriptor(fd)
                fd = -1
            if kind is None:
                return
            wrong = misfit(frame)
            if wrong:
                close_descriptor(fd)
                self._host.report("frame", WireError(wrong))
            elif frame["k"] == "ack":
                self._outbox.acknowledged(frame["id"], frame.get("error"))
            elif frame["k"] == "answer":
                self._answered(frame, fd)
            elif frame["k"] == "message" and fd < 0 and frame.get("fd"):
                self.ack(frame, _NO_DESCRIPTOR)
            else:
                self._host.handle(frame, fd)
        except Exception as error:  # noqa: BLE001  one frame harms no other
            self._host.report("frame", error)

    def _answered(self, frame: Frame, fd: int) -> None:
        answer = self._asked.pop(frame["q"], None)
        if answer is None or answer.done():
            close_descriptor(fd)
        elif fd < 0 and frame.get("fd"):
            answer.fail(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        else:
            answer.resolve((frame, fd))

    def expire(self) -> float | None:
        """Fail questions whose time is over; seconds until the next one's is."""
        late: list[tuple[Answer, float]] = []
        wait: float | None = None
        with self._lock:
            while self._deadlines:
                deadline, number, timeout = self._deadlines[0]
                left = deadline - self._clock()
                if number in self._asked and left > 0:
                    wait = left
                    break
                heappop(self._deadlines)
                answer = self._asked.pop(number, None)
                if answer is not None:
                    late.append((answer, timeout))
        for answer, timeout in late:
            text = f"{self._other} did not answer within {timeout:g} s"
            answer.fail(TimeoutError(text))
        return wait

    def close(self, error: Exception) -> None:
        """The channel is gone: fail all that is open, and all that is sent from now."""
        with self._lock:
            if self._error is None:
                self._error = error
            asked = list(self._asked.values())
            self._asked.clear()
        self._outbox.close(error)
        for answer in asked:
            answer.fail(error)

    # ---- handlers, acknowledgements and answers -------------------------------------

    def handle_message(self, frame: Frame, calls: list[Call]) -> None:
        """Run the handlers of a message, and acknowledge it when all have ended."""
        if not calls:
            self.ack(frame)
            return
        count = itertools.count(1)

        def ended(_value: Any, error: BaseException | None) -> None:
            if error is not None:
                self._host.report("message", error)
            if next(count) == len(calls):
                self.ack(frame)

        for call in calls:
            self._run(call, ended)

    def handle_request(self, frame: Frame, calls: list[Call]) -> None:
        """Run the first handler of a request and answer with what it returns."""
        if not calls:
            self.answer(frame, {"error": "no request handler is registered"})
            return

        def ended(value: Any, error: BaseException | None) -> None:
            if error is None:
                self.answer_value(frame, value)
            else:
                self._host.report("request", error)
                text = f"{type(error).__name__}: {error_text(error)}"
                self.answer(frame, {"error": text[:_ERROR_CHARACTERS]})

        self._run(calls[0], ended)

    def _run(
        self, call: Call, ended: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run a handler, and `ended` with its result or error. Calls `ended` once."""
        try:
            result = call()
            future = self._host.start(result) if inspect.isawaitable(result) else None
        except BaseException as error:
            ended(None, error)
            if not isinstance(error, Exception):
                raise
            return
        if future is None:
            ended(result, None)
            return

        def finished(done: Any) -> None:
            if done.cancelled():
                ended(None, RuntimeError("the handler was cancelled"))
            elif done.exception() is not None:
                ended(None, done.exception())
            else:
                ended(done.result(), None)

        future.add_done_callback(finished)

    def ack(self, message: Frame, error: str = "") -> None:
        """Acknowledge a message; with an error: it was refused."""
        frame = {"k": "ack", "id": message["id"]}
        self.send({**frame, "error": error} if error else frame)

    def answer(self, question: Frame, content: Frame, fd: int = -1) -> None:
        """Answer a question."""
        self.send({"k": "answer", "q": question["q"], **content}, fd)

    def answer_value(self, question: Frame, value: Any) -> None:
        """Answer a request with a user's value, or with why it cannot be sent."""
        try:
            content: Frame = {"b": encode_value(value)}
        except WireError as error:
            content = {"error": error_text(error)}
        self.answer(question, content)


def error_text(error: BaseException) -> str:
    """An error's text as valid UTF-8, whatever its `__str__` does."""
    try:
        return str(error).encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001  a broken __str__ may raise anything
        return "<unprintable>"
