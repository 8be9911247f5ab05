"""Compression of request bodies. Blocks, so it is called on a sink's own thread."""

from __future__ import annotations

import enum
import gzip
import importlib
from collections.abc import Callable
from typing import Any

from logagg.errors import ConfigError

__all__ = ["Compression", "compress", "weaker", "zstd_or_refuse"]

_GZIP_LEVEL = 3  # three quarters of the time of 6 for a tenth more bytes on log text
_ZSTD_LEVEL = 3
SMALLEST = 1024
"""A shorter body is sent as it is: it would hardly shrink."""


class Compression(enum.Enum):
    """How a body is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


def weaker(compression: Compression) -> Compression:
    """What to fall back to when a target does not understand."""
    if compression is Compression.ZSTD:
        return Compression.GZIP
    return Compression.NONE


def zstd_or_refuse(what: str) -> None:
    """Refuse zstd where nothing can do it.

    Raises:
        ConfigError: Neither Python nor an installed package has it.
    """
    if _zstd() is None:
        raise ConfigError(
            f"{what}: compress=zstd needs Python 3.14 or the package zstandard: "
            "pip install 'logagg-service[zstd]'"
        )


def _zstd() -> Callable[[bytes], bytes] | None:
    try:
        module: Any = importlib.import_module("compression.zstd")
    except ImportError:
        pass
    else:
        return lambda data: bytes(module.compress(data, _ZSTD_LEVEL))
    try:
        module = importlib.import_module("zstandard")
    except ImportError:
        return None
    return lambda data: bytes(module.ZstdCompressor(level=_ZSTD_LEVEL).compress(data))


def compress(body: bytes, compression: Compression) -> tuple[bytes, str]:
    """Compress a body; return it and its Content-Encoding ("" when it is as it was)."""
    if compression is Compression.NONE or len(body) < SMALLEST:
        return body, ""
    if compression is Compression.ZSTD and (packed := _zstd()) is not None:
        return packed(body), "zstd"
    return gzip.compress(body, _GZIP_LEVEL, mtime=0), "gzip"
