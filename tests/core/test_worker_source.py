"""A worker's pipe, kept records and segments: each record once, in order, counted.

With real pipes, files and sockets.
"""

import contextlib
import errno
import fcntl
import os
import socket

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import PacketSocket, no_free_descriptor, wire_line

from logagg.client import spool_writer
from logagg.client.spool_writer import orphans
from logagg.client.transport import Overflow, Transport
from logagg.consumer import segment_reader, worker_source
from logagg.consumer.acks import take_released
from logagg.consumer.segment_reader import SegmentReader
from logagg.consumer.source import SourceEnded
from logagg.consumer.worker_source import SourceState, WorkerSource
from logagg.core.line import KEY_END, seq_of
from logagg.ipc import paths
from logagg.ipc.protocol import (
    ConsumerPacket,
    RecordsHello,
    SegmentNotice,
    WorkerPacket,
    decode_hello,
    encode,
)
from logagg.platform import packets
from logagg.platform.system import memory_file

START = 1_795_568_400 * 1_000_000_000


def line(seq, filling=b"m"):
    """The wire line with a seq."""
    return wire_line(START + seq, seq, body=b'"message":"%b"' % filling)


def seqs(lines):
    return [seq_of(each) for each in lines]


class Rig:
    """A consumer's `WorkerSource` on a real pipe and socket, and the ends of its process."""

    def __init__(self, *, kept=(), **hello):
        self.folder = paths.spool_dir("rig")
        read, self.pipe = os.pipe()
        here, control = socket.socketpair(socket.AF_UNIX, packets.KIND)
        self.control = PacketSocket(control)
        self.worker = WorkerSource(
            here,
            read,
            RecordsHello(pid=1, worker="1", stream="1-a", **hello),
            os.getpid(),
            "rig",
            kept=kept_file(kept) if kept else None,
        )
        self.worker.start_reading()
        self._segments = 0

    def send(self, **message):
        self.control.send(encode(WorkerPacket(**message)))

    def announce(self, notice):
        self.send(segment=notice.segment, first=notice.first, last=notice.last)

    def write(self, numbers):
        for n in numbers:
            os.write(self.pipe, line(n) + b"\n")

    def spool(self, numbers, filling=b"m"):
        """Make a spool segment; return its notice."""
        self._segments += 1
        path = os.path.join(self.folder, f"1-a-{self._segments}.spool")
        with open(path, "wb") as file:
            file.writelines(line(n, filling) + b"\n" for n in numbers)
        return SegmentNotice(path, first=min(numbers), last=max(numbers))

    def hang_up(self):
        os.close(self.pipe)
        self.pipe = -1
        self.control.close()

    def read(self, budget=1 << 20):
        """Read until the pipe is at its end, or empty."""
        out = []
        for _ in range(10_000):
            try:
                lines, drained = self.worker.read(budget)
            except SourceEnded:
                return out
            out += lines
            if drained:
                return out
        raise AssertionError("read never came to an end")

    def close(self):
        if self.pipe >= 0:
            self.hang_up()
        self.worker.close()


def kept_file(numbers):
    """Lines in a file, as a worker hands them over to a new consumer."""
    file = memory_file("kept")
    os.write(file, b"".join(line(n) + b"\n" for n in numbers))
    os.lseek(file, 0, os.SEEK_SET)
    return SegmentReader.of_kept(file)


@pytest.fixture
def rig():
    rigs = []

    def make(**options):
        rigs.append(Rig(**options))
        return rigs[-1]

    yield make
    for each in rigs:
        with contextlib.suppress(OSError):
            each.close()


numbers = st.sets(st.integers(1, 40)).map(sorted)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pipe=numbers,
    kept=numbers,
    parked=st.lists(numbers.filter(bool), max_size=3),
    chunk=st.sampled_from([90, 200, 1000, 256 * 1024]),
    budget=st.sampled_from([1, 500, 1 << 20]),
)
def test_any_mix_of_ways_gives_each_record_once_in_order(
    rig, monkeypatch, pipe, kept, parked, chunk, budget
):
    """Pipe, kept records and segments overlap or leave holes: the union comes out."""
    monkeypatch.setattr(worker_source, "CHUNK_BYTES", chunk)
    made = rig(kept=kept)
    made.write(pipe)
    for each in parked:
        made.worker.segments.add(made.spool(each))
    made.hang_up()

    out = seqs(made.read(budget))

    union = set(pipe) | set(kept) | set().union(*parked)
    total = len(pipe) + len(kept) + sum(map(len, parked))
    sequence = made.worker.sequence
    made.close()
    assert out == sorted(union)
    assert sequence.accepted == len(union)
    assert sequence.duplicates == total - len(union)
    assert sequence.lost == max(union, default=0) - len(union)


def test_a_segment_waits_for_a_long_line_before_it_in_the_pipe(rig, monkeypatch):
    """A line longer than one read is not given up for a segment behind it."""
    monkeypatch.setattr(worker_source, "CHUNK_BYTES", 512)
    made = rig()
    os.write(made.pipe, line(1, b"x" * 2000) + b"\n")
    made.worker.segments.add(made.spool([2, 3]))

    out = made.read()

    assert seqs(out) == [1, 2, 3]
    assert made.worker.sequence.lost == 0


def test_a_segment_told_of_between_two_lines_stands_between_them(rig):
    """Lines written after the segment was announced come behind it."""
    made = rig()
    made.write([1, 2])
    made.announce(made.spool([3, 4]))
    made.write([5])

    out = made.read()

    assert seqs(out) == [1, 2, 3, 4, 5]
    assert made.worker.sequence.lost == 0


@pytest.mark.parametrize("closed", ["before", "after", "never"])
def test_a_torn_piece_in_the_pipe_does_not_cost_the_whole_record(rig, closed):
    """The pipe has a part of a record that the spool has whole: the whole comes out."""
    made = rig()
    made.write([1])
    os.write(made.pipe, line(2)[:-4])
    made.send(torn=2)
    if closed == "before":
        os.write(made.pipe, b"\n")
    made.announce(made.spool([2, 3]))
    out = made.read()
    if closed == "after":
        os.write(made.pipe, b"\n")
    if closed != "never":
        made.write([4])
    made.hang_up()
    out += made.read()

    assert seqs(out) == ([1, 2, 3] if closed == "never" else [1, 2, 3, 4])
    assert out[1] == line(2)
    assert made.worker.sequence.damaged == 0
    assert made.worker.sequence.lost == 0


def test_the_end_of_a_line_that_a_former_consumer_began_is_no_damage(rig):
    """At a new consumer the pipe may begin in the middle of a line."""
    made = rig(acknowledged=3, resumes=True, kept=[3, 4])
    os.write(made.pipe, line(4)[20:] + b"\n")
    made.write([5])

    out = made.read()

    assert seqs(out) == [4, 5]
    assert made.worker.sequence.damaged == 0
    assert made.worker.sequence.lost == 0


def test_a_segment_that_is_gone_was_taken_before(rig):
    """A segment that a former consumer removed is neither lost nor an error."""
    made = rig()
    notice = made.spool([2, 3])
    os.unlink(notice.segment)
    made.write([1])
    made.worker.segments.add(notice)
    made.write([4])

    out = made.read()

    assert seqs(out) == [1, 4]
    assert made.worker.sequence.lost == 0


def test_a_segment_waits_for_a_free_descriptor(rig):
    """It is not taken for one that is gone: nothing after it is read, none is excused."""
    r = rig()
    r.write([1])
    notice = r.spool([2, 3])
    r.write([4])
    r.announce(notice)
    with no_free_descriptor():
        assert seqs(r.worker.read(1 << 20)[0]) in ([], [1])
        assert r.worker.pending
    r.worker.read(1 << 20)
    losses = r.worker.losses()
    assert (losses["records"], losses["lost"]) == (4, 0)


def test_what_a_process_left_on_disk_waits_for_a_free_descriptor(rig):
    """At the end of the pipe too, where segments are looked for in the directory."""
    r = rig()
    r.write([1])
    r.spool([2, 3])
    r.hang_up()
    assert seqs(r.read()) == [1]
    with no_free_descriptor():
        assert not r.worker.finish("end of pipe")
    assert not r.worker.finish("end of pipe")
    assert seqs(r.read()) == [2, 3]
    assert r.worker.finish("end of pipe")
    assert r.worker.losses()["lost"] == 0


@contextlib.contextmanager
def broken_disk():
    """No segment can be opened."""

    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_reader, "open_segment", fails)
        patch.setattr(spool_writer, "open_segment", fails)
        yield


def test_a_segment_waits_for_a_disk_that_fails_for_a_moment(rig):
    """Its seqs are not given up, so it is not taken for a repetition later."""
    r = rig()
    r.write([1])
    notice = r.spool([2, 3])
    r.write([4])
    r.announce(notice)
    with broken_disk():
        assert seqs(r.worker.read(1 << 20)[0]) in ([], [1])
        assert r.worker.pending
    r.worker.read(1 << 20)
    losses = r.worker.losses()
    assert (losses["records"], losses["lost"]) == (4, 0)


def test_what_a_process_left_waits_for_a_disk_that_fails_for_a_moment(rig):
    """At the end of the pipe nothing is left out."""
    r = rig()
    r.write([1])
    r.spool([2, 3])
    r.hang_up()
    assert seqs(r.read()) == [1]
    with broken_disk():
        assert not r.worker.finish("end of pipe")
    assert not r.worker.finish("end of pipe")
    assert seqs(r.read()) == [2, 3]
    assert r.worker.finish("end of pipe")
    assert r.worker.losses()["lost"] == 0


def test_a_segment_on_a_disk_that_stays_broken_is_left_to_the_next_consumer(
    rig, monkeypatch
):
    """After the timeout its seqs are given up; it is not removed, nor read once more."""
    monkeypatch.setattr(segment_reader, "DISK_TIMEOUT", 0.0)
    r = rig()
    notice = r.spool([1, 2])
    r.announce(notice)
    r.write([3])
    with broken_disk():
        assert seqs(r.read()) == [3]
    assert r.worker.losses()["lost"] == 2
    r.hang_up()
    r.read()
    assert r.worker.finish("end of pipe")
    r.worker.acknowledge(3)
    assert orphans("rig") == [notice.segment]


def test_the_seqs_of_a_segment_that_cannot_be_read_are_lost(rig):
    """Only one that is missing was taken in before."""
    r = rig()
    notice = r.spool([1, 2])
    os.link(notice.segment, notice.segment + "x")  # not a file with one name
    r.announce(notice)
    r.write([3])
    r.hang_up()
    r.read()
    assert r.worker.losses()["lost"] == 2
    r.worker.acknowledge(3)
    assert os.path.exists(notice.segment)


def test_a_segment_is_not_followed_through_a_link(rig):
    """A symbolic link in place of a segment is not read."""
    made = rig()
    notice = made.spool([1])
    link = os.path.join(made.folder, "1-a-link.spool")
    os.symlink(notice.segment, link)

    made.worker.segments.add(SegmentNotice(link, first=1, last=1))

    assert made.read() == []


def test_a_line_without_end_ends_its_source(rig, monkeypatch):
    """Memory is bounded: who sends an endless line is closed."""
    monkeypatch.setattr(worker_source, "MAX_LINE_BYTES", 10_000)
    made = rig()
    os.write(made.pipe, b"x" * 20_000)

    with pytest.raises(SourceEnded, match="longer than 10000 bytes"):
        made.worker.read(1 << 20)


def test_a_line_written_while_its_flush_is_heard_is_not_given_up(rig):
    """A flush that is heard behind a read says nothing of what that read has missed."""
    scene = rig()
    scene.write([1])
    receive = scene.worker.receive

    def receive_late():
        scene.worker.receive = receive
        scene.write([2])  # behind the read, before the flush
        scene.send(flush=2)
        receive()

    scene.worker.receive = receive_late

    found = scene.worker.read(1 << 20)[0] + scene.worker.read(1 << 20)[0]

    assert seqs(found) == [1, 2]
    assert scene.worker.sequence.lost == 0


def test_a_flush_behind_dropped_records_counts_them_as_lost(rig):
    """What was said to be flushed and is not in the pipe was dropped: nobody waits."""
    scene = rig()
    scene.write([1])
    scene.send(flush=3)

    found = [*scene.worker.read(1 << 20)[0], *scene.worker.read(1 << 20)[0]]

    assert seqs(found) == [1]
    assert scene.worker.sequence.expected == 4
    assert scene.worker.sequence.lost == 2


def test_what_a_worker_said_it_had_logged_and_never_came_is_lost(rig):
    """After the last line that came, only its goodbye shows that there was more."""
    scene = rig()
    scene.write([1, 2])
    scene.send(bye=5, dropped=1)
    scene.hang_up()

    found = scene.read()
    assert scene.worker.finish("end of pipe")

    assert seqs(found) == [1, 2]
    losses = scene.worker.losses()
    assert (losses["dropped"], losses["lost"]) == (1, 2)
    assert take_released(scene.worker.marks, b"~") == 5, (
        "its last promise is not kept for ever"
    )


# ---- drops, told apart from losses, when consumers follow one another --------------


class Stage:
    """A worker's attachment, and consumers that the test lets follow one another."""

    def __init__(self, folder):
        path = os.path.join(folder, "socket")
        self._listener = packets.packet_socket()
        self._listener.bind(path)
        self._listener.listen()
        self._folder = folder
        self.attachment = Transport(path, [], elect=False)
        self.attachment.destination.overflow = Overflow.DROP_NEW

    def log(self, size=10):
        self.attachment.send("info", b'"message":"%b"}' % (b"m" * size))

    def drop(self, count):
        """Fill the pipe with records, until so many more were dropped."""
        wanted = self.attachment.delivery.drops.count + count
        while self.attachment.delivery.drops.count < wanted:
            self.log(3000)  # small enough to go into the pipe whole or not at all

    def consumer(self):
        """The next consumer, behind the worker's hello."""
        connection, _ = self._listener.accept()
        packet, fds, _ = packets.receive(connection, 1 << 16, 8)
        kept = SegmentReader.of_kept(fds[3]) if len(fds) > 3 else None
        worker = WorkerSource(
            connection,
            fds[0],
            decode_hello(packet),
            os.getpid(),
            paths.identifier_of(self.attachment.destination.path),
            kept=kept,
        )
        worker.start_reading()
        for each in fds[1:3]:
            os.close(each)
        return worker

    def close(self):
        self._listener.close()
        self.attachment.close(0)


@pytest.fixture
def stage(tmp_path):
    made = Stage(str(tmp_path))
    with contextlib.closing(made):
        yield made


def test_drops_that_are_behind_hide_no_later_loss(stage):
    """A new consumer counts from the acknowledged seq: drops before it have no hole."""
    stage.log()
    first = stage.consumer()
    stage.drop(5)
    read_all(first)
    stage.log()
    seen = seqs(read_all(first))
    first.send(ConsumerPacket(ack=seen[-1]))
    first.close()
    stage.attachment.flush(0)
    second = stage.consumer()
    stage.log()
    stage.log()
    os.read(second.pipe, 1 << 16)  # two records are lost, whatever the reason
    stage.drop(3)
    read_all(second)
    stage.log()
    read_all(second)
    stage.attachment.flush(0)
    second.receive()

    losses = second.losses()
    second.close()

    assert (losses["dropped"], losses["lost"]) == (8, 2)


@pytest.mark.parametrize(
    ("acknowledged", "settled"), [("all", 5), ("half a hole more", 6), ("none", 0)]
)
def test_drops_are_no_losses_for_the_next_consumer_either(stage, acknowledged, settled):
    """Their holes are before or behind what was acknowledged: neither counts twice."""
    stage.log()
    first = stage.consumer()
    stage.drop(5)
    read_all(first)
    stage.log()
    stage.drop(2)
    seen = seqs(read_all(first))
    if acknowledged != "none":
        first.send(ConsumerPacket(ack=seen[-1] + (acknowledged != "all")))
    first.close()
    stage.attachment.flush(0)
    second = stage.consumer()
    stage.log()
    read_all(second)

    losses = second.losses()
    second.close()

    assert (losses["dropped"], losses["lost"]) == (7, 0)
    assert second.hello.drops_acknowledged == settled


def test_a_torn_part_is_known_to_the_next_consumer_too(stage):
    """The part stands closed in the pipe, and who was told of it is dead."""
    stage.attachment.destination.overflow = Overflow.SPOOL
    stage.log()
    first = stage.consumer()
    while not stage.attachment.delivery._torn:
        stage.log(20_001)
    os.read(first.pipe, 700_000)  # some room; it dies before it has written that
    while stage.attachment.delivery._torn:
        stage.log()
    first.close()
    stage.attachment.flush(0)
    second = stage.consumer()
    stage.log()

    found = read_all(second)
    damaged, torn = second.losses()["damaged"], second.sequence.torn
    second.close()

    assert seqs(found) == list(range(1, stage.attachment.seq + 1))
    assert all(orjson.loads(line)["message"].strip("m") == "" for line in found)
    assert (damaged, torn) == (0, set())


def read_all(worker):
    """What a worker's ways have, until they are empty."""
    found = []
    while True:
        lines, drained = worker.read(1 << 20)
        found += lines
        if drained and not worker.pending:
            return found


# ---- states -------------------------------------------------------------------------


def test_a_flush_past_drops_is_not_acknowledged_before_the_lines_before_it(rig):
    """One read finds a line, and that later ones were dropped: the line goes first."""
    made = rig()
    made.write([1])
    made.send(flush=3)
    made.worker.receive()

    made.read()

    assert take_released(made.worker.marks, line(1)[:KEY_END]) == 0
    assert take_released(made.worker.marks, line(2)[:KEY_END]) == 3


def test_a_source_goes_from_joining_to_departed(rig):
    """The table in the head of the module: joining, reading, draining, departed."""
    ended = []
    made = rig()
    worker = made.worker
    worker.on_departure = lambda source, reason: ended.append((source, reason))
    worker.state = SourceState.JOINING
    assert not worker.readable
    worker.start_reading()
    assert worker.readable
    made.write([1, 2])
    made.hang_up()

    found, drained = worker.read(1 << 20)
    assert (seqs(found), drained) == ([1, 2], True)
    assert made.read() == []
    assert worker.state is SourceState.DRAINING
    assert worker.finish("end of pipe")

    assert worker.state is SourceState.DEPARTED
    assert ended == [(worker, "end of pipe")]
    assert worker.pipe == -1
    assert not worker.finished
    worker.acknowledge(2)
    assert worker.finished


def test_segments_on_disk_at_the_end_are_read_before_it_departs(rig):
    """What a process left without an announcement is found at the end of its pipe."""
    made = rig()
    made.write([1])
    notice = made.spool([2, 3])
    made.hang_up()
    found = made.read()

    assert not made.worker.finish("end of pipe")
    found += made.read()
    assert made.worker.finish("end of pipe")
    made.worker.acknowledge(3)

    assert seqs(found) == [1, 2, 3]
    assert not os.path.exists(notice.segment)


def test_what_a_followed_source_finds_on_disk_is_left_to_its_successor(rig):
    """The lines in between are in the successor's pipe, and would count as lost."""
    made, following = rig(), rig()
    made.write([1])
    made.worker.successor = following.worker
    made.spool([4, 5])
    made.hang_up()
    found = made.read()

    assert made.worker.finish("another pipe")
    assert seqs(found) == [1]
    assert made.worker.losses()["lost"] == 0


def test_lines_before_a_fault_are_returned(rig, monkeypatch):
    """A source that breaks the rules loses what follows, not what was read."""
    monkeypatch.setattr(worker_source, "CHUNK_BYTES", len(line(1)) + 1)
    made = rig()
    made.write([1])
    os.write(made.pipe, wire_line(START, 2, worker="other") + b"\n")

    assert seqs(made.read()) == [1]
    with pytest.raises(SourceEnded, match="another worker's name"):
        made.worker.read(1 << 20)


def test_a_worker_that_waits_in_flush_is_acknowledged_at_once(rig):
    """Others are acknowledged now and then."""
    made = rig()
    made.write([1, 2])
    made.read()
    made.worker.acknowledge(1)
    made.control.setblocking(False)
    with pytest.raises(BlockingIOError):
        made.control.recv(100)

    made.send(flush=2)
    made.worker.receive()
    made.worker.acknowledge(2)

    answer = orjson.loads(made.control.recv(100))
    assert answer == {"ack": 2, "flushed": 2}
    assert made.worker.flush_to == 0


def test_a_segment_without_newlines_costs_neither_memory_nor_a_long_pause(
    tmp_path, monkeypatch
):
    """A sparse file of any size: each longest line is one damaged one."""
    monkeypatch.setattr(segment_reader, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(segment_reader, "CHUNK_BYTES", 100)
    path = tmp_path / "1-a-1.spool"
    good = [line(n) for n in (1, 2)]
    path.write_bytes(good[0] + b"\n" + bytes(5000) + b"\n" + good[1] + b"\n")
    reader = SegmentReader(str(path), 2)
    found, longest = [], 0
    while reader.pull():
        longest = max(longest, *map(len, reader.lines))
        found += reader.lines
        reader.lines = []

    assert [each for each in found if each] == good
    assert 4 <= found.count(b"") <= 6
    assert longest <= 1000
    assert reader.at_end


@pytest.mark.parametrize("last", [0, 2])
def test_what_a_process_has_left_is_safe_when_its_newest_record_is(tmp_path, last):
    """Read is not written: of a segment with an unknown end (0) its lines say which."""
    path = tmp_path / "1-a-1.spool"
    path.write_bytes(b"".join(line(n) + b"\n" for n in (1, 2)))
    reader = SegmentReader(str(path), last)
    while reader.pull():
        reader.lines = []

    assert reader.at_end
    assert [reader.is_safe(seq) for seq in (0, 1, 2)] == [False, False, True]


def test_one_read_has_a_bound_whatever_a_process_sends(rig):
    """A hole before each line, many messages: the rest waits for the next cycle."""
    here = rig()
    fcntl.fcntl(here.pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.set_blocking(here.pipe, False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while os.write(here.pipe, line(2 * sent + 2) + b"\n"):
            sent += 1

    most = (1 << 20) // 4096
    reads = 0
    found = []
    while len(found) < sent:
        lines, drained = here.worker.read(1 << 20)
        assert len(lines) <= most
        found += lines
        reads += 1

    assert seqs(found) == [2 * n + 2 for n in range(sent)]
    assert here.worker.losses()["lost"] == sent
    assert reads >= sent // most > 2, "the pipe is too small for this test"


def test_a_source_that_is_followed_is_read_to_its_end_though_its_pipe_stays_open():
    """An exception can have left the write end open, in a process that uses another."""
    rig = Rig()
    rig.write([1])
    assert rig.worker.read(10**6)[0]
    assert not rig.worker.pending

    rig.worker.successor = rig.worker

    assert rig.worker.pending
    with pytest.raises(SourceEnded):
        rig.worker.read(10**6)
    rig.worker.close()
    os.close(rig.pipe)
    rig.control.close()
