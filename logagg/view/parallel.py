"""Search of a big plain file on all cores, its matches in the file's order.

Theory of operation
-------------------
The file is cut into pieces of PIECE_BYTES. Piece i belongs to helper i mod n, a forked
process that selects the lines which begin in its pieces and writes them to its own pipe,
each piece as a length and its lines. Reading the pipes in turn gives all pieces in
order; a full pipe blocks its helper, so memory stays at a few pieces.

A helper that ends early costs only time: the reader continues by itself from the piece
that did not come. Helpers end with their reader, whose pipe they can no longer write.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from logagg.platform.system import available_cpus, set_pipe_bytes

__all__ = ["LEAST_BYTES", "Early", "helpers", "select"]

PIECE_BYTES = 1 << 20
LEAST_BYTES = 32 << 20
"""The least size for helpers: starting them costs about 10 ms."""
_MOST_HELPERS = 8
_PIPE_BYTES = 1 << 20
_LONGEST_BYTES = 16 << 20
_LENGTH = struct.Struct("<Q")


class Early(Exception):
    """The search ended before the end of the file.

    Attributes:
        place: Where in the file the first line begins that was not selected.
    """

    def __init__(self, place: int) -> None:
        super().__init__(f"from byte {place} on")
        self.place = place


class _Helper(NamedTuple):
    pid: int
    pipe: IO[bytes]


def helpers() -> int:
    """How many helpers this process may use."""
    return min(available_cpus(), _MOST_HELPERS)


def select(
    fd: int, begin: int, end: int, selected: Callable[[bytes], list[bytes]]
) -> Iterator[list[bytes]]:
    """The selected lines of a part of a file, in order, piece by piece.

    Args:
        fd: The file, open for reading; its place is not used.
        begin: Where a line begins.
        end: Where to stop; a last line without its newline counts as one.
        selected: Selects from whole lines, and takes their newlines away.

    Raises:
        Early: Helpers could not be started, or died.
    """
    count = helpers()
    found: list[_Helper] = []
    try:
        for number in range(count):
            places = range(begin + number * PIECE_BYTES, end, count * PIECE_BYTES)
            try:
                found.append(_start(fd, begin, end, places, selected, found))
            except OSError:
                raise Early(begin) from None
        for number, place in enumerate(range(begin, end, PIECE_BYTES)):
            lines = _receive(found[number % count].pipe)
            if lines is None:
                raise Early(_next_line(fd, begin, place, end))
            yield lines
    finally:
        for helper in found:
            helper.pipe.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(helper.pid, signal.SIGKILL)
            os.waitpid(helper.pid, 0)


def _start(
    fd: int,
    begin: int,
    end: int,
    places: range,
    selected: Callable[[bytes], list[bytes]],
    others: list[_Helper],
) -> _Helper:
    reader, writer = os.pipe()
    set_pipe_bytes(writer, _PIPE_BYTES)
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid:
        os.close(writer)
        return _Helper(pid, open(reader, "rb"))
    status = 1
    try:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(sign, signal.SIG_DFL)
        os.close(reader)
        for other in others:
            other.pipe.close()
        with open(writer, "wb") as out:
            for place in places:
                data = _piece(fd, begin, place, end)
                lines = b"\n".join(selected(data)) if data else b""
                out.write(_LENGTH.pack(len(lines)))
                out.write(lines)
                out.flush()
        status = 0
    finally:
        os._exit(status)  # no handler or `finally` of the copied process may run


def _receive(pipe: IO[bytes]) -> list[bytes] | None:
    """The lines of the next piece, or None when the helper has ended."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        return None
    return data.split(b"\n") if data else []


def _next_line(fd: int, begin: int, place: int, end: int) -> int:
    """Where the first line begins that begins at a place or after it."""
    if place == begin:
        return begin
    place -= 1
    while place < end:
        data = os.pread(fd, min(1 << 16, end - place), place)
        cut = data.find(b"\n") + 1
        if cut:
            return place + cut
        if not data:
            break
        place += len(data)
    return end


def _piece(fd: int, begin: int, place: int, end: int) -> bytes:
    """The lines that begin in a piece, whole.

    Raises:
        ValueError: One of them is longer than a helper may hold.
    """
    stop = min(place + PIECE_BYTES, end)
    first = _next_line(fd, begin, place, end)
    data = os.pread(fd, stop - first, first) if first < stop else b""
    if not data or data.endswith(b"\n"):
        return data
    parts = [data]
    while stop < end:
        more = os.pread(fd, min(1 << 16, end - stop), stop)
        cut = more.find(b"\n") + 1
        if cut:
            parts.append(more[:cut])
            break
        if not more:
            break
        parts.append(more)
        stop += len(more)
        if stop - place > _LONGEST_BYTES:
            raise ValueError("a line without end")
    return b"".join(parts)
