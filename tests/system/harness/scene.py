"""A consumer, a good worker, and the means to be a bad one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import support

from harness.fleet import Fleet
from harness.judge import Verdict
from logagg.platform.packets import packet_socket


@contextmanager
def besieged(path: Path) -> Iterator[Scene]:
    """A consumer with a well-behaved worker that logs all the time."""
    with Fleet(path, workers=1, count=10**9, rate=500) as fleet:
        fleet.progress(50)
        support.wait_until(support.have(path, 50))
        yield Scene(path, fleet)


class Scene:
    """What `besieged` gives.

    Attributes:
        path: The log file.
        fleet: The good worker.
        consumer: The consumer's pid.
        socket: Its socket.
    """

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self.path = path
        self.fleet = fleet
        self.consumer = support.consumer()
        (name,) = [each for each in support.runtime_files() if each.endswith(".sock")]
        self.socket = os.path.join(os.environ["XDG_RUNTIME_DIR"], name)

    def connect(self) -> support.PacketSocket:
        """A connection that has said nothing yet."""
        made = support.PacketSocket(packet_socket())
        made.settimeout(10)
        try:
            made.connect(self.socket)
        except OSError:
            made.close()
            raise
        return made

    def status(self) -> dict[str, Any]:
        """What the consumer says of itself."""
        with self.connect() as asker:
            asker.send(orjson.dumps({"hello": 1, "kind": "status"}))
            answer: dict[str, Any] = orjson.loads(asker.recv(1 << 20))
            assert "workers" in answer, answer
            return answer

    def hello(self, **changes: Any) -> dict[str, Any]:
        """The first packet of a worker, but for some changes."""
        return {
            "hello": 1,
            "kind": "records",
            "pid": os.getpid(),
            "process": "evil",
            "worker": "666",
            "stream": f"{os.getpid()}-e",
            "sinks": [],
            "acknowledged": 0,
            "dropped": 0,
            "torn": [],
            "again": False,
            "segments": [],
            **changes,
        }

    def attach(self, **changes: Any) -> tuple[support.PacketSocket, int]:
        """Attach as a worker; return the connection and the pipe's write end."""
        read, write = os.pipe()
        connection = self.hand_over(read, **changes)
        os.close(read)
        return connection, write

    def hand_over(self, read: int, **changes: Any) -> support.PacketSocket:
        """Attach as a worker with this pipe; return the connection."""
        null = os.open("/dev/null", os.O_RDWR)
        connection = self.connect()
        packet = json.dumps(self.hello(**changes)).encode()
        connection.send(packet, [read, null, null])
        os.close(null)
        return connection

    def judge(self) -> Verdict:
        """The good worker's records are all there, and the consumer is the same one."""
        assert support.consumers() == [self.consumer]
        self.fleet.progress(50)
        self.fleet.stop()
        self.fleet.join()
        support.settled()
        return self.fleet.judge().require(longest=1.0)
