"""The spool: whole lines in private files, whatever the disk does."""

import errno
import fcntl
import os
import resource
import stat
from pathlib import Path

import orjson
import pytest
from support import descriptors, spool_files, wire_line

from logagg.client import spool_writer
from logagg.client.resend_buffer import ResendBuffer
from logagg.client.spool_writer import SpoolSegment, SpoolWriter, orphans
from logagg.consumer.orphan_source import OrphanSource
from logagg.core.line import seq_of
from logagg.ipc.paths import spool_dir

START = 1_795_568_400 * 1_000_000_000


def line(seq, size=0):
    body = b'"message":"%b"' % (b"x" * size)
    return wire_line(START + seq, seq, body=body) + b"\n"


def seqs(*paths):
    data = b"".join(Path(path).read_bytes() for path in paths)
    assert not data or data.endswith(b"\n")
    return [seq_of(each) for each in data.split(b"\n")[:-1]]


def test_a_segment_is_private():
    """Only the user can read a segment or list its directory, whatever the umask."""
    before = os.umask(0)
    try:
        segment = SpoolSegment(spool_dir("an-id"), "1-a", 1)
    finally:
        os.umask(before)
    segment.append(line(1), 1)

    assert stat.S_IMODE(os.stat(segment.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(segment.path)).st_mode) == 0o700
    segment.end()


def test_what_was_appended_is_with_the_kernel_at_once():
    """No buffer of ours is between an append and the file."""
    segment = SpoolSegment(spool_dir("an-id"), "1-a", 5)

    segment.append(line(5), 5)
    assert seqs(segment.path) == [5]
    segment.append(line(6), 6)

    assert seqs(segment.path) == [5, 6]
    assert (segment.first, segment.last) == (5, 6)
    segment.end()


def test_a_write_that_fails_in_the_middle_leaves_nothing_of_its_line():
    """A disk that fills up within a line leaves no torn one, and another segment."""
    spool = SpoolWriter("an-id", "1-a")
    spool.append(line(1), 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line(1)) + 500, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            spool.append(line(2, size=5000), 2)
        spool.append(line(3), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert [seqs(path) for path in spool_files()] == [[1], [3]]
    spool.end()
    for path in spool_files():
        os.unlink(path)


@pytest.mark.parametrize("part", [0, 10, None])
def test_an_append_that_did_not_return_is_whole_or_undone(part):
    """An exception came after the write of nothing, a part, or all of a line."""
    spool = SpoolWriter("an-id", "1-a")
    spool.append(line(1), 1)
    write = os.write

    def interrupted(descriptor, data):
        write(descriptor, data[:part])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spool.append(line(2), 2)
    spool.repair()

    assert spool.newest == (2 if part is None else 1)
    assert seqs(*spool_files()) == list(range(1, spool.newest + 1))
    assert spool.is_open == (part != 10), "a reader may have that part already"
    spool.end()
    os.unlink(*spool_files())


def test_an_empty_segment_is_removed_when_it_ends():
    """Nothing stays on disk for nothing."""
    segment = SpoolSegment(spool_dir("an-id"), "1-a", 1)

    segment.end()
    segment.end()

    assert spool_files() == []


def test_a_segment_belongs_to_its_process_while_that_lives():
    """By a lock on one of its segments; whether a process has its pid does not matter."""
    spool = SpoolWriter("an-id", "1-a")
    for seq in (1, 2, 3):
        spool.append(line(seq), seq)
        assert orphans("an-id") == []
        spool.end()
        assert orphans("an-id") == []

    spool.abandon()

    assert [seqs(path) for path in orphans("an-id")] == [[1], [2], [3]]
    found = OrphanSource.find({"an-id"}, set())
    assert found is not None
    found.close()
    assert OrphanSource.find({"an-id"}, {"1-a"}) is None


def test_orphans_are_plain_files_of_ours_only():
    """A link or a directory that looks like a segment is left alone."""
    spool = SpoolWriter("an-id", "1-a")
    spool.append(line(1), 1)
    spool.end()
    spool.abandon()
    (path,) = orphans("an-id")
    folder = os.path.dirname(path)
    os.symlink(path, os.path.join(folder, "2-a.spool"))
    Path(folder, "notes.txt").touch()
    os.mkdir(os.path.join(folder, "3-a.spool"))
    os.mkfifo(os.path.join(folder, "4-a.spool"))

    assert orphans("an-id") == [path]


def test_a_file_system_without_locks_is_refused_and_nothing_stays(monkeypatch):
    """ENOLCK or ENOSYS: an error, no file, no descriptor; nobody's orphan either."""
    spool = SpoolWriter("an-id", "1-a")
    spool.append(line(1), 1)
    spool.end()
    spool.abandon()
    spool = SpoolWriter("an-id", "1-a")
    assert len(orphans("an-id")) == 1
    before = spool_files(), descriptors()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for seq in range(2, 12):
        with pytest.raises(OSError, match="No locks"):
            spool.append(line(seq), seq)
        with pytest.raises(OSError, match="No locks"):
            spool.add([line(seq)])

    assert (spool_files(), descriptors()) == before
    assert orphans("an-id") == []


def test_an_address_without_a_spool_has_no_orphans():
    """Asking makes no directory."""
    assert orphans("never-used") == []
    assert os.listdir(os.environ["XDG_STATE_HOME"]) == []


def test_the_cap_bounds_all_segments_of_a_process_together(monkeypatch):
    """Beyond the cap records are refused; acknowledged ones make room again."""
    monkeypatch.setattr(spool_writer, "CAP_BYTES", 4 * len(line(1)))
    spool = SpoolWriter("an-id", "1-a")
    for seq in (1, 2):
        spool.append(line(seq), seq)
    spool.end()
    for seq in (3, 4):
        spool.append(line(seq), seq)

    with pytest.raises(OSError, match="cap of"):
        spool.append(line(5), 5)

    spool.acknowledge(2)
    spool.append(line(5), 5)
    spool.end()


def test_segments_are_announced_until_they_are_told_of():
    """The consumer hears of a segment as it begins and ends; a new one hears of all."""
    spool = SpoolWriter("an-id", "1-a")
    spool.append(line(3), 3)
    sent = []

    def announced():
        assert spool.announce(lambda packet: not sent.append(packet))
        found = [each["segment"] for each in map(orjson.loads, sent)]
        sent.clear()
        return found

    (begun,) = spool.announcements()
    assert (begun.first, begun.last) == (3, None)
    assert not spool.announce(lambda _: False), "the consumer is gone"
    assert announced() == [begun.path]
    assert announced() == []
    spool.end()
    spool.add([line(1), line(2)])

    told = spool.announcements()
    assert [(each.first, each.last) for each in told] == [(1, 2), (3, 3)]
    for each in told:
        assert seqs(each.path) == list(range(each.first, each.last + 1))
    assert announced() == [each.path for each in told]
    spool.mark_announced(told)
    assert announced() == []
    spool.acknowledge(2)
    (rest,) = spool.announcements()
    assert rest.path == told[1].path
    spool.acknowledge(3)


def test_what_is_kept_around_a_segment_makes_segments_of_its_own(monkeypatch):
    """They are read one after the other: none may hold what belongs between others.

    Also where the disk was full in the middle: what it took is not spooled again.
    """
    writer = SpoolWriter("an-id", "1-a")
    for seq in (3, 4):
        writer.append(line(seq), seq)
    writer.end()
    writer.append(line(7), 7)
    kept = ResendBuffer()
    for seq in (1, 2, 5, 6):
        kept.open_lines.append(line(seq))
    with monkeypatch.context() as full:
        real = os.write
        full.setattr(
            os, "write",
            lambda fd, data: real(fd, data) if seq_of(data) < 5 else real(-1, data),
        )  # fmt: skip
        assert not writer.take(kept)

    assert writer.take(kept)

    assert not kept
    found = [seqs(path) for path in sorted(spool_files())]
    assert found == [[1, 2], [3, 4], [5, 6], [7]]
    assert [each.first for each in writer._segments] == [1, 3, 5]


def test_the_first_line_of_a_segment_has_its_lowest_stamp():
    """Where stamps go back, the rest is another segment: recovery starts at the first."""
    writer = SpoolWriter("an-id", "1-a")
    kept = ResendBuffer()
    stamps = {1: START + 9, 2: START + 10, 3: START + 1, 4: START + 2, 5: START}
    for seq, stamp in stamps.items():
        kept.open_lines.append(wire_line(stamp, seq) + b"\n")

    assert writer.take(kept)

    assert [seqs(path) for path in sorted(spool_files())] == [[1, 2], [3, 4], [5]]


def test_a_forked_child_leaves_its_parents_segment_alone():
    """Letting go in the child neither removes nor unlocks the parent's file."""
    segment = SpoolSegment(spool_dir("an-id"), "1-a", 1)
    segment.append(line(1), 1)
    pid = os.fork()
    if pid == 0:
        try:
            segment.abandon()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0

    assert orphans("an-id") == []
    with open(segment.path, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    segment.append(line(2), 2)
    assert seqs(segment.path) == [1, 2]
    segment.end()
