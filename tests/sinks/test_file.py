"""The file sink: appending, rotation by size, failures of the disk."""

import asyncio
import os
import resource
import stat
import subprocess
import sys

import orjson
import pytest

from logagg.abc import Batch
from logagg.errors import ConfigError, SinkUnavailable
from logagg.sinks import FileSink, build
from logagg.testing import make_batch, make_line


def numbers(*paths):
    """The `seq` of every line of the files, every line parsed."""
    found = []
    for path in paths:
        data = path.read_bytes()
        assert not data or data.endswith(b"\n")
        found += [orjson.loads(line)["seq"] for line in data.splitlines()]
    return found


def rotated(path):
    """The rotated files of a path, oldest first, then the path itself."""
    found = [p for p in path.parent.iterdir() if p.name.startswith(path.name + ".")]
    found.sort(key=lambda p: -int(p.name.split(".")[2]))
    return [*found, path]


async def put(sink, *batches):
    await sink.open()
    for batch in batches:
        await sink.write(batch)
    await sink.close()


def test_records_are_appended_to_what_is_there(tmp_path):
    """Opening a file never loses what an earlier run wrote."""
    path = tmp_path / "app.log"

    asyncio.run(put(FileSink(path), make_batch(3)))
    asyncio.run(put(FileSink(path), make_batch(3, start=3)))

    assert numbers(path) == [0, 1, 2, 3, 4, 5]


def test_rotation_by_size_loses_and_splits_nothing(tmp_path):
    """Every record stands once, in order, whole, over all rotated files."""
    path = tmp_path / "app.log"
    batches = [make_batch(97, start=97 * i) for i in range(40)]

    asyncio.run(put(FileSink(path, max_bytes=20_000), *batches))

    files = rotated(path)
    assert numbers(*files) == list(range(97 * 40))
    length = len(batches[0].data) // 97 + 10
    for file in files[:-1]:
        assert 20_000 - length < file.stat().st_size <= 20_000
    total = sum(file.stat().st_size for file in files)
    assert len(files) <= total // (20_000 - length) + 1


def test_a_record_longer_than_the_limit_gets_a_file_of_its_own(tmp_path):
    """A single huge record is neither split nor does it stop the rotation."""
    path = tmp_path / "app.log"
    lines = [make_line(0), make_line(1, message="x" * 5000), make_line(2)]

    asyncio.run(put(FileSink(path, max_bytes=1000), make_batch(lines)))

    assert [numbers(file) for file in rotated(path)] == [[0], [1], [2]]


def test_no_more_backups_are_kept_than_asked_for(tmp_path):
    """The oldest rotated files go, the newest stay."""
    path = tmp_path / "app.log"
    batches = [make_batch(10, start=10 * i) for i in range(20)]

    asyncio.run(put(FileSink(path, max_bytes=2_000, backups=3), *batches))

    files = rotated(path)
    assert [file.name for file in files] == [
        "app.log.3",
        "app.log.2",
        "app.log.1",
        "app.log",
    ]
    kept = numbers(*files)
    assert kept == list(range(kept[0], 200))


def test_a_new_file_has_its_mode_whatever_the_umask_is(tmp_path):
    """umask 000 does not open the log to everybody."""
    path = tmp_path / "app.log"
    old = os.umask(0)
    try:
        asyncio.run(put(FileSink(path), make_batch()))
    finally:
        os.umask(old)

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("cut", [1, 10, 50, 120])
def test_a_torn_last_line_is_mended_at_opening(tmp_path, cut):
    """What a killed writer left becomes a record of its own, and every line parses."""
    path = tmp_path / "app.log"
    whole = make_batch(2).data
    torn = make_batch(1, start=2).data[:cut]
    path.write_bytes(whole + torn)

    asyncio.run(put(FileSink(path), make_batch(1, start=3)))

    first, second, mended, last = [
        orjson.loads(line) for line in path.read_bytes().splitlines()
    ]
    assert [first["seq"], second["seq"], last["seq"]] == [0, 1, 3]
    assert mended["event"] == "truncated_line"
    assert mended["raw"].encode() == torn


def test_a_last_record_without_its_newline_is_kept_as_it_is(tmp_path):
    """A whole record that lacks only its newline gets it."""
    path = tmp_path / "app.log"
    path.write_bytes(make_batch(2).data[:-1])

    asyncio.run(put(FileSink(path), make_batch(1, start=2)))

    assert numbers(path) == [0, 1, 2]


def test_a_missing_directory_is_made(tmp_path):
    """Naming a file in a directory that is not there yet works."""
    path = tmp_path / "logs" / "deep" / "app.log"

    asyncio.run(put(FileSink(path), make_batch(2)))

    assert numbers(path) == [0, 1]


FULL_DISK = """
import asyncio, sys, os
from pathlib import Path
from logagg.errors import SinkUnavailable
from logagg.sinks import FileSink
from logagg.testing import make_batch

async def main(where):
    sink = FileSink(where / "app.log", max_bytes=int(sys.argv[2]))
    await sink.open()
    start, failed = 0, 0
    ballast = where / "ballast"
    ballast.write_bytes(b"x" * 500_000)
    while start < 4000:
        batch = make_batch(100, start=start)
        try:
            await sink.write(batch)
        except SinkUnavailable as error:
            failed += 1
            assert "No space left" in str(error), error
            data = b"".join(p.read_bytes() for p in where.glob("app.log*"))
            assert data.endswith(b"\\n")
            if failed == 3:
                ballast.unlink()
            if failed > 10:
                raise
            continue
        start += 100
    await sink.close()
    print(failed)
asyncio.run(main(Path(sys.argv[1])))
"""


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1m t "$1" && "$2" "$3" "$1" "$4" && cp -r "$1" "$5"
"""


@pytest.mark.parametrize("max_bytes", [0, 50_000])
def test_a_full_disk_leaves_no_half_line_and_no_duplicate(tmp_path, max_bytes):
    """A batch that found the disk full is taken back and goes in when there is room."""
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    where = tmp_path / "disk"
    where.mkdir()
    copy = tmp_path / "copy"

    done = subprocess.run(
        [
            "unshare",
            "-rm",
            "sh",
            "-c",
            ON_A_SMALL_DISK,
            "sh",
            where,
            sys.executable,
            script,
            str(max_bytes),
            copy,
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3"
    assert numbers(*rotated(copy / "app.log")) == list(range(4000))


LIMITED = """
import asyncio, resource, sys
from logagg.errors import SinkUnavailable
from logagg.sinks import FileSink
from logagg.testing import make_batch

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    sink = FileSink(sys.argv[1])
    await sink.open()
    for start in range(0, 1000, 50):
        await sink.write(make_batch(50, start=start))
    await sink.close()
asyncio.run(main())
"""


def test_a_file_size_limit_makes_it_rotate(tmp_path):
    """RLIMIT_FSIZE (EFBIG) costs nothing: the file is rotated once and written on."""
    path = tmp_path / "app.log"

    subprocess.run([sys.executable, "-c", LIMITED, path], check=True)

    files = rotated(path)
    assert len(files) > 3
    assert numbers(*files) == list(range(1000))


def test_dev_full_is_reported_and_asks_to_be_tried_again():
    """The disk being full is a SinkUnavailable that names the file and the reason."""

    async def scenario():
        sink = FileSink("/dev/full")
        await sink.open()
        with pytest.raises(SinkUnavailable, match=r"/dev/full: No space left"):
            await sink.write(make_batch())
        await sink.close()

    asyncio.run(scenario())


def test_a_cancelled_write_can_be_tried_again_without_a_duplicate(tmp_path):
    """Cancelling a write in the middle leaves the file as if it had not begun."""
    path = tmp_path / "app.log"

    async def scenario():
        sink = FileSink(path, max_bytes=100_000)
        await sink.open()
        await sink.write(make_batch(10))
        batch = make_batch(2_000, start=10)
        cancelled = 0
        while True:
            task = asyncio.ensure_future(sink.write(batch))
            for _ in range(cancelled + 1):
                await asyncio.sleep(0)
            if not task.cancel():
                break
            try:
                await task
                break
            except asyncio.CancelledError:
                cancelled += 1
        await sink.write(make_batch(5, start=2_010))
        await sink.close()
        return cancelled

    assert asyncio.run(scenario()) > 3
    assert numbers(*rotated(path)) == list(range(2_015))


def test_the_url_builds_the_same_sink_again():
    """The options of a file survive the way to a URL and back."""
    sink = FileSink("logs/app.log", max_bytes=50_000_000, backups=10)

    assert sink.url == "file:logs/app.log?max_bytes=50MB&backups=10"
    again = build(sink.url).sink
    assert again.path == sink.path
    assert again.options == sink.options


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("file:a.log?max_byte=1", "did you mean 'max_bytes'"),
        ("file:a.log?max_bytes=50M", "max_bytes='50M'"),
        ("file:a.log?backups=-1", "backups"),
        ("file://host/a.log", "file:///PATH"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong(url, told):
    """The error names the option or part and says what would be right."""
    with pytest.raises(ConfigError) as caught:
        build(url)

    assert told in str(caught.value)


def test_the_bytes_are_not_parsed(tmp_path):
    """A file takes lines as they are: what is not JSON passes through unchanged."""
    path = tmp_path / "app.log"
    batch = Batch([b"not json at all"], b"\n")

    asyncio.run(put(FileSink(path), batch))

    assert path.read_bytes() == b"not json at all\n"


def test_no_descriptor_is_left_open(tmp_path):
    """Opening, rotating and closing gives back every descriptor."""
    before = sorted(os.listdir("/proc/self/fd"))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0

    asyncio.run(put(FileSink(tmp_path / "a.log", max_bytes=500), make_batch(100)))

    assert sorted(os.listdir("/proc/self/fd")) == before
