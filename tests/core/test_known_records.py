"""What a sink has already: asked for once, though the disk fails for a moment."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logagg.core.line import seq_of
from logagg.fanout import duplicates, sink_spool
from logagg.fanout.duplicates import KnownRecords
from logagg.fanout.sink_spool import SinkSpool
from logagg.ipc import paths
from logagg.spool_directory import SERVICE
from logagg.testing import MemorySink, make_batch


class Counters:
    """Holds what was announced."""

    def __init__(self) -> None:
        self.announced: list[str] = []

    def announce(self, event: Any, text: str) -> None:
        """See `SinkCounters`."""
        self.announced.append(text)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[SinkSpool]:
    """A spool in which a predecessor has left ten records."""
    first = SinkSpool("s", 1 << 20)
    assert first.append(make_batch(10))
    first.close()
    made = SinkSpool("s", 1 << 20)
    yield made
    made.close()


def taken_over(spool: SinkSpool, failures: int) -> list[str]:
    """Take a spool over on a disk that fails so many times; what was announced."""
    counters = Counters()
    known = KnownRecords(MemorySink(), spool, counters)  # type: ignore[arg-type]
    left = [failures]

    def recover() -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        spool.recover()

    asyncio.run(known.take_over(recover))
    return counters.announced


def test_a_disk_that_fails_for_a_moment_is_waited_for(spool: SinkSpool) -> None:
    """Else what comes next would stand before what a predecessor has spooled."""
    assert taken_over(spool, 2) == []
    assert spool.records == 10


def test_what_comes_during_a_takeover_is_kept(
    spool: SinkSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that cannot be opened yet spools while its spool is searched, each time."""
    find = sink_spool.take_over
    numbers = itertools.count(100)

    def found_slowly(*args: Any, **options: Any) -> Any:
        assert spool.append(make_batch(1, start=next(numbers)))
        found = find(*args, **options)
        assert spool.append(make_batch(1, start=next(numbers)))
        return found

    monkeypatch.setattr(sink_spool, "take_over", found_slowly)
    places = len(paths.spool_dirs(SERVICE))
    for _ in range(3):
        assert taken_over(spool, 0) == []

    assert spool.records == 10 + 3 * 2 * places
    seqs = []
    while spool.records:
        batch = spool.peek()
        assert batch is not None
        seqs += [seq_of(line) for line in batch.lines]
        spool.advance(batch)
    assert seqs == [*range(10), *range(100, 100 + 3 * 2 * places)]


def test_a_disk_that_stays_broken_stops_no_sink(
    spool: SinkSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is announced, and what is there stays for the next consumer."""
    monkeypatch.setattr(duplicates, "TAKEOVER_TIMEOUT", 0.0)
    (text,) = taken_over(spool, 10**6)
    assert "cannot read its spool" in text
    assert spool.records == 0
