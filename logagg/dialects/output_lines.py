"""Captured bytes become texts of records: by threads, and in each one by lines.

Whole lines become records; a line without its end (the last one, or one longer than
MAX_CAPTURED_BYTES) is marked `partial`. Nothing is lost: every byte comes out, invalid
UTF-8 as escapes. There is one exception: of a line that overwrites itself (a progress
bar) only the newest state is kept, with a record each PROGRESS_NS and one at its end. A
line that a worker's Python code printed carries its time, which is taken off (see
`logagg.integrations.printing.timestamped_stdio`); any other gets that of its reading.

A traceback becomes one record. Its end shows only by what follows, so its last lines are
held for a next line, HELD_NS, or the stream's end.

Lines that one call has printed (a banner, a table) are one record, if none of them but
the first is one of its own (`logagg.dialects.printed.is_one_text`). So are a traceback
and the text before it, on its first line or on the lines before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from logagg.core.line import (
    PRINTED_MARK_BYTES,
    split_printed,
)
from logagg.core.tracebacks import Tracebacks, only_traceback
from logagg.dialects.plain_text import level_of_text, without_colours
from logagg.dialects.printed import is_one_text, newest_state

__all__ = ["MAX_CAPTURED_BYTES", "OutputLines", "split_threads"]

MAX_CAPTURED_BYTES = 256 * 1024
"""A longer raw line is cut into records of this length (256 KiB)."""

HELD_NS = 100_000_000
PROGRESS_NS = 5_000_000_000

_FRAME = re.compile(rb"\0\[([0-9a-f]{1,40});(\d{4})\]")
_HEAD_START = re.compile(rb"\0(\[([0-9a-f]{0,40}|[0-9a-f]{1,40};\d{0,4}))?")
_MOST_FRAMED = 4096
_HEADERS = (
    b"Traceback (most recent call last):",
    b"  + Exception Group Traceback (most recent call last):",
)
_FRAMES = (b'  File "', b'  |   File "')

_PAST_NS, _FUTURE_NS = 60_000_000_000, 1_000_000_000  # believed of a printed stamp


class OutputLines:
    """The lines of one thread, or of everything that names none.

    Args:
        offset_ns: Gives what is added to the stamps that lines carry.
        record: Makes the record of a text; called with the text, its time and marks.

    Attributes:
        cut: How many lines were too long for one record.
    """

    __slots__ = (
        "_call",
        "_fed",
        "_offset_ns",
        "_printed_ns",
        "_record",
        "_shown_ns",
        "_tail",
        "_tracebacks",
        "cut",
    )

    def __init__(
        self, offset_ns: Callable[[], int], record: Callable[..., bytes]
    ) -> None:
        self.cut = 0
        self._offset_ns = offset_ns
        self._record = record
        self._tail = b""
        self._fed = 0
        self._printed_ns: int | None = None  # the mark of the line before
        self._shown_ns = 0
        self._tracebacks = Tracebacks()
        self._call: list[tuple[str, int, bool]] = []  # lines that one call has printed

    @property
    def pending(self) -> bool:
        """Whether a traceback, or what one call has printed, waits for its end."""
        return self._tracebacks.held or bool(self._call)

    @property
    def idle(self) -> bool:
        """Whether nothing is held, not even a line that has not ended."""
        return not self._tail and not self.pending

    def feed(self, chunk: bytes, now_ns: int) -> list[bytes]:
        """Take the next bytes; return the records that they complete."""
        found: list[bytes] = []
        lines = chunk.split(b"\n")
        lines[0] = self._tail + lines[0]
        self._tail = lines.pop()
        if b"Traceback (most recent call last):" in chunk:
            lines = _with_headers(lines)
        for line in lines:
            found += self._pieces(line, now_ns)
        found += self._progress(now_ns)
        while len(self._tail) > MAX_CAPTURED_BYTES:
            self.cut += 1
            piece = self._tail[:MAX_CAPTURED_BYTES]
            self._tail = self._tail[MAX_CAPTURED_BYTES:]
            found += self._line(piece, now_ns, partial=True)
        return found

    def release(self, now_ns: int) -> list[bytes]:
        """The records of what was held for long enough."""
        if self.pending and now_ns - self._fed > HELD_NS:
            return self._flush(now_ns)
        return []

    def end(self, now_ns: int) -> list[bytes]:
        """The records of all that is held: nothing follows."""
        found = self._flush(now_ns)
        if self._tail:
            tail, self._tail = self._tail, b""
            found += self._line(tail, now_ns, partial=True)
            found += self._flush(now_ns)
        return found

    def _progress(self, now_ns: int) -> list[bytes]:
        """The newest state of an unfinished line that overwrites itself, now and then."""
        newest = newest_state(self._tail)
        if newest is None:
            return []
        if not self._shown_ns:
            self._shown_ns = now_ns  # a bar that ends soon is only its last state
        self._tail = b"\r\r" + newest
        if now_ns - self._shown_ns < PROGRESS_NS:
            return []
        self._shown_ns = now_ns
        text = newest.decode("utf-8", "backslashreplace")
        return [*self._flush(now_ns), self._record(text, now_ns, progress=True)]

    def _pieces(self, line: bytes, now_ns: int) -> list[bytes]:
        pieces = []
        while len(line) > MAX_CAPTURED_BYTES + PRINTED_MARK_BYTES:
            self.cut += 1
            piece, line = line[:MAX_CAPTURED_BYTES], line[MAX_CAPTURED_BYTES:]
            pieces += self._line(piece, now_ns, partial=True)
        return pieces + self._line(line, now_ns, partial=False)

    def _line(self, line: bytes, now_ns: int, *, partial: bool) -> list[bytes]:
        """The records that a line makes: itself, what was held before it, or none yet."""
        line, printed_ns, goes_on = split_printed(line)
        same_call = printed_ns is not None and printed_ns == self._printed_ns
        self._printed_ns = printed_ns
        read_ns = now_ns
        if printed_ns is not None:
            stamp = printed_ns + self._offset_ns()
            if now_ns - _PAST_NS < stamp < now_ns + _FUTURE_NS:
                now_ns = stamp
        line = line.rstrip(b"\r")
        text = (newest_state(line) or line).decode("utf-8", "backslashreplace")
        self._shown_ns = 0
        if partial:
            return [*self._flush(now_ns), self._record(text, now_ns, partial=partial)]
        self._fed = read_ns
        if goes_on or self._call:
            self._call.append((text, now_ns, same_call or bool(self._call)))
            return [] if goes_on else self._end_of_call()
        return self._feed(text, now_ns, same_call=same_call)

    def _feed(self, text: str, now_ns: int, *, same_call: bool) -> list[bytes]:
        texts = self._tracebacks.feed(text, same_call=same_call)
        return [self._record(each, now_ns) for each in texts]

    def _end_of_call(self) -> list[bytes]:
        """The records of lines that one call has printed: one, if they are one text."""
        lines, self._call = self._call, []
        first, now_ns, _ = lines[0]
        texts = [text for text, _, _ in lines]
        if is_one_text(texts) and not self._tracebacks.takes(first):
            before = self._flush(now_ns)
            return [*before, self._record("\n".join(texts), now_ns, whole=True)]
        header = _joined_header(texts)
        if header and not self._tracebacks.takes(first):
            lines[: header + 1] = [("\n".join(texts[: header + 1]), now_ns, False)]
        found = []
        for text, now_ns, same_call in lines:
            found += self._feed(text, now_ns, same_call=same_call)
        return found

    def _flush(self, now_ns: int) -> list[bytes]:
        """The lines held back of a traceback; their time is that of their release."""
        found = self._end_of_call() if self._call else []
        return found + [self._record(each, now_ns) for each in self._tracebacks.flush()]


def _with_headers(lines: list[bytes]) -> list[bytes]:
    """Lines in which a line right before a traceback is one with its header.

    Where one call has printed both, or another program than a worker's Python code has,
    and the line states a level, as those of `logging` do.
    """
    found: list[bytes] = []
    for index, line in enumerate(lines):
        if line.startswith(_HEADERS) and _is_titled(lines, index):
            title, _, _ = split_printed(found.pop())
            line = title + b"\n" + line  # noqa: PLW2901
        found.append(line)
    return found


def _is_titled(lines: list[bytes], header: int) -> bool:
    """Whether the line before a traceback's header is the title of the traceback."""
    if not header or not lines[header + 1 : header + 2]:
        return False
    if not lines[header + 1].startswith(_FRAMES):
        return False
    title, printed_ns, goes_on = split_printed(lines[header - 1])
    ends_another = header > 1 and lines[header - 2].startswith((b" ", b"\t"))
    if not title or goes_on or ends_another:
        return False  # an empty line is in a chain
    if printed_ns is None:
        text = title.decode("utf-8", "backslashreplace")
        return level_of_text(without_colours(text)) is not None
    return printed_ns == split_printed(lines[header])[1]


def _joined_header(texts: list[str]) -> int:
    """The line with the header of a traceback that is one text with all the others."""
    found = only_traceback(texts)
    if found is None:
        return 0
    header, end = found
    # A first line may state a level, the others are records of their own if they do.
    one = is_one_text(texts[:header]) and is_one_text(["", *texts[end:]])
    return header if one else 0


def split_threads(chunk: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Take what was captured apart by threads.

    Returns:
        Keys and bytes, in order, the key empty for what is in no frame; and the rest,
        which is the beginning of a frame.
    """
    if b"\0[" not in chunk and chunk[-1:] != b"\0":
        return [(b"", chunk)], b""
    found = []
    start = position = 0  # of what is in no frame; of the search
    while True:
        begin = chunk.find(b"\0", position)
        if begin < 0:
            rest = len(chunk)
            break
        frame = _FRAME.match(chunk, begin)
        if frame is None:
            if _may_begin_frame(chunk[begin:]):
                rest = begin
                break
            position = begin + 1
            continue
        size = int(frame[2])
        end = frame.end() + size
        if size > _MOST_FRAMED:
            position = begin + 1
            continue
        if end > len(chunk):
            rest = begin
            break
        if begin > start:
            found.append((b"", chunk[start:begin]))
        found.append((frame[1], chunk[frame.end() : end]))
        start = position = end
    if rest > start:
        found.append((b"", chunk[start:rest]))
    return found, chunk[rest:]


def _may_begin_frame(end: bytes) -> bool:
    """Whether the last bytes of what was read may be the beginning of a frame's head."""
    return _HEAD_START.fullmatch(end) is not None
