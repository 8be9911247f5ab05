"""The consumer of a run: it is started, restarted, and given the workers' pipes.

Not one byte of log data passes here. The read ends of the workers' pipes are sent to
the consumer; a duplicate is kept while the worker lives, so the pipe and what is in it
survive the consumer's death and go to its successor. The listening socket is made here
and kept as well: workers that connect while there is no consumer wait in its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import orjson
from msgspec import UNSET

from logagg.core.event import Event
from logagg.errors import ConfigError, ConsumerGone, ExitStatus
from logagg.ipc import consumer_client, launcher
from logagg.ipc.connection import standard_streams
from logagg.ipc.paths import SPOOL_NAME, identity
from logagg.ipc.protocol import (
    ConsumerPacket,
    Hello,
    HolderPacket,
    HoldHello,
    StreamHello,
    decode,
    encode,
)
from logagg.ipc.runs.run_control import run_name
from logagg.platform import endpoints, packets
from logagg.platform.held_signals import signals_held
from logagg.platform.processes import process_handle
from logagg.platform.terminal_text import complain
from logagg.supervisor.process.worker_process import WorkerProcess

__all__ = ["ConsumerProcess"]

MOST_EVENTS = 10_000
EVENT_BYTES = 64 * 1024
"""A longer record's message is cut: a packet must fit into the socket's buffer."""
EVENT_CHARACTERS = 8 * 1024
QUICK_DEATHS = 5
RETRY = 0.2
START_TIMEOUT = 15.0


class _CapturedOutput:
    """A captured stream: the hello that hands it to a consumer, and a copy of its end."""

    def __init__(
        self, worker: WorkerProcess, stream: Literal["stdout", "stderr"], fd: int
    ) -> None:
        self.hello = StreamHello(worker.slot, worker.pid, stream, app=worker.app)
        self.worker = worker
        self.fd = fd

    @property
    def done(self) -> bool:
        """Whether the worker is dead and all it wrote has been read."""
        if self.worker.exit is None:
            return False
        waiting = fcntl.ioctl(self.fd, termios.FIONREAD, b"\0\0\0\0")
        return bool(struct.unpack("i", waiting)[0] == 0)


class ConsumerProcess:
    """One run's consumer. Used on the supervisor's loop only.

    Attributes:
        path: The address of the consumer.
        address: The variables with it, and with where to spool, for the workers.
        restarts: How often the consumer had to be started again.
    """

    def __init__(
        self,
        sinks: tuple[str, ...],
        failed: Callable[[str, ExitStatus], None],
        metrics: str = "",
    ) -> None:
        self.path = run_name() + ".sock"
        while os.path.lexists(self.path):  # another run's, of the same pid
            self.path = run_name() + ".sock"
        self.address = {"LOGAGG_SOCKET": self.path, SPOOL_NAME: identity(sinks)}
        self.restarts = 0
        self._sinks = sinks
        self._failed = failed
        self._streams: list[_CapturedOutput] = []
        self._events: deque[bytes] = deque(maxlen=MOST_EVENTS)
        self._hold: socket.socket | None = None
        self._closing = False
        self._refused: list[str] = []
        self._welcome = asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=QUICK_DEATHS)
        self._loop = asyncio.get_running_loop()
        self._metrics = endpoints.listen(metrics, "metrics") if metrics else None
        self._listener = launcher.listen(self.path)
        try:
            self._offset = launcher.choose_offset(self.path, sinks)
            self._start(restarted=False)
        except OSError as error:
            raise ConsumerGone(f"the consumer cannot be started: {error}") from None

    @property
    def pid(self) -> int:
        """The consumer's process id."""
        return self._process.pid

    def _start(self, *, restarted: bool) -> None:
        """Start a consumer.

        Raises:
            OSError: No descriptor, process or memory is free.
        """
        config: dict[str, Any] = {
            "socket": self.path,
            "restarted": restarted,
            "offset": self._offset,
            "spool": self.address[SPOOL_NAME],
            # Not as an argument, which everybody can read: a URL may hold a password.
            "more_on_stdin": True,
        }
        more = {
            # A restarted one opens them before it listens to any worker, or one that
            # comes first would lend it its own, captured, stderr. At the first start
            # there are no workers yet, and refusals come as answers to the hello.
            "sinks": list(self._sinks) if restarted else [],
        }
        passed = [self._listener.fileno()]
        if self._metrics is not None:
            config["metrics_fd"] = self._metrics.fileno()
            passed.append(self._metrics.fileno())
        argument = launcher.consumer_argument(self._listener.fileno(), config)
        with signals_held():
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", launcher._BOOT, argument],
                pass_fds=passed,
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(orjson.dumps(more))
        try:
            self._handle = process_handle(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        self._process = process
        self._ended = asyncio.Event()
        self._handle.watch(self._loop, self._reap)
        self._connect()

    def _connect(self) -> None:
        """Connect to the consumer to hold it; hand it all streams and events."""
        hello = HoldHello(sinks=list(self._sinks), own=True)
        with standard_streams() as streams:
            hold = self._send_hello(hello, streams)
        if hold is None:
            self._loop.call_later(RETRY, self._reconnect)
            return
        self._hold = hold
        self._loop.add_reader(hold.fileno(), self._receive)
        for kept in self._streams:
            self._hand_off(kept)
        self._send_events()

    def _reconnect(self) -> None:
        if self._hold is None and not self._closing:
            self._connect()

    def _receive(self) -> None:
        """Read the consumer's answers: a sink is refused, all sinks are open.

        They must be read: unread data at this end would, when it closes, cost the
        messages that the consumer has not read yet (unix(7), ECONNRESET).
        """
        assert self._hold is not None
        try:
            packet, _, _ = packets.receive(self._hold, 65536)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._loop.remove_reader(self._hold.fileno())
            return
        message = decode(ConsumerPacket, packet)
        if message.error is not UNSET:
            self._refused.append(message.error)
        if message.welcome is not UNSET:
            self._welcome.set()

    async def opened(self) -> None:
        """Wait until the sinks are open.

        Raises:
            ConfigError: The consumer refused one of them.
            ConsumerGone: It did not come up.
        """
        waits = [
            asyncio.ensure_future(self._welcome.wait()),
            asyncio.ensure_future(self._ended.wait()),
        ]
        await asyncio.wait(waits, timeout=START_TIMEOUT, return_when="FIRST_COMPLETED")
        for wait in waits:
            wait.cancel()
        if self._refused:
            raise ConfigError("; ".join(self._refused))
        if not self._welcome.is_set():
            raise ConsumerGone("the consumer did not start; see the lines above")

    def _disconnect(self) -> None:
        if self._hold is not None:
            self._loop.remove_reader(self._hold.fileno())
            self._hold.close()
            self._hold = None

    def _send_hello(
        self, hello: Hello, fds: list[int] | None = None
    ) -> socket.socket | None:
        try:
            connection = launcher.connect(self.path)
        except OSError:
            return None
        try:
            packets.send(connection, encode(hello), fds or ())
        except OSError:
            connection.close()
            return None
        return connection

    # ---- streams ------------------------------------------------------------------

    def adopt(self, worker: WorkerProcess) -> None:
        """Hand a new worker's stdout and stderr over."""
        self._sweep()
        pipes = worker.pipes
        for kept in (
            _CapturedOutput(worker, "stdout", pipes.stdout),
            _CapturedOutput(worker, "stderr", pipes.stderr),
        ):
            self._streams.append(kept)
            self._hand_off(kept)

    def _hand_off(self, kept: _CapturedOutput) -> None:
        """Hand the consumer a stream to read; a second time does no harm.

        Tried again while no descriptor is free. Without a consumer now, `_connect` hands
        the stream to the next one.
        """
        if self._hold is None or kept not in self._streams:
            return
        connection = self._send_hello(kept.hello, [kept.fd])
        if connection is None:
            self._loop.call_later(RETRY, self._hand_off, kept)
        else:
            connection.close()

    def _sweep(self) -> None:
        """Close the pipes of dead workers that have been read to the last byte."""
        for kept in [kept for kept in self._streams if kept.done]:
            self._streams.remove(kept)
            os.close(kept.fd)

    # ---- events -------------------------------------------------------------------

    def send_event(self, record: dict[str, Any]) -> None:
        """Send a record of the supervisor's own; it waits while there is no consumer."""
        after = record.pop("after_pid", UNSET)
        data = encode(HolderPacket(record=record, after_pid=after))
        if len(data) > EVENT_BYTES:
            record["message"] = str(record.get("message"))[:EVENT_CHARACTERS] + "…"
            data = encode(HolderPacket(record=record, after_pid=after))
        self._events.append(data)
        self._send_events()

    def _send_events(self) -> None:
        while self._events and self._hold is not None:
            try:
                packets.send(self._hold, self._events[0])
            except BlockingIOError:
                self._loop.call_later(0.05, self._send_events)
                return
            except OSError:
                return  # it is dead: `_reap` follows
            self._events.popleft()

    async def reconfigure(self, sinks: Sequence[str]) -> None:
        """Have the consumer write to these sinks from now on, and no others.

        Raises:
            ConfigError: It refused, and everything is as it was.
            ConsumerGone: It does not answer.
        """
        await asyncio.to_thread(consumer_client.reconfigure, self.path, sinks)
        self._sinks = tuple(sinks)

    def reopen(self) -> None:
        """Have the sinks reopen their targets (after a log rotation from outside)."""
        if not (self._closing or self._ended.is_set()):
            with contextlib.suppress(ProcessLookupError):
                self._handle.send(signal.SIGUSR1)

    # ---- its end ------------------------------------------------------------------

    def _reap(self) -> None:
        status = self._process.poll()
        if status is None:
            return
        self._handle.close()
        self._ended.set()
        self._disconnect()
        if self._closing:
            return
        if status == launcher.SINK_FAILED:
            self._give_up("a required sink failed for good", ExitStatus.FAILED)
            return
        now = self._loop.time()
        self._deaths.append(now)
        if len(self._deaths) == QUICK_DEATHS and now - self._deaths[0] < 10.0:
            self._give_up(
                f"the consumer ended {QUICK_DEATHS} times within 10 s, the last time "
                f"with status {status}",
                ExitStatus.NO_CONSUMER,
            )
            return
        self._restart(status)

    def _give_up(self, reason: str, status: ExitStatus) -> None:
        """Start none any more; workers spool what none has written."""
        self._listener.close()  # else they would wait there for an answer
        self._failed(reason, status)

    def _restart(self, status: int, *, reported: bool = False) -> None:
        """Start the next consumer, as soon as the system has room for one."""
        if self._closing:
            return
        try:
            if not os.path.exists(self.path):
                self._listener.close()
                self._listener = launcher.listen(self.path)
            self._start(restarted=True)
        except (OSError, ConfigError) as error:  # workers spool meanwhile
            if not reported:
                text = "the consumer cannot be started again; further tries follow"
                complain(f"logagg: {text}: {error}")
            again = functools.partial(self._restart, status, reported=True)
            self._loop.call_later(RETRY, again)
            return
        self.restarts += 1
        self.send_event(
            {
                "level": "error",
                "event": Event.CONSUMER_RESTART,
                "message": f"the consumer ended with status {status} and was restarted",
            }
        )

    async def close(self, timeout: float) -> bool:  # noqa: ASYNC109  bounds two waits
        """Let the consumer write everything and end.

        Returns:
            Whether it did so within `timeout` seconds. It is not killed: it may still
            be busy delivering.

        Raises:
            ConsumerGone: Some events could not be sent to any consumer.
        """
        self._send_events()
        deadline = self._loop.time() + timeout
        while self._events and not self._ended.is_set():
            if self._loop.time() > deadline:
                break
            await asyncio.sleep(0.01)
            self._send_events()
        self._closing = True
        if self._hold is not None:
            # The connection stays open until the consumer ends, see `_receive`.
            try:
                packets.send(self._hold, encode(HolderPacket(leave=1)))
            except OSError:
                self._disconnect()
        try:
            await asyncio.wait_for(
                self._ended.wait(), max(deadline - self._loop.time(), 0.1)
            )
        except TimeoutError:
            self._handle.close()
            self._process.returncode = 0  # left to itself, on purpose
            complain(
                f"logagg: after {timeout:.0f} s the consumer still waits: a sink does "
                "not answer, or a process that a worker started keeps its stdout or "
                "stderr open. It goes on until all is written."
            )
            self._disconnect()
            done = False
        else:
            done = self._process.returncode == 0
        for kept in self._streams:
            os.close(kept.fd)
        self._streams.clear()
        if self._metrics is not None:
            self._metrics.close()
        self._listener.close()
        if self._process.returncode:  # one that was killed has no successor
            await asyncio.to_thread(launcher.remove_dead, self.path)
        if self._events:
            raise ConsumerGone(f"{len(self._events)} events could not be delivered")
        return done
