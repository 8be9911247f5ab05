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
def test_files_that_move_on_while_they_are_looked_at_come_once(
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
