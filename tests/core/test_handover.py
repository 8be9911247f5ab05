"""Policy rr's hand-over, with real sockets and no worker process: its worst moments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import types
from typing import Any

import pytest

from logagg.supervisor import doors
from logagg.supervisor.address import Address
from logagg.supervisor.handover import Handover
from logagg.supervisor.start import Door


def open_lane(handover: Handover, number: int) -> socket.socket:
    """A worker's end of its lane, as if the worker had listened."""
    lane = handover.lane(number, number)
    assert lane.theirs is not None
    worker = lane.theirs.dup()
    handover.started(number)
    worker.sendall(b"open")
    return worker


async def until(condition: Any) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def one_given_one_waiting() -> tuple[
    socket.socket, Handover, socket.socket, list[socket.socket]
]:
    """A listener, its hand-over, worker 1's end of a lane, and two clients."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = Address(socket.AF_INET, *listener.getsockname())
    handover = Handover(
        address, listener, sticky=None, choose=None, unfit=lambda *_: None
    )
    worker = open_lane(handover, 1)
    await until(lambda: handover.lane(1, 1).opened)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    await until(lambda: handover.connections()["waiting"] == 1)
    return listener, handover, worker, clients


def test_a_worker_that_dies_behind_its_acknowledgement_gets_nothing_more() -> None:
    """Its death is noticed before the loop has seen its lane end; another is served."""

    async def scene() -> None:
        listener, handover, first, clients = await one_given_one_waiting()

        _, (fd,), _, _ = socket.recv_fds(first, 16, 1)
        first.sendall(b"ack")
        first.close()
        os.close(fd)
        handover.remove(1)

        assert handover.connections()["waiting"] == 1
        second = open_lane(handover, 2)
        second.setblocking(False)
        await until(lambda: handover.lane(2, 2).given is not None)
        _, (fd,), _, _ = socket.recv_fds(second, 16, 1)
        with socket.socket(fileno=fd) as connection:
            assert connection.getpeername() == clients[1].getsockname()
        second.close()
        handover.close()
        for client in clients:
            client.close()

    asyncio.run(scene())


@pytest.mark.parametrize("then", ["nothing", "drain", "close"])
def test_a_connection_that_a_worker_takes_is_acknowledged(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the worker drains or closes its listener in that moment, or before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door = Door("web", socket.AF_INET, "127.0.0.1", 80, "rr", theirs.fileno())
    state = doors._Doors([door], types.SimpleNamespace(accepted=lambda: None))
    bound = socket.socket()
    state.put(bound, door.fd)
    receive = socket.recv_fds

    def interrupted(*arguments: Any) -> Any:
        found = receive(*arguments)
        if then == "drain":
            state.drain()
        elif then == "close":
            bound.close()
        return found

    monkeypatch.setattr(socket, "recv_fds", interrupted)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(1 if then == "close" else 2):
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            socket.send_fds(ours, [b"c"], [server.fileno()])

            taken, peer = state.accept(bound)

            assert peer == client.getsockname()
            ours.settimeout(5)
            assert ours.recv(16) == b"ack"
            for each in (client, server, taken):
                each.close()
    for each in (ours, theirs, bound):
        each.close()


def test_who_waits_for_a_worker_that_takes_nobody_is_told_at_once() -> None:
    """Given to it, or behind that: closed, though the worker still has its lane."""

    async def scene() -> None:
        listener, handover, worker, clients = await one_given_one_waiting()

        handover.close(keep_listener=True)

        for client in clients:
            client.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            client.close()
        assert handover.dropped == 2
        worker.close()
        listener.close()

    asyncio.run(scene())
