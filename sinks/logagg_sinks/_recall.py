"""Find out what a set of log files holds since some instant, from their ends.

The lines of a file are in the order of time but for late ones, which stand behind lines
with later stamps. So files are read backwards, newest first, until a whole block has
only lines older than the instant by MARGIN_BYTES. A compressed file cannot be read
backwards: it is unpacked whole, and only if the instant may be in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from logagg.wire import KEY_END, PREFIX, identity
from logagg_sinks import _archive

__all__ = ["recall"]

BLOCK_BYTES = 1024 * 1024
MOST_BYTES = 1024 * 1024 * 1024
"""How much of a log is read at the most: less than a second's reading."""
MOST_RECORDS = 500_000
"""How many identities of a log are kept, give or take a block: about 100 MB. What stands
further back than either may come twice."""
MOST_PACKED_BYTES = 8 * 1024 * 1024
"""A larger compressed file is not unpacked: about 100 MB of records."""
MARGIN_BYTES = 64 * 1024 * 1024
"""How much of older lines is read beyond. Late ones come in long rows: what a worker
kept, 16 MiB and more, when it was suspended."""


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
        most = len(found) + MOST_RECORDS
        for path in paths:
            if older > MARGIN_BYTES or left <= 0 or len(found) > most:
                break
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                size = os.fstat(file).st_size
                read: Callable[[slice], bytes]
                kind = _archive.kind_of(path.name)
                if kind is not None and size <= MOST_PACKED_BYTES:
                    data = _archive.expand(kind, file)
                    size, read = len(data), data.__getitem__
                elif kind is None:
                    read = _reader(file)
                else:
                    break
                left -= size
                older = _backwards(size, read, since, found, most, older)
            finally:
                os.close(file)
    return frozenset(found)


def _reader(file: int) -> Callable[[slice], bytes]:
    return lambda part: os.pread(file, part.stop - part.start, part.start)


def _backwards(
    size: int,
    read: Callable[[slice], bytes],
    since: bytes,
    found: set[bytes],
    most: int,
    older: int,
) -> int:
    """Read one file from its end; return how many bytes of older lines were met."""
    end = size
    rest = b""
    bottom = max(0, end - MOST_BYTES)
    while end > bottom and older <= MARGIN_BYTES and len(found) <= most:
        start = max(0, end - BLOCK_BYTES)
        block = read(slice(start, end)) + rest
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
