"""The file sink: rotation by time, what is kept, compression."""

import asyncio
import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
import zstandard
from freezegun import freeze_time
from support import log_files

from logagg.errors import ConfigError
from logagg.sinks import FileSink, build
from logagg.testing import FakeClock, make_batch, make_line
from logagg_sinks.file.rotation import Names, family

NOON = 1_795_608_000.0  # 2026-11-25T12:00:00Z, a Wednesday
HOUR = 3600


def seqs(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return [orjson.loads(line)["seq"] for line in data.splitlines()]


def contents(directory):
    """What is in each file of a directory, by name."""
    return {path.name: seqs(path) for path in log_files(directory)}


async def at_times(sink, clock, *steps):
    """Write one record after each pause of so many seconds."""
    await sink.open()
    for number, pause in enumerate(steps):
        clock.advance(pause)
        await sink.write(make_batch(1, start=number))
    await sink.close()


def pieces(path, count, batch=None, **options):
    """Have a sink make a file and so many rotated ones, each with this batch."""
    batch = batch or make_batch(1)
    sink = FileSink(path, max_bytes=len(batch.data), **options)

    async def scenario():
        await sink.open()
        for _ in range(count + 1):
            await sink.write(batch)
        await sink.close()

    asyncio.run(scenario())


def test_a_day_has_a_file_of_its_own(tmp_path):
    """At midnight the file is put away under the day that is in it."""
    clock = FakeClock(NOON)
    sink = FileSink(tmp_path / "app.log", when="midnight", utc=True, clock=clock)

    asyncio.run(at_times(sink, clock, 0, 11.9 * HOUR, 0.2 * HOUR, 24 * HOUR))

    assert contents(tmp_path) == {
        "app.log": [3],
        "app.log.2026-11-25": [0, 1],
        "app.log.2026-11-26": [2],
    }


@pytest.mark.parametrize(
    ("options", "steps", "names"),
    [
        ({"when": "h", "interval": 6}, (0, 5.9 * HOUR, HOUR), ["2026-11-25_12"]),
        ({"when": "m"}, (0, 59, 1), ["2026-11-25_12-00"]),
        ({"when": "s", "interval": 10}, (3, 6.9, 0.2), ["2026-11-25_12-00-00"]),
        ({"when": "d", "at": "03:30"}, (0, 15 * HOUR, HOUR), ["2026-11-25"]),
        ({"when": "w0"}, (0, 4 * 24 * HOUR, 24 * HOUR), ["2026-11-23"]),
        ({"when": "w3", "at": "12:00"}, (0, 23 * HOUR, HOUR), ["2026-11-19"]),
    ],
)
def test_periods_begin_where_the_wall_clock_says(tmp_path, options, steps, names):
    """Two records fall into one period and the third into the next."""
    clock = FakeClock(NOON)
    sink = FileSink(tmp_path / "app.log", utc=True, clock=clock, **options)

    asyncio.run(at_times(sink, clock, *steps))

    assert contents(tmp_path) == {
        "app.log": [2],
        **{f"app.log.{name}": [0, 1] for name in names},
    }


def test_local_midnight_is_meant_unless_utc_is_asked_for(tmp_path, monkeypatch):
    """The day begins in the zone of the machine."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        clock = FakeClock(NOON)  # 21:00 in Tokyo
        sink = FileSink(tmp_path / "app.log", when="d", clock=clock)
        asyncio.run(at_times(sink, clock, 0, 2 * HOUR, 2 * HOUR))
    finally:
        monkeypatch.undo()
        time.tzset()

    assert contents(tmp_path) == {"app.log": [2], "app.log.2026-11-25": [0, 1]}


def test_a_restart_neither_delays_nor_repeats_a_rotation(tmp_path):
    """A service that starts anew every 20 minutes still rotates every hour, once."""
    path = tmp_path / "app.log"
    for number in range(9):
        now = NOON + number * 1200
        if path.exists():
            os.utime(path, (now - 1200, now - 1200))
        sink = FileSink(path, when="h", utc=True, clock=FakeClock(now))

        async def once(sink=sink, number=number):
            await sink.open()
            await sink.write(make_batch(1, start=number))
            await sink.close()

        asyncio.run(once())

    assert contents(tmp_path) == {
        "app.log": [6, 7, 8],
        "app.log.2026-11-25_12": [0, 1, 2],
        "app.log.2026-11-25_13": [3, 4, 5],
    }


def test_a_clock_that_is_set_back_rotates_nothing(tmp_path):
    """Periods only ever go forward."""
    clock = FakeClock(NOON)
    sink = FileSink(tmp_path / "app.log", when="h", utc=True, clock=clock)

    asyncio.run(at_times(sink, clock, 0, -3 * HOUR, 3.5 * HOUR))

    assert contents(tmp_path) == {"app.log": [0, 1, 2]}


def test_size_and_time_work_together(tmp_path):
    """Further pieces of one day are numbered in their order."""
    clock = FakeClock(NOON)
    sink = FileSink(
        tmp_path / "app.log", when="d", max_bytes=250, utc=True, clock=clock
    )

    asyncio.run(at_times(sink, clock, 0, 1, 1, 24 * HOUR))

    assert contents(tmp_path) == {
        "app.log": [3],
        "app.log.2026-11-25": [0],
        "app.log.2026-11-25.1": [1],
        "app.log.2026-11-25.2": [2],
    }


def test_time_can_be_frozen_from_outside(tmp_path):
    """The wall clock is asked at each write, so freezegun moves it."""
    with freeze_time("2026-11-25 12:00:00") as frozen:
        sink = FileSink(tmp_path / "app.log", when="d", utc=True)

        async def scenario():
            await sink.open()
            await sink.write(make_batch(1))
            frozen.tick(24 * HOUR)
            await sink.write(make_batch(1, start=1))
            await sink.close()

        asyncio.run(scenario())

    assert contents(tmp_path) == {"app.log": [1], "app.log.2026-11-25": [0]}


def test_a_date_in_the_name_makes_a_file_a_day(tmp_path):
    """app-{date}.log: the records of a day are in the file of that name."""
    clock = FakeClock(NOON)
    sink = FileSink(tmp_path / "app-{date}.log", utc=True, backups=1, clock=clock)

    asyncio.run(at_times(sink, clock, 0, 24 * HOUR, 24 * HOUR, HOUR))

    assert contents(tmp_path) == {
        "app-2026-11-26.log": [1],
        "app-2026-11-27.log": [2, 3],
    }


def test_the_next_day_is_no_piece_of_the_day_before():
    """Looked after late, the file of a day neither removes nor packs that of the next."""
    present = ["app-2026-11-24.log.gz", "app-2026-11-25.log", "app-2026-11-25.log.1"]
    younger = ["app-2026-11-26.log", "app-2026-11-27.log", "app-2026-11-27.log.1.gz"]

    found = Names("app-2026-11-25.log", family=family("app-\0.log")).backups(
        present + younger
    )

    assert [backup.names for backup in found] == [
        ("app-2026-11-24.log.gz",),
        ("app-2026-11-25.log.1",),
    ]


def test_old_files_go_by_age(tmp_path):
    """max_age counts from a file's last record; the current file always stays."""
    path = tmp_path / "app.log"
    pieces(path, 3)
    now = time.time()
    for number, age in ((1, 50), (2, 150), (3, 250)):
        os.utime(tmp_path / f"app.log.{number}", (now - age, now - age))

    async def scenario():
        sink = FileSink(path, max_bytes=1000, max_age=200.0)
        await sink.open()
        await sink.write(make_batch(1))
        await sink.close()
        return sink.counters

    counters = asyncio.run(scenario())

    assert sorted(contents(tmp_path)) == ["app.log", "app.log.1", "app.log.2"]
    assert counters == {"removed": 1}


def test_old_files_go_by_their_size_together(tmp_path):
    """max_total_bytes bounds the file and its pieces; the newest stay."""
    path = tmp_path / "app.log"

    async def scenario():
        sink = FileSink(path, max_bytes=2_000, max_total_bytes=10_000)
        await sink.open()
        for start in range(0, 1000, 10):
            await sink.write(make_batch(10, start=start))
        await sink.close()

    asyncio.run(scenario())

    found = contents(tmp_path)
    total = sum(file.stat().st_size for file in log_files(tmp_path))
    assert 6_000 < total <= 10_000
    kept = sorted(number for numbers in found.values() for number in numbers)
    assert kept == list(range(kept[0], 1000))


def test_files_of_others_are_never_removed(tmp_path):
    """Only what is named as a rotated piece is looked after."""
    others = ["app.log.old", "app.log.1.bak", "xapp.log.1", "app.log.01", "app.log.0"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    clock = FakeClock(NOON)
    sink = FileSink(tmp_path / "app.log", max_bytes=1, backups=1, clock=clock)

    asyncio.run(at_times(sink, clock, *[0] * 5))

    found = [path.name for path in log_files(tmp_path)]
    assert found == sorted([*others, "app.log", "app.log.1"])


@pytest.mark.parametrize(("kind", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_rotated_files_are_compressed_and_complete(tmp_path, kind, suffix):
    """Every record is in the compressed files and the current one, in order."""

    async def scenario():
        sink = FileSink(tmp_path / "app.log", max_bytes=50_000, compress=kind)
        await sink.open()
        for start in range(0, 5000, 100):
            await sink.write(make_batch(100, start=start))
        await sink.close()
        return sink.counters

    counters = asyncio.run(scenario())

    found = contents(tmp_path)
    count = len(found) - 1
    assert counters["compressed"] == count
    names = [f"app.log.{number}{suffix}" for number in range(count, 0, -1)]
    assert set(found) == {"app.log", *names}
    records = [number for name in [*names, "app.log"] for number in found[name]]
    assert records == list(range(5000))


def test_a_compressed_file_looks_like_its_original(tmp_path):
    """Mode and time of the last record stay, so that max_age still counts right."""
    old = tmp_path / "app.log.1"
    pieces(tmp_path / "app.log", 1)
    old.chmod(0o600)
    os.utime(old, (NOON, NOON))

    async def scenario():
        sink = FileSink(tmp_path / "app.log", max_bytes=50_000, compress="gzip")
        await sink.open()
        await sink.close()

    asyncio.run(scenario())

    status = (tmp_path / "app.log.1.gz").stat()
    assert status.st_mtime == NOON
    assert status.st_mode & 0o777 == 0o600
    assert not old.exists()


KILLED = """
import asyncio, sys
from logagg.sinks import FileSink
from logagg.testing import make_batch

async def main():
    sink = FileSink(sys.argv[1], max_bytes=200_000, compress="gzip")
    await sink.open()
    print("go", flush=True)
    start = 0
    while True:
        await sink.write(make_batch(200, start=start))
        start += 200
        print(start, flush=True)
asyncio.run(main())
"""


@pytest.mark.slow
def test_killing_it_at_any_moment_loses_nothing_that_was_written(tmp_path):
    """kill -9 while it writes, rotates, compresses: each written record is there."""
    path = tmp_path / "app.log"
    for round_number in range(6):
        for old in tmp_path.iterdir():
            old.unlink()
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        written = 0
        while written < 4000 + 1700 * round_number:
            written = int(child.stdout.readline())
        child.kill()
        rest, _ = child.communicate()
        written = int(([str(written), *rest.split()])[-1])

        async def finish():
            sink = FileSink(path, max_bytes=200_000, compress="gzip")
            await sink.open()
            await sink.close()

        asyncio.run(finish())

        # A torn line comes back as a record of the service with the number 0.
        found = [n for numbers in contents(tmp_path).values() for n in numbers if n]
        assert len(found) == len(set(found))
        assert set(range(1, written)) <= set(found)


def waited_for_a_processor():
    """Seconds that the threads of this process were ready to run and had to wait."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9


def slowest_write(directory, kind):
    """Seconds of the slowest write while a piece of 50 MB is compressed.

    Not counted is the time in which other programs had the processors.
    """
    text = os.urandom(25_000_000).hex()
    lines = [make_line(at, t=text[at : at + 2000]) for at in range(0, len(text), 2000)]
    pieces(directory / "app.log", 1, make_batch(lines))

    async def scenario():
        sink = FileSink(directory / "app.log", max_bytes=500_000_000, compress=kind)
        await sink.open()
        took = []
        while "compressed" not in sink.counters:
            batch = make_batch(50, start=50 * len(took))
            assert batch.data
            busy, began = waited_for_a_processor(), time.perf_counter()
            await sink.write(batch)
            elapsed = time.perf_counter() - began
            took.append(elapsed - (waited_for_a_processor() - busy))
            await asyncio.sleep(0.002)
        await sink.close()
        return took

    took = asyncio.run(scenario())
    assert len(took) > 20
    return max(took)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_no_write_waits_for_compression(tmp_path, kind):
    """While 50 MB are compressed no write takes more than 10 ms.

    The disk may be busy for others too, so the best of three tries counts: a write that
    waited for the compression would be late in each.
    """
    tries = []
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        tries.append(slowest_write(directory, kind))
        if tries[-1] < 0.010:
            break

    assert min(tries) < 0.010


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("when=fortnight", "when='fortnight'"),
        ("interval=2", "need when="),
        ("when=h&at=03:00", "option at needs"),
        ("when=d&at=25:00", "at='25:00'"),
        ("when=d&interval=0", "interval must be 1"),
        ("compress=rar", "gzip or zstd"),
        ("mode=0646", "everybody"),
        ("mode=0440", "owner write"),
        ("mode=rw", "octal"),
        ("owner=no-such-user", "no such user"),
        ("fsync=sometimes", "never, interval or always"),
        ("max_age=soon", "a duration"),
        ("template={message}", "format=text"),
    ],
)
def test_a_bad_option_is_refused_with_what_is_wrong(query, told):
    """The error names the option and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        build(f"file:app.log?{query}")

    assert told in str(caught.value)
