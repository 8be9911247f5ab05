"""Control messages between logagg's processes, as typed structs.

A consumer's socket (`PATH.sock`) carries them: packets, one message each. Those of a
run's control socket stand in `logagg.ipc.runs.run_messages`. A message is decoded once,
whole, by the process that receives it; nothing is changed by one that is refused. Keys
that a struct does not know are ignored.

    first packet to a consumer   RecordsHello StreamHello HoldHello ViewerHello
                                 StatusHello ReloadHello AdoptHello GiveWayHello:
                                 `kind` names which
    worker → consumer            WorkerPacket: any of its keys
    holder → consumer            HolderPacket: any of its keys
    consumer → worker, holder    ConsumerPacket: any of its keys
    consumer → viewer's pipe     ViewerControl: lines between the records

Version: `hello` in each first message. A peer of another version is refused with an
error that names both. Raise VERSION when a message changes so that the other end would
misread it; a new key with a default does not.

The client inside an application writes and reads the same messages without msgspec:
`logagg.ipc.client_messages`, which tests/core/test_protocol.py holds against this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from logagg.errors import WireError

__all__ = [
    "VERSION", "AdoptHello", "ConsumerConfig", "ConsumerPacket", "GiveWayHello", "Hello",
    "HoldHello", "HolderPacket",
    "RecordsHello", "ReloadHello", "SegmentNotice", "StatusHello",
    "StreamHello", "ViewerControl", "ViewerHello", "WorkerPacket",
    "decode", "decode_hello", "encode", "printable", "read_first",
]  # fmt: skip

VERSION = 1

MAX_PACKET_BYTES = 1 << 18
"""Longest packet that a consumer reads (256 KiB); a status answer may be longer."""

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Offset = Annotated[int, Meta(ge=-(2**62), le=2**62)]


class ConsumerConfig(Struct):
    """The settings that the process which starts a consumer passes to it.

    Attributes:
        socket: The socket's path.
        fd: The listening socket.
        offset: The common clock's offset in ns.
        sinks: Opened before the first connection is accepted.
        stay: It does not end for want of workers.
        restarted: A consumer of this address died without removing its socket.
        metrics: Address of the endpoint; `metrics_fd`: its listening socket.
        spool: Where the address ends with a run: `logagg.ipc.paths.spool_name`.
    """

    socket: str
    fd: int
    offset: int
    sinks: list[str] = []
    stay: bool = False
    restarted: bool = False
    metrics: str = ""
    metrics_fd: int | None = None
    spool: str = ""


# ---- the first packet to a consumer ---------------------------------------------------


class SegmentNotice(Struct, omit_defaults=True):
    """A spool segment: complete, or (without `last`) still being written."""

    segment: str
    first: Number
    last: Number | UnsetType = UNSET

    def __post_init__(self) -> None:
        if "\0" in self.segment:
            raise ValueError("a path with a NUL byte")


class RecordsHello(Struct, tag_field="kind", tag="records"):
    """A worker's. With it come its pipe's read end, stdout, stderr, kept records.

    Attributes:
        parent: The pid of the process that started it; 0: not known.
        quiet: The process does not log debug records, so none is made of its end.
        acknowledged: Seq up to which an earlier consumer, or its stream before this
            one, was acknowledged.
        dropped: Records that the worker has dropped, in all.
        drops_acknowledged: Those of them at or before `acknowledged`.
        drops_announced: Those that stand as a record in the durable sinks.
        torn: Seqs of lines of which the pipe holds a part only.
        resumes: An earlier consumer has read from this pipe.
        spool: Names the directories of its segments; empty: those of this consumer.
        elects: It is not bound to this consumer, and can start another one.
        clocks: Up to which seq its lines so far are stamped with which offset of the
            common clock.
    """

    pid: Number
    worker: Annotated[str, Meta(min_length=1, max_length=64)]
    stream: str
    hello: int = VERSION
    process: str = ""
    parent: Number = 0
    quiet: bool = False
    supervised: bool = False
    sinks: list[str] = []
    acknowledged: Number = 0
    dropped: Number = 0
    drops_acknowledged: Number = field(default=0, name="settled")
    drops_announced: Number = field(default=0, name="told")
    torn: list[Number] = []
    resumes: bool = field(default=False, name="again")
    segments: list[SegmentNotice] = []
    spool: str = ""
    elects: bool = False
    clocks: list[tuple[Number, Offset]] = []

    def __post_init__(self) -> None:
        if not self.worker.isprintable() or '"' in self.worker or "\\" in self.worker:
            raise ValueError("a worker's name must be plain text")
        if "/" in self.spool or "\0" in self.spool or self.spool in (".", ".."):
            raise ValueError("a spool's name must be one name of a directory")


class StreamHello(Struct, tag_field="kind", tag="stream"):
    """A supervisor's, for the captured output of a worker; the pipe comes with it.

    Attributes:
        app: The program's name in a project of several.
    """

    slot: Number
    pid: Number
    stream: Literal["stdout", "stderr"]
    hello: int = VERSION
    app: Annotated[str, Meta(max_length=40, pattern="^[A-Za-z0-9_-]*$")] = ""


class HoldHello(Struct, tag_field="kind", tag="hold"):
    """Keeps the consumer alive until the connection ends.

    Attributes:
        sinks: Opened with the stdout and stderr that come with it.
        own: They are the consumer's configuration, which a reload replaces.
    """

    hello: int = VERSION
    sinks: list[str] = []
    own: bool = False


class ViewerHello(Struct, tag_field="kind", tag="viewer"):
    """A viewer's, with the pipe that it reads.

    Attributes:
        lines: How many past lines are wanted; None: all. With a filter all that may
            match are sent.
        after: Only lines after this one: timestamp, worker, seq.
        match: This and the rest: the arguments of `logagg.filters.matcher.compile`.
    """

    hello: int = VERSION
    lines: Number | None = None
    after: tuple[str, str, int] | None = None
    match: list[str] = []
    level: str | None = None
    worker: list[str] = []
    logger: list[str] = []
    grep: list[str] = []
    exclude: list[str] = []
    fixed: bool = False
    ignore_case: bool | None = None
    since_ns: int | None = None
    until_ns: int | None = None


class StatusHello(Struct, tag_field="kind", tag="status"):
    """Requests the counters, in one packet."""

    hello: int = VERSION


class ReloadHello(Struct, tag_field="kind", tag="reload", omit_defaults=True):
    """Requests that the configuration is read again, or replaced by these sinks."""

    hello: int = VERSION
    sinks: list[str] | UnsetType = UNSET


class AdoptHello(Struct, tag_field="kind", tag="adopt"):
    """A consumer's that must not write a worker's file: this one is to serve the worker.

    It is sent twice: the second time, after the answer, come with it the worker's
    connection and the descriptors of its hello.
    """

    worker: RecordsHello
    hello: int = VERSION


class GiveWayHello(Struct, tag_field="kind", tag="give_way"):
    """Requests that a consumer which only handlers have started ends.

    Attributes:
        successor: Where records for its files are taken from then on.
    """

    successor: str
    hello: int = VERSION


Hello = (
    RecordsHello
    | StreamHello
    | HoldHello
    | ViewerHello
    | StatusHello
    | ReloadHello
    | AdoptHello
    | GiveWayHello
)


# ---- what follows on the connection ---------------------------------------------------


class WorkerPacket(Struct, omit_defaults=True):
    """From a worker after its hello.

    Attributes:
        sinks: More sinks to open.
        flush: Acknowledge at once when all up to this seq is safe.
        dropped: Records that it has dropped, in all.
        torn: Seq of a line of which the pipe holds a part only.
        bye: Its last seq: it ends in good order.
        stays: With `bye`: only its attachment ends, the process goes on.
        segment: With `first` and perhaps `last`: see `SegmentNotice`.
    """

    sinks: list[str] | UnsetType = UNSET
    flush: Number | UnsetType = UNSET
    dropped: Number | UnsetType = UNSET
    torn: Number | UnsetType = UNSET
    bye: Number | UnsetType = UNSET
    stays: bool = False
    segment: str | UnsetType = UNSET
    first: Number | UnsetType = UNSET
    last: Number | UnsetType = UNSET

    def __post_init__(self) -> None:
        self.notice  # noqa: B018 - raises for a notice that is not whole

    @property
    def notice(self) -> SegmentNotice | None:
        """The segment that it announces, if it does."""
        if self.segment is UNSET:
            return None
        if self.first is UNSET:
            raise ValueError("a segment without its first seq")
        return SegmentNotice(self.segment, self.first, self.last)


class HolderPacket(Struct, omit_defaults=True):
    """From a holder after its hello.

    Attributes:
        record: Fields of a record for the stream.
        after_pid: It is written after the last output of this process.
        leave: It leaves, and keeps the connection open until the consumer has ended.
    """

    record: dict[str, Any] | UnsetType = UNSET
    after_pid: Number | UnsetType = UNSET
    leave: int | UnsetType = UNSET


class ConsumerPacket(Struct, omit_defaults=True):
    """From the consumer to a worker or a holder.

    Attributes:
        ack: All records up to this seq are safe with the durable sinks.
        flushed: The `flush` that this answers.
        incomplete: With `flushed`: the sinks that decide what is safe have dropped
            records since the last answer.
        drops_announced: That many drops stand as a record in the durable sinks.
        switch: From this monotonic instant on the clock's offset is that (ns).
        error: Refusal, or what is wrong.
        welcome: The sinks are open; a request of a consumer is granted.
        reloaded: The configuration was read again.
    """

    ack: Number | UnsetType = UNSET
    flushed: Number | UnsetType = UNSET
    incomplete: bool = False
    drops_announced: Number | UnsetType = field(default=UNSET, name="told")
    switch: tuple[int, int] | UnsetType = UNSET
    error: str | UnsetType = UNSET
    welcome: int | UnsetType = UNSET
    reloaded: int | UnsetType = UNSET


class ViewerControl(Struct, omit_defaults=True):
    """A line in a viewer's pipe that is not a record.

    Attributes:
        run: The consumer's identity, in the first line.
        workers: How many are attached, in the first line.
        live: All past lines have been sent.
        dropped: So many lines were not sent because the pipe was full.
        loss: Text of a record about a loss that the filter leaves out.
    """

    run: str | UnsetType = UNSET
    workers: int | UnsetType = UNSET
    live: bool = False
    dropped: int = 0
    loss: str | UnsetType = UNSET


# ---- bytes ----------------------------------------------------------------------------


class _Version(Struct):
    hello: int = VERSION


encode = msgspec.json.Encoder().encode
_decode_hello = msgspec.json.Decoder(Hello).decode

_AnyMessage = TypeVar("_AnyMessage")


def decode(kind: type[_AnyMessage], data: bytes) -> _AnyMessage:
    """A message of a connection on which a hello was accepted.

    Raises:
        WireError: It is not one of that kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise WireError(str(error)) from None


def decode_hello(packet: bytes) -> Hello:
    """The first packet to a consumer.

    Raises:
        WireError: It is not a hello, or of another version.
    """
    hello: Hello = read_first(_decode_hello, packet)
    return hello


def read_first(read: Callable[[bytes], Any], data: bytes) -> Any:
    """Decode a message that carries the version.

    Raises:
        WireError: It is not one, or of another version.
    """
    try:
        found = read(data)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        _check(decode(_Version, data).hello)  # another version has other fields
        raise WireError(str(error)) from None
    _check(found.hello)
    return found


def _check(version: int) -> None:
    if version != VERSION:
        raise WireError(
            f"protocol version {version}, but this process has version {VERSION}: "
            "use one release of logagg on both sides and restart the older one"
        )


def printable(text: object) -> str:
    """Text for a message: what UTF-8 cannot hold (lone surrogates) as escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode()
