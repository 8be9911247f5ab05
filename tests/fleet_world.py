"""Real NATS servers for tests: start, kill, start again; and a look into a stream."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from logagg.fleet.message import StreamMessage, decode

nats = pytest.importorskip("nats")

DEADLINE = 30.0
PROGRAM = shutil.which("nats-server", path=str(Path(sys.executable).parent))

needs_server = pytest.mark.skipif(PROGRAM is None, reason="no nats-server is installed")


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class NatsServer:
    """A server of its own folder, which keeps its port and its streams over a kill.

    Args:
        folder: Where it stores.
        more: Further lines of its configuration.
        jetstream: Whether it has streams.
    """

    def __init__(self, folder: Path, more: str = "", *, jetstream: bool = True) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "nats.conf"
        store = f'jetstream {{ store_dir: "{folder}/js" }}\n' if jetstream else ""
        self.config.write_text(f"listen: 127.0.0.1:{self.port}\n{store}{more}\n")
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        assert PROGRAM is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-c", str(self.config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """End it as the kernel ends a process (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


async def with_client(url: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Do something with the stream interface of a fresh client."""
    client = await nats.connect(url)
    try:
        return await work(client.jetstream())
    finally:
        await client.close()


async def add_stream(url: str, name: str = "LOGS", **more: Any) -> None:
    """Make a stream for tests: discard=new."""
    options = {
        "max_bytes": 256 * 1024 * 1024,
        "discard": "new",
        "duplicate_window": 600,
    }
    options |= more

    async def work(context: Any) -> None:
        await context.add_stream(name=name, subjects=["logagg.>"], **options)

    await with_client(url, work)


async def messages_of(url: str, name: str = "LOGS") -> list[StreamMessage]:
    """All messages of a stream, decoded."""

    async def work(context: Any) -> list[StreamMessage]:
        state = (await context.stream_info(name)).state
        found = []
        for number in range(max(state.first_seq, 1), state.last_seq + 1):
            each = await context.get_msg(name, number)
            found.append(decode(each.subject, each.headers, each.data))
        return found

    found: list[StreamMessage] = await with_client(url, work)
    return found


async def until(
    condition: Callable[[], Any], seconds: float = DEADLINE, interval: float = 0.02
) -> Any:
    """Wait for a condition, which may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, "the deadline is over"
        await asyncio.sleep(interval)
