"""Following a file through rotations that happen in the middle of a look."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from logagg.view import files, follow


def rotate(log: Path, *, compress: bool = False) -> None:
    """What logrotate does: every file one number on, a fresh one in its place."""
    for number in range(9, 0, -1):
        for suffix in ("", ".gz"):
            old = log.with_name(f"{log.name}.{number}{suffix}")
            if old.exists():
                old.rename(log.with_name(f"{log.name}.{number + 1}{suffix}"))
    if compress:
        log.with_name(f"{log.name}.1.gz").write_bytes(gzip.compress(log.read_bytes()))
        log.unlink()
    else:
        log.rename(log.with_name(f"{log.name}.1"))
    log.touch()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("meanwhile", [0, 1, 3])
def test_files_that_move_while_they_are_listed_come_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: int, compress: bool
) -> None:
    """Further rotations between two looks at names: each line once, in order."""
    log = tmp_path / "app.log"
    log.write_bytes(b"line 0\n")
    series = files.open_series(str(log), follow=True)
    series.end = 0
    select: Any = lambda data: data.splitlines()  # noqa: E731
    follower = follow.Follower(series, select, print)
    found = follower.poll()
    count = 1
    for _ in range(3):
        rotate(log, compress=compress)
        log.write_bytes(b"line %d\n" % count)
        count += 1

    real, left = follow._is, meanwhile

    def moving(*arguments: Any) -> bool:
        nonlocal left, count
        if left:
            left -= 1
            rotate(log, compress=compress)
            log.write_bytes(b"line %d\n" % count)
            count += 1
        return real(*arguments)

    monkeypatch.setattr(follow, "_is", moving)
    for _ in range(3):
        found += follower.poll()
    follower.close()

    assert found == [b"line %d" % n for n in range(count)]


@pytest.mark.parametrize("odd", ["a directory", "names that never stand still"])
def test_what_cannot_be_read_among_the_rotated_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    """Following goes on, and the lines that can be read come."""
    log = tmp_path / "app.log"
    log.write_bytes(b"line 0\n")
    series = files.open_series(str(log), follow=True)
    series.end = 0
    select: Any = lambda data: data.splitlines()  # noqa: E731
    follower = follow.Follower(series, select, print)
    found = follower.poll()
    for number in (1, 2):
        rotate(log)
        log.write_bytes(b"line %d\n" % number)

    real = follow._is

    def moving(*arguments: Any) -> bool:
        if "still" in odd:
            rotate(log)
        return real(*arguments)

    if "still" not in odd:
        log.with_name("app.log.2").rename(log.with_name("app.log.3"))
        log.with_name("app.log.1").rename(log.with_name("app.log.2"))
        log.with_name("app.log.1").mkdir()
    monkeypatch.setattr(follow, "_is", moving)
    for _ in range(2):
        found += follower.poll()
    monkeypatch.undo()
    log.write_bytes(b"line 3\n")
    found += follower.poll()
    follower.close()

    assert found[0] == b"line 0"
    assert found[-1] == b"line 3"
    if odd == "a directory":
        assert found == [b"line 0", b"line 1", b"line 2", b"line 3"]
