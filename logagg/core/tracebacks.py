"""Tracebacks among captured lines, joined into one text each. Pure.

Theory of operation
-------------------
A traceback begins with its header line, goes on with indented lines, and ends with the
line that names the exception. What may follow is a chain: an empty line, one of two
known sentences, an empty line, and the next traceback. An exception group is all
indented and ends before the first line that is not. An empty line after a traceback is
a part of it: `print(format_exc())` writes one.

A header may stand at the end of other text (`print("failed:", format_exc())`). It is one
if a frame follows.

So the end of a traceback can only be known from the next line: after the exception's
line the text is held until that line comes, or until its owner times out (`flush`).
A message of several lines has no mark of its own; lines that were printed in one call
with the line of the exception, or with the whole traceback, belong to it.
Nothing is ever lost or reordered: the texts that come out, joined by
newlines, are the lines that went in.
"""

from __future__ import annotations

import enum
import itertools

__all__ = ["MOST_LINES", "Tracebacks", "has_header", "only_traceback"]

MOST_LINES = 2000
"""A longer one is given out in pieces; a RecursionError has about 1,000 frames folded."""

_HEADER = "Traceback (most recent call last):"
_GROUP = "+ Exception Group Traceback (most recent call last):"
_FRAME = '  File "'
_GROUP_FRAME = '  |   File "'
_FRAMES = (_FRAME, _GROUP_FRAME)
_LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


class _ParseState(enum.Enum):
    OUTSIDE = 0
    FRAMES = 1  # after a header
    GROUP = 2  # after a group's header
    ENDED = 3  # after the exception's line
    GAP = 4  # after the empty line that may announce a chain
    LINK = 5  # after the sentence, or the empty line after it
    HEADED = 6  # after text that ends with a header


class Tracebacks:
    """The lines of one stream, one after the other.

    Attributes:
        held: Whether lines are held back that only a further line, or `flush`, frees.
    """

    __slots__ = ("_held_since_call", "_lines", "_state")

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._state = _ParseState.OUTSIDE
        self._held_since_call = False  # the printing call began with a held line

    @property
    def held(self) -> bool:
        """Whether lines are held back."""
        return bool(self._lines)

    def takes(self, line: str) -> bool:
        """Whether a line would be held as a part of what is held already."""
        state = self._state
        found = self.held and self._advance(line) is None
        self._state = state
        return found

    def feed(self, line: str, *, same_call: bool = False) -> list[str]:
        """Take a line; return the texts that are complete.

        Args:
            line: The line, without its newline.
            same_call: Whether it was printed in one call with the line before it.
        """
        joined = same_call and self._held_since_call and self.held
        found = self._advance(line)
        if joined and found is False:
            self._state = _ParseState.ENDED
            found = None
        if not same_call:
            self._held_since_call = found is not False
        if found is None:
            self._lines.append(line)
            return self.flush() if len(self._lines) >= MOST_LINES else []
        done = self.flush()
        if not found:
            done.append(line)
            return done
        if _begins(line):
            group = line.lstrip().startswith(_GROUP)
            self._state = _ParseState.GROUP if group else _ParseState.FRAMES
        else:
            self._state = _ParseState.HEADED
        self._lines.append(line)
        return done

    def flush(self) -> list[str]:
        """Return the held lines: the stream has ended, or was silent for a while."""
        lines, self._lines = self._lines, []
        gap = self._state in (_ParseState.GAP, _ParseState.LINK)
        self._state = _ParseState.OUTSIDE
        if not lines:
            return []
        tail: list[str] = []
        while gap and lines and (lines[-1] == "" or lines[-1] in _LINKS):
            tail.insert(0, lines.pop())
        lines += tail[:1]  # the empty line
        return ["\n".join(lines), *tail[1:]]

    def _advance(self, line: str) -> bool | None:
        """None: the line belongs to the held ones. Else whether it starts a traceback."""
        state = self._state
        begins = _begins(line)
        indented = line[:1] in (" ", "\t")
        if state is _ParseState.HEADED and line.startswith(_FRAMES):
            group = line.startswith(_GROUP_FRAME)
            self._state = _ParseState.GROUP if group else _ParseState.FRAMES
            return None
        if state is _ParseState.FRAMES:
            if not indented and line != _HEADER:
                self._state = _ParseState.ENDED
            return None
        if state is _ParseState.GROUP and indented and not begins:
            return None
        if state in (_ParseState.ENDED, _ParseState.GROUP) and line == "":
            self._state = _ParseState.GAP
            return None
        if state is _ParseState.GAP and line in _LINKS:
            self._state = _ParseState.LINK
            return None
        if state is _ParseState.LINK and (line == "" or begins):
            if begins:
                group = line.lstrip().startswith(_GROUP)
                self._state = _ParseState.GROUP if group else _ParseState.FRAMES
            return None
        return begins or line.endswith(_HEADER)


def only_traceback(lines: list[str]) -> tuple[int, int] | None:
    """Where the only traceback among lines is: its header, and the line after it.

    Returns:
        None if there is none, or are several.
    """
    tracebacks = Tracebacks()
    found: tuple[int, int] | None = None
    done = 0
    texts = [text for line in lines for text in tracebacks.feed(line)]
    for text in texts + tracebacks.flush():
        size = text.count("\n") + 1
        if size > 1:
            if found is not None:
                return None
            found = done, done + size
        done += size
    return found


def has_header(lines: list[str]) -> bool:
    """Whether a traceback begins in lines."""
    return any(
        _begins(line) or (line.endswith(_HEADER) and after.startswith(_FRAMES))
        for line, after in itertools.pairwise((*lines, ""))
    )


def _begins(line: str) -> bool:
    """Whether a line is the header of a traceback, with nothing before it."""
    return line == _HEADER or line.lstrip().startswith(_GROUP)
