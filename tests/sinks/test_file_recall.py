"""The file sink tells what it holds, so that nothing is written twice after a crash."""

import asyncio

import pytest

from logagg.sinks import FileSink
from logagg.testing import make_batch, make_line
from logagg.wire import identity
from logagg_sinks import _recall


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
        found = await again.recall(batch.lines[500][:44])
        await again.close()
        return found

    found = asyncio.run(scenario())

    assert found == {identity(line) for line in batch.lines[500:]}


def test_a_damaged_archive_does_not_stop_it(tmp_path):
    """What cannot be unpacked is passed over; the rest is known."""
    (tmp_path / "app.log.1.gz").write_bytes(b"\x1f\x8b garbage")
    (tmp_path / "app.log.2.zst").write_bytes(b"garbage")
    batch = make_batch(10)

    async def scenario():
        sink = FileSink(tmp_path / "app.log")
        await sink.open()
        await sink.write(batch)
        found = await sink.recall(batch.lines[0][:44])
        await sink.close()
        return found

    assert len(asyncio.run(scenario())) == 10


def test_what_is_known_is_bounded_and_of_the_newest(tmp_path, monkeypatch):
    """A log full of small records costs bounded memory, and no other log its share."""
    monkeypatch.setattr(_recall, "MOST_RECORDS", 150)
    monkeypatch.setattr(_recall, "BLOCK_BYTES", 1000)
    batches = [make_batch(300), make_batch(300, start=300)]
    paths = [tmp_path / name for name in ("a.log", "b.log")]
    for path, batch in zip(paths, batches, strict=True):
        path.write_bytes(batch.data)

    found = _recall.recall([[path] for path in paths], batches[0].lines[0][:44])

    for batch in batches:
        known = found & {identity(line) for line in batch.lines}
        assert 150 < len(known) < 160
        assert known == {identity(line) for line in batch.lines[-len(known) :]}


def test_a_long_row_of_late_lines_hides_nothing_before_it(tmp_path):
    """What a suspended worker had kept came late, in one piece: older stamps, 20 MB."""
    wanted = make_batch(3, start=100)
    late = make_batch([make_line(n, message="x" * 10_000) for n in range(50)])
    path = tmp_path / "app.log"
    path.write_bytes(wanted.data + late.data * 40)

    found = _recall.recall([[path]], wanted.lines[0][:44])

    assert found == {identity(line) for line in wanted.lines}
