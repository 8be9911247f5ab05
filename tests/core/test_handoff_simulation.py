"""A seeded simulation of handing connections off: workers in any state, in any order.

The real `RoundRobin`, real sockets, and a clock that jumps to the next timer when no
socket is ready. Whatever workers do (take, refuse, die with a connection in hand, be
busy, close and open their listeners, be stopped, `exec`), each client is served once.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
import socket
from collections.abc import Callable
from typing import Any

import pytest

from logagg.supervisor.sockets.bind_address import BindAddress
from logagg.supervisor.sockets.handoff import packet, receive_packet
from logagg.supervisor.sockets.round_robin import RoundRobin
from logagg.supervisor.sockets.sticky import Sticky

QUICK = 25
STEPS = 60


class _JumpingSelector(selectors.EpollSelector):
    """Waits for nothing: where no socket is ready the clock jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing is left to wait for"
            self.now += max(timeout, 0.0)
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


class _Worker:
    """A worker's end of its channel."""

    def __init__(self, number: int, slot: int, world: _World) -> None:
        self.number, self.slot, self.world = number, slot, world
        channel = world.round_robin.channel(number, slot)
        self.sock = channel.worker_sock.dup()
        self.sock.setblocking(False)
        self.stopped = False
        self.opened = False

    def open(self) -> None:
        """Listen."""
        if not self.opened:
            self.sock.send(packet(b"open"))
            self.opened = True

    def shut(self) -> None:
        """Close the listener."""
        if self.opened:
            self.sock.send(packet(b"shut"))
            self.opened = False

    def accept(self, outcome: str = "take") -> None:
        """Take what is there: "take" it, be "full", or "die" before or after the ack."""
        if not self.opened:
            return
        try:
            data, fds = receive_packet(self.sock)
        except BlockingIOError:
            return
        if data == b"call":
            self.sock.send(packet(b"here"))
        if not fds:
            return
        connection = socket.socket(fileno=fds[0])
        with connection:
            if outcome == "full":
                self.sock.send(packet(b"full"))
                return
            if outcome == "die":
                self.die()
                return
            if outcome == "exec":
                self.exec()
                return
            self.sock.send(packet(b"ack"))
            connection.setblocking(True)
            text = connection.recv(100).decode()
            self.world.served.append(text.split("X-Client: ")[-1].strip())
            self.world.served_by.add(self.number)
            connection.sendall(b"served")

    def die(self) -> None:
        """End without a word."""
        self.world.workers.remove(self)
        self.sock.close()
        self.world.round_robin.remove(self.number)

    def exec(self) -> None:
        """Close all that is its own, and live on; that is found out a moment later."""
        self.world.workers.remove(self)
        self.sock.close()
        round_robin = self.world.round_robin
        round_robin.doubt(self.number)
        asyncio.get_running_loop().call_later(1.0, round_robin.remove, self.number)

    def stop(self) -> None:
        """Get no more; what it was given it may still take."""
        self.stopped = True
        self.world.round_robin.stop(self.number)


class _World:
    """One seed: a listener, its workers and clients."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.served: list[str] = []
        self.served_by: set[int] = set()
        self.clients: list[socket.socket] = []
        self.workers: list[_Worker] = []
        self.number = 0
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.sticky = self.chance.choice(
            [None, Sticky("ip"), Sticky("header", "x-client"), Sticky("proxy")]
        )
        self.round_robin = RoundRobin(
            BindAddress(socket.AF_INET, *self.address), listener, sticky=self.sticky,
            choose=None, silent=lambda *_: None,
        )  # fmt: skip

    def start(self) -> None:
        """One more worker, perhaps beside another of its slot."""
        self.number += 1
        self.workers.append(_Worker(self.number, self.chance.randint(1, 3), self))

    def connect(self) -> None:
        """A client with its request."""
        client = socket.create_connection(self.address)
        client.setblocking(False)
        client.sendall(
            f"GET / HTTP/1.1\r\nX-Client: {len(self.clients)}\r\n\r\n".encode()
        )
        self.clients.append(client)

    async def step(self) -> None:
        """Let one thing happen, then a little time pass."""
        happenings: list[Callable[[], Any]] = [self.connect] * 3
        if len(self.workers) < 4:
            happenings.append(self.start)
        if self.workers:
            worker = self.chance.choice(self.workers)
            happenings += [worker.open] * 3 + [worker.accept] * 6
            happenings += [
                worker.shut, worker.die, worker.stop,
                lambda: worker.accept("full"), lambda: worker.accept("die"),
                worker.exec, lambda: worker.accept("exec"),
                lambda: self.round_robin.doubt(worker.number),
            ]  # fmt: skip
        self.chance.choice(happenings)()
        await asyncio.sleep(self.chance.choice([0.0, 0.0, 0.001, 0.3, 0.6, 2.0]))

    async def calm(self) -> None:
        """Workers that were stopped end; the others take what comes."""
        for worker in [each for each in self.workers if each.stopped]:
            worker.accept()
            worker.die()
        self.start()
        self.workers[-1].open()
        for worker in self.workers:
            if self.chance.random() < 0.5:
                worker.open()
        await self.serve()
        if self.sticky is None:
            self.served_by.clear()
            for _ in range(2 * len(self.workers)):
                self.connect()
            await self.serve()
            assert self.served_by == {w.number for w in self.workers if w.opened}

    async def serve(self) -> None:
        """Have all clients served, or those that can be."""
        for _ in range(400):
            for worker in self.workers:
                worker.accept()
            await asyncio.sleep(0.05)
            if len(self.served) == len(self.clients):
                return


async def _play(seed: int) -> None:
    world = _World(seed)
    for _ in range(STEPS):
        await world.step()
    await world.calm()
    served = sorted(map(int, world.served))
    assert served == list(range(len(world.clients)))
    for client in world.clients:
        assert client.recv(100) == b"served"
        client.close()
    assert world.round_robin.dropped == 0
    assert world.round_robin.connections()["waiting"] == 0
    world.round_robin.close()
    for worker in world.workers:
        worker.sock.close()


@pytest.mark.parametrize("first", [0, pytest.param(QUICK, marks=pytest.mark.slow)])
def test_each_client_is_served_once(request: Any, first: int) -> None:
    """So many seeds as `--seeds` says; the one that fails is printed."""
    last = request.config.getoption("--seeds") or 300 if first else QUICK
    descriptors = len(os.listdir("/proc/self/fd"))
    for seed in range(first, last):
        loop = _JumpingLoop()
        failures: list[Any] = []  # of callbacks: the loop swallows what they raise
        loop.set_exception_handler(lambda _, found, to=failures: to.append(found))
        try:
            with asyncio.Runner(loop_factory=lambda loop=loop: loop) as runner:
                runner.run(_play(seed))
            assert not failures
        except BaseException:
            print(f"seed {seed}")
            raise
    assert len(os.listdir("/proc/self/fd")) == descriptors
