"""The file sink: what is forced to the disk, and when."""

import asyncio
import errno
import os
import stat

import orjson
import pytest
from support import log_files

from logagg.errors import SinkUnavailable
from logagg.platform.system import LINUX
from logagg.sinks import FileSink
from logagg.testing import make_batch, make_line

SYNC = "fdatasync" if LINUX else "fsync"


@pytest.fixture
def synced(monkeypatch):
    """The inodes that were synced, in order; the syncs themselves are real."""
    found = []
    real = getattr(os, SYNC)

    def spy(fd):
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            found.append(status.st_ino)
        real(fd)

    monkeypatch.setattr(os, SYNC, spy)
    return found


def seqs(path):
    return [orjson.loads(line)["seq"] for line in path.read_bytes().splitlines()]


async def put(sink, *batches):
    await sink.open()
    for batch in batches:
        await sink.write(batch)
    await sink.close()


def test_always_syncs_before_each_write_counts(tmp_path, synced):
    """When write() returns the batch is on the disk."""
    path = tmp_path / "app.log"

    async def scenario():
        sink = FileSink(path, fsync="always")
        await sink.open()
        for number in range(3):
            await sink.write(make_batch(1, start=number))
            assert len(synced) == number + 1
        await sink.close()

    asyncio.run(scenario())

    assert set(synced) == {path.stat().st_ino}


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_critical_record_is_synced_before_its_write_counts(tmp_path, synced, form):
    """The default syncs others in the background, and critical ones at once."""

    async def scenario():
        sink = FileSink(tmp_path / "app.log", format=form)
        await sink.open()
        await sink.write(make_batch(1))
        assert synced == []
        await sink.write(make_batch([make_line(1, level="critical")]))
        assert len(synced) == 1
        await sink.close()

    asyncio.run(scenario())


def test_the_interval_bounds_what_a_power_cut_takes(tmp_path, synced):
    """A sync follows the interval after a write, even when nothing more is written."""

    async def scenario():
        sink = FileSink(tmp_path / "app.log", fsync_interval=0.05)
        await sink.open()
        for number in range(3):
            await sink.write(make_batch(10, start=number))
            await sink.write(make_batch(10, start=number))
            async with asyncio.timeout(10):
                while len(synced) <= number:  # counted in a thread
                    await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        assert len(synced) == 3
        await sink.write(make_batch(1))
        await sink.close()
        assert len(synced) == 4

    asyncio.run(scenario())


def test_rotated_files_are_synced_as_well(tmp_path, synced):
    """What is put away is not forgotten by the syncs."""
    batches = [make_batch(10, start=10 * i) for i in range(5)]

    asyncio.run(put(FileSink(tmp_path / "app.log", max_bytes=2500), *batches))

    assert set(synced) >= {path.stat().st_ino for path in log_files(tmp_path)}


def test_never_syncs_nothing(tmp_path, synced):
    """fsync=never leaves it to the kernel."""
    batch = make_batch([make_line(level="critical")])

    asyncio.run(put(FileSink(tmp_path / "app.log", fsync="never"), batch))

    assert synced == []


def test_a_batch_that_could_not_be_synced_is_taken_back(tmp_path, monkeypatch):
    """With `always` a disk that refuses leaves no duplicate when it is tried again."""
    path = tmp_path / "app.log"
    real, failures = getattr(os, SYNC), [OSError(errno.EIO, "Input/output error")]

    def failing(fd):
        if failures and stat.S_ISREG(os.fstat(fd).st_mode):
            raise failures.pop()
        real(fd)

    monkeypatch.setattr(os, SYNC, failing)

    async def scenario():
        sink = FileSink(path, fsync="always")
        await sink.open()
        batch = make_batch(5)
        with pytest.raises(SinkUnavailable, match="Input/output error"):
            await sink.write(batch)
        assert path.read_bytes() == b""
        await sink.write(batch)
        await sink.close()

    asyncio.run(scenario())

    assert seqs(path) == [*range(5)]
