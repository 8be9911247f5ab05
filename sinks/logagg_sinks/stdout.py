"""The stdout and stderr sinks: records on a stream that somebody may be reading.

Order: as in the stream of records. Loss: a stream is not durable, and its reader may
go away or stop reading, which must not stall everything else. A reader that is slow is
waited for. One that took nothing for `stall_timeout` is given up until it reads again:
till then records are dropped, counted, and the number is said in a line of its own
when it goes on. A reader that is gone (EPIPE) is given up until the stream is replaced.

The stream's blocking mode is never changed: it is shared with other processes. Writes
are made from a thread of their own, which copes with short writes and with somebody
else having set O_NONBLOCK.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import logging
import os
import select
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import msgspec
import orjson

from logagg.abc import Batch, Sink
from logagg.errors import ConfigError, SinkUnavailable
from logagg.sinks import SinkURL
from logagg.view.color import wants_color
from logagg_sinks._console import Console
from logagg_sinks._lane import Lane
from logagg_sinks._options import Duration, Options, make, query, read
from logagg_sinks._text import Template

__all__ = ["StderrSink", "StdoutSink"]

log = logging.getLogger("logagg.stdout")


class Format(enum.Enum):
    """How records look on a stream."""

    CONSOLE = "console"
    JSON = "json"
    TEXT = "text"


class Color(enum.Enum):
    """When to color the console format."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class StreamOptions(Options, frozen=True, kw_only=True):
    """The options of a stream.

    Attributes:
        format: `console` for people, `json` for programs, `text` by a template.
        color: When to color `console`; `auto` obeys NO_COLOR, FORCE_COLOR, TERM and
            whether the stream is a terminal.
        template: The line of `text`, for example `{timestamp} {level} {message}`.
        stall_timeout: Seconds that a reader may take nothing before records are
            dropped and counted instead; 0 waits for ever.
    """

    format: Format = Format.CONSOLE
    color: Color = Color.AUTO
    template: str = Template.DEFAULT
    stall_timeout: Duration = 10.0

    def __post_init__(self) -> None:
        try:
            Template(self.template)
        except ValueError as error:
            raise ValueError(
                f"option template={self.template!r} is not right; expected {error}"
            ) from None
        if self.template != Template.DEFAULT and self.format is not Format.TEXT:
            raise ValueError("option template needs format=text")


class _Job:
    """A batch on its way to the stream.

    `done` (bytes written) is changed by the lane's thread only, all else by the loop.
    """

    __slots__ = ("batch", "data", "done", "fd", "future", "pieces", "seen")

    def __init__(self, batch: Batch, head: bytes, pieces: list[bytes]) -> None:
        self.batch = batch
        self.pieces = pieces
        self.data = head + (batch.data if pieces is batch.lines else b"".join(pieces))
        self.done = 0
        self.seen = 0  # `done` when it was last looked at
        self.fd = -1
        self.future: asyncio.Future[None] | None = None

    def run(self) -> None:
        """Write what is left; blocks for as long as the reader does not read."""
        view = memoryview(self.data)
        while self.done < len(view):
            try:
                self.done += os.write(self.fd, view[self.done : self.done + 65536])
            except BlockingIOError:  # somebody else made the stream non-blocking
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                poll.poll()

    @property
    def in_flight(self) -> bool:
        """The thread is at it."""
        return self.future is not None and not self.future.done()

    def missing(self) -> int:
        """How many of its records were not written whole."""
        closing = len(self.batch.closing) if self.pieces is self.batch.lines else 0
        left, number = len(self.data) - self.done, 0
        for piece in reversed(self.pieces):
            if left <= 0:
                break
            left -= len(piece) + closing
            number += 1
        return number

    def torn(self) -> bytes:
        """What a line that was begun still lacks."""
        if self.done == 0 or self.data[self.done - 1 : self.done] == b"\n":
            return b""
        return self.data[self.done : self.data.find(b"\n", self.done) + 1]


class StdoutSink(Sink):
    """Write records to standard output.

    Args:
        options: See `StreamOptions`.

    Raises:
        ConfigError: An unknown option or a bad value.

    Attributes:
        environ: The environment that decides on colors: that of the stream's owner.
    """

    scheme = "stdout"
    default_fd: ClassVar[int] = 1

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = make(StreamOptions, options, what=f"sink {self.scheme}:")
        self.environ: Mapping[str, str] = os.environ
        self._fd = self.default_fd
        self._lane: Lane | None = None
        self._job: _Job | None = None  # begun and not yet settled
        self._console: Console | None = None
        self._template = Template(self.options.template)
        self._rest = b""  # what a begun line lacks whose batch was given up
        self._gone = False  # the reader closed the stream
        self._unsaid = 0  # records dropped since the last line about it

    @classmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build it from `stdout:?options`."""
        if url.target.strip("/"):
            raise ConfigError(
                f"sink {url.shown}: {cls.scheme} takes no target; write "
                f"{cls.scheme}:?format=json"
            )
        return cls(**msgspec.structs.asdict(read(StreamOptions, url)))

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again."""
        options = query(self.options)
        return f"{self.scheme}:" + (f"?{options}" if options else "")

    @property
    def fd(self) -> int:
        """The file descriptor that is written to; whoever sets it keeps owning it.

        Setting another one also ends the state of a reader that is gone.
        """
        return self._fd

    @fd.setter
    def fd(self, fd: int) -> None:
        self._fd = fd
        self._forget()

    def _forget(self) -> None:
        self._gone = False
        self._console = None
        self._rest = b""

    async def open(self) -> None:
        """Get ready to write."""
        if self._lane is None:
            self._lane = Lane(f"logagg-{self.scheme}")

    async def reopen(self) -> None:
        """Try a reader again that was gone."""
        self._forget()

    async def write(self, batch: Batch) -> None:
        """Write the batch, or count it as dropped when nobody reads.

        Raises:
            SinkUnavailable: The stream leads to a file that cannot be written now;
                trying the same batch again goes on where it stopped.
        """
        lane = self._lane
        if lane is None:
            raise SinkUnavailable(f"{self.scheme} is not open")
        job = self._job
        if job is not None and job.batch is not batch:
            if job.in_flight and job.done != job.seen:
                await self._wait(job)
            if job.in_flight:
                self._drop(len(batch))
                return
            self._abandon(job)
            job = None
        if self._gone:
            self._drop(len(batch))
            return
        if job is None:
            pieces = await asyncio.wrap_future(lane.submit(self._render, batch))
            job = self._job = _Job(batch, self._rest + self._notice(), pieces)
            self._rest = b""
        if not job.in_flight:
            job.fd = self._fd
            job.future = asyncio.wrap_future(lane.submit(job.run))
        await self._wait(job)

    async def _wait(self, job: _Job) -> None:
        """Wait for the job as long as it gets on; settle it when it is over."""
        assert job.future is not None
        while not job.future.done():
            job.seen = job.done
            patience = self.options.stall_timeout or None
            await asyncio.wait([job.future], timeout=patience)
            if not job.future.done() and job.done == job.seen:
                log.warning("nobody reads %s; dropping records", self.scheme)
                self.count("stalled")
                return
        error = job.future.exception()
        if error is None:
            self._job = None
        elif isinstance(error, OSError) and error.errno not in _GONE:
            raise SinkUnavailable(
                f"cannot write to {self.scheme}: {error.strerror}"
            ) from error
        else:
            self._abandon(job)

    def _abandon(self, job: _Job) -> None:
        """Give up what is left of a job that is over."""
        assert job.future is not None
        self._job = None
        error = job.future.exception() if job.future.done() else None
        if error is None and job.future.done():
            return
        self._rest = job.torn()
        self._drop(job.missing())
        if isinstance(error, OSError) and error.errno in _GONE and job.fd == self._fd:
            log.warning("the reader of %s is gone; dropping records", self.scheme)
            self._gone = True

    def _drop(self, number: int) -> None:
        self.count("dropped", number)
        self._unsaid += number

    def _notice(self) -> bytes:
        """A line about what was dropped, when it has not been said yet."""
        number, self._unsaid = self._unsaid, 0
        if not number:
            return b""
        return self._lines([_notice(number, self.scheme)])[0]

    def _render(self, batch: Batch) -> list[bytes]:
        if self.options.format is Format.JSON:
            return batch.lines
        return self._lines(batch.records())

    def _lines(self, records: list[dict[str, Any]]) -> list[bytes]:
        if self.options.format is Format.JSON:
            return [orjson.dumps(record) + b"\n" for record in records]
        if self.options.format is Format.TEXT:
            render = self._template.render
        else:
            if self._console is None:
                self._console = Console(colors=self._colors())
            render = self._console.render
        return [render(record).encode("utf-8", "replace") for record in records]

    def _colors(self) -> bool:
        try:
            terminal = os.isatty(self._fd)
        except OSError:
            terminal = False
        return wants_color(self.options.color.value, self.environ, terminal)

    async def close(self) -> None:
        """Let go of the stream, which stays open. May be called twice.

        A write that the reader holds up is left behind after a second.
        """
        lane, self._lane = self._lane, None
        job, self._job = self._job, None
        if job is not None and job.in_flight:
            assert job.future is not None
            await asyncio.wait([job.future], timeout=1.0)
        if job is not None:
            self._drop(job.missing())
        if lane is not None:
            lane.shutdown(wait=False)


class StderrSink(StdoutSink):
    """Write records to standard error; all else as `StdoutSink`."""

    scheme = "stderr"
    default_fd = 2


_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENXIO, errno.EBADF))
"""What a write says when the reader is gone (EIO: the terminal was hung up)."""


def _notice(number: int, scheme: str) -> dict[str, Any]:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return {
        "timestamp": f"{clock}.{nanoseconds:09}Z",
        "level": "warning",
        "worker": "logagg",
        "seq": 0,
        "logger": "logagg",
        "message": f"{number} records were not shown here because nobody read {scheme}",
        "event": "dropped",
        "dropped": number,
        "sink": scheme,
    }
