"""The spool: whole lines in private files, whatever the disk does."""

import errno
import fcntl
import os
import resource
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import descriptors, spool_files, wire_line

from logagg import spool, wire
from logagg.kept import Kept
from logagg.spool import Parking, Segment, orphans

START = 1_795_568_400 * 1_000_000_000


def line(seq, size=0):
    body = b'"message":"%b"' % (b"x" * size)
    return wire_line(START + seq, seq, body=body) + b"\n"


def seqs(path):
    data = Path(path).read_bytes()
    assert not data or data.endswith(b"\n")
    return [wire.seq_of(each) for each in data.split(b"\n")[:-1]]


def test_a_segment_is_private():
    """Only the user can read a segment or list its directory, whatever the umask."""
    before = os.umask(0)
    try:
        segment = Segment("an-id", "1-a", 1)
    finally:
        os.umask(before)
    segment.append(line(1), 1)

    assert stat.S_IMODE(os.stat(segment.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(segment.path)).st_mode) == 0o700
    segment.end()


def test_what_was_appended_is_with_the_kernel_at_once():
    """No buffer of ours is between an append and the file."""
    segment = Segment("an-id", "1-a", 5)

    segment.append(line(5), 5)
    assert seqs(segment.path) == [5]
    segment.append(line(6), 6)

    assert seqs(segment.path) == [5, 6]
    assert (segment.first, segment.last) == (5, 6)
    segment.end()


def test_a_write_that_fails_in_the_middle_leaves_nothing_of_its_line():
    """A disk that fills up within a line does not leave a torn one."""
    segment = Segment("an-id", "1-a", 1)
    segment.append(line(1), 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.size_bytes + 500, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            segment.append(line(2, size=5000), 2)
        segment.append(line(3), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert seqs(segment.path) == [1, 3]
    segment.end()


def test_an_empty_segment_is_removed_when_it_ends():
    """Nothing stays on disk for nothing."""
    segment = Segment("an-id", "1-a", 1)

    segment.end()
    segment.end()

    assert spool_files() == []


def test_a_segment_belongs_to_its_process_while_that_lives():
    """A held segment is no orphan; a let go one is."""
    parking = Parking("an-id", "1-a")
    parking.append(line(1), 1)
    assert orphans("an-id") == []

    parking.end()

    assert [seqs(path) for path in orphans("an-id")] == [[1]]


def test_orphans_are_plain_files_of_ours_only():
    """A link or a directory that looks like a segment is left alone."""
    parking = Parking("an-id", "1-a")
    parking.append(line(1), 1)
    parking.end()
    (path,) = orphans("an-id")
    folder = os.path.dirname(path)
    os.symlink(path, os.path.join(folder, "2-a.spool"))
    Path(folder, "notes.txt").touch()
    os.mkdir(os.path.join(folder, "3-a.spool"))
    os.mkfifo(os.path.join(folder, "4-a.spool"))

    assert orphans("an-id") == [path]


def test_a_file_system_without_locks_is_refused_and_nothing_stays(monkeypatch):
    """ENOLCK or ENOSYS: an error, no file, no descriptor; nobody's orphan either."""
    parking = Parking("an-id", "1-a")
    parking.append(line(1), 1)
    parking.end()
    assert len(orphans("an-id")) == 1
    before = spool_files(), descriptors()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for seq in range(2, 12):
        with pytest.raises(OSError, match="No locks"):
            parking.append(line(seq), seq)
        with pytest.raises(OSError, match="No locks"):
            parking.spill([line(seq)])

    assert (spool_files(), descriptors()) == before
    assert orphans("an-id") == []


def test_an_address_without_a_spool_has_no_orphans():
    """Asking makes no directory."""
    assert orphans("never-used") == []
    assert os.listdir(os.environ["XDG_STATE_HOME"]) == []


def test_the_cap_bounds_all_segments_of_a_process_together(monkeypatch):
    """Beyond the cap records are refused; acknowledged ones make room again."""
    monkeypatch.setattr(spool, "CAP_BYTES", 4 * len(line(1)))
    parking = Parking("an-id", "1-a")
    for seq in (1, 2):
        parking.append(line(seq), seq)
    parking.end()
    for seq in (3, 4):
        parking.append(line(seq), seq)

    with pytest.raises(OSError, match="cap of"):
        parking.append(line(5), 5)

    parking.acknowledge(2)
    parking.append(line(5), 5)
    parking.end()


def test_segments_are_announced_until_they_are_told_of():
    """The consumer hears of a segment as it begins and ends; a new one hears of all."""
    parking = Parking("an-id", "1-a")
    parking.append(line(3), 3)
    (begun,) = parking.announcements(again=False)
    assert (begun["first"], "last" in begun) == (3, False)
    parking.told(begun["segment"])
    assert parking.announcements(again=False) == []
    assert parking.announcements(again=True) == [begun]
    parking.end()
    parking.spill([line(1), line(2)])

    told = parking.announcements(again=False)
    assert [(each["first"], each["last"]) for each in told] == [(1, 2), (3, 3)]
    for each in told:
        assert seqs(each["segment"]) == list(range(each["first"], each["last"] + 1))
        parking.told(each["segment"])
    assert parking.announcements(again=False) == []
    assert parking.announcements(again=True) == told
    parking.acknowledge(2)
    assert parking.announcements(again=True) == told[1:]
    parking.acknowledge(3)


def test_a_forked_child_leaves_its_parents_segment_alone():
    """Letting go in the child neither removes nor unlocks the parent's file."""
    segment = Segment("an-id", "1-a", 1)
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


@given(
    st.lists(st.one_of(st.integers(1, 5), st.integers(-20, -1)), max_size=30),
)
def test_kept_records_are_those_that_are_not_acknowledged(script):
    """Generations go when their last record is safe, never before, in order.

    A positive number seals so many records; a negative one acknowledges some.
    """
    kept = Kept()
    seq = 0
    safe = 0
    for step in script:
        if step > 0:
            fresh = [line(seq + n) for n in range(1, step + 1)]
            seq += step
            kept.seal(fresh, sum(map(len, fresh)), seq)
        else:
            safe = max(safe, min(seq, safe - step))
            kept.acknowledge(safe)

    found = [wire.seq_of(each) for each in kept.lines()]
    assert found == list(range(found[0], seq + 1)) if found else safe == seq
    assert not found or found[0] <= safe + 1
    assert kept.size_bytes == sum(map(len, kept.lines()))
    file = kept.file()
    if file is None:
        assert not found
    else:
        with open(file, "rb") as opened:
            assert opened.read() == b"".join(kept.lines())
