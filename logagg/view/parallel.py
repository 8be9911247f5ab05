"""A big plain file searched on all cores, its matches in the file's order.

Theory of operation
-------------------
The file is cut into pieces of PIECE_BYTES; piece number i belongs to the helper number
i mod n, a forked process that selects the lines which begin in its pieces, one piece
after the other, and writes them to a pipe of its own, each piece as its length and its
lines. Reading the pipes in turn gives all pieces in order, and a full pipe holds its
helper back, so memory stays at some pieces, however big the file.

A helper that ends early, for whatever reason, costs time and nothing else: who reads
goes on by itself from the piece that did not come. Helpers end with their reader, as
nobody takes what they write.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["LEAST_BYTES", "Early", "helpers", "select"]

PIECE_BYTES = 1 << 20
LEAST_BYTES = 32 << 20
"""From here on, starting helpers pays: the start costs about 10 ms."""
_MOST_HELPERS = 8
_PIPE_BYTES = 1 << 20
_LONGEST_BYTES = 16 << 20
_LENGTH = struct.Struct("<Q")


class Early(Exception):
    """A piece did not come.

    Attributes:
        place: Where in the file the first line begins that was not selected.
    """

    def __init__(self, place: int) -> None:
        super().__init__(f"from byte {place} on")
        self.place = place


@dataclass(slots=True)
class _Helper:
    pid: int
    pipe: int


def helpers() -> int:
    """How many helpers this process may use."""
    return min(len(os.sched_getaffinity(0)), _MOST_HELPERS)


def select(
    fd: int, begin: int, end: int, selected: Callable[[bytes], list[bytes]]
) -> Iterator[list[bytes]]:
    """The selected lines of a part of a file, in order, piece by piece.

    Args:
        fd: The file, open for reading; its place is not used.
        begin: Where a line begins.
        end: Where to stop; a last line without its newline counts as one.
        selected: From whole lines to those that are wanted, without their newlines.

    Raises:
        Early: Helpers could not be had or died; go on by other means.
    """
    count = helpers()
    found: list[_Helper] = []
    try:
        for number in range(count):
            try:
                found.append(_start(fd, begin, end, selected, number, count, found))
            except OSError:
                raise Early(begin) from None
        for number, place in enumerate(range(begin, end, PIECE_BYTES)):
            lines = _receive(found[number % count].pipe)
            if lines is None:
                raise Early(_next_line(fd, begin, place, end))
            yield lines
    finally:
        for helper in found:
            os.close(helper.pipe)
            with contextlib.suppress(ProcessLookupError):
                os.kill(helper.pid, signal.SIGKILL)
            os.waitpid(helper.pid, 0)


def _start(
    fd: int,
    begin: int,
    end: int,
    selected: Callable[[bytes], list[bytes]],
    number: int,
    count: int,
    others: list[_Helper],
) -> _Helper:
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):  # more than the user may have: then smaller
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid:
        os.close(writer)
        return _Helper(pid, reader)
    status = 1
    try:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(sign, signal.SIG_DFL)
        os.close(reader)
        for other in others:
            os.close(other.pipe)
        for place in range(begin + number * PIECE_BYTES, end, count * PIECE_BYTES):
            data = _piece(fd, begin, place, end)
            _send(writer, b"\n".join(selected(data)) if data else b"")
        status = 0
    finally:
        os._exit(status)  # nothing of the process that was copied may run here


def _send(pipe: int, data: bytes) -> None:
    rest = memoryview(_LENGTH.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def _receive(pipe: int) -> list[bytes] | None:
    head = _exactly(pipe, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    data = _exactly(pipe, length)
    if data is None:
        return None
    return data.split(b"\n") if data else []


def _exactly(pipe: int, count: int) -> bytes | None:
    parts = []
    while count:
        data = os.read(pipe, min(count, _PIPE_BYTES))
        if not data:
            return None
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def _next_line(fd: int, begin: int, place: int, end: int) -> int:
    """Where the first line begins that begins at a place or behind it."""
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
