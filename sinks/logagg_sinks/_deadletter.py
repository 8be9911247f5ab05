"""Dead letters: records that a target refused for good, with the reason, as NDJSON.

One line a record: `time`, `sink`, `reason`, `status`, `response` (its first KiB),
`attempts`, and last `record`, as it came (or `raw`, when it is not JSON). The file is
private and turns into `FILE.1` when it is full, so that two files' worth is kept;
records in a `.1` that is replaced are gone, and counted by `lost`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

__all__ = ["DeadLetters", "read_letters"]


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
        """Write a letter for each record and what is said about it; blocks.

        Raises:
            OSError: It cannot be written; nothing of this call stands in the file.
        """
        data = b"".join(
            orjson.dumps(about)[:-1] + b"," + _record(line) + b"}\n"
            for line, about in letters
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(data) > self._most:
                self._turn()
                os.close(descriptor)
                descriptor = os.open(self.path, flags, 0o600)
                size = 0
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
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


def read_letters(path: Path) -> tuple[list[bytes], list[bytes]]:
    """The records in a file of dead letters, and the letters that hold none.

    A letter whose record was not JSON would only come back; a torn or foreign line is
    none at all.

    Returns:
        Records as lines, and letters as lines.
    """
    records: list[bytes] = []
    rest: list[bytes] = []
    with open(path, "rb") as file:
        for line in file:
            try:
                letter = orjson.loads(line)
            except orjson.JSONDecodeError:
                letter = None
            if isinstance(letter, dict) and isinstance(letter.get("record"), dict):
                records.append(orjson.dumps(letter["record"]) + b"\n")
            else:
                rest.append(line)
    return records, rest
