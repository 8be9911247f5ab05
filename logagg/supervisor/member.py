"""One worker process, as the supervisor sees it: start, channel, end.

State: `starting` until it is ready, then `ready`, `stopping` once it was asked to end,
`dead`. Everything here is used on the supervisor's loop only, except the methods that
say otherwise.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logagg.errors import WorkerDied
from logagg.supervisor import bootstrap, exec_step
from logagg.supervisor.channel import Frame
from logagg.supervisor.link import Link
from logagg.supervisor.messages import Outbox
from logagg.supervisor.pending import Pending
from logagg.supervisor.start import ENVIRONMENT, Start

__all__ = ["Exit", "Member", "Pipes", "rss_bytes"]

PIPE_BYTES = 1024 * 1024
_F_SETPIPE_SZ = 1031
_PAGE = os.sysconf("SC_PAGE_SIZE")
_INTERNAL = (
    ENVIRONMENT,
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended.

    Attributes:
        code: The exit status, or None when a signal ended it.
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
        if self.signal is None:
            return f"status {self.code}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


@dataclass(frozen=True, slots=True)
class Pipes:
    """The read ends of a worker's stdout and stderr; whoever gets them owns them."""

    stdout: int
    stderr: int


class Member:
    """A worker of the run.

    Attributes:
        slot: The stable number, 1…N.
        id: Its own number, never used again.
        pid: Its process id.
        state: "starting", "ready", "stopping" or "dead".
        exit: How it ended, once it has.
    """

    def __init__(
        self,
        start: Start,
        *,
        env: Mapping[str, str],
        heard: Callable[[Member, Frame, list[int]], None],
        ended: Callable[[Member], None],
        disconnected: Callable[[Member], None],
    ) -> None:
        self.slot = start.slot
        self.id = start.id
        self.state = "starting"
        self.exit: Exit | None = None
        self.started = time.monotonic()
        self.voluntary = False
        self.why = ""
        self.crash = ""
        self.crash_count = 1
        self.trace = ""
        self.recycle = False
        self.listened = False
        self.said_ready = False
        self.hooks = 0
        self.hooks_done = asyncio.Event()
        self.settled = asyncio.Event()
        self.over = asyncio.Event()
        self.connections = 0
        self.last_pong = self.started
        self.pinged = 0.0
        self.max_age = 0.0
        self.tasks_done = 0
        self.max_tasks = 0
        self.online_since: float | None = None
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, Pending[Any]] = {}
        self._questions = 0
        self.link: Link | None = None
        self.outbox = Outbox(self._transmit)
        ours, theirs = self._channel(start)
        try:
            self.process, self.pipes, self._pidfd = _spawn(start, env)
        except BaseException:
            if ours is not None:
                ours.close()
            raise
        finally:
            if theirs is not None:
                theirs.close()
        self.pid = self.process.pid
        if ours is not None:
            self.link = Link(
                ours,
                lambda frame, fds: heard(self, frame, fds),
                lambda: disconnected(self),
            )
        self._loop.add_reader(self._pidfd, self.reap)

    @staticmethod
    def _channel(start: Start) -> tuple[socket.socket | None, socket.socket | None]:
        if start.kind == "command":
            return None, None
        ours, theirs = socket.socketpair()
        start.channel = theirs.fileno()
        return ours, theirs

    def __repr__(self) -> str:
        return f"<worker slot={self.slot} id={self.id} pid={self.pid} {self.state}>"

    # ---- for programs (safe from any thread) --------------------------------------

    def send(self, message: Any, sock: socket.socket | None = None) -> Pending[None]:
        """Send a message to the worker.

        Never blocks; await the receipt (or call its `result`) to be slowed down to the
        worker's pace. The receipt is settled when the worker's handler has run, and
        fails with `WorkerDied` when the worker ends before.

        Args:
            message: Plain JSON values.
            sock: A socket to pass along; close yours when you no longer need it.

        Raises:
            WireError: It is not JSON, or longer than 4 MiB.
            WouldBlock: 64 MiB wait for this worker already.
        """
        fds = [] if sock is None else [sock.fileno()]
        return self.post({"k": "message", "b": message}, fds)

    def post(self, frame: Frame, fds: list[int]) -> Pending[None]:
        """Send a numbered frame; see `send`."""
        if self.link is None:
            failed: Pending[None] = Pending()
            failed.fail(WorkerDied(f"worker {self.slot} is not Python: no messages"))
            return failed
        return self.outbox.post(frame, fds)

    def request(self, message: Any, timeout: float = 5.0) -> Pending[Any]:
        """Ask the worker's program and get what its handler returns.

        Raises:
            TimeoutError: From the result, after `timeout` seconds.
            WorkerDied: From the result: it ended before it answered.
            RuntimeError: From the result: its handler raised, or it has none.
        """
        answer: Pending[Any] = Pending()

        def ask() -> None:
            if self.state == "dead" or self.link is None:
                answer.fail(WorkerDied(f"worker {self.slot} is gone"))
                return
            self._questions += 1
            number = self._questions
            self._answers[number] = answer
            try:
                self.link.tell({"k": "request", "q": number, "b": message})
            except ValueError as error:
                self.answered(number, error)
                return
            late = TimeoutError(f"worker {self.slot} did not answer in {timeout} s")
            self._loop.call_later(timeout, self.answered, number, late)

        self._loop.call_soon_threadsafe(ask)
        return answer

    def kill(self, signum: int = signal.SIGTERM) -> None:
        """Send a signal; the end that follows counts as asked for."""
        self.voluntary = True
        self.signal(signum)

    # ---- for the supervisor -------------------------------------------------------

    def answered(self, number: int, outcome: Any) -> None:
        """Settle a request, if it is still open."""
        answer = self._answers.pop(number, None)
        if answer is None:
            return
        if isinstance(outcome, BaseException):
            answer.fail(outcome)
        else:
            answer.settle(outcome)

    def tell(self, frame: Frame, fds: list[int] | None = None) -> None:
        """Send a frame of the supervisor's own."""
        if self.link is not None:
            self.link.tell(frame, fds)

    def _transmit(self, data: bytes, fds: list[int]) -> None:
        link = self.link
        if link is None:
            return
        if asyncio._get_running_loop() is self._loop:
            link.transmit(data, fds)
            return
        copies = [os.dup(fd) for fd in fds]

        def send() -> None:
            link.transmit(data, copies)
            for fd in copies:
                os.close(fd)

        self._loop.call_soon_threadsafe(send)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self.exit.uptime if self.exit else time.monotonic() - self.started

    def become_ready(self) -> bool:
        """Note that it can do its work; False when that was known or it is too late."""
        if self.state != "starting":
            return False
        self.state = "ready"
        self.last_pong = time.monotonic()
        self.settled.set()
        return True

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group."""
        if self.exit is not None and not group:
            return
        try:
            if group:
                os.killpg(self.pid, signum)
            else:
                signal.pidfd_send_signal(self._pidfd, signum)
        except (ProcessLookupError, PermissionError):
            pass

    def reap(self) -> None:
        """Collect the dead process, read its last words, and tell."""
        if self.exit is not None:
            return
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status, usage = self.pid, 0, None
        if pid == 0:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = None if signum else os.waitstatus_to_exitcode(status)
        self.process.returncode = -signum if signum else code
        # Read the channel to its end first: the last words belong before the exit.
        if self.link is not None:
            self.link.drain()
        peak = 0 if usage is None else usage.ru_maxrss * 1024
        self.exit = Exit(
            code, signum, self.voluntary, self._reason(code, signum), self.uptime, peak
        )
        self.state = "dead"
        error = WorkerDied(f"worker {self.slot} (pid {pid}) ended: {self.exit.how}")
        self.outbox.fail(error)
        for number in list(self._answers):
            self.answered(number, error)
        self.settled.set()
        self.hooks_done.set()
        self._ended(self)
        self.over.set()

    def _reason(self, code: int | None, signum: int | None) -> str:
        if self.why:
            return self.why
        if self.voluntary:
            return "asked to stop"
        if self.crash:
            return f"uncaught {self.crash}"
        if signum is not None:
            return "killed from outside"
        return "ended by itself" if code == 0 else "crashed"


def rss_bytes(pid: int) -> int:
    """The memory that a process holds now; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _spawn(
    start: Start, env: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], Pipes, int]:
    """Start the process: by exec, in a session of its own, with a pipe a stream.

    Returns:
        The process, its pipes, and a pidfd of it.

    Raises:
        OSError: No descriptor, process or memory is free; then nothing is left of it.
    """
    step = exec_step if start.kind == "command" else bootstrap
    assert step.__file__ is not None
    environment = {k: v for k, v in os.environ.items() if k not in _INTERNAL}
    environment.update(env)
    environment["PYTHONUNBUFFERED"] = "1"
    environment[ENVIRONMENT] = start.to_json()
    fds = [door.fd for door in start.doors if door.fd >= 0]
    if start.channel >= 0:
        fds.append(start.channel)
    with ExitStack() as finally_, ExitStack() as on_error:
        out_read, out_write = _pipe(on_error, finally_)
        err_read, err_write = _pipe(on_error, finally_)
        process = subprocess.Popen(
            [sys.executable, step.__file__],
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            pass_fds=fds,
            start_new_session=True,
            env=environment,
        )
        on_error.callback(process.wait)
        on_error.callback(process.kill)
        pidfd = os.pidfd_open(process.pid)
        on_error.pop_all()
    return process, Pipes(out_read, err_read), pidfd


def _pipe(read_ends: ExitStack, write_ends: ExitStack) -> tuple[int, int]:
    import fcntl

    read, write = os.pipe2(os.O_CLOEXEC)
    read_ends.callback(os.close, read)
    write_ends.callback(os.close, write)
    try:
        fcntl.fcntl(write, _F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # the user's limit for pipes is reached; the default size does
    return read, write
