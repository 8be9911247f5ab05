"""The pipe and the control connection between one process and one consumer.

The process holds both ends of the pipe, so what is in it survives the consumer's death;
at the next attachment the same pipe is handed over again. Nothing here decides what
happens to a line: see `logagg.client.line_delivery`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from logagg.client.delivery_state import Overflow
from logagg.client.resend_buffer import ResendBuffer
from logagg.errors import ClosedError, LogaggError
from logagg.ipc import client_messages, failpoints, launcher
from logagg.ipc.clock import Offsets, read_offset
from logagg.ipc.connection import PacketConnection, Pipe, standard_streams
from logagg.ipc.descriptors import no_fork
from logagg.ipc.paths import first_file, runtime_dir, spool_name
from logagg.ipc.users import ALLOW_USERS, read_trusted

if TYPE_CHECKING:
    import socket

__all__ = ["Attachment", "Destination", "worker_name"]

ATTACH_TIMEOUT = 0.5
ATTACH_TRIES = 3


class Destination:
    """A consumer's address and what this process wants there.

    Attributes:
        path: The consumer's socket; another one once this process is another user.
        identifier: The name of the spool's directory.
        elect: Whether to start a consumer where none listens.
        sinks: The sink URLs to request.
        overflow: What happens to a line when the pipe is full.
    """

    __slots__ = ("_uid", "elect", "identifier", "overflow", "path", "sinks")

    def __init__(self, path: str, sinks: list[str], *, elect: bool) -> None:
        self.path = path
        self.identifier = spool_name(path)  # now: the directory may be removed
        self.elect = elect
        self.sinks = list(sinks)
        self.overflow = Overflow.SPOOL
        self._uid = os.geteuid()

    def connect(self, known_offset: int = 0) -> tuple[socket.socket, str]:
        """Connect to the consumer that owns the file, or to the one of this address.

        A server makes its handler as root, and then drops its privileges. Root's
        consumer is the right one if it lets this user in; else one is started as the
        user that this process is now.

        Args:
            known_offset: The offset of the clock by which this process stamps; 0: none.

        Returns:
            The connection, and the path of its socket.

        Raises:
            OSError, ConfigError: There is no consumer and none can be started.
        """
        if not self.elect:
            return launcher.connect(self.path), self.path
        found = launcher.connect_to_owner(self.sinks)
        if found is not None:
            return found
        if self._uid != os.geteuid():
            try:
                return launcher.connect(self.path, self._uid), self.path
            except OSError as error:
                self._check_target(error)
        if self._uid != os.geteuid():
            self.path = os.path.join(runtime_dir(), os.path.basename(self.path))
        connection = launcher.ensure(
            self.path, ATTACH_TIMEOUT, self.sinks, known_offset
        )
        return connection, self.path

    def _check_target(self, error: OSError) -> None:
        """Refuse to start a consumer that could not write the file of this log."""
        path = first_file(self.sinks)
        place = path if os.path.exists(path) else os.path.dirname(path)
        if path and not os.access(place, os.W_OK):
            raise PermissionError(
                f"uid {os.geteuid()} cannot write {place}, and the consumer of uid "
                f"{self._uid} is out of reach ({error.strerror}): for that one, set "
                f"{ALLOW_USERS}={os.geteuid()} where this program starts"
            )


class Attachment:
    """The connection to the consumer, with the pipe that it reads.

    A connection that an exception leaves unfinished is closed: the consumer may have its
    hello all the same, and goes on when the next one comes (see `DeliveryState.BROKEN`).

    Attributes:
        pipe: Made by the first `attach`, closed by `release`.
    """

    __slots__ = ("_connection", "_destination", "pipe")

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._connection: PacketConnection | None = None
        self.pipe: Pipe | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    @property
    def is_own(self) -> bool:
        """Whether the application has closed neither the pipe nor the connection."""
        parts = (self.pipe, self._connection)
        return all(part is None or part.is_own for part in parts)

    @property
    def descriptors(self) -> list[int]:
        """The numbers of those that are open."""
        found = [self.pipe.read, self.pipe.write] if self.pipe is not None else []
        if self._connection is not None:
            found.append(self._connection.number)
        return [number for number in found if number >= 0]

    def new_hello(self, worker: str, stream: str) -> client_messages.Hello:
        """A hello with what does not depend on the lines.

        Args:
            worker: The name in the lines.
            stream: The identifier of their numbering.
        """
        hello = client_messages.Hello()
        process = sys.modules.get("multiprocessing.process")
        hello.process = process.current_process().name if process else "MainProcess"
        hello.pid = os.getpid()
        hello.parent = os.getppid()
        hello.worker = worker
        hello.stream = stream
        hello.quiet = not logging.getLogger().isEnabledFor(logging.DEBUG)
        hello.supervised = worker == _slot_name()
        hello.sinks = self._destination.sinks
        hello.spool = self._destination.identifier
        hello.elects = self._destination.elect
        return hello

    def attach(
        self, hello: client_messages.Hello, resend: ResendBuffer
    ) -> Offsets | None:
        """Find the consumer, or start it, and hand over the pipe and `resend`.

        Blocks for some milliseconds when it starts one, for ATTACH_TIMEOUT when another
        process is about to. A consumer that is ending may close the new connection:
        the next of ATTACH_TRIES finds or starts another.

        Returns:
            The clock's offset, None when it is not known.

        Raises:
            OSError, ConfigError: There is no consumer, or it closes every connection.
        """
        if self.pipe is None:
            self.pipe = Pipe()
        known = hello.clocks[-1][1] if hello.clocks else 0
        for _ in range(ATTACH_TRIES):
            with no_fork:
                fresh, path = self._destination.connect(known)
                connection = PacketConnection(fresh)
            try:
                offsets = read_offset(path)
                if offsets is None:
                    hello.keep_clock()
                if failpoints.ACTIVE:
                    failpoints.hit("hello")
                if hello.pid != os.getpid():
                    raise ClosedError("a fork came in the middle of a call")
                if _send_hello(connection, hello, self.pipe, resend):
                    self._connection = connection
                    return offsets
            except BaseException:
                connection.close()
                raise
            connection.close()
        raise ConnectionError(f"the consumer ended: {self.last_error()}")

    def send(self, packet: bytes) -> bool:
        """Send a packet; False when the consumer is gone or its queue is full."""
        return self._connection is not None and self._connection.send(packet)

    def receive(self) -> tuple[list[client_messages.ConsumerMessage], bool]:
        """Return all messages that have arrived, and whether the consumer is there."""
        if self._connection is None:
            return [], False
        packets, connected = self._connection.receive()
        return [client_messages.decode(packet) for packet in packets], connected

    def wait(self, timeout: float) -> None:
        """Wait until a message arrives, at most `timeout` seconds."""
        connection = self._connection  # another thread may disconnect meanwhile
        if connection is not None:
            connection.wait(timeout)
        else:
            time.sleep(timeout)

    def last_error(self) -> str:
        """The last line that a consumer wrote to its own stderr."""
        text = ""
        with suppress(OSError, LogaggError):
            data = read_trusted(self._destination.path + ".err", 2000)
            text = data.decode("utf-8", "replace").strip()
        return text.rpartition("\n")[2] or "it wrote no error"

    def disconnect(self) -> None:
        """Close the connection and keep the pipe. May be called twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def release(self) -> None:
        """Close the connection and the pipe. May be called twice."""
        self.disconnect()
        pipe = self.give_up_pipe()
        if pipe is not None:
            pipe.close()

    def give_up_pipe(self) -> Pipe | None:
        """Have the next `attach` make a pipe; return the old one, still open."""
        pipe, self.pipe = self.pipe, None
        return pipe


def _send_hello(
    connection: PacketConnection,
    hello: client_messages.Hello,
    pipe: Pipe,
    resend: ResendBuffer,
) -> bool:
    with standard_streams(captured=hello.supervised) as streams:
        descriptors = [pipe.read, *streams]
        lines = resend.file()
        if lines is None:
            return connection.send(hello.encode(), descriptors)
        try:
            return connection.send(hello.encode(), [*descriptors, lines])
        finally:
            os.close(lines)


def worker_name(pid: int) -> str:
    """The slot that the supervisor gave, or the pid; `SLOT.PID` in a slot's children.

    In a project of several programs the slot has the program's name before it: `web.1`.
    """
    slot = _slot_name()
    if not slot:
        return str(pid)
    owner = os.environ.get("LOGAGG_SLOT_PID", "")
    return slot if owner in ("", str(pid)) else f"{slot}.{pid}"


def _slot_name() -> str:
    """The name that the supervisor gave to this process's slot, or ""."""
    slot = os.environ.get("LOGAGG_WORKER") or os.environ.get("LOGAGG_SLOT", "")
    plain = slot.replace(".", "").replace("-", "").replace("_", "")
    return slot if plain.isalnum() and plain.isascii() and len(slot) < 50 else ""
