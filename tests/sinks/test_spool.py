"""Records that wait on disk: nothing is lost by a kill, a torn tail costs one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from logagg.spool_cli import dlq, find, put_back, rows, spool
from logagg.testing import make_line
from logagg_sinks._ages import Ages
from logagg_sinks._batching import Item, cut, load, shorten
from logagg_sinks._ledger import Ledger
from logagg_sinks._spool import DiskSpool, MemorySpool, SpoolFullError

LINES = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"") + b"\n"))


def content(spool):
    """Everything that is in a spool."""
    position, parts = spool.start, []
    while position < spool.end:
        position, data = spool.read(position, 64)
        if not data:
            break
        parts.append(data)
        position += len(data)
    return b"".join(parts)


@pytest.fixture(params=["disk", "memory"])
def fresh(request, tmp_path):
    """Makes an empty spool."""
    made = []

    def make(most=1 << 20, **options):
        if request.param == "memory":
            return MemorySpool(most)
        made.append(DiskSpool(tmp_path / f"s{len(made)}", most, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# The spool


def test_what_was_put_in_comes_out(fresh):
    """Lines come out whole and in order, and are gone once they are done."""
    spool = fresh()
    spool.append(b"one\ntwo\n", 2)
    spool.append(b"three\n", 1)

    assert content(spool) == b"one\ntwo\nthree\n"
    spool.done(8, 2)
    assert (spool.records, content(spool)) == (1, b"three\n")


def test_a_full_spool_refuses(fresh):
    """What does not fit is refused whole; any batch fits into an empty spool."""
    spool = fresh(10)
    spool.append(b"x" * 20 + b"\n", 1)
    with pytest.raises(SpoolFullError):
        spool.append(b"y\n", 1)
    spool.done(21, 1)
    spool.append(b"y\n", 1)

    assert content(spool) == b"y\n"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_history_survives_reopening(tmp_path_factory, data):
    """However lines come and go, and whenever it is reopened, the rest is there."""
    folder = tmp_path_factory.mktemp("spool") / "0"
    spool = DiskSpool(folder, 1 << 20, segment_bytes=64)
    held: list[bytes] = []
    try:
        for _ in range(data.draw(st.integers(1, 12))):
            step = data.draw(st.sampled_from(["add", "add", "done", "reopen"]))
            if step == "add":
                lines = data.draw(LINES)
                spool.append(b"".join(lines), len(lines))
                held += lines
            elif step == "done":
                number = data.draw(st.integers(0, len(held)))
                gone, held = held[:number], held[number:]
                spool.done(spool.start + len(b"".join(gone)), number)
            else:
                spool.close()
                spool = DiskSpool(folder, 1 << 20, segment_bytes=64)
            assert spool.records == len(held)
            assert content(spool) == b"".join(held)
    finally:
        spool.close()


@settings(max_examples=60, deadline=None)
@given(lines=LINES, cut_off=st.integers(0, 60), junk=st.binary(max_size=30))
def test_a_damaged_tail_costs_what_was_damaged(tmp_path_factory, lines, cut_off, junk):
    """However the end of the file is damaged, whole lines before it are kept."""
    folder = tmp_path_factory.mktemp("spool") / "0"
    spool = DiskSpool(folder, 1 << 20)
    spool.append(b"first\n" + b"".join(lines), 1 + len(lines))
    spool.close()
    (segment,) = folder.glob("*.ndjson")
    whole = segment.read_bytes()
    kept = whole[: max(6, len(whole) - cut_off)]
    segment.write_bytes(kept + junk)

    spool = DiskSpool(folder, 1 << 20)
    try:
        found = content(spool)
        assert found.startswith(kept[: kept.rfind(b"\n") + 1])
        assert found == (kept + junk)[: (kept + junk).rfind(b"\n") + 1]
        assert spool.records == found.count(b"\n")
        spool.append(b"next\n", 1)
        assert content(spool) == found + b"next\n"
    finally:
        spool.close()


def test_a_damaged_cursor_sends_again_rather_than_loses(tmp_path):
    """Without a cursor that makes sense, everything that is on disk is sent."""
    spool = DiskSpool(tmp_path / "0", 1 << 20)
    spool.append(b"one\ntwo\n", 2)
    spool.done(4, 1)
    spool.close()
    (tmp_path / "0" / "cursor").write_bytes(b"\0" * 64)

    spool = DiskSpool(tmp_path / "0", 1 << 20)
    assert content(spool) == b"one\ntwo\n"
    spool.close()


def test_a_missing_segment_is_a_hole(tmp_path):
    """When a file in the middle was removed, what is behind it is still delivered."""
    spool = DiskSpool(tmp_path / "0", 1 << 20, segment_bytes=1)
    for line in (b"one\n", b"two\n", b"three\n"):
        spool.append(line, 1)
    spool.close()
    sorted((tmp_path / "0").glob("*.ndjson"))[1].unlink()

    spool = DiskSpool(tmp_path / "0", 1 << 20)
    assert content(spool) == b"one\nthree\n"
    assert spool.records == 2
    spool.close()


def test_delivered_segments_are_removed(tmp_path):
    """Disk space comes back as records are delivered."""
    spool = DiskSpool(tmp_path / "0", 1 << 20, segment_bytes=100)
    for _ in range(50):
        spool.append(b"x" * 49 + b"\n", 1)
    spool.done(2000, 40)

    held = sum(path.stat().st_size for path in (tmp_path / "0").glob("*.ndjson"))
    assert held <= 10 * 50 + 100
    spool.close()


def test_a_spool_has_one_user(tmp_path):
    """A second user of the same spool is refused."""
    spool = DiskSpool(tmp_path / "0", 1 << 20)
    with pytest.raises(BlockingIOError):
        DiskSpool(tmp_path / "0", 1 << 20)
    spool.close()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    """A write that fails in the middle is taken back whole."""
    spool = DiskSpool(tmp_path / "0", 1 << 20)
    spool.append(b"one\n", 1)
    real = os.write

    def short(descriptor, data):
        if len(data) > 3:
            return real(descriptor, bytes(data)[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space"):
        spool.append(b"twotwo\n", 1)
    monkeypatch.undo()
    spool.append(b"three\n", 1)

    assert content(spool) == b"one\nthree\n"
    assert spool.records == 2
    spool.close()


def test_a_symlink_is_not_followed(tmp_path):
    """A spool's file that somebody replaced by a link is refused."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "cursor").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic"):
        DiskSpool(tmp_path / "0", 1 << 20)
    assert not (tmp_path / "elsewhere").exists()


# Batching


def plain(line):
    """Encode a line as itself; `!` is no record."""
    if line.startswith(b"!"):
        raise ValueError("it begins with !")
    return line, b"", len(line) + 1


@given(LINES, st.integers(1, 10), st.integers(1, 100), st.integers(0, 1000))
def test_batches_cover_every_line_within_the_limits(lines, records, size, start):
    """Batch after batch, each line is in exactly one place, in order, within limits."""
    data = b"".join(lines)
    position, seen = start, []
    while position < start + len(data):
        batch = load(
            data[position - start :], position, plain, records=records, body_bytes=size
        )
        assert batch.end > position
        assert len(batch.items) <= records
        total = sum(item.size for item in batch.items)
        assert total <= size or len(batch.items) == 1
        found = [(item.end, item.line) for item in batch.items]
        found += [(end, line) for end, line, _ in batch.refused]
        seen += [line for _, line in sorted(found)]
        assert max(end for end, _ in found) == batch.end
        position = batch.end
    assert seen == [line[:-1].lstrip(b"\0") for line in lines]


@given(LINES, st.integers(0, 20))
def test_a_batch_that_was_tried_is_the_same_again(lines, number):
    """With its old end a batch has the same records, whatever the limits are now."""
    data = b"".join(lines)
    until = len(b"".join(lines[:number]))
    batch = load(data, 0, plain, records=1, body_bytes=1, until=until)

    assert len(batch.items) + len(batch.refused) == min(number, len(lines))
    assert batch.end == until


@given(st.integers(2, 100))
def test_halves_are_all_of_it_in_order(number):
    """Two halves put together are the whole, and both are smaller."""
    items = [Item(index, b"", b"", b"", 1) for index in range(number)]
    left, right = cut(items)

    assert left + right == items
    assert 0 < len(right) <= len(left) < number


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=3000)


@given(st.dictionaries(st.text(max_size=5).map("x{}".format), TEXT, max_size=5), TEXT)
def test_a_long_record_is_cut_to_size(extra, message):
    """Whatever is long in it, a record is cut to the limit and stays a record."""
    line = make_line(7, message=message, **_encodable(extra)) + b"}"
    short = shorten(line, 1024)

    assert len(short) <= 1024
    record = orjson.loads(short)
    assert record["seq"] == 7
    assert record["timestamp"] == orjson.loads(line)["timestamp"]
    if len(line) > 1024:
        assert "…[truncated " in short.decode()
    else:
        assert short == line


def _encodable(extra):
    return {
        key.encode("utf-8", "replace").decode(): value for key, value in extra.items()
    }


@given(st.lists(st.integers(1, 1000), unique=True), st.randoms())
def test_the_ledger_moves_over_settled_records_only(ends, random):
    """In whatever order records are settled, the position never passes an open one."""
    ledger = Ledger(ends)
    order = list(ends)
    random.shuffle(order)
    settled, total = set(), 0
    for end in order:
        settled.add(end)
        moved = ledger.settle([end])
        if moved is not None:
            position, records = moved
            total += records
            assert all(other in settled for other in ends if other <= position)
    assert total == len(ends)


def test_the_age_of_what_waits():
    """A record is due when it has waited long enough, not before, and not twice so."""
    ages = Ages(8.0)
    ages.note(10, 100.0)
    ages.note(20, 100.5)  # within an eighth: the same mark
    ages.note(30, 104.0)

    assert ages.left(0, 30, 100.0) == 8
    assert ages.left(0, 30, 107.0) == 1
    assert ages.left(10, 30, 107.0) == 5
    assert ages.left(30, 30, 107.0) == 0


# Killed


WRITER = """
import asyncio, sys
from logagg.sinks import build
from logagg.testing import make_batch

async def main():
    sink = build(sys.argv[1]).sink
    await sink.open()
    number = 0
    while True:
        await sink.write(make_batch(7, start=number))
        number += 7
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("reachable", [False, True])
def test_a_killed_process_loses_nothing_that_was_accepted(
    target, tmp_path, tools, reachable
):
    """After `kill -9` the next process delivers all that `write` returned from."""
    url = target.url if reachable else "http://127.0.0.1:9"
    options = f"batch_records=50&batch_age=0.01&max_age=0&spool={tmp_path / 's'}"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, f"{url}/in?{options}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    accepted = 0
    while accepted < 3000:
        accepted = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    accepted = max([accepted, *(int(text) for text in rest if text)])
    process.wait()
    process.stdout.close()
    before = len(target.seen)

    runner = CliRunner()
    arguments = ["replay", "s", "--dir", str(tmp_path)]
    arguments += ["--sink", f"{target.url}/in?batch_records=50&max_age=0"]
    result = runner.invoke(spool, arguments)
    assert result.exit_code == 0, result.output
    assert ", 0 left" in result.output

    seqs = [seq for seen in target.seen for seq in seen.seqs]
    first = list(dict.fromkeys(seqs))
    assert first == list(range(len(first)))
    assert len(first) >= accepted
    # At most the batch that was under way came twice, as the same request.
    assert len(seqs) - len(first) <= 50
    if len(seqs) > len(first):
        again, once = target.seen[before], target.seen[before - 1]
        assert again.headers["idempotency-key"] == once.headers["idempotency-key"]
        assert again.body == once.body


# Commands


@pytest.fixture
def parked(tmp_path, monkeypatch):
    """A sink's directory in the state directory, with three records waiting."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "logagg" / "sinks" / "http-h-0123456789"
    waiting = DiskSpool(folder / "0", 1 << 20)
    for number in range(3):
        waiting.append(make_line(number) + b"}\n", 1)
    waiting.close()
    (folder / "url").write_text("http://127.0.0.1:9/in\n")
    folder.chmod(0o700)
    return folder


def run(group, *arguments, **options):
    """Run a command."""
    return CliRunner().invoke(group, list(arguments), **options)


def test_ls_shows_what_waits(parked):
    """`spool ls` names sink, number, age and dead letters, also as JSON."""
    (parked / "dead-letters-0.ndjson").write_bytes(b'{"record":{}}\n' * 2)

    text = run(spool, "ls").output
    row = orjson.loads(run(spool, "ls", "--json").output)

    assert "http-h-0123456789" in text
    assert "3 records" in text
    assert "since 2026-11-25T01:00:00Z" in text
    assert row["records"] == 3
    assert row["dead_letters"] == 2
    assert row["users"] == []
    assert row["oldest"] == "2026-11-25T01:00:00.000000000Z"


def test_ls_of_nothing(tmp_path, monkeypatch):
    """`spool ls` says so when nothing is parked."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert run(spool, "ls").output == "nothing is parked\n"


def test_a_spool_in_use_is_shown_and_not_touched(parked):
    """A spool in use is neither dropped nor replayed, and the user's pid is said."""
    user = DiskSpool(parked / "0", 1 << 20)
    assert rows()[0].users == (os.getpid(),)
    for arguments in (("drop", "http", "--yes"), ("replay", "http")):
        result = run(spool, *arguments)
        assert result.exit_code != 0
        assert str(os.getpid()) in str(result.exception)
    assert user.records == 3
    user.close()


def test_drop_asks_first(parked):
    """`spool drop` throws away nothing without a yes."""
    assert run(spool, "drop", "http-h", input="n\n").exit_code == 1
    assert rows()[0].records == 3

    result = run(spool, "drop", "http-h", "--yes")

    assert "3 records dropped" in result.output
    assert rows() == []


def test_which_sink_must_be_said(parked):
    """Without a name or --all, or with a wrong name, nothing is done."""
    for arguments in (("drop",), ("drop", "nonsense"), ("drop", "http", "--all")):
        assert run(spool, *arguments).exit_code != 0
    assert rows()[0].records == 3


def test_replay_delivers(parked, target):
    """`spool replay` sends what waits, in order, and leaves nothing behind."""
    result = run(spool, "replay", "http", "--sink", f"{target.url}/in?max_age=0")

    assert result.exit_code == 0, result.output
    assert "3 records delivered, 0 left" in result.output
    assert target.seqs == [0, 1, 2]
    assert rows() == []


def test_replay_to_nobody_says_so(parked):
    """`spool replay` that cannot deliver keeps all, says why, and fails."""
    url = "http://127.0.0.1:9/in?max_age=0&grace=0"
    result = run(spool, "replay", "http", "--timeout", "0.3", "--sink", url)

    assert result.exit_code == 1
    assert "3 left: cannot connect" in result.output
    assert rows()[0].records == 3


def test_dead_letters_are_sent_again(parked, target):
    """`dlq replay` puts records back; what is no record stays a letter."""
    letters = parked / "dead-letters-0.ndjson"
    good = b'{"reason":"x","record":%b}\n' % (make_line(8) + b"}")
    letters.write_bytes(good + b'{"reason":"y","raw":"junk"}\n')
    letters.with_name(letters.name + ".1").write_bytes(
        b'{"reason":"x","record":%b}\n' % (make_line(7) + b"}")
    )

    result = run(dlq, "replay", "http")
    assert "2 records put back, 1 letters stay" in result.output
    assert letters.read_bytes() == b'{"reason":"y","raw":"junk"}\n'
    assert rows()[0].records == 5
    run(spool, "replay", "--all", "--sink", f"{target.url}/in?max_age=0")

    assert sorted(target.seqs) == [0, 1, 2, 7, 8]
    assert rows()[0].dead_letters == 1


def test_letters_of_a_killed_replay_are_not_lost(parked):
    """A replay that was killed half way is finished by the next one."""
    (parked / ".replaying-dead-letters-0.ndjson").write_bytes(
        b'{"record":%b}\n' % (make_line(7) + b"}")
    )
    assert put_back(find("http")) == (1, 0)
    assert rows()[0].records == 4


def test_a_running_sink_takes_an_inbox(target, tools, tmp_path):
    """Dead letters that are put back are sent by the process that runs."""
    import asyncio

    from logagg.sinks import build

    folder = tmp_path / "state" / "one"

    async def main():
        sink = build(f"{target.url}/in?batch_age=0.01&max_age=0&spool={folder}").sink
        async with tools.opened(sink):
            letters = folder / "dead-letters-0.ndjson"
            letters.write_bytes(b'{"record":%b}\n' % (make_line(7) + b"}"))
            records, _ = await asyncio.to_thread(put_back, find("one", folder.parent))
            assert records == 1
            await sink.reopen()
            await tools.until(lambda: sink.counters.get("acked") == 1)

    began = time.monotonic()
    asyncio.run(asyncio.wait_for(main(), 30))

    assert target.seqs == [7]
    assert time.monotonic() - began < 8
