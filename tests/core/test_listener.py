"""The consumer's socket: a hello is handled whole, or refused and nothing has changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from support import descriptors, no_free_descriptor

from logagg.consumer import listener
from logagg.consumer.listener import ConsumerListener
from logagg.consumer.subscribers import Subscribers
from logagg.errors import ConfigError
from logagg.fanout.watched_tasks import WatchedTasks
from logagg.ipc import consumer_client, launcher
from logagg.ipc.protocol import (
    ConsumerPacket,
    HolderPacket,
    HoldHello,
    RecordsHello,
    ReloadHello,
    StatusHello,
    StreamHello,
    ViewerControl,
    ViewerHello,
    WorkerPacket,
    decode,
    encode,
)
from logagg.platform import packets


class Host:
    """A consumer that notes what the listener does with it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.workers: list[Any] = []
        self.refuse = ""
        self.owned_by = ""
        self.tasks = WatchedTasks(self.part_failed)

    def wake(self) -> None:
        """Nothing to do."""

    def start_task(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """As a consumer does."""
        self.tasks.start(work, name)

    def part_failed(self, name: str, _: BaseException) -> None:
        """As a consumer does."""
        self.calls.append(("failed", name))

    def add_worker(self, worker: Any) -> None:
        """As a consumer does."""
        self.workers.append(worker)

    def add_output(self, pipe: int, hello: StreamHello) -> None:
        """As a consumer does."""
        os.close(pipe)
        self.calls.append(("output", hello))

    def has_sources(self) -> bool:
        """As a consumer does."""
        return bool(self.workers)

    def add_event(self, message: HolderPacket) -> None:
        """As a consumer does."""
        self.calls.append(("event", message.record))

    def status(self) -> dict[str, Any]:
        """As a consumer does."""
        return {"workers": []}

    async def owner(self, urls: list[str]) -> str:
        """As a consumer does."""
        return self.owned_by

    def forget_worker(self, worker: Any) -> None:
        """As a consumer does."""
        self.workers.remove(worker)
        worker.close()

    def give_way(self, successor: str) -> None:
        """As a consumer does."""
        self.calls.append(("give way", successor))
        if self.refuse:
            raise ValueError(self.refuse)

    async def open_sinks(
        self,
        refused: Callable[[str], object],
        urls: list[str],
        fds: list[int],
        **_: Any,
    ) -> None:
        """As a consumer does."""
        self.calls.append(("sinks", urls))
        for descriptor in fds:
            os.close(descriptor)
        if self.refuse:
            refused(self.refuse)

    async def check_resumed(self, worker: Any) -> None:
        """As a consumer does."""

    async def reload(self, urls: list[str] | None) -> str:
        """As a consumer does."""
        self.calls.append(("reload", urls))
        return self.refuse


class Scene:
    """A listener on a real socket, and its peers."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "c.sock")
        self.host = Host()
        self.subscribers = Subscribers(lambda: ViewerControl(run="r", workers=0))
        self.listener = ConsumerListener(
            self.host, self.subscribers, launcher.listen(self.path), self.path
        )
        self.listener.start()
        self._open: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """A connection without a hello."""
        made = packets.packet_socket()
        made.connect(self.path)
        made.setblocking(False)
        self._open.append(made)
        return made

    def say_hello(self, hello: Any, *fds: int) -> socket.socket:
        """A connection with a hello and its descriptors, which are closed here."""
        made = self.connect()
        packet = hello if isinstance(hello, bytes) else encode(hello)
        packets.send(made, packet, fds)
        for descriptor in fds:
            os.close(descriptor)
        return made

    def attach(self, **hello: Any) -> tuple[socket.socket, int]:
        """A worker's connection, and the write end of its pipe."""
        read, write = os.pipe()
        null = [os.open("/dev/null", os.O_RDWR) for _ in range(2)]
        fields = {"pid": os.getpid(), "worker": "1", "stream": "1-a", **hello}
        return self.say_hello(RecordsHello(**fields), read, *null), write

    async def answer(self, connection: socket.socket) -> bytes:
        """The next packet."""
        async with asyncio.timeout(30):
            while True:
                try:
                    return packets.receive(connection, 1 << 16)[0]
                except BlockingIOError:
                    await asyncio.sleep(0.005)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition."""
        for _ in range(1000):
            self.listener.poll()
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it did not come to that")

    def close(self) -> None:
        """Close everything."""
        if os.path.exists(self.path):
            self.listener.stop(anyway=True)
        for holder in self.listener.holders.connections:
            holder.close()
        for each in self._open:
            each.close()
        for worker in self.host.workers:
            self.listener.disconnect(worker)
            worker.close()


@contextlib.asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """A scene that is closed at the end."""
    made = Scene(folder)
    try:
        yield made
    finally:
        made.close()


def test_a_worker_is_read_once_its_sinks_are_open(tmp_path: Path) -> None:
    """It gets a welcome, and may request more sinks."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            connection, write = s.attach(sinks=["file:a.log"])
            await s.until(lambda: s.host.workers and s.host.workers[0].readable)
            assert decode(ConsumerPacket, await s.answer(connection)) == (
                ConsumerPacket(welcome=1)
            )
            packets.send(connection, encode(WorkerPacket(sinks=["file:b.log"])))
            await s.until(lambda: ("sinks", ["file:b.log"]) in s.host.calls)
            assert s.host.calls[0] == ("sinks", ["file:a.log"])
            os.close(write)

    asyncio.run(run())


def test_hellos_of_one_process_are_taken_in_the_order_of_its_connections(
    tmp_path: Path,
) -> None:
    """An exception ended the first attempt: it must not count as the newest one."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            first = s.connect()
            s.listener.poll()  # accepted; its hello is not there yet
            read, write = os.pipe()
            null = [os.open("/dev/null", os.O_RDWR) for _ in range(2)]
            hello = RecordsHello(os.getpid(), "1", "1-a", process="first")
            packets.send(first, encode(hello), [read, *null])
            first.close()
            _, newest = s.attach(process="second")
            s.listener.poll()
            attached = [each.hello.process for each in s.host.workers]
            assert attached == ["first", "second"]
            assert s.host.workers[1].successor is None
            for each in (read, write, newest, *null):
                os.close(each)

    asyncio.run(run())


def test_a_worker_is_passed_on_to_the_owner_of_its_file(tmp_path: Path) -> None:
    """It notices nothing. An owner that has gone leaves it here."""

    async def run() -> None:
        (tmp_path / "owner").mkdir()
        async with scene(tmp_path) as s:
            s.host.owned_by = str(tmp_path / "owner" / "c.sock")
            async with scene(tmp_path / "owner") as owner:
                connection, write = s.attach(sinks=["file:a.log"])

                def passed_on() -> bool:
                    s.listener.poll()
                    return bool(owner.host.workers and not s.host.workers)

                await owner.until(passed_on)
                worker = owner.host.workers[0]
                await owner.until(lambda: worker.readable)
                os.write(write, b"{}\n")
                await owner.until(lambda: worker.read(100) and worker.bytes_read == 3)
                answer = decode(ConsumerPacket, await s.answer(connection))
                assert answer == ConsumerPacket(welcome=1)
                assert owner.host.calls == [("sinks", ["file:a.log"])]
                assert s.host.calls == []
            _, other = s.attach(sinks=["file:a.log"])
            await s.until(lambda: s.host.workers and s.host.workers[0].readable)
            os.close(write)
            os.close(other)

    asyncio.run(run())


def test_an_owner_that_does_not_answer_in_time_gets_no_pipe(tmp_path: Path) -> None:
    """Two readers would tear each other's lines."""
    path = str(tmp_path / "c.sock")
    hello = RecordsHello(pid=os.getpid(), worker="1", stream="1-a")
    with launcher.listen(path) as suspended, pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumer_client, "STATUS_TIMEOUT", 0.05)
        read, write = os.pipe()
        assert not consumer_client.hand_over(path, hello, [read])
        connection, _ = suspended.accept()
        with connection:
            _, fds, _ = packets.receive(connection, 65536, 8)
            assert not fds
            assert connection.recv(65536) == b""
        os.close(read)
        os.close(write)


def test_a_consumer_gives_way_unless_it_refuses(tmp_path: Path) -> None:
    """The one that asks learns which."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            give_way = partial(consumer_client.give_way, s.path, "/successor")
            assert await asyncio.to_thread(give_way)
            s.host.refuse = "it stays"
            assert not await asyncio.to_thread(give_way)
            assert s.host.calls == [("give way", "/successor")] * 2
        assert not await asyncio.to_thread(give_way)

    asyncio.run(run())


def test_a_sink_that_cannot_be_had_is_reported_to_its_worker(tmp_path: Path) -> None:
    """And the worker is read all the same."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            s.host.refuse = "no such sink \ud800"
            connection, write = s.attach(sinks=["x:"])
            await s.until(lambda: s.host.workers and s.host.workers[0].readable)
            error = decode(ConsumerPacket, await s.answer(connection)).error
            assert error == "no such sink \\ud800"
            os.close(write)

    asyncio.run(run())


def test_a_failure_while_sinks_open_holds_nobody_back(tmp_path: Path) -> None:
    """Neither an unexpected error nor a wait without end: the worker is read."""

    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    async def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    async def run() -> None:
        for method in ("open_sinks", "check_resumed"):
            for fault in (hang, fail):
                async with scene(tmp_path) as s:
                    setattr(s.host, method, fault)
                    _, write = s.attach(sinks=["file:a.log"])
                    await s.until(lambda s=s: s.host.workers)
                    worker = s.host.workers[0]
                    await s.until(lambda worker=worker: worker.readable)
                    failed = ("failed", f"the attachment of process {os.getpid()}")
                    await s.until(lambda s=s, f=failed: f in s.host.calls)
                    os.close(write)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "JOIN_TIMEOUT", 0.05)
        asyncio.run(run())


def test_a_reload_is_answered_and_a_run_welcomed_whatever_fails(tmp_path: Path) -> None:
    """Their senders wait for it."""

    async def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    async def run() -> None:
        async with scene(tmp_path) as s:
            s.host.open_sinks = fail  # type: ignore[method-assign]
            holder = s.say_hello(HoldHello(sinks=["x:"]))
            assert decode(ConsumerPacket, await s.answer(holder)).welcome == 1
            s.host.reload = fail  # type: ignore[assignment,method-assign]
            asker = s.say_hello(ReloadHello())
            assert decode(ConsumerPacket, await s.answer(asker)).error
            holder.close()
            await s.until(lambda: not s.listener.holders.count)

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["directory", "file", "wrong end", "socket"])
@pytest.mark.parametrize("hello", ["records", "stream", "viewer"])
def test_only_the_right_end_of_a_pipe_is_accepted(
    tmp_path: Path, kind: str, hello: str
) -> None:
    """Reading or writing anything else could fail, or hang."""
    read, write = os.pipe()
    (tmp_path / "file").touch()
    if kind == "wrong end":
        wrong = os.dup(read if hello == "viewer" else write)
    elif kind == "socket":
        wrong = socket.socket().detach()
    else:
        wrong = os.open(tmp_path / ("file" if kind == "file" else ""), os.O_RDONLY)

    async def run() -> None:
        async with scene(tmp_path) as s:
            before = descriptors()
            if hello == "records":
                null = [os.open("/dev/null", os.O_RDWR) for _ in range(2)]
                fields = {"pid": os.getpid(), "worker": "1", "stream": "1-a"}
                peer = s.say_hello(RecordsHello(**fields), wrong, *null)
            elif hello == "stream":
                peer = s.say_hello(StreamHello(slot=1, pid=1, stream="stdout"), wrong)
            else:
                peer = s.say_hello(ViewerHello(), wrong)
            s.listener.poll()
            assert b"end of a pipe" in await s.answer(peer)
            assert descriptors() <= before
            assert not s.host.calls
            assert not s.host.workers

    asyncio.run(run())
    os.close(read)
    os.close(write)


def test_a_truncated_hello_is_refused_and_nothing_of_it_is_accepted(
    tmp_path: Path,
) -> None:
    """The kernel passes what there is room for; the peer learns it and tries again."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            connection = s.connect()
            await s.until(lambda: s.listener._waiting)
            pipe, write = os.pipe()
            null = os.open("/dev/null", os.O_RDWR)
            hello = RecordsHello(pid=os.getpid(), worker="1", stream="1-a")
            packets.send(connection, encode(hello), [pipe, null, null])
            before = descriptors()
            with no_free_descriptor():
                s.listener.poll()
            error = decode(ConsumerPacket, await s.answer(connection)).error
            assert error == (
                "refused: no descriptor is free for those of the hello; try again"
            )
            assert await s.answer(connection) == b""
            assert not s.host.workers
            assert descriptors() < before
            for each in (pipe, write, null):
                os.close(each)

    asyncio.run(run())


def test_clients_wait_in_the_queue_while_no_descriptor_is_free(tmp_path: Path) -> None:
    """They are accepted as soon as one is; it is announced once."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            write = s.attach()[1]
            await s.until(lambda: s.host.workers)
            waiting, other = s.attach()
            with no_free_descriptor():
                for _ in range(3):
                    s.listener.poll()
                    await asyncio.sleep(0.15)
                assert len(s.host.workers) == 1
                assert not s.listener.stop(anyway=False)
            await s.until(lambda: len(s.host.workers) == 2)
            assert [kind for kind, _ in s.host.calls].count("event") == 1
            await s.answer(waiting)
            os.close(write)
            os.close(other)

    asyncio.run(run())


def pipe_end() -> int:
    """One end of a pipe whose other end is closed."""
    read, write = os.pipe()
    os.close(write)
    return read


REFUSED = {
    "garbage": (b"\x80garbage", 0),
    "another version": (encode(StatusHello(hello=9)), 0),
    "another pid": (RecordsHello(pid=1, worker="1", stream="1-a"), 3),
    "no pipe": (RecordsHello(pid=os.getpid(), worker="1", stream="1-a"), 0),
    "kept records in a pipe": (
        RecordsHello(pid=os.getpid(), worker="1", stream="1-a"),
        4,
    ),
    "a status with descriptors": (StatusHello(), 1),
    "a stream without a pipe": (StreamHello(1, 1, "stdout"), 0),
    "a holder with one stream": (HoldHello(), 1),
    "a wrong filter": (ViewerHello(level="loud"), 1),
    "a reload with wrong sinks": (b'{"kind":"reload","sinks":5}', 0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_hello_leaves_nothing(tmp_path: Path, name: str) -> None:
    """Its sender gets the reason, its descriptors are closed, it is counted."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            hello, count = REFUSED[name]
            before = descriptors(os.getpid())
            connection = s.say_hello(hello, *[pipe_end() for _ in range(count)])
            await s.until(lambda: s.listener.refused)

            error = decode(ConsumerPacket, await s.answer(connection)).error
            connection.close()
            assert str(error).startswith("refused: ")
            assert descriptors(os.getpid()) == before
            assert (s.host.calls, s.host.workers) == ([], [])
            assert (s.listener.holders.count, len(s.subscribers)) == (0, 0)

    asyncio.run(run())


def test_a_holder_holds_until_it_leaves_or_ends(tmp_path: Path) -> None:
    """And its records go into the stream."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            one, two = (s.say_hello(HoldHello(sinks=["x:"])) for _ in range(2))
            await s.until(lambda: s.listener.holders.count == 2)
            packets.send(
                one, encode(HolderPacket(record={"message": "m"}, after_pid=3))
            )
            await s.until(lambda: ("event", {"message": "m"}) in s.host.calls)
            packets.send(one, encode(HolderPacket(leave=1)))
            await s.until(lambda: s.listener.holders.count == 1)
            two.close()
            await s.until(lambda: s.listener.holders.count == 0)
            assert decode(ConsumerPacket, await s.answer(one)).welcome == 1

    asyncio.run(run())


def test_questions_are_answered_and_the_connection_closed(tmp_path: Path) -> None:
    """Status, reload, and a reload that is refused."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            status = s.say_hello(StatusHello())
            reload = s.say_hello(ReloadHello(sinks=["x:"]))
            await s.until(lambda: s.host.calls)
            assert orjson.loads(await s.answer(status)) == {"workers": []}
            assert decode(ConsumerPacket, await s.answer(reload)).reloaded == 1
            assert await s.answer(reload) == b""
            s.host.refuse = "no"
            refused = s.say_hello(ReloadHello())
            await s.until(lambda: len(s.host.calls) == 2)
            assert decode(ConsumerPacket, await s.answer(refused)).error == "no"
            assert s.host.calls == [("reload", ["x:"]), ("reload", None)]

    asyncio.run(run())


def test_a_connection_without_a_hello_is_closed_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs a descriptor no longer than that."""
    monkeypatch.setattr("logagg.consumer.listener.HELLO_TIMEOUT", 0.0)

    async def run() -> None:
        async with scene(tmp_path) as s:
            connection = s.connect()
            await s.until(lambda: s.listener.refused)
            assert await s.answer(connection) == b""

    asyncio.run(run())


def test_a_connection_in_the_last_moment_keeps_the_listener(tmp_path: Path) -> None:
    """Stopping serves what is in the queue, on a new socket at the same path."""

    async def run() -> None:
        async with scene(tmp_path) as s:
            s.connect()
            assert not s.listener.stop(anyway=False)
            assert launcher.answers(s.path)
            assert s.listener.stop(anyway=True)
            assert not os.path.exists(s.path)

    asyncio.run(run())


def test_a_socket_that_cannot_be_made_again_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection came in the last moment, and the directory cannot be written."""
    listen = launcher.listen
    failures = [ConfigError("read-only"), ConfigError("read-only")]

    def fail_first(path: str) -> socket.socket:
        if failures:
            raise failures.pop()
        return listen(path)

    async def run() -> None:
        async with scene(tmp_path) as s:
            monkeypatch.setattr(launcher, "listen", fail_first)
            waiting = s.connect()
            assert not s.listener.stop(anyway=False)
            s.listener.poll()  # in between nothing is accepted, and nothing fails
            await s.until(lambda: os.path.exists(s.path))
            answer = await s.answer(s.say_hello(StatusHello()))
            assert orjson.loads(answer) == {"workers": []}
            waiting.close()

    asyncio.run(run())
