"""The file sink renames, compresses and removes its own files, and nothing else."""

import asyncio
import errno
import fcntl
import gzip
import os
import struct
import subprocess
import sys
import time
import zlib

import orjson
import pytest
from support import log_files, wait_until

from logagg.core.line import KEY_END, record_id
from logagg.errors import SinkUnavailable
from logagg.sinks import FileSink
from logagg.testing import FakeClock, make_batch, make_line
from logagg_sinks.file import appender, log_file
from logagg_sinks.file.pieces import own_files
from logagg_sinks.file.pieces.journal import Claim, Journal

NOON = 1_795_608_000.0  # 2026-11-25T12:00:00Z
HOUR = 3600
DAY = 24 * HOUR


def seqs(path):
    """The numbers of a file's records."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return [orjson.loads(line)["seq"] for line in data.splitlines()]


def contents(directory):
    """The numbers in each file of a directory, by name."""
    return {path.name: seqs(path) for path in log_files(directory) if path.is_file()}


def put(sink, *numbers, worker="1"):
    """Write records, each in a batch of its own; return the sink."""

    async def scenario():
        await sink.open()
        for number in numbers:
            await sink.write(make_batch([make_line(number, worker=worker)]))
        await sink.close()

    asyncio.run(scenario())
    return sink


def known(path, since, **options):
    """What a new sink for a path knows to be written since a line."""

    async def scenario():
        sink = FileSink(path, **options)
        await sink.open()
        found = await sink.written_since(since[:KEY_END])
        await sink.close()
        return found

    return asyncio.run(scenario())


def test_files_of_users_keep_their_names_and_contents(tmp_path):
    """Numbers and dates after the name, links and directories: all of them stay."""
    path = tmp_path / "app.log"
    foreign = ["app.log.1", "app.log.2024", "app.log.20251231", "app.log.3.gz"]
    for name in foreign:
        (tmp_path / name).write_text(f"{name} is mine")
    (tmp_path / "app.log.5").mkdir()
    (tmp_path / "app.log.4").symlink_to("app.log.2024")
    options = {"max_bytes": 1, "backups": 2, "max_age": 1000.0, "compress": "gzip"}
    for name in foreign:
        os.utime(tmp_path / name, (1, 1))

    for _ in range(3):
        put(FileSink(path, **options), *range(5))

    for name in foreign:
        assert (tmp_path / name).read_text() == f"{name} is mine"
    assert (tmp_path / "app.log.4").is_symlink()
    own = {p.name for p in log_files(tmp_path)} - {*foreign, "app.log.4", "app.log.5"}
    assert own == {"app.log", "app.log.2.gz", "app.log.6.gz"}
    assert seqs(path) == [4]


def test_what_was_changed_or_copied_is_the_users(tmp_path):
    """A rotated file that a user changed, and a copy under a fitting name, stay."""
    path = tmp_path / "app.log"
    put(FileSink(path, max_bytes=1), 0, 1, 2)
    changed = tmp_path / "app.log.2"
    changed.write_bytes(changed.read_bytes() + b"a note\n")
    copy = tmp_path / "app.log.7"
    copy.write_bytes((tmp_path / "app.log.1").read_bytes())

    put(FileSink(path, max_bytes=1, backups=1), 3, 4, 5)

    assert changed.read_bytes().endswith(b"a note\n")
    assert seqs(copy) == [1]
    names = {path.name for path in log_files(tmp_path)}
    assert names == {"app.log", "app.log.1", "app.log.2", "app.log.7"}


def test_a_refused_rotation_goes_on_in_the_same_file_with_an_alarm(tmp_path):
    """Without a journal that can be trusted nothing is renamed and nothing is lost."""
    path = tmp_path / "app.log"
    journal = tmp_path / ".app.log.journal"
    journal.touch()
    journal.chmod(0o666)
    (tmp_path / "app.log.9").write_text("")

    sink = put(FileSink(path, max_bytes=1, backups=1), *range(20))

    assert seqs(path) == [*range(20)]
    assert "cannot be rotated" in sink.warning or "cannot be managed" in sink.warning
    journal.unlink()
    sink = put(FileSink(path, max_bytes=1), 20)
    assert sink.warning == ""
    assert contents(tmp_path)["app.log.1"] == [*range(20)]


def test_the_date_in_a_name_never_goes_back(tmp_path):
    """A clock set back, and another starter in an earlier zone, go on with the day."""
    path = tmp_path / "app-{date}.log"
    clock = FakeClock(NOON)
    options = {"utc": True, "compress": "gzip", "backups": 30, "clock": clock}
    sink = FileSink(path, **options)

    async def scenario():
        await sink.open()
        for number, step in enumerate((0, DAY, -DAY, -DAY, 2 * DAY)):
            clock.advance(step)
            await sink.write(make_batch(1, start=number))
        await sink.close()

    asyncio.run(scenario())
    clock.now = NOON - 5 * DAY
    put(FileSink(path, **options), 5)

    assert contents(tmp_path) == {
        "app-2026-11-25.log.gz": [0],
        "app-2026-11-26.log": [1, 2, 3, 4, 5],
    }


def test_the_date_of_rotated_files_counts_when_the_days_file_is_gone(tmp_path):
    """An operator moves today's file away; a clock set back does not begin before it."""
    clock = FakeClock(NOON + DAY)
    options = {"utc": True, "max_bytes": 1, "clock": clock}
    put(FileSink(tmp_path / "app-{date}.log", **options), 0, 1)
    (tmp_path / "app-2026-11-26.log").rename(tmp_path / "moved")

    clock.advance(-DAY)
    put(FileSink(tmp_path / "app-{date}.log", **options), 2)

    assert contents(tmp_path) == {
        "app-2026-11-26.log": [2],
        "app-2026-11-26.log.1": [0],
        "moved": [1],
    }


def test_the_period_in_a_name_never_goes_back(tmp_path):
    """Else the limits would take the newest records for the oldest ones."""
    path = tmp_path / "app.log"
    clock = FakeClock(NOON)
    options = {"when": "h", "utc": True, "max_bytes": 1, "backups": 3, "clock": clock}
    put(FileSink(path, **options), 0, 1)

    clock.advance(-5 * HOUR)
    path.unlink()
    put(FileSink(path, **options), 2, 3, 4, 5)

    assert contents(tmp_path) == {
        "app.log": [5],
        "app.log.2026-11-25_12.1": [2],
        "app.log.2026-11-25_12.2": [3],
        "app.log.2026-11-25_12.3": [4],
    }


def test_a_number_that_a_user_took_as_well_keeps_nothing_back(tmp_path):
    """The sink's file beside it moves on, so the numbers stay in the order of time."""
    path = tmp_path / "app.log"
    put(FileSink(path, max_bytes=1, compress="gzip"), 0, 1)
    for name in ("app.log.1", "app.log.2"):
        (tmp_path / name).write_text("")

    put(FileSink(path, max_bytes=1, compress="gzip"), 2, 3)

    assert contents(tmp_path) == {
        "app.log": [3],
        "app.log.1": [],
        "app.log.2": [],
        "app.log.3.gz": [2],
        "app.log.4.gz": [1],
        "app.log.5.gz": [0],
    }


def test_a_day_that_is_compressed_already_is_not_lost(tmp_path):
    """A file of a day whose compressed file is of another starter stays beside it."""
    clock = FakeClock(NOON)
    packed = tmp_path / "app-2026-11-25.log.gz"
    packed.write_bytes(gzip.compress(make_batch(1, start=7).data))
    options = {"utc": True, "compress": "gzip", "clock": clock}

    put(FileSink(tmp_path / "app-{date}.log", **options), 1)
    clock.advance(DAY)
    sink = put(FileSink(tmp_path / "app-{date}.log", **options), 2)

    assert contents(tmp_path) == {
        "app-2026-11-25.log": [1],
        "app-2026-11-25.log.gz": [7],
        "app-2026-11-26.log": [2],
    }
    assert "in the way" in sink.warning


def test_files_that_look_alike_are_not_taken_for_copies_of_each_other(tmp_path):
    """Same beginning, same length, and the inode of a file that was compressed before."""
    path = tmp_path / "app.log"
    options = {"format": "text", "template": "{message}", "max_bytes": 301}
    options |= {"compress": "gzip"}
    lines = []
    for number in range(12):
        text = "x" * 296 + f"{number:04}"
        lines.append(text)
        sink = FileSink(path, **options)

        async def scenario(sink=sink, number=number, text=text):
            await sink.open()
            await sink.write(make_batch([make_line(number, message=text)]))
            await sink.close()

        asyncio.run(scenario())

    found = [
        gzip.decompress(each.read_bytes())
        if each.suffix == ".gz"
        else each.read_bytes()
        for each in log_files(tmp_path)
    ]
    assert sorted(b"".join(found).decode().split()) == sorted(lines)


def test_names_that_are_no_longer_written_are_looked_after(tmp_path):
    """A worker that is gone, a day that has passed: limits and compression reach them."""
    clock = FakeClock(NOON)
    options = {"utc": True, "clock": clock, "max_age": 3.5 * DAY}
    path = tmp_path / "{worker}-{date}.log"

    for day in range(3):
        put(FileSink(path, **options), day, worker="old")
        for each in tmp_path.glob(f"*{25 + day}.log"):
            os.utime(each, (clock.now, clock.now))
        clock.advance(DAY)
    (tmp_path / "old-2026-11-20.log").write_bytes(b"")
    os.utime(tmp_path / "old-2026-11-20.log", (1, 1))
    clock.advance(DAY)
    put(FileSink(path, compress="gzip", **options), 9, worker="new")

    assert contents(tmp_path) == {
        "new-2026-11-29.log": [9],
        "old-2026-11-20.log": [],
        "old-2026-11-26.log.gz": [1],
        "old-2026-11-27.log": [2],
    }


def test_a_file_that_was_there_under_a_records_name_is_only_appended_to(tmp_path):
    """A user's file whose name a worker happens to have is never removed."""
    (tmp_path / "notes.log").write_text("mine\n")
    options = {"max_bytes": 1, "backups": 1, "compress": "gzip", "max_age": 0.001}

    for _ in range(2):
        put(FileSink(tmp_path / "{worker}.log", **options), *range(4), worker="notes")

    kept = [p for p in log_files(tmp_path) if p.read_bytes().startswith(b"mine\n")]
    assert len(kept) == 1


def test_what_another_process_still_compresses_is_left_to_it(tmp_path):
    """Locked by a predecessor, a file is not compressed, and no temporary file goes."""
    path = tmp_path / "app.log"
    put(FileSink(path, max_bytes=1), 0, 1, 2)
    name = orjson.loads((tmp_path / ".app.log.journal").read_bytes().split(b"\n")[0])
    held = tmp_path / f".app.log.{name['id']}-00.part"
    left = tmp_path / f".app.log.{name['id']}-01.part"
    left.touch()
    with held.open("wb") as part, (tmp_path / "app.log.1").open("rb") as piece:
        fcntl.flock(part, fcntl.LOCK_EX)
        fcntl.flock(piece, fcntl.LOCK_EX)

        put(FileSink(path, compress="gzip", backups=1))

        assert held.exists()
        assert not left.exists()
        assert set(contents(tmp_path)) == {"app.log", "app.log.1"}
    put(FileSink(path, compress="gzip"))

    assert not held.exists()
    assert contents(tmp_path) == {"app.log": [2], "app.log.1.gz": [1]}


HELD = """
import asyncio, sys
from logagg.sinks import FileSink
from logagg.testing import make_batch

async def main():
    sink = FileSink(sys.argv[1], max_bytes=2000, compress="gzip")
    await sink.open()
    await sink.write(make_batch(60))
    print("written", flush=True)
    closing = asyncio.create_task(sink.close())
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("step", ["file_compressed", "file_linked"])
def test_killed_while_its_successor_compresses_it_loses_nothing(tmp_path, step):
    """Both compress one log; the predecessor is held in the middle, then killed."""
    path = tmp_path / "app.log"

    def succeeds():
        try:
            return put(FileSink(path, max_bytes=2000, compress="gzip"), 60)
        except SinkUnavailable:
            return None  # the predecessor has not closed the file yet

    environ = {**os.environ, "LOGAGG_FAILPOINT": f"{step}:sleep=600"}
    command = [sys.executable, "-c", HELD, path]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as before:
        before.stdout.readline()
        wait_until(lambda: [*tmp_path.glob("*.gz"), *tmp_path.glob(".*.part")])
        wait_until(succeeds)
        held = [name for name in contents(tmp_path) if not name.endswith(".gz")]
        before.kill()
    assert len(held) == 2

    put(FileSink(path, max_bytes=2000, compress="gzip"), 61)

    found = [seq for each in contents(tmp_path).values() for seq in each]
    assert sorted(found) == list(range(62))
    assert [n for n in contents(tmp_path) if not n.endswith(".gz")] == ["app.log"]
    hidden = {p.name for p in tmp_path.iterdir() if p.name.startswith(".")}
    assert hidden == {".app.log.journal"}


KILLED = """
import asyncio, sys
from logagg.sinks import FileSink
from logagg.testing import make_batch

async def main():
    sink = FileSink(sys.argv[1], max_bytes=2000, compress="gzip", backups=50)
    await sink.open()
    for start in range(0, 300, 5):
        await sink.write(make_batch(5, start=start))
        print(start + 5, flush=True)
        await asyncio.sleep(0.002)
    await sink.close()
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        "file_claimed",
        "file_rename",
        "file_two_names",
        "file_aside",
        "file_renamed",
        "file_opened",
        "file_compressed",
        "file_linked",
    ],
)
def test_killed_at_any_step_it_loses_nothing_and_finishes_later(tmp_path, step):
    """kill -9 at each step of rotation and compression, several times in a row."""
    path = tmp_path / "app.log"
    written = 0
    for hit in (1, 2, 4, 7):
        for old in tmp_path.iterdir():
            old.unlink()
        environ = {**os.environ, "LOGAGG_FAILPOINT": f"{step}:kill@{hit}"}
        command = [sys.executable, "-c", KILLED, path]
        done = subprocess.run(
            command, env=environ, capture_output=True, check=False, timeout=120
        )
        assert done.returncode == -9, done.stderr.decode()
        written = int((b"0\n" + done.stdout).split()[-1])

        put(FileSink(path, max_bytes=2000, compress="gzip", backups=50), 1000)

        found = [seq for each in contents(tmp_path).values() for seq in each]
        assert len(found) == len(set(found))
        assert set(range(written)) <= set(found)
        hidden = {p.name for p in tmp_path.iterdir() if p.name.startswith(".")}
        assert hidden == {".app.log.journal"}
        plain = [n for n in contents(tmp_path) if not n.endswith(".gz")]
        assert plain == ["app.log"]


@pytest.mark.slow
def test_a_day_that_the_journal_refuses_begins_later(tmp_path, monkeypatch):
    """The files of the day before are written on; else the date could go back."""
    monkeypatch.setattr(log_file, "RETRY_INTERVAL", 0.0)
    path, clock = tmp_path / "app-{date}.log", FakeClock(NOON)

    async def scenario():
        sink = FileSink(path, clock=clock, utc=True)
        await sink.open()
        await sink.write(make_batch([make_line(1)]))
        (journal,) = tmp_path.glob(".*.journal")
        with journal.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            clock.advance(DAY)
            for number in (2, 3):
                await sink.write(make_batch([make_line(number)]))
            assert "goes on in the files of 2026-11-25" in sink.warning
        await sink.write(make_batch([make_line(4)]))
        assert sink.warning == ""
        await sink.close()

    asyncio.run(scenario())

    assert contents(tmp_path) == {
        "app-2026-11-25.log": [1, 2, 3],
        "app-2026-11-26.log": [4],
    }


def test_a_file_that_the_journal_refuses_is_noted_later(tmp_path, monkeypatch):
    """Else the sink would not know it as its own."""
    monkeypatch.setattr(appender, "CHECK_INTERVAL", 0.0)
    monkeypatch.setattr(log_file, "RETRY_INTERVAL", 0.0)
    path, note = tmp_path / "app.log", own_files.OwnFiles.note
    faults = [errno.EIO, errno.ENOSPC]

    def refused(*args, **keys):
        if faults:
            raise OSError(faults[0], os.strerror(faults.pop()))
        note(*args, **keys)

    monkeypatch.setattr(own_files.OwnFiles, "note", refused)

    async def scenario():
        sink = FileSink(path, max_bytes=10_000)
        await sink.open()
        await sink.write(make_batch([make_line(1)]))
        assert "cannot be managed" in sink.warning
        await sink.write(make_batch([make_line(2)]))
        assert sink.warning == ""
        await sink.close()

    asyncio.run(scenario())

    (journal,) = tmp_path.glob(".*.journal")
    assert f'"inode":{path.stat().st_ino}' in journal.read_text()


def test_a_date_is_noted_before_its_file(tmp_path, monkeypatch):
    """So it cannot go back although the note of the file itself is refused."""

    def refused(*args, **keys):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path, clock = tmp_path / "{worker}-{date}.log", FakeClock(NOON)
    put(FileSink(path, clock=clock, utc=True), 1)
    clock.advance(DAY)
    with monkeypatch.context() as patch:
        patch.setattr(own_files.OwnFiles, "note", refused)
        put(FileSink(path, clock=clock, utc=True), 2)
    clock.advance(-DAY)
    put(FileSink(path, clock=clock, utc=True), 3)

    assert contents(tmp_path) == {"1-2026-11-25.log": [1], "1-2026-11-26.log": [2, 3]}


def test_a_date_without_a_file_does_not_count(tmp_path):
    """A clock was far ahead for a moment; the operator removed the file of that day."""
    path, clock = tmp_path / "app-{date}.log", FakeClock(NOON + 1000 * DAY)
    put(FileSink(path, clock=clock, utc=True), 1)
    (tmp_path / "app-2029-08-21.log").unlink()
    clock.now = NOON
    put(FileSink(path, clock=clock, utc=True), 2)

    assert contents(tmp_path) == {"app-2026-11-25.log": [2]}


def test_a_piece_whose_compression_is_refused_stays_unlocked(tmp_path, monkeypatch):
    """Else a successor could not write on in it while this process lives."""
    path, clock = tmp_path / "app-{date}.log", FakeClock(NOON)
    put(FileSink(path, clock=clock, utc=True), 1)
    clock.advance(DAY)
    before = set(os.listdir("/proc/self/fd"))
    note = own_files.OwnFiles.note
    with monkeypatch.context() as patch:

        def refused(*args, is_open, kept):
            if not is_open:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            note(*args, is_open=is_open, kept=kept)

        patch.setattr(own_files.OwnFiles, "note", refused)
        sink = FileSink(path, clock=clock, utc=True, compress="gzip")
        put(sink, 2)
        assert "cannot tidy" in sink.warning

    with (tmp_path / "app-2026-11-25.log").open("rb") as piece:
        fcntl.flock(piece, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert set(os.listdir("/proc/self/fd")) <= before


LINKED = """
import asyncio, sys, time
from logagg.sinks import FileSink
from logagg.testing import FakeClock, make_batch, make_line

async def main():
    clock = FakeClock(float(sys.argv[2]))
    sink = FileSink(sys.argv[1], clock=clock, utc=True, compress="gzip")
    await sink.open()
    await sink.write(make_batch([make_line(1)]))
    clock.advance(86_400)
    await sink.write(make_batch([make_line(2)]))
    await sink.close()
    time.sleep(60)
asyncio.run(main())
"""


def test_an_original_under_the_newest_name_goes_when_it_is_compressed(tmp_path):
    """Killed between copy and removal; a user took the next day's file away."""
    path = tmp_path / "app-{date}.log"
    environ = {**os.environ, "LOGAGG_FAILPOINT": "file_linked:kill"}
    command = [sys.executable, "-c", LINKED, path, str(NOON)]
    done = subprocess.run(command, env=environ, check=False, timeout=120)
    assert done.returncode == -9
    both = {"app-2026-11-25.log": [1], "app-2026-11-25.log.gz": [1]}
    assert contents(tmp_path) == {**both, "app-2026-11-26.log": [2]}
    (tmp_path / "app-2026-11-26.log").rename(tmp_path / "saved")
    options = {"utc": True, "compress": "gzip"}

    put(FileSink(path, clock=FakeClock(NOON + DAY), **options), 3)
    put(FileSink(path, clock=FakeClock(NOON + 2 * DAY), **options), 4)

    assert contents(tmp_path) == {
        "app-2026-11-25.log.gz": [1],
        "app-2026-11-26.log.gz": [3],
        "app-2026-11-27.log": [4],
        "saved": [2],
    }


def test_an_original_that_is_compressed_is_not_written_on(tmp_path):
    """The same, and the clock is set back to its day: its records stay once."""
    path = tmp_path / "app-{date}.log"
    environ = {**os.environ, "LOGAGG_FAILPOINT": "file_linked:kill"}
    command = [sys.executable, "-c", LINKED, path, str(NOON)]
    done = subprocess.run(command, env=environ, check=False, timeout=120)
    assert done.returncode == -9
    (tmp_path / "app-2026-11-26.log").rename(tmp_path / "saved")

    put(FileSink(path, clock=FakeClock(NOON), utc=True, compress="gzip"), 3, 4)

    assert contents(tmp_path) == {
        "app-2026-11-25.log.gz": [1],
        "app-2026-11-25.log": [3, 4],
        "saved": [2],
    }


def test_recall_reads_this_log_whatever_lies_beside_it(tmp_path):
    """Newer files with fitting names, of other programs or with old records."""
    path = tmp_path / "app.log"
    batch = make_batch(20)
    put(FileSink(path, max_bytes=1000), *range(20))
    old = make_batch([make_line(n, message="x" * 100_000, base_ns=0) for n in range(9)])
    later = time.time() + 1000
    for name, data in (
        ("app.log.2024", b"text\n" * 1_000_000),
        ("app.log.20251231", old.data * 80),
        ("app.log-errors", old.data * 80),
    ):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (later, later))
    os.mkfifo(tmp_path / "app.log.777")

    found = known(path, batch.lines[3])

    assert found == {record_id(line) for line in batch.lines[3:]}


def test_recall_knows_what_is_compressed_while_it_reads(tmp_path):
    """At its start a sink compresses what its predecessor left; both run at once."""
    small = make_batch(100)
    large = make_batch([make_line(100 + n, message="x" * 100_000) for n in range(300)])

    async def scenario():
        for batch, size in ((small, 1000), (large, 100_000_000)):
            sink = FileSink(tmp_path / "app.log", max_bytes=size)
            await sink.open()
            await sink.write(batch)
            await sink.close()
        sink = FileSink(tmp_path / "app.log", max_bytes=100_000_000, compress="gzip")
        await sink.open()
        found = await sink.written_since(small.lines[0][:KEY_END])
        await sink.close()
        return found

    found = asyncio.run(scenario())

    assert found == {record_id(line) for line in (*small.lines, *large.lines)}
    assert sum(path.suffix == ".gz" for path in tmp_path.iterdir()) > 10


def bomb(blocks):
    """One member of gzip that expands to that many times 64 MiB of zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(64 << 20)
    block = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    check = 0
    for _ in range(blocks):
        check = zlib.crc32(zeros, check)
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return head + block * blocks + b"\3\0" + struct.pack("<II", check, blocks << 26)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 19])
def test_recall_expands_no_more_than_its_bound(tmp_path, members):
    """A planted archive of 1.2 MB for 1.2 GB costs neither its memory nor its time."""
    path = tmp_path / "app.log"
    put(FileSink(path), 1)
    archive = bomb(19 // members) * members
    assert len(archive) < 1_300_000
    (tmp_path / "app.log.1.gz").write_bytes(archive)
    program = f"""
import asyncio, resource
from logagg.sinks import FileSink
from logagg.testing import make_batch
async def main():
    sink = FileSink({str(path)!r})
    await sink.open()
    print(len(await sink.written_since(make_batch(1).lines[0][:44])))
    await sink.close()
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=120
    )

    assert done.stdout == b"1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_recall_reads_no_file_of_another_user(tmp_path):
    """A record that a stranger planted is not taken for one of this log."""
    path = tmp_path / "app.log"
    put(FileSink(path), 1)
    planted = tmp_path / "app.log.1"
    planted.write_bytes(make_batch(1, start=5).data)
    os.chown(planted, 54321, 54321)

    found = known(path, make_batch(1).lines[0])

    assert found == {record_id(make_line(1))}


def test_a_template_reads_only_files_that_it_could_have_made(tmp_path):
    """`{worker}.log` does not read the whole tree below its directory."""
    put(FileSink(tmp_path / "{worker}.log"), 1)
    below = tmp_path / "other"
    below.mkdir()
    (below / "1.log").write_bytes(make_batch(1, start=5).data)
    (tmp_path / "1.txt").write_bytes(make_batch(1, start=6).data)

    found = known(tmp_path / "{worker}.log", make_batch(1).lines[0])

    assert found == {record_id(make_line(1))}


@pytest.mark.parametrize("length", [70_000, 5_000_000])
def test_a_truncated_line_is_kept_whole(tmp_path, length):
    """However long it is, and with bytes that are no text."""
    path = tmp_path / "app.log"
    torn = make_line(1, message="x" * length)[:-7] + b"\xff"
    path.write_bytes(make_batch(1).data + torn)

    put(FileSink(path), 2)

    first, kept, last = map(orjson.loads, path.read_bytes().splitlines())
    assert (first["seq"], last["seq"]) == (0, 2)
    assert kept["event"] == "truncated_line"
    assert kept["raw"] == torn.decode("utf-8", "backslashreplace")


def test_different_pairs_of_names_never_share_a_file(tmp_path):
    """A separator in a worker's name does not make its file another's."""
    pairs = [("a-b", "c"), ("a", "b-c"), ("a-", "b"), ("a", "-b"), ("a", "b")]
    lines = [
        make_line(number, worker=worker, logger=logger)
        for number, (worker, logger) in enumerate(pairs)
    ]

    async def scenario():
        sink = FileSink(tmp_path / "{worker}-{logger}.log")
        await sink.open()
        await sink.write(make_batch(lines))
        await sink.close()

    asyncio.run(scenario())

    found = contents(tmp_path)
    assert sorted(found.values()) == [[0], [1], [2], [3], [4]]
    assert found["a-b.log"] == [4]
    assert found["a-b-c.log"] == [1]


def test_an_entry_that_a_full_disk_cut_off_takes_no_other_along(tmp_path, monkeypatch):
    """The next one begins on a line of its own, although no byte fitted right after it."""
    write, room = os.write, []

    def scarce(descriptor, data):
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: room.pop()])

    def note(inode, *sizes):
        room[:] = reversed(sizes)
        with journal.transaction():
            journal.add(Claim("app.log", "app.log", inode, 10, "head/10"))

    journal = Journal(tmp_path, ".app.log.journal")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", scarce)
        note(1, 1000, 1000)
        for sizes in ((30,), ()):
            with pytest.raises(OSError, match="No space"):
                note(2, *sizes)
        note(3, 1000)
    journal.close()

    successor = Journal(tmp_path, ".app.log.journal")
    successor.load()
    assert sorted(inode for _, inode in successor.claims) == [1, 3]
    successor.close()
