"""Batches of a request: records encoded one by one, cut by count and bytes. Pure.

Each record is encoded once, before it joins a batch, so one that cannot be encoded
costs itself only. An item's `size` is an upper bound of what it adds to the body, so a
body never exceeds the limit, except when a single record does by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import orjson

from logagg.wireformat import KEY_END, PREFIX

__all__ = [
    "Ages",
    "Item",
    "Ledger",
    "Load",
    "Refused",
    "cut",
    "is_older",
    "load",
    "shorten",
]

KEY_START = len(PREFIX)


def is_older(line: bytes, oldest: bytes) -> bool:
    """Whether a record's timestamp is before this one; empty is before all."""
    return line[KEY_START:KEY_END] < oldest and line.startswith(PREFIX)


Refused = tuple[int, bytes, str]
"""A record that will never be taken: its end in the spool, its line, the reason."""


class Item(NamedTuple):
    """A record on its way to a target.

    Attributes:
        end: The position at which it ends in the spool: its name.
        line: The record as it came, one line of JSON without its newline.
        data: The record as the target wants it.
        group: Records of a group stand together in the body (a stream, a resource).
        size: What it adds to the body at most, in bytes.
    """

    end: int
    line: bytes
    data: bytes
    group: bytes
    size: int


class Load(NamedTuple):
    """Records read from the spool.

    Attributes:
        items: The records for the next request, in order.
        refused: Lines that can not be sent, with the reason: (end, line, reason).
        end: The position up to which lines were used.
    """

    items: list[Item]
    refused: list[Refused]
    end: int


Encode = Callable[[bytes], tuple[bytes, bytes, int]]
"""A line to (data, group, size). Raises ValueError when it cannot be encoded."""


def load(
    data: bytes,
    start: int,
    encode: Encode,
    *,
    records: int,
    body_bytes: int,
    oldest: bytes = b"",
    until: int | None = None,
) -> Load:
    """Make the next batch from NDJSON.

    Args:
        data: Whole lines, each with its newline.
        start: The position of their first byte.
        encode: Encodes one record.
        records: The most records in a batch.
        body_bytes: The most bytes in its body.
        oldest: A record whose timestamp is before this is refused as "expired".
        until: The batch ends exactly at this position: it was tried before, by a
            process that ended, and must be the same again.
    """
    items: list[Item] = []
    refused: list[Refused] = []
    position, total = start, 0
    lines = data.split(b"\n")
    lines.pop()
    for raw in lines:
        if until is not None:
            if position >= until:
                break
        elif len(items) >= records:
            break
        end = position + len(raw) + 1
        line = raw.lstrip(b"\0")  # a power cut leaves zeros in a file
        if is_older(line, oldest):
            refused.append((end, line, "expired"))
            position = end
            continue
        try:
            encoded, group, size = encode(line)
        except (ValueError, TypeError, RecursionError) as error:
            refused.append((end, line, f"not a record: {error}"))
            position = end
            continue
        if until is None and items and total + size > body_bytes:
            break
        items.append(Item(end, line, encoded, group, size))
        total += size
        position = end
    return Load(items, refused, position)


def cut(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Two halves, in order; the first is the larger one when they are not equal."""
    middle = (len(items) + 1) // 2
    return list(items[:middle]), list(items[middle:])


def shorten(line: bytes, most: int) -> bytes:
    """Cut the longest texts of a record until its line has at most `most` bytes.

    A mark replaces what was cut: `…[truncated 1234 bytes]`. The fields that name
    the record (timestamp, level, worker, seq) stay whole. Where there is no long text to
    cut, the last fields are left out, and `truncated_fields` has their number.

    Raises:
        ValueError: The line is not a JSON object, or it cannot be made short enough.
    """
    if len(line) <= most:
        return line
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    names = [key for key in record if key not in _KEPT]
    names.sort(key=lambda key: len(_text(record[key])), reverse=True)
    for key in names:
        text = _text(record[key])
        if len(text) <= 2 * _MARGIN:
            break
        excess = len(line) - most
        room = len(text.encode()) - excess - _MARGIN
        while True:
            room = max(room, 0)
            record[key] = _clip(text, room)
            line = orjson.dumps(record)
            if len(line) <= most:
                return line
            if room == 0:
                break
            room = min(room - (len(line) - most), room // 2)
    return _with_fewer_fields(record, most)


def _with_fewer_fields(record: dict[str, Any], most: int) -> bytes:
    sizes = {
        key: len(orjson.dumps(key)) + len(orjson.dumps(value)) + 2
        for key, value in record.items()
    }
    room = most - _MARGIN - sum(sizes[key] for key in record if key in _KEPT)
    if room < 0:
        raise ValueError(f"it cannot be cut to {most} bytes")
    kept = {}
    for key, value in record.items():
        if key not in _KEPT:
            room -= sizes[key]
        if key in _KEPT or room >= 0:
            kept[key] = value
    left_out = {"truncated_fields": len(record) - len(kept)}
    received = {"received": kept.pop("received")} if "received" in kept else {}
    return orjson.dumps(kept | left_out | received)  # which ends every line


_KEPT = frozenset({"timestamp", "level", "worker", "seq", "received", "pid"})
_MARGIN = 40  # the marker's own length


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _clip(text: str, room: int) -> str:
    data = text.encode()
    if len(data) <= room:
        return text
    kept = data[:room].decode("utf-8", "ignore")
    return f"{kept}…[truncated {len(data) - len(kept.encode())} bytes]"


class Ledger:
    """The records of a batch that are final, in whatever order they become so.

    Args:
        ends: The positions at which its records end.
    """

    def __init__(self, ends: Iterable[int] = ()) -> None:
        self._open = deque(sorted(ends))
        self._final: set[int] = set()

    def finalize(self, ends: Iterable[int]) -> tuple[int, int] | None:
        """Mark records as final.

        Returns:
            The position before which all are final now, and the number of records that
            it has moved by; None when it has not moved.
        """
        self._final.update(ends)
        position = records = 0
        while self._open and self._open[0] in self._final:
            position = self._open.popleft()
            self._final.discard(position)
            records += 1
        return (position, records) if records else None


class Ages:
    """Ages of the records in a spool: when the first one has waited long enough.

    One mark stands for all records that came within an eighth of the age.

    Args:
        age: How long that is, in seconds.
    """

    def __init__(self, age: float) -> None:
        self._age = age
        self._marks: deque[tuple[int, float]] = deque()  # (end of what came, when)

    def note(self, end: int, now: float) -> None:
        """Records came; the last one ends at this position."""
        if not self._marks or self._marks[-1][1] + self._age / 8 < now:
            self._marks.append((end, now))

    def left(self, start: int, end: int, now: float) -> float:
        """Seconds until the record at `start` has waited long enough; or none.

        A record that no mark stands for came while others filled a batch by
        themselves: it has waited long enough.
        """
        while self._marks and self._marks[0][0] <= start:
            marked, at = self._marks.popleft()
            if not self._marks and marked < end:
                self._marks.append((end, at))
        return self._marks[0][1] + self._age - now if self._marks else 0.0
