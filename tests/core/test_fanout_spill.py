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

from logagg import address, wire
from logagg import spill as module
from logagg.abc import Batch
from logagg.spill import Spill

LIMIT = 1 << 30


def batch_of(number: int, size: int = 3, body: bytes = b'"message":"m"') -> Batch:
    """A batch that is told from every other by its stamp and its seqs."""
    lines = [
        support.wire_line(10**18 + number * 1000 + i, number * 1000 + i, body=body)
        for i in range(size)
    ]
    return Batch(lines, wire.closing(10**18 + number))


def drained(spill: Spill) -> list[tuple[list[bytes], bytes]]:
    """All batches of a spill, taken out."""
    found = []
    while spill.records:
        batch, size = spill.peek()
        found.append((batch.lines, batch.closing))
        spill.advance(len(batch), size)
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
        spill = Spill("", LIMIT)
        batches = [batch_of(n, size) for n, size in enumerate(sizes)]
        for batch in batches:
            assert spill.append(batch)

        assert spill.records == sum(sizes)
        assert drained(spill) == as_given(batches)
        assert (spill.records, spill.size_bytes) == (0, 0)
        spill.close()
    finally:
        module.SEGMENT_BYTES = before


def test_a_batch_longer_than_a_read_comes_back_whole() -> None:
    """A batch of some megabytes is one batch again: a sink goes on inside of it."""
    spill = Spill("", LIMIT)
    batches = [batch_of(n, 50, b'"message":"%b"' % (b"x" * 60_000)) for n in range(2)]
    for batch in batches:
        spill.append(batch)

    assert drained(spill) == as_given(batches)
    spill.close()


def test_a_successor_goes_on_where_it_was_left() -> None:
    """What was not done with when the owner went away is there, and only that."""
    spill = Spill("target", LIMIT)
    batches = [batch_of(n) for n in range(5)]
    for batch in batches:
        spill.append(batch)
    batch, size = spill.peek()
    spill.advance(len(batch), size)
    spill.close()

    successor = Spill("target", LIMIT)
    successor.recover()

    assert successor.recovered == 12
    assert drained(successor) == as_given(batches[1:])
    successor.close()
    assert not os.path.exists(successor.folder)


def test_a_line_that_was_torn_by_death_is_left_out() -> None:
    """A half-written end is cut off; what is whole before it comes back."""
    spill = Spill("target", LIMIT)
    spill.append(batch_of(1))
    (path,) = Path(spill.folder).iterdir()
    spill.close()
    with path.open("ab") as file:
        file.write(batch_of(2).data[:-20])

    successor = Spill("target", LIMIT)
    successor.recover()

    assert drained(successor)[0] == as_given([batch_of(1)])[0]
    successor.close()


def test_nobody_else_can_read_what_waits() -> None:
    """The directory is 0700 and the files are 0600, whatever the umask is."""
    before = os.umask(0)
    try:
        spill = Spill("target", LIMIT)
        spill.append(batch_of(1))
    finally:
        os.umask(before)

    (path,) = Path(spill.folder).iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(os.stat(spill.folder).st_mode) == 0o700
    batch, size = spill.peek()
    spill.advance(len(batch), size)
    spill.close()


def test_two_at_once_do_not_share() -> None:
    """A second consumer with the same sink has a place of its own."""
    first, second = Spill("target", LIMIT), Spill("target", LIMIT)
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
    spill = Spill("", one * 2 + 10)
    assert spill.append(batch_of(1))
    assert spill.append(batch_of(2))
    assert not spill.append(batch_of(3))

    batch, size = spill.peek()
    spill.advance(len(batch), size)

    assert spill.append(batch_of(4))
    assert drained(spill) == as_given([batch_of(2), batch_of(4)])
    spill.close()


def test_disk_room_is_given_back_while_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A segment that was read to its end is gone from the disk."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)
    spill = Spill("target", LIMIT)
    for n in range(50):
        spill.append(batch_of(n, 10))
    before = len(os.listdir(spill.folder))
    for _ in range(40):
        batch, size = spill.peek()
        spill.advance(len(batch), size)

    assert len(os.listdir(spill.folder)) < before / 3
    drained(spill)
    spill.close()


def test_a_disk_that_refuses_is_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be made, `append` says no."""
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/x")
    monkeypatch.setattr(address, "_LASTING", "/dev/null")
    runtime = Path(os.environ["XDG_RUNTIME_DIR"], "logagg")
    runtime.touch()

    assert not Spill("target", LIMIT).append(batch_of(1))
    assert not Spill("", LIMIT).append(batch_of(1))
    runtime.unlink()


def test_a_file_system_without_locks_is_no_exception_and_stays_clean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each attempt says no and leaves no descriptor and no more than one directory."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    spill = Spill("target", LIMIT)
    before = support.descriptors()
    for number in range(5):
        assert not spill.append(batch_of(number))

    assert support.descriptors() == before
    (parent,) = Path(os.environ["XDG_STATE_HOME"]).rglob("sinks")
    assert len(list(parent.iterdir())) <= 1
    spill.close()
