"""Helpers for tests of logging code and of sinks; no other module loads this one.

- `MemorySink` keeps the batches that are written to it.
- `FakeClock` is a clock that moves only by `advance`.
- `make_line` and `make_batch` make records in their wire form.
- `check_sink` is the contract of a sink as a test, for the sinks of any author.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from logagg.abc import Batch, Sink, SinkURL
from logagg.core.line import dump_line, received_suffix, timestamp_bytes
from logagg.errors import ConfigError
from logagg.sinks import parse

__all__ = ["FakeClock", "MemorySink", "check_sink", "make_batch", "make_line"]

_START_NS = 1_795_568_400_000_000_000  # 2026-11-25T01:00:00Z


class FakeClock:
    """A clock for tests: call it for seconds since the epoch; it moves by `advance`.

    Args:
        now: Where it starts, in seconds since the epoch.
    """

    def __init__(self, now: float = _START_NS / 1e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock; a negative number sets it back."""
        self.now += seconds


def make_line(
    number: int = 0,
    *,
    level: str = "info",
    worker: str = "1",
    logger: str = "app",
    message: str = "hello",
    base_ns: int = _START_NS,
    **extra: Any,
) -> bytes:
    """A wire line: JSON without its closing brace, its fields in their order.

    Args:
        number: The record's `seq`; also its time, in milliseconds after `base_ns`.
        level: Its level's name.
        worker: Its worker.
        logger: Its logger's name.
        message: Its message.
        base_ns: Nanoseconds since the epoch; by default a fixed day of 2026.
        extra: Further fields.
    """
    record = {
        "timestamp": timestamp_bytes(base_ns + number * 1_000_000).decode(),
        "level": level,
        "worker": worker,
        "seq": number,
        "logger": logger,
        "message": message,
        "pid": 4711,
        "process": "MainProcess",
        "thread": "MainThread",
        **extra,
    }
    return dump_line(record)


def make_batch(
    lines: Iterable[bytes] | int = 1, *, start: int = 0, base_ns: int = _START_NS
) -> Batch:
    """A batch of these wire lines, or of so many numbered records."""
    if isinstance(lines, int):
        lines = [make_line(start + n, base_ns=base_ns) for n in range(lines)]
    return Batch(list(lines), received_suffix(base_ns))


class MemorySink(Sink):
    """A sink that keeps everything in memory.

    Attributes:
        batches: What `write` was given, in order.
        calls: The names of the calls that were made, in order.
        failure: When set, `write` raises it instead of keeping the batch.
    """

    scheme = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []
        self.calls: list[str] = []
        self.failure: Exception | None = None

    @classmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build it from `memory:`, which has no options."""
        for key in url.options:
            raise ConfigError(f"sink {url.shown}: unknown option {key!r}; it has none")
        return cls()

    @property
    def url(self) -> str:
        """`memory:`."""
        return "memory:"

    async def open(self) -> None:
        """Note the call."""
        self.calls.append("open")

    async def write(self, batch: Batch) -> None:
        """Keep the batch, or raise `failure`."""
        self.calls.append("write")
        if self.failure is not None:
            raise self.failure
        self.batches.append(batch)

    async def flush(self) -> None:
        """Note the call."""
        self.calls.append("flush")

    async def reopen(self) -> None:
        """Note the call."""
        self.calls.append("reopen")

    async def close(self) -> None:
        """Note the call."""
        self.calls.append("close")

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records that were kept, in order."""
        return [record for batch in self.batches for record in batch.records()]


def check_sink(
    factory: Callable[[], Sink],
    delivered: Callable[[], list[dict[str, Any]]] | None = None,
    *,
    timeout: float = 30.0,
) -> None:
    """Check that a sink keeps its contract; runs an asyncio loop of its own.

    Args:
        factory: Makes a sink for a fresh target. It is called more than once.
        delivered: Reads back what arrived at the target of the sink made last, as
            records; None skips the checks of what arrived.
        timeout: Seconds that the whole check may take.

    Raises:
        AssertionError: The contract is broken; the message names the promise.
    """
    asyncio.run(asyncio.wait_for(_check(factory, delivered), timeout))


async def _check(
    factory: Callable[[], Sink],
    delivered: Callable[[], list[dict[str, Any]]] | None,
) -> None:
    idle = factory()
    assert isinstance(idle, Sink), "the factory must make a logagg.abc.Sink"
    assert idle.scheme, "a sink names its `scheme`"
    _check_url(idle)
    await idle.close()  # never opened
    await idle.close()

    sink = factory()
    await sink.open()
    before = asyncio.all_tasks()
    sent: list[int] = []
    for start, count in ((0, 1), (1, 500), (501, 3), (504, 0), (504, 40)):
        # Of now: a sink need not take what is old.
        batch = make_batch(count, start=start, base_ns=time.time_ns())
        lines, data = list(batch.lines), batch.data
        await sink.write(batch)
        assert batch.lines == lines, "a batch is shared: `write` must not change it"
        assert batch.data == data, "a batch is shared: `write` must not change it"
        sent += range(start, start + count)
        if start == 1:
            await sink.flush()
        if start == 501:
            await sink.reopen()
    await sink.flush()
    await sink.close()
    await sink.close()
    leaked = asyncio.all_tasks() - before
    assert not leaked, f"`close` left tasks running: {leaked}"
    numbers = [value for value in sink.counters.values() if value < 0]
    assert not numbers, "counters never go below zero"
    if delivered is not None:
        arrived = [record.get("seq") for record in delivered()]
        assert sorted(set(arrived), key=str) == sorted(sent, key=str), (
            f"every record arrives: {len(sent)} sent, {len(set(arrived))} arrived"
        )
        assert arrived == sent, "records arrive once and in order"


def _check_url(sink: Sink) -> None:
    text = sink.url
    url = parse(text)
    assert url.scheme.partition("+")[0] == sink.scheme.partition("+")[0], (
        f"`url` begins with the scheme {sink.scheme!r}, not {text!r}"
    )
    again = type(sink).from_url(url)
    assert again.url == text, f"`url` builds the same sink again: {text} → {again.url}"
    wrong = SinkURL(text, url.scheme, url.target, {**url.options, "no_such_key": "1"})
    message = ""
    try:
        type(sink).from_url(wrong)
    except ConfigError as error:
        message = str(error)
    assert message, "an unknown option is refused with a ConfigError"
    assert "no_such_key" in message, "the message names the unknown option"
