"""The client of a running consumer: status, reload, and a viewer's subscription.

Nothing is sent to, and nothing is taken from, a process of a user that is not trusted
(`logagg.ipc.users`).

For commands, viewers and the supervisor; workers have `logagg.client.transport`. Each
call opens a connection of its own and blocks until the answer, or its timeout.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import orjson
from msgspec import UNSET

from logagg.errors import ConfigError, ConsumerGone, WireError
from logagg.ipc.protocol import (
    AdoptHello,
    ConsumerPacket,
    GiveWayHello,
    Hello,
    RecordsHello,
    ReloadHello,
    StatusHello,
    ViewerHello,
    decode,
    encode,
)
from logagg.ipc.users import check_listener
from logagg.platform import packets
from logagg.platform.system import set_pipe_bytes

__all__ = [
    "Subscription", "give_way", "hand_over", "reconfigure", "reload", "status",
]  # fmt: skip

STATUS_TIMEOUT = 5.0
RELOAD_TIMEOUT = 30.0  # new sinks are opened, which may wait for a network
_MAX_STATUS_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20


def status(path: str) -> dict[str, Any]:
    """The counters of the consumer at a socket path. Blocks up to 5 s.

    Raises:
        ConsumerGone: No consumer answers there, or it refuses.
    """
    packet = _request(path, StatusHello(), STATUS_TIMEOUT)
    try:
        answer = orjson.loads(packet)
    except orjson.JSONDecodeError as error:
        raise ConsumerGone(f"no consumer answers at {path}: {error}") from error
    if not isinstance(answer, dict) or "workers" not in answer:
        reason = answer.get("error") if isinstance(answer, dict) else answer
        raise ConsumerGone(f"the consumer at {path} sends no status: {reason}")
    return answer


def reload(path: str) -> None:
    """Have a consumer read its configuration again. Blocks up to 30 s.

    Raises:
        ConfigError: It refused; everything is as it was.
        ConsumerGone: No consumer answers there.
    """
    _reload(path, ReloadHello())


def reconfigure(path: str, sinks: Sequence[str]) -> None:
    """Replace a consumer's own sinks by these. Blocks and raises as `reload`."""
    _reload(path, ReloadHello(sinks=list(sinks)))


def _reload(path: str, hello: ReloadHello) -> None:
    packet = _request(path, hello, RELOAD_TIMEOUT)
    try:
        answer = decode(ConsumerPacket, packet)
    except WireError as error:
        raise ConsumerGone(f"no consumer answers at {path}: {error}") from error
    if answer.error is not UNSET:
        raise ConfigError(f"not reloaded: {answer.error}")


def give_way(path: str, successor: str) -> bool:
    """Have a consumer that only handlers have started end. Blocks up to 5 s.

    Returns:
        Whether it does so, or has gone; False for one with sinks of its own.
    """
    try:
        packet = _request(path, GiveWayHello(successor), STATUS_TIMEOUT)
        return decode(ConsumerPacket, packet).welcome is not UNSET
    except (ConsumerGone, WireError):
        return False


def hand_over(path: str, worker: RecordsHello, fds: Sequence[int]) -> bool:
    """Have another consumer serve a worker from which nothing was read. As `give_way`.

    Args:
        path: The other consumer's socket.
        worker: The worker's hello.
        fds: Its connection, and what came with the hello.
    """
    try:
        with _connect(path, STATUS_TIMEOUT) as connection:
            packet = encode(AdoptHello(worker))
            packets.send(connection, packet)
            answer, _, _ = packets.receive(connection, _MAX_STATUS_BYTES)
            granted = decode(ConsumerPacket, answer)
            if granted.welcome is UNSET:
                return False
            # Only now: an owner that does not answer in time must not read the pipe.
            packets.send(connection, packet, fds)
    except (OSError, WireError):
        return False
    return True


def _request(path: str, hello: Hello, timeout: float) -> bytes:
    try:
        with _connect(path, timeout) as connection:
            packets.send(connection, encode(hello))
            return packets.receive(connection, _MAX_STATUS_BYTES)[0]
    except OSError as error:
        raise ConsumerGone(f"no consumer answers at {path}: {error}") from error


def _connect(path: str, timeout: float) -> socket.socket:
    connection = packets.packet_socket()
    try:
        connection.settimeout(timeout)
        connection.connect(path)
        check_listener(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


class Subscription:
    """A viewer's pipe into which a consumer writes the stream.

    Attributes:
        pipe: The read end, non-blocking; at its end the consumer has gone or refused.

    Raises:
        PermissionError: A process of a user that is not trusted listens there.
        OSError: No consumer answers at the path, or no descriptor is free.
    """

    def __init__(self, path: str, hello: ViewerHello) -> None:
        self._connection = _connect(path, STATUS_TIMEOUT)
        self.pipe = -1
        try:
            self.pipe, write_end = os.pipe()
            try:
                os.set_blocking(self.pipe, False)
                os.set_blocking(write_end, False)
                set_pipe_bytes(write_end, _PIPE_BYTES)
                packets.send(self._connection, encode(hello), [write_end])
            finally:
                os.close(write_end)
        except OSError:
            self.close()
            raise

    def refusal(self) -> str:
        """Why the consumer refused the hello; empty when it did not. Never blocks."""
        try:
            self._connection.setblocking(False)
            packet, _, _ = packets.receive(self._connection, 1 << 16)
            answer = decode(ConsumerPacket, packet)
        except (OSError, WireError):
            return ""
        return "" if answer.error is UNSET else answer.error

    def close(self) -> None:
        """Leave the consumer. May be called twice."""
        self._connection.close()
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1
