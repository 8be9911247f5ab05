"""A big file is searched on all cores: the same lines, in the same order, come what may."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logagg.view import file_ranges, files, parallel


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 64 bytes, any file big enough, no line longer than 1,000 bytes."""
    monkeypatch.setattr(parallel, "PIECE_BYTES", 64)
    monkeypatch.setattr(parallel, "LEAST_BYTES", 0)
    monkeypatch.setattr(parallel, "_LONGEST_BYTES", 1000)
    monkeypatch.setattr(parallel, "helpers", lambda: 3)


def _odd(data: bytes) -> list[bytes]:
    """Lines of odd length."""
    return [line for line in data.split(b"\n") if len(line) % 2]


def _read(path: Path, lines: Any = _odd) -> list[bytes]:
    series = files.open_series(str(path))
    try:
        batches = list(file_ranges.all_lines(series, files.Select(lines, spread=True)))
    finally:
        series.close()
    return [line for batch in batches for line in batch]


def _no_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(
        st.sampled_from([1, 2, 31, 62, 63, 64, 65, 127, 300, 1500]), max_size=30
    ),
    ended=st.booleans(),
)
def test_pieces_together_are_the_whole(
    small: None, tmp_path: Path, sizes: list[int], ended: bool
) -> None:
    """Lines of any length, also longer than a helper holds, with and without an end."""
    lines = [b"%c" % (97 + number % 26) * size for number, size in enumerate(sizes)]
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    path = tmp_path / "app.log"
    path.write_bytes(data)

    assert _read(path) == _odd(data)
    assert _no_children()


def test_a_helper_that_dies_costs_no_line(small: None, tmp_path: Path) -> None:
    """Killed at some piece: the reader goes on by itself, nothing twice."""
    data = b"".join(b"line %d\n" % number for number in range(2000))
    path = tmp_path / "app.log"
    path.write_bytes(data)
    reader = os.getpid()

    def dying(chunk: bytes) -> list[bytes]:
        if os.getpid() != reader and b"line 999" in chunk:
            os.kill(os.getpid(), signal.SIGKILL)
        return _odd(chunk)

    assert _read(path, dying) == _odd(data)
    assert _no_children()


def test_helpers_end_with_their_reader(small: None, tmp_path: Path) -> None:
    """Who reads stops in the middle: no helper is left, none waits for ever."""
    path = tmp_path / "app.log"
    path.write_bytes(b"x\n" * 100_000)
    series = files.open_series(str(path))
    batches = file_ranges.all_lines(series, files.Select(_odd, spread=True))

    assert next(batches)
    batches.close()  # type: ignore[attr-defined]
    series.close()

    assert _no_children()


def test_helpers_really_work(small: None, tmp_path: Path) -> None:
    """More than one process selects."""
    path = tmp_path / "app.log"
    path.write_bytes(b"x\n" * 1000)

    pids = set(_read(path, lambda data: [b"%d" % os.getpid()] if data else []))

    assert len(pids) >= 3
    assert b"%d" % os.getpid() not in pids


def test_a_small_file_is_read_without_helpers(tmp_path: Path) -> None:
    """To start helpers for a moment's work would cost more than it gives."""
    path = tmp_path / "app.log"
    path.write_bytes(b"x\n" * 1000)

    assert set(_read(path, lambda data: [b"%d" % os.getpid()])) == {b"%d" % os.getpid()}
