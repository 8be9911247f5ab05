"""Policy rr's hand-off, with real sockets and no worker process: its worst moments."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import types
from typing import Any

import pytest
from support import no_free_descriptor

from logagg.platform.packets import KIND
from logagg.supervisor.child import patch_socket
from logagg.supervisor.child.launch_spec import SharedListener
from logagg.supervisor.sockets import round_robin as round_robin_module
from logagg.supervisor.sockets.bind_address import BindAddress
from logagg.supervisor.sockets.handoff import packet, receive_packet
from logagg.supervisor.sockets.head_peeker import proxied_client, request_of
from logagg.supervisor.sockets.round_robin import RoundRobin
from logagg.supervisor.sockets.sticky import Sticky, choose_slot


def open_channel(round_robin: RoundRobin, number: int) -> socket.socket:
    """A worker's end of its channel, as if the worker had listened."""
    channel = round_robin.channel(number, number)
    worker = channel.worker_sock.dup()
    worker.sendall(packet(b"open"))
    return worker


async def until(condition: Any) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def one_given_one_waiting() -> tuple[
    socket.socket, RoundRobin, socket.socket, list[socket.socket]
]:
    """A listener, its round robin, worker 1's end of a channel, and two clients."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = BindAddress(socket.AF_INET, *listener.getsockname())
    round_robin = RoundRobin(
        address, listener, sticky=None, choose=None, silent=lambda *_: None
    )
    worker = open_channel(round_robin, 1)
    await until(lambda: round_robin.channel(1, 1).opened)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    await until(lambda: round_robin.connections()["waiting"] == 1)
    return listener, round_robin, worker, clients


def test_a_worker_that_dies_behind_its_acknowledgement_gets_nothing_more() -> None:
    """Its death is noticed before the loop has seen its channel end; another is served."""

    async def scene() -> None:
        listener, round_robin, first, clients = await one_given_one_waiting()

        _, (fd,), _, _ = socket.recv_fds(first, 8, 1)
        first.sendall(packet(b"ack"))
        first.close()
        os.close(fd)
        round_robin.remove(1)

        assert round_robin.connections()["waiting"] == 1
        second = open_channel(round_robin, 2)
        second.setblocking(False)
        await until(lambda: round_robin.channel(2, 2).given is not None)
        _, (fd,), _, _ = socket.recv_fds(second, 8, 1)
        with socket.socket(fileno=fd) as connection:
            assert connection.getpeername() == clients[1].getsockname()
        second.close()
        round_robin.close()
        for client in clients:
            client.close()

    asyncio.run(scene())


@pytest.mark.parametrize("then", ["nothing", "drain", "close"])
def test_a_connection_that_a_worker_takes_is_acknowledged(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the worker drains or closes its listener in that moment, or before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, KIND)
    door = SharedListener("web", socket.AF_INET, "127.0.0.1", 80, "rr", theirs.fileno())
    state = patch_socket._SharedListeners(
        [door], types.SimpleNamespace(accepted=lambda: None)
    )
    bound = socket.socket()
    state.put(bound, door.fd)
    receive = patch_socket.receive_packet

    def interrupted(*arguments: Any) -> Any:
        found = receive(*arguments)
        if then == "drain":
            state.drain()
        elif then == "close":
            bound.close()
        return found

    monkeypatch.setattr(patch_socket, "receive_packet", interrupted)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(1 if then == "close" else 2):
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            socket.send_fds(ours, [packet(b"c")], [server.fileno()])

            fd, peer = state.accept(bound)
            taken = socket.socket(fileno=fd)

            assert peer == client.getsockname()
            ours.settimeout(5)
            assert receive_packet(ours)[0] == b"ack"
            assert not taken.get_inheritable()
            for each in (client, server, taken):
                each.close()
    for each in (ours, theirs, bound):
        each.close()


def test_who_waits_for_a_worker_that_takes_nobody_is_told_at_once() -> None:
    """Given to it, or behind that: closed, though the worker still has its channel."""

    async def scene() -> None:
        listener, round_robin, worker, clients = await one_given_one_waiting()

        round_robin.close()

        for client in clients:
            client.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            client.close()
        assert round_robin.dropped == 2
        worker.close()
        listener.close()

    asyncio.run(scene())


async def taken(worker: socket.socket) -> socket.socket:
    """The connection that a worker is given; it answers when it is called."""
    while True:
        await until(lambda: select.select([worker], [], [], 0)[0])
        data, fds = receive_packet(worker)
        if fds:
            return socket.socket(fileno=fds[0])
        assert data == b"call"
        worker.sendall(packet(b"here"))


def test_a_busy_worker_holds_no_connection_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not taken goes to a sibling; it is given the next when it answers."""
    monkeypatch.setattr(round_robin_module, "TAKE_BACK", 0.01)
    monkeypatch.setattr(round_robin_module, "SILENCE", 0.02)

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = BindAddress(socket.AF_INET, *listener.getsockname())
        named: list[int] = []
        round_robin = RoundRobin(
            address,
            listener,
            sticky=None,
            choose=None,
            silent=lambda _, channel: named.append(channel.slot),
        )
        busy, quick = open_channel(round_robin, 1), open_channel(round_robin, 2)
        channels = [round_robin.channel(n, n) for n in (1, 2)]
        await until(lambda: all(channel.opened for channel in channels))
        with contextlib.ExitStack() as stack:
            clients = set()
            for count in (1, 2, 3):  # one of them is given to the busy one first
                client = socket.create_connection(listener.getsockname())
                clients.add(stack.enter_context(client).getsockname())
                with await taken(quick) as connection:
                    clients.remove(connection.getpeername())
                quick.sendall(packet(b"ack"))
                await until(lambda count=count: channels[1].acknowledged == count)
            assert clients == set()
            assert receive_packet(busy)[0] == b"call"
            await until(lambda: named)
            assert 1 in named
            busy.sendall(packet(b"here"))
            await until(lambda: channels[0].free)
            monkeypatch.setattr(round_robin_module, "TAKE_BACK", 60)  # both keep theirs
            for _ in channels:
                stack.enter_context(socket.create_connection(listener.getsockname()))
            await until(lambda: all(channel.given is not None for channel in channels))
        round_robin.close()
        busy.close()
        quick.close()

    asyncio.run(scene())


def test_a_sticky_client_waits_for_its_busy_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another worker would not know it."""
    monkeypatch.setattr(round_robin_module, "TAKE_BACK", 0.001)

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = BindAddress(socket.AF_INET, *listener.getsockname())
        round_robin = RoundRobin(
            address,
            listener,
            sticky=Sticky("ip"),
            choose=None,
            silent=lambda *_: None,
        )
        workers = [open_channel(round_robin, n) for n in (1, 2)]
        channels = [round_robin.channel(n, n) for n in (1, 2)]
        await until(lambda: all(channel.opened for channel in channels))
        with socket.create_connection(listener.getsockname()):
            await until(lambda: channels[0].given or channels[1].given)
            given = [channel.given for channel in channels]
            await asyncio.sleep(0.05)
            assert [channel.given for channel in channels] == given
        round_robin.close()
        for worker in workers:
            worker.close()

    asyncio.run(scene())


@pytest.mark.parametrize("answers", [False, True])
def test_a_worker_that_may_listen_no_more_is_given_nothing_until_it_answers(
    answers: bool,
) -> None:
    """What it was given waits for the next that listens, be it this one."""

    async def scene() -> None:
        listener, round_robin, first, clients = await one_given_one_waiting()
        round_robin.doubt(1)
        assert round_robin.connections()["waiting"] == 2
        assert round_robin.channel(1, 1).given is None
        worker = first if answers else open_channel(round_robin, 2)
        for client in clients:
            with await taken(worker) as connection:
                assert connection.getpeername() == client.getsockname()
            worker.sendall(packet(b"ack"))
        await until(lambda: round_robin.acknowledged(1 if answers else 2) == 2)
        round_robin.close()
        for each in (listener, first, worker, *clients):
            each.close()

    asyncio.run(scene())


def test_who_waits_where_nobody_listens_any_more_is_let_go() -> None:
    """The program has closed its listener while a client waited."""

    async def scene() -> None:
        listener, round_robin, worker, clients = await one_given_one_waiting()
        worker.sendall(packet(b"shut"))
        await until(lambda: round_robin.connections()["waiting"] == 2)

        round_robin.refuse()

        for client in clients:
            client.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            client.close()
        assert round_robin.dropped == 2
        round_robin.close()
        worker.close()
        listener.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    "proxy",
    [
        b"",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + b"\x0a\0\0\1\r\n\r\n\0\5\0\x50",
    ],
)
def test_the_key_is_found_behind_the_header_of_a_proxy(proxy: bytes) -> None:
    """Whole or in pieces: no byte of the header is taken for the request."""
    request = b"GET / HTTP/1.1\r\nX-User: 7\r\n\r\n"
    assert Sticky("header", "x-user").key(request_of(proxy + request)) == b"7"
    for end in range(len(proxy)):
        assert request_of(proxy[:end]) in (b"", proxy[:end][:5])


@pytest.mark.parametrize(
    ("proxy", "client"),
    [
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 5 80\r\n", b"10.0.0.1"),
        (b"PROXY UNKNOWN\r\n", b""),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(range(12)), bytes(range(4))),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + bytes(range(36)), bytes(range(16))),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x0c" + bytes(range(12)), b""),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02ab", b"ab"),
    ],
)
def test_the_client_is_found_in_the_header_of_a_proxy(
    proxy: bytes, client: bytes
) -> None:
    """Once it is whole; a proxy's own check has none, nor has what is no header."""
    assert proxied_client(proxy + b"\x16\x03\x01") == client
    assert {proxied_client(proxy[:end]) for end in range(len(proxy))} == {None}
    assert proxied_client(b"GET / HTTP/1.1\r\n") == b""


def test_accepting_pauses_while_no_descriptor_is_free() -> None:
    """A listener that stays readable and cannot be accepted from does not spin the loop."""

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        calls = []

        class Full:
            """A listener without a free descriptor, for a while."""

            def accept(self) -> Any:
                calls.append(1)
                if len(calls) < 3:
                    raise OSError(errno.EMFILE, "Too many open files")
                return listener.accept()

            def __getattr__(self, name: str) -> Any:
                return getattr(listener, name)

        address = BindAddress(socket.AF_INET, *listener.getsockname())
        round_robin = RoundRobin(
            address,
            Full(),
            sticky=None,
            choose=None,
            silent=lambda *_: None,  # type: ignore[arg-type]
        )
        worker = open_channel(round_robin, 1)
        with socket.create_connection(listener.getsockname()):
            await asyncio.sleep(0.05)
            assert len(calls) == 1
            await until(lambda: round_robin.channel(1, 1).given is not None)
        round_robin.close()
        worker.close()

    asyncio.run(scene())


@pytest.mark.parametrize("choose", [None, lambda *_: 1 / 0])
def test_a_half_request_that_is_closed_takes_its_turn(choose: Any) -> None:
    """At once, without polling for more; also when the callback raises."""

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = BindAddress(socket.AF_INET, *listener.getsockname())
        round_robin = RoundRobin(
            address,
            listener,
            sticky=Sticky("cookie", "sid"),
            choose=choose,
            silent=lambda *_: None,
        )
        worker = open_channel(round_robin, 1)
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"GET / HTTP/1.1\r\nCook")
            await until(lambda: round_robin.connections()["peeking"] == 1)
            client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(0.5):
                await until(lambda: round_robin.channel(1, 1).given is not None)
        round_robin.close()
        worker.close()

    asyncio.run(scene())


def test_a_sticky_connection_that_waits_moves_with_its_slot() -> None:
    """When its worker is replaced, the slot's fresh worker gets it, not the next in turn."""

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = BindAddress(socket.AF_INET, *listener.getsockname())
        round_robin = RoundRobin(
            address,
            listener,
            sticky=Sticky("ip"),
            choose=None,
            silent=lambda *_: None,
        )
        first = open_channel(round_robin, 1)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
        old = round_robin.channel(1, 1)
        await until(lambda: len(old.queue) == 1)
        fresh = round_robin.channel(7, 1)
        other = open_channel(round_robin, 2)
        worker = fresh.worker_sock.dup()
        worker.sendall(packet(b"open"))
        await until(lambda: fresh.opened and round_robin.channel(2, 2).opened)
        home = choose_slot(b"127.0.0.1", [1, 2])
        round_robin.stop(1)
        target = fresh if home == 1 else round_robin.channel(2, 2)
        await until(lambda: target.given is not None)
        round_robin.close()
        for sock in (first, other, worker, *clients):
            sock.close()

    asyncio.run(scene())


def test_a_connection_that_a_worker_cannot_receive_goes_to_another() -> None:
    """A worker out of descriptors gets its next turn a moment later, and serves again."""

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = BindAddress(socket.AF_INET, *listener.getsockname())
        round_robin = RoundRobin(
            address, listener, sticky=None, choose=None, silent=lambda *_: None
        )
        full, free = open_channel(round_robin, 1), open_channel(round_robin, 2)
        channels = [round_robin.channel(n, n) for n in (1, 2)]
        await until(lambda: all(channel.opened for channel in channels))
        with socket.create_connection(listener.getsockname()):
            await until(lambda: channels[0].given or channels[1].given)
            if channels[1].given:  # its turn came first
                full, free = free, full
                channels.reverse()
            full.sendall(packet(b"full"))
            await until(lambda: channels[1].given is not None)
            assert channels[0].given is None
            free.sendall(packet(b"ack"))
            await until(lambda: channels[1].acknowledged == 1)
        with (
            socket.create_connection(listener.getsockname()),
            socket.create_connection(listener.getsockname()),
        ):
            await until(lambda: channels[0].given is not None)
        round_robin.close()
        full.close()
        free.close()

    asyncio.run(scene())


def test_a_hand_off_that_the_system_refuses_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no memory, or too many descriptors on their way: no fault of the worker."""
    left = [OSError(errno.ETOOMANYREFS, "refused"), OSError(errno.ENOBUFS, "refused")]
    send_fds = socket.send_fds

    def refuse(*arguments: Any) -> int:
        if left:
            raise left.pop()
        return send_fds(*arguments)

    async def scene() -> None:
        monkeypatch.setattr(socket, "send_fds", refuse)
        listener = socket.create_server(("127.0.0.1", 0))
        address = BindAddress(socket.AF_INET, *listener.getsockname())
        round_robin = RoundRobin(
            address, listener, sticky=None, choose=None, silent=lambda *_: None
        )
        worker = open_channel(round_robin, 1)
        client = socket.create_connection(listener.getsockname())
        with client, await taken(worker) as connection:
            assert connection.getpeername() == client.getsockname()
        assert not left
        round_robin.close()
        worker.close()

    asyncio.run(scene())


def test_a_worker_without_a_free_descriptor_refuses() -> None:
    """Its `accept` finds nothing, and the supervisor is notified."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, KIND)
    shared = SharedListener(
        "web", socket.AF_INET, "127.0.0.1", 80, "rr", theirs.fileno()
    )
    parent: Any = types.SimpleNamespace(accepted=lambda: pytest.fail("nothing came"))
    state = patch_socket._SharedListeners([shared], parent)
    socket.send_fds(ours, [packet(b"c")], [0])
    theirs.setblocking(False)
    with no_free_descriptor(), pytest.raises(BlockingIOError):
        state.accept_now(theirs)
    assert receive_packet(ours)[0] == b"full"
    ours.close()
    theirs.close()


def test_a_worker_that_is_called_answers() -> None:
    """From its `accept`, which finds no connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, KIND)
    shared = SharedListener(
        "web", socket.AF_INET, "127.0.0.1", 80, "rr", theirs.fileno()
    )
    parent: Any = types.SimpleNamespace(accepted=lambda: pytest.fail("nothing came"))
    state = patch_socket._SharedListeners([shared], parent)
    ours.sendall(packet(b"call"))
    with pytest.raises(BlockingIOError):
        state.accept_now(theirs)
    assert receive_packet(ours)[0] == b"here"
    ours.close()
    theirs.close()


def test_another_socket_listens_though_the_shared_one_was_closed() -> None:
    """The program may close the descriptor that it was passed."""
    with socket.socket() as passed:
        shared = SharedListener(
            "web", socket.AF_INET, "127.0.0.1", 80, "kernel", os.dup(passed.fileno())
        )
    listened: list[Any] = []
    parent: Any = types.SimpleNamespace(listening=lambda *name: listened.append(name))
    state = patch_socket._SharedListeners([shared], parent)
    os.close(shared.fd)
    with socket.socket() as other:
        patch_socket._raw.bind(other, ("127.0.0.1", 0))
        state.listen(other)
        assert listened == [other.getsockname()]
