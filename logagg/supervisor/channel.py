"""How supervisor and worker talk: frames of JSON on a Unix stream, with descriptors.

Theory of operation
-------------------
Each worker has one socket pair to the supervisor (`AF_UNIX`, `SOCK_STREAM`). A frame is
a length of four bytes (big endian) and that many bytes of JSON, an object whose "k"
says what it is. Descriptors travel with a frame's first bytes; a frame that has some
says how many ("fds"). The kernel never delivers the descriptors of two sends in one
receive, and never later than the bytes they were sent with, so a queue of descriptors
and the counts in the frames are enough to match them.

A stream and not packets, since a packet cannot be longer than the socket's buffer
(about 200 KB by default), and a message may be up to `MAX_MESSAGE_BYTES`.

User messages (k = "message", "broadcast") are counted: the receiver acknowledges each
once its handler took it ("ack", n), and a sender has at most `WINDOW_MESSAGES` or
`WINDOW_BYTES` unacknowledged. So a receiver that does not keep up slows its senders
and loses nothing, and the other frames (ping, shutdown, tasks) never queue behind a
long jam.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Any

import orjson

from logagg.errors import WireError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "WINDOW_BYTES",
    "WINDOW_MESSAGES",
    "Decoder",
    "Frame",
    "encode",
    "receive",
]

Frame = dict[str, Any]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""The longest frame; gRPC's default limit for a message is the same 4 MiB."""

WINDOW_MESSAGES = 1024
WINDOW_BYTES = 8 * 1024 * 1024
MAX_FDS = 8
_CHUNK = 256 * 1024


def encode(frame: Frame) -> bytes:
    """Make the bytes of a frame.

    Raises:
        WireError: The content is not JSON, or too long; says which and what to do.
    """
    try:
        body = orjson.dumps(frame)
    except TypeError as error:
        raise WireError(
            f"a message must be plain JSON values (dict, list, str, numbers, bool, "
            f"None): {error}"
        ) from error
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(
            f"the message has {len(body)} bytes as JSON, the limit is "
            f"{MAX_MESSAGE_BYTES}; send a path, a key or an ID instead of the payload"
        )
    return len(body).to_bytes(4, "big") + body


class Decoder:
    """Bytes and descriptors in, frames with their descriptors out. Pure but for `close`.

    Raises:
        WireError: From `feed`, when what came cannot be a frame; the channel is then
            of no more use.
    """

    __slots__ = ("_buffer", "_fds")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: list[int]) -> list[tuple[Frame, list[int]]]:
        """Take what one receive brought and return the frames that are complete."""
        self._buffer += data
        self._fds += fds
        frames: list[tuple[Frame, list[int]]] = []
        start = 0
        while len(self._buffer) - start >= 4:
            length = int.from_bytes(self._buffer[start : start + 4], "big")
            if length > MAX_MESSAGE_BYTES:
                raise WireError(f"a frame of {length} bytes came; that cannot be")
            end = start + 4 + length
            if len(self._buffer) < end:
                break
            frame = self._parse(bytes(self._buffer[start + 4 : end]))
            count = frame.get("fds", 0)
            frames.append((frame, [self._fds.popleft() for _ in range(count)]))
            start = end
        del self._buffer[:start]
        return frames

    def _parse(self, body: bytes) -> Frame:
        try:
            frame = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise WireError(f"a frame came that is not JSON: {error}") from error
        if not isinstance(frame, dict) or not isinstance(frame.get("k"), str):
            raise WireError("a frame came that is not an object with a kind")
        count = frame.get("fds", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            raise WireError("a frame names descriptors that did not come with it")
        return frame

    def close(self) -> None:
        """Close descriptors that came and were never handed out."""
        while self._fds:
            os.close(self._fds.popleft())


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive bytes and descriptors; no bytes mean that the other side has closed."""
    space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    data, ancillary, _flags, _address = sock.recvmsg(
        _CHUNK, space, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds)
