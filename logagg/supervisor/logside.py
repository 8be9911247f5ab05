"""The supervisor's dealings with the consumer: start it, keep it, hand pipes over.

Not one byte of log data passes here. The read ends of the workers' pipes are sent to
the consumer; a duplicate is kept while the worker lives, so the pipe and what is in it
survive the consumer's death and go to its successor. The listening socket is made here
and kept as well: workers that connect while there is no consumer wait in its queue.
"""

from __future__ import annotations

import asyncio
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
from typing import Any

import orjson

from logagg import launch
from logagg.address import runtime_dir
from logagg.channel import standard_streams
from logagg.clock import measure_offset
from logagg.errors import ConfigError, ConsumerGone
from logagg.metrics import listen
from logagg.supervisor.member import Member

__all__ = ["LogSide"]

MOST_EVENTS = 10_000
QUICK_DEATHS = 5
RETRY = 0.2
START_TIMEOUT = 15.0


class _Kept:
    """A captured stream: what the consumer is told of it, and our copy of its end."""

    def __init__(self, member: Member, stream: str, fd: int) -> None:
        self.hello = {
            "hello": 1,
            "kind": "stream",
            "slot": member.slot,
            "pid": member.pid,
            "stream": stream,
        }
        self.member = member
        self.fd = fd

    @property
    def done(self) -> bool:
        """Whether the worker is dead and all it wrote has been read."""
        if self.member.state != "dead":
            return False
        waiting = fcntl.ioctl(self.fd, termios.FIONREAD, b"\0\0\0\0")
        return bool(struct.unpack("i", waiting)[0] == 0)


class LogSide:
    """One run's consumer. Used on the supervisor's loop only.

    Attributes:
        path: The address for the workers (`LOGAGG_SOCKET`).
        restarts: How often the consumer had to be started again.
    """

    def __init__(
        self,
        sinks: tuple[str, ...],
        failed: Callable[[str], None],
        metrics: str = "",
    ) -> None:
        self.path = os.path.join(runtime_dir(), f"run-{os.getpid()}.sock")
        self.restarts = 0
        self._sinks = sinks
        self._failed = failed
        self._offset = measure_offset()
        self._streams: list[_Kept] = []
        self._events: deque[bytes] = deque(maxlen=MOST_EVENTS)
        self._hold: socket.socket | None = None
        self._closing = False
        self._refused: list[str] = []
        self._welcome = asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=QUICK_DEATHS)
        self._loop = asyncio.get_running_loop()
        self._metrics = listen(metrics) if metrics else None
        self._listener = launch.listen(self.path)
        try:
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
            # A restarted one opens them before it listens to any worker, or one that
            # comes first would lend it its own, captured, stderr. At the first start
            # there are no workers yet, and our hello gets refusals as an answer.
            "sinks": list(self._sinks) if restarted else [],
        }
        passed = [self._listener.fileno()]
        if self._metrics is not None:
            config["metrics_fd"] = self._metrics.fileno()
            passed.append(self._metrics.fileno())
        argument = launch.consumer_argument(self._listener, config)
        with launch.signals_kept():
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", launch._BOOT, argument],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        self._process = process
        self._ended = asyncio.Event()
        self._loop.add_reader(self._pidfd, self._reap)
        self._connect()

    def _connect(self) -> None:
        """Tell the consumer that we are here, and hand over what it must read."""
        hello: dict[str, Any] = {"hello": 1, "kind": "hold", "own": True}
        hello["sinks"] = list(self._sinks)
        hold = self._say(hello, standard_streams())
        if hold is None:
            self._loop.call_later(RETRY, self._reconnect)
            return
        self._hold = hold
        self._loop.add_reader(hold.fileno(), self._hear)
        for kept in self._streams:
            self._hand_over(kept)
        self._send_events()

    def _reconnect(self) -> None:
        if self._hold is None and not self._closing:
            self._connect()

    def _hear(self) -> None:
        """Read what the consumer says: that a sink is refused, that all is open.

        What it says must be read: an unread word at our end would, when we close,
        cost the words of ours that it has not read yet (unix(7), ECONNRESET).
        """
        assert self._hold is not None
        try:
            packet = self._hold.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._loop.remove_reader(self._hold.fileno())
            return
        message = orjson.loads(packet)
        if "error" in message:
            self._refused.append(str(message["error"]))
        if "welcome" in message:
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

    def _let_go(self) -> None:
        if self._hold is not None:
            self._loop.remove_reader(self._hold.fileno())
            self._hold.close()
            self._hold = None

    def _say(
        self, hello: dict[str, Any], fds: list[int] | None = None
    ) -> socket.socket | None:
        try:
            connection = launch.connect(self.path)
        except OSError:
            return None
        try:
            socket.send_fds(connection, [orjson.dumps(hello)], fds or [])
        except OSError:
            connection.close()
            return None
        return connection

    # ---- streams ------------------------------------------------------------------

    def adopt(self, member: Member) -> None:
        """Hand a new worker's stdout and stderr over."""
        self._sweep()
        pipes = member.pipes
        for stream, fd in (("stdout", pipes.stdout), ("stderr", pipes.stderr)):
            kept = _Kept(member, stream, fd)
            self._streams.append(kept)
            self._hand_over(kept)

    def _hand_over(self, kept: _Kept) -> None:
        """Give the consumer a stream to read; it takes no harm from being told twice.

        When no descriptor is free for a moment, it is tried again. Who has no consumer
        now is handed over to the next one by `_connect`.
        """
        if self._hold is None or kept not in self._streams:
            return
        connection = self._say(kept.hello, [kept.fd])
        if connection is None:
            self._loop.call_later(RETRY, self._hand_over, kept)
        else:
            connection.close()

    def _sweep(self) -> None:
        """Let go of the ends of dead workers that have been read to the last byte."""
        for kept in [kept for kept in self._streams if kept.done]:
            self._streams.remove(kept)
            os.close(kept.fd)

    # ---- events -------------------------------------------------------------------

    def event(self, record: dict[str, Any]) -> None:
        """Put a record of ours into the stream; it waits while there is no consumer."""
        self._events.append(orjson.dumps(record))
        self._send_events()

    def _send_events(self) -> None:
        while self._events and self._hold is not None:
            try:
                self._hold.send(self._events[0])
            except BlockingIOError:
                self._loop.call_later(0.05, self._send_events)
                return
            except OSError:
                return  # it is dead; its end is noticed by the pidfd
            self._events.popleft()

    async def reconfigure(self, sinks: Sequence[str]) -> None:
        """Have the consumer write to these sinks from now on, and no others.

        Raises:
            ConfigError: It refused, and everything is as it was.
            ConsumerGone: It does not answer.
        """
        from logagg.service import RELOAD_TIMEOUT, ask

        more = {"sinks": list(sinks)}
        answer = await asyncio.to_thread(ask, self.path, "reload", RELOAD_TIMEOUT, more)
        if "error" in answer:
            raise ConfigError(f"not reloaded: {answer['error']}")
        self._sinks = tuple(sinks)

    def reopen(self) -> None:
        """Have the sinks open their targets anew (after an outside log rotation)."""
        try:
            os.kill(self._process.pid, signal.SIGUSR1)
        except ProcessLookupError:
            pass

    # ---- its end ------------------------------------------------------------------

    def _reap(self) -> None:
        status = self._process.poll()
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()
        self._let_go()
        if self._closing:
            return
        now = self._loop.time()
        self._deaths.append(now)
        if len(self._deaths) == QUICK_DEATHS and now - self._deaths[0] < 10.0:
            self._failed(
                f"the consumer ended {QUICK_DEATHS} times within 10 s, the last time "
                f"with status {status}"
            )
            return
        self._restart(status)

    def _restart(self, status: int, *, told: bool = False) -> None:
        """Start the next consumer, as soon as the system has room for one."""
        if self._closing:
            return
        try:
            if not os.path.exists(self.path):
                self._listener.close()
                self._listener = launch.listen(self.path)
            self._start(restarted=True)
        except (OSError, ConfigError) as error:  # workers park meanwhile
            if not told:
                text = "the consumer cannot be started again, it is tried on"
                print(f"logagg: {text}: {error}", file=sys.stderr)
            again = functools.partial(self._restart, status, told=True)
            self._loop.call_later(RETRY, again)
            return
        self.restarts += 1
        self.event(
            {
                "level": "error",
                "event": "consumer_restart",
                "message": f"the consumer ended with status {status} and was restarted",
            }
        )

    async def close(self, timeout: float) -> bool:  # noqa: ASYNC109  bounds two waits
        """Let the consumer write everything and end.

        Returns:
            Whether it did so within `timeout` seconds. It is not killed: it may still
            be busy delivering.

        Raises:
            ConsumerGone: Events of ours could not be given to any consumer.
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
            # The connection stays open until the consumer ends, see `_hear`.
            try:
                self._hold.send(b'{"leave":1}')
            except OSError:
                self._let_go()
        try:
            await asyncio.wait_for(
                self._ended.wait(), max(deadline - self._loop.time(), 0.1)
            )
        except TimeoutError:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._process.returncode = 0  # left to itself, on purpose
            self._let_go()
            done = False
        else:
            done = self._process.returncode == 0
        for kept in self._streams:
            os.close(kept.fd)
        self._streams.clear()
        if self._metrics is not None:
            self._metrics.close()
        self._listener.close()
        if self._events:
            raise ConsumerGone(f"{len(self._events)} events could not be delivered")
        return done
