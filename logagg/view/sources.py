"""Where tail's lines come from: files, standard input, a running consumer.

A source gives what is there already (`past`), then, poll by poll, what comes. Lines
come without newlines, in order, already selected by the `select` that it was made with.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from logagg.errors import ConsumerGone
from logagg.view import files, foreign
from logagg.view.cursor import Cursor
from logagg.view.files import Select
from logagg.view.follow import Follower
from logagg.view.live import Live
from logagg.view.match import Match

_POLL_INTERVAL = 0.05
_IDLE_INTERVAL = 0.2
_BATCH = 2_000


class Source(Protocol):
    """What the tail loop reads."""

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """What is there, the last so many lines of it (None: all)."""

    def poll(self) -> list[bytes]:
        """What has come since."""

    def descriptors(self) -> list[int]:
        """What to wait for before the next poll."""

    def pause(self) -> float:
        """Seconds to wait at most before the next poll."""

    def ended(self) -> bool:
        """Nothing will ever come again."""

    def reachable(self) -> bool:
        """There is somebody or something to read from."""

    def close(self) -> None:
        """Let go of everything."""


class FileSource:
    """Files, each with what was rotated away from it, merged by time."""

    def __init__(
        self,
        paths: Sequence[str],
        select: Select,
        note: Callable[[str], None],
        *,
        follow: bool,
        since: bytes = b"",
        after: Cursor | None = None,
    ) -> None:
        self._select = select
        self._note = note
        self._since = since
        self._after = after
        self._follow = follow
        self._series = [files.open_series(p, follow=follow) for p in paths]
        self._followers: list[Follower] = []
        self._quiet = 0

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """What is in the files now, by time; then following begins where this ended."""
        yield from self._past(count)
        if self._follow:
            self._followers = [
                Follower(series, self._select, self._note) for series in self._series
            ]

    def _past(self, count: int | None) -> Iterator[list[bytes]]:
        if count == 0:
            return
        if count is None or self._since or self._after:
            batches = [self._batches(series) for series in self._series]
        else:
            batches = [
                iter([files.last_lines(series, self._select, count)])
                for series in self._series
            ]
        if len(batches) == 1 and count is None:
            yield from batches[0]
            return
        parts = [itertools.chain.from_iterable(each) for each in batches]
        merged: Iterator[bytes] = heapq.merge(*parts, key=_time)
        if count is not None:
            merged = iter(deque(merged, maxlen=count))
        while batch := list(itertools.islice(merged, _BATCH)):
            yield batch

    def _batches(self, series: files.Series) -> Iterator[list[bytes]]:
        cursor = self._after
        if cursor is None:
            yield from files.all_lines(series, self._select, self._since)
            return
        # Behind that very line, so that late lines written after it are not missed.
        stamp = cursor.timestamp.encode()
        found = False
        for (data,) in files.all_lines(series, files.WHOLE, stamp):
            if found:
                yield self._select(data)
            elif stamp in data:
                lines = data.split(b"\n")
                places = [i for i, x in enumerate(lines) if Cursor.of_line(x) == cursor]
                if places:
                    found = True
                    yield self._select(b"\n".join(lines[places[0] + 1 :]) + b"\n")
        if not found:
            if len(self._series) == 1:
                self._note(f"line {cursor} is not in {series.path}; going on by time")
            for batch in files.all_lines(series, self._select, stamp):
                yield [line for line in batch if line[14:44] > stamp]

    def poll(self) -> list[bytes]:
        """What was written since, by time when there are several files."""
        found = [line for follower in self._followers for line in follower.poll()]
        if len(self._followers) > 1:
            found.sort(key=_time)
        self._quiet = 0 if found else self._quiet + 1
        return found

    def descriptors(self) -> list[int]:
        """Files cannot be waited for."""
        return []

    def pause(self) -> float:
        """Seldom while nothing happens."""
        return _POLL_INTERVAL if self._quiet < 100 else _IDLE_INTERVAL

    def ended(self) -> bool:
        """A file may always grow, unless nobody follows it."""
        return not self._follow

    def reachable(self) -> bool:
        """A file that is not there yet may come."""
        return True

    def close(self) -> None:
        """Close the files."""
        for follower in self._followers:
            follower.close()
        for series in self._series:
            series.close()


def _time(line: bytes) -> bytes:
    """What several files are merged by; lines without a time come first."""
    return line[14:44] if foreign.is_wire(line) else b""


class PipeSource:
    """A pipe that other programs write to, such as standard input."""

    def __init__(self, descriptor: int, select: Select) -> None:
        self._fd = descriptor
        self._select = select
        self._carry: list[bytes] = []
        self._held = 0
        self._ended = False

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """Nothing, unless the last so many are asked for: then up to the end of it."""
        if count is None:
            return
        kept: deque[bytes] = deque(maxlen=count)
        while not self._ended:
            kept.extend(self.poll())
        yield list(kept)

    def poll(self) -> list[bytes]:
        """The lines that have come; waits for some."""
        data = os.read(self._fd, files.CHUNK_BYTES)
        if not data:
            self._ended = True
            rest = b"".join(self._carry)
            return self._select(rest) if rest else []
        cut = data.rfind(b"\n") + 1
        if not cut and self._held < files.LONGEST_BYTES:
            self._carry.append(data)
            self._held += len(data)
            return []
        cut = cut or len(data)
        whole = b"".join([*self._carry, data[:cut]])
        self._carry, self._held = [data[cut:]], len(data) - cut
        return self._select(whole)

    def descriptors(self) -> list[int]:
        """The pipe."""
        return [self._fd]

    def pause(self) -> float:
        """Nothing to do until something comes."""
        return 60.0

    def ended(self) -> bool:
        """All of it was read."""
        return self._ended

    def reachable(self) -> bool:
        """It was given to us open."""
        return True

    def close(self) -> None:
        """The pipe is its opener's to close."""


History = Callable[[Cursor | None], Iterator[list[bytes]]]


class LiveSource:
    """A running consumer, and the file that it writes for what it no longer holds.

    The consumer keeps the last few megabytes of the stream. What lies further back,
    and what an old consumer had still written when it died and the viewer had not got,
    is read from the file.
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
            match: What is wanted.
            follow: Go on when all past lines have come.
            history: The matching lines of the file behind a cursor (None: all).
            old: More of the past is wanted than a consumer holds.
        """
        self._live = live
        self._match = match
        self._follow = follow
        self._history = history
        self._old = old

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """The file, when it is asked for; else the consumer sends it with the polls."""
        if count is None and self._old and self._history is not None:
            for lines in self._history(self._live.cursor):
                yield self._live.new(lines)

    def poll(self) -> list[bytes]:
        """The lines that have come, filtered again: who is asked may be older.

        Raises:
            ConsumerGone: Nobody is there, and following was not asked for.
        """
        before = self._live.cursor
        lines = self._live.poll()
        if not self._follow and not self._live.connected:
            raise ConsumerGone("no logagg is running here; name a file: --file PATH")
        if self._live.restarted:
            self._live.restarted = False
            lines = [*self._missed(before), *lines]
        return self._match.lines(lines)

    def _missed(self, before: Cursor | None) -> Iterator[bytes]:
        """What the old consumer wrote last and did not get to us."""
        if before is not None and self._history is not None:
            for lines in self._history(before):
                yield from self._live.new(lines)

    def descriptors(self) -> list[int]:
        """The pipe from the consumer."""
        return self._live.descriptors()

    def pause(self) -> float:
        """Until the next try to connect."""
        return self._live.pause()

    def ended(self) -> bool:
        """Without following, when all past lines are here."""
        return not self._follow and self._live.caught_up

    def reachable(self) -> bool:
        """A consumer has us as its viewer."""
        return self._live.connected

    def close(self) -> None:
        """Leave the consumer."""
        self._live.close()
