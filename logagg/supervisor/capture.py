"""Tracebacks among captured lines: joined into one text each. Pure.

Theory of operation
-------------------
A traceback begins with its header line, goes on with indented lines, and ends with the
line that names the exception. What may follow is a chain: an empty line, one of two
known sentences, an empty line, and the next traceback. An exception group is all
indented and ends before the first line that is not.

So the end of a traceback can only be known from what follows it: after the exception's
line the text is held until the next line, or until its owner's patience is over
(`flush`). Nothing is ever lost or reordered: the texts that come out, joined by
newlines, are the lines that went in.
"""

from __future__ import annotations

import enum

__all__ = ["MOST_LINES", "Tracebacks"]

MOST_LINES = 2000
"""A longer one is given out in pieces; a RecursionError has about 1,000 frames folded."""

_HEADER = "Traceback (most recent call last):"
_GROUP = "+ Exception Group Traceback (most recent call last):"
_LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


class _State(enum.Enum):
    OUTSIDE = 0
    FRAMES = 1  # behind a header
    GROUP = 2  # behind a group's header
    ENDED = 3  # behind the exception's line
    GAP = 4  # behind the empty line that may announce a chain
    LINK = 5  # behind the sentence, or the empty line after it


class Tracebacks:
    """The lines of one stream, one after the other.

    Attributes:
        held: Whether lines are held back that only a further line, or `flush`, frees.
    """

    __slots__ = ("_lines", "_state")

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._state = _State.OUTSIDE

    @property
    def held(self) -> bool:
        """Whether lines are held back."""
        return bool(self._lines)

    def feed(self, line: str) -> list[str]:
        """Take a line without its newline; return the texts that are complete."""
        found = self._advance(line)
        if found is None:
            self._lines.append(line)
            return self.flush() if len(self._lines) >= MOST_LINES else []
        done = self.flush()
        if not found:
            done.append(line)
            return done
        self._state = (
            _State.GROUP if line.lstrip().startswith(_GROUP) else _State.FRAMES
        )
        self._lines.append(line)
        return done

    def flush(self) -> list[str]:
        """Give out what is held: the stream has ended, or was silent for a while."""
        lines, self._lines = self._lines, []
        gap = self._state in (_State.GAP, _State.LINK)
        self._state = _State.OUTSIDE
        if not lines:
            return []
        tail: list[str] = []
        while gap and lines and (lines[-1] == "" or lines[-1] in _LINKS):
            tail.insert(0, lines.pop())
        return ["\n".join(lines), *tail]

    def _advance(self, line: str) -> bool | None:
        """None: the line belongs to what is held. Else whether it begins a traceback."""
        state = self._state
        begins = line == _HEADER or line.lstrip().startswith(_GROUP)
        indented = line[:1] in (" ", "\t")
        if state is _State.FRAMES:
            if not indented and line != _HEADER:
                self._state = _State.ENDED
            return None
        if state is _State.GROUP and indented and not begins:
            return None
        if state in (_State.ENDED, _State.GROUP) and line == "":
            self._state = _State.GAP
            return None
        if state is _State.GAP and line in _LINKS:
            self._state = _State.LINK
            return None
        if state is _State.LINK and (line == "" or begins):
            if begins:
                group = line.lstrip().startswith(_GROUP)
                self._state = _State.GROUP if group else _State.FRAMES
            return None
        return begins
