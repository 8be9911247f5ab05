"""A file has one writer, also where different paths lead to it."""

import asyncio
import subprocess
import sys

import orjson
import pytest
from support import log_files

from logagg.errors import ConfigError, SinkUnavailable
from logagg.sinks import FileSink
from logagg.testing import make_batch, make_line

WRITER = """
import asyncio, sys
from logagg.sinks import FileSink
from logagg.testing import make_batch, make_line

async def main():
    sink = FileSink(sys.argv[1])
    await sink.open()
    await sink.write(make_batch([make_line(0, worker="1")]))
    print("written", flush=True)
    sys.stdin.read()
    await sink.write(make_batch([make_line(1, worker="1")]))
    await sink.close()
asyncio.run(main())
"""


def put(sink, *numbers):
    """Write records and close the sink."""

    async def scenario():
        await sink.open()
        for number in numbers:
            await sink.write(make_batch([make_line(number)]))
        await sink.close()

    asyncio.run(scenario())


def seqs(path):
    """The numbers of a file's records."""
    return [orjson.loads(line)["seq"] for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ("{worker}.log", "1.log"),
        ("1.log", "{worker}.log"),
        ("{worker}-{logger}.log", "1-app.log"),
        ("{worker}-app.log", "{worker}-{logger}.log"),
    ],
)
def test_templates_that_lead_to_one_file_do_not_both_write_it(tmp_path, theirs, mine):
    """The second process is refused with the reason, and goes on once it is alone."""
    command = [sys.executable, "-c", WRITER, tmp_path / theirs]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "written\n"
        with pytest.raises(SinkUnavailable, match="another process writes"):
            put(FileSink(tmp_path / mine), 7)
        other.communicate("")
    (path,) = log_files(tmp_path)
    assert seqs(path) == [0, 1]

    put(FileSink(tmp_path / mine), 7)

    assert seqs(path) == [0, 1, 7]


def test_sinks_of_one_process_may_share_a_file(tmp_path):
    """A sink that is reloaded opens before the old one closes; the lock stays."""

    async def scenario():
        first, second = (
            FileSink(tmp_path / "1.log"),
            FileSink(tmp_path / "{worker}.log"),
        )
        await first.open()
        await first.write(make_batch([make_line(0)]))
        await second.open()
        await second.write(make_batch([make_line(1)]))
        await first.close()
        command = [sys.executable, "-c", WRITER, tmp_path / "1.log"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False
        )
        assert "another process writes" in done.stderr
        await second.close()

    asyncio.run(scenario())
    assert seqs(tmp_path / "1.log") == [0, 1]


@pytest.mark.parametrize(
    ("path", "options", "piece"),
    [
        ("app.log", {"max_bytes": 1}, "app.log.1"),
        ("app.log", {"max_bytes": 1, "when": "d"}, None),
        ("app-{date}.log", {"max_bytes": 1}, None),
    ],
)
def test_a_rotated_file_of_another_sink_is_no_target(tmp_path, path, options, piece):
    """Its sink may compress or remove it: the error names that, and nothing changes."""
    put(FileSink(tmp_path / path, **options), 0, 1)
    (found,) = [each for each in log_files(tmp_path) if seqs(each) == [0]]
    assert piece in (None, found.name)

    with pytest.raises(
        (ConfigError, SinkUnavailable), match="is a rotated file of app"
    ):
        put(FileSink(found), 7)

    assert seqs(found) == [0]


def test_a_target_with_the_name_of_a_rotated_file_keeps_its_file(tmp_path):
    """Rotation takes the next number, and the limits count only what it made."""
    put(FileSink(tmp_path / "app.log.1"), 7)

    put(FileSink(tmp_path / "app.log", max_bytes=1, backups=1), 0, 1, 2)
    put(FileSink(tmp_path / "app.log.1"), 8)

    assert seqs(tmp_path / "app.log.1") == [7, 8]
    assert seqs(tmp_path / "app.log.2") == [1]
    assert seqs(tmp_path / "app.log") == [2]
