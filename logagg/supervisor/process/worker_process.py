"""One worker process, as the supervisor sees it: states, channel, start and end.

Everything here is used on the supervisor's loop only, except the methods marked
otherwise.
"""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from logagg.core.record import worker_text
from logagg.errors import WorkerDied
from logagg.platform.system import RSS_UNIT
from logagg.supervisor.child.launch_spec import LaunchSpec
from logagg.supervisor.messaging.frame_connection import FrameConnection
from logagg.supervisor.messaging.frames import Frame, encode_value
from logagg.supervisor.messaging.future import AwaitableFuture
from logagg.supervisor.messaging.peer import Peer
from logagg.supervisor.process.spawn import spawn

__all__ = ["Crash", "Exit", "WorkerOwner", "WorkerProcess", "WorkerState"]

DISCONNECT_GRACE = 2.0
"""From the end of the channel to the end of the process, which gives the better error."""

_FINAL = ("SyntaxError", "IndentationError", "TabError")


class WorkerState(enum.StrEnum):
    """The states of a worker, in their order."""

    STARTING = "starting"  # launched, cannot do its work yet
    READY = "ready"
    DRAINING = "draining"  # finishes what is under way and gets no more
    STOPPING = "stopping"  # its shutdown hooks have run, TERM was sent
    DEAD = "dead"


_NEXT = {
    (WorkerState.STARTING, "ready"): WorkerState.READY,
    (WorkerState.STARTING, "stop"): WorkerState.DRAINING,
    (WorkerState.READY, "stop"): WorkerState.DRAINING,
    (WorkerState.DRAINING, "term"): WorkerState.STOPPING,
    **{(state, "reaped"): WorkerState.DEAD for state in WorkerState},
}
"""Transitions: (state, event) to the next state; other events are ignored."""


class Crash(NamedTuple):
    """The exception that ended a worker's program; empty when there was none.

    Attributes:
        summary: The exception in one line.
        trace: Its traceback.
        again: How often this traceback was seen lately, now included.
    """

    summary: str = ""
    trace: str = ""
    again: int = 1

    @property
    def is_final(self) -> bool:
        """Whether another start of the same program must end in the same way."""
        return self.summary.startswith(_FINAL)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended.

    Attributes:
        code: The exit status, or None when a signal ended it or it is not known.
        signal: The signal's number, or None.
        voluntary: Whether it was asked to end (stop, reload, scale, `kill`).
        reason: In words.
        uptime: Seconds it ran.
        max_rss_bytes: The most memory that it used.
    """

    code: int | None
    signal: int | None
    voluntary: bool
    reason: str
    uptime: float
    max_rss_bytes: int

    @property
    def how(self) -> str:
        """The plain fact: `status 3` or `SIGKILL`."""
        if self.signal is None and self.code is None:
            return "a status that something else took"
        if self.signal is None:
            return f"status {self.code}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


class WorkerOwner(NamedTuple):
    """Receivers of a worker's events.

    Attributes:
        handle: A frame with its descriptor (or -1), which the callee then owns.
        start: Runs the coroutine of a handler; returns its task.
        report: The error of a handler or of a frame, and which of them.
        ended: The process has been reaped, its channel read to the end.
        disconnected: The channel has closed; the end of the process follows.
        changed: It has become ready, or has ended.
    """

    handle: Callable[[WorkerProcess, Frame, int], None]
    start: Callable[[Any], Any]
    report: Callable[[WorkerProcess, str, BaseException], None]
    ended: Callable[[WorkerProcess], None]
    disconnected: Callable[[WorkerProcess], None]
    changed: Callable[[WorkerProcess], None]


def _unused(*_arguments: Any) -> Any:
    raise AssertionError("a closed peer uses no host")


class _NoChannel:
    """Host of the closed peer of a worker that is not Python."""

    transmit = handle = start = report = alarm = staticmethod(_unused)


class WorkerProcess:
    """A worker of the run; `state` follows `_NEXT`.

    Attributes:
        slot: The stable number, 1…N.
        app: The program's name in a project of several.
        id: Its own number, never used again.
        pid: Its process id.
        state: One of `WorkerState`, whose members equal "starting", "ready" and so on.
        was_ready: Whether it ever became ready.
        exit: How it ended, once it has.
    """

    app = ""

    def __init__(
        self, spec: LaunchSpec, *, env: Mapping[str, str], owner: WorkerOwner
    ) -> None:
        self.slot = spec.slot
        self.id = spec.id
        self.app = spec.app
        self.state = WorkerState.STARTING
        self.exit: Exit | None = None
        self.started = time.monotonic()
        self.online_since: float | None = None
        self.listened = False
        self.was_ready = False
        # Why it is to end, or did.
        self.voluntary = False
        self.why = ""
        self.crash = Crash()
        self.recycle = False
        self.max_age = 0.0
        self.max_tasks = 0
        # What it reported.
        self.hooks = 0
        self.connections = 0
        self.tasks_done = 0
        self.last_pong = self.started
        self.last_ping = 0.0
        self.unanswered: float | None = None  # when its oldest open ping was sent
        # Set once: all hooks have run; it was reaped.
        self.hooks_done = asyncio.Event()
        self.reaped = asyncio.Event()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        sock = self._start(spec, env)
        self.pid = self.process.pid
        self.channel: FrameConnection | None = None
        if sock is None:
            self.peer = Peer(_NoChannel(), "")
            no_messages = f"worker {self.name} is not Python: no messages"
            self.peer.close(WorkerDied(no_messages))
        else:
            self.channel = self._connect(sock)
            self.peer = self.channel.peer
        self._handle.watch(self._loop, self.reap)

    def _start(self, spec: LaunchSpec, env: Mapping[str, str]) -> socket.socket | None:
        """Start the process; returns this end of its channel, if it has one."""
        sock, worker_sock = None, None
        if spec.kind != "command":
            sock, worker_sock = socket.socketpair()
            spec.channel = worker_sock.fileno()
        try:
            self.process, self.pipes, self._handle = spawn(spec, env)
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        finally:
            if worker_sock is not None:
                worker_sock.close()
        return sock

    def _connect(self, sock: socket.socket) -> FrameConnection:
        owner = self._owner
        return FrameConnection(
            sock,
            f"worker {self.name}",
            handle=lambda frame, fd: owner.handle(self, frame, fd),
            start=owner.start,
            report=lambda what, error: owner.report(self, what, error),
            disconnected=self._disconnected,
        )

    def __repr__(self) -> str:
        return f"<worker slot={self.slot} id={self.id} pid={self.pid} {self.state}>"

    # ---- for programs (safe from any thread) --------------------------------------

    def send(
        self, message: Any, sock: socket.socket | None = None
    ) -> AwaitableFuture[None]:
        """Send a message to the worker.

        Never blocks; await the receipt (or call its `result`) to be slowed down to the
        worker's pace. The receipt is resolved when the worker's handlers have ended. It
        fails with `WorkerDied` when the worker ends before, and with `WouldBlock` when
        the worker had no descriptor free for the socket.

        Args:
            message: Plain JSON values.
            sock: A socket to pass along; close yours when you no longer need it.

        Raises:
            WireError: It is not JSON, or longer than 4 MiB.
            WouldBlock: 64 MiB wait for this worker already.
        """
        fd = -1 if sock is None else sock.fileno()
        return self.peer.post("message", encode_value(message), fd)

    def request(self, message: Any, timeout: float = 5.0) -> AwaitableFuture[Any]:
        """Ask the worker's program and get what its handler returns.

        Raises:
            WireError: The message is not JSON, or longer than 4 MiB.
            TimeoutError: From the result, after `timeout` seconds.
            WorkerDied: From the result: it ended before it answered.
            RuntimeError: From the result: its handler raised, or it has none.
        """
        return self.peer.request(message, timeout)

    def kill(self, signum: int = signal.SIGTERM) -> None:
        """Send a signal; the end that follows counts as asked for."""
        self.voluntary = True
        self.signal(signum)

    @property
    def name(self) -> str:
        """Its name in records: `1`, or `web.1`."""
        return worker_text(self.app, self.slot)

    # ---- for the supervisor -------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Whether it is neither dead nor to end."""
        return self.state in (WorkerState.STARTING, WorkerState.READY)

    @property
    def is_reachable(self) -> bool:
        """Whether its channel is open; an `exec` closes it, and the process lives on."""
        return self.channel is not None and not self.channel.closed

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self.exit.uptime if self.exit else time.monotonic() - self.started

    def _move(self, event: str) -> bool:
        following = _NEXT.get((self.state, event))
        if following is None:
            return False
        self.state = following
        return True

    def become_ready(self) -> bool:
        """Note that it can do its work; False when that was known or it is too late."""
        if not self._move("ready"):
            return False
        self.was_ready = True
        self.last_pong, self.unanswered = time.monotonic(), None
        self._owner.changed(self)
        return True

    def begin_stop(self, why: str) -> bool:
        """Note that it is to end; False when that was known."""
        self.voluntary = True
        self.why = self.why or why
        return self._move("stop")

    def terminate(self) -> None:
        """Send the TERM of a stop, after `begin_stop`."""
        self._move("term")
        self.signal(signal.SIGTERM)

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group."""
        if self.exit is not None:
            return
        try:
            if group:
                os.killpg(self.pid, signum)
            else:
                self._handle.send(signum)
        except (ProcessLookupError, PermissionError):
            pass

    def _disconnected(self) -> None:
        self.hooks_done.set()  # none can be reported any more
        self._owner.disconnected(self)
        gone = WorkerDied(f"worker {self.name} (pid {self.pid}) closed its channel")
        self._loop.call_later(DISCONNECT_GRACE, self.peer.close, gone)

    def reap(self) -> None:
        """Collect the dead process; handle its last frames, then its end."""
        if self.exit is not None:
            return
        status: int | None
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:  # SIGCHLD is ignored, or the program has reaped it
            pid, status, usage = self.pid, self._handle.status, None
        if pid == 0:
            return
        self._handle.close()
        signum = code = None
        if status is not None and os.WIFSIGNALED(status):
            signum = os.WTERMSIG(status)
        elif status is not None:
            code = os.waitstatus_to_exitcode(status)
        self.process.returncode = -signum if signum else code or 0
        # Read the channel to its end first: the last messages come before the exit.
        if self.channel is not None:
            self.channel.drain()
        peak = 0 if usage is None else usage.ru_maxrss * RSS_UNIT
        self.exit = Exit(
            code, signum, self.voluntary, self._reason(code, signum), self.uptime, peak
        )
        self._move("reaped")
        self.peer.close(
            WorkerDied(f"worker {self.name} (pid {pid}) ended: {self.exit.how}")
        )
        self.hooks_done.set()
        try:
            self._owner.ended(self)
        finally:
            self.reaped.set()
            self._owner.changed(self)

    def _reason(self, code: int | None, signum: int | None) -> str:
        if self.why:
            return self.why
        if self.voluntary:
            return "asked to stop"
        if self.crash.summary:
            return f"uncaught {self.crash.summary}"
        if signum is not None:
            return "killed from outside"
        return "ended by itself" if code == 0 else "crashed"
