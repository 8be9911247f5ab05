"""Messages that cannot be read, as dead letters in a file, one line of JSON each."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import orjson

from logagg.core.line import timestamp_bytes
from logagg.fleet.stream_reader import StoredMessage
from logagg.ipc.paths import make_folder

__all__ = ["PoisonFile"]


class PoisonFile:
    """The file of one collector, private, made with the first message.

    Args:
        folder: Its directory.
        most_bytes: It is moved to `.1` before it becomes larger.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.path = folder / "dead-letters.ndjson"
        self._most = most_bytes

    def add(self, message: StoredMessage, reason: str) -> None:
        """Write a message, with the reason; blocks for a local disk. Raises OSError."""
        letter = {
            "time": timestamp_bytes(message.stored_ns).decode(),
            "reason": reason,
            "number": message.number,
            "subject": message.subject,
            "headers": message.headers,
            "data": base64.b64encode(message.data).decode(),
        }
        data = orjson.dumps(letter) + b"\n"
        make_folder(self.path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        try:
            if os.fstat(descriptor).st_size + len(data) > self._most:
                os.replace(self.path, f"{self.path}.1")
                os.close(descriptor)
                descriptor = os.open(self.path, flags, 0o600)
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
