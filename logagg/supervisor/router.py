"""Frames of workers, each passed to the part that it is for. On the supervisor's loop."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from logagg.core.event import Event
from logagg.errors import WouldBlock
from logagg.platform.procfs import SEES_SOCKETS, family, has_socket
from logagg.supervisor.messaging.frames import Frame, encode_value
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.process.worker_process import Crash, WorkerProcess
from logagg.supervisor.run_context import RunContext
from logagg.supervisor.run_options import OnFailure
from logagg.supervisor.sockets.bind_address import BACKLOG
from logagg.supervisor.sockets.listeners import Listener
from logagg.supervisor.supervisor_events import CrashCounter
from logagg.supervisor.tasks import TaskQueue

__all__ = ["Router"]

CLOSE_GRACE = 1.0


class Router:
    """Handlers of frames by kind (see `frames.FRAMES`).

    Args:
        recycle: Called with a worker that is to be replaced, and why.
    """

    def __init__(
        self,
        context: RunContext,
        tasks: TaskQueue,
        recycle: Callable[[WorkerProcess, str], None],
    ) -> None:
        self._context = context
        self._tasks = tasks
        self._recycle = recycle
        self._crashes = CrashCounter()

    def handle(self, worker: WorkerProcess, frame: Frame, fd: int) -> None:
        """Handle one frame; its descriptor, if any, is closed or passed on here."""
        kind = frame["k"]
        if kind == "message":
            self._on_message(worker, frame, fd)
        elif kind == "bind":
            self._on_bind(worker, frame, fd)
        else:
            getattr(self, f"_on_{kind}")(worker, frame)

    def report(self, worker: WorkerProcess, what: str, error: BaseException) -> None:
        """Log the error of a handler, or of a frame that a confused worker sent."""
        if what == "frame":
            event = Event.BAD_FRAME
            text = f"worker {worker.name} sent an invalid frame: {error!r}"
        else:
            event, text = Event.HANDLER_FAILED, f"the {what} handler failed: {error!r}"
        self._context.events.record("error", event, text, slot=worker.slot)

    def disconnected(self, worker: WorkerProcess) -> None:
        """Find out whether a worker without a channel still listens, if it lives on.

        An `exec`, or a program that closes all descriptors, closes listeners unseen.
        """
        self._context.emit("disconnect", worker)
        for round_robin in self._context.listeners.round_robins():
            round_robin.doubt(worker.id)
        self._context.loop.call_later(CLOSE_GRACE, self._check_listeners, worker)

    def _check_listeners(self, worker: WorkerProcess) -> None:
        used = [each for each in self._context.listeners.all if worker.id in each.users]
        if not (used and worker.is_active and SEES_SOCKETS):
            return
        processes = family(worker.pid)
        for listener in used:
            if has_socket(processes, listener.inode(worker.id, worker.slot)):
                continue
            if listener.round_robin is not None:
                listener.round_robin.remove(worker.id)
            self._leave(listener, worker)

    # ---- states -------------------------------------------------------------------

    def _on_online(self, worker: WorkerProcess, _frame: Frame) -> None:
        worker.online_since = self._context.loop.time()
        self._context.emit("online", worker)

    def _on_ready(self, worker: WorkerProcess, _frame: Frame) -> None:
        self._context.make_ready(worker)

    def _on_listening(self, worker: WorkerProcess, frame: Frame) -> None:
        worker.listened = True
        self._context.serves = True
        for listener in self._context.listeners.all:
            listener.keep_path()
            if listener.is_at(frame["host"], frame["port"]):
                listener.users.add(worker.id)
        address = {"host": frame["host"], "port": frame["port"]}
        self._context.emit("listening", worker, address)
        self._context.make_ready(worker)

    def _on_closed(self, worker: WorkerProcess, frame: Frame) -> None:
        """Let a port that the program has closed refuse clients, if no worker uses it.

        A moment later: one that closes it when it ends is followed by another.
        """
        for listener in self._context.listeners.all:
            if not listener.is_at(frame["host"], frame["port"]):
                continue
            self._leave(listener, worker)

    def _leave(self, listener: Listener, worker: WorkerProcess) -> None:
        listener.users.discard(worker.id)
        if not (listener.users or listener.named):
            self._context.loop.call_later(CLOSE_GRACE, self._refuse, listener, worker)

    def _refuse(self, listener: Listener, worker: WorkerProcess) -> None:
        if worker.is_active and not listener.users:
            listener.refuse()

    def _on_hooks(self, worker: WorkerProcess, frame: Frame) -> None:
        worker.hooks = frame["n"]

    def _on_hooks_done(self, worker: WorkerProcess, _frame: Frame) -> None:
        worker.hooks_done.set()

    def _on_pong(self, worker: WorkerProcess, frame: Frame) -> None:
        worker.last_pong, worker.unanswered = self._context.loop.time(), None
        worker.connections = frame["connections"]

    def _on_spent(self, worker: WorkerProcess, _frame: Frame) -> None:
        self._recycle(worker, "took its number of connections")

    def _on_crash(self, worker: WorkerProcess, frame: Frame) -> None:
        count = self._crashes.count(frame["trace"], self._context.loop.time())
        worker.crash = Crash(frame["summary"], frame["trace"], count)
        # Of a run that it ends, the traceback is what the terminal shows last.
        options = self._context.options
        shown_last = worker.crash.is_final and not self._context.started
        in_log = not (shown_last and options.on_failure is OnFailure.EXIT)
        on_terminal = any(
            sink.startswith(("stdout:", "stderr:")) for sink in options.sinks
        )
        worker.peer.answer(frame, {"show": count == 1 and (in_log or not on_terminal)})

    def _on_idle(self, worker: WorkerProcess, _frame: Frame) -> None:
        self._tasks.idle(worker)

    # ---- messages -----------------------------------------------------------------

    def _on_message(self, worker: WorkerProcess, frame: Frame, fd: int) -> None:
        sock = socket.socket(fileno=fd) if fd >= 0 else None
        calls = self._context.handlers.get("message", worker, frame.get("b"), sock)
        worker.peer.handle_message(frame, calls)

    def _on_request(self, worker: WorkerProcess, frame: Frame) -> None:
        calls = self._context.handlers.get("request", worker, frame.get("b"))
        worker.peer.handle_request(frame, calls)

    def _on_broadcast(self, worker: WorkerProcess, frame: Frame) -> None:
        def ended(receipt: Any) -> None:
            error = receipt.exception()
            worker.peer.ack(frame, "" if error is None else str(error))

        self.broadcast(frame.get("b")).add_done_callback(ended)

    def broadcast(self, message: Any) -> AwaitableFuture[None]:
        """Send a message to all workers.

        Returns:
            A receipt: resolved when all have handled the message or have died; fails
            with `WouldBlock` when too much waits for some of them already.

        Raises:
            WireError: It is not JSON, or too long.
        """
        everyone: AwaitableFuture[None] = AwaitableFuture()
        value = encode_value(message)
        refused: list[str] = []
        receipts: list[AwaitableFuture[None]] = []
        for worker in self._context.workers.values():
            if worker.channel is None or not worker.is_active:
                continue
            try:
                receipts.append(worker.peer.post("message", value))
            except WouldBlock:  # the others still get it
                refused.append(str(worker.slot))
        left = len(receipts) + 1

        def received(_receipt: object = None) -> None:
            nonlocal left
            left -= 1
            if left:
                return
            if refused:
                slots = ", ".join(refused)
                everyone.fail(WouldBlock(f"too many messages wait for slot {slots}"))
            else:
                everyone.resolve(None)

        for receipt in receipts:
            receipt.add_done_callback(received)
        received()
        return everyone

    # ---- ports --------------------------------------------------------------------

    def _on_bind(self, worker: WorkerProcess, frame: Frame, fd: int) -> None:
        """Share an address that a worker binds with the others."""
        if fd < 0:
            worker.peer.answer(frame, {"errno": errno.EMFILE})
            return
        try:
            self._share(worker, frame, fd)
        except OSError as error:  # it is taken, or no descriptor is free here
            worker.peer.answer(frame, {"errno": error.errno})

    def _share(self, worker: WorkerProcess, frame: Frame, fd: int) -> None:
        peer = worker.peer
        family, host, port = frame["family"], frame["host"], frame["port"]
        listener = self._context.listeners.find(family, host, port)
        if listener is not None:
            os.close(fd)
            fd = listener.sock.fileno()
        else:
            sock = socket.socket(fileno=fd)
            try:
                listener = self._context.listeners.share(family, host, port, sock)
            except OSError:
                sock.close()
                raise
            fd = -1  # the worker's own socket is the shared one
        content = {"policy": listener.policy.value}
        if listener.round_robin is None:
            peer.answer(frame, content, fd)
            return
        channel = listener.round_robin.channel(worker.id, worker.slot)
        peer.answer(frame, content, channel.worker_sock.fileno())

    def _on_real(self, worker: WorkerProcess, frame: Frame) -> None:
        """Give a worker that cannot be handed connections the shared socket itself."""
        for listener in self._context.listeners.all:
            address = listener.address
            if (address.host, address.port) == (frame["host"], frame["port"]):
                listener.sock.listen(BACKLOG)
                listener.sharing.add(worker.id)
                if listener.round_robin is not None:
                    listener.round_robin.withdraw(worker.id)
                try:
                    worker.peer.answer(frame, {}, listener.sock.fileno())
                except OSError as error:
                    worker.peer.answer(frame, {"errno": error.errno})
                return
