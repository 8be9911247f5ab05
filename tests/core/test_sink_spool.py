"""Where batches wait on disk: they come back as they went in, also to a successor."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest
import support
from hypothesis import given
from hypothesis import strategies as st

from logagg.abc import Batch
from logagg.core.line import received_suffix
from logagg.fanout import sink_spool as module
from logagg.fanout.sink_spool import SinkSpool
from logagg.ipc import paths

LIMIT = 1 << 30


def batch_of(number: int, size: int = 3, body: bytes = b'"message":"m"') -> Batch:
    """A batch that is told from every other by its stamp and its seqs."""
    lines = [
        support.wire_line(10**18 + number * 1000 + i, number * 1000 + i, body=body)
        for i in range(size)
    ]
    return Batch(lines, received_suffix(10**18 + number))


def advance(spool: SinkSpool) -> None:
    """Consume the first batch."""
    batch = spool.peek()
    assert batch is not None
    spool.advance(batch)


def drained(spool: SinkSpool) -> list[tuple[list[bytes], bytes]]:
    """All batches of a spool, taken out."""
    found = []
    while spool.records:
        batch = spool.peek()
        assert batch is not None
        found.append((batch.lines, batch.closing))
        spool.advance(batch)
    return found


def as_given(batches: list[Batch]) -> list[tuple[list[bytes], bytes]]:
    """Batches in the form of `drained`."""
    return [(batch.lines, batch.closing) for batch in batches]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(200, 5000))
def test_batches_come_back_as_they_went_in(sizes: list[int], segment: int) -> None:
    """Each with its lines and its stamp, in order, however segments are cut."""
    before = module.SEGMENT_BYTES
    module.SEGMENT_BYTES = segment
    try:
        spool = SinkSpool("", LIMIT)
        batches = [batch_of(n, size) for n, size in enumerate(sizes)]
        for batch in batches:
            assert spool.append(batch)

        assert spool.records == sum(sizes)
        assert drained(spool) == as_given(batches)
        assert (spool.records, spool.size_bytes) == (0, 0)
        spool.close()
    finally:
        module.SEGMENT_BYTES = before


def test_a_batch_longer_than_a_read_comes_back_whole() -> None:
    """A batch of some megabytes is one batch again: a sink goes on inside of it."""
    spool = SinkSpool("", LIMIT)
    batches = [batch_of(n, 50, b'"message":"%b"' % (b"x" * 60_000)) for n in range(2)]
    for batch in batches:
        spool.append(batch)

    assert drained(spool) == as_given(batches)
    spool.close()


def test_a_successor_goes_on_where_it_was_left() -> None:
    """What was not done with when the owner went away is there, and only that."""
    spool = SinkSpool("target", LIMIT)
    batches = [batch_of(n) for n in range(5)]
    for batch in batches:
        spool.append(batch)
    advance(spool)
    spool.close()

    successor = SinkSpool("target", LIMIT)
    successor.recover()
    folder = Path(successor.folder)

    assert successor.recovered == 12
    assert drained(successor) == as_given(batches[1:])
    successor.close()
    assert not folder.parent.exists()


def test_all_that_predecessors_left_is_taken_over_the_oldest_records_first() -> None:
    """However many there were, whichever place each had, and after an own beginning."""
    logs = [SinkSpool("target", LIMIT) for _ in range(3)]
    for log, number in zip(logs, (2, 3, 1), strict=True):
        log.append(batch_of(number))
    successor = SinkSpool("target", LIMIT)
    successor.append(batch_of(4))
    for log in logs:
        log.close()

    successor.recover()
    successor.append(batch_of(5))

    assert (successor.recovered, successor.records) == (9, 15)
    assert drained(successor) == as_given([batch_of(n) for n in (1, 2, 3, 4, 5)])
    folder = Path(successor.folder)
    successor.close()
    assert not folder.parent.exists()


def test_a_line_that_was_torn_by_death_is_left_out() -> None:
    """A half-written end is cut off; what is whole before it comes back."""
    spool = SinkSpool("target", LIMIT)
    spool.append(batch_of(1))
    (path,) = Path(spool.folder).glob("*.ndjson")
    spool.close()
    with path.open("ab") as file:
        file.write(batch_of(2).data[:-20])

    successor = SinkSpool("target", LIMIT)
    successor.recover()

    assert drained(successor)[0] == as_given([batch_of(1)])[0]
    successor.close()


def test_nobody_else_can_read_what_waits() -> None:
    """The directory is 0700 and the files are 0600, whatever the umask is."""
    before = os.umask(0)
    try:
        spool = SinkSpool("target", LIMIT)
        spool.append(batch_of(1))
    finally:
        os.umask(before)

    for path in Path(spool.folder).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (spool.folder, spool.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    advance(spool)
    spool.close()


def test_two_at_once_do_not_share() -> None:
    """A second consumer with the same sink has a place of its own."""
    first, second = SinkSpool("target", LIMIT), SinkSpool("target", LIMIT)
    first.append(batch_of(1))
    second.recover()
    second.append(batch_of(2))

    assert first.folder != second.folder
    assert drained(first) == as_given([batch_of(1)])
    assert drained(second) == as_given([batch_of(2)])
    first.close()
    second.close()


def test_the_limit_is_kept_and_room_is_given_back() -> None:
    """Above the limit a batch is refused whole; what was done with makes room."""
    one = len(batch_of(1).data)
    spool = SinkSpool("", one * 2 + 10)
    assert spool.append(batch_of(1))
    assert spool.append(batch_of(2))
    assert not spool.append(batch_of(3))

    advance(spool)

    assert spool.append(batch_of(4))
    assert drained(spool) == as_given([batch_of(2), batch_of(4)])
    spool.close()


def test_disk_room_is_given_back_while_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A segment that was read to its end is gone from the disk."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)
    spool = SinkSpool("target", LIMIT)
    for n in range(50):
        spool.append(batch_of(n, 10))
    before = len(os.listdir(spool.folder))
    for _ in range(40):
        advance(spool)
    assert len(os.listdir(spool.folder)) < before / 3
    drained(spool)
    spool.close()


def test_a_disk_that_refuses_is_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be made, `append` says no."""
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/x")
    monkeypatch.setattr(paths, "_LASTING", "/dev/null")
    runtime = Path(os.environ["XDG_RUNTIME_DIR"], "logagg")
    runtime.touch()

    assert not SinkSpool("target", LIMIT).append(batch_of(1))
    assert not SinkSpool("", LIMIT).append(batch_of(1))
    runtime.unlink()


def test_what_one_disk_refuses_waits_on_the_next_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also for a successor; the first place is used again when its disk works."""
    monkeypatch.setattr(paths, "_LASTING", str(tmp_path))
    first = os.environ["XDG_STATE_HOME"]
    broken: list[str] = []
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, at: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(tuple(broken)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    spool = SinkSpool("target", LIMIT)
    batches = [batch_of(n) for n in range(8)]
    assert all(map(spool.append, batches[:2]))
    broken.append(first)
    assert all(map(spool.append, batches[2:4]))
    broken.append(str(tmp_path))
    assert all(map(spool.append, batches[4:6]))
    broken.append(os.environ["XDG_RUNTIME_DIR"])
    descriptors = support.descriptors()
    assert not any(spool.append(batch_of(99)) for _ in range(5))
    assert support.descriptors() == descriptors
    broken.clear()
    spool.close()

    successor = SinkSpool("target", LIMIT)
    successor.recover()
    assert all(map(successor.append, batches[6:]))
    assert drained(successor) == as_given(batches)
    successor.close()
    assert not list(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*.ndjson"))


def test_a_file_system_without_locks_is_no_exception_and_stays_clean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each attempt says no and leaves no descriptor and no more than one directory."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    spool = SinkSpool("target", LIMIT)
    before = support.descriptors()
    for number in range(5):
        assert not spool.append(batch_of(number))

    assert support.descriptors() == before
    (parent,) = Path(os.environ["XDG_STATE_HOME"]).rglob("sinks")
    assert len(list(parent.iterdir())) <= 1
    spool.close()
