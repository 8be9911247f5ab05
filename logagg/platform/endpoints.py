"""Addresses that HTTP is served at: loopback, another host, or a Unix socket."""

from __future__ import annotations

import os
import socket
import stat

from logagg.errors import ConfigError
from logagg.platform.system import bind_with_mode

__all__ = ["BACKLOG", "listen", "parse"]

BACKLOG = 128


def listen(address: str, what: str) -> socket.socket:
    """Make the listening socket of an endpoint.

    Args:
        address: `:9464`, `HOST:PORT` or `unix:PATH`; without a host, loopback.
        what: Its purpose, for errors.

    Raises:
        ConfigError: It is none of these, or cannot be listened at.
    """
    place = parse(address, what)
    if isinstance(place, str):
        return _listen_unix(place, what)
    host, port = place
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{what} {address!r}: {reason}") from error


def parse(address: str, what: str) -> str | tuple[str, int]:
    """An endpoint's path, or its host and port.

    Raises:
        ConfigError: It is neither.
    """
    scheme, _, path = address.partition(":")
    if scheme == "unix" and path:
        return path
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{what} {address!r}: expected :PORT, HOST:PORT or unix:PATH")
    return host.strip("[]") or "127.0.0.1", int(port)


def _listen_unix(path: str, what: str) -> socket.socket:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX)
    try:
        bind_with_mode(listener, path, 0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or error
        raise ConfigError(f"{what} unix:{path}: {reason}") from error
    return listener
