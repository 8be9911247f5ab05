"""What a sink is, and what it is given: the contract for every author of one.

Nothing here does I/O. `logagg.sinks` finds and builds sinks, `logagg.fanout` drives
them, `logagg.testing` has a contract test that any author can run on theirs.
"""

from __future__ import annotations

import abc
import enum
from typing import TYPE_CHECKING, Any, ClassVar, Self

import orjson

if TYPE_CHECKING:
    from logagg.sinks import SinkURL

__all__ = ["Batch", "Policy", "Sink"]


class Policy(enum.Enum):
    """What happens to a record that finds its sink's queue full."""

    BLOCK = "block"
    """Reading waits, and with it in the end the workers: nothing is lost."""
    DROP_OLD = "drop_old"
    """The oldest record of the lowest severity in the queue is dropped and counted."""
    DROP_NEW = "drop_new"
    """The new record is dropped and counted."""
    SPOOL = "spool"
    """Records are parked on disk until the sink has caught up."""


class Batch:
    """Records that are released together, in their final order.

    A batch is shared by all sinks and must not be changed. It holds the records as
    *wire lines*: JSON objects that lack their closing brace and newline, so that the
    consumer's own stamp can be joined on without touching a record. Ask for the form
    you need; each form is made once and kept:

    - `data`: the finished NDJSON as one bytes object (what a file wants),
    - `finished()`: the finished NDJSON lines one by one,
    - `records()`: parsed dictionaries (what a remote target wants; costs about 1 µs
      a record).

    Attributes:
        lines: Wire lines (bytes, no closing brace, no newline), in order.
        closing: What finishes a line: `,"received":"…Z"}` and a newline.
        memo: What was found out about the batch, for all that look at it later.
    """

    __slots__ = ("_data", "_records", "_size", "closing", "lines", "memo")

    def __init__(self, lines: list[bytes], closing: bytes) -> None:
        self.lines = lines
        self.closing = closing
        self.memo: dict[Any, Any] = {}
        self._data: bytes | None = None
        self._size = -1
        self._records: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def data(self) -> bytes:
        """The whole batch as NDJSON: a finished line a record, newlines included."""
        if self._data is None:
            self._data = self.closing.join([*self.lines, b""])
        return self._data

    @property
    def size_bytes(self) -> int:
        """The length of `data`, without building it."""
        if self._size < 0:
            closings = len(self.closing) * len(self.lines)
            self._size = sum(map(len, self.lines)) + closings
        return self._size

    def finished(self) -> list[bytes]:
        """The finished NDJSON lines, newline included."""
        closing = self.closing
        return [line + closing for line in self.lines]

    def records(self) -> list[dict[str, Any]]:
        """The records as dictionaries, parsed once and shared: do not change them.

        A line that is not valid JSON (only a hostile or broken sender makes one)
        becomes `{"level": "error", "logger": "logagg", "message": …, "raw": text}`,
        never an exception.
        """
        if self._records is None:
            self._records = [_parse(line) for line in self.finished()]
        return self._records

    def select(self, lines: list[bytes]) -> Batch:
        """A batch with the same stamp and only these of its lines."""
        return self if len(lines) == len(self.lines) else Batch(lines, self.closing)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = None
    if isinstance(record, dict):
        return record
    return {
        "timestamp": line[14:44].decode("ascii", "replace"),
        "level": "error",
        "logger": "logagg",
        "message": "a line arrived that is not a record",
        "raw": line.decode("utf-8", "replace"),
    }


class Sink(abc.ABC):
    """A place where records end up: a file, a terminal, a service.

    The consumer calls a sink from one task on its asyncio loop, never two calls at
    once: `open`, then any number of `write` and `flush`, at the end `close`. A sink has
    its own queue in front of it, so a slow `write` delays nobody else; it must not
    block the loop itself (use threads, or asyncio, for what can block).

    Order: batches come in the stream's order; within a batch records are in order.

    Loss: a batch counts as delivered when `write` returns. An exception means that it
    was not delivered: `SinkUnavailable` is tried again with the same batch after a
    pause, for ever if need be; any other `SinkError` or `OSError` likewise, with one
    alarm an interval; what the queue must then drop is counted, by the queue's policy.
    A sink that wants to give up on single records (a dead letter, say) does so itself,
    counts them in `counters` and returns.

    Attributes:
        scheme: The first part of its URL, as in the entry point's name.
        durable: True when what `write` accepted survives the consumer's death
            (`kill -9`) without further calls. Only durable sinks are acknowledged to
            workers and waited for by `flush()`, unless there are none.
        counters: Counts by reason ("dead_lettered", "retried", …), shown by
            `logagg status` and the metrics.
        default_policy: The queue's policy when the user chose none.
    """

    scheme: ClassVar[str] = ""
    default_policy: ClassVar[Policy] = Policy.SPOOL
    durable: bool = False

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    @classmethod
    @abc.abstractmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build the sink from its URL, without opening anything.

        Raises:
            ConfigError: An option is unknown or its value is bad; the message names
                both and says what would be right.
        """

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """The sink as a URL that builds the same one again, secrets left out."""

    async def open(self) -> None:
        """Get ready to write. Raise `ConfigError` when the target can never work."""
        return

    @abc.abstractmethod
    async def write(self, batch: Batch) -> None:
        """Deliver the batch, or raise."""

    async def flush(self) -> None:
        """Hand on what `write` accepted and only buffered."""
        return

    async def recall(self, since: bytes) -> frozenset[bytes]:
        """Which records stamped at or after a sort key are written already.

        Asked of durable sinks after a consumer died, so that nothing is written twice.

        Args:
            since: The first bytes of a line: prefix and timestamp.

        Returns:
            The lines' first bytes up to the end of their seq (`wire.identity`); the
            empty set when the sink cannot know, and then records may stand there twice.
        """
        del since
        return frozenset()

    async def reopen(self) -> None:
        """Open the target anew (SIGHUP, SIGUSR1, log rotation from outside)."""
        return

    async def close(self) -> None:
        """Flush, and let go of everything. May be called twice."""
        return

    def count(self, reason: str, number: int = 1) -> None:
        """Add to a counter."""
        self.counters[reason] = self.counters.get(reason, 0) + number
