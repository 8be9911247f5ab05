"""Both ends of a worker's channel over a real socket, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support import no_free_descriptor

from logagg.errors import ClosedError, WouldBlock
from logagg.supervisor.child.handler_thread import HandlerThread
from logagg.supervisor.child.parent_channel import ParentChannel
from logagg.supervisor.messaging.event_handlers import EventHandlers
from logagg.supervisor.messaging.frame_connection import FrameConnection
from logagg.supervisor.messaging.frames import Decoder, Frame, encode_value, receive
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.messaging.peer import Peer
from logagg.supervisor.router import Router
from logagg.supervisor.sockets.bind_address import BindAddress, PortPolicy
from logagg.supervisor.sockets.listeners import Listeners


class WorkerEnd:
    """A worker's channel, its handlers and their thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.handlers = EventHandlers(("message", "request"))
        self.thread = HandlerThread(self.handlers)
        self.closed = threading.Event()
        self.channel = ParentChannel(
            sock.detach(),
            handle=self.handle,
            start=self.thread.run_on_loop,
            closed=self.closed.set,
        )
        self.channel.open()
        self.peer = self.channel.peer

    def on(self, event: str, function: Callable[..., Any]) -> None:
        """Register a handler."""
        self.handlers.add(event, function)
        self.thread.start()

    def handle(self, frame: Frame, fd: int) -> None:
        """Queue messages and requests, as a worker does."""
        sock = socket.socket(fileno=fd) if fd >= 0 else None
        calls = self.handlers.get(frame["k"], frame.get("b"), sock)
        if frame["k"] == "message":
            self.thread.put("message", lambda: self.peer.handle_message(frame, calls))
        elif frame["k"] == "request":
            self.thread.put("request", lambda: self.peer.handle_request(frame, calls))


@contextlib.contextmanager
def ends(
    handle: Callable[[Frame, int], None] = lambda _frame, _fd: None,
) -> Iterator[tuple[FrameConnection, WorkerEnd, list[str]]]:
    """Both ends; must be entered on an event loop."""
    ours, theirs = socket.socketpair()
    events: list[str] = []
    connection = FrameConnection(
        ours,
        "worker 1",
        handle=handle,
        start=asyncio.ensure_future,
        report=lambda what, error: events.append(f"{what}: {error}"),
        disconnected=lambda: events.append("disconnected"),
    )
    worker = WorkerEnd(theirs)
    try:
        yield connection, worker, events
    finally:
        connection.close()
        assert worker.closed.wait(5)


def test_large_messages_and_sockets_pass_in_both_directions() -> None:
    """4 MB at once, more than a socket takes, with descriptors in between; in order."""
    got: list[Any] = []

    async def scene() -> None:
        with ends() as (connection, worker, events):

            def handle(frame: Frame, fd: int) -> None:
                if fd >= 0:
                    os.close(fd)
                got.append((len(frame["b"]), fd >= 0))
                connection.peer.handle_message(frame, [])

            connection.handle = handle  # type: ignore[method-assign]

            def take(message: str, sock: socket.socket | None) -> None:
                if sock is not None:
                    sock.close()
                got.append((len(message), sock is not None))

            worker.on("message", take)
            for end in (connection.peer, worker.peer):
                got.clear()
                sizes = [4_000_000, 1, 3_000_000, 2]
                with socket.socket() as passed:
                    receipts = [
                        await asyncio.to_thread(
                            end.post,
                            "message",
                            encode_value("x" * size),
                            passed.fileno() if size < 10 else -1,
                        )
                        for size in sizes
                    ]
                async with asyncio.timeout(20):
                    for receipt in receipts:
                        await receipt
                assert got == [(size, size < 10) for size in sizes]
            assert events == []

    asyncio.run(scene())


def test_the_end_of_either_side_fails_what_is_open() -> None:
    """Receipts and answers at the worker fail with `ClosedError`."""

    async def scene() -> None:
        with ends() as (connection, worker, events):
            request = worker.peer.request("?", 60)
            receipt = worker.peer.post("message", encode_value(1))
            connection.close()
            async with asyncio.timeout(5):
                for future in (request, receipt):
                    with pytest.raises(ClosedError):
                        await future
            assert events == ["disconnected"]

    asyncio.run(scene())


def test_deadlines_are_kept_at_both_ends() -> None:
    """Without anything else happening on the channel."""

    async def scene() -> None:
        with ends() as (connection, worker, _):
            begun = time.monotonic()
            for peer in (connection.peer, worker.peer):
                with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
                    await peer.request("?", 0.1)
            assert 0.2 <= time.monotonic() - begun < 5

    asyncio.run(scene())


def test_handlers_go_on_after_a_loop_was_closed() -> None:
    """Each message is acknowledged and each request answered, whatever came before."""

    async def scene() -> None:
        with ends() as (connection, worker, _):
            loop = asyncio.new_event_loop()
            loop.close()
            worker.thread.adopt(loop)

            async def on_loop(value: Any) -> Any:
                return value

            def handler(value: Any) -> Any:
                return on_loop(value) if value == "loop" else value

            worker.on("message", handler)
            worker.on("request", handler)
            async with asyncio.timeout(10):
                for value in ("loop", "plain"):
                    await connection.peer.post("message", encode_value(value))
                with pytest.raises(RuntimeError, match="closed"):
                    await connection.peer.request("loop", 5)
                assert await connection.peer.request("plain", 5) == "plain"

    asyncio.run(scene())


@pytest.mark.parametrize(("code", "status"), [("", 0), ("3", 3), ("'why'", 1)])
def test_an_exit_in_a_handler_ends_the_process(code: str, status: int) -> None:
    """As `sys.exit` in the main thread does, which may be blocked: hooks and output."""
    program = f"""
import atexit, sys, threading
from logagg.supervisor.child.handler_thread import HandlerThread
from logagg.supervisor.messaging.event_handlers import EventHandlers
atexit.register(print, "hook", end="")
thread = HandlerThread(EventHandlers(("message", "request")))
thread.put("request", lambda: sys.exit({code}))
thread.start()
threading.Event().wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == status
    assert done.stdout == b"hook"
    assert (done.stderr.strip() == b"why") == (status == 1)


def test_a_signal_handler_may_send_while_a_send_blocks() -> None:
    """The interrupted thread holds the lock; its own frame stays whole."""
    ours, theirs = socket.socketpair()
    worker = WorkerEnd(theirs)
    found: list[Any] = []

    def read() -> None:
        decoder = Decoder()
        time.sleep(0.3)  # until then nothing is read: the sender blocks in send()
        while len(found) < 4:
            found.extend(f["b"] for f, _ in decoder.feed(*receive(ours)))

    nested: list[Any] = []

    def handler(_signum: int, _frame: object) -> None:
        nested.append(worker.peer.post("message", encode_value("nested"), wait=True))

    before = signal.signal(signal.SIGALRM, handler)
    reader = threading.Thread(target=read, daemon=True)
    try:
        reader.start()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        for size in (3_000_000, 5, 6):
            worker.peer.post("message", encode_value("x" * size))
        reader.join(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        ours.close()
        worker.closed.wait(5)
    assert len(nested) == 1
    assert sorted(map(len, found)) == [5, 6, 6, 3_000_000]
    assert "nested" in found


def test_a_forked_child_has_a_closed_channel() -> None:
    """Its sends fail at once; a fork of the fork closes no descriptor of others."""
    ours, theirs = socket.socketpair()
    worker = WorkerEnd(theirs)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            error = worker.channel.peer.post("message", encode_value(1)).exception(1)
            taken = [os.dup(0) for _ in range(20)]  # among them the closed number
            grandchild = os.fork()
            if grandchild == 0:
                for fd in taken:
                    os.fstat(fd)
                os._exit(0)
            _, status = os.waitpid(grandchild, 0)
            os.write(write, f"{type(error).__name__} {status}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"ClosedError 0"
    ours.close()
    assert worker.closed.wait(5)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("full", [0, 1, 3])
def test_a_full_receiver_of_a_broadcast_fails_it_and_harms_no_other(full: int) -> None:
    """All others get it; the receipt comes when they have handled it, and names slots."""
    receipts: list[AwaitableFuture[None]] = []

    def worker(slot: int) -> Any:
        def post(_kind: str, _value: Any) -> AwaitableFuture[None]:
            if slot <= full:
                raise WouldBlock("full")
            receipts.append(AwaitableFuture())
            return receipts[-1]

        peer = SimpleNamespace(post=post)
        return SimpleNamespace(slot=slot, channel=1, is_active=True, peer=peer)

    context: Any = SimpleNamespace(workers={n: worker(n) for n in (1, 2, 3)})
    broadcast = Router(context, None, None).broadcast("x")  # type: ignore[arg-type]
    assert len(receipts) == 3 - full
    for receipt in receipts:
        assert not broadcast.done()
        receipt.resolve(None)
    error = broadcast.exception(0)
    assert (error is None) == (full == 0)
    if full:
        assert ", ".join("123"[:full]) in str(error)


@pytest.mark.parametrize("policy", ["kernel", "rr"])
@pytest.mark.parametrize("kind", ["bind", "real"])
def test_a_worker_learns_that_the_supervisor_has_no_descriptor_for_its_port(
    policy: str, kind: str
) -> None:
    """At once: its program gets the error that it would get of the system."""

    async def scene() -> None:
        listeners = Listeners(PortPolicy(policy), None, None, lambda *_: None)
        context: Any = SimpleNamespace(listeners=listeners)
        sent: list[tuple[Frame, int]] = []
        decoder = Decoder()

        def transmit(data: memoryview, _fd: int) -> int:
            sent.extend(decoder.feed(bytes(data), []))
            return len(data)

        host: Any = SimpleNamespace(
            transmit=transmit, report=lambda what, error: sent.append((what, error))
        )
        peer = Peer(host, "worker 1")
        host.handle = lambda frame, fd: router.handle(worker, frame, fd)
        worker: Any = SimpleNamespace(id=1, slot=1, peer=peer)
        router = Router(context, None, None)  # type: ignore[arg-type]
        address = BindAddress(socket.AF_INET, "127.0.0.1", 0)
        at = listeners.bind(address).address
        frame = {"k": kind, "q": 7, "host": at.host, "port": at.port}
        descriptor = -1
        if kind == "bind":
            frame["family"] = int(at.family)
            descriptor = os.open("/dev/null", os.O_RDONLY)
        with no_free_descriptor():
            peer.receive(frame, descriptor)
        ((answer, _),) = sent
        assert (answer["k"], answer["q"]) == ("answer", 7)
        assert answer["errno"] == errno.EMFILE
        listeners.close()

    asyncio.run(scene())
