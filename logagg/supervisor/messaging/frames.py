"""Frames of JSON with descriptors, on a Unix stream between supervisor and worker.

Each worker has one socket pair to the supervisor (`AF_UNIX`, `SOCK_STREAM`). A frame is
a length of four bytes (big endian) and that many bytes of JSON, an object whose "k" is
its kind (`FRAMES`). A frame may carry one descriptor; it then has `"fd": true`, or
`"fd": "lost"` when the system did not take it.

A stream and not packets, since a packet cannot be longer than the socket's buffer
(about 200 KB by default), and a message may be up to `MAX_MESSAGE_BYTES`.

Descriptors travel with a frame's first bytes. The kernel never delivers the descriptors
of two sends in one receive, and never later than the bytes they were sent with, so a
queue of descriptors is enough to match them with the frames that name one. A process
without a free descriptor gets the bytes and loses the descriptor; a mark takes its place
in the queue, so that later ones are not given to the wrong frame.

Imported in workers: no msgspec, no asyncio.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from math import isfinite
from typing import Any, NamedTuple

import orjson

from logagg.errors import WireError
from logagg.platform.packets import receive_descriptors

__all__ = ["FRAMES", "MAX_MESSAGE_BYTES", "Decoder", "Frame", "encode", "encode_value",
           "misfit", "receive", "without_descriptor"]  # fmt: skip

Frame = dict[str, Any]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""The longest user message; gRPC's default limit for a message is the same 4 MiB."""

_MAX_FRAME_BYTES = MAX_MESSAGE_BYTES + 256 * 1024
"""Room for the fields around a message, and for the traceback of a crash."""

_CHUNK = 256 * 1024
_LOST = -2
_LEFT_OUT = "lost"


class _Frame(NamedTuple):
    fields: dict[str, type | tuple[type, ...]]
    descriptor: bool = False


FRAMES = {
    # Both ways. "b" is a user's value and may be missing, which means null.
    "message": _Frame({"id": int}, descriptor=True),
    "request": _Frame({"q": int}),
    "ack": _Frame({"id": int}),  # and "error", when the message was refused
    "answer": _Frame(
        {"q": int}, descriptor=True
    ),  # "b", "error", or a kind's own fields
    # Supervisor to worker.
    "ping": _Frame({"n": int}),
    "drain": _Frame({"q": int}),
    "shutdown": _Frame({"timeout": (int, float)}),
    "task": _Frame({"q": int, "b": dict}),
    "cancel": _Frame({"q": int}),
    # Worker to supervisor.
    "broadcast": _Frame({"id": int}),
    "online": _Frame({}),
    "ready": _Frame({}),
    "listening": _Frame({"host": str, "port": int}),
    "closed": _Frame({"host": str, "port": int}),
    "hooks": _Frame({"n": int}),
    "hooks_done": _Frame({}),
    "pong": _Frame({"n": int, "connections": int}),
    "spent": _Frame({}),
    "idle": _Frame({}),
    "crash": _Frame({"q": int, "summary": str, "trace": str}),
    "bind": _Frame(
        {"q": int, "family": int, "host": str, "port": int}, descriptor=True
    ),
    "real": _Frame({"q": int, "host": str, "port": int}),
}
"""The kinds of frames, their required fields, and whether a descriptor may come along.

"id" numbers what is acknowledged, "q" what is answered; each end counts its own."""


def misfit(frame: Frame) -> str:
    """The mistake in a frame of a known kind; empty when there is none."""
    kind = FRAMES[frame["k"]]
    for name, wanted in kind.fields.items():
        if not isinstance(frame.get(name), wanted):
            return f"{frame['k']}: {name} is {frame.get(name)!r}"[:200]
    return ""


def encode_value(value: Any) -> orjson.Fragment:
    """Encode a user's value once, to be put into any number of frames.

    Raises:
        WireError: It is not JSON, or too long; the text names the remedy.
    """
    options = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
    try:
        body = orjson.dumps(value, option=options)
    except TypeError as error:
        raise WireError(
            f"a message must be plain JSON values (dict, list, str, numbers, bool, "
            f"None): {error}"
        ) from error
    if b"null" in body and _has_non_finite(value):  # orjson writes null for NaN
        raise WireError("a message must be plain JSON values: NaN and inf are not JSON")
    if len(body) > MAX_MESSAGE_BYTES:
        raise WireError(
            f"the message has {len(body)} bytes as JSON, the limit is "
            f"{MAX_MESSAGE_BYTES}; send a path, a key or an ID instead of the payload"
        )
    return orjson.Fragment(body)


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_non_finite, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_non_finite, value))


def encode(frame: Frame) -> bytes:
    """Make the bytes of a frame; users' values in it come from `encode_value`."""
    body = orjson.dumps(frame)
    return len(body).to_bytes(4, "big") + body


def without_descriptor(data: memoryview) -> bytes:
    """The same frame for the case that its descriptor cannot come with it."""
    return encode({**orjson.loads(data[4:]), "fd": _LEFT_OUT})


def _comes(frame: Frame) -> bool:
    """Whether a descriptor comes with a frame."""
    return bool(frame.get("fd")) and frame["fd"] != _LEFT_OUT


class Decoder:
    """Bytes and descriptors in, frames with their descriptors out. Pure but for `close`.

    Raises:
        WireError: From `feed`, when the bytes cannot be a frame; the channel is then
            of no more use.
    """

    __slots__ = ("_buffer", "_fds")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: list[int]) -> list[tuple[Frame, int]]:
        """Take what one receive brought and return the frames that are complete.

        Returns:
            Each frame with its descriptor, which the caller owns. Without one it is
            negative; "fd" in the frame then means that the descriptor was lost.
        """
        self._buffer += data
        self._fds += fds
        frames: list[tuple[Frame, int]] = []
        start = 0
        while len(self._buffer) - start >= 4:
            length = int.from_bytes(self._buffer[start : start + 4], "big")
            if length > _MAX_FRAME_BYTES:
                raise WireError(f"a frame of {length} bytes is longer than allowed")
            end = start + 4 + length
            if len(self._buffer) < end:
                break
            frame = self._parse(bytes(self._buffer[start + 4 : end]))
            frames.append((frame, self._fds.popleft() if _comes(frame) else -1))
            start = end
        del self._buffer[:start]
        if (
            len(self._fds) > 1
        ):  # one, of a frame that has begun; others are kept for none
            raise WireError("descriptors came that no frame names")
        return frames

    def _parse(self, body: bytes) -> Frame:
        try:
            frame = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise WireError(f"a frame is not JSON: {error}") from error
        if not isinstance(frame, dict) or not isinstance(frame.get("k"), str):
            raise WireError("a frame is not an object with a kind")
        if _comes(frame) and not self._fds:
            raise WireError("a frame names a descriptor that did not come with it")
        return frame

    def close(self) -> None:
        """Close descriptors that came and were never handed out."""
        while self._fds:
            fd = self._fds.popleft()
            if fd >= 0:
                os.close(fd)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive bytes and descriptors; no bytes mean that the other side has closed."""
    data, fds, lost = receive_descriptors(sock, _CHUNK, 1)
    return data, [_LOST] if lost and not fds else fds
