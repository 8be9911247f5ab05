"""Compression of files and of request bodies: gzip, and zstd where it is installed.

zstd is Python's own module since 3.14, before that the package zstandard. Everything
here blocks.
"""

from __future__ import annotations

import enum
import gzip
import importlib
import os
import zlib
from collections.abc import Iterator
from typing import Any

from logagg.errors import ConfigError

__all__ = [
    "BodyCompression",
    "Compression",
    "compress",
    "compress_body",
    "is_copy",
    "kind_of",
    "require",
    "unpack",
    "weaker",
]

CHUNK_BYTES = 256 * 1024
"""Small enough that the lock of the interpreter is free most of the time."""
PART_BYTES = 1024 * 1024
"""The most that is expanded at once."""
SMALLEST_BODY = 1024
"""A shorter body is sent as it is: it would hardly shrink."""
_BODY_GZIP_LEVEL = (
    3  # three quarters of the time of 6 for a tenth more bytes of log text
)
_ZSTD_LEVEL = 3


class Compression(enum.Enum):
    """Compression of rotated files."""

    GZIP = "gzip"
    ZSTD = "zstd"

    @property
    def suffix(self) -> str:
        """The suffix that it adds to a file's name."""
        return ".gz" if self is Compression.GZIP else ".zst"


class BodyCompression(enum.Enum):
    """Compression of request bodies."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


def weaker(compression: BodyCompression) -> BodyCompression:
    """The compression to fall back to when a target does not understand one."""
    if compression is BodyCompression.ZSTD:
        return BodyCompression.GZIP
    return BodyCompression.NONE


def _zstd() -> tuple[Any, bool]:
    """The module for zstd, and whether it is Python's own. Raises ConfigError."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name), name != "zstandard"
        except ImportError:
            continue
    raise ConfigError(
        "compress=zstd needs Python 3.14 or the package zstandard: "
        "pip install 'logagg-service[zstd]'"
    )


def require(kind: Compression | BodyCompression, what: str = "") -> None:
    """Check that a compression is installed.

    Raises:
        ConfigError: It is not; the message begins with `what` and has the remedy.
    """
    if kind.value != "zstd":
        return
    try:
        _zstd()
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}" if what else str(error)) from None


def compress(kind: Compression, source: int, target: int) -> int:
    """Compress all of one file into another, given their descriptors, and sync it.

    Returns:
        How many bytes were written.

    Raises:
        OSError: Reading or writing failed.
    """
    compressor: Any
    if kind is Compression.GZIP:
        compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    else:
        module, own = _zstd()
        compressor = module.ZstdCompressor()
        compressor = compressor if own else compressor.compressobj()
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


def compress_body(body: bytes, compression: BodyCompression) -> tuple[bytes, str]:
    """Compress a body; return it and its Content-Encoding, empty if it is as before."""
    if compression is BodyCompression.NONE or len(body) < SMALLEST_BODY:
        return body, ""
    if compression is BodyCompression.GZIP:
        return gzip.compress(body, _BODY_GZIP_LEVEL, mtime=0), "gzip"
    module, own = _zstd()
    if own:
        return bytes(module.compress(body, _ZSTD_LEVEL)), "zstd"
    return bytes(module.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)), "zstd"


def kind_of(name: str) -> Compression | None:
    """The compression of a file of this name."""
    return next((kind for kind in Compression if name.endswith(kind.suffix)), None)


def unpack(kind: Compression, source: int) -> Iterator[bytes]:
    """The content of a compressed file, given its descriptor, in parts of bounded length.

    Raises:
        ValueError: It is damaged or ends too early; the parts so far are right.
    """
    damaged: tuple[type[Exception], ...] = (ConfigError, EOFError, zlib.error, OSError)
    with open(source, "rb", closefd=False) as file:
        file.seek(0)
        reader: Any
        try:
            if kind is Compression.GZIP:
                reader = gzip.GzipFile(fileobj=file)
            else:
                module, own = _zstd()
                damaged = (*damaged, module.ZstdError)
                if own:
                    reader = module.ZstdFile(file)
                else:
                    decompressor = module.ZstdDecompressor()
                    reader = decompressor.stream_reader(
                        file, read_across_frames=True, closefd=False
                    )
            while part := reader.read(PART_BYTES):
                yield part
        except damaged as error:
            raise ValueError(f"a compressed file is damaged: {error}") from None


def is_copy(kind: Compression, packed: int, plain: int) -> bool:
    """Whether a compressed file holds exactly the content of a plain one."""
    place = 0
    try:
        for part in unpack(kind, packed):
            at = 0
            while at < len(part):
                data = os.pread(plain, len(part) - at, place)
                if not data or data != part[at : at + len(data)]:
                    return False
                at += len(data)
                place += len(data)
    except ValueError:
        return False
    return place == os.fstat(plain).st_size
