"""A fuzz target for everything that a stranger's bytes reach in the consumer.

`target` takes any bytes; it must raise nothing, lose nothing that is well formed, keep
its memory bounded and let nothing through that is no record. hypothesis feeds it here;
any other fuzzer can call it as it is.
"""

import contextlib
import json
import os
import socket
from collections import deque

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import wire_line

from logagg.consumer.output_source import OutputSource
from logagg.consumer.source import SourceEnded
from logagg.consumer.worker_source import WorkerSource
from logagg.core.line import PREFIX, is_line, key_ns, level_of, seq_of
from logagg.core.merge import Merger
from logagg.dialects import output_lines
from logagg.ipc.protocol import RecordsHello, StreamHello
from logagg.platform.packets import KIND, send

START = 1_795_568_400 * 1_000_000_000


class Clock:
    """A clock that stands still."""

    offset_ns = 0

    def now_ns(self):
        return START


def made(connection, pipe):
    """A worker's source that is being read."""
    hello = RecordsHello(pid=1, worker="1", stream="1-a")
    worker = WorkerSource(connection, pipe, hello, os.getpid(), "fuzz")
    worker.start_reading()
    return worker


def captured(pipe, stream):
    """A captured stream's source."""
    hello = StreamHello(slot=1, pid=1, stream=stream)
    return OutputSource(pipe, hello, Clock(), deque())


def target(data: bytes) -> list[bytes]:
    """Give bytes to a worker's pipe; return the lines that the merge lets through."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    here, there = socket.socketpair(socket.AF_UNIX, KIND)
    worker = made(here, read)
    merger = Merger()
    try:
        with there, contextlib.suppress(SourceEnded):
            for start in range(0, len(data), 32_768):
                os.write(write, data[start : start + 32_768])
                lines, drained = worker.read(1 << 20)
                merger.add(lines, drained=drained)
            os.close(write)
            write = -1
            while True:
                lines, drained = worker.read(1 << 20)
                merger.add(lines, drained=drained)
        merger.reject_foreign(START + 10**9)
        worker.losses()
        worker.statistics()
        return merger.release(START + 10**10, all_ended=True)
    finally:
        if write >= 0:
            os.close(write)
        worker.close()


good = st.integers(1, 20).map(lambda n: wire_line(START + n, n) + b"\n")
broken = st.tuples(good, st.integers(0, 90), st.binary(max_size=5)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)
pieces = st.one_of(good, broken, st.binary(max_size=200), st.just(b"\n"))


@given(st.lists(pieces, max_size=30).map(b"".join))
@example(b'{"timestamp":"' + b"\xff" * 100 + b"\n")
@example(PREFIX + b"\n")
@example(b"\n" * 100_000)
@example(wire_line(START, 10**18) + b"\n" + wire_line(START, 1) + b"\n")
@example(wire_line(START, 1).replace(b'"seq":1', b'"seq":99999999999999999999') + b"\n")
def test_no_bytes_in_a_pipe_raise_or_pass_for_records(data):
    """What comes out begins as a line does and carries a time that is believed."""
    for line in target(data):
        assert line.startswith(PREFIX)
        assert b"\n" not in line
        key_ns(line)
        level_of(line)


@given(st.lists(st.integers(1, 5), max_size=10), st.binary(max_size=100))
@example([1], PREFIX)
def test_good_lines_come_through_whatever_junk_is_between_them(gaps, junk):
    """Junk lines cost themselves, never a record."""
    junk = junk.replace(b"\n", b"") + b"\n"
    data = b""
    for n, gap in enumerate(gaps, 1):
        data += junk * gap + wire_line(START + n, n) + b"\n"

    seqs = [seq_of(line) for line in target(data) if is_line(line)]

    assert seqs == list(range(1, len(gaps) + 1))


@given(
    st.lists(st.binary(max_size=300), max_size=10),
    st.sampled_from(["stdout", "stderr"]),
)
def test_captured_output_of_any_bytes_becomes_records(chunks, stream):
    """Whatever a program prints: whole records of JSON, every byte accounted for."""
    read, write = os.pipe()
    source = captured(read, stream)
    found = []
    try:
        for chunk in chunks:
            os.write(write, chunk)
            found += source.read(1 << 20)[0]
        os.close(write)
        write = -1
        with contextlib.suppress(SourceEnded):
            while True:
                found += source.read(1 << 20)[0]
    finally:
        if write >= 0:
            os.close(write)
        source.close()

    records = [orjson.loads(line + b"}") for line in found]
    assert [each["seq"] for each in records] == list(range(1, len(records) + 1))
    assert all(is_line(line) for line in found)
    text = b"".join(chunks)
    whole = text.count(b"\n") + (not text.endswith(b"\n") and text != b"")
    assert len(records) == whole
    assert sum(each.get("partial", False) for each in records) == (
        text != b"" and not text.endswith(b"\n")
    )


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)
keys = ["flush", "dropped", "torn", "bye", "segment", "first", "last", "sinks", "ack"]


@pytest.mark.slow
@given(st.lists(st.dictionaries(st.sampled_from(keys), values), max_size=5))
def test_no_packet_behind_the_hello_raises(packets):
    """A worker may say anything: the worst is that it is not heard any more."""
    read, write = os.pipe()
    here, there = socket.socketpair(socket.AF_UNIX, KIND)
    worker = made(here, read)
    try:
        with there:
            for packet in packets:
                send(there, json.dumps(packet).encode())
            worker.receive()
        orjson.dumps(worker.losses())
        orjson.dumps(worker.statistics())
        worker.read(1 << 20)
        worker.send_ack(0)
    finally:
        os.close(write)
        worker.close()


@pytest.mark.parametrize("size", [output_lines.MAX_CAPTURED_BYTES * 3 + 17])
def test_a_captured_line_without_end_is_cut_into_marked_pieces(size):
    """Memory is bounded: a very long raw line becomes several records, all of it there."""
    read, write = os.pipe()
    source = captured(read, "stdout")
    found = []
    data = b"x" * size
    sent = 0
    os.set_blocking(write, False)
    while sent < size:
        sent += os.write(write, data[sent : sent + 60_000])
        found += source.read(1 << 20)[0]
    os.close(write)
    with contextlib.suppress(SourceEnded):
        while True:
            found += source.read(1 << 20)[0]
    source.close()

    records = [orjson.loads(line + b"}") for line in found]
    assert sum(len(each["message"]) for each in records) == size
    assert all(each["partial"] for each in records)
    assert (
        max(len(each["message"]) for each in records) <= output_lines.MAX_CAPTURED_BYTES
    )
