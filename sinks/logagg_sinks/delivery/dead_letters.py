"""Dead letters: records that a target refused for good, with the reason, as NDJSON.

One line a record: `time`, `sink`, `reason`, `status`, `response` (its first KiB),
`attempts`, and last `record`, as it came (or `raw`, when it is not JSON). The file is
private and turns into `FILE.1` when it is full, so that two files' worth is kept;
records in a `.1` that is replaced are gone, and counted by `lost`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from logagg.wireformat import timestamp_bytes
from logagg_sinks.delivery.batching import Refused
from logagg_sinks.delivery.verdict import Verdict

__all__ = ["DeadLetters", "Letters"]


class DeadLetters:
    """A file of dead letters.

    Args:
        path: The file; made with the first letter.
        most_bytes: It is turned over before it becomes larger.

    Attributes:
        lost: Letters that were pushed out since this object was made.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self.lost = 0
        self._most = most_bytes

    def add(self, letters: Iterable[tuple[bytes, dict[str, Any]]]) -> None:
        """Write a letter for each record, with its details; blocks.

        Raises:
            OSError: It cannot be written; nothing of this call stands in the file.
        """
        data = b"".join(
            orjson.dumps(about)[:-1] + b"," + _record(line) + b"}\n"
            for line, about in letters
        )
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(data) > self._most:
                self._turn()
                os.close(descriptor)
                descriptor = -1
                descriptor = self._open()
                size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data  # a writer was killed in the middle of a letter
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _open(self) -> int:
        """Open and lock the file that has the name now, not one that was moved away.

        `logagg dlq replay` moves a file under its lock, so no letter is written into a
        file that was read already.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(descriptor), os.lstat(self.path)):
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _turn(self) -> None:
        older = self.path.with_name(self.path.name + ".1")
        try:
            with open(older, "rb") as file:
                self.lost += sum(chunk.count(b"\n") for chunk in _chunks(file))
        except FileNotFoundError:
            pass
        os.replace(self.path, older)


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(1 << 20):
        yield chunk


def _record(line: bytes) -> bytes:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return b'"raw":' + orjson.dumps(line.decode("utf-8", "backslashreplace"))
    return b'"record":' + line


class Letters:
    """Dead letters of one sink, with time, reason and answer.

    Args:
        file: Where they go.
        sink: The sink, as it may be shown.
        clock: Seconds since the epoch.
        count: Adds to a counter.
    """

    def __init__(
        self,
        file: DeadLetters,
        sink: str,
        clock: Callable[[], float],
        count: Callable[[str, int], None],
    ) -> None:
        self._file = file
        self._sink = sink
        self._clock = clock
        self._count = count

    def write(self, lines: Sequence[Refused], verdict: Verdict | None) -> None:
        """Write one for each record, with the target's answer. Raises OSError."""
        about: dict[str, Any] = {
            "time": timestamp_bytes(int(self._clock() * 1e9)).decode(),
            "sink": self._sink,
        }
        answer: dict[str, Any] = {}
        if verdict is not None and verdict.status:
            answer = {"status": verdict.status, "response": verdict.text[:1024]}
        answer["attempts"] = verdict.attempts if verdict is not None else 0
        lost = self._file.lost
        self._file.add(
            (line, about | {"reason": reason} | answer) for _, line, reason in lines
        )
        if self._file.lost > lost:
            self._count("dead_letters_overwritten", self._file.lost - lost)
