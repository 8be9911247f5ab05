"""The takeover after a consumer that died: what it waits for, and when it is over."""

from __future__ import annotations

import asyncio
import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from logagg.consumer import segment_reader
from logagg.consumer.orphan_source import RESTART_HOLD, OrphanSource, Takeover
from logagg.fanout.watched_tasks import WatchedTasks
from logagg.ipc.protocol import ConsumerConfig


class Sinks:
    """A fanout that remembers what an earlier consumer has written."""

    identifiers: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.runners = {"a": 1}
        self.knows_written = True

    def forget_written(self) -> None:
        """As a fanout does."""
        self.knows_written = False


class Sources(list[Any]):
    """The sources that are read."""

    def __init__(self, *sources: Any, suspects: frozenset[bytes] = frozenset()) -> None:
        super().__init__(sources)
        self.possible_duplicates = suspects


def worker(*, resumed: bool = True, unread: int = 0) -> Any:
    """A worker's source."""
    segments = SimpleNamespace(unread=[0] * unread)
    return SimpleNamespace(resumed=resumed, segments=segments, stream="1-a")


def made(sinks: Any, *, restarted: bool) -> tuple[Takeover, WatchedTasks]:
    """A takeover at an address without anything on disk."""
    tasks = WatchedTasks(lambda *_: None)
    config = ConsumerConfig("/nowhere/takeover.sock", 0, 0, restarted=restarted)
    return Takeover(config, sinks, tasks, lambda _: None), tasks


@pytest.mark.parametrize("restarted", [True, False])
def test_the_release_waits_for_sinks_for_workers_and_for_the_disk(
    restarted: bool,
) -> None:
    """And no longer: the search for spooled records ends in any case."""

    async def run() -> None:
        sinks = Sinks()
        takeover, _ = made(sinks, restarted=restarted)
        sinks.runners.clear()
        assert takeover.holds(1.0, [])
        sinks.runners["a"] = 1
        assert takeover.holds(0.0, []) is True
        assert takeover.holds(RESTART_HOLD, [])
        while takeover.holds(1.0, []):
            await asyncio.sleep(0.001)

    asyncio.run(run())


def test_what_the_sinks_have_is_forgotten_once_nothing_is_left_that_it_is_for() -> None:
    """A backlog's ids are not held for the consumer's whole life."""

    async def run() -> None:
        sinks = Sinks()
        takeover, _ = made(sinks, restarted=True)
        ready, joining = SimpleNamespace(readable=True), SimpleNamespace(readable=False)
        takeover.forget(Sources(ready), [])  # type: ignore[arg-type]
        assert sinks.knows_written  # spooled records are still searched for
        while takeover.holds(1.0, []):
            await asyncio.sleep(0.001)
        for sources, workers in (
            (Sources(ready, joining), []),
            (Sources(ready, suspects=frozenset({b"x"})), []),
            (Sources(ready), [worker(unread=1)]),
        ):
            takeover.forget(sources, workers)  # type: ignore[arg-type]
            assert sinks.knows_written
        workers = [worker(), worker(resumed=False, unread=1)]
        takeover.forget(Sources(ready), workers)  # type: ignore[arg-type]
        assert not sinks.knows_written

    asyncio.run(run())


def test_a_worker_that_comes_during_the_search_reads_its_own_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that has ended again when a descriptor is free for the search at last."""
    asked: list[set[str]] = []

    def find(_: set[str], attached: set[str]) -> None:
        asked.append(set(attached))
        if len(asked) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(segment_reader, "DESCRIPTOR_RETRY", 0.001)
    monkeypatch.setattr(OrphanSource, "find", find)

    async def run() -> None:
        takeover, _ = made(Sinks(), restarted=False)
        assert takeover.holds(1.0, [])
        while not asked:
            await asyncio.sleep(0)
        workers = [worker()]
        while takeover.holds(1.0, workers):
            workers = []
            await asyncio.sleep(0.001)

    asyncio.run(run())
    assert asked[0] == set()
    assert asked[-1] == {"1-a"}
