"""Control messages as the client reads and writes them, without msgspec.

A message is one packet of JSON on the control connection. This module is the only place
in the client that knows its keys; `logagg.ipc.protocol` has the same messages as structs
for the consumer. Packets from the consumer that cannot be decoded are treated as empty:
the consumer is the only peer, and a log call must not fail because of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

__all__ = [
    "ConsumerMessage",
    "Hello",
    "Segment",
    "add_sinks",
    "bye",
    "decode",
    "dropped",
    "flush",
    "hold",
    "leave",
    "torn",
]

PROTOCOL = 1
MAX_SEQ = 2**63 - 1


class Segment:
    """A spool segment as it is announced.

    Attributes:
        path: The file.
        first: The seq of its first line.
        last: The seq of its last line; None while the worker still appends to it.
    """

    __slots__ = ("first", "last", "path")

    def __init__(self, path: str, first: int, last: int | None) -> None:
        self.path = path
        self.first = first
        self.last = last

    def fields(self) -> dict[str, Any]:
        """The members of the JSON object."""
        found: dict[str, Any] = {"segment": self.path, "first": self.first}
        if self.last is not None:
            found["last"] = self.last
        return found

    def encode(self) -> bytes:
        """The packet that announces this segment alone."""
        return orjson.dumps(self.fields())


class Hello:
    """The first packet of a worker. Its descriptors are the pipe's read end, stdout,
    stderr and, where there are unacknowledged lines, a file of those.

    Attributes:
        pid: The worker's pid in its own namespace.
        process: The name that multiprocessing gave the process.
        parent: The pid of the process that started it.
        worker: The name in its lines.
        quiet: Whether its root logger is not enabled for debug records.
        supervised: Whether a supervisor reports how the process ended.
        stream: An identifier of this seq numbering; a forked child has another.
        sinks: The sink URLs that the process requests.
        acknowledged: The highest seq that a consumer has acknowledged.
        drops: Records dropped so far.
        drops_acknowledged: How many of those have seqs up to `acknowledged`.
        drops_announced: How many were announced in the stream.
        torn: Seqs of lines of which the pipe may hold a part only.
        again: Whether another consumer has read from this pipe before.
        segments: Spool segments that are not acknowledged as a whole.
        spool: Names the directories of the segments.
        elects: Whether it can start another consumer.
        clocks: Up to which seq lines are stamped with which offset of the common clock,
            in nanoseconds; the last for all that there are so far.
    """

    __slots__ = (
        "acknowledged", "again", "clocks", "drops", "drops_acknowledged",
        "drops_announced", "elects", "parent", "pid", "process", "quiet", "segments",
        "sinks", "spool", "stream", "supervised", "torn", "worker",
    )  # fmt: skip

    pid: int
    process: str
    parent: int
    worker: str
    quiet: bool
    supervised: bool
    stream: str
    sinks: Sequence[str]
    acknowledged: int
    drops: int
    drops_acknowledged: int
    drops_announced: int
    torn: Sequence[int]
    again: bool
    segments: Sequence[Segment]
    spool: str
    elects: bool
    clocks: Sequence[tuple[int, int]]

    def keep_clock(self) -> None:
        """The consumer's clock is unknown: later lines are stamped as those so far."""
        self.clocks = [
            *self.clocks[:-1],
            *((MAX_SEQ, by) for _, by in self.clocks[-1:]),
        ]

    def encode(self) -> bytes:
        """The packet."""
        return orjson.dumps(
            {
                "hello": PROTOCOL,
                "kind": "records",
                "pid": self.pid,
                "process": self.process,
                "parent": self.parent,
                "worker": self.worker,
                "quiet": self.quiet,
                "supervised": self.supervised,
                "stream": self.stream,
                "sinks": self.sinks,
                "acknowledged": self.acknowledged,
                "dropped": self.drops,
                "settled": self.drops_acknowledged,
                "told": self.drops_announced,
                "torn": self.torn,
                "again": self.again,
                "segments": [segment.fields() for segment in self.segments],
                "spool": self.spool,
                "elects": self.elects,
                "clocks": self.clocks,
            }
        )


def hold(sinks: Sequence[str]) -> bytes:
    """The first packet of `logagg.start`: keep running until `leave`."""
    return orjson.dumps({"hello": PROTOCOL, "kind": "hold", "sinks": sinks})


def leave() -> bytes:
    """End a `hold`; the consumer ends when its last worker has."""
    return b'{"leave":1}'


def add_sinks(urls: Sequence[str]) -> bytes:
    """Request more sinks."""
    return orjson.dumps({"sinks": urls})


def flush(seq: int) -> bytes:
    """Request a `flushed` once all records up to `seq` are safe."""
    return b'{"flush":%d}' % seq


def dropped(count: int) -> bytes:
    """Report how many records were dropped so far."""
    return b'{"dropped":%d}' % count


def torn(seq: int) -> bytes:
    """Report that the line `seq` is cut off in the pipe and follows as a whole."""
    return b'{"torn":%d}' % seq


def bye(seq: int, drops: int, *, at_exit: bool) -> bytes:
    """Report an orderly end, of the process or only of its attachment.

    Args:
        seq: The last seq.
        drops: How many records were dropped.
        at_exit: Whether the process ends.
    """
    form = b'{"bye":%d,"dropped":%d%b}'
    return form % (seq, drops, b"" if at_exit else b',"stays":true')


class ConsumerMessage:
    """A message from the consumer; what it does not contain is None.

    Attributes:
        ack: All records up to this seq are safe.
        flushed: The answer to `flush`: the seq that it named.
        incomplete: With `flushed`: sinks have dropped records since the last answer.
        drops_announced: How many dropped records are announced, durably, in the stream.
        switch: A new clock offset: the monotonic instant from which it applies, and
            the offset, both in nanoseconds.
        error: Why a sink or a request was refused.
        welcome: Whether the sinks of a hello are open.
    """

    __slots__ = (
        "ack", "drops_announced", "error", "flushed", "incomplete", "switch", "welcome",
    )  # fmt: skip

    def __init__(self, fields: dict[str, Any]) -> None:
        self.ack = _number(fields.get("ack"))
        self.flushed = _number(fields.get("flushed"))
        self.incomplete = "incomplete" in fields
        self.drops_announced = _number(fields.get("told"))
        self.switch: tuple[int, int] | None = None
        match fields.get("switch"):
            case [int(at), int(offset)]:
                self.switch = (at, offset)
        error = fields.get("error")
        self.error = None if error is None else str(error)
        self.welcome = "welcome" in fields


def decode(packet: bytes) -> ConsumerMessage:
    """Decode a packet from the consumer."""
    try:
        fields = orjson.loads(packet)
    except orjson.JSONDecodeError:
        fields = None
    return ConsumerMessage(fields if isinstance(fields, dict) else {})


def _number(value: object) -> int | None:
    return value if type(value) is int else None
