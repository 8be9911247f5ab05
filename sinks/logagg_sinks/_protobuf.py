"""Just enough of protocol buffers to write OTLP and to read its answers. Pure.

A message is the concatenation of its fields, so a field is a piece of bytes and a
message is `b"".join(fields)`; there are no classes to generate or to depend on. The
tests read everything that is written here with the official package.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["double", "fields", "fixed32", "fixed64", "length", "text", "varint"]

_DOUBLE = struct.Struct("<d")
_FIXED64 = struct.Struct("<Q")
_FIXED32 = struct.Struct("<I")


def number(value: int) -> bytes:
    """A number in base 128, the least first; negative ones as 64 bits."""
    if 0 <= value < 0x80:
        return _SMALL[value]
    if value < 0:
        value += 1 << 64
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


_SMALL = [bytes((value,)) for value in range(0x80)]


def varint(field: int, value: int) -> bytes:
    """A field of type int32, int64, uint32, uint64, bool or enum."""
    return number(field << 3) + number(value)


def fixed64(field: int, value: int) -> bytes:
    """A field of type fixed64."""
    return number(field << 3 | 1) + _FIXED64.pack(value)


def fixed32(field: int, value: int) -> bytes:
    """A field of type fixed32."""
    return number(field << 3 | 5) + _FIXED32.pack(value)


def double(field: int, value: float) -> bytes:
    """A field of type double."""
    return number(field << 3 | 1) + _DOUBLE.pack(value)


def length(field: int, value: bytes) -> bytes:
    """A field of type bytes, string or message."""
    return number(field << 3 | 2) + number(len(value)) + value


def text(field: int, value: str) -> bytes:
    """A field of type string."""
    return length(field, value.encode())


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number and value, as they stand.

    Raises:
        ValueError: It is not a message.
    """
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, at = _number(data, at)
        else:
            if kind == 2:
                size, at = _number(data, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError(f"wire type {kind} is unknown")
            if at + size > len(data):
                raise ValueError("the message is cut off")
            value = data[at : at + size]
            at += size
        yield key >> 3, value


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("the message is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
