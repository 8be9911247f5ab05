"""The file sink when others move, delete, truncate or replace its files."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time

import orjson
import pytest
from support import log_files

from logagg.errors import SinkUnavailable
from logagg.sinks import FileSink
from logagg.testing import make_batch

LOGROTATE = shutil.which("logrotate") or shutil.which("logrotate", path="/usr/sbin")


def seqs(*paths):
    found = []
    for path in paths:
        data = path.read_bytes()
        assert b"\0" not in data
        assert not data or data.endswith(b"\n")
        found += [orjson.loads(line)["seq"] for line in data.splitlines()]
    return found


async def until(path_exists, sink, start, *, seconds=10):
    """Write a record at a time until the condition holds; returns the next number."""
    deadline = time.monotonic() + seconds
    while not path_exists():
        assert time.monotonic() < deadline
        await sink.write(make_batch(1, start=start))
        start += 1
        await asyncio.sleep(0.005)
    return start


def test_a_moved_file_is_followed_by_itself_within_a_second(tmp_path):
    """mv without any signal: the old file keeps what it got, a new one goes on."""
    path, old = tmp_path / "app.log", tmp_path / "old"

    async def scenario():
        sink = FileSink(path)
        await sink.open()
        await sink.write(make_batch(10))
        path.rename(old)
        began = time.monotonic()
        end = await until(path.exists, sink, 10)
        took = time.monotonic() - began
        await sink.close()
        return end, took

    end, took = asyncio.run(scenario())

    assert seqs(old, path) == list(range(end))
    assert took < 1.5


def test_a_name_is_left_to_who_has_just_moved_its_file(tmp_path):
    """logrotate makes the new file itself, and would move away one that it finds."""
    path, old = tmp_path / "app.log", tmp_path / "old"

    async def scenario():
        sink = FileSink(path)
        await sink.open()
        await sink.write(make_batch(10))
        await asyncio.sleep(1.01)  # past the interval of looking, so a look is due
        path.rename(old)
        await sink.write(make_batch(1, start=10))
        made = path.exists()
        path.touch()
        end = await until(lambda: path.stat().st_size, sink, 11)
        await sink.close()
        return made, end

    made, end = asyncio.run(scenario())

    assert not made
    assert seqs(old, path) == list(range(end))


def test_a_deleted_file_costs_nothing_that_came_after(tmp_path):
    """What was written between the deletion and noticing it is carried over."""
    path = tmp_path / "app.log"

    async def scenario():
        sink = FileSink(path)
        await sink.open()
        await sink.write(make_batch(10))
        await asyncio.sleep(1.01)  # past the interval of looking, so a look is due
        await sink.write(make_batch(1, start=10))
        path.unlink()
        end = await until(path.exists, sink, 11)
        await sink.close()
        return end

    end = asyncio.run(scenario())

    found = seqs(path)
    assert found == list(range(found[0], end))
    assert found[0] <= 11


def test_reopen_leaves_the_moved_file_at_once(tmp_path):
    """After reopen() not one more record goes to the old file."""
    path, old = tmp_path / "app.log", tmp_path / "old"

    async def scenario():
        sink = FileSink(path)
        await sink.open()
        await sink.write(make_batch(10))
        path.rename(old)
        await sink.write(make_batch(10, start=10))
        await sink.reopen()
        await sink.write(make_batch(10, start=20))
        await sink.close()

    asyncio.run(scenario())

    assert seqs(old) == list(range(20))
    assert seqs(path) == list(range(20, 30))


def test_a_truncated_file_goes_on_at_its_new_end(tmp_path):
    """Truncation from outside makes no hole of NULs, even when a write fails then."""
    path = tmp_path / "app.log"

    async def scenario():
        sink = FileSink(path)
        await sink.open()
        await sink.write(make_batch(100))
        os.truncate(path, 0)
        await sink.write(make_batch(10, start=100))
        await sink.close()

    asyncio.run(scenario())

    assert seqs(path) == list(range(100, 110))


NOTES = """
import asyncio, resource, sys
from logagg.sinks import FileSink
from logagg.testing import make_batch

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    sink = FileSink(sys.argv[1])
    await sink.open()
    for start in range(0, 1000, 50):
        await sink.write(make_batch(50, start=start))
        with open(sys.argv[1], "ab") as file:
            file.write(b"a note\\n")
    await sink.close()
asyncio.run(main())
"""


def test_what_others_append_survives_a_write_that_fails(tmp_path):
    """A part of a batch is undone; lines that another program added are not its part."""
    path = tmp_path / "app.log"

    subprocess.run([sys.executable, "-c", NOTES, path], check=True)

    files = log_files(tmp_path)
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    assert len(files) > 3
    assert lines.count(b"a note") == 20
    found = [orjson.loads(line)["seq"] for line in lines if line != b"a note"]
    assert sorted(found) == list(range(1000))


def test_a_directory_that_is_replaced_is_followed(tmp_path):
    """The whole directory may be moved away and made anew."""
    directory = tmp_path / "logs"
    path = directory / "app.log"

    async def scenario():
        sink = FileSink(path)
        await sink.open()
        await sink.write(make_batch(10))
        directory.rename(tmp_path / "away")
        end = await until(path.exists, sink, 10)
        await sink.close()
        return end

    end = asyncio.run(scenario())

    assert seqs(tmp_path / "away" / "app.log", path) == list(range(end))


def test_what_replaces_the_file_is_checked_as_well(tmp_path):
    """A link in the place of a moved file is refused, and writing goes on after it."""
    path, victim = tmp_path / "app.log", tmp_path / "victim"
    victim.write_bytes(b"precious\n")

    async def scenario():
        sink = FileSink(path)
        await sink.open()
        await sink.write(make_batch(10))
        path.unlink()
        path.symlink_to(victim)
        with pytest.raises(SinkUnavailable, match="symbolic link"):
            await sink.reopen()
        batch = make_batch(10, start=10)
        with pytest.raises(SinkUnavailable, match="symbolic link"):
            await sink.write(batch)
        path.unlink()
        await sink.write(batch)
        await sink.close()

    asyncio.run(scenario())

    assert victim.read_bytes() == b"precious\n"
    # What was written within a second of the deletion is carried over.
    assert seqs(path) == list(range(20))


MODES = {
    "create": "create 0600",
    "olddir": "create\n  olddir old\n  createolddir 0750 root root",
    "nocreate": "nocreate",
}


async def write_during(sink, command, times, pause):
    """Write at a high rate while the command runs so many times one after the other.

    SIGUSR1 makes the sink reopen, as it does in the service.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, asked.set)

    async def rotate():
        for _ in range(times):
            process = await asyncio.create_subprocess_exec(*command)
            assert await process.wait() == 0
            await asyncio.sleep(pause)

    await sink.open()
    task = asyncio.ensure_future(rotate())
    number = 0
    while not task.done():
        await sink.write(make_batch(500, start=number))
        number += 500
        if asked.is_set():
            asked.clear()
            await sink.reopen()
        await asyncio.sleep(0.008)
    await task
    await sink.close()
    loop.remove_signal_handler(signal.SIGUSR1)
    return number


@pytest.mark.slow
@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
@pytest.mark.parametrize("told", [True, False], ids=["signal", "no-signal"])
@pytest.mark.parametrize("mode", MODES)
def test_a_hundred_rotations_by_logrotate_lose_nothing(tmp_path, mode, told):
    """logrotate's create, olddir and nocreate, with a signal and without any."""
    path = tmp_path / "app.log"
    script = f"  postrotate\n    kill -USR1 {os.getpid()}\n  endscript\n"
    config = tmp_path / "rotate.conf"
    config.write_text(
        f"{path} {{\n  rotate 1000\n  missingok\n  {MODES[mode]}\n"
        f"{script if told else ''}}}\n"
    )
    config.chmod(0o600)
    command = [LOGROTATE, "-f", "-s", tmp_path / "state", config]

    # Without a signal the file is looked at once a second: let some of them pass.
    pause = 0.0 if told else 0.03

    total = asyncio.run(write_during(FileSink(path), command, 100, pause))

    files = [p for p in tmp_path.rglob("app.log*") if p.is_file()]
    assert sorted(seqs(*files)) == list(range(total))
    assert len(files) > 2


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
def test_copytruncate_loses_at_most_its_own_window(tmp_path):
    """No hole of NULs, no torn line, no duplicate: only what it cuts away is gone."""
    path = tmp_path / "app.log"
    config = tmp_path / "rotate.conf"
    config.write_text(f"{path} {{\n  rotate 1000\n  copytruncate\n}}\n")
    config.chmod(0o600)
    command = [LOGROTATE, "-f", "-s", tmp_path / "state", config]

    async def scenario():
        sink = FileSink(path, max_bytes=100_000_000)
        await sink.open()
        number = 0
        for _ in range(20):
            await sink.write(make_batch(500, start=number))
            number += 500
            await asyncio.to_thread(subprocess.run, command, check=True)
            await sink.write(make_batch(500, start=number))
            number += 500
        await sink.close()
        return number

    total = asyncio.run(scenario())

    files = list(tmp_path.glob("app.log*"))
    # Nothing was written while it copied, so here nothing is missing at all.
    assert sorted(seqs(*files)) == list(range(total))
