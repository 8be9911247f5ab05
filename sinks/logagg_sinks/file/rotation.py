"""Rotation: when and where to cut a log file, and the names of its pieces. Pure.

Names, each possibly followed by the suffix of a compression:

- rotated by size only: `app.log.1` is the newest, as `logging.handlers` numbers them;
- rotated by time: `app.log.2026-11-25` (with `_13`, `_13-05`, `_13-05-59` for hours,
  minutes, seconds) has the start of its period in its name; more pieces of one period
  are `….1`, `….2`, the higher the later;
- named by date: `app-{date}.log` has a new name each day; pieces of the same day are
  numbered as in the first form.

Periods are aligned to the wall clock (a day begins at `at`, an hour at minute 0), so a
restart neither delays nor repeats a rotation. A clock that is set back rotates nothing.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

__all__ = [
    "Backup",
    "LogName",
    "Names",
    "Schedule",
    "When",
    "cut",
    "doomed",
    "family",
    "names_of",
    "suffix",
]

SUFFIXES = (".gz", ".zst")
_DAY = 86400


def cut(data: bytes, start: int, room: int) -> int:
    """Find the end of the whole lines of `data` from `start` that fit into `room` bytes.

    Returns:
        The end of the last line that fits; `start` when none does.
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
        units = {"s": 1, "m": 60, "h": 3600, "d": _DAY, "midnight": _DAY}
        return units.get(self.value, 7 * _DAY)


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
        """The part of a file's name for a period: its start."""
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

        For a name with a date, files of later days are left out: the next day's file
        may be in use while this one is tidied.
        """
        found: dict[tuple[str, int], list[str]] = {}
        for name in names:
            match = self._pattern.fullmatch(name)
            if match and name != self.base and (match[1] <= self._day or not self._day):
                number = int(match[2] or 0)
                order = (match[1], number if self._dated else -number)
                found.setdefault(order, []).append(name)
        return [Backup(order, tuple(sorted(found[order]))) for order in sorted(found)]

    def date_of(self, name: str) -> str:
        """The date in the name of a file of the family; empty for other files."""
        match = self._pattern.fullmatch(name)
        return match[1] if match else ""

    def moves(
        self,
        names: Iterable[str],
        own: Container[str] | None = None,
        label: str = "",
    ) -> list[tuple[str, str]]:
        """The renames, in order, that put the file among its rotated pieces.

        No name is used that is taken by a file of others, which stays where it is.

        Args:
            names: The names in the directory.
            own: Those of the sink's own files; None for all.
            label: The file's period, for dated names; never one before another's, so
                that the names stay in the order of the records.
        """
        if self._dated:
            present = self.backups(names)
            mine = [b for b in present if own is None or any(n in own for n in b.names)]
            label = max([label, *(backup.order[0] for backup in mine)])
            taken = [b.order[1] for b in present if b.order[0] == label]
            number = f".{max(taken) + 1}" if taken else ""
            return [(self.base, f"{self.base}.{label}{number}")]
        numbered: dict[int, list[str]] = {}
        foreign = set()
        for backup in Names(self.base).backups(names):
            place = -backup.order[1]
            numbered[place] = [
                name for name in backup.names if own is None or name in own
            ]
            if len(numbered[place]) < len(backup.names):
                foreign.add(place)

        def following(place: int) -> int:
            place += 1
            while place in foreign:
                place += 1
            return place

        places = [following(0)]
        shifted = []  # also one before the first, which a file of others joined
        for place in sorted(place for place in numbered if numbered[place]):
            if place > places[-1]:
                break
            shifted.append(place)
            places.append(following(places[-1]))
        moves = [
            (name, f"{self.base}.{after}{suffix(name)}")
            for place, after in zip(shifted[::-1], places[:0:-1], strict=True)
            for name in numbered[place]
        ]
        moves.append((self.base, f"{self.base}.{places[0]}"))
        return moves


class LogName(NamedTuple):
    """A log and its file now, as paths below the sink's directory.

    Attributes:
        series: The log, a NUL in place of the date.
        name: The file.
        literal: The user gave the name; else it is made from a record's fields.
    """

    series: str
    name: str
    literal: bool = True

    @property
    def dated(self) -> bool:
        """Whether the file's name has a date in it."""
        return "\0" in self.series


def names_of(series: str, name: str, *, dated: bool) -> Names:
    """The names of a log's pieces.

    Args:
        series: The log's name, a NUL in place of the date.
        name: The name of its file now.
        dated: Rotated pieces are named after their period.
    """
    return Names(name, dated=dated, family=family(series) if "\0" in series else "")


def family(series: str) -> str:
    """An expression for a log's name on any day, whose group 1 is the date."""
    first, *others = series.split("\0")
    stamp = r"(\d{4}-\d\d-\d\d)"
    return re.escape(first) + stamp + r"\1".join(map(re.escape, others))


def suffix(name: str) -> str:
    """The suffix of the compression that a name ends with, or nothing."""
    return next((end for end in SUFFIXES if name.endswith(end)), "")


class Piece(NamedTuple):
    """Size and modification time of a file."""

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
    """Choose the files to remove, the oldest first.

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
