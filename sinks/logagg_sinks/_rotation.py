"""Where a file is cut, and what the cut pieces are called. Pure.

Rotated files are numbered as `logging.handlers.RotatingFileHandler` does: `app.log.1`
is the newest. A number may carry a compression's suffix (`app.log.2.gz`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["cut", "numbered", "shift"]

SUFFIXES = (".gz", ".zst")


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


def numbered(base: str, names: Iterable[str]) -> dict[int, list[str]]:
    """The rotated files of `base` among the names, by number."""
    pattern = re.compile(
        re.escape(base) + r"\.([1-9][0-9]{0,8})(?:\.gz|\.zst)?", re.ASCII
    )
    found: dict[int, list[str]] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), []).append(name)
    return found


def shift(base: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """The renames, in order, that free number 1: only up to the first free number."""
    found = numbered(base, names)
    last = 0
    while last + 1 in found:
        last += 1
    moves = []
    for number in range(last, 0, -1):
        for name in sorted(found[number]):
            suffix = next((end for end in SUFFIXES if name.endswith(end)), "")
            moves.append((name, f"{base}.{number + 1}{suffix}"))
    return moves
