"""The file sink tells what it holds, so that nothing is written twice after a crash."""

import asyncio
import errno
import gzip
import os
import resource

import orjson
import pytest

from logagg.core.line import KEY_END, record_id
from logagg.errors import SinkUnavailable
from logagg.sinks import FileSink
from logagg.testing import make_batch, make_line
from logagg_sinks.file import path_template, repair
from logagg_sinks.file.pieces import recall


def written_since(paths, line):
    """What these files hold since a line, each a log by itself."""
    listing = [[recall.Listed.of(path)] for path in paths]
    return recall.written_since(lambda: listing, line[:KEY_END])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_bytes": 20_000},
        {"max_bytes": 20_000, "compress": "gzip"},
        {"max_bytes": 20_000, "compress": "zstd"},
        {"when": "h"},
    ],
    ids=str,
)
def test_recall_knows_every_record_since_an_instant(tmp_path, options):
    """All from there on, in the file and its rotated pieces, compressed or not."""
    batch = make_batch(2000)

    async def scenario():
        sink = FileSink(tmp_path / "app.log", **options)
        await sink.open()
        await sink.write(batch)
        await sink.close()
        again = FileSink(tmp_path / "app.log", **options)
        await again.open()
        found = await again.written_since(batch.lines[500][:KEY_END])
        await again.close()
        return found

    found = asyncio.run(scenario())

    assert found == {record_id(line) for line in batch.lines[500:]}


def test_recall_fails_where_it_cannot_know(tmp_path, monkeypatch):
    """Not open yet, or no descriptor for the directory: nothing is not the answer."""
    batch = make_batch(10)
    sink = FileSink(tmp_path / "app.log")
    since = batch.lines[0][:KEY_END]

    def no_descriptor(_):
        raise OSError(errno.EMFILE, "Too many open files")

    async def scenario():
        with pytest.raises(SinkUnavailable):
            await sink.written_since(since)
        await sink.open()
        await sink.write(batch)
        with monkeypatch.context() as full:
            full.setattr(path_template.os, "listdir", no_descriptor)
            with pytest.raises(OSError, match="Too many"):
                await sink.written_since(since)
        found = await sink.written_since(since)
        await sink.close()
        return found

    assert len(asyncio.run(scenario())) == 10


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_the_beginning_of_a_line_is_no_record(tmp_path, ending):
    """Wherever the line was cut, and also where its repair was refused."""
    *whole, last = make_batch(3).data.splitlines(keepends=True)
    path = tmp_path / "app.log"
    for size in range(KEY_END, len(last) - 1):
        path.write_bytes(b"".join(whole) + last[:size] + ending)
        assert len(written_since([path], whole[0])) == 2, last[:size]

    path.write_bytes(
        b"".join(whole) + last[:-1] + ending
    )  # its newline alone is missing
    assert len(written_since([path], whole[0])) == 3


@pytest.mark.parametrize("text", [make_line(7)[:-9], b'{"timest', b"not \xff ours"])
def test_a_repair_that_is_cut_off_is_made_anew(tmp_path, text):
    """After each byte of it: no line stays that does not parse, the text once."""
    path = tmp_path / "app.log"
    whole = make_batch(1).data
    path.write_bytes(whole + text)
    mend(path)
    record = path.read_bytes()[len(whole) :]
    least = 0 if text.startswith(make_line(7)[:KEY_END]) else KEY_END
    for size in range(1 + least, len(record) + 1):
        path.write_bytes(whole + text + b"\n" + record[:size])
        mend(path)
        lines = path.read_bytes().splitlines()
        kept = [orjson.loads(line).get("raw") for line in lines]
        assert kept == [None, text.decode("utf-8", "backslashreplace")], size


def mend(path):
    """Repair a file's end."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    repair.repair(fd, path.stat().st_size, json=True)
    os.close(fd)
    assert path.read_bytes().endswith(b"\n")


def test_a_full_disk_keeps_no_file_from_being_recalled(tmp_path):
    """The truncated end waits for its repair, and nothing is written before that."""
    path = tmp_path / "app.log"
    batch = make_batch(4)
    *whole, last = batch.data.splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:-9])
    size = path.stat().st_size

    async def scenario():
        sink = FileSink(path)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
        try:
            await sink.open()
            known = await sink.written_since(whole[0][:KEY_END])
            with pytest.raises(OSError, match="too large"):
                await sink.write(make_batch([batch.lines[3]]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert path.stat().st_size == size
        await sink.write(make_batch([batch.lines[3]]))
        await sink.close()
        return known

    assert asyncio.run(scenario()) == {record_id(line) for line in batch.lines[:3]}
    records = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [each["seq"] for each in records] == [0, 1, 2, 0, 3]
    assert records[3]["event"] == "truncated_line"


def test_a_damaged_archive_does_not_stop_it(tmp_path):
    """What cannot be unpacked is passed over; the rest is known."""
    (tmp_path / "app.log.1.gz").write_bytes(b"\x1f\x8b garbage")
    (tmp_path / "app.log.2.zst").write_bytes(b"garbage")
    batch = make_batch(10)

    async def scenario():
        sink = FileSink(tmp_path / "app.log")
        await sink.open()
        await sink.write(batch)
        found = await sink.written_since(batch.lines[0][:KEY_END])
        await sink.close()
        return found

    assert len(asyncio.run(scenario())) == 10


def test_what_moves_between_listing_and_opening_is_found(tmp_path):
    """One file is compressed, others each take the name of another one meanwhile."""
    batches = [make_batch(3, start=start) for start in (0, 10, 20, 30)]
    for number, batch in enumerate(batches):
        path = tmp_path / f"app.log.{number}"
        path.write_bytes(batch.data)
        os.utime(path, (100 - number, 100 - number))
    listings = []

    def listing():
        names = sorted(tmp_path.iterdir())
        listings.append([recall.Listed.of(path) for path in names])
        if len(listings) == 1:
            oldest = tmp_path / "app.log.3"
            (tmp_path / "app.log.4.gz").write_bytes(gzip.compress(oldest.read_bytes()))
            oldest.unlink()
            for number in (2, 1):
                (tmp_path / f"app.log.{number}").rename(
                    tmp_path / f"app.log.{number + 1}"
                )
        return [listings[-1]]

    found = recall.written_since(listing, batches[0].lines[0][:KEY_END])

    assert found == {record_id(line) for batch in batches for line in batch.lines}
    assert len(listings) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_of_others_hides_nothing_however_long_it_is(
    tmp_path, monkeypatch, packed
):
    """Text without an end that another program wrote is passed over, in bounded memory."""
    monkeypatch.setattr(recall, "SEARCH_BYTES", 2_000_000)
    batch = make_batch(6)
    long = b"x" * (recall.SEARCH_BYTES + 3 * recall.BLOCK_BYTES) + b"\n"
    first, last = (
        make_batch(list(part)).data for part in (batch.lines[:3], batch.lines[3:])
    )
    data = first + long + last
    path = tmp_path / ("app.log.1.gz" if packed else "app.log")
    path.write_bytes(gzip.compress(data, 1) if packed else data)

    found = written_since([path], batch.lines[0])

    assert found == {record_id(line) for line in batch.lines}


def test_text_of_others_at_the_end_hides_nothing(tmp_path):
    """A program printed megabytes into the same file after the last record."""
    batch = make_batch(3)
    path = tmp_path / "app.log"
    path.write_bytes(batch.data + b"text\n" * 1_000_000)

    assert written_since([path], batch.lines[0]) == {record_id(a) for a in batch.lines}


def test_a_name_that_leads_nowhere_for_good_is_given_up(tmp_path):
    """It costs a bounded number of listings, whatever others do to the directory."""
    (tmp_path / "app.log").write_bytes(make_batch(1).data)
    listed = recall.Listed.of(tmp_path / "app.log")
    calls = []

    def listing():
        calls.append(1)
        return [[listed._replace(inode=listed.inode + 1)]]

    assert recall.written_since(listing, make_line(0)[:KEY_END]) == frozenset()
    assert len(calls) == recall.MOST_LISTINGS


def test_what_is_known_is_bounded_and_of_the_newest(tmp_path, monkeypatch):
    """A log full of small records costs bounded memory, and no other log its share."""
    monkeypatch.setattr(recall, "MOST_RECORDS", 150)
    monkeypatch.setattr(recall, "BLOCK_BYTES", 1000)
    batches = [make_batch(300), make_batch(300, start=300)]
    paths = [tmp_path / name for name in ("a.log", "b.log")]
    for path, batch in zip(paths, batches, strict=True):
        path.write_bytes(batch.data)

    found = written_since(paths, batches[0].lines[0])

    for batch in batches:
        known = found & {record_id(line) for line in batch.lines}
        assert 150 < len(known) < 160
        assert known == {record_id(line) for line in batch.lines[-len(known) :]}


def test_a_long_row_of_late_lines_hides_nothing_before_it(tmp_path):
    """What a suspended worker had kept came late, in one piece: older stamps, 20 MB."""
    wanted = make_batch(3, start=100)
    late = make_batch([make_line(n, message="x" * 10_000) for n in range(50)])
    path = tmp_path / "app.log"
    path.write_bytes(wanted.data + late.data * 40)

    found = written_since([path], wanted.lines[0])

    assert found == {record_id(line) for line in wanted.lines}


def test_a_file_that_no_descriptor_is_free_for_is_not_passed_over(tmp_path):
    """Else its records would be written again."""
    path = tmp_path / "app.log"
    path.write_bytes(make_batch(3).data)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            written_since([path], make_batch(1).lines[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("call", ["open", "pread"])
def test_a_file_that_the_disk_does_not_give_for_a_moment_is_not_passed_over(
    tmp_path, monkeypatch, call
):
    """The same: an error of the disk says nothing of what the file holds."""
    path = tmp_path / "app.log"
    path.write_bytes(make_batch(3).data)

    def fails(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(recall.os, call, fails)
        with pytest.raises(OSError, match="Input/output error"):
            written_since([path], make_batch(1).lines[0])
