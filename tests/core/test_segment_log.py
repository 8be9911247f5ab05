"""The log on disk of what waits: nothing is lost by a kill, room is given back."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from logagg import segment_log
from logagg.core.line import record_id, sort_key
from logagg.segment_log import SegmentLog
from logagg.spool_directory import snapshot

ROOM = 1 << 20
LINES = st.lists(
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"") + b"\n"),
    max_size=8,
)


def content(log: SegmentLog) -> bytes:
    """Everything that is not consumed."""
    position, parts = log.start, []
    while position < log.end:
        position, data = log.read(position, 64)
        if not data:
            break
        parts.append(data)
        position += len(data)
    return b"".join(parts)


def segments(folder: Path) -> list[Path]:
    """The files of a log's segments, in order."""
    return sorted(folder.glob("*.ndjson"))


def die(log: SegmentLog) -> None:
    """Let go of a log as the kernel does for a killed process: nothing is tidied."""
    log._release()


class Consuming(RuleBasedStateMachine):
    """A log beside a list of lines, with closing, death and a full disk at any step."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.held: list[bytes] = []
        self.keep = False
        self.log = self.opened()

    def opened(self) -> SegmentLog:
        folder = self.base / "0"
        return SegmentLog(folder, 500, segment_bytes=64, keep_newest=self.keep)

    @rule(lines=LINES)
    def append(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        fits = not self.held or len(b"".join(self.held)) + len(data) <= 500
        assert self.log.append(data, len(lines)) is fits
        if fits:
            self.held += lines

    @rule(lines=LINES.filter(bool), written=st.integers(0, 40))
    def append_to_a_full_disk(self, lines: list[bytes], written: int) -> None:
        """A write that fails after some bytes adds nothing."""
        data = b"".join(lines)
        if self.held and len(b"".join(self.held)) + len(data) > 500:
            return
        real = os.pwrite

        def pwrite(descriptor: int, part: bytes, position: int) -> int:
            nonlocal written
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            done = real(descriptor, bytes(part)[:written], position)
            written -= done
            return done

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segment_log.os, "pwrite", pwrite)
            try:
                self.log.append(data, len(lines))
            except OSError:
                return
        self.held += lines

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.held)))
        gone, self.held = self.held[:number], self.held[number:]
        self.log.done(self.log.start + len(b"".join(gone)), number)

    @rule(keep=st.booleans())
    def close_and_reopen(self, keep: bool) -> None:
        self.keep = keep
        identifier = self.log.id if self.held else None
        self.log.close()
        assert (self.base / "0").exists() is bool(self.held)
        self.log = self.opened()
        assert identifier in (None, self.log.id)

    @rule(keep=st.booleans())
    def die_and_reopen(self, keep: bool) -> None:
        self.keep = keep
        start, identifier = self.log.start, self.log.id
        die(self.log)
        self.log = self.opened()
        assert (self.log.start, self.log.id) == (start, identifier)

    @rule(line=st.binary(min_size=1, max_size=30), keep=st.booleans())
    def die_in_a_write(self, line: bytes, keep: bool) -> None:
        """The process was killed after a part of a line was written."""
        self.keep = keep
        self.log.append(b"", 0)
        die(self.log)
        torn = line.replace(b"\n", b"x")
        found = segments(self.base / "0")
        if found:
            with open(found[-1], "ab") as file:
                file.write(torn)
        self.log = self.opened()
        assert self.log.torn == bool(found)

    @invariant()
    def the_log_is_the_list(self) -> None:
        assert content(self.log) == b"".join(self.held)
        assert self.log.records == len(self.held)
        assert self.log.size_bytes == len(b"".join(self.held))
        seen = snapshot(self.base / "0")
        assert (seen.records, seen.size_bytes) == (len(self.held), self.log.size_bytes)
        assert seen.user == os.getpid()

    @invariant()
    def the_disk_holds_little_more_than_what_waits(self) -> None:
        files = segments(self.base / "0")
        extra = 64 + 8 * 41  # a segment and the batch that made it larger
        used = sum(path.stat().st_size for path in files)
        assert used <= self.log.size_bytes + extra
        if not self.held and not self.keep:
            assert used == 0

    def teardown(self) -> None:
        self.log.close()
        shutil.rmtree(self.base, ignore_errors=True)


TestConsuming = Consuming.TestCase
TestConsuming.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None
)

Make = Callable[..., SegmentLog]


@pytest.fixture(params=["named", "unnamed", "memory"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes an empty log of each kind."""
    made: list[SegmentLog] = []

    def make(limit: int = ROOM) -> SegmentLog:
        if request.param == "memory":
            log = SegmentLog(None, limit)
        elif request.param == "unnamed":
            log = SegmentLog(tmp_path, limit, named=False)
        else:
            log = SegmentLog(tmp_path / f"log{len(made)}", limit)
        made.append(log)
        return log

    yield make
    for log in made:
        log.close()


def test_what_was_put_in_comes_out(fresh: Make) -> None:
    """Lines come out whole and in order, and are gone once they are consumed."""
    log = fresh()
    assert log.append(b"one\ntwo\n", 2)
    assert log.append(b"three\n", 1)

    assert content(log) == b"one\ntwo\nthree\n"
    log.done(8, 2)
    assert (log.records, content(log)) == (1, b"three\n")
    assert log.drop() == 1
    assert (log.records, content(log)) == (0, b"")


def test_a_full_log_refuses(fresh: Make) -> None:
    """What does not fit is refused whole; any batch fits into an empty log."""
    log = fresh(10)
    assert log.append(b"x" * 20 + b"\n", 1)
    assert not log.append(b"y\n", 1)
    log.done(21, 1)
    assert log.append(b"y\n", 1)

    assert content(log) == b"y\n"


def test_a_log_without_a_name_leaves_nothing(tmp_path: Path) -> None:
    """Its files are not to be found, while it is used and afterwards."""
    log = SegmentLog(tmp_path, ROOM, named=False)
    log.append(b"one\n", 1)

    assert list(tmp_path.iterdir()) == []
    log.close()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(lines=LINES, cut_off=st.integers(0, 60), junk=st.binary(max_size=30))
def test_a_damaged_tail_costs_what_was_damaged(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    cut_off: int,
    junk: bytes,
) -> None:
    """However the end of the file is damaged, whole lines before it are kept."""
    folder = tmp_path_factory.mktemp("log") / "0"
    log = SegmentLog(folder, ROOM)
    log.append(b"first\n" + b"".join(lines), 1 + len(lines))
    log.close()
    (segment,) = segments(folder)
    whole = segment.read_bytes()
    kept = whole[: max(6, len(whole) - cut_off)]
    segment.write_bytes(kept + junk)

    log = SegmentLog(folder, ROOM)
    try:
        found = content(log)
        assert found.startswith(kept[: kept.rfind(b"\n") + 1])
        assert found == (kept + junk)[: (kept + junk).rfind(b"\n") + 1]
        assert log.records == found.count(b"\n")
        log.append(b"next\n", 1)
        assert content(log) == found + b"next\n"
    finally:
        log.close()


def test_a_damaged_cursor_delivers_again_rather_than_loses(tmp_path: Path) -> None:
    """Without a cursor that makes sense, everything that is on disk is there."""
    log = SegmentLog(tmp_path / "0", ROOM)
    log.append(b"one\ntwo\n", 2)
    log.done(4, 1)
    log.close()
    (tmp_path / "0" / "cursor").write_bytes(b"\0" * 64)

    log = SegmentLog(tmp_path / "0", ROOM)
    assert content(log) == b"one\ntwo\n"
    log.close()


@pytest.mark.parametrize("reopened", [False, True])
def test_a_missing_segment_is_a_hole(tmp_path: Path, reopened: bool) -> None:
    """When a file in the middle was removed, what comes after it is delivered."""
    log = SegmentLog(tmp_path / "0", ROOM, segment_bytes=1)
    for line in (b"one\n", b"two\n", b"three\n"):
        log.append(line, 1)
    if reopened:
        log.close()
    segments(tmp_path / "0")[1].unlink()
    if reopened:
        log = SegmentLog(tmp_path / "0", ROOM)
        assert log.records == 2

    assert content(log) == b"one\nthree\n"
    log.close()


def test_consumed_segments_are_removed(tmp_path: Path) -> None:
    """Disk space comes back as records are consumed, all of it at the end."""
    log = SegmentLog(tmp_path / "0", ROOM, segment_bytes=100)
    for _ in range(50):
        log.append(b"x" * 49 + b"\n", 1)
    log.done(2000, 40)

    held = sum(path.stat().st_size for path in segments(tmp_path / "0"))
    assert held <= 10 * 50 + 100
    log.drop()
    assert segments(tmp_path / "0") == []
    log.close()


def test_a_full_disk_recovers_by_the_room_of_what_is_consumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the newest segment goes, though it was kept to know what came last."""
    log = SegmentLog(tmp_path / "0", ROOM, keep_newest=True)
    log.append(b"x" * 100 + b"\n", 1)
    log.drop()
    assert len(segments(tmp_path / "0")) == 1
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, position: int) -> int:
        used = sum(path.stat().st_size for path in segments(tmp_path / "0"))
        if used + len(data) > 150:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert log.append(b"y" * 100 + b"\n", 1)
    with pytest.raises(OSError, match="No space"):
        log.append(b"z" * 100 + b"\n", 1)

    assert content(log) == b"y" * 100 + b"\n"
    log.close()


def test_a_log_has_one_user(tmp_path: Path) -> None:
    """A second user of the same log is refused, and sees who has it."""
    log = SegmentLog(tmp_path / "0", ROOM)
    with pytest.raises(BlockingIOError):
        SegmentLog(tmp_path / "0", ROOM)
    assert snapshot(tmp_path / "0").user == os.getpid()
    log.close()
    assert not (tmp_path / "0").exists()


def test_errors_that_pass_are_raised_as_they_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor left is no empty log."""
    log = SegmentLog(tmp_path / "0", ROOM)
    log.append(b"one\n", 1)
    die(log)
    real = os.open

    def scarce(path: str | Path, *rest: int, **more: int) -> int:
        if str(path).endswith(".ndjson"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", scarce)
    with pytest.raises(OSError, match="Too many open files"):
        SegmentLog(tmp_path / "0", ROOM)
    monkeypatch.undo()

    log = SegmentLog(tmp_path / "0", ROOM)
    assert content(log) == b"one\n"
    log.close()


def test_a_full_disk_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails in the middle is taken back whole, even by a successor."""
    log = SegmentLog(tmp_path / "0", ROOM)
    log.append(b"one\n", 1)
    real = os.pwrite

    def short(descriptor: int, data: bytes, position: int) -> int:
        if len(data) > 3:
            return real(descriptor, bytes(data)[:3], position)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", short)
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match="No space"):
        log.append(b"two\nrest\n", 2)
    monkeypatch.undo()
    log.append(b"three\n", 1)

    assert content(log) == b"one\nthree\n"
    die(log)
    log = SegmentLog(tmp_path / "0", ROOM)
    assert content(log) == b"one\nthree\n"
    assert log.records == 2
    log.close()


def test_a_cursor_that_is_torn_is_the_one_before(tmp_path: Path) -> None:
    """A write that a kill cut in the middle makes no other position."""
    log = SegmentLog(tmp_path / "0", ROOM)
    log.append(b"one\ntwo\nthree\n", 3)
    log.done(4, 1)
    before = (tmp_path / "0" / "cursor").read_bytes()
    log.done(8, 1)
    after = (tmp_path / "0" / "cursor").read_bytes()
    identifier = log.id
    die(log)
    changed = [
        at for at in range(len(after)) if before[at : at + 1] != after[at : at + 1]
    ]

    for cut in range(changed[0], changed[-1] + 2):
        (tmp_path / "0" / "cursor").write_bytes(after[:cut] + before[cut:])
        log = SegmentLog(tmp_path / "0", ROOM)
        assert log.start in (4, 8)
        assert (log.start == 8) == (cut > changed[-1])
        assert log.id == identifier
        die(log)


def test_a_first_write_that_stays_does_not_block_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment of which nothing counts is made anew."""
    log = SegmentLog(tmp_path / "0", ROOM, segment_bytes=4)
    log.append(b"one\n", 1)
    real = os.pwrite

    def short(descriptor: int, data: bytes, position: int) -> int:
        if len(data) > 1:
            return real(descriptor, bytes(data)[:1], position)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", short)
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match="No space"):
        log.append(b"two\n", 1)
    monkeypatch.undo()
    log.append(b"three\n", 1)

    assert content(log) == b"one\nthree\n"
    die(log)
    log = SegmentLog(tmp_path / "0", ROOM)
    assert content(log) == b"one\nthree\n"
    log.close()


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    """A file that somebody replaced by a link is refused."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "cursor").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic"):
        SegmentLog(tmp_path / "0", ROOM)
    assert not (tmp_path / "elsewhere").exists()


def test_the_batch_in_hand_is_known_to_a_successor(tmp_path: Path) -> None:
    """It sends the same batch again, under the same name."""
    log = SegmentLog(tmp_path / "0", ROOM)
    log.append(b"one\ntwo\nthree\n", 3)
    log.begin(8)
    identifier = log.id
    die(log)

    log = SegmentLog(tmp_path / "0", ROOM)
    assert (log.until, log.id) == (8, identifier)
    log.done(8, 2)
    die(log)
    log = SegmentLog(tmp_path / "0", ROOM)
    assert log.until == 0
    log.close()


def test_ids_since_an_instant_are_those_that_wait_and_those_that_came_last(
    tmp_path: Path,
) -> None:
    """What was consumed last is known too, while the newest segment is kept."""
    log = SegmentLog(tmp_path / "0", ROOM, keep_newest=True)
    lines = [support.wire_line(10**18 + n, n) + b"}" for n in range(10)]
    log.append(b"\n".join([*lines, b""]), 10)
    log.drop()

    found = log.record_ids(sort_key(10**18 + 4))

    assert found == {record_id(line) for line in lines[4:]}
    log.close()


def test_ids_are_bounded_and_of_the_newest_records(
    fresh: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool of any size costs no more memory than its newest half million ids."""
    monkeypatch.setattr("logagg.segment_log._MOST_IDS", 20)
    log = fresh()
    log._segment_bytes = 400
    lines = [support.wire_line(10**18 + n, n) + b"}\n" for n in range(300)]
    for line in lines:
        log.append(line, 1)

    found = log.record_ids(b"")

    assert 20 <= len(found) < 40
    assert found == {record_id(line) for line in lines[-len(found) :]}
    log.close()


def test_ids_are_read_in_a_thread_while_another_consumes(fresh: Make) -> None:
    """Neither sees an error, a wrong byte, or the other's place in the file."""
    log = fresh()
    log._segment_bytes = 400
    lines = [support.wire_line(10**18 + n, n) + b"}\n" for n in range(300)]
    for line in lines:
        log.append(line, 1)
    known = {record_id(line) for line in lines}
    consumed = threading.Event()

    def ask() -> int:
        asked = 0
        while not consumed.is_set():
            assert log.record_ids(b"") <= known
            asked += 1
        return asked

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        for line in lines:
            position, data = log.read(log.start, len(line))
            assert data == line
            log.done(position + len(line), 1)
        consumed.set()
        assert asking.result(60)
