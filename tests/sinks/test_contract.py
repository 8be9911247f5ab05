"""The contract of a sink, run for all of ours and for one of somebody else."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest

from logagg.sinks import FileSink, StderrSink, StdoutSink
from logagg.testing import MemorySink, check_sink, make_batch, make_line

PLUGIN = Path(__file__).parents[2] / "samples" / "sink_plugin"
LNAV = Path(__file__).parents[2] / "samples" / "lnav" / "logagg.json"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_bytes": 5_000, "compress": "gzip"},
        {"max_bytes": 5_000, "fsync": "always"},
        {"when": "h", "fsync": "never"},
    ],
    ids=str,
)
def test_the_file_sink_keeps_the_contract(tmp_path, options):
    """Everything arrives once and in order, whatever the options are."""
    made = []

    def factory():
        path = tmp_path / str(len(made)) / "app.log"
        made.append(path)
        return FileSink(path, **options)

    def age(path):
        period, number = re.fullmatch(
            r"app\.log(?:\.(\d{4}[-_0-9]+))?(?:\.(\d+))?(?:\.gz)?", path.name
        ).groups()
        piece = int(number or 0)  # of a period the highest is the newest
        newest = period is None and number is None
        return newest, period or "", piece if period else -piece

    def delivered():
        directory = made[-1].parent
        files = sorted(directory.glob("[!.]*"), key=age)
        data = b""
        for file in files:
            if file.suffix == ".gz":
                command = ["gzip", "-dc", file]
                data += subprocess.run(command, capture_output=True, check=True).stdout
            else:
                data += file.read_bytes()
        return [orjson.loads(line) for line in data.splitlines()]

    check_sink(factory, delivered)


def test_a_split_file_sink_keeps_the_contract(tmp_path):
    """A template that splits by worker and logger loses nothing either."""

    def delivered():
        (file,) = tmp_path.rglob("app.log")
        return [orjson.loads(line) for line in file.read_bytes().splitlines()]

    check_sink(lambda: FileSink(tmp_path / "{worker}" / "{logger}.log"), delivered)


@pytest.mark.parametrize("kind", [StdoutSink, StderrSink])
def test_the_stream_sinks_keep_the_contract(kind):
    """What is read from the stream is what was written, once and in order."""
    reader, writer = os.pipe()
    found = []

    def read():
        while data := os.read(reader, 65536):
            found.append(data)

    def factory():
        sink = kind(format="json")
        sink.fd = writer
        return sink

    def delivered():
        os.close(writer)
        thread.join()
        os.close(reader)
        return [orjson.loads(line) for line in b"".join(found).splitlines()]

    thread = threading.Thread(target=read)
    thread.start()
    check_sink(factory, delivered)


def test_the_memory_sink_keeps_the_contract():
    """The sink for tests is a sink like any other."""
    made = []

    def factory():
        made.append(MemorySink())
        return made[-1]

    check_sink(factory, lambda: made[-1].records)


class Forgetful(MemorySink):
    """Loses a record now and then."""

    async def write(self, batch):
        await super().write(batch.select(batch.lines[1:]))


class Meddling(MemorySink):
    """Changes the batch that is everyone's."""

    async def write(self, batch):
        await super().write(batch)
        batch.lines.reverse()


class Doubling(MemorySink):
    """Delivers twice."""

    async def write(self, batch):
        await super().write(batch)
        await super().write(batch)


class Lax(MemorySink):
    """Takes any option."""

    @classmethod
    def from_url(cls, url):
        del url
        return cls()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Forgetful, "every record arrives"),
        (Meddling, "must not change it"),
        (Doubling, "once and in order"),
        (Lax, "unknown option is refused"),
    ],
)
def test_a_sink_that_breaks_the_contract_is_found_out(kind, told):
    """The check says which promise was broken."""
    made = []

    def factory():
        made.append(kind())
        return made[-1]

    with pytest.raises(AssertionError, match=told):
        check_sink(factory, lambda: made[-1].records)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The sample package, installed into a directory of its own."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "sink_plugin"
    shutil.copytree(PLUGIN, source)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    command += [
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--target",
        target,
        source,
    ]
    subprocess.run(command, check=True)
    return target


def run_with(plugin, code, *arguments):
    environ = {**os.environ, "PYTHONPATH": str(plugin)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_a_third_partys_sink_is_found_and_keeps_the_contract(plugin, tmp_path):
    """A package with an entry point is all it takes."""
    code = (
        "import sys\n"
        "from logagg.sinks import build\n"
        "from logagg.testing import check_sink\n"
        "check_sink(lambda: build(f'counts:{sys.argv[1]}?every=1ms&level=info').sink)\n"
    )

    run_with(plugin, code, tmp_path / "levels.json")

    assert json.loads((tmp_path / "levels.json").read_text()) == {"info": 544}


@pytest.mark.slow
def test_the_errors_of_a_third_partys_sink_are_as_clear_as_ours(plugin):
    """It gets reading of options and near misses from logagg.options."""
    code = (
        "from logagg.errors import ConfigError\n"
        "from logagg.sinks import build\n"
        "try:\n"
        "    build('counts:x?evry=1s')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )

    assert "did you mean 'every'" in run_with(plugin, code).stdout


@pytest.mark.skipif(shutil.which("lnav") is None, reason="lnav is not installed")
def test_lnav_reads_our_files_with_the_sample_format(tmp_path):
    """Levels, fields and tracebacks come out as such."""
    error = {
        "type": "ValueError",
        "message": "no",
        "stack": "Traceback\nValueError: no",
    }
    lines = [make_line(0), make_line(1, level="error", exception=error)]
    (tmp_path / "app.log").write_bytes(make_batch(lines).data)
    environ = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb"}
    subprocess.run(["lnav", "-i", LNAV], env=environ, check=True, capture_output=True)
    select = ";select log_level, worker, logger, log_body from logagg_log"

    done = subprocess.run(
        ["lnav", "-n", "-c", select, "-c", ":write-csv-to -", tmp_path / "app.log"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )

    rows = done.stdout.strip().splitlines()
    assert rows[1:] == ["info,1,app,hello", "error,1,app,hello"]


def test_the_lnav_format_names_every_fixed_field():
    """The sample format and what a record has do not drift apart."""
    values = json.loads(LNAV.read_text())["logagg_log"]["value"]
    record = orjson.loads(make_batch(1).data)

    assert set(record) - {"timestamp", "level"} <= set(values)
