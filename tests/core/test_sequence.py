"""One worker's lines by several ways: each seq once, in order, everything counted."""

import contextlib
import itertools
import os
import socket

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import wire_line

from logagg import address, intake, wire
from logagg.attach import Attachment, Overflow
from logagg.intake import Ended, Worker
from logagg.sequence import Sequence

START = 1_795_568_400 * 1_000_000_000


def line(seq, filling=b"m"):
    """The wire line with a seq."""
    return wire_line(START + seq, seq, body=b'"message":"%b"' % filling)


def seqs(lines):
    return [wire.seq_of(each) for each in lines]


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(0, 40))
def test_split_gives_whole_lines_however_the_bytes_are_cut(cuts, count):
    """A chunk's end may be anywhere: whole lines come out, the rest waits."""
    data = b"".join(line(n) + b"\n" for n in range(1, count + 1)) + b"a torn end"
    sequence = Sequence()
    found = []
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(places):
        found += sequence.split(data[start:end])

    assert found == [line(n) for n in range(1, count + 1)]
    assert sequence.tail == b"a torn end"


@given(st.lists(st.sets(st.integers(1, 30)).map(sorted), max_size=4))
def test_ways_with_holes_and_repeats_are_counted_exactly(ways):
    """What comes again is dropped, what never comes is lost, and both are counted."""
    sequence = Sequence()
    out = []
    for way in ways:
        rest = [line(n) for n in way]
        while rest:
            chosen, rest = sequence.admit(rest)
            out += chosen
            if rest:
                sequence.skip_to(wire.seq_of(rest[0]))

    assert seqs(out) == sorted(set(seqs(out)))
    assert sequence.admitted == len(out)
    assert sequence.admitted + sequence.duplicates == sum(map(len, ways))
    assert sequence.lost == sequence.expected - 1 - len(out)
    assert sequence.damaged == 0


@given(st.lists(st.one_of(st.none(), st.binary(max_size=30)), max_size=20))
def test_garbage_between_lines_is_counted_and_the_lines_go_on(pieces):
    """Junk costs nothing but itself, wherever it stands."""
    sequence = Sequence()
    lines, expected, junk = [], 0, 0
    for piece in pieces:
        if piece is None:
            expected += 1
            lines.append(line(expected))
        else:
            junk += 1
            lines.append(piece.replace(b"\n", b""))

    chosen, behind = sequence.admit(lines)

    assert seqs(chosen) == list(range(1, expected + 1))
    assert behind == []
    assert sequence.damaged == junk


def test_an_announced_torn_line_is_dropped_and_its_whole_is_taken():
    """The piece in the pipe is not the record; the record comes by another way."""
    sequence = Sequence()
    sequence.torn.add(2)

    chosen, _ = sequence.admit([line(1), line(2)[:-4]])
    whole, _ = sequence.admit([line(2)])

    assert seqs(chosen + whole) == [1, 2]
    assert whole == [line(2)]
    assert sequence.damaged == 1
    assert sequence.torn == set()


def test_a_forgiven_hole_is_no_loss():
    """What an earlier consumer has written is not counted as lost."""
    sequence = Sequence()
    sequence.forgive(3, 5)

    sequence.skip_to(8)

    assert sequence.lost == 4
    assert sequence.expected == 8


def test_a_line_left_open_at_the_end_is_torn():
    """Half a line behind the last newline is counted when its worker is gone."""
    sequence = Sequence()
    sequence.split(line(1)[:30])

    sequence.end()
    sequence.end()

    assert sequence.damaged == 1


# ---- all the ways together, with real pipes, files and sockets --------------------


class Rig:
    """A consumer's `Worker` on a real pipe and socket, and the ends of its process."""

    def __init__(self, folder, *, acknowledged=0, again=False):
        self.folder = folder
        read, self.pipe = os.pipe()
        here, self.control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        hello = {
            "pid": 1,
            "worker": "1",
            "stream": "1-a",
            "acknowledged": acknowledged,
            "again": again,
        }
        self.worker = Worker(here, read, hello, os.getpid(), [folder])
        self._segments = 0

    def write(self, numbers):
        for n in numbers:
            os.write(self.pipe, line(n) + b"\n")

    def keep(self, numbers):
        """Hand over lines as those that were kept for a new consumer."""
        file = os.memfd_create("kept")
        os.write(file, b"".join(line(n) + b"\n" for n in numbers))
        os.lseek(file, 0, os.SEEK_SET)
        self.worker.add_kept(file)

    def park(self, numbers, filling=b"m"):
        """Make a spool segment; return what announces it."""
        self._segments += 1
        path = os.path.join(self.folder, f"1-a-{self._segments}.spool")
        with open(path, "wb") as file:
            file.writelines(line(n, filling) + b"\n" for n in numbers)
        return {"segment": path, "first": min(numbers), "last": max(numbers)}

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
            except Ended:
                return out
            out += lines
            if drained:
                return out
        raise AssertionError("read never came to an end")

    def close(self):
        if self.pipe >= 0:
            self.hang_up()
        self.worker.close()


@pytest.fixture
def rig(tmp_path):
    rigs = []

    def make(**options):
        rigs.append(Rig(str(tmp_path), **options))
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
    monkeypatch.setattr(intake, "CHUNK_BYTES", chunk)
    made = rig()
    made.write(pipe)
    if kept:
        made.keep(kept)
    for each in parked:
        made.worker.add_segment(made.park(each))
    made.hang_up()

    out = seqs(made.read(budget))

    union = set(pipe) | set(kept) | set().union(*parked)
    total = len(pipe) + len(kept) + sum(map(len, parked))
    sequence = made.worker.sequence
    made.close()
    assert out == sorted(union)
    assert sequence.admitted == len(union)
    assert sequence.duplicates == total - len(union)
    assert sequence.lost == max(union, default=0) - len(union)


def test_a_segment_waits_for_a_long_line_before_it_in_the_pipe(rig, monkeypatch):
    """A line longer than one read is not given up for a segment behind it."""
    monkeypatch.setattr(intake, "CHUNK_BYTES", 512)
    made = rig()
    os.write(made.pipe, line(1, b"x" * 2000) + b"\n")
    made.worker.add_segment(made.park([2, 3]))

    out = made.read()

    assert seqs(out) == [1, 2, 3]
    assert made.worker.sequence.lost == 0


def test_a_segment_told_of_between_two_lines_stands_between_them(rig):
    """Lines written after the segment was announced come behind it."""
    made = rig()
    made.write([1, 2])
    made.control.send(orjson.dumps(made.park([3, 4])))
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
    made.control.send(orjson.dumps({"torn": 2}))
    if closed == "before":
        os.write(made.pipe, b"\n")
    told = made.park([2, 3])
    made.control.send(orjson.dumps(told))
    out = made.read()
    if closed == "after":
        os.write(made.pipe, b"\n")
    if closed != "never":
        made.write([4])
    made.hang_up()
    out += made.read()

    assert seqs(out) == ([1, 2, 3] if closed == "never" else [1, 2, 3, 4])
    assert out[1] == line(2)
    assert made.worker.sequence.damaged == 1
    assert made.worker.sequence.lost == 0


def test_the_end_of_a_line_that_a_former_consumer_began_is_no_damage(rig):
    """At a new consumer the pipe may begin in the middle of a line."""
    made = rig(acknowledged=3, again=True)
    os.write(made.pipe, line(4)[20:] + b"\n")
    made.keep([3, 4])
    made.write([5])

    out = made.read()

    assert seqs(out) == [4, 5]
    assert made.worker.sequence.damaged == 0
    assert made.worker.sequence.lost == 0


def test_a_segment_that_is_gone_was_taken_before(rig):
    """A segment that a former consumer removed is neither lost nor an error."""
    made = rig()
    told = made.park([2, 3])
    os.unlink(told["segment"])
    made.write([1])
    made.worker.add_segment(told)
    made.write([4])

    out = made.read()

    assert seqs(out) == [1, 4]
    assert made.worker.sequence.lost == 0


def test_a_segment_is_not_followed_through_a_link(rig, tmp_path):
    """A symbolic link in place of a segment is not read."""
    made = rig()
    told = made.park([1])
    link = tmp_path / "link.spool"
    link.symlink_to(told["segment"])

    made.worker.add_segment({**told, "segment": str(link)})

    assert made.read() == []


def test_a_line_without_end_ends_its_source(rig, monkeypatch):
    """Memory is bounded: who sends an endless line is closed."""
    monkeypatch.setattr(intake, "MAX_LINE_BYTES", 10_000)
    made = rig()
    os.write(made.pipe, b"x" * 20_000)

    with pytest.raises(Ended, match="longer than 10000 bytes"):
        made.worker.read(1 << 20)


def test_a_line_written_while_its_flush_is_heard_is_not_given_up(rig):
    """A flush that is heard behind a read says nothing of what that read has missed."""
    scene = rig()
    scene.write([1])
    hear = scene.worker.hear

    def hear_late():
        scene.worker.hear = hear
        scene.write([2])  # behind the read, before the flush
        scene.control.send(orjson.dumps({"flush": 2}))
        hear()

    scene.worker.hear = hear_late

    found = scene.worker.read(1 << 20)[0] + scene.worker.read(1 << 20)[0]

    assert seqs(found) == [1, 2]
    assert scene.worker.sequence.lost == 0


def test_a_flush_behind_dropped_records_counts_them_as_lost(rig):
    """What was said to be flushed and is not in the pipe was dropped: nobody waits."""
    scene = rig()
    scene.write([1])
    scene.control.send(orjson.dumps({"flush": 3}))

    found = [*scene.worker.read(1 << 20)[0], *scene.worker.read(1 << 20)[0]]

    assert seqs(found) == [1]
    assert scene.worker.sequence.expected == 4
    assert scene.worker.sequence.lost == 2


def test_what_a_worker_said_it_had_logged_and_never_came_is_lost(rig):
    """Behind the last line that came, only its goodbye tells that there was more."""
    scene = rig()
    scene.write([1, 2])
    scene.control.send(orjson.dumps({"bye": 5, "dropped": 1}))
    scene.hang_up()

    found = scene.read()
    scene.worker.depart()

    assert seqs(found) == [1, 2]
    losses = scene.worker.losses()
    assert (losses["dropped"], losses["lost"]) == (1, 2)
    assert scene.worker.released(b"~") == 5, "its last promise is not kept for ever"


# ---- drops, told apart from losses, when consumers follow one another --------------


class Stage:
    """A worker's attachment, and consumers that the test lets follow one another."""

    def __init__(self, folder):
        path = os.path.join(folder, "socket")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen()
        self._folder = folder
        self.attachment = Attachment(path, [], elect=False)
        self.attachment.overflow = Overflow.DROP_NEW

    def log(self, size=10):
        self.attachment.send("info", b'"message":"%b"}' % (b"m" * size))

    def drop(self, count):
        """Fill the pipe with records, until so many more were dropped."""
        wanted = self.attachment.drops.count + count
        while self.attachment.drops.count < wanted:
            self.log(3000)  # small enough to go into the pipe whole or not at all

    def consumer(self):
        """The next consumer, behind the worker's hello."""
        connection, _ = self._listener.accept()
        packet, fds, *_ = socket.recv_fds(connection, 1 << 16, 8)
        hello = orjson.loads(packet)
        folders = address.spool_dirs(address.identifier_of(self.attachment.path))
        worker = Worker(connection, fds[0], hello, os.getpid(), folders)
        if len(fds) > 3:
            worker.add_kept(fds[3])
        for each in hello["segments"]:
            worker.add_segment(each)
        for seq in hello["torn"]:
            worker.sequence.torn.add(seq)
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
    first.tell({"ack": seen[-1]})
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
    second.hear()

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
        first.tell({"ack": seen[-1] + (acknowledged != "all")})
    first.close()
    stage.attachment.flush(0)
    second = stage.consumer()
    stage.log()
    read_all(second)

    losses = second.losses()
    second.close()

    assert (losses["dropped"], losses["lost"]) == (7, 0)
    assert second.settled_drops == settled


def test_a_torn_part_is_known_to_the_next_consumer_too(stage):
    """The part stands closed in the pipe, and who was told of it is dead."""
    stage.attachment.overflow = Overflow.SPOOL
    stage.log()
    first = stage.consumer()
    while not stage.attachment._torn:
        stage.log(20_001)
    os.read(first.pipe, 700_000)  # some room; it dies before it has written that
    while stage.attachment._torn:
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
    assert (damaged, torn) == (1, set())


def read_all(worker):
    """What a worker's ways have, until they are empty."""
    found = []
    while True:
        lines, drained = worker.read(1 << 20)
        found += lines
        if drained and not worker.pending:
            return found
