"""Records that wait on disk: nothing is lost by a kill, a torn tail costs one line."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support import wait_until

from logagg.cli.put_back import put_back
from logagg.cli.spool import dlq, find, rows, spool
from logagg.segment_log import SegmentLog
from logagg.sinks import build
from logagg.spool_directory import INBOX, take_over
from logagg.testing import make_batch, make_line
from logagg_sinks.delivery.batching import Ages, Item, Ledger, cut, load, shorten
from logagg_sinks.delivery.condition import SinkState
from logagg_sinks.delivery.dead_letters import DeadLetters
from logagg_sinks.delivery.loader import RequestSize

LINES = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"") + b"\n"))


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


def test_a_record_of_many_small_fields_loses_the_last_ones():
    """There is no long text to cut: the first fields stay, and the others are counted."""
    line = make_line(7, **{f"k{number}": number for number in range(30_000)}) + b"}"
    record = orjson.loads(shorten(line, 64 * 1024))

    assert (record["seq"], record["message"], record["k0"]) == (7, "hello", 0)
    assert record["truncated_fields"] == 30_000 - sum(key[0] == "k" for key in record)
    assert len(orjson.dumps(record)) > 60 * 1024


def test_the_size_of_requests_recovers():
    """After a size was refused it is doubled again, more slowly where it is no use."""
    size = RequestSize(1 << 20)
    size.lower(1 << 18)
    size.lower(1 << 16)
    for _ in range(16 * 4):
        size.succeeded()
    assert size.limit == 1 << 20

    tries = 0
    for _ in range(2000):  # a target that never takes more than 64 KiB
        if size.limit > 1 << 16:
            size.lower(size.limit // 2)
            tries += 1
        size.succeeded()
    assert 5 < tries < 20


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
        moved = ledger.finalize([end])
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


def test_a_successor_sends_the_half_that_was_in_flight(target, tmp_path, tools):
    """Amid halving, too: the same request under the same key, whatever the batch was."""

    def judge(seen):
        return tools.Answer(413 if len(seen.seqs) > 4 else 503)

    target.default = judge
    url = f"{target.url}/in?batch_age=0.01&max_age=0&grace=0&spool={tmp_path / 's'}"

    async def main():
        sink = build(url).sink
        sink.sleep = lambda _: asyncio.sleep(3600)
        async with tools.opened(sink):
            await sink.write(make_batch(16))
            await tools.until(lambda: sink.health().state is SinkState.RETRYING)
        target.default = tools.Answer()
        async with tools.opened(build(url).sink) as sink:
            await tools.until(lambda: sink.counters.get("acked") == 16)

    asyncio.run(asyncio.wait_for(main(), 50))
    sizes = [len(seen.seqs) for seen in target.seen]
    failed = sizes.index(4)
    once, again = target.seen[failed], target.seen[sizes.index(4, failed + 1)]
    assert (once.seqs, once.body) == (again.seqs, again.body)
    assert once.headers["idempotency-key"] == again.headers["idempotency-key"]
    taken = [seq for seen in target.seen[failed + 1 :] for seq in seen.seqs]
    assert list(dict.fromkeys(taken)) == list(range(16))


# A spool and its successor


CLOSERS = """
import sys
from pathlib import Path
from logagg.spool_directory import claim, take_over, tidy

folder, mark, marks = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
number = 0
while not all((folder.parent / f"done-{each}").exists() for each in marks):
    log = claim(folder, "http://h", 1 << 20)
    assert log.records == 0, "the records of another one"
    assert log.append(f"{mark} {number}\\n".encode(), 1)
    position, data = log.read(log.start, 1000)
    assert data == f"{mark} {number}\\n".encode(), data
    assert (folder / "url").exists()
    log.done(log.end, 1)
    log.close()
    for left in take_over(folder):
        raise AssertionError("left behind")
    tidy(folder)
    number += 1
    if number == 100:
        (folder.parent / f"done-{mark}").touch()
"""


@pytest.mark.slow
def test_a_log_that_is_closed_leaves_its_successor_alone(tmp_path):
    """Four processes open, fill, empty and remove one directory's logs 100 times each."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLOSERS, str(tmp_path / "s"), mark, "abcd"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for mark in "abcd"
    ]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error


REPLAYS = """
import sys
from pathlib import Path
from logagg.cli.put_back import put_back
from logagg.cli.spool import find

folder = Path(sys.argv[1])
sys.stdin.readline()
while (line := sys.stdin.readline()):
    try:
        put_back(find(folder.name, folder.parent))
    except FileNotFoundError:
        pass
"""


def test_a_replay_waits_for_the_letter_that_is_being_written(tmp_path):
    """A writer holds the file's lock; what it writes under it is replayed as well."""
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    (folder / "url").write_text("http://h\n")
    path = folder / "dead-letters-0.ndjson"
    DeadLetters(path, 1 << 30).add([(make_line(0) + b"}", {"reason": "x"})])
    letter = path.read_bytes().replace(b'"seq":0', b'"seq":1')
    inode = f":{path.stat().st_ino} "

    def waits():
        locks = Path("/proc/locks").read_text().splitlines()
        return any("->" in line and inode in line for line in locks)

    with path.open("ab") as writer, ThreadPoolExecutor(1) as pool:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(letter[:40])
        writer.flush()
        replay = pool.submit(put_back, find("s", tmp_path))
        wait_until(lambda: waits() or replay.done())
        writer.write(letter[40:])
        writer.flush()
        fcntl.flock(writer, fcntl.LOCK_UN)
        assert replay.result() == (2, 0)


@pytest.mark.slow
def test_replays_at_once_have_each_letter_once(tmp_path):
    """Three replays while a sink writes letters, some killed: each record once, in all."""
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    (folder / "url").write_text("http://h\n")
    letters = DeadLetters(folder / "dead-letters-0.ndjson", 1 << 30)

    def start():
        command = [sys.executable, "-c", REPLAYS, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        process.stdin.write("\n" * 2000)
        process.stdin.flush()
        return process

    def stop(process):
        process.kill()
        process.wait()
        process.stdin.close()

    running = [start() for _ in range(3)]
    for number in range(600):
        letters.add([(make_line(number) + b"}", {"reason": "x"})])
        time.sleep(0.003)
        if number % 100 == 50:
            running.append(start())
            stop(running.pop(0))
    for process in running:
        stop(process)
    put_back(find("s", tmp_path))

    seqs = []
    for log in take_over(folder, INBOX):
        _, data = log.read(log.start, 1 << 20)
        seqs += [orjson.loads(line)["seq"] for line in data.splitlines()]
        log.close()
    assert sorted(seqs) == list(range(600))


def test_what_cannot_be_taken_over_now_is_left_to_others(tmp_path, monkeypatch):
    """An error with one log costs no other one, and leaves none locked."""
    for name in ("0", "1"):
        log = SegmentLog(tmp_path / name, 1 << 20)
        log.append(b"one\n", 1)
        log.close()
    real = os.open

    def scarce(path, *rest, **more):
        if str(path).endswith("1/lock"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", scarce)
    (found,) = take_over(tmp_path)
    found.close()
    monkeypatch.undo()
    found = take_over(tmp_path)
    assert len(found) == 2
    for log in found:
        log.close()


# Commands


@pytest.fixture
def spooled(tmp_path, monkeypatch):
    """A sink's directory in the state directory, with three records waiting."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "logagg" / "sinks" / "http-h-0123456789"
    waiting = SegmentLog(folder / "0", 1 << 20)
    for number in range(3):
        waiting.append(make_line(number) + b"}\n", 1)
    waiting.close()
    (folder / "url").write_text("http://127.0.0.1:9/in\n")
    folder.chmod(0o700)
    return folder


def run(group, *arguments, **options):
    """Run a command."""
    return CliRunner().invoke(group, list(arguments), **options)


def test_ls_shows_what_waits(spooled):
    """`spool ls` names sink, number, age and dead letters, also as JSON."""
    (spooled / "dead-letters-0.ndjson").write_bytes(b'{"record":{}}\n' * 2)

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
    """`spool ls` shows that nothing is spooled."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert run(spool, "ls").output == "nothing is spooled\n"


def test_a_spool_in_use_is_shown_and_not_touched(spooled):
    """A spool in use is neither dropped nor replayed, and the user's pid is said."""
    user = SegmentLog(spooled / "0", 1 << 20)
    assert rows()[0].users == (os.getpid(),)
    for arguments in (("drop", "http", "--yes"), ("replay", "http")):
        result = run(spool, *arguments)
        assert result.exit_code != 0
        assert str(os.getpid()) in str(result.exception)
    assert user.records == 3
    user.close()


def test_drop_asks_first(spooled):
    """`spool drop` throws away nothing without a yes."""
    assert run(spool, "drop", "http-h", input="n\n").exit_code == 1
    assert rows()[0].records == 3

    result = run(spool, "drop", "http-h", "--yes")

    assert "3 records dropped" in result.output
    assert rows() == []


def test_which_sink_must_be_said(spooled):
    """Without a name or --all, or with a wrong name, nothing is done."""
    for arguments in (("drop",), ("drop", "nonsense"), ("drop", "http", "--all")):
        assert run(spool, *arguments).exit_code != 0
    assert rows()[0].records == 3


def test_replay_delivers(spooled, target):
    """`spool replay` sends what waits, in order, and leaves nothing behind."""
    result = run(spool, "replay", "http", "--sink", f"{target.url}/in?max_age=0")

    assert result.exit_code == 0, result.output
    assert "3 records delivered, 0 left" in result.output
    assert target.seqs == [0, 1, 2]
    assert rows() == []


def test_replay_to_nobody_says_so(spooled):
    """`spool replay` that cannot deliver keeps all, says why, and fails."""
    url = "http://127.0.0.1:9/in?max_age=0&grace=0"
    result = run(spool, "replay", "http", "--timeout", "0.3", "--sink", url)

    assert result.exit_code == 1
    assert "3 left: cannot connect" in result.output
    assert rows()[0].records == 3


def test_dead_letters_are_sent_again(spooled, target):
    """`dlq replay` puts records back; what is no record stays a letter."""
    letters = spooled / "dead-letters-0.ndjson"
    good = b'{"reason":"x","record":%b}\n' % (make_line(8) + b"}")
    letters.write_bytes(good + b'{"reason":"y","raw":"junk"}\n')
    letters.with_name(letters.name + ".1").write_bytes(
        b'{"reason":"x","record":%b}\n' % (make_line(7) + b"}")
    )

    result = run(dlq, "replay", "http")
    assert "2 records put back, 1 letters stay" in result.output
    (rest,) = spooled.glob("dead-letters-*")
    assert rest.read_bytes() == b'{"reason":"y","raw":"junk"}\n'
    assert rest.stat().st_mode & 0o077 == 0
    assert rows()[0].records == 5
    run(spool, "replay", "--all", "--sink", f"{target.url}/in?max_age=0")

    assert sorted(target.seqs) == [0, 1, 2, 7, 8]
    assert rows()[0].dead_letters == 1


def test_a_running_sink_takes_an_inbox(target, tools, tmp_path):
    """Dead letters that are put back are sent by the process that runs."""
    folder = tmp_path / "state" / "one"

    async def main():
        sink = build(f"{target.url}/in?batch_age=0.01&max_age=0&spool={folder}").sink
        async with tools.opened(sink):
            letters = folder / "dead-letters-0.ndjson"
            letters.write_bytes(b'{"record":%b}\n' % (make_line(7) + b"}"))
            records, _ = await asyncio.to_thread(put_back, find("one", folder.parent))
            assert records == 1
            began = time.monotonic()
            await sink.reopen()
            await tools.until(lambda: sink.counters.get("acked") == 1)
            assert time.monotonic() - began < 8  # not when it looks by itself

    asyncio.run(asyncio.wait_for(main(), 50))

    assert target.seqs == [7]


# What the service spooled for a sink that did not keep up


@pytest.fixture
def queued(tmp_path, monkeypatch):
    """A file sink's queue on disk, as a consumer leaves it that was killed."""
    from logagg.fanout.fanout import spool_of

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    built = build(f"file:{tmp_path}/app.log")
    waiting = spool_of("file x", built)
    for start in (0, 3):
        assert waiting.append(make_batch(3, start=start))
    folder = waiting.folder
    waiting._logs[-1]._release()
    return folder.parent


def test_ls_shows_what_the_service_spooled(queued, tmp_path):
    """`spool ls` is not blind to records that `policy=spool` put on disk."""
    (row,) = rows()
    assert (row.records, row.sink) == (6, f"file:{tmp_path}/app.log")
    assert row.oldest == "2026-11-25T01:00:00.000000000Z"
    assert "6 records" in run(spool, "ls").output


def test_replay_writes_what_the_service_spooled(queued, tmp_path):
    """It goes to the sink, whatever kind that is, and nothing is left on disk."""
    result = run(spool, "replay", "file")

    assert result.exit_code == 0, result.output
    assert "6 records delivered, 0 left" in result.output
    lines = (tmp_path / "app.log").read_bytes().splitlines()
    assert [orjson.loads(line)["seq"] for line in lines] == list(range(6))
    assert not queued.exists()


def test_drop_deletes_what_the_service_spooled(queued):
    """After a yes, and not while a process uses it."""
    assert "6 records dropped" in run(spool, "drop", "file", "--yes").output
    assert rows() == []
