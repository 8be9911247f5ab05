"""The contract of a sink: the class to derive from, and the batches that it gets.

`logagg.sinks` finds and builds sinks, `logagg.fanout` drives them, and
`logagg.testing.check_sink` is a contract test for the sinks of any author. Nothing here
does I/O.
"""

from __future__ import annotations

import abc
import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from logagg._native import blocks
from logagg.core.backoff import Backoff
from logagg.core.event import Event
from logagg.core.line import LEVEL_START, parse_line
from logagg.filters.secret_values import SECRETS
from logagg.ipc import failpoints
from logagg.platform.system import fdatasync, opened_path

__all__ = [
    "SECRETS",
    "Alarm",
    "Backoff",
    "Batch",
    "Policy",
    "Sink",
    "SinkURL",
    "failpoints",
    "fdatasync",
    "opened_path",
    "shown_url",
]


class Policy(enum.Enum):
    """The fate of a record that finds its sink's queue full."""

    BLOCK = "block"
    """Reading waits, and in the end the workers: nothing is lost."""
    DROP_OLD = "drop_old"
    """The oldest record of the lowest severity in the queue is dropped and counted."""
    DROP_NEW = "drop_new"
    """The new record is dropped and counted."""
    SPOOL = "spool"
    """Records are spooled to disk until the sink has caught up."""


class Batch:
    """Records that are released together, in their final order.

    A batch is shared by all sinks and must not be changed. It holds the records as
    *wire lines*: JSON objects that lack their closing brace and newline, so that the
    consumer's timestamp can be appended without touching a record. Each form is made
    once, on request, and kept:

    - `lines`: the wire lines, one by one,
    - `data`: the finished NDJSON as one bytes object, for files,
    - `finished()`: the finished NDJSON lines one by one,
    - `records()`: parsed dictionaries; costs about 1 µs per record.

    Attributes:
        closing: The suffix of each line: `,"received":"…Z"}` and a newline.
        memo: Results computed from the batch, shared by all sinks.
    """

    __slots__ = ("_data", "_lines", "_records", "_size", "closing", "memo")

    def __init__(self, lines: list[bytes], closing: bytes) -> None:
        self._lines = lines
        self.closing = closing
        self.memo: dict[Any, Any] = {}
        self._data: bytes | None = None
        self._size = -1
        self._records: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def lines(self) -> list[bytes]:
        """Wire lines (bytes, no closing brace, no newline), in order."""
        lines = self._lines = blocks.as_list(self._lines)
        return lines

    def has_level(self, level: str) -> bool:
        """Whether a record has this level; costs neither `lines` nor a search of them."""
        return blocks.has_level(self._lines, level.encode(), LEVEL_START)

    @property
    def data(self) -> bytes:
        """The whole batch as NDJSON: one finished line per record, newlines included."""
        if self._data is None:
            self._data = blocks.joined(self._lines, self.closing)
        return self._data

    @property
    def size_bytes(self) -> int:
        """The length of `data`, without building it."""
        if self._size < 0:
            closings = len(self.closing) * len(self._lines)
            self._size = blocks.size_of(self._lines) + closings
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
            self._records = [parse_line(line) for line in self.finished()]
        return self._records

    def select(self, lines: list[bytes]) -> Batch:
        """A batch with the same suffix and only these of its lines."""
        return self if len(lines) == len(self) else Batch(lines, self.closing)


@dataclass(frozen=True, slots=True)
class SinkURL:
    """A sink URL taken apart; `logagg.sinks.parse` makes one.

    Attributes:
        text: The URL as the user wrote it (may hold secrets: never log it).
        scheme: The part before the first colon, lower case.
        target: The part between the scheme's colon and the first `?`; percent escapes
            are still in it for `//` URLs and resolved for plain paths.
        options: The query part, decoded, in order; a repeated key is refused.
        descriptor: For schemes of standard streams (`stdout`, `stderr`, or ending in
            `+stdout`, `+stderr`): that stream of the process that wants the sink.
        common: Names of options that every sink has; they are not among `options`.
    """

    text: str
    scheme: str
    target: str
    options: dict[str, str] = field(default_factory=dict)
    descriptor: int | None = None
    common: Sequence[str] = ()

    @property
    def shown(self) -> str:
        """The URL as far as it may be logged: without user, password and query."""
        return shown_url(self.text)


def shown_url(text: str) -> str:
    """A URL without user, password and query: all of it that may be logged.

    Rather too little than a part of a password in which `/` or `?` was not escaped.
    """
    head, _, query = text.partition("?")
    scheme, slashes, rest = head.partition("//")
    if not slashes:
        return head
    if "@" in query.partition("=")[0]:
        return f"{scheme}//…"
    place = re.split(r"[/#]", rest.rpartition("@")[2], maxsplit=1)[0]
    if "@" not in rest and not _PLACE.fullmatch(place):
        return f"{scheme}//…"
    return f"{scheme}//{rest.rpartition('@')[2]}"


_ONE_PLACE = r"(?:\[[^\]]*\]|[^:,]*)(?::\d*)?"
_PLACE = re.compile(rf"{_ONE_PLACE}(?:,{_ONE_PLACE})*")


Alarm = Callable[[Event, str, str], None]
"""Takes an event: its kind, its level, and its text, which follows the sink's name."""


def _unannounced(event: Event, level: str, text: str) -> None:
    """Take an event where no service runs."""
    del event, level, text


class Sink(abc.ABC):
    """A destination of records: a file, a terminal, a service.

    The consumer calls a sink from one task on its asyncio loop, never two calls at
    once: `open`, then any number of `write` and `flush`, at the end `close`. Each sink
    has its own queue, so a slow `write` delays no other sink; it must not block the
    loop (use threads or asyncio for calls that can block).

    Order: batches come in the stream's order; within a batch records are in order.

    Loss: a batch counts as delivered when `write` returns. After an exception the same
    batch is tried again with a pause: `SinkUnavailable` is expected to pass, any other
    `SinkError` or `OSError` also raises one alarm per interval. A `ConfigError`, from
    any call, means that no retry helps: the sink has failed for good. When the queue is
    full meanwhile, its policy decides and drops are counted. A sink that gives up on
    single records (dead letters) does so itself, counts them in `counters` and returns.

    Attributes:
        scheme: The first part of its URL, as in the entry point's name.
        durable: True when what `write` accepted survives the consumer's death
            (`kill -9`) without further calls. Only durable sinks are acknowledged to
            workers and waited for by `flush()`, unless there are none.
        counters: Counts by reason ("dead_lettered", "retried", …), shown by
            `logagg status` and the metrics.
        default_policy: The queue's policy when the user chose none.
        interactive: Records are read by people as they come: routine events of the
            service (a worker that ended well) are left out.
        alarm: Puts an event about this sink into the stream (`Alarm`); the service sets
            it before `open`. For what no call can raise: a sink that delivers in the
            background. The same event again within ten seconds is left out.
    """

    scheme: ClassVar[str] = ""
    interactive: ClassVar[bool] = False
    default_policy: ClassVar[Policy] = Policy.SPOOL
    durable: bool = False

    alarm: Alarm = staticmethod(_unannounced)

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    @classmethod
    @abc.abstractmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build the sink from its URL, without opening anything.

        Raises:
            ConfigError: An option is unknown or its value is bad; the message names
                both and the expected form.
        """

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """The sink as a URL that builds the same one again, secrets left out."""

    def owned_paths(self) -> Sequence[str]:
        """Absolute paths of files that only one consumer of a host may write.

        While the sink is open no other consumer opens a sink that owns one of them. A
        path may hold `{…}`: then it names all files of that template.
        """
        return ()

    def must_sync(self, batch: Batch) -> bool:  # noqa: ARG002 - of the contract
        """Whether `write` of a batch returns only when a power cut cannot take it.

        What waits for such a write on disk is synced, too.
        """
        return False

    async def open(self) -> None:
        """Get ready to write. Raise `ConfigError` when the target can never work."""
        return

    @abc.abstractmethod
    async def write(self, batch: Batch) -> None:
        """Deliver the batch, or raise."""

    async def flush(self) -> None:
        """Deliver everything that `write` accepted and only buffered.

        Called before `reopen` and `close`, and, for a sink that is not durable, when an
        application flushes its handler: its records are acknowledged after that. The
        call is cancelled after a second.
        """
        return

    async def written_since(self, since: bytes) -> frozenset[bytes]:
        """Identify the records stamped at or after a sort key that are already written.

        Called on durable sinks after a consumer died, so that nothing is written twice.

        Args:
            since: The first bytes of a line: prefix and timestamp.

        Returns:
            The lines' first bytes up to the end of their seq (`wireformat.record_id`);
            the empty set when the sink cannot know: records may then be written twice.

        Raises:
            OSError: It cannot know now; it is asked again for some time.
        """
        del since
        return frozenset()

    async def reopen(self) -> None:
        """Open the target anew (SIGHUP, SIGUSR1, log rotation from outside)."""
        return

    async def close(self) -> None:
        """Flush and release everything. May be called twice."""
        return

    async def probe(self, seconds: float) -> tuple[str, str] | None:
        """Check the target for `logagg check`, without sending a record.

        The sink need not be open. Changes nothing, here or there.

        Args:
            seconds: How long each of its questions may take.

        Returns:
            "ok", "note" (it answers, but a person should read what) or "down", and what
            was found, in words without secrets. None: only the options can be checked.

        Raises:
            ConfigError: It is set up wrongly.
            OSError: A secret is not where it should be.
        """
        del seconds
        return None

    def owner(self) -> str:
        """Name those whose records these are, where the target does not.

        Records that wait on disk are delivered by a sink with the same target and the
        same owner only. Blocks for a local file. Empty: the target suffices.

        Raises:
            OSError: It is not known now.
        """
        return ""

    @property
    def warning(self) -> str:
        """A fault to put right although records are written; usually empty.

        A new text is announced as the event `sink_alarm`, and shown by `logagg status`
        for as long as it stands.
        """
        return ""

    def count(self, reason: str, number: int = 1) -> None:
        """Add to a counter."""
        self.counters[reason] = self.counters.get(reason, 0) + number
