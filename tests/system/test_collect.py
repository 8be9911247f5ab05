"""`logagg collect` against a real server: ordered, each record once, every gap counted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from fleet_world import NatsServer, add_stream, needs_server, until, with_client

from logagg.sinks import build
from logagg.testing import make_batch, make_line
from logagg.wireformat import received_suffix

pytestmark = [needs_server, pytest.mark.slow]


class World:
    """A server with a stream, hosts that send, collectors that write one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = NatsServer(folder / "server")
        self.out = folder / "out.log"
        self.collectors: list[subprocess.Popen[bytes]] = []
        self.sent: Counter[str] = Counter()

    def collect(self, options: str = "", out: str = "out.log") -> Any:
        """Start a collector; its messages go to a file."""
        url = f"{self.server.url}/LOGS?lease=2s&delay=200ms&wait=2s{options}"
        number = len(self.collectors)
        with (self.folder / f"collector-{number}.err").open("wb") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "logagg",
                    "collect",
                    url,
                    "--sink",
                    f"file:{out}",
                ],
                cwd=self.folder,
                env={**os.environ, "XDG_STATE_HOME": str(self.folder / "state")},
                stderr=log,
            )
        self.collectors.append(process)
        return process

    def said(self, number: int = -1) -> str:
        number %= len(self.collectors)
        return (self.folder / f"collector-{number}.err").read_text()

    async def host(self, name: str, more: str = "") -> Any:
        """The open sink of a host."""
        spool = self.folder / f"spool-{name}"
        size = "batch_age=50ms&batch_records=50"
        if name == "slow":  # its records come so late that the others have gone
            size = "batch_age=3s&batch_records=100000"
        options = f"app=shop&host={name}&{size}&spool={spool}"
        sink = build(f"{self.server.url}/LOGS?{options}{more}").sink
        await sink.open()
        return sink

    async def send(self, sink: Any, name: str, records: int) -> None:
        """Log records, stamped now."""
        now = time.time_ns()
        start = self.sent[name]
        self.sent[name] += records
        lines = [
            make_line(number, worker=name, base_ns=now - number * 1_000_000 + number)
            for number in range(start, start + records)
        ]
        batch = make_batch(lines)
        batch.closing = received_suffix(now)
        await sink.write(batch)

    def records(self) -> list[dict[str, Any]]:
        """What is in the file, whole lines only."""
        data = self.out.read_bytes() if self.out.exists() else b""
        return [
            orjson.loads(line)
            for line in data.splitlines(keepends=True)
            if line[-1:] == b"\n"
        ]

    def own(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.records() if each.get("event") == event]

    def missing(self) -> int:
        """How many records are not in the file yet."""
        found = sum(each["worker"] in self.sent for each in self.records())
        return sum(self.sent.values()) - found

    def judge(self) -> None:
        """Each record once; each host's in its order; all by time, but for late ones."""
        by_host = defaultdict(list)
        for record in self.records():
            by_host[record["worker"]].append(record["seq"])
        for name, number in self.sent.items():
            lost = set(range(number)) - set(by_host[name])
            twice = [seq for seq, times in Counter(by_host[name]).items() if times > 1]
            assert (sorted(lost), twice) == ([], []), name
            assert by_host[name] == list(range(number)), name
        stamps = [
            each["timestamp"]
            for each in self.records()
            if "late" not in each and each["worker"] in self.sent
        ]
        assert stamps == sorted(stamps)

    def end(self) -> None:
        for process in self.collectors:
            process.kill()
            process.wait()
        self.server.kill()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 200))


async def keep_sending(
    world: World, names: tuple[str, ...], stop: asyncio.Event
) -> None:
    sinks = [await world.host(name) for name in names]
    while not stop.is_set():
        for name, sink in zip(names, sinks, strict=True):
            await world.send(sink, name, 20)
            await asyncio.sleep(0.01)
    for sink in sinks:
        await until(lambda sink=sink: _flushed(sink))
        await sink.close()


async def _flushed(sink: Any) -> bool:
    await sink.flush()
    return sink.health().queued_records == 0


def test_records_of_many_hosts_are_one_stream_in_order(world: World) -> None:
    async def work() -> None:
        await add_stream(world.server.url)
        collector = world.collect()
        stop = asyncio.Event()
        names = ("a", "b", "c", "d")
        sending = asyncio.ensure_future(keep_sending(world, names, stop))
        await until(lambda: len(world.records()) > 1000)
        stop.set()
        await sending
        await until(lambda: not world.missing())
        collector.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(collector.wait, 30) == 0

    run(work())
    world.judge()
    late = sum("late" in each for each in world.records())
    assert late < len(world.records()) / 20


def test_a_collector_killed_under_load_writes_each_record_once(world: World) -> None:
    async def work() -> None:
        await add_stream(world.server.url)
        stop = asyncio.Event()
        sending = asyncio.ensure_future(keep_sending(world, ("a", "slow"), stop))
        for _ in range(5):
            collector = world.collect()
            before = len(world.records())
            await until(lambda before=before: len(world.records()) > before + 100)
            collector.kill()
            collector.wait()
        world.collect()
        stop.set()
        await sending
        await until(lambda: not world.missing())

    run(work())
    world.judge()


def test_a_server_killed_under_load_costs_no_record(world: World) -> None:
    async def work() -> None:
        await add_stream(world.server.url)
        stop = asyncio.Event()
        sending = asyncio.ensure_future(keep_sending(world, ("a", "b"), stop))
        world.collect()
        for _ in range(3):
            before = len(world.records())
            await until(lambda before=before: len(world.records()) > before + 100)
            await asyncio.to_thread(world.server.kill)
            await asyncio.to_thread(world.server.start)
        stop.set()
        await sending
        await until(lambda: not world.missing())

    run(work())
    world.judge()


def test_a_collector_ends_while_its_servers_are_away(world: World) -> None:
    async def work() -> None:
        await add_stream(world.server.url)
        collector = world.collect()
        await until(lambda: "collecting" in world.said())
        world.server.kill()
        await asyncio.sleep(2)  # the time of the lease
        collector.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(collector.wait, 30) == 1

    run(work())
    assert "servers are away" in world.said()


def test_a_standby_takes_over_from_a_killed_collector(world: World) -> None:
    async def work() -> None:
        await add_stream(world.server.url)
        first = world.collect()
        await until(lambda: "collecting" in world.said(0))
        world.collect()
        await until(lambda: "waiting for the lease" in world.said(1))
        stop = asyncio.Event()
        sending = asyncio.ensure_future(keep_sending(world, ("a", "b"), stop))
        await until(lambda: len(world.records()) > 200)
        assert "collecting" not in world.said(1)
        first.kill()
        await until(lambda: "collecting" in world.said(1))
        stop.set()
        await sending
        await until(lambda: not world.missing())

    run(work())
    world.judge()


def test_a_collector_that_was_stopped_for_long_gives_way(world: World) -> None:
    """It writes nothing that the one that took over has written."""

    async def work() -> None:
        await add_stream(world.server.url)
        first = world.collect(out="first.log")
        await until(lambda: "collecting" in world.said(0))
        first.send_signal(signal.SIGSTOP)
        world.collect()
        await until(lambda: "collecting" in world.said(1))
        sink = await world.host("a")
        await world.send(sink, "a", 500)
        await until(lambda: not world.missing())
        first.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(first.wait, 30) == 1
        await sink.close()

    run(work())
    world.judge()
    assert "has taken over" in world.said(0)
    assert (world.folder / "first.log").read_bytes() == b""


def test_records_that_the_stream_discarded_are_counted(world: World) -> None:
    """With discard=old, while no collector was there: to the record."""

    async def work() -> None:
        await add_stream(world.server.url, discard="old", max_msgs=10)
        collector = world.collect()
        sink = await world.host("a")
        await world.send(sink, "a", 50)
        await until(lambda: not world.missing())
        collector.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(collector.wait, 30) == 0
        for _ in range(40):
            await world.send(sink, "a", 50)
        await until(lambda: _flushed(sink))
        world.collect()
        await until(lambda: world.own("lost"))
        await until(lambda: len(world.records()) == 50 + 500 + 1)
        await sink.close()

    run(work())
    lost = world.own("lost")
    assert [(each["number"], each["host"]) for each in lost] == [(1500, "a")]
    seqs = [each["seq"] for each in world.records() if each["worker"] == "a"]
    assert seqs == [*range(50), *range(1550, 2050)]


def test_a_message_that_is_not_readable_blocks_nothing(world: World) -> None:
    async def work() -> None:
        await add_stream(world.server.url)

        async def poison(context: Any) -> None:
            await context.publish("logagg.shop.a.all", b"not records")

        sink = await world.host("a")
        await world.send(sink, "a", 50)
        await until(lambda: _flushed(sink))
        await with_client(world.server.url, poison)
        await world.send(sink, "a", 50)
        world.collect()
        await until(lambda: not world.missing())
        await until(lambda: world.own("poison"))
        await sink.close()

    run(work())
    world.judge()
    letters = world.folder / "state/logagg/collect/collector/dead-letters.ndjson"
    letter = orjson.loads(letters.read_bytes())
    assert (letter["number"], letter["subject"]) == (2, "logagg.shop.a.all")
    assert "headers" in letter["reason"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nats://127.0.0.1/LOGS?nam=x", "unknown option 'nam'"),
        ("nats://127.0.0.1/LOGS?lease=1s", "lease"),
        ("nats://127.0.0.1/LOGS?wait=1s&wait=2s", "source nats://127.0.0.1/LOGS"),
        ("http://127.0.0.1/LOGS", "nats://HOST"),
        ("nats://127.0.0.1", "nats://HOST"),
    ],
)
def test_a_mistake_is_one_line(source: str, reason: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "logagg", "collect", source, "--sink", "file:x.log"],
        check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.returncode == 2
    assert reason in found.stderr
    assert found.stderr.count("\n") == 1
