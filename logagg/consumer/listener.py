"""The consumer's socket: accepts connections, reads each one's hello, serves what stays.

The first packet of a connection, the hello, names its kind (`logagg.ipc.protocol`):

    records   a worker: passes its pipe, its stdout and stderr (for sinks that write
              there), and in a file what an earlier consumer may not have written
    stream    a captured stdout or stderr of a worker of `logagg run`
    hold      keeps the consumer alive until it leaves, may name sinks, and may send
              records for the stream: `logagg.start`, the supervisor
    viewer    gets the stream, through the pipe that it passes
    status    gets the counters, in one packet
    reload    has the configuration read again, and gets the result
    adopt     another consumer's: passes on a worker whose file this consumer owns
    give_way  another consumer's: asks this one to end if only handlers have started it

Only processes of the same user, of root, and of those that LOGAGG_ALLOW_USERS names are
accepted, by the kernel's credentials. The last are guests: they send records to the sinks
that are open here, and nothing else, over a bounded number of connections. They name no
sink, so no file is opened for them with rights that they lack. A packet is a whole
message, so a slow or hostile peer cannot leave half of one. A hello is checked whole
before anything is changed by it; one that is refused is counted, its descriptors closed,
and its sender gets the reason. So is one whose descriptors the kernel could not pass as a
whole. Connections that the limit of open files has no room for wait in the socket's queue
(`logagg.ipc.descriptors`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from time import CLOCK_MONOTONIC, clock_gettime
from typing import NamedTuple

import orjson
from msgspec import UNSET

from logagg.consumer.acks import StreamSuccession
from logagg.consumer.segment_reader import SegmentReader
from logagg.consumer.subscribers import Holders, ListenerHost, Subscribers
from logagg.consumer.worker_source import WorkerSource
from logagg.core.event import Event
from logagg.errors import LogaggError
from logagg.ipc import launcher, paths
from logagg.ipc.connection import check_pipe, is_connecting, send_last, send_packet
from logagg.ipc.consumer_client import hand_over
from logagg.ipc.descriptors import DescriptorBudget
from logagg.ipc.protocol import (
    MAX_PACKET_BYTES,
    AdoptHello,
    ConsumerPacket,
    GiveWayHello,
    Hello,
    HolderPacket,
    HoldHello,
    RecordsHello,
    ReloadHello,
    StatusHello,
    StreamHello,
    ViewerHello,
    decode_hello,
    encode,
    printable,
)
from logagg.ipc.users import Guests
from logagg.platform import packets
from logagg.platform.peers import credentials, is_pid_of

__all__ = ["ConsumerListener"]

MAX_WAITING = 4096  # connections without a hello
HELLO_TIMEOUT = 10.0
JOIN_TIMEOUT = 60.0
ACCEPT_RETRY = 0.1
ANNOUNCE_INTERVAL = 60.0
MAX_DESCRIPTORS = 8

Refused = Callable[[str], object]


class _Waiting(NamedTuple):
    """A connection whose hello has not come: until when it may, and whose it is."""

    until: float
    pid: int


class ConsumerListener:
    """The listening socket, and all its connections.

    Attributes:
        holders: The connections that keep the consumer alive.
        refused: How many connections were refused.
        seen: How many workers and holders ever came.
    """

    def __init__(
        self,
        host: ListenerHost,
        subscribers: Subscribers,
        listener: socket.socket,
        path: str,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.holders = Holders(self._loop, host.add_event, host.wake)
        self.refused = 0
        self.seen = 0
        self._host = host
        self._subscribers = subscribers
        self._listener = listener
        self._path = path
        self._identifier = paths.identifier_of(path)
        self._guests = Guests()
        self._users = self._guests.users | {os.geteuid(), 0}
        self._waiting: dict[socket.socket, _Waiting] = {}
        self._streams = StreamSuccession()
        self._next_expiry = self._accept_at = self._announce_at = 0.0
        self._budget = DescriptorBudget()

    # ---- the socket ---------------------------------------------------------------

    def start(self) -> None:
        """Begin to listen; connections in the queue are served at once."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._accept()

    def stop(self, *, anyway: bool) -> bool:
        """Remove the socket; False when a connection came in the last moment.

        With the start-up lock held no other process can make a new socket meanwhile,
        and a shut socket takes no new connection: those in its queue are served, on a
        new socket, unless `anyway`. Nor does it end while the queue has to wait.
        """
        if self._listener.fileno() < 0:
            return True
        if self._is_backing_off() and not anyway:
            return False
        self._accept_at = 0.0
        try:
            with launcher.election(self._path, 1.0):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
                self._loop.remove_reader(self._listener)
                packets.refuse_more(self._listener)
                self._accept()
                self._listener.close()
                if (self._waiting or self._host.has_sources()) and not anyway:
                    self._open_again()
                    return False
                for suffix in (".new", ".err", ".lock"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._path + suffix)
        except LogaggError:
            return anyway
        except OSError as error:  # the directory is another user's, for example
            return anyway or error.errno not in (errno.EMFILE, errno.ENFILE)
        return True

    def _open_again(self) -> None:
        """Listen at the path again: tried until it is possible, or another does."""
        try:
            self._listener = launcher.listen(self._path)
            self.start()
        except (LogaggError, OSError):
            self._loop.call_later(ACCEPT_RETRY, self._try_again)

    def _try_again(self) -> None:
        try:
            with launcher.election(self._path, 0.0):
                if not launcher.answers(self._path):
                    self._open_again()
        except (LogaggError, OSError):
            self._loop.call_later(ACCEPT_RETRY, self._try_again)

    def poll(self) -> None:
        """Accept and handle what waits. Called in every cycle, after the reading.

        A worker's connection is older than its first line. So when a line was read that
        another worker's line caused, that worker is known by the time of the release.
        """
        self._accept()
        for connection in list(self._waiting):
            self._receive_hello(connection)
        if self._waiting:
            self._expire(clock_gettime(CLOCK_MONOTONIC))

    def _expire(self, now: float) -> None:
        if now < self._next_expiry:
            return
        self._next_expiry = now + 1.0
        late = [each for each, its in self._waiting.items() if its.until < now]
        for connection in late:
            self._loop.remove_reader(connection)
            del self._waiting[connection]
            connection.close()
            self.refused += 1

    def _accept(self) -> None:
        if self._is_backing_off():
            return
        for _ in range(launcher.BACKLOG + 1):  # more may come as fast as they go
            if not is_connecting(self._listener):
                return
            try:
                self._reserve()
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._back_off()
                return
            connection.setblocking(False)
            _, uid, _ = credentials(connection)
            if uid not in self._users or len(self._waiting) > MAX_WAITING:
                self.refused += 1
                connection.close()
                continue
            if not self._guests.has_room(uid, self._waiting):
                self.refused += 1
                reason = "refused: this user has as many connections as it may have"
                send_last(connection, encode(ConsumerPacket(error=reason)))
                continue
            self._expect_hello(connection)
            # A process that connects again has sent its earlier hello before that.
            pid = self._waiting[connection].pid
            for each in [each for each, its in self._waiting.items() if its.pid == pid]:
                self._receive_hello(each)

    def _expect_hello(self, connection: socket.socket) -> None:
        until = clock_gettime(CLOCK_MONOTONIC) + HELLO_TIMEOUT
        self._waiting[connection] = _Waiting(until, credentials(connection)[0])
        self._loop.add_reader(connection, self._receive_hello, connection)

    def _reserve(self) -> None:
        """Reserve what a client needs. Raises OSError: it may not be free."""
        taken = self._budget.take(len(self._waiting))
        if not taken and (self._waiting or self._host.has_sources()):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _is_backing_off(self) -> bool:
        return clock_gettime(CLOCK_MONOTONIC) < self._accept_at

    def _back_off(self) -> None:
        """Let the queue wait until descriptors are free."""
        now = clock_gettime(CLOCK_MONOTONIC)
        self._accept_at = now + ACCEPT_RETRY
        self._loop.remove_reader(self._listener)
        self._loop.call_later(ACCEPT_RETRY, self._listen_again)
        if now >= self._announce_at:
            self._announce_at = now + ANNOUNCE_INTERVAL
            text = "the consumer is at its limit of open files: more processes wait"
            record = {"event": Event.NO_DESCRIPTOR, "message": text}
            self._host.add_event(HolderPacket(record=record))

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)
            self._accept()

    # ---- the hello ----------------------------------------------------------------

    def _receive_hello(self, connection: socket.socket) -> None:
        try:
            packet, fds, lost = packets.receive(
                connection, MAX_PACKET_BYTES, MAX_DESCRIPTORS
            )
        except BlockingIOError:
            return
        except OSError:
            packet, fds, lost = b"", [], False
        self._loop.remove_reader(connection)
        self._waiting.pop(connection, None)
        try:
            if lost:
                raise OSError("no descriptor is free for those of the hello; try again")
            self._handle_hello(connection, decode_hello(packet), fds)
        except Exception as error:  # noqa: BLE001 - nothing was changed by it
            if packet:
                self.refused += 1
                reason = printable(f"refused: {error}")
                send_packet(connection, encode(ConsumerPacket(error=reason)))
            for descriptor in fds:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            connection.close()
        else:
            self._host.wake()

    def _handle_hello(
        self, connection: socket.socket, hello: Hello, fds: list[int]
    ) -> None:
        is_guest = credentials(connection)[1] in self._guests.users
        if is_guest and not isinstance(hello, RecordsHello | AdoptHello):
            raise ValueError("users that LOGAGG_ALLOW_USERS names send records only")
        match hello, len(fds):
            case RecordsHello(), 3 | 4:
                self._handle_worker(connection, hello, fds, sender=connection)
            case StreamHello(), 1:
                check_pipe(fds[0], os.O_RDONLY)
                self._host.add_output(fds[0], hello)
                connection.close()
            case HoldHello(), 0 | 2:
                self._handle_holder(connection, hello, fds)
            case ViewerHello(), 1:
                check_pipe(fds[0], os.O_WRONLY)
                self._subscribers.add(fds[0], hello)
                connection.close()
            case ReloadHello(), 0:
                self._host.start_task(self._reload(connection, hello), "a reload")
            case AdoptHello(), 0:  # the same follows, with descriptors
                send_packet(connection, encode(ConsumerPacket(welcome=1)))
                self._expect_hello(connection)
            case AdoptHello(), 4 | 5:
                passed_on = socket.socket(fileno=os.dup(fds[0]))
                self._handle_worker(passed_on, hello.worker, fds[1:], sender=connection)
                os.close(fds[0])
                connection.close()
            case GiveWayHello(), 0:
                self._host.give_way(hello.successor)
                send_last(connection, encode(ConsumerPacket(welcome=1)))
            case StatusHello(), 0:
                send_last(connection, orjson.dumps(self._host.status()))
            case _:
                raise ValueError(f"{len(fds)} descriptors came with the hello")

    def _handle_worker(
        self,
        connection: socket.socket,
        hello: RecordsHello,
        fds: list[int],
        *,
        sender: socket.socket,
    ) -> None:
        peer = credentials(connection)[0]
        if not is_pid_of(hello.pid, peer):
            raise ValueError(f"pid {hello.pid} is not yours")
        check_pipe(fds[0], os.O_RDONLY)
        kept = SegmentReader.of_kept(fds[3]) if len(fds) == 4 else None
        worker = WorkerSource(connection, fds[0], hello, peer, self._identifier, kept)
        self._guests.add(worker, sender)
        self._streams.add(worker)
        self._host.add_worker(worker)
        self.seen += 1
        work = self._prepare(worker, fds)
        self._host.start_task(work, f"the attachment of process {hello.pid}")

    async def _prepare(self, worker: WorkerSource, fds: list[int]) -> None:
        """Read it once its sinks are open, and after JOIN_TIMEOUT or a failure too.

        Until then all others are held back, and what it logs must not wait for ever.
        """
        refused, urls = _refusals(worker.connection), worker.hello.sinks
        try:
            async with asyncio.timeout(JOIN_TIMEOUT):
                guest = worker in self._guests
                if not guest and await self._pass_on(worker, fds):
                    return
                await self._host.open_sinks(
                    refused, urls, fds[1:3], waits=True, guest=guest
                )
                worker.send(ConsumerPacket(welcome=1))
                await self._host.check_resumed(worker)
                await self._streams.take_over(worker)
        finally:
            if worker.pipe >= 0:  # else it was passed on
                self._loop.add_reader(worker.connection, self._receive_worker, worker)
                worker.start_reading()
            self._host.wake()

    async def _pass_on(self, worker: WorkerSource, fds: list[int]) -> bool:
        """Let the owner of its file serve a worker; False when there is none."""
        hello, sent = worker.hello, [worker.connection.fileno(), *fds]
        owner = await self._host.owner(hello.sinks)
        if not owner or not await asyncio.to_thread(hand_over, owner, hello, sent):
            return False
        self._streams.forget(worker)
        self._host.forget_worker(worker)
        for descriptor in fds[1:3]:
            os.close(descriptor)
        return True

    def _handle_holder(
        self, connection: socket.socket, hello: HoldHello, fds: list[int]
    ) -> None:
        self.seen += 1
        self.holders.add(connection)
        work = self._welcome(connection, hello, fds)
        self._host.start_task(work, "the attachment of a run")

    async def _welcome(
        self, connection: socket.socket, hello: HoldHello, fds: list[int]
    ) -> None:
        refused, urls = _refusals(connection), hello.sinks
        try:
            async with asyncio.timeout(JOIN_TIMEOUT):
                await self._host.open_sinks(refused, urls, fds, own=hello.own)
        finally:
            send_packet(connection, encode(ConsumerPacket(welcome=1)))

    async def _reload(self, connection: socket.socket, hello: ReloadHello) -> None:
        answer = ConsumerPacket(error="the reload has failed")
        urls = None if hello.sinks is UNSET else hello.sinks
        try:
            error = printable(await self._host.reload(urls))
            answer = (
                ConsumerPacket(error=error) if error else ConsumerPacket(reloaded=1)
            )
        finally:
            send_last(connection, encode(answer))

    # ---- connections that stay ----------------------------------------------------

    def _receive_worker(self, worker: WorkerSource) -> None:
        worker.receive()
        while worker.wanted:
            refused = _refusals(worker.connection)
            guest = worker in self._guests
            work = self._host.open_sinks(
                refused, worker.wanted.pop(0), [], waits=True, guest=guest
            )
            self._host.start_task(work, f"more sinks for process {worker.pid}")
        if worker.hung_up:
            self.disconnect(worker)
        self._host.wake()

    def disconnect(self, worker: WorkerSource) -> None:
        """Receive nothing more from a worker; its descriptors are for others."""
        self._accept_at = 0.0
        if worker.connection.fileno() >= 0:
            self._loop.remove_reader(worker.connection)


def _refusals(connection: socket.socket) -> Refused:
    """A function that sends a reason to a peer."""

    def send(reason: str) -> None:
        send_packet(connection, encode(ConsumerPacket(error=printable(reason))))

    return send
