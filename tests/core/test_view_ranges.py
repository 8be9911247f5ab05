"""The part of a series that can hold a range of time: all of it, and little more."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from page_world import line

from logagg.core.units import iso_ns, wire_time
from logagg.filters import matcher
from logagg.view import file_ranges, files

START = iso_ns("2026-11-25T10:00:00Z") or 0
COUNT = 5_000


def _text(first: int, last: int) -> bytes:
    return b"".join(line(n, seq=n, more="x" * 600) for n in range(first, last))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rotated files, one of them compressed, and the current one: 6 MB."""
    path = tmp_path_factory.mktemp("ranges") / "app.log"
    path.with_name("app.log.2.gz").write_bytes(gzip.compress(_text(0, 1_000)))
    path.with_name("app.log.1").write_bytes(_text(1_000, 2_000))
    path.write_bytes(_text(2_000, COUNT))
    return path


def _found(path: Path, since: int, until: int) -> tuple[list[int], float]:
    """The seconds that are found, and how much of the files was read."""
    first, last = (START + second * 1_000_000_000 for second in (since, until))
    read = 0

    def count(data: bytes) -> list[bytes]:
        nonlocal read
        read += len(data)
        return matcher.compile(since_ns=first, until_ns=last).select(data)

    opened = files.open_series(str(path))
    try:
        part = file_ranges.FileRange(opened, wire_time(first).encode(), last)
        lines = [each for found in part.read(files.Select(count)) for each in found]
        assert part.done == part.total
    finally:
        opened.close()
    seconds = [int(each.partition(b'"seq":')[2].partition(b",")[0]) for each in lines]
    return seconds, read


@pytest.mark.parametrize(
    ("since", "until"),
    [(0, 10), (990, 1_010), (1_999, 2_000), (2_500, 2_900), (4_000, 4_000),
     (4_990, 9_000), (0, COUNT), (COUNT + 1, COUNT + 2), (100, 4_900)],
)  # fmt: skip
def test_a_range_has_all_its_records(series: Path, since: int, until: int) -> None:
    """In order, whatever files they are in."""
    seconds, _ = _found(series, since, until)
    assert seconds == list(range(since, min(until + 1, COUNT)))


def test_a_short_range_is_found_without_reading_all(series: Path) -> None:
    """Neither what is before it nor what is after it."""
    _, read = _found(series, 3_000, 3_010)
    assert read < 1 << 20
    _, read = _found(series, 1_200, 1_210)
    assert read < 2 << 20


def test_a_record_that_came_late_is_in_the_range(tmp_path: Path) -> None:
    """Up to a minute after its time."""
    path = tmp_path / "app.log"
    late = line(100, seq=100, late=True)
    path.write_bytes(_text(0, 150) + late + _text(150, 3_000))
    seconds, _ = _found(path, 99, 101)
    assert seconds == [99, 100, 101, 100]


def test_a_last_line_without_its_newline_is_within(tmp_path: Path) -> None:
    """Of a file whose writer was killed."""
    path = tmp_path / "app.log"
    path.write_bytes(_text(0, 5).rstrip(b"\n"))
    assert _found(path, 0, 10)[0] == [0, 1, 2, 3, 4]
