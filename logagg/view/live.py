"""The client of a running consumer: its lines as they come, across its restarts.

Theory of operation
-------------------
The viewer makes a pipe of its own and hands the write end to the consumer with its
hello. The consumer writes finished lines into it and never waits for it: when the pipe
is full it drops for this viewer only and says so in a control line. So a viewer that is
slow, paused or stopped costs nobody anything but itself.

In the pipe a record begins with `{"timestamp":"`. Anything else is a control line, a
JSON object with one or more of

    {"run":"7f3a","workers":4}   the first line: who is there
    {"live":true}                all past lines that were asked for have been sent
    {"dropped":450}              so many lines were not sent, because we are slow
    {"loss":"…"}                 records were lost, says one that the filter hides
    {"error":"…"}                the hello was refused

When the consumer goes away the viewer tries again, with pauses from 0.1 s growing to
5 s. It then asks a new consumer for all that it has: that is what came while the viewer
was away, and what workers sent a second time because the old one had not confirmed it,
which need not be younger than the last line seen. Lines seen lately are remembered, so
that none is shown a second time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from logagg.errors import ConfigError, ConsumerGone
from logagg.view.cursor import Cursor

_PIPE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_REMEMBERED = 50_000  # more lines than a consumer's ring of 8 MiB commonly holds
_ANSWER_TIMEOUT = 5.0  # seconds that a consumer may take to answer a question
_MAX_PACKET = 1 << 20

Note = Callable[[str], None]


class Live:
    """The lines of whichever consumer `find` names, now and after its restarts.

    Attributes:
        cursor: The last line seen.
        caught_up: All past lines that were asked for have come.
        restarted: Another consumer than before answers; whoever cares resets it.
    """

    def __init__(
        self,
        find: Callable[[], str | None],
        hello: Mapping[str, Any],
        note: Note,
        *,
        after: Cursor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; the first `poll` connects.

        Args:
            find: The path of the socket to connect to, or None when there is none now.
            hello: The filter, `lines` for how many past lines are wanted (None: all).
            note: Says to the user what happens.
            after: Begin behind this line.
            clock: Monotonic seconds.
        """
        self._find = find
        self._hello = dict(hello)
        self._note = note
        self._clock = clock
        self._socket: socket.socket | None = None
        self._pipe = -1
        self._carry: list[bytes] = []
        self._pause = _FIRST_PAUSE
        self._next_try = 0.0
        self._waiting = False
        self._run: str | None = None
        self._after = after
        self.cursor = after
        self._again = b""
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self.caught_up = False
        self.restarted = False

    @property
    def connected(self) -> bool:
        """A consumer has taken our pipe."""
        return self._pipe >= 0

    def descriptors(self) -> list[int]:
        """What to wait for."""
        return [self._pipe] if self.connected else []

    def pause(self) -> float:
        """Seconds until `poll` has something to do even without a descriptor."""
        if self.connected:
            return 1.0
        return max(self._next_try - self._clock(), 0.01)

    def poll(self) -> list[bytes]:
        """The lines that have come, without their newlines; connects when needed.

        Raises:
            ConfigError: The consumer refuses the filter.
        """
        if not self.connected and self._clock() >= self._next_try:
            self._connect()
        if not self.connected:
            return []
        try:
            data = os.read(self._pipe, _CHUNK_BYTES)
        except BlockingIOError:
            return []
        if not data:
            self._lost()
            return []
        return self._split(data)

    def close(self) -> None:
        """Leave the consumer. May be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _connect(self) -> None:
        path = self._find()
        hello = {"hello": 1, "kind": "viewer", **self._hello}
        if self._after is not None:
            hello["after"] = self._after.fields()
        if self._after is not None or self._run is not None:
            hello["lines"] = None
        try:
            if path is None:
                raise ConnectionRefusedError
            self._socket = _call(path)
            read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._pipe = read_end
            with contextlib.suppress(OSError):  # the system's limit for a user
                fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            try:
                socket.send_fds(self._socket, [orjson.dumps(hello)], [write_end])
            finally:
                os.close(write_end)
        except OSError:
            self.close()
            if not self._waiting:
                self._note("no logagg running here; waiting")
                self._waiting = True
            self._next_try = self._clock() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return
        self._pause = _FIRST_PAUSE
        self._waiting = False

    def _lost(self) -> None:
        self.close()
        self._carry = []
        if not self._waiting:
            self._note("the consumer went away; waiting for the next")
        self._waiting = True
        self._next_try = self._clock() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _split(self, data: bytes) -> list[bytes]:
        cut = data.rfind(b"\n")
        if cut < 0:
            self._carry.append(data)
            return []
        whole = b"".join([*self._carry, data[:cut]])
        self._carry = [data[cut + 1 :]]
        found = []
        for line in whole.split(b"\n"):
            if line.startswith(b'{"timestamp":"'):
                found += self.new([line])
            elif line:
                self._control(line)
        return found

    def new(self, lines: list[bytes]) -> list[bytes]:
        """Those of the lines that were not seen lately; they are from now on."""
        if self._again:  # the same consumer once more: its ring holds what we left out
            lines = [line for line in lines if line[14:44] > self._again]
        return [line for line in lines if self._is_new(line)]

    def _is_new(self, line: bytes) -> bool:
        key = line[14 : line.find(b',"logger":')]
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self.cursor = Cursor.of_line(line) or self.cursor
        return True

    def _control(self, line: bytes) -> None:
        try:
            told = orjson.loads(line)
        except orjson.JSONDecodeError:
            return
        if not isinstance(told, dict):
            return
        if "error" in told:
            raise ConfigError(f"the consumer refuses: {told['error']}")
        if "run" in told:
            run, workers = str(told["run"]), told.get("workers", "?")
            if self._run is None:
                plural = "" if workers == 1 else "s"
                self._note(f"following run {run}, {workers} worker{plural}")
            elif run == self._run:
                self._note(f"reconnected to run {run}")
                self._again = self.cursor.timestamp.encode() if self.cursor else b""
            else:
                self._note(f"reconnected to new run {run}")
                self.restarted = True
            self._run = run
        if told.get("live"):
            self.caught_up = True
            self._again = b""
        if told.get("dropped"):
            self._note(f"skipped {told['dropped']} records (viewer too slow)")
        if "loss" in told:
            self._note(str(told["loss"]))


def _call(path: str) -> socket.socket:
    """Connect to a consumer's socket.

    Raises:
        OSError: Nobody answers there.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        line.settimeout(_ANSWER_TIMEOUT)
        line.connect(path)
    except OSError:
        line.close()
        raise
    return line


def status(path: str) -> dict[str, Any]:
    """Ask a consumer how it is: its workers and sinks. Blocks up to 5 s.

    Raises:
        ConsumerGone: Nobody answers there, or not with a status.
    """
    try:
        with _call(path) as line:
            line.send(orjson.dumps({"hello": 1, "kind": "status"}))
            answer = orjson.loads(line.recv(_MAX_PACKET))
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConsumerGone(f"no consumer answers at {path}: {error}") from error
    if not isinstance(answer, dict):
        raise ConsumerGone(f"the consumer at {path} does not answer with its status")
    return answer
