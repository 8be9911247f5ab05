"""Compressing a file as a stream: gzip always, zstd where Python or an extra has it."""

from __future__ import annotations

import enum
import importlib
import os
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from logagg.errors import ConfigError

__all__ = ["Compression", "compress", "expand", "kind_of", "require"]

CHUNK_BYTES = 256 * 1024
"""Small enough that the lock of the interpreter is free most of the time."""


class Compression(enum.Enum):
    """How rotated files are compressed."""

    GZIP = "gzip"
    ZSTD = "zstd"

    @property
    def suffix(self) -> str:
        """What it adds to a file's name."""
        return ".gz" if self is Compression.GZIP else ".zst"


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _zstd() -> _Compressor:
    """The standard library's since Python 3.14, before that the package zstandard's."""
    found: _Compressor
    try:
        found = importlib.import_module("compression.zstd").ZstdCompressor()
    except ImportError:
        pass
    else:
        return found
    try:
        found = importlib.import_module("zstandard").ZstdCompressor().compressobj()
    except ImportError:
        raise ConfigError(
            "compress=zstd needs Python 3.14 or the package zstandard: "
            "pip install 'logagg-service[zstd]'"
        ) from None
    return found


def _unzstd() -> Callable[[bytes], bytes]:
    try:
        module: Any = importlib.import_module("compression.zstd")
    except ImportError:
        _zstd()  # says what to install
        module = importlib.import_module("zstandard")

        def expand(data: bytes) -> bytes:
            try:
                return bytes(module.ZstdDecompressor().decompressobj().decompress(data))
            except module.ZstdError as error:
                raise ValueError(error) from error

        return expand
    found: Callable[[bytes], bytes] = module.decompress
    return found


def require(kind: Compression) -> None:
    """Check that the compression is there.

    Raises:
        ConfigError: It is not; the message says what to install.
    """
    if kind is Compression.ZSTD:
        _zstd()


def compress(kind: Compression, source: int, target: int) -> int:
    """Compress all of one file into another, given their descriptors, and sync it.

    Returns:
        How many bytes were written.

    Raises:
        OSError: Reading or writing failed.
    """
    compressor: _Compressor = (
        zlib.compressobj(6, zlib.DEFLATED, 31) if kind is Compression.GZIP else _zstd()
    )
    total = 0
    while True:
        data = os.read(source, CHUNK_BYTES)
        packed = compressor.compress(data) if data else compressor.flush()
        view = memoryview(packed)
        while view:
            view = view[os.write(target, view) :]
        total += len(packed)
        if not data:
            os.fsync(target)
            return total


def kind_of(name: str) -> Compression | None:
    """How a file of this name is compressed."""
    return next((kind for kind in Compression if name.endswith(kind.suffix)), None)


def expand(kind: Compression, source: int) -> bytes:
    """All of a compressed file, given its descriptor; nothing when it is damaged."""
    with open(source, "rb", closefd=False) as file:
        data = file.read()
    try:
        if kind is Compression.GZIP:
            return zlib.decompress(data, 31)
        return _unzstd()(data)
    except (ConfigError, zlib.error, ValueError, RuntimeError):
        return b""
