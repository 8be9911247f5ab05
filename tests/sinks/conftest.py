"""Servers on loopback that note what they get and misbehave when they are told to."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from aiohttp import web

from logagg.abc import Batch, Sink
from logagg.sinks import build

TIMEOUT = 30.0
NOW = 1_795_568_460.0
"""A minute behind the records of `make_batch`."""


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    raw: bytes
    at: float

    @property
    def body(self) -> bytes:
        """The body, decompressed."""
        coding = self.headers.get("content-encoding", "")
        if coding == "gzip":
            return gzip.decompress(self.raw)
        if coding == "zstd":
            return zstandard.ZstdDecompressor().decompress(
                self.raw, max_output_size=1 << 26
            )
        return self.raw

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of an NDJSON body."""
        return [orjson.loads(line) for line in self.body.splitlines()]

    @property
    def seqs(self) -> list[int]:
        """The numbers of its records."""
        return [record["seq"] for record in self.records]


@dataclass
class Answer:
    """What the server answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Judge = Callable[[Seen], Answer]


async def rest() -> None:
    """Let what is due in the loop happen: connections made, connections lost."""
    for _ in range(5):
        await asyncio.sleep(0)


async def finish_accepting(server: asyncio.Server) -> None:
    """Have each connection that a server is about to accept made, or closed.

    One that is accepted when its server is closed is left half made, and would warn in
    another test, when it is collected.
    """
    loop = asyncio.get_running_loop()
    for sock in server.sockets:
        loop.remove_reader(sock.fileno())
    await rest()
    accepting = [
        task for task in asyncio.all_tasks() if "_accept_connection" in repr(task)
    ]
    for task in accepting:  # a TLS handshake that may never end
        task.cancel()
    await asyncio.gather(*accepting, return_exceptions=True)
    await rest()


class TargetServer:
    """An aiohttp server in a thread of its own.

    Answers are taken from `script` first, then `default` decides.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.seen: list[Seen] = []
        self.script: list[Answer | Judge] = []
        self.default: Answer | Judge = Answer()
        self.connections = 0
        self._context = context
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        assert isinstance(site._server, asyncio.Server)
        await finish_accepting(site._server)
        await runner.cleanup()
        await rest()

    async def _handle(self, request: web.Request) -> web.Response:
        raw = await request.content.read()
        seen = Seen(
            request.method,
            request.path,
            dict(request.query),
            {name.lower(): value for name, value in request.headers.items()},
            raw,
            time.monotonic(),
        )
        with self._changed:
            self.seen.append(seen)
            answer = self.script.pop(0) if self.script else self.default
            self._changed.notify_all()
        if callable(answer):
            answer = await asyncio.to_thread(answer, seen)
        return web.Response(
            status=answer.status, body=answer.body, headers=answer.headers
        )

    def close(self) -> None:
        """Stop; may be called twice."""
        if self._thread.is_alive():
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(TIMEOUT)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    @property
    def seqs(self) -> list[int]:
        """The numbers of all records that came, in order."""
        return [seq for seen in self.seen for seq in seen.seqs]

    async def wait(self, requests: int) -> None:
        """Wait until so many requests have come."""

        def arrived() -> bool:
            with self._changed:
                return self._changed.wait_for(
                    lambda: len(self.seen) >= requests, TIMEOUT
                )

        assert await asyncio.to_thread(arrived), (
            f"{len(self.seen)} of {requests} requests came"
        )


@pytest.fixture
def target() -> Iterator[TargetServer]:
    """A server that takes everything."""
    server = TargetServer()
    yield server
    server.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., TargetServer]]:
    """Makes servers that are stopped at the end."""
    servers: list[TargetServer] = []

    def make(context: ssl.SSLContext | None = None) -> TargetServer:
        servers.append(TargetServer(context))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawServer:
    """A server that does with a connection what it is told, byte by byte."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._ready.wait(TIMEOUT)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        talks: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

        async def talk(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            try:
                await self._talk(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                del talks[writer]
                writer.transport.abort()

        def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            talks[writer] = asyncio.create_task(talk(reader, writer))

        server = await asyncio.start_server(one, "127.0.0.1", 0, limit=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        await finish_accepting(server)  # and each talk has begun
        server.close()
        for task in (left := list(talks.values())):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await rest()

    @property
    def url(self) -> str:
        """Where it is, for plain HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop; may be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(TIMEOUT)


@pytest.fixture
def serve_raw() -> Iterator[Callable[[Talk], RawServer]]:
    """Makes raw servers that are stopped at the end."""
    servers: list[RawServer] = []

    def make(talk: Talk) -> RawServer:
        servers.append(RawServer(talk))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


class Naps:
    """A sleep that takes no time and is noted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def naps() -> Naps:
    """A sleep that takes no time."""
    return Naps()


@contextlib.asynccontextmanager
async def opened(sink: Sink) -> AsyncIterator[Any]:
    """The sink, open for as long as the block lasts."""
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()


async def until(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        await asyncio.sleep(0.005)


def balance(sink: Any) -> None:
    """Check that every record that came is accounted for."""
    count = sink.counters.get
    came = count("accepted", 0) + count("recovered", 0)
    gone = sum(
        count(name, 0)
        for name in (
            "acked",
            "dead_lettered",
            "dropped",
            "rejected_partial",
            "failure_stored",
        )
    )
    assert came == gone + sink.health().queued_records


def send(sink: Any, batch: Batch) -> None:
    """Open a sink, write a batch, wait until nothing is left, close."""

    async def main() -> None:
        async with opened(sink):
            await sink.write(batch)
            await until(lambda: sink.health().queued_records == 0, "delivery")

    asyncio.run(asyncio.wait_for(main(), 2 * TIMEOUT))
    balance(sink)


SinkTo = Callable[..., Any]


@pytest.fixture
def sink_to(tmp_path: Path, naps: Naps) -> SinkTo:
    """Builds a network sink to a URL, with a spool of its own and pauses of no time.

    Records of `make_batch` are of one day; for the sink it is that day.
    """

    def build_it(url: str, options: str = "") -> Any:
        text = f"{url}?spool={tmp_path / 's'}&{options}"
        if "batch_age" not in options:
            text += "&batch_age=0.02"
        sink: Any = build(text).sink
        sink.sleep = naps
        sink.chance = lambda: 1.0
        sink.clock = lambda: NOW
        return sink

    return build_it


@pytest.fixture
def make(target: TargetServer, sink_to: SinkTo, request: Any) -> SinkTo:
    """Makes a sink to the target, of the kind that the module's SCHEME says."""
    usual = getattr(request.module, "SCHEME", "")
    path = getattr(request.module, "PATH", "")

    def make(options: str = "", *, scheme: str = usual, url: str = "") -> Any:
        return sink_to(f"{scheme}{url or target.url}{path}", options)

    return make


@pytest.fixture
def letters(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """Reads the dead letters of the sink."""

    def read() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for path in sorted((tmp_path / "s").glob("dead-letters-*")):
            found += [orjson.loads(line) for line in path.read_bytes().splitlines()]
        return found

    return read


@pytest.fixture
def tools() -> Any:
    """What the tests of sinks share: a test module cannot import its conftest."""

    class Tools:
        Answer = Answer
        NOW = NOW
        send = staticmethod(send)
        balance = staticmethod(balance)
        opened = staticmethod(opened)
        until = staticmethod(until)

    return Tools


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep spools out of the user's state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
