"""A running consumer as a source: its lines as they come, across its restarts.

Theory of operation
-------------------
The viewer makes a pipe and sends its write end to the consumer with the hello. The
consumer writes finished lines into it and never waits: when the pipe is full it drops
lines for this viewer only and reports the number. So a viewer that is slow, paused or
stopped delays no other process. The reason of a refusal comes by the connection.

In the pipe a record begins with `{"timestamp":"`. Anything else is a control line, a
JSON object with one or more of

    {"run":"7f3a","workers":4}   the first line: the run, and its number of workers
    {"live":true}                all past lines that were requested have been sent
    {"dropped":450}              so many lines were not sent: the pipe was full
    {"loss":"…"}                 the message of a loss that the filter hides

When the consumer ends the viewer reconnects, with pauses from 0.1 s growing to 5 s. It
requests all that a new consumer holds: what came in the meantime, and what workers sent
again because the old one had not acknowledged it, which may be older than the last line
seen. Recent lines are remembered, so that none is shown twice.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import UNSET

from logagg.core.backoff import Backoff
from logagg.core.event import loss_in
from logagg.core.line import KEY_START, PREFIX, TIMESTAMP
from logagg.errors import ConfigError, ConsumerGone, WireError
from logagg.filters.matcher import Match
from logagg.ipc.consumer_client import Subscription
from logagg.ipc.protocol import ViewerControl, ViewerHello, decode
from logagg.view.sources import Cursor

_CHUNK_BYTES = 1 << 18
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_REMEMBERED = 50_000  # more lines than the 8 MiB that a consumer keeps commonly hold

Note = Callable[[str], None]
History = Callable[[Cursor | None], Iterator[list[bytes]]]


class Live:
    """The connection to whichever consumer `find` names.

    Attributes:
        caught_up: All past lines that were requested have come.
        wanted: How many past lines the user wants of those that match; None: all.
        past_count: How many lines of the last `poll` were past ones.
        restarted: Another consumer than before has answered; the caller resets it.
        run: The identity of the consumer that was connected last; None: none was.
        note: As given.
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
            hello: The filter, and `lines`, the number of past lines (None: all).
            note: Shows a message to the user.
            after: Begin after this line.
            clock: Monotonic seconds.
        """
        self._find = find
        self._hello = dict(hello)
        self.note = note
        self._clock = clock
        self._subscription: Subscription | None = None
        self._carry: list[bytes] = []
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._waiting = False
        self.run: str | None = None
        self._after = after
        self._cursor = after
        self._newest = b""
        self._seen_until = b""
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self.caught_up = False
        self.restarted = False
        self.wanted = None if after is not None else self._hello.get("lines")
        self.past_count = 0

    @property
    def cursor(self) -> Cursor | None:
        """The place of the last line seen."""
        if self._newest:
            self._cursor = Cursor.of_line(self._newest) or self._cursor
            self._newest = b""
        return self._cursor

    @property
    def connected(self) -> bool:
        """Whether a consumer has the pipe."""
        return self._subscription is not None

    def descriptors(self) -> list[int]:
        """The pipe, when connected."""
        return [self._subscription.pipe] if self._subscription else []

    def pause(self) -> float:
        """Seconds until `poll` has something to do even without a descriptor."""
        if self.connected:
            return 1.0
        return max(self._backoff.due_at - self._clock(), 0.01)

    def poll(self) -> list[bytes]:
        """The lines that have come, without their newlines; connects when needed.

        Raises:
            ConfigError: The consumer refuses the filter.
        """
        if not self.connected and self._clock() >= self._backoff.due_at:
            self._connect()
        if self._subscription is None:
            return []
        try:
            data = os.read(self._subscription.pipe, _CHUNK_BYTES)
        except BlockingIOError:
            return []
        if not data:
            refusal = self._subscription.refusal()
            if refusal:
                self.close()
                raise ConfigError(f"the consumer {refusal}")
            self._disconnected("the consumer has ended; waiting for the next")
            return []
        return self._split(data)

    def close(self) -> None:
        """Leave the consumer. May be called twice."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _connect(self) -> None:
        path = self._find()
        hello = ViewerHello(**self._hello)
        if self._after is not None:
            hello.after = self._after.fields()
        if self._after is not None or self.run is not None:
            hello.lines = None
        try:
            if path is None:
                raise ConnectionRefusedError
            self._subscription = Subscription(path, hello)
        except PermissionError as error:
            self._disconnected(f"{error}; waiting")
            return
        except OSError:
            self._disconnected("no logagg running here; waiting")
            return
        self._backoff.reset()
        self._waiting = False

    def _disconnected(self, note: str) -> None:
        self.close()
        self._carry = []
        if not self._waiting:
            self.note(note)
        self._waiting = True
        self._backoff.failed(self._clock())

    def _split(self, data: bytes) -> list[bytes]:
        self.past_count = 0
        cut = data.rfind(b"\n")
        if cut < 0:
            self._carry.append(data)
            return []
        whole = b"".join([*self._carry, data[:cut]])
        self._carry = [data[cut + 1 :]]
        found: list[bytes] = []
        past = None if not self.caught_up else 0
        for line in whole.split(b"\n"):
            if line.startswith(PREFIX):
                found += self.new([line])
            elif line:
                self._on_control(line)
                if past is None and self.caught_up:
                    past = len(found)
        self.past_count = len(found) if past is None else past
        return found

    def new(self, lines: list[bytes]) -> list[bytes]:
        """Those of the lines that were not seen yet; they are from now on."""
        if self._seen_until:
            lines = [line for line in lines if line[TIMESTAMP] > self._seen_until]
        return [line for line in lines if self._is_new(line)]

    def _is_new(self, line: bytes) -> bool:
        key = line[KEY_START : line.find(b',"logger":')]
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self._newest = line
        return True

    def _on_control(self, line: bytes) -> None:
        try:
            control = decode(ViewerControl, line)
        except WireError:
            return
        if control.run is not UNSET:
            self._on_run(control.run, control.workers)
        if control.live:
            self.caught_up = True
            self._seen_until = b""
        if control.dropped:
            self.note(f"skipped {control.dropped} records (viewer too slow)")
        if control.loss is not UNSET:
            self.note(control.loss)

    def _on_run(self, run: str, workers: Any) -> None:
        if self.run is None:
            plural = "" if workers == 1 else "s"
            self.note(f"following run {run}, {workers} worker{plural}")
        elif run == self.run:
            # The same consumer sends all that it holds, filtered lines left out before.
            self.note(f"reconnected to run {run}")
            self._seen_until = self.cursor.timestamp.encode() if self.cursor else b""
        else:
            self.note(f"reconnected to new run {run}")
            self.restarted = True
        self.run = run


class LiveSource:
    """A running consumer, and the file that it writes for what it no longer holds.

    The consumer keeps the last few megabytes of the stream. Older lines, and those that
    a consumer had written before it died but not sent, are read from the file.
    """

    def __init__(
        self,
        live: Live,
        match: Match,
        *,
        follow: bool,
        history: History | None = None,
        old: bool = False,
    ) -> None:
        """Prepare; the first `poll` connects.

        Args:
            live: The connection.
            match: The filter.
            follow: Continue after all past lines have come.
            history: The matching lines of the file after a cursor (None: all).
            old: Read older lines than a consumer holds.
        """
        self._live = live
        self._match = match
        self._follow = follow
        self._history = history
        self._old = old
        self._past: list[bytes] = []
        self._is_past_shown = False

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """The file's lines, if requested; the consumer sends its own with the polls."""
        if count is None and self._old and self._history is not None:
            for lines in self._history(self._live.cursor):
                yield self._live.new(lines)

    def poll(self) -> list[bytes]:
        """The lines that have come.

        Raises:
            ConsumerGone: There is no consumer, and following was not requested.
        """
        before = self._live.cursor
        lines = self._live.poll()
        if not self._follow and not self._live.connected:
            raise ConsumerGone("no logagg is running here; name a file: --file PATH")
        if self._live.restarted:
            self._live.restarted = False
            lines = [*self._missed(before), *lines]
        return self._kept(lines)

    def _kept(self, lines: list[bytes]) -> list[bytes]:
        """Those that match; of past ones only as many of the last as are wanted."""
        kept = self._match.lines(lines)
        if len(kept) < len(lines):
            self._note_losses(lines, kept)
        wanted = self._live.wanted
        if self._is_past_shown or wanted is None:
            return kept
        past = self._match.lines(lines[: self._live.past_count])
        self._past = [*self._past, *past][-wanted:] if wanted else []
        if not self._live.caught_up:
            return []
        self._is_past_shown = True
        shown, self._past = self._past, []
        return [*shown, *kept[len(past) :]]

    def _note_losses(self, lines: list[bytes], kept: list[bytes]) -> None:
        """Announce losses that the filter hides; the consumer did so with others."""
        shown = set(kept)
        for line in lines:
            if line not in shown and (loss := loss_in(line)) is not None:
                self._live.note(loss)

    def _missed(self, before: Cursor | None) -> Iterator[bytes]:
        """The lines that the old consumer wrote last and did not send."""
        if before is not None and self._history is not None:
            for lines in self._history(before):
                yield from self._live.new(lines)

    def descriptors(self) -> list[int]:
        """The pipe from the consumer."""
        return self._live.descriptors()

    def pause(self) -> float:
        """Seconds until the next try to connect."""
        return self._live.pause()

    def ended(self) -> bool:
        """Without following, whether all past lines have come."""
        return not self._follow and self._live.caught_up

    def reachable(self) -> bool:
        """Whether a consumer is connected."""
        return self._live.connected

    def close(self) -> None:
        """Leave the consumer."""
        self._live.close()
