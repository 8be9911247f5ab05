"""The packets of a hand-off channel, as both ends receive them.

A connection comes with `c`; the worker answers `ack`, or `full` when it has no descriptor
free. `call` asks a busy worker to answer `here`. `open` opens the channel, `shut` closes
it until the next `open`.

Imported in workers.
"""

from __future__ import annotations

import socket

from logagg.platform.packets import receive_descriptors

__all__ = ["packet", "receive_packet"]

PACKET_BYTES = 8


def receive_packet(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive one packet and its descriptor."""
    data, fds, _ = receive_descriptors(sock, PACKET_BYTES, 1, flags)
    return data.rstrip(b"\0"), fds


def packet(name: bytes) -> bytes:
    """A packet of the length that all have, so that a stream carries them as well."""
    return name.ljust(PACKET_BYTES, b"\0")
