"""The set of sources that a consumer reads: its idle wait, faults, and bounds."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from support import no_free_descriptor, wire_line

from logagg.consumer.source import (
    BUSY_CYCLE,
    BUSY_LINES,
    CYCLE,
    FAST_CYCLE,
    FILLED,
    SourceEnded,
    SourceSet,
)
from logagg.core import merge
from logagg.core.line import key_ns
from logagg.core.merge import AsStamped, Merger
from logagg.platform.system import pipe_bytes


class Pipe:
    """A source of one pipe."""

    readable = True
    identity = None
    hold_key = b""

    def __init__(self) -> None:
        self.pipe, self.write = os.pipe()


@pytest.mark.parametrize("writes", [True, False])
def test_the_idle_wait_needs_no_descriptor(writes: bool) -> None:
    """It ends early for a pipe that is readable, and leaves no trace on it."""

    async def run() -> None:
        sources = SourceSet()
        source: Any = Pipe()
        sources.add(source)
        for _ in range(2):
            woken = asyncio.Event()
            if writes:
                os.write(source.write, b"x")
            begin = time.monotonic()
            with no_free_descriptor():
                await sources.wait(woken, 5.0 if writes else 0.05)
            assert woken.is_set() == writes
            assert time.monotonic() - begin < 4
        os.close(source.pipe)
        os.close(source.write)

    asyncio.run(run())


class Script:
    """A source that gives what a test has written down, on a pipe that is readable."""

    pid = 17
    identity = None
    is_flushing = shows_delay = pending = drained = False
    bytes_taken = 0
    stamps = AsStamped()

    def __init__(self, sources: SourceSet) -> None:
        self.pipe, write = os.pipe()
        os.close(write)
        self.chunks: list[Any] = []
        self.readable = True
        self.hold_key = b""
        self.reads = 0
        self.ends: list[str] = []
        self.finish_fails = False
        sources.add(self)

    def start_reading(self, *, if_gone: bool = False) -> None:
        """Its process is gone, so it can be read at the end."""
        self.readable = True

    def read(self, budget: int) -> tuple[list[bytes], bool]:
        """The next chunk, or the next error."""
        self.reads += 1
        chunk = self.chunks.pop(0) if self.chunks else ([], True)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk[0], chunk[1] and not self.chunks

    def take_possible_duplicates(self) -> list[bytes]:
        """None."""
        return []

    def finish(self, reason: str) -> bool:
        """Note the reason."""
        self.ends.append(reason)
        if self.finish_fails:
            raise RuntimeError("a bug")
        return True


START = 10**18


def chunk(first: int, count: int = 10, *, drained: bool = True) -> Any:
    """Lines of 100 bytes or so, stamped from START + first on."""
    return [wire_line(START + n, n) for n in range(first, first + count)], drained


@pytest.mark.parametrize("finish_fails", [False, True])
def test_a_source_that_fails_ends_alone(finish_fails: bool) -> None:
    """Whatever its reading or its end raises, the others are read, and it is reported."""
    failures: list[str] = []
    sources = SourceSet(lambda name, _: failures.append(name))
    bad, good, ended = (Script(sources) for _ in range(3))
    bad.chunks = [TypeError("garbage")]
    bad.finish_fails = finish_fails
    good.chunks = [chunk(1)]
    ended.chunks = [SourceEnded("end of pipe")]
    merger = Merger()

    assert sources.read(merger, START) == 10

    assert list(sources) == [good]
    assert bad.ends == ["its reading failed: garbage"]
    assert ended.ends == ["end of pipe"]
    assert (
        failures
        == ["the reading of process 17", "the end of process 17"][: 1 + finish_fails]
    )


def test_a_merge_that_is_full_is_read_into_by_what_holds_it_back_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long backlog costs no memory for what others log meanwhile, nor the order."""
    monkeypatch.setattr(merge, "MAX_PENDING_BYTES", 3000)
    sources, merger = SourceSet(), Merger()
    backlog, later, busy = (Script(sources) for _ in range(3))
    backlog.chunks = [chunk(n * 10, drained=False) for n in range(30)]
    later.chunks = [chunk(150 + n * 10, drained=False) for n in range(5)]
    busy.chunks = [chunk(10_000 + n * 10) for n in range(1000)]
    out: list[bytes] = []
    most = 0
    for cycle in range(100):
        sources.read(merger, START + 20_000 + cycle)
        sources.hold_unread(merger)
        most = max(most, len(merger))
        out += merger.release(sources.read_ns, flushing=True)
        if not backlog.chunks and not later.chunks:
            break

    assert most < 120
    assert busy.reads < 15
    stamps = [key_ns(line) for line in out]
    assert stamps == sorted(stamps)
    assert set(range(START, START + 299)) <= set(stamps)
    assert merger.late == 0


def test_a_source_that_is_not_readable_yet_bounds_what_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its sinks hang: the others' lines wait in their pipes, and go on afterwards."""
    monkeypatch.setattr(merge, "MAX_PENDING_BYTES", 3000)
    sources, merger = SourceSet(), Merger()
    busy = Script(sources)
    busy.chunks = [chunk(1 + n * 10) for n in range(50)]
    out: list[bytes] = []

    def cycle(number: int) -> None:
        sources.read(merger, START + 1000 * number)
        sources.hold_unread(merger)
        out.extend(merger.release(sources.read_ns, flushing=True))

    cycle(1)
    joining = Script(sources)
    joining.readable = False
    busy.chunks = [chunk(10_000 + n * 10) for n in range(50)]
    for number in range(2, 40):
        cycle(number)
    assert busy.reads < 10
    assert len(out) == 10
    joining.readable = True
    for number in range(40, 140):
        cycle(number)
    assert len(out) == 10 + 500
    assert merger.late == 0


def test_at_the_end_a_source_that_was_not_readable_yet_is_read() -> None:
    """Its process is gone: nobody else has what is in its pipe."""
    sources, merger = SourceSet(), Merger()
    waiting = Script(sources)
    waiting.readable = False
    waiting.chunks = [([wire_line(10**18 + n, n)], n == 2) for n in (1, 2)]
    assert not sources.read(merger, 10**18)

    sources.read_rest(merger, 10**18)

    assert len(merger.release(10**18, all_ended=True)) == 2


class Load:
    """A set with a worker, whose cycles follow each other as it asks for."""

    def __init__(self) -> None:
        self.sources = SourceSet()
        self.worker, self.other = Script(self.sources), Script(self.sources)
        self.merger = Merger()
        self.now = START
        self.cycle(0.01, 1)

    def cycle(self, share: float, lines: int, *, others: bool = False) -> float:
        """Have the worker fill its pipe by a share; return the pause that follows."""
        self.now += int(self.sources.pause * 1e9)
        self.worker.bytes_taken = int(share * pipe_bytes(self.worker.pipe))
        self.worker.chunks = [chunk(1, lines)] if share else []
        self.other.chunks = [chunk(1)] if others else []
        self.sources.read(self.merger, self.now)
        return self.sources.pause


def test_cycles_under_load_are_longer() -> None:
    """While no worker fills much of its pipe meanwhile; and not at once."""
    load = Load()

    assert load.cycle(0.01, BUSY_LINES - 1) == CYCLE
    found = [load.cycle(0.01, BUSY_LINES) for _ in range(3)]
    assert found == [2 * CYCLE, BUSY_CYCLE, BUSY_CYCLE]
    assert load.cycle(0, 0) == CYCLE


def test_no_worker_fills_its_pipe_before_the_next_cycle() -> None:
    """At the rate of the last one, whatever the size of its pipe."""
    load = Load()
    for share in (0.5, 0.9, 0.2, 0.02, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0):
        before = load.sources.pause
        pause = load.cycle(share, BUSY_LINES)
        assert pause <= max(1.001 * before * FILLED / share, FAST_CYCLE)
        assert pause <= 2 * before
    assert pause == FAST_CYCLE
    assert [load.cycle(0.01, 20) for _ in range(5)][-1] == CYCLE


def test_what_others_write_is_read_as_often_as_ever() -> None:
    """Nobody knows the pipes of captured output; and after a rest a burst may begin."""
    load = Load()
    for _ in range(3):
        load.cycle(0.01, BUSY_LINES)
    assert load.sources.pause == BUSY_CYCLE
    assert load.cycle(0.01, BUSY_LINES, others=True) == CYCLE
    for _ in range(3):
        load.cycle(0.01, BUSY_LINES)

    asyncio.run(load.sources.wait(asyncio.Event(), 0.01))
    assert load.sources.pause == CYCLE

    load.now += 10**10
    pause = load.cycle(0.5, BUSY_LINES)
    assert pause == pytest.approx(CYCLE * FILLED / 0.5), "it came in the last moment"
