"""Merge of the spools' lines into one stream, in the order of time. Pure.

Theory of operation
-------------------
Lines of one spool come in the order that they leave in: a line that is older than one
before it has the place of that one. Lines of different spools are ordered by their
stamps. A line is released when no other spool can be expected to send an older one:

- `delay` has passed since its stamp, by the time of the stream;
- every spool that has sent within `wait` has sent a line that is not older.

The *time of the stream* is the time at which the last message was stored, and goes on
with the clock while nothing more waits to be read. So a backlog is merged as it would
have been when it came, and a silence of the stream itself makes no spool a silent one.

A line that comes after younger ones were released is released at once and marked as
late, in front of `received`, which ends every line. When more than `most_bytes` are held,
silent spools are not waited for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from itertools import accumulate
from operator import itemgetter

from logagg.core.line import KEY_END, key_of, received_suffix, sort_key
from logagg.core.merge import LATE_MARK

__all__ = ["FleetMerge"]

_KEY = itemgetter(slice(0, KEY_END))
_MARK = b',"received":"'
_RECEIVED = 2 - len(received_suffix(0))  # where that field begins, from the end
_AFTER = b"\xff"  # sorts after every line of the key before it


class _Held:
    """The lines of a message that are not released yet.

    Attributes:
        token: The message.
        lines: Its lines.
        keys: Their places, which rise; None where the lines themselves do.
    """

    __slots__ = ("keys", "lines", "token")

    def __init__(self, token: int, lines: list[bytes], least: bytes) -> None:
        self.token = token
        self.lines = lines
        self.keys: list[bytes] | None = None
        first = lines[0]
        if first[:KEY_END] < least or any(map(_falls, lines, lines[1:])):
            keys = accumulate([least, *map(key_of, lines)], max)
            self.keys = list(keys)[1:]

    @property
    def last(self) -> bytes:
        """The key of the last line's place."""
        return self.keys[-1] if self.keys is not None else key_of(self.lines[-1])

    def take(self, until: bytes) -> tuple[list[bytes], list[bytes] | None]:
        """Take the lines before a key, and their places."""
        keys = self.keys
        end = bisect_left(self.lines if keys is None else keys, until)
        taken, self.lines = self.lines[:end], self.lines[end:]
        if keys is None:
            return taken, None
        self.keys = keys[end:]
        return taken, keys[:end]


class _SpoolLines:
    """The lines of one spool that wait, and the end of those that came."""

    __slots__ = ("heard_ns", "held", "last")

    def __init__(self) -> None:
        self.held: deque[_Held] = deque()
        self.last = b""
        self.heard_ns = 0


class FleetMerge:
    """A merge of spools with a watermark.

    Args:
        delay_ns: The least age of a line.
        wait_ns: How long a spool that sends nothing holds the others back.
        most_bytes: How much is held.

    Attributes:
        late: Lines released after younger ones.
        size_bytes: How much is held.
    """

    def __init__(self, delay_ns: int, wait_ns: int, most_bytes: int) -> None:
        self.late = 0
        self.size_bytes = 0
        self._delay_ns = delay_ns
        self._wait_ns = wait_ns
        self._most_bytes = most_bytes
        self._spools: dict[str, _SpoolLines] = {}
        self._own = _SpoolLines()
        self._released = b""

    def add(self, spool: str, token: int, lines: list[bytes], stored_ns: int) -> None:
        """Take the lines of a message, at least one.

        Args:
            spool: Its spool.
            token: Is returned by `release` when all lines are released.
            lines: Wire lines.
            stored_ns: When the stream has stored it.
        """
        source = self._spools.setdefault(spool, _SpoolLines())
        held = _Held(token, lines, source.last)
        source.held.append(held)
        source.last = held.last
        source.heard_ns = stored_ns
        self.size_bytes += sum(map(len, lines))

    def resume_after(self, key: bytes) -> None:
        """Regard lines up to a key as released: a predecessor has written one of it."""
        self._released = max(self._released, key)

    def add_own(self, line: bytes) -> None:
        """Take a line of the collector itself, stamped now."""
        held = _Held(0, [line], self._own.last)
        self._own.held.append(held)
        self._own.last = held.last
        self.size_bytes += len(line)

    def release(
        self, now_ns: int, *, final: bool = False
    ) -> tuple[list[bytes], list[int]]:
        """Release the lines that no older one can be expected for.

        Args:
            now_ns: The time of the stream.
            final: Release all.

        Returns:
            The lines in order, and the tokens of messages that are released whole.
        """
        until = _AFTER if final else self._watermark(now_ns)
        tokens: list[int] = []
        parts: list[tuple[list[bytes], list[bytes] | None]] = []
        for source in (*self._spools.values(), self._own):
            while source.held:
                held = source.held[0]
                parts.append(held.take(until))
                if held.lines:
                    break
                source.held.popleft()
                if held.token:
                    tokens.append(held.token)
        self._forget(now_ns)
        lines, last = self._ordered(parts)
        self.size_bytes -= sum(map(len, lines))
        if lines and key_of(lines[0]) < self._released:
            self._mark_late(lines)
        self._released = max(self._released, last)
        return lines, tokens

    def _mark_late(self, lines: list[bytes]) -> None:
        for place, line in enumerate(lines):
            if line[:KEY_END] < self._released:
                self.late += 1
                if LATE_MARK not in line:
                    end = _RECEIVED if line[_RECEIVED:].startswith(_MARK) else len(line)
                    lines[place] = line[:end] + LATE_MARK + line[end:]

    def _watermark(self, now_ns: int) -> bytes:
        oldest = sort_key(now_ns - self._delay_ns)
        if self.size_bytes > self._most_bytes:
            return oldest if self.size_bytes < 2 * self._most_bytes else _AFTER
        since = now_ns - self._wait_ns
        lasts = [
            source.last + _AFTER
            for source in self._spools.values()
            if source.heard_ns >= since
        ]
        return min([oldest, *lasts])

    def _forget(self, now_ns: int) -> None:
        """Drop spools that wait for nothing and are silent."""
        since = now_ns - self._wait_ns
        for name, source in list(self._spools.items()):
            if not source.held and source.heard_ns < since:
                del self._spools[name]

    @staticmethod
    def _ordered(
        parts: list[tuple[list[bytes], list[bytes] | None]],
    ) -> tuple[list[bytes], bytes]:
        """The lines of all parts by their places, and the last place."""
        if all(keys is None for _, keys in parts):
            # Stable: lines of one stamp stay in the order of their spool.
            lines = sorted([line for lines, _ in parts for line in lines], key=_KEY)
            return lines, key_of(lines[-1]) if lines else b""
        placed: list[tuple[bytes, bytes]] = []
        for lines, keys in parts:
            placed += zip(keys or map(key_of, lines), lines, strict=True)
        placed.sort(key=itemgetter(0))  # stable, too
        return [line for _, line in placed], placed[-1][0] if placed else b""


def _falls(line: bytes, following: bytes) -> bool:
    return following[:KEY_END] < line[:KEY_END]
