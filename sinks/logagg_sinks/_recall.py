"""Find out what a set of log files holds since some instant, from their ends.

The lines of a file are in the order of time but for late ones, which stand behind lines
with later stamps. So files are read backwards, newest first, until a whole block has
only lines older than the instant by MARGIN_BYTES; what is compressed is not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from logagg.wire import KEY_END, PREFIX, identity

__all__ = ["recall"]

BLOCK_BYTES = 1024 * 1024
MOST_BYTES = 64 * 1024 * 1024
"""How much of a log is read at the most; records parked for longer may come twice."""
MARGIN_BYTES = 4 * 1024 * 1024
"""How much of older lines is read beyond, for late ones among them."""


def recall(logs: Iterable[list[Path]], since: bytes) -> frozenset[bytes]:
    """The identities of the records in these files, stamped at or after `since`.

    Args:
        logs: For each log its files, the newest first; missing ones are left out.
        since: The sort key of the oldest record that is asked for.
    """
    found: set[bytes] = set()
    for paths in logs:
        older = 0
        left = MOST_BYTES
        for path in paths:
            if older > MARGIN_BYTES or left <= 0:
                break
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                left -= os.fstat(file).st_size
                older = _backwards(file, since, found, older)
            finally:
                os.close(file)
    return frozenset(found)


def _backwards(file: int, since: bytes, found: set[bytes], older: int) -> int:
    """Read one file from its end; return how many bytes of older lines were met."""
    end = os.fstat(file).st_size
    rest = b""
    bottom = max(0, end - MOST_BYTES)
    while end > bottom and older <= MARGIN_BYTES:
        start = max(0, end - BLOCK_BYTES)
        block = os.pread(file, end - start, start) + rest
        end = start
        lines = block.split(b"\n")
        rest = lines.pop(0) if start else b""
        fresh = [
            identity(line)
            for line in lines
            if line.startswith(PREFIX) and line[:KEY_END] >= since
        ]
        found.update(fresh)
        older = 0 if fresh else older + len(block)
    return older
