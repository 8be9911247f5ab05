"""Selection and shaping of the wire lines that a sink gets. Pure.

All of it works on a batch's wire lines (bytes without the closing brace), in this order:

1. `level` and `match` select records.
2. `sample` keeps one record in N of those below `warning`.
3. `collapse` makes one record of equal ones that come within some seconds.
4. `fields` and `drop` take fields out.
5. `redact` replaces secrets.

A line is parsed only when a record's own fields must be looked at or changed; what can
be decided from its fixed places is decided on the bytes, and a sink that asks for
nothing gets the very batch that came.

Nothing disappears without a number: a record that was kept by sampling has in `skipped`
how many were left out since the one before it of the same level and logger, and one that
stands for equal ones has in `repeated` for how many, with the times of the `first` and
`last` of them. `flush` releases the numbers that are left, so that at the end they are
exact.
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from logagg.abc import Batch
from logagg.core import levels
from logagg.core.event import Event
from logagg.core.line import (
    KEY_END,
    LEVEL_START,
    PREFIX,
    TIMESTAMP,
    dump_line,
    load_line,
)
from logagg.core.record import SHIELDED, own_record
from logagg.filters.redact import Redaction, unreadable

if TYPE_CHECKING:
    from logagg.filters.matcher import Match
    from logagg.sinks import CommonOptions

__all__ = ["Transform", "for_people", "select_level"]

MOST_KEYS = 10_000
"""How many different records wait for repetitions; then the oldest is let go."""

_CALM = b'debug","worker":"consumer"'
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'  # possessive: a long text takes no memory
_HEAD = re.compile(rb'([^"\\]*)","worker":%b,"seq":\d+,"logger":(%b)' % (_TEXT, _TEXT))
_BODY = re.compile(
    rb'([^"\\]*)","worker":%b,"seq":\d+(,"logger":%b,"message":%b)'
    rb'(?:,"pid":\d+,"process":%b,"thread":%b)?' % ((_TEXT,) * 5)
)


@functools.lru_cache(maxsize=64)
def _split(threshold: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The beginnings (level and its quote) of lines to keep, and of lines to leave."""
    names = levels.STANDARD
    keep = [name for name, number in names.items() if number >= threshold]
    leave = [name for name, number in names.items() if number < threshold]
    return (
        tuple(f'{name}"'.encode() for name in keep),
        tuple(f'{name}"'.encode() for name in leave),
    )


def select_level(lines: list[bytes], threshold: int) -> list[bytes]:
    """The lines whose level is at least the threshold, in their order.

    The names of `logging` are decided on bytes; only a line with another name is
    parsed. A line without a number is kept: rather one record too many than one
    lost.
    """
    if threshold <= 0:
        return lines
    keep, leave = _split(threshold)
    chosen = [
        line
        for line in lines
        if line.startswith(keep, LEVEL_START)
        or (not line.startswith(leave, LEVEL_START) and _at_least(line, threshold))
    ]
    return lines if len(chosen) == len(lines) else chosen


def _at_least(line: bytes, threshold: int) -> bool:
    number = levels.number_in(load_line(line + b"}") or {})
    return number is None or number >= threshold


def for_people(batch: Batch) -> Batch:
    """The batch less the records of workers that ended well: no news to people."""
    lines = [line for line in batch.lines if not line.startswith(_CALM, LEVEL_START)]
    return batch.select(lines)


class Transform:
    """The shaping of one sink; it keeps the state of sampling and collapsing.

    Args:
        common: The sink's options.

    Attributes:
        counters: Records by what was done: `filtered`, `sampled`, `collapsed`, `made`
            (what sampling has left out), and values `redacted`.
    """

    def __init__(self, common: CommonOptions) -> None:
        self.counters: dict[str, int] = {}
        self._level = common.level
        self._match = _filter(common.match)
        self._sample = common.sample
        self._skipped: dict[bytes, int] = {}
        self._collapse = _Collapse(common.collapse) if common.collapse else None
        self._keep = frozenset(common.fields)
        self._drop = frozenset(common.drop)
        self._redaction = Redaction(common.redact)
        asked = (self._match, self._collapse, self._keep, self._drop)
        self._nothing = (
            self._level <= 0 and self._sample <= 1 and not any(asked)
        ) and self._redaction.nothing

    def apply(self, batch: Batch, now: float) -> Batch:
        """Select and shape a batch; the very same batch when nothing changes.

        Args:
            batch: The batch, which is not changed.
            now: The time in seconds, on any clock that does not go back.
        """
        if self._nothing:
            return batch
        before = lines = batch.lines
        lines = select_level(lines, self._level)
        if self._match is not None:
            lines = self._match.lines(lines, batch.closing)
        self._count("filtered", len(before) - len(lines))
        if self._sample > 1:
            lines = self._sampled(lines)
        if self._collapse is not None:
            number = len(lines)
            lines = self._collapse.lines(lines, now)
            self._count("collapsed", number - len(lines))
        return self._finish(batch, lines)

    def _finish(self, batch: Batch, lines: list[bytes]) -> Batch:
        if self._keep or self._drop:
            lines = [self._pruned(line) for line in lines]
        if not self._redaction.nothing and lines:
            if lines is batch.lines:
                return self._redact_whole(batch)
            count = self._redaction.count
            lines = self._redaction.lines(lines)
            self._count("redacted", self._redaction.count - count)
        return batch if lines is batch.lines else Batch(lines, batch.closing)

    def _redact_whole(self, batch: Batch) -> Batch:
        """Redact a batch as it came: once for all sinks that want it alike."""
        known = batch.memo.get(self._redaction.key)
        if known is None:
            count = self._redaction.count
            lines = self._redaction.lines(batch.lines)
            same = lines is batch.lines
            done = None if same else Batch(lines, batch.closing)
            known = batch.memo[self._redaction.key] = (
                done,
                self._redaction.count - count,
            )
        self._count("redacted", known[1])
        return batch if known[0] is None else known[0]

    @property
    def due(self) -> float | None:
        """When `flush` has something to hand out, on the clock of `apply`; or None."""
        return self._collapse.due if self._collapse is not None else None

    def flush(self, stamp: bytes, closing: bytes, now: float, *, final: bool) -> Batch:
        """The records that were held back and whose time has come.

        Args:
            stamp: The time that they get: 30 characters, as in a record.
            closing: What finishes a line.
            now: As for `apply`.
            final: The stream ends: release all that is left.
        """
        lines = []
        if self._collapse is not None:
            lines += self._collapse.expired(now, stamp, final=final)
            self._count("collapsed", -len(lines))
        if final:
            summaries = [
                _left_out(stamp, key, number)
                for key, number in self._skipped.items()
                if number
            ]
            self._count("made", len(summaries))
            lines += summaries
            self._skipped.clear()
        return self._finish(Batch(lines, closing), lines)

    def statistics(self) -> dict[str, int]:
        """All counters, those without a count too."""
        kinds = ("filtered", "sampled", "collapsed", "made", "redacted")
        return {key: self.counters.get(key, 0) for key in kinds}

    def _count(self, reason: str, number: int) -> None:
        if number:
            self.counters[reason] = self.counters.get(reason, 0) + number

    def _sampled(self, lines: list[bytes]) -> list[bytes]:
        kept = []
        _, below = _split(levels.STANDARD["warning"])
        for line in lines:
            if not line.startswith(below, LEVEL_START) and _at_least(line, 30):
                kept.append(line)
                continue
            head = _HEAD.match(line, LEVEL_START)
            key = b'"%b","logger":%b' % head.groups() if head else b""
            if key not in self._skipped and len(self._skipped) >= MOST_KEYS:
                key = b""
            skipped = self._skipped.get(key)
            if skipped is not None and skipped < self._sample - 1:
                self._skipped[key] = skipped + 1
                continue
            kept.append(b'%b,"skipped":%d' % (line, skipped) if skipped else line)
            self._skipped[key] = 0
        self._count("sampled", len(lines) - len(kept))
        return lines if len(kept) == len(lines) and kept == lines else kept

    def _pruned(self, line: bytes) -> bytes:
        if not self._keep and not any(
            b'"%b":' % name.encode() in line for name in self._drop
        ):
            return line
        record = load_line(line + b"}", exact=True)
        if record is None:
            return unreadable(line)
        left = {
            name: value
            for name, value in record.items()
            if name not in self._drop
            and (not self._keep or name in SHIELDED or name in self._keep)
        }
        try:
            return line if len(left) == len(record) else dump_line(left)
        except ValueError:
            return unreadable(line)


def _filter(text: str) -> Match | None:
    if not text.strip():
        return None
    from logagg.filters import matcher  # few sinks have a filter

    found = matcher.compile((text,))
    return None if found.everything else found


class _Group:
    """Equal records since the first one, which was let through."""

    __slots__ = ("count", "ends", "first", "last")

    def __init__(self, line: bytes, ends: float) -> None:
        self.first = line[TIMESTAMP]
        self.last = line
        self.count = 0
        self.ends = ends


class _Collapse:
    """Holds back equal records for some seconds and lets one stand for them.

    Equal are records that differ in nothing but time, seq and who wrote them (worker,
    pid, process, thread).
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._groups: OrderedDict[bytes, _Group] = OrderedDict()  # by their ends

    @property
    def due(self) -> float | None:
        """When the oldest group ends."""
        return next((group.ends for group in self._groups.values()), None)

    def lines(self, lines: Sequence[bytes], now: float) -> list[bytes]:
        """Lines to let through: firsts at once, those for repetitions later."""
        out = self.expired(now, lines[0][TIMESTAMP], final=False) if lines else []
        for line in lines:
            body = _BODY.match(line, LEVEL_START)
            if body is None:
                out.append(line)
                continue
            key = b"%b%b%b" % (body[1], body[2], line[body.end() :])
            group = self._groups.get(key)
            if group is not None:
                group.last = line
                group.count += 1
                continue
            self._groups[key] = _Group(line, now + self._seconds)
            if len(self._groups) > MOST_KEYS:
                _, oldest = self._groups.popitem(last=False)
                out += _stands_for(oldest, line[TIMESTAMP])
            out.append(line)
        return out

    def expired(self, now: float, stamp: bytes, *, final: bool) -> list[bytes]:
        """The records that stand for repetitions whose time is over."""
        out: list[bytes] = []
        while self._groups:
            key, group = next(iter(self._groups.items()))
            if group.ends > now and not final:
                break
            del self._groups[key]
            out += _stands_for(group, stamp)
        return out


def _stands_for(group: _Group, stamp: bytes) -> list[bytes]:
    """One record for all repetitions, stamped so that time does not go back."""
    if not group.count:
        return []
    line = group.last
    return [
        b'%b%b%b,"repeated":%d,"first":"%b","last":"%b"'
        % (PREFIX, stamp, line[KEY_END:], group.count, group.first, line[TIMESTAMP])
    ]


def _left_out(stamp: bytes, key: bytes, number: int) -> bytes:
    """A record with the number of those left out since the last one kept."""
    fields: dict[str, Any] = {"skipped": number}
    if key:
        level, _, logger = key.partition(b',"logger":')
        fields["of_level"] = _text_of(level)
        fields["of_logger"] = _text_of(logger)
    message = f"{number} records were left out by sampling"
    return dump_line(
        own_record(stamp.decode(), Event.SAMPLED, message, level="info", **fields)
    )


def _text_of(quoted: bytes) -> str:
    try:
        return str(orjson.loads(quoted))
    except ValueError:  # such as an escape of half a character
        return quoted.decode("utf-8", "backslashreplace")
