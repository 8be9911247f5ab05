"""Where a log file is cut, when, what the pieces are called, and which ones go. Pure.

Names, each possibly followed by the suffix of a compression:

- rotated by size only: `app.log.1` is the newest, as `logging.handlers` numbers them;
- rotated by time: `app.log.2026-11-25` (with `_13`, `_13-05`, `_13-05-59` for hours,
  minutes, seconds) is the start of the period that is in it; when there are more pieces
  of one period they are `….1`, `….2`, the higher the later;
- named by date: `app-{date}.log` has a new name each day; a piece cut by size on the
  same day is numbered as in the first form.

Periods are aligned to the wall clock (a day begins at `at`, an hour at minute 0), so a
restart neither delays nor repeats a rotation. A clock that is set back rotates nothing.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["Backup", "Names", "Schedule", "When", "cut", "doomed"]

SUFFIXES = (".gz", ".zst")
_DAY = 86400


def cut(data: bytes, start: int, room: int) -> int:
    """Where to stop writing whole lines of `data` from `start` into `room` bytes.

    Returns:
        The end of the last line that fits; `start` when not even one does.
    """
    if len(data) - start <= room:
        return len(data)
    if room <= 0:
        return start
    return max(data.rfind(b"\n", start, start + room) + 1, start)


class When(enum.Enum):
    """The unit of a time rotation, in the letters of `logging.handlers`."""

    SECOND = "s"
    MINUTE = "m"
    HOUR = "h"
    DAY = "d"
    MIDNIGHT = "midnight"
    MONDAY = "w0"
    TUESDAY = "w1"
    WEDNESDAY = "w2"
    THURSDAY = "w3"
    FRIDAY = "w4"
    SATURDAY = "w5"
    SUNDAY = "w6"

    @property
    def unit(self) -> int:
        """Its length in seconds."""
        units = {"s": 1, "m": 60, "h": 3600, "w": 7 * _DAY}
        return units.get(self.value[0], _DAY) if self.value != "midnight" else _DAY


_LABELS = {1: "%Y-%m-%d_%H-%M-%S", 60: "%Y-%m-%d_%H-%M", 3600: "%Y-%m-%d_%H"}


class Schedule:
    """Numbers the periods between two rotations.

    Args:
        when: The unit.
        interval: How many units are one period.
        at: Seconds after midnight at which a day or week begins.
        utc: Days begin in UTC instead of local time.
    """

    def __init__(
        self, when: When, interval: int = 1, at: int = 0, *, utc: bool = False
    ) -> None:
        self._length = when.unit * interval
        self._label = _LABELS.get(when.unit, "%Y-%m-%d")
        self._utc = utc
        self._origin = at if when.unit >= _DAY else 0
        if when.value[0] == "w":
            # Day 0 of the epoch was a Thursday (weekday 3).
            self._origin += (int(when.value[1]) - 3) % 7 * _DAY

    def _wall(self, now: float) -> int:
        seconds = int(now // 1)
        if self._utc:
            return seconds
        return seconds + time.localtime(seconds).tm_gmtoff

    def period(self, now: float) -> int:
        """The number of the period that an instant (seconds since the epoch) is in."""
        return (self._wall(now) - self._origin) // self._length

    def label(self, period: int) -> str:
        """What a file with the records of a period is named after: its start."""
        start = period * self._length + self._origin
        if self._length >= _DAY:
            start -= self._origin % _DAY  # the day, whatever the hour it begins at
        return time.strftime(self._label, time.gmtime(start))

    def rest(self, now: float) -> float:
        """Seconds until the next period may begin; at most a minute (clocks change)."""
        wall = self._wall(now) - self._origin
        return min(60.0, self._length - wall % self._length - now % 1)


class Backup(NamedTuple):
    """A rotated file; `order` sorts the oldest first."""

    order: tuple[str, int]
    names: tuple[str, ...]


class Names:
    """The names of one log file and its rotated pieces.

    Args:
        base: The file's name.
        dated: Rotated pieces are named after their period.
        family: For a name with a date in it: an expression that matches the name of
            any day, whose group 1 is the date.
    """

    def __init__(self, base: str, *, dated: bool = False, family: str = "") -> None:
        self.base = base
        self._dated = dated
        plain = re.escape(base)
        end = r"(?:\.gz|\.zst)?"
        if family:
            pattern = rf"{family}(?:\.([1-9]\d{{0,8}}))?{end}"
        elif dated:
            stamp = r"\d{4}-\d\d-\d\d(?:_\d\d(?:-\d\d){0,2})?"
            pattern = rf"{plain}\.({stamp})(?:\.([1-9]\d{{0,8}}))?{end}"
        else:
            pattern = rf"{plain}\.()([1-9]\d{{0,8}}){end}"
        self._pattern = re.compile(pattern, re.ASCII)
        own = self._pattern.fullmatch(base) if family else None
        self._day = own[1] if own else ""

    def backups(self, names: Iterable[str]) -> list[Backup]:
        """The rotated pieces among the names, the oldest first.

        For a name with a date in it those of younger days are none of them: the next
        day's file may be in use when this one is still looked after.
        """
        found: dict[tuple[str, int], list[str]] = {}
        for name in names:
            match = self._pattern.fullmatch(name)
            if match and name != self.base and (match[1] <= self._day or not self._day):
                number = int(match[2] or 0)
                order = (match[1], number if self._dated else -number)
                found.setdefault(order, []).append(name)
        return [Backup(order, tuple(sorted(found[order]))) for order in sorted(found)]

    def moves(self, names: Iterable[str], label: str = "") -> list[tuple[str, str]]:
        """The renames, in order, that put the file among its rotated pieces.

        Args:
            names: What is in the directory.
            label: The file's period, for dated names.
        """
        if self._dated:
            taken = [b.order[1] for b in self.backups(names) if b.order[0] == label]
            number = f".{max(taken) + 1}" if taken else ""
            return [(self.base, f"{self.base}.{label}{number}")]
        numbered = {
            -backup.order[1]: backup.names for backup in Names(self.base).backups(names)
        }
        last = 0
        while last + 1 in numbered:
            last += 1
        moves = [
            (name, f"{self.base}.{place + 1}{suffix(name)}")
            for place in range(last, 0, -1)
            for name in numbered[place]
        ]
        moves.append((self.base, f"{self.base}.1"))
        return moves


def suffix(name: str) -> str:
    """The suffix of the compression that a name ends with, or nothing."""
    return next((end for end in SUFFIXES if name.endswith(end)), "")


class Piece(NamedTuple):
    """What is known of a name in the directory."""

    size: int
    modified: float


def doomed(
    backups: list[Backup],
    pieces: Mapping[str, Piece],
    *,
    now: float,
    keep: int = 0,
    max_age: float = 0.0,
    room: int | None = None,
) -> list[str]:
    """The names that must go, the oldest first.

    Args:
        backups: The rotated files, oldest first.
        pieces: Their sizes and times.
        now: The time.
        keep: How many may stay; 0 for all.
        max_age: Seconds since its last record after which a file goes; 0 for never.
        room: How many bytes may stay; None for any number.
    """
    gone: list[str] = []
    total = 0
    for place, backup in enumerate(reversed(backups)):
        known = [pieces[name] for name in backup.names if name in pieces]
        total += sum(piece.size for piece in known)
        old = max((piece.modified for piece in known), default=now)
        if (
            (keep and place >= keep)
            or (max_age and now - old > max_age)
            or (room is not None and total > room)
        ):
            gone[:0] = backup.names
    return gone
