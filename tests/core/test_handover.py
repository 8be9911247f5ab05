"""Policy rr's hand-over, with real sockets and no worker process: its worst moments."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from logagg.supervisor.address import Address
from logagg.supervisor.handover import Handover


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


def test_a_worker_that_dies_behind_its_acknowledgement_gets_nothing_more() -> None:
    """Its death is noticed before the loop has seen its lane end; another is served."""

    async def scene() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = Address(socket.AF_INET, *listener.getsockname())
        handover = Handover(
            address, listener, sticky=None, choose=None, unfit=lambda *_: None
        )
        first = open_lane(handover, 1)
        await until(lambda: handover.lane(1, 1).opened)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(2)]
        await until(lambda: handover.connections()["waiting"] == 1)

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
