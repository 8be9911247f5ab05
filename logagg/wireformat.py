"""The wire format for authors of sinks: lines, their offsets, own records, levels.

A public face: `logagg.core` may change, these names stay.
"""

from __future__ import annotations

from logagg.core.event import Event
from logagg.core.levels import STANDARD as LEVELS
from logagg.core.line import (
    KEY_END,
    LEVEL_MARK,
    LEVEL_START,
    MARK,
    PREFIX,
    TIMESTAMP,
    dump_line,
    is_wire,
    key_ns,
    key_of,
    level_of,
    load_line,
    parse_line,
    received_suffix,
    record_id,
    timestamp_bytes,
    timestamp_of,
)
from logagg.core.record import FIXED, own_record

__all__ = [
    "FIXED",
    "KEY_END",
    "LEVELS",
    "LEVEL_MARK",
    "LEVEL_START",
    "MARK",
    "PREFIX",
    "TIMESTAMP",
    "Event",
    "dump_line",
    "is_wire",
    "key_ns",
    "key_of",
    "level_of",
    "load_line",
    "own_record",
    "parse_line",
    "received_suffix",
    "record_id",
    "timestamp_bytes",
    "timestamp_of",
]
