"""From spool to batch, in the size that the target takes now."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from logagg.segment_log import SegmentLog
from logagg.wireformat import key_ns, timestamp_bytes
from logagg_sinks.delivery.batching import Encode, Item, Load, load, shorten
from logagg_sinks.delivery.delivery_options import DeliveryOptions

__all__ = ["Arrange", "Loader", "RequestSize", "Run", "Runtime"]

T = TypeVar("T")


class Run(Protocol):
    """Runs a call that blocks, on the sink's own thread."""

    def __call__(self, call: Callable[[], T]) -> Awaitable[T]:
        """Run it there and wait for its result."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A sink's thread, counters and clocks, as its parts use them.

    Attributes:
        run: Runs a call that blocks on the sink's thread.
        count: Adds to a counter.
        clock: Seconds since the epoch.
        sleep: Waits so many seconds.
        chance: A random number from 0 to 1.
    """

    run: Run
    count: Callable[[str, int], None]
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[Any]]
    chance: Callable[[], float]


Arrange = Callable[[list[Item], Callable[[], list[Item]]], list[Item]]
"""Makes the records of a batch differ; the second argument encodes those before it."""

_SMALLEST_LIMIT = 1024
_BEFORE_BYTES = 64 * 1024
_INSTANT_NS = 1000


class RequestSize:
    """The most bytes of a request: less while the target refuses more, then more again.

    A target that resets connections may have been short of something else than room, and
    one that refused a size may be given another limit. So after some successes the size
    is doubled, up to the configured one; a size that is refused again at once is tried
    half as often.

    Args:
        most: The configured size.

    Attributes:
        limit: The size now.
    """

    def __init__(self, most: int) -> None:
        self.limit = most
        self._most = most
        self._successes = 0
        self._needed = _FIRST_PROOF
        self._raised = False

    def lower(self, size_bytes: int) -> None:
        """A request of twice this size was refused."""
        self.limit = max(min(self.limit, size_bytes), _SMALLEST_LIMIT)
        if self._raised:
            self._needed = min(2 * self._needed, _LAST_PROOF)
        self._successes = 0
        self._raised = False

    def succeeded(self) -> None:
        """A request was taken."""
        if self.limit >= self._most:
            return
        self._successes += 1
        if self._successes >= self._needed:
            self.limit = min(2 * self.limit, self._most)
            self._successes = 0
            self._raised = True


_FIRST_PROOF, _LAST_PROOF = 16, 1024  # successes


class Loader:
    """Makes batches from the beginning of a spool; used on the sink's thread.

    Args:
        encode: Encodes one record for the target.
        arrange: Makes the records of a batch differ where the target needs that.
        options: How batches are made.
        runtime: The sink's counters and clocks.

    Attributes:
        size: The most bytes of a body, before compression.
    """

    def __init__(
        self,
        encode: Encode,
        arrange: Arrange,
        options: DeliveryOptions,
        runtime: Runtime,
    ) -> None:
        self.size = RequestSize(options.batch_bytes)
        self._encoder = encode
        self._arrange = arrange
        self._options = options
        self._runtime = runtime

    def load(self, spool: SegmentLog) -> Load:
        """Make the next batch, or the one that a predecessor has tried, and note it."""
        until = spool.until if spool.until > spool.start else None
        most = self._options.batch_bytes
        if until is not None:
            most = max(most, until - spool.start)
        position, data = spool.read(spool.start, most)
        found = load(
            data,
            position,
            self._encode,
            records=self._options.batch_records,
            body_bytes=self.size.limit,
            oldest=self.oldest(),
            until=until,
        )
        self.begin(spool, found.end)
        items = self._arrange(found.items, lambda: self._before(spool, found.items))
        return found._replace(items=items)

    def _before(self, spool: SegmentLog, items: Sequence[Item]) -> list[Item]:
        """Encode the records before a batch that are of the instant of its first one.

        They are consumed, and there for as long as their segment is.
        """
        if not items:
            return []
        since = key_ns(items[0].line) - _INSTANT_NS
        position = max(0, spool.start - _BEFORE_BYTES)
        before = b""
        while position < spool.start:
            position, data = spool.read(position, _BEFORE_BYTES)
            data = data[: max(0, spool.start - position)]
            if not data:
                break
            before += data
            position += len(data)
        found = []
        for line in before.split(b"\n")[:-1]:
            if key_ns(line) < since:  # also what is left of the first line
                continue
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                short = shorten(line, self._options.record_bytes)
                found.append(Item(0, line, *self._encoder(short)))
        return found

    def begin(self, spool: SegmentLog, end: int) -> None:
        """Note the end of what is sent next; at worst a successor does not know it."""
        try:
            spool.begin(end)
        except OSError:
            self._runtime.count("cursor_errors", 1)

    def _encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        if len(line) > self._options.record_bytes:
            line = shorten(line, self._options.record_bytes)
            self._runtime.count("truncated", 1)
        return self._encoder(line)

    def oldest(self) -> bytes:
        """The timestamp before which a record is not sent any more; or empty."""
        if not self._options.max_age:
            return b""
        oldest = self._runtime.clock() - self._options.max_age
        return timestamp_bytes(int(oldest * 1e9))
