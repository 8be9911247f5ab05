"""Who else is connected: live viewers, and those that hold the consumer.

Live viewers: each gets the stream through a pipe of its own, and delays no one.

A viewer passes the write end of its pipe. Lines for it wait in a bounded buffer; when
that is full, the newest lines are dropped for this viewer only, counted, and the count
is sent in a control line (`logagg.ipc.protocol.ViewerControl`). Writes never block.

Of a viewer's filter only the part runs here that costs no more than the lines' length
(`Match.candidates`): level, time and bytes that must be there. The viewer's process
decides the rest; no pattern of its own runs in the consumer.

`RecentBatches` keeps the stream's last lines by reference: no cost per record.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Any, Protocol

from msgspec import UNSET
from msgspec.structs import asdict

from logagg._native.blocks import as_list
from logagg.abc import Batch
from logagg.consumer.worker_source import WorkerSource
from logagg.core.event import loss_in
from logagg.core.line import TIMESTAMP
from logagg.filters import matcher
from logagg.ipc.protocol import (
    MAX_PACKET_BYTES,
    HolderPacket,
    StreamHello,
    ViewerControl,
    ViewerHello,
    decode,
    encode,
)
from logagg.platform import packets

__all__ = ["Holders", "ListenerHost", "RecentBatches", "Subscriber", "Subscribers"]

RECENT_BYTES = 8 * 1024 * 1024
BUFFER_BYTES = 8 * 1024 * 1024
WRITE_BYTES = 65536


class RecentBatches:
    """The last batches of the stream, at most RECENT_BYTES of them."""

    def __init__(self) -> None:
        self._batches: deque[tuple[list[bytes], bytes, int]] = deque()
        self._bytes = 0

    def add(self, lines: list[bytes], closing: bytes, size_bytes: int) -> None:
        """Keep a batch; forget the oldest."""
        self._batches.append((lines, closing, size_bytes))
        self._bytes += size_bytes
        while self._bytes > RECENT_BYTES and len(self._batches) > 1:
            self._bytes -= self._batches.popleft()[2]

    def finished(self) -> list[bytes]:
        """All kept lines, finished, oldest first."""
        return [line + closing for lines, closing, _ in self._batches for line in lines]


class Subscribers:
    """All viewers, and the lines that a new one may want.

    Args:
        first_line: Makes the first control line for a viewer.
        failed: Called with the error that ends a viewer.
    """

    def __init__(
        self,
        first_line: Callable[[], ViewerControl],
        failed: Callable[[str, BaseException], None] = lambda *_: None,
    ) -> None:
        self._first_line = first_line
        self._failed = failed
        self._recent = RecentBatches()
        self._viewers: list[Subscriber] = []

    def __len__(self) -> int:
        return len(self._viewers)

    def add(self, pipe: int, hello: ViewerHello) -> None:
        """Send the past lines that a viewer wants, and from now on the stream.

        Raises:
            ConfigError: Its filter is wrong; the message names the fault.
        """
        viewer = Subscriber(pipe, hello)
        viewer.start(self._first_line(), self._recent)
        self._viewers.append(viewer)

    def offer(self, lines: list[bytes], batch: Batch) -> None:
        """Give all viewers a batch.

        Args:
            lines: The batch's lines as they were released, in a block perhaps: they are
                kept, and none of the batch's other forms.
            batch: The batch.
        """
        self._recent.add(lines, batch.closing, batch.size_bytes)
        split = any(not each.takes_everything for each in self._viewers)
        lines = as_list(lines) if split else lines  # once for all, beside the batch
        for viewer in self._viewers:
            try:
                viewer.offer(lines, batch)
            except Exception as error:  # noqa: BLE001 - of its filter, on any record
                viewer.gone = True
                self._failed("a viewer", error)

    def push(self) -> bool:
        """Write what the viewers' pipes take; True when something is left."""
        left = False
        for viewer in list(self._viewers):
            left |= viewer.push()
            if viewer.gone:
                self._viewers.remove(viewer)
                viewer.close()
        return left


class Subscriber:
    """One viewer's filter, buffer and pipe.

    Attributes:
        gone: Its pipe has no reader any more.
        dropped: Lines that its full buffer did not take.

    Raises:
        ConfigError: Its filter is wrong; the message names the fault.
    """

    def __init__(self, pipe: int, hello: ViewerHello) -> None:
        self._match = matcher.from_message(asdict(hello))
        self.pipe = pipe
        self.gone = False
        self.dropped = 0
        self._hello = hello
        self._reported = 0
        self._buffer: deque[memoryview] = deque()
        self._buffered = 0
        os.set_blocking(pipe, False)

    def start(self, first: ViewerControl, recent: RecentBatches) -> None:
        """Send the first line and the past lines that are wanted."""
        hello = self._hello
        self._put_control(first)
        lines = recent.finished()
        if hello.after is not None:
            lines = _lines_after(lines, *hello.after)
        lines = self._match.candidates(lines)
        if hello.lines is not None and hello.after is None:
            if not hello.lines:
                lines = []
            elif self._match.everything:
                lines = lines[-hello.lines :]
        self._put(b"".join(lines))
        self._put_control(ViewerControl(live=True))
        self.push()

    @property
    def takes_everything(self) -> bool:
        """Whether it has no filter: it shares the bytes that the file sink writes."""
        return self._match.everything

    def offer(self, lines: list[bytes], batch: Batch) -> None:
        """Take a batch: lines that may match are buffered, or dropped and counted."""
        chosen = self._match.candidates(lines)  # of one without a filter: these
        if not self.takes_everything:
            self._report_losses(lines, batch.closing, chosen)
        if not chosen:
            return
        if self._buffered > BUFFER_BYTES:
            self.dropped += len(chosen)
            return
        self._report_dropped()
        everything = self.takes_everything
        self._put(batch.data if everything else batch.closing.join([*chosen, b""]))

    def _report_losses(
        self, lines: list[bytes], closing: bytes, chosen: list[bytes]
    ) -> None:
        """Announce losses in the stream that the filter leaves out."""
        kept = set(chosen)
        for line in lines:
            if line not in kept and (loss := loss_in(line + closing)) is not None:
                self._put_control(ViewerControl(loss=loss))

    def _report_dropped(self) -> None:
        if self.dropped > self._reported:
            self._put_control(ViewerControl(dropped=self.dropped - self._reported))
            self._reported = self.dropped

    def _put_control(self, control: ViewerControl) -> None:
        self._put(encode(control) + b"\n")

    def _put(self, data: bytes) -> None:
        if data:
            self._buffer.append(memoryview(data))
            self._buffered += len(data)

    def push(self) -> bool:
        """Write what the pipe takes; True when something is left."""
        while self._buffer and not self.gone:
            data = self._buffer[0]
            try:
                done = os.write(self.pipe, data[:WRITE_BYTES])
            except BlockingIOError:
                return True
            except OSError:
                self.gone = True
                return False
            self._buffered -= done
            if done == len(data):
                self._buffer.popleft()
            else:
                self._buffer[0] = data[done:]
            if not self._buffer:
                self._report_dropped()
        return False

    def close(self) -> None:
        """Close the pipe. May be called twice."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


def _lines_after(
    lines: list[bytes], timestamp: str, worker: str, seq: int
) -> list[bytes]:
    """The lines after the last one that a viewer has.

    Late lines follow lines with later stamps, so the very line is searched for; when it
    is not among the kept ones any more, its time decides.
    """
    key = timestamp.encode()
    mark = b'"worker":"%b","seq":%d,' % (worker.encode(), seq)
    for place in range(len(lines) - 1, -1, -1):
        if lines[place][TIMESTAMP] == key and mark in lines[place][:400]:
            return lines[place + 1 :]
    return [line for line in lines if line[TIMESTAMP] > key]


class Holders:
    """Connections that keep the consumer alive until they leave: runs, `logagg.start`.

    Args:
        loop: The consumer's.
        add_event: Called with a holder's record.
        wake: Called when there is something to do.

    Attributes:
        count: How many hold it.
        left_at: When the last of them has left, by the monotonic clock; 0: none has.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        add_event: Callable[[HolderPacket], None],
        wake: Callable[[], None],
    ) -> None:
        self.count = 0
        self.left_at = 0.0
        self.connections: set[socket.socket] = set()
        self._loop = loop
        self._add_event = add_event
        self._wake = wake

    def add(self, connection: socket.socket) -> None:
        """Read a holder's messages from now on."""
        self.count += 1
        self.left_at = 0.0
        self.connections.add(connection)
        self._loop.add_reader(connection, self._receive, connection)

    def _receive(self, connection: socket.socket) -> None:
        try:
            packet = packets.receive(connection, MAX_PACKET_BYTES)[0]
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        try:
            message = decode(HolderPacket, packet)
        except ValueError:  # at its end, or garbage
            self._release(connection)
            self.connections.discard(connection)
            connection.close()
        else:
            if message.record is not UNSET:
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    self._add_event(message)  # what no line can hold is garbage
            elif message.leave is not UNSET:
                # The connection stays open: its end notifies the peer of this one's.
                self._release(connection)
        self._wake()

    def _release(self, connection: socket.socket) -> None:
        self._loop.remove_reader(connection)
        self.count -= 1
        self.left_at = 0.0 if self.count else clock_gettime(CLOCK_MONOTONIC)


class ListenerHost(Protocol):
    """The listener's view of the consumer."""

    def wake(self) -> None:
        """Begin a cycle now."""

    def start_task(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run a coroutine as a task whose end is watched."""

    def add_worker(self, worker: WorkerSource) -> None:
        """Read a worker once it is readable."""

    def add_output(self, pipe: int, hello: StreamHello) -> None:
        """Read a captured stream."""

    def has_sources(self) -> bool:
        """Whether anything is read."""

    def add_event(self, message: HolderPacket) -> None:
        """Put a holder's record into the stream."""

    def status(self) -> dict[str, Any]:
        """Counters of everything."""

    open_sinks: Callable[..., Coroutine[Any, Any, None]]
    """As `SinkRegistry.want`."""

    async def owner(self, urls: list[str]) -> str:
        """The socket of the consumer that owns the file of this address."""

    def forget_worker(self, worker: WorkerSource) -> None:
        """Serve a worker no more, from which nothing was read."""

    def give_way(self, successor: str) -> None:
        """End. Raises ValueError when this consumer has a configuration."""

    async def check_resumed(self, worker: WorkerSource) -> None:
        """Learn which of its kept records the durable sinks have."""

    async def reload(self, urls: list[str] | None) -> str:
        """Read the configuration again, or use these sinks; return what is wrong."""
