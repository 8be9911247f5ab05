"""The stdout and stderr sinks: records on a stream of the process that wants them.

Order: as in the stream of records. Loss: a stream is not durable, and its reader may
close it or stop reading, which must not stall everything else. A slow reader is waited
for. After `stall_timeout` without progress records are dropped and counted until the
reader goes on; then a line announces the number. A closed stream (EPIPE) stays given up
until it is replaced.

The stream's blocking mode is never changed: it is shared with other processes. A thread
writes, and copes with short writes and with O_NONBLOCK set by another process.
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

import orjson

from logagg.abc import Batch, Sink, SinkURL
from logagg.errors import ConfigError, SinkUnavailable
from logagg.text import ConsoleText, Template, json_visible, wants_color
from logagg.wireformat import Event, own_record, timestamp_bytes
from logagg_sinks._executor import SerialExecutor
from logagg_sinks._sink_options import (
    Duration,
    Options,
    check_template,
    make,
    query,
    read,
)

__all__ = ["StderrSink", "StdoutSink"]

log = logging.getLogger("logagg.stdout")


class StreamFormat(enum.Enum):
    """The form of records on a stream."""

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
        format: `console` (as `logagg tail`), `json`, or `text` by a template.
        color: When to color `console`; `auto` obeys NO_COLOR, FORCE_COLOR, TERM and
            whether the stream is a terminal.
        template: The line of `text`, for example `{timestamp} {level} {message}`.
        stall_timeout: Seconds without progress of the reader after which records are
            dropped and counted; 0 waits for ever.
    """

    format: StreamFormat = StreamFormat.CONSOLE
    color: Color = Color.AUTO
    template: str = Template.DEFAULT
    stall_timeout: Duration = 10.0

    def __post_init__(self) -> None:
        check_template(self.template, used=self.format is StreamFormat.TEXT)


class _WriteJob:
    """A batch on its way to the stream.

    `done` (bytes written) is changed by the thread only, all else by the loop.
    """

    __slots__ = ("batch", "data", "done", "fd", "future", "pieces", "seen")

    def __init__(self, batch: Batch, head: bytes, pieces: list[bytes]) -> None:
        self.batch = batch
        self.pieces = pieces
        self.data = head + (batch.data if pieces is batch.lines else b"".join(pieces))
        self.done = 0
        self.seen = 0  # `done` at the last check
        self.fd = -1
        self.future: asyncio.Future[None] | None = None

    def run(self) -> None:
        """Write the rest; blocks for as long as the reader does not read."""
        view = memoryview(self.data)
        while self.done < len(view):
            try:
                self.done += os.write(self.fd, view[self.done : self.done + 65536])
            except BlockingIOError:  # another process set O_NONBLOCK
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                poll.poll()

    @property
    def in_flight(self) -> bool:
        """The thread is writing it."""
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
        """The missing rest of a line that was begun."""
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
        environ: The environment that decides on colors: of the stream's process.
    """

    scheme = "stdout"
    interactive = True
    default_fd: ClassVar[int] = 1

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = make(StreamOptions, options, what=f"sink {self.scheme}:")
        self.environ: Mapping[str, str] = os.environ
        self._fd = self.default_fd
        self._executor: SerialExecutor | None = None
        self._job: _WriteJob | None = None  # begun and not over
        self._console: ConsoleText | None = None
        self._template = Template(self.options.template)
        self._rest = b""  # missing end of a line whose batch was given up
        self._gone = False  # the reader closed the stream
        self._unannounced = 0  # records dropped since the last notice

    @classmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build it from `stdout:?options`."""
        if url.target.strip("/"):
            raise ConfigError(
                f"sink {url.shown}: {cls.scheme} takes no target; write "
                f"{cls.scheme}:?format=json"
            )
        sink = cls(**read(StreamOptions, url))
        if url.descriptor is not None:
            sink.fd = url.descriptor
        return sink

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again."""
        options = query(self.options)
        return f"{self.scheme}:" + (f"?{options}" if options else "")

    @property
    def fd(self) -> int:
        """The descriptor, owned by the caller; setting it retries a closed stream."""
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
        if self._executor is None:
            self._executor = SerialExecutor(f"logagg-{self.scheme}")

    async def reopen(self) -> None:
        """Try a closed stream again."""
        self._forget()

    async def write(self, batch: Batch) -> None:
        """Write the batch, or count it as dropped when the reader has stopped.

        Raises:
            SinkUnavailable: The stream is a file that cannot be written now; a retry
                of the same batch continues where it stopped.
        """
        executor = self._executor
        if executor is None:
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
            pieces = await executor.call(self._render, batch)
            job = self._job = _WriteJob(batch, self._rest + self._notice(), pieces)
            self._rest = b""
        if not job.in_flight:
            job.fd = self._fd
            job.future = executor.call(job.run)
        await self._wait(job)

    async def _wait(self, job: _WriteJob) -> None:
        """Wait for the job while it progresses; conclude it when it is over."""
        assert job.future is not None
        while not job.future.done():
            job.seen = job.done
            timeout = self.options.stall_timeout or None
            await asyncio.wait([job.future], timeout=timeout)
            if not job.future.done() and job.done == job.seen:
                log.warning("%s is not read; dropping records", self.scheme)
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

    def _abandon(self, job: _WriteJob) -> None:
        """Give up what is left of a job that is over."""
        assert job.future is not None
        self._job = None
        error = job.future.exception() if job.future.done() else None
        if error is None and job.future.done():
            return
        self._rest = job.torn()
        self._drop(job.missing())
        if isinstance(error, OSError) and error.errno in _GONE and job.fd == self._fd:
            log.warning("%s was closed by its reader; dropping records", self.scheme)
            self._gone = True

    def _drop(self, number: int) -> None:
        self.count("dropped", number)
        self._unannounced += number

    def _notice(self) -> bytes:
        """A line about dropped records that were not announced yet, or nothing."""
        number, self._unannounced = self._unannounced, 0
        if not number:
            return b""
        return self._lines([_notice(number, self.scheme)])[0]

    def _render(self, batch: Batch) -> list[bytes]:
        if self.options.format is not StreamFormat.JSON:
            return self._lines(batch.records())
        data = batch.data
        if data.isascii() and len(data.translate(None, _CONTROLS)) == len(data):
            return batch.lines
        return [_harmless(line) for line in batch.finished()]

    def _lines(self, records: list[dict[str, Any]]) -> list[bytes]:
        if self.options.format is StreamFormat.JSON:
            return [_harmless(orjson.dumps(record) + b"\n") for record in records]
        if self.options.format is StreamFormat.TEXT:
            render = self._template.render
        else:
            if self._console is None:
                self._console = self._console_text()
            render = self._console.render
        return [render(record).encode("utf-8", "replace") for record in records]

    def _console_text(self) -> ConsoleText:
        try:
            terminal = os.isatty(self._fd)
        except OSError:
            terminal = False
        color = wants_color(self.options.color.value, self.environ, terminal)
        return ConsoleText(color=color, terminal=terminal)

    async def close(self) -> None:
        """Release the stream, which stays open. May be called twice.

        A write that the reader blocks is abandoned after a second.
        """
        executor, self._executor = self._executor, None
        job, self._job = self._job, None
        if job is not None and job.in_flight:
            assert job.future is not None
            await asyncio.wait([job.future], timeout=1.0)
        if job is not None:
            self._drop(job.missing())
        if executor is not None:
            executor.shutdown(wait=False)


class StderrSink(StdoutSink):
    """Write records to standard error; all else as `StdoutSink`."""

    scheme = "stderr"
    default_fd = 2


_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.ENXIO, errno.EBADF))
"""Errors of a write when the reader is gone (EIO: the terminal was hung up)."""


_CONTROLS = bytes({*range(32), 127} - {10})


def _harmless(line: bytes) -> bytes:
    """A finished JSON line in which no character acts on a terminal."""
    text = line.decode("utf-8", "surrogateescape")
    return json_visible(text.rstrip("\n")).encode() + b"\n"


def _notice(number: int, scheme: str) -> dict[str, Any]:
    return own_record(
        timestamp_bytes(time.time_ns()).decode(),
        Event.DROPPED,
        f"{number} records were not shown here: {scheme} is not read",
        dropped=number,
        sink=scheme,
    )
