"""Who comes to the consumer, and what each of them wants.

The first packet of a connection, the hello, says what it is:

    records   a worker: brings its pipe, its stdout and stderr (for sinks that write
              there), and in a file what the consumer before us may not have written
    stream    a captured stdout or stderr of a worker of `logagg run`
    hold      someone who keeps us alive until it leaves, may name sinks, and may send
              records of its own (`event`): `logagg.start`, the supervisor
    viewer    wants the stream, through the pipe that it brings
    status    wants our counters, in one packet
    reload    wants us to read our configuration again; is told how that went

Only processes of the same user (or root) are listened to, by what the kernel says of
them. A packet is a whole message, so a slow or hostile peer cannot leave half of one;
what is not understood is counted and hung up on, its descriptors closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Coroutine
from time import CLOCK_MONOTONIC, clock_gettime
from typing import TYPE_CHECKING, Any

import orjson

from logagg import address, launch
from logagg.captured import Stream
from logagg.channel import Control
from logagg.errors import ConfigError, LogaggError
from logagg.intake import Worker, number
from logagg.viewers import Viewer

if TYPE_CHECKING:
    from logagg.consumer import Consumer

__all__ = ["Reception"]

MAX_PACKET_BYTES = 1 << 18
MAX_WAITING = 4096
HELLO_TIMEOUT = 10.0


class Reception:
    """The listening socket and all connections that are not workers.

    Attributes:
        holds: How many keep us alive.
        refused: How many were hung up on.
        seen: How many workers and holders ever came.
    """

    def __init__(self, consumer: Consumer, listener: socket.socket) -> None:
        self.holds = 0
        self.refused = 0
        self.seen = 0
        self.viewers: list[Viewer] = []
        self._consumer = consumer
        self._listener = listener
        self._waiting: dict[socket.socket, float] = {}  # until when each may be silent
        self._holders: set[socket.socket] = set()
        self._look_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Begin to listen; who waits already is served at once."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._accept()

    def close_door(self, *, anyway: bool) -> bool:
        """Take the socket away; False when someone came in the last moment.

        With the start-up lock held nobody else can make a new socket meanwhile, and a
        shut socket takes no new connection: whoever is in its queue is served, on a new
        socket, unless `anyway`.
        """
        path = self._consumer.path
        try:
            with launch.election(path, 1.0):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                self._loop.remove_reader(self._listener)
                self._listener.shutdown(socket.SHUT_RD)
                self._accept()
                self._listener.close()
                if (self._waiting or self._consumer.sources) and not anyway:
                    self._listener = launch.listen(path)
                    self._listener.setblocking(False)
                    self._loop.add_reader(self._listener, self._accept)
                    return False
                for suffix in (".err", ".lock"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path + suffix)
        except LogaggError:
            return anyway
        return True

    def look(self) -> None:
        """Let in whoever waits at the door. Called in every cycle, behind the reading.

        A worker's connection is older than what it writes. So when a line was read that
        another worker's line caused, that worker is known by the time of the release.
        """
        self._accept()
        for connection in list(self._waiting):
            self._hear_hello(connection)
        if self._waiting and clock_gettime(CLOCK_MONOTONIC) > self._look_at:
            now = clock_gettime(CLOCK_MONOTONIC)
            self._look_at = now + 1.0
            for connection in [each for each, at in self._waiting.items() if at < now]:
                self._loop.remove_reader(connection)
                del self._waiting[connection]
                connection.close()
                self.refused += 1

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    # Whoever waits goes on waiting; others must hang up first.
                    self._loop.remove_reader(self._listener)
                    self._loop.call_later(
                        0.5, self._loop.add_reader, self._listener, self._accept
                    )
                return
            connection.setblocking(False)
            _, uid, _ = address.peer(connection)
            if uid not in (os.getuid(), 0) or len(self._waiting) > MAX_WAITING:
                self.refused += 1
                connection.close()
                continue
            self._waiting[connection] = clock_gettime(CLOCK_MONOTONIC) + HELLO_TIMEOUT
            self._loop.add_reader(connection, self._hear_hello, connection)
            self._hear_hello(connection)

    def _hear_hello(self, connection: socket.socket) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(connection, MAX_PACKET_BYTES, 8)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        self._loop.remove_reader(connection)
        self._waiting.pop(connection, None)
        given = list(fds)
        try:
            hello = orjson.loads(packet) if packet else None
            if not isinstance(hello, dict) or not self._greet(connection, hello, fds):
                raise ValueError("not a hello")
        except (ValueError, KeyError, TypeError, OSError) as error:
            if packet:
                self.refused += 1
                Control(connection).tell({"error": f"refused: {error}"})
            for descriptor in given:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            connection.close()

    def _greet(
        self, connection: socket.socket, hello: dict[str, Any], fds: list[int]
    ) -> bool:
        kind = hello.get("kind")
        if kind == "records" and len(fds) in (3, 4):
            self._greet_worker(connection, hello, fds)
        elif kind == "stream" and len(fds) == 1:
            self._consumer.register(Stream(fds[0], hello))
            connection.close()
        elif kind == "hold" and len(fds) in (0, 2):
            self._greet_holder(connection, hello, fds)
        elif kind == "viewer" and len(fds) == 1:
            self._greet_viewer(hello, fds[0])
            connection.close()
        elif kind == "reload" and not fds:
            urls = _urls(hello) if "sinks" in hello else None
            self._spawn(self._reload(Control(connection), connection, urls))
        elif kind == "status" and not fds:
            Control(connection).tell(self._consumer.status())
            connection.close()
        else:
            return False
        self._consumer.wake()
        return True

    def _greet_worker(
        self, connection: socket.socket, hello: dict[str, Any], fds: list[int]
    ) -> None:
        # All that may be wrong with a hello is found before anything is changed by it.
        peer, _, _ = address.peer(connection)
        urls = _urls(hello)
        if not address.is_pid_of(number(hello["pid"]), peer):
            raise ValueError(f"pid {hello['pid']} is not yours")
        folders = address.spool_dirs(self._consumer.identifier)
        worker = Worker(connection, fds[0], hello, peer, folders)
        if len(fds) == 4:
            worker.add_kept(fds[3])
        try:
            for each in hello.get("segments", []):
                worker.add_segment(each)
            worker.sequence.torn.update(map(number, hello.get("torn") or []))
        except (ValueError, KeyError, TypeError):
            for segment in worker.segments:
                if segment.path:  # what was passed to us is closed with all the rest
                    segment.close()
            raise
        self._consumer.register(worker)
        self._loop.add_reader(connection, self._hear_worker, worker)
        self.seen += 1
        self._spawn(self._open_for(worker, urls, fds[1:3]))

    def _greet_viewer(self, hello: dict[str, Any], pipe: int) -> None:
        try:
            viewer = Viewer(pipe, hello)
        except ConfigError as error:
            with contextlib.suppress(OSError):
                os.write(pipe, orjson.dumps({"error": str(error)}) + b"\n")
            raise
        viewer.greet(self._consumer.head(), self._consumer.ring, hello)
        self.viewers.append(viewer)

    def _greet_holder(
        self, connection: socket.socket, hello: dict[str, Any], fds: list[int]
    ) -> None:
        urls = _urls(hello)
        self.holds += 1
        self.seen += 1
        self._holders.add(connection)
        self._loop.add_reader(connection, self._hear_holder, connection)
        own = hello.get("own") is True
        self._spawn(
            self._consumer.targets.want(Control(connection).tell, urls, fds, own=own)
        )

    async def _reload(
        self, control: Control, connection: socket.socket, urls: list[str] | None
    ) -> None:
        if urls is not None:
            error = await self._consumer.reconfigure(urls)
        else:
            error = await self._consumer.reload()
        control.tell({"error": error} if error else {"reloaded": 1})
        connection.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_for(self, worker: Worker, urls: list[str], fds: list[int]) -> None:
        await self._consumer.targets.want(worker.tell, urls, fds)
        await self._consumer.recall(worker)
        worker.ready = True
        self._consumer.wake()

    # ---- those who stay -----------------------------------------------------------

    def _hear_worker(self, worker: Worker) -> None:
        worker.hear()
        while worker.asked:
            self._spawn(
                self._consumer.targets.want(worker.tell, worker.asked.pop(0), [])
            )
        if worker.heard_end:
            self._loop.remove_reader(worker.connection)
        self._consumer.wake()

    def hang_up(self, worker: Worker) -> None:
        """Listen to a worker no more."""
        if worker.connection.fileno() >= 0:
            self._loop.remove_reader(worker.connection)

    def _hear_holder(self, connection: socket.socket) -> None:
        try:
            packet = connection.recv(MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        message: Any = None
        with contextlib.suppress(orjson.JSONDecodeError):
            message = orjson.loads(packet) if packet else None
        if isinstance(message, dict) and "event" in message:
            self._consumer.foreign_event(message)
            return
        if not packet or not isinstance(message, dict):
            self._loop.remove_reader(connection)
            connection.close()
            self._holders.discard(connection)
            self.holds -= 1
        elif "leave" in message:  # it waits for our end, which the kernel tells it
            self._loop.remove_reader(connection)
            self.holds -= 1
        self._consumer.wake()

    def serve_viewers(self) -> bool:
        """Write to the viewers what their pipes take; True when something is left."""
        left = False
        for viewer in list(self.viewers):
            left |= viewer.push()
            if viewer.gone:
                self.viewers.remove(viewer)
                viewer.close()
        return left


def _urls(hello: dict[str, Any]) -> list[str]:
    """The sinks that a hello names.

    Raises:
        ValueError: They are no list.
    """
    urls = hello.get("sinks", [])
    if not isinstance(urls, list):
        raise ValueError("sinks must be a list of URLs")
    return [str(url) for url in urls]
