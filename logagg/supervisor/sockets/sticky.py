"""Sticky connections: a client's key from the head of its request, its slot from the key.

Pure. The head is peeked (`MSG_PEEK`) and never consumed, so nothing is replayed.
Rendezvous hashing over *slots*: a replaced worker keeps its clients, and when a slot is
gone only its own clients move.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import unquote_plus

from logagg.errors import ConfigError

__all__ = ["HEAD_BYTES", "Sticky", "choose_slot"]

HEAD_BYTES = 16 * 1024
"""The longest head that is searched; gunicorn takes 8190 bytes per line, h11 16 KiB."""


@dataclass(frozen=True, slots=True)
class Sticky:
    """The part of a request that identifies its client.

    Attributes:
        kind: "ip", "proxy", "cookie", "header" or "query".
        name: The cookie's, header's or query parameter's name; empty for "ip" (the
            client's address) and "proxy" (the address in a proxy's header).
    """

    kind: str
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Sticky:
        """Read `ip`, `proxy`, `cookie:NAME`, `header:NAME` or `query:NAME`.

        Raises:
            ConfigError: It is none of these.
        """
        kind, _, name = text.partition(":")
        named = kind in ("cookie", "header", "query") and name != ""
        if not named and text not in ("ip", "proxy"):
            raise ConfigError(
                f"sticky {text!r}: expected ip, proxy, cookie:NAME, header:NAME or "
                "query:NAME"
            )
        return cls(kind, name)

    def key(self, head: bytes) -> bytes | None:
        """The client's key in the head of a request; None when it has none."""
        lines = head.split(b"\r\n\r\n", 1)[0].split(b"\r\n")
        if self.kind == "query":
            return _query(lines[0], self.name)
        wanted = b"cookie" if self.kind == "cookie" else self.name.lower().encode()
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() != wanted:
                continue
            if self.kind == "header":
                return value.strip()
            found = _cookie(value, self.name.encode())
            if found is not None:
                return found
        return None

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def _cookie(value: bytes, name: bytes) -> bytes | None:
    for part in value.split(b";"):
        key, equals, content = part.partition(b"=")
        if equals and key.strip() == name:
            return content.strip()
    return None


def _query(request_line: bytes, name: str) -> bytes | None:
    words = request_line.split(b" ")
    if len(words) < 2:
        return None
    _, _, query = words[1].partition(b"?")
    for part in query.split(b"&"):
        key, _, value = part.partition(b"=")
        if unquote_plus(key.decode("latin-1")) == name:
            return unquote_plus(value.decode("latin-1")).encode()
    return None


def choose_slot(key: bytes, slots: list[int]) -> int:
    """The slot of a key: that which hashes highest together with it."""
    return max(
        slots,
        key=lambda slot: hashlib.blake2b(
            b"%d:%b" % (slot, key), digest_size=8
        ).digest(),
    )
