"""Following a file through rotation, truncation, replacement and deletion.

Theory of operation
-------------------
The file is polled, which works on every file system. An open file is identified by
device, inode and its *head*, the first bytes of its first record: other content of the
same inode has another head, its compressed copy the same.

- Renamed: the name leads to another inode or to none. The old file is read to its end,
  then files that were created and rotated between two polls, oldest first, then the one
  that has the name now. The old one stays open for a while: a writer that has not
  reopened yet may still append to it.
- Truncated: it is shorter than the place read to, or its head changed (copied and
  truncated, and longer again). Reading starts again at 0. Lines written and truncated
  between two polls are lost to any reader; a note reports the truncation.
- Missing: what is open is kept, and the name is checked with each poll.

Guarantee: while lines are only appended and files only renamed or compressed, each line
comes once, in order, however fast the rotation, as long as the rotated files are kept
until the next poll.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import IO

from logagg.view import files
from logagg.view.files import Select, Series

_RENAMED_OPEN = 10.0  # seconds that a renamed file is still polled
_TRIES = 20  # listings of names that keep moving; then the last one is used
_MISSING_AFTER = 2.0  # seconds without a file from which a note reports it

Note = Callable[[str], None]


class Follower:
    """Reader of one file's new lines. It takes over the series' open file."""

    def __init__(
        self,
        series: Series,
        select: Select,
        note: Note,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = series.path
        self._select = select
        self._note = note
        self._clock = clock
        self._file = series.current
        self._place = series.end
        self._carry = b""
        self._old: list[tuple[IO[bytes], int, bytes, float]] = []
        self._missing_since: float | None = None
        self._missing_noted = False
        self._head = series.head
        series.current = None

    def poll(self) -> list[bytes]:
        """The matching lines written since the last poll."""
        found: list[bytes] = []
        self._poll_old(found)
        status = None
        with contextlib.suppress(OSError):
            status = os.stat(self.path)
        self._check_truncated()
        moved = self._file is not None and not self._is_ours(status)
        self._read(found)  # after `stat`: a renamed file is then at its end
        if moved and status is not None:
            self._change(found)
        elif self._file is None and status is not None:
            self._open_next(found, None)
        self._note_missing(status is None)
        return found

    def close(self) -> None:
        """Close all files. May be called twice."""
        for stream in [self._file, *(old[0] for old in self._old)]:
            if stream is not None:
                stream.close()
        self._file, self._old = None, []

    # --- one file ---

    def _is_ours(self, status: os.stat_result | None) -> bool:
        if self._file is None or status is None:
            return False
        return _same(os.fstat(self._file.fileno()), status)

    def _check_truncated(self) -> None:
        if self._file is None:
            return
        head = files.head_of(self._file)
        shorter = os.fstat(self._file.fileno()).st_size < self._place
        if shorter or not head.startswith(self._head):
            self._note(f"{self.path} was truncated")
            self._place, self._carry = 0, b""
        self._head = head

    def _read(self, found: list[bytes]) -> None:
        if self._file is None:
            return
        self._place, self._carry = self._drain(
            self._file, self._place, self._carry, found
        )

    def _drain(
        self, stream: IO[bytes], place: int, carry: bytes, found: list[bytes]
    ) -> tuple[int, bytes]:
        while data := os.pread(stream.fileno(), files.CHUNK_BYTES, place):
            place += len(data)
            cut = data.rfind(b"\n") + 1
            if not cut:
                carry += data
                if len(carry) < files.LONGEST_BYTES:
                    continue
                cut, data, carry = len(carry), carry, b""
            found += self._select(carry + data[:cut])
            carry = data[cut:]
        return place, carry

    def _poll_old(self, found: list[bytes]) -> None:
        now = self._clock()
        kept = []
        for stream, place, carry, until in self._old:
            place, carry = self._drain(stream, place, carry, found)  # noqa: PLW2901
            if now < until:
                kept.append((stream, place, carry, until))
            else:
                if carry:  # an unfinished last line: its writer has ended
                    found += self._select(carry)
                stream.close()
        self._old = kept

    # --- from one file to the next ---

    def _change(self, found: list[bytes]) -> None:
        old, self._file = self._file, None
        assert old is not None
        head = self._head
        linger = self._clock() + _RENAMED_OPEN
        self._old.append((old, self._place, self._carry, linger))
        self._place, self._carry = 0, b""
        self._open_next(found, (old, head))

    def _open_next(
        self, found: list[bytes], before: tuple[IO[bytes], bytes] | None
    ) -> None:
        """Open the file of that name, and read what was rotated away in between."""
        try:
            stream = files.open_regular(self.path)
        except OSError:
            return  # missing again; the next poll checks
        if before is not None:
            self._read_between(found, before, stream)
        self._file, self._place, self._carry = stream, 0, b""
        self._head = files.head_of(stream)
        self._read(found)

    def _read_between(
        self,
        found: list[bytes],
        before: tuple[IO[bytes], bytes],
        current: IO[bytes],
    ) -> None:
        younger, steady = self._younger(before)
        for _ in range(_TRIES):
            if steady:
                break
            for stream, _ in younger:
                stream.close()
            younger, steady = self._younger(before)
        begins = files.head_of(current)
        for stream, path in younger:
            if _is(stream, path, current, begins):
                break  # rotated again since: what is younger comes after it
            with contextlib.suppress(OSError):
                for data in files.forward(files.unpacked(stream, path)):
                    found += self._select(data)
        for stream, _ in younger:
            stream.close()

    def _younger(
        self, before: tuple[IO[bytes], bytes]
    ) -> tuple[list[tuple[IO[bytes], str]], bool]:
        """The rotated files that are younger than one, opened, oldest first.

        Names move while they are listed, so a file could appear under two of them, or
        under none: the second value is true when none has moved meanwhile.
        """
        old, head = before
        names = files.rotated(self.path)
        opened: list[tuple[IO[bytes], str]] = []
        checked: list[tuple[str, os.stat_result]] = []
        known = steady = False
        try:
            for path in reversed(names):
                try:
                    stream = files.open_regular(path)
                except (IsADirectoryError, PermissionError):
                    continue  # never readable
                opened.append((stream, path))
                status = os.fstat(stream.fileno())
                checked.append((path, status))
                known = _is(stream, path, old, head)
                if known:
                    opened.pop()[0].close()
                    break
            steady = files.rotated(self.path) == names and all(
                _same(os.stat(path), status) for path, status in checked
            )
        except OSError:
            pass  # it has moved
        if not known:  # moved elsewhere or deleted: any of them may be older
            for stream, _ in opened:
                stream.close()
            return [], steady
        return opened[::-1], steady

    def _note_missing(self, missing: bool) -> None:
        now = self._clock()
        if not missing:
            if self._missing_noted:
                self._note(f"{self.path} exists again")
            self._missing_since, self._missing_noted = None, False
        elif self._missing_since is None:
            self._missing_since = now
        elif not self._missing_noted and now - self._missing_since >= _MISSING_AFTER:
            self._note(f"waiting for {self.path}")
            self._missing_noted = True


def _is(stream: IO[bytes], path: str, other: IO[bytes], head: bytes) -> bool:
    """Whether a rotated file is another, open one, or its compressed copy."""
    if _same(os.fstat(stream.fileno()), os.fstat(other.fileno())):
        return True
    if not files.is_packed(stream):
        return False
    with os.fdopen(os.dup(stream.fileno()), "rb") as again:
        try:
            first = files.unpacked(again, path).read(len(head))
        except (OSError, EOFError):
            return False
        finally:
            stream.seek(0)  # the two share it
    return bool(head) and bool(first == head)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
