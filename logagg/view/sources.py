"""Sources of tail's lines: files, standard input; a consumer's is in `live`.

A source gives the lines that exist (`past`), then new ones with each `poll`: in order,
without newlines, and already selected.
"""

from __future__ import annotations

import heapq
import itertools
import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from logagg.core.line import TIMESTAMP, is_wire
from logagg.core.units import iso_ns
from logagg.errors import ConfigError
from logagg.view import file_ranges, files
from logagg.view.files import Select
from logagg.view.follow import Follower
from logagg.view.last_lines import Newest, last_lines, most_bytes

_POLL_INTERVAL = 0.05
_IDLE_INTERVAL = 0.2
_IDLE_POLLS = 100  # polls without lines after which the longer interval is used
_BATCH = 2_000

_CURSOR_LINE = re.compile(
    rb'\{"timestamp":"(.{29}Z)","level":"[^"]*","worker":"((?:[^"\\]|\\.)*)","seq":(\d{1,18})(?!\d)'
)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the stream: the last line that a reader has seen.

    No other line has the same time, worker and seq. As text, `TIME,WORKER,SEQ`, it is
    the value of `--after` and the content of a cursor file.
    """

    timestamp: str
    worker: str
    seq: int

    @classmethod
    def of_line(cls, line: bytes) -> Cursor | None:
        """The place of a line; None for lines of other programs."""
        found = _CURSOR_LINE.match(line)
        if found is None:
            return None
        time, worker, seq = found.groups()
        name = worker.decode("utf-8", "replace")
        return cls(time.decode("ascii", "replace"), name, int(seq))

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a cursor from its text.

        Raises:
            ConfigError: It is not one.
        """
        time, _, rest = text.strip().partition(",")
        worker, _, seq = rest.rpartition(",")
        number = seq if seq.isdecimal() and len(seq) < 19 else ""
        if len(time) != 30 or iso_ns(time) is None or not worker or not number:
            raise ConfigError(
                f"cursor {text.strip()!r}: expected TIME,WORKER,SEQ as in a cursor file"
            )
        return cls(time, worker, int(seq))

    @classmethod
    def load(cls, path: str) -> Cursor | None:
        """Read a cursor file; None when it does not exist yet.

        Raises:
            ConfigError: It holds something else.
        """
        try:
            with open(path, encoding="utf-8") as file:
                return cls.parse(file.read())
        except FileNotFoundError:
            return None

    def save(self, path: str) -> None:
        """Replace a cursor file; a reader sees the old or the new one, whole.

        In a directory like /tmp, too: the file is made, not found there.
        """
        new = f"{path}.{secrets.token_hex(8)}.new"
        with open(new, "x", encoding="utf-8") as file:
            file.write(f"{self}\n")
        os.replace(new, path)

    def __str__(self) -> str:
        return f"{self.timestamp},{self.worker},{self.seq}"

    def fields(self) -> tuple[str, str, int]:
        """The cursor as JSON, for the consumer."""
        return self.timestamp, self.worker, self.seq


class TailSource(Protocol):
    """Where the tail loop reads from."""

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """The lines that exist, the last so many of them (None: all)."""

    def poll(self) -> list[bytes]:
        """The lines since."""

    def descriptors(self) -> list[int]:
        """Descriptors to wait for before the next poll."""

    def pause(self) -> float:
        """Seconds to wait at most before the next poll."""

    def ended(self) -> bool:
        """Whether no further line will come."""

    def reachable(self) -> bool:
        """Whether there is something to read from."""

    def close(self) -> None:
        """Release what it holds open."""


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
        self._empty_polls = 0

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """The files' lines now, by time; following begins where this ends."""
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
            batches = [iter([self._newest(each, count)]) for each in self._series]
        if len(batches) == 1 and count is None:
            yield from batches[0]
            return
        parts = [itertools.chain.from_iterable(each) for each in batches]
        merged: Iterator[bytes] = heapq.merge(*parts, key=_time)
        if count is not None:
            merged = iter(deque(merged, maxlen=count))
        while batch := list(itertools.islice(merged, _BATCH)):
            yield batch

    def _newest(self, series: files.Series, count: int) -> list[bytes]:
        newest = Newest(count, most_bytes(count, len(self._series)))
        last_lines(series, self._select, newest)
        if newest.is_cut:
            number = len(newest.lines)
            self._note(f"{series.path}: older lines are too long; the last {number}:")
        return list(newest.lines)

    def _batches(self, series: files.Series) -> Iterator[list[bytes]]:
        cursor = self._after
        if cursor is None:
            yield from file_ranges.all_lines(series, self._select, self._since)
            return
        # After that very line, so that late lines written after it are not missed.
        stamp = cursor.timestamp.encode()
        found = False
        for (data,) in file_ranges.all_lines(series, files.WHOLE, stamp):
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
            for batch in file_ranges.all_lines(series, self._select, stamp):
                yield [line for line in batch if line[TIMESTAMP] > stamp]

    def poll(self) -> list[bytes]:
        """The lines written since, by time when there are several files."""
        found = [line for follower in self._followers for line in follower.poll()]
        if len(self._followers) > 1:
            found.sort(key=_time)
        self._empty_polls = 0 if found else self._empty_polls + 1
        return found

    def descriptors(self) -> list[int]:
        """None: files cannot be waited for."""
        return []

    def pause(self) -> float:
        """The poll interval, longer while nothing is written."""
        return _POLL_INTERVAL if self._empty_polls < _IDLE_POLLS else _IDLE_INTERVAL

    def ended(self) -> bool:
        """A file that is followed may always grow."""
        return not self._follow

    def reachable(self) -> bool:
        """A file that does not exist yet may be created."""
        return True

    def close(self) -> None:
        """Close the files."""
        for follower in self._followers:
            follower.close()
        for series in self._series:
            series.close()


def _time(line: bytes) -> bytes:
    """The key of merging files; lines without a time come first."""
    return line[TIMESTAMP] if is_wire(line) else b""


class PipeSource:
    """A pipe that another program writes to, such as standard input."""

    def __init__(self, descriptor: int, select: Select) -> None:
        self._fd = descriptor
        self._select = select
        self._carry: list[bytes] = []
        self._held = 0
        self._ended = False

    def past(self, count: int | None) -> Iterator[list[bytes]]:
        """Nothing; with a count the last lines, once the pipe is closed."""
        if count is None:
            return
        newest = Newest(count, most_bytes(count))
        while not self._ended:
            newest.extend(self.poll())
        yield list(newest.lines)

    def poll(self) -> list[bytes]:
        """The lines that have come; blocks until there are bytes."""
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
        """Long: the descriptor ends the wait."""
        return 60.0

    def ended(self) -> bool:
        """Whether the pipe was read to its end."""
        return self._ended

    def reachable(self) -> bool:
        """It is open."""
        return True

    def close(self) -> None:
        """Nothing: the pipe belongs to whatever opened it."""
