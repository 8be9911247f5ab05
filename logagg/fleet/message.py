"""The message of a stream: finished lines of one spool, and headers that number them.

Theory of operation
-------------------
A host's sink sends its spool in order, one message after another, each until the stream
has it. A message has the spool's id and the numbers of its records in that spool
(`Logagg-First` to before `Logagg-Next`), which are the same whenever it is sent again.
So a reader of the stream knows of every record whether it has come before, and how many
are missing, whatever was sent twice and whatever the stream has discarded. The stream
itself leaves out a repetition within its duplicate window, by `Nats-Msg-Id`.

Records that became dead letters on the host leave a gap in the numbers, too.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from logagg.errors import ConfigError
from logagg.wireformat import is_wire

__all__ = [
    "StreamMessage",
    "decode",
    "headers_of",
    "pack",
    "subject_of",
    "subject_part",
]

VERSION = "1"
_LEVEL = 1  # of zstd: no larger than 3 for log text, and half the time
_MOST_BYTES = 256 * 1024 * 1024  # of an unpacked message
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class StreamMessage(NamedTuple):
    """The records of a message.

    Attributes:
        app: The application, from the subject.
        host: The host, from the subject.
        spool: The id of the spool that the records are from.
        first: How many records of that spool were before them.
        following: The same for the record after them.
        lines: The finished lines without their closing brace and newline.
    """

    app: str
    host: str
    spool: str
    first: int
    following: int
    lines: list[bytes]


def subject_part(name: str) -> str:
    """A name as a part of a subject."""
    return _UNSAFE.sub("_", name)


def subject_of(app: str, host: str) -> str:
    """The subject of a host's messages; the last part is free for other kinds."""
    return f"logagg.{subject_part(app)}.{subject_part(host)}.all"


def headers_of(
    name: str, spool: str, first: int, following: int, *, coding: str
) -> dict[str, str]:
    """The headers of a message; see `StreamMessage`."""
    found = {
        "Nats-Msg-Id": name,
        "Logagg-Version": VERSION,
        "Logagg-Spool": spool,
        "Logagg-First": str(first),
        "Logagg-Next": str(following),
    }
    return found | {"Content-Encoding": coding} if coding else found


def pack(body: bytes) -> bytes:
    """Compress a body. Raises ConfigError where zstd is not installed."""
    module, own = _zstd()
    if own:
        return bytes(module.compress(body, _LEVEL))
    return bytes(module.ZstdCompressor(level=_LEVEL).compress(body))


def unpack(data: bytes) -> bytes:
    """Undo `pack`. Raises ValueError."""
    module, own = _zstd()
    try:
        if own:
            return bytes(module.ZstdDecompressor().decompress(data, _MOST_BYTES))
        unpacker = module.ZstdDecompressor()
        return bytes(unpacker.decompress(data, max_output_size=_MOST_BYTES))
    except module.ZstdError as error:
        raise ValueError(f"its zstd is damaged: {error}") from None


def _zstd() -> tuple[Any, bool]:
    """The module for zstd, and whether it is Python's own. Raises ConfigError."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name), name != "zstandard"
        except ImportError:
            continue
    raise ConfigError(
        "zstd needs Python 3.14 or the package zstandard: "
        "pip install 'logagg-service[nats]'"
    )


def decode(
    subject: str, headers: Mapping[str, str] | None, data: bytes
) -> StreamMessage:
    """Read a message.

    Raises:
        ValueError: It is not one of a host's sink; the text has the reason.
    """
    parts = subject.split(".")
    if len(parts) != 4 or headers is None or "Logagg-Spool" not in headers:
        raise ValueError("it lacks the headers of a message of a sink nats:")
    if headers.get("Logagg-Version") != VERSION:
        raise ValueError(f"its version is {headers.get('Logagg-Version')!r}")
    first = _number(headers, "Logagg-First")
    following = _number(headers, "Logagg-Next")
    coding = headers.get("Content-Encoding", "")
    if coding not in ("", "zstd"):
        raise ValueError(f"its Content-Encoding is {coding!r}")
    body = unpack(data) if coding else data
    if not body.endswith(b"}\n"):
        raise ValueError("its body ends within a line")
    lines = body[:-2].split(b"}\n")
    if not all(map(is_wire, lines)):
        raise ValueError("a line of it is not a record")
    if not 0 < len(lines) <= following - first:
        raise ValueError(f"it has {len(lines)} lines for {following - first} numbers")
    return StreamMessage(
        parts[1], parts[2], headers["Logagg-Spool"], first, following, lines
    )


def _number(headers: Mapping[str, str], name: str) -> int:
    text = headers.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ValueError(f"its {name} is {text!r}")
    return int(text)
