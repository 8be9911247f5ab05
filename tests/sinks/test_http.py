"""The webhook: what is sent, how answers are obeyed, and that each record is settled.

The rules for every network sink are tested here, on the simplest one.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import hmac
import itertools
import logging
import os
from random import Random

import orjson
import pytest

from logagg.abc import Policy
from logagg.core.line import key_of, record_id
from logagg.errors import ConfigError
from logagg.sinks import build, parse
from logagg.testing import check_sink, make_batch, make_line
from logagg_sinks.delivery.condition import SinkState

PATH = "/in"


def run(coroutine):
    """Run a test's coroutine with a deadline."""
    return asyncio.run(asyncio.wait_for(coroutine, 50))


# What is sent


def test_contract_of_a_sink(target, tmp_path):
    """The webhook keeps the contract that every sink has."""
    check_sink(
        lambda: build(f"{target.url}/in?batch_age=0.05&spool={tmp_path}").sink,
        lambda: [record for seen in target.seen for record in seen.records],
    )


def test_a_batch_is_posted_as_ndjson(target, make, tools):
    """Records come as they are, whole and in order, with their type and number."""
    tools.send(make(), make_batch(3))

    (seen,) = target.seen
    assert (seen.method, seen.path) == ("POST", "/in")
    assert seen.headers["content-type"] == "application/x-ndjson"
    assert seen.headers["x-logagg-records"] == "3"
    assert seen.body == make_batch(3).data


def test_a_batch_as_an_array(target, make, tools):
    """`format=array` makes one JSON array of the records."""
    tools.send(make("format=array&method=PUT"), make_batch(3))

    (seen,) = target.seen
    assert seen.method == "PUT"
    assert seen.headers["content-type"] == "application/json"
    assert [record["seq"] for record in orjson.loads(seen.body)] == [0, 1, 2]


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_a_body_is_compressed(target, make, tools, compress):
    """`compress` compresses, says how, and the length is that of what is sent."""
    tools.send(make(f"compress={compress}"), make_batch(100))

    (seen,) = target.seen
    assert seen.headers["content-encoding"] == compress
    assert int(seen.headers["content-length"]) == len(seen.raw) < len(seen.body) / 3
    assert seen.body == make_batch(100).data


def test_a_small_body_is_not_compressed(target, make, tools):
    """What is below a KiB is sent as it is."""
    tools.send(make("compress=gzip"), make_batch(1))

    assert "content-encoding" not in target.seen[0].headers


def test_batches_are_cut_by_count(target, make, tools):
    """No request holds more records than `batch_records`."""
    tools.send(make("batch_records=40"), make_batch(100))

    assert [len(seen.seqs) for seen in target.seen] == [40, 40, 20]
    assert target.seqs == list(range(100))


def test_batches_are_cut_by_bytes(target, make, tools):
    """No body is larger than `batch_bytes`, and none much smaller needs be."""
    tools.send(make("batch_bytes=4KiB"), make_batch(100))

    sizes = [len(seen.body) for seen in target.seen]
    assert max(sizes) <= 4096
    assert min(sizes[:-1]) > 3500
    assert target.seqs == list(range(100))


def test_batches_are_cut_by_age(target, make, tools):
    """Records that came one by one within `batch_age` go out together, after it."""

    async def main():
        sink = make("batch_age=0.3")
        async with tools.opened(sink):
            began = asyncio.get_running_loop().time()
            for number in range(5):
                await sink.write(make_batch(1, start=number))
            await target.wait(1)
            assert asyncio.get_running_loop().time() - began >= 0.25
            await tools.until(lambda: sink.counters.get("acked") == 5)

    run(main())

    assert [seen.seqs for seen in target.seen] == [[0, 1, 2, 3, 4]]


def test_flush_sends_what_waits_for_company(target, make, tools):
    """`flush` does not wait for `batch_age`, and returns when the records are taken."""

    async def main():
        sink = make("batch_age=1h")
        async with tools.opened(sink):
            await sink.write(make_batch(2))
            await sink.flush()
            assert target.seqs == [0, 1]
            assert sink.counters["acked"] == 2

    run(main())


def test_a_line_that_is_no_record_costs_only_itself(target, make, tools, letters):
    """What a broken sender wrote becomes a dead letter; its neighbors arrive."""
    lines = [make_line(0), b'{"timestamp":"broken', make_line(2), b"\xff\xfe", b"[1"]
    batch = make_batch(lines)

    tools.send(make(), batch)

    assert target.seqs == [0, 2]
    assert len(letters()) == 3
    assert all("not a record" in letter["reason"] for letter in letters())
    assert all("raw" in letter for letter in letters())


def test_headers_of_a_request(target, make, tools):
    """A request names its sender, has its length, is not chunked, and keeps alive."""
    tools.send(make("batch_records=10"), make_batch(30))

    assert len(target.seen) == 3
    for seen in target.seen:
        assert seen.headers["user-agent"].startswith("logagg/")
        assert seen.headers["content-length"] == str(len(seen.raw))
        assert "transfer-encoding" not in seen.headers
        assert seen.headers["accept-encoding"] == "identity"
        assert seen.headers.get("connection", "keep-alive") == "keep-alive"


def test_a_retry_is_the_same_request(target, make, tools):
    """A batch that is sent again has the same bytes and the same name."""
    target.script = [tools.Answer(503), tools.Answer(503)]
    tools.send(make("batch_records=10"), make_batch(20))

    first, second, third, other = target.seen
    assert first.body == second.body == third.body
    keys = [seen.headers["idempotency-key"] for seen in target.seen]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert other.seqs == list(range(10, 20))


def test_own_headers_and_parameters(target, make, tools, monkeypatch):
    """`header.` and `query.` go to the target, from the URL or the environment."""
    monkeypatch.setenv("MY_KEY", "k-123456")
    options = "header.X-Team=blue&header.X-Api-Key=env:MY_KEY&query._msg_field=message"
    tools.send(make(options), make_batch(1))

    (seen,) = target.seen
    assert seen.headers["x-team"] == "blue"
    assert seen.headers["x-api-key"] == "k-123456"
    assert seen.query == {"_msg_field": "message"}


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        ("", "Bearer user:pass-word"),
        ("bearer", "Bearer user:pass-word"),
        ("basic", "Basic dXNlcjpwYXNzLXdvcmQ="),
        ("apikey", "ApiKey user:pass-word"),
        ("splunk", "Splunk user:pass-word"),
        ("raw", "user:pass-word"),
    ],
)
def test_authorization_from_a_file(target, make, tools, tmp_path, auth, sent):
    """A secret in a file goes into Authorization in the way that was asked for."""
    (tmp_path / "token").write_text("user:pass-word\n")
    options = f"token=file:{tmp_path}/token" + (f"&auth={auth}" if auth else "")
    tools.send(make(options), make_batch(1))

    assert target.seen[0].headers["authorization"] == sent


def test_a_signature_over_what_is_sent(target, make, tools, monkeypatch):
    """`hmac` signs the body as it goes out, compressed."""
    monkeypatch.setenv("SIGNING", "sesame")
    tools.send(make("hmac=env:SIGNING&compress=gzip"), make_batch(50))

    (seen,) = target.seen
    digest = hmac.new(b"sesame", seen.raw, hashlib.sha256).hexdigest()
    assert seen.headers["x-logagg-signature"] == f"sha256={digest}"


# Answers


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 599])
def test_passing_trouble_is_waited_out(target, make, tools, naps, letters, status):
    """A status that passes costs a pause and nothing else."""
    target.script = [tools.Answer(status), tools.Answer(status)]
    sink = make()
    tools.send(sink, make_batch(4))

    assert target.seqs == [*range(4)] * 3
    assert naps.seconds[:2] == [1, 2]
    assert sink.counters["acked"] == 4
    assert sink.counters["retried"] == 8
    assert letters() == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_permanent_refusal_is_a_dead_letter(target, make, tools, letters, status):
    """What will never be taken is put aside, with the reason, and the rest goes on."""
    target.script = [tools.Answer(status, b"no: because")] * 2
    sink = make("batch_records=1")
    tools.send(sink, make_batch(4))

    assert [letter["record"]["seq"] for letter in letters()] == [0, 1]
    for letter in letters():
        assert letter["status"] == status
        assert letter["response"] == "no: because"
        assert letter["attempts"] == 1
        assert letter["reason"] == f"status {status}"
        assert letter["time"] == "2026-11-25T01:01:00.000000000Z"
    assert sink.counters["acked"] == 2
    assert (sink.folder / "dead-letters-0.ndjson").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "status", [203, 206, 207, 260, 301, 302, 307, 401, 403, 404, 407]
)
def test_a_target_that_refuses_everything_suspends(
    target, make, tools, naps, letters, caplog, status
):
    """Nothing is dropped, one alarm is raised, and the target is probed slowly."""
    caplog.set_level(logging.INFO, "logagg")
    moved = {"Location": f"{target.url}/other"}
    target.script = [tools.Answer(status, headers=moved)] * 3
    states = []
    sink = make()

    async def nap(seconds):
        states.append(sink.health().state)
        await naps(seconds)

    sink.sleep = nap
    tools.send(sink, make_batch(2))

    assert states == [SinkState.SUSPENDED] * 3
    assert naps.seconds == [30, 30, 30]
    assert [seen.path for seen in target.seen] == ["/in"] * 4  # none was followed
    assert sink.counters["acked"] == 2
    assert letters() == []
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert sink.health().state is SinkState.OK


def test_what_a_status_means_can_be_chosen(target, make, tools, letters, naps):
    """`status` overrides the table: to drop on 404 is a choice, 206 can be good."""
    target.script = [tools.Answer(404), tools.Answer(206)]
    sink = make("status=404:dead_letter,206:ok&batch_records=1")
    tools.send(sink, make_batch(2))

    assert [letter["record"]["seq"] for letter in letters()] == [0]
    assert sink.counters["acked"] == 1
    assert naps.seconds == []


@pytest.mark.parametrize(
    ("status", "value", "pause"),
    [
        (429, "2", 2.2),
        (503, "2", 2.2),
        (429, "99999999", 330),
        (429, email.utils.formatdate(1_795_568_463, usegmt=True), 3.3),
        (503, email.utils.formatdate(1_795_568_463, usegmt=True), 3.3),
        (429, email.utils.formatdate(1_795_560_000, usegmt=True), 1),
        (429, "0", 1),
        (429, "-1", 1),
        (429, "later", 1),
    ],
)
def test_the_wait_that_the_target_asks_for(
    target, make, tools, naps, status, value, pause
):
    """Retry-After is obeyed, as seconds or date, clamped; nonsense is backed off."""
    headers = {
        "Retry-After": value,
        "Date": email.utils.formatdate(1_795_568_460, usegmt=True),
    }
    target.script = [tools.Answer(status, headers=headers)]
    sink = make()
    sink.clock = lambda: 1_795_568_460.0 - 86400  # a wrong clock here changes nothing
    tools.send(sink, make_batch(1))

    assert naps.seconds == [pytest.approx(pause)]
    assert len(target.seen) == 2


def test_the_wait_is_real(target, make, tools):
    """No request is made while the target asked for silence."""
    target.script = [tools.Answer(429, headers={"Retry-After": "1"})]
    sink = make()
    sink.sleep = asyncio.sleep
    sink.chance = lambda: 0.0
    tools.send(sink, make_batch(1))

    first, second = target.seen
    assert 1.0 <= second.at - first.at <= 1.5


def test_one_back_off_for_the_whole_sink(target, make, tools, naps):
    """Pauses grow over batches and begin small again after a success."""
    target.script = [tools.Answer(503)] * 3 + [tools.Answer(), tools.Answer(503)]
    tools.send(make("batch_records=1"), make_batch(2))

    assert naps.seconds == [1, 2, 4, 1]


@pytest.mark.parametrize("answer", [(413, b""), (400, b"http: request body too large")])
def test_too_large_is_halved_and_the_limit_is_learnt(
    target, make, tools, letters, answer
):
    """What is too large goes out in halves, in order; later batches are smaller."""
    status, text = answer

    def judge(seen):
        return tools.Answer(status, text) if len(seen.body) > 6000 else tools.Answer()

    target.default = judge
    sink = make("batch_records=64")
    tools.send(sink, make_batch(64 * 4))

    taken = [seen for seen in target.seen if len(seen.body) <= 6000]
    assert [seq for seen in taken for seq in seen.seqs] == list(range(256))
    refused = len(target.seen) - len(taken)
    assert refused <= 4
    assert all(len(seen.body) <= 6000 for seen in target.seen[8:])
    assert letters() == []


def test_one_record_that_is_too_large_is_a_dead_letter(target, make, tools, letters):
    """A record that is refused even alone is put aside; the small ones arrive."""

    def judge(seen):
        return tools.Answer(413) if len(seen.body) > 20_000 else tools.Answer()

    target.default = judge
    lines = [make_line(number) for number in range(20)]
    lines[7] = make_line(7, message="x" * 30_000)
    tools.send(make(), make_batch(lines))

    assert [letter["record"]["seq"] for letter in letters()] == [7]
    taken = [seen.seqs for seen in target.seen if len(seen.body) <= 20_000]
    assert sorted(seq for seqs in taken for seq in seqs) == [*range(7), *range(8, 20)]


def test_a_huge_record_is_cut_and_says_so(target, make, tools):
    """A record of 10 MB is sent with its message cut; its neighbors are untouched."""
    lines = [make_line(number) for number in range(2000)]
    lines[1000] = make_line(1000, message="x" * 10_000_000, note="kept")
    sink = make("record_bytes=64KiB")
    tools.send(sink, make_batch(lines))

    assert target.seqs == list(range(2000))
    records = {record["seq"]: record for s in target.seen for record in s.records}
    huge = records[1000]
    kept = len(huge["message"].partition("…")[0])
    assert huge["message"].endswith(f"…[truncated {10_000_000 - kept} bytes]")
    assert huge["note"] == "kept"
    assert max(len(seen.body) for seen in target.seen) <= 1024 * 1024
    assert sink.counters["truncated"] == 1


@pytest.mark.parametrize("poison", [{13}, {0}, {63}, {5, 6, 40}])
def test_a_poison_record_does_not_cost_its_batch(target, make, tools, letters, poison):
    """What the target refuses is found by halving, at a bounded cost."""

    def judge(seen):
        bad = poison & set(seen.seqs)
        return tools.Answer(400, b"bad record") if bad else tools.Answer()

    target.default = judge
    sink = make()
    tools.send(sink, make_batch(64))

    assert {letter["record"]["seq"] for letter in letters()} == poison
    assert sink.counters["acked"] == 64 - len(poison)
    assert len(target.seen) <= 1 + 2 * 6 * len(poison)
    taken = [seen.seqs for seen in target.seen if not poison & set(seen.seqs)]
    order = [seq for seqs in taken for seq in seqs]
    assert order == [seq for seq in range(64) if seq not in poison]


def test_records_refused_within_a_success(target, make, tools, letters):
    """An answer may name records that it refuses; the others are taken."""
    text = b'{"rejected":[{"index":1,"reason":"no name"},{"index":99},{"index":2}]}'
    target.script = [tools.Answer(200, text)]
    sink = make()
    tools.send(sink, make_batch(4))

    reasons = {letter["record"]["seq"]: letter["reason"] for letter in letters()}
    assert reasons == {1: "no name", 2: "rejected"}
    assert sink.counters["acked"] == 2
    assert len(target.seen) == 1


def test_compression_is_given_up_when_it_is_not_understood(target, make, tools):
    """415 makes the sink compress less at once, and it remembers that."""

    def judge(seen):
        known = seen.headers.get("content-encoding", "gzip") == "gzip"
        return tools.Answer(200 if known else 415)

    target.default = judge
    tools.send(make("compress=zstd&batch_records=50"), make_batch(100))

    codings = [seen.headers.get("content-encoding") for seen in target.seen]
    assert codings == ["zstd", "gzip", "gzip"]


def test_a_400_at_first_use_is_tried_uncompressed(target, make, tools, letters):
    """A target that answers 400 to what it cannot decompress loses nothing."""

    def judge(seen):
        return tools.Answer(400 if "content-encoding" in seen.headers else 200)

    target.default = judge
    tools.send(make("compress=gzip&batch_records=50"), make_batch(100))

    codings = [seen.headers.get("content-encoding") for seen in target.seen]
    assert codings == ["gzip", None, None]
    assert letters() == []


def test_an_old_record_is_not_sent(target, make, tools, letters):
    """A record older than `max_age` becomes a dead letter before it is sent."""
    lines = [make_line(0), make_line(200_000)]  # the second is 200 s younger
    sink = make("max_age=100s")
    sink.clock = lambda: 1_795_568_400.0 + 200
    tools.send(sink, make_batch(lines))

    assert target.seqs == [200_000]
    assert [letter["reason"] for letter in letters()] == ["expired"]


def test_a_record_can_grow_old_while_it_waits(target, make, tools, letters):
    """The age is looked at before each attempt, not only before the first."""
    target.default = tools.Answer(503)
    sink = make("max_age=100s")
    now = [1_795_568_400.0]
    sink.clock = lambda: now[0]

    async def nap(seconds):
        now[0] += 40
        await asyncio.sleep(0)

    sink.sleep = nap
    tools.send(sink, make_batch(2))

    assert 2 <= len(target.seen) <= 3
    assert [letter["reason"] for letter in letters()] == ["expired"] * 2


def test_attempts_can_be_limited(target, make, tools, letters):
    """After `attempts` failures a batch is given up, with the last reason."""
    target.script = [tools.Answer(503)] * 3
    tools.send(make("attempts=3&batch_records=1"), make_batch(2))

    (letter,) = letters()
    assert letter["reason"] == "gave up after 3 attempts: status 503"
    assert letter["attempts"] == 3
    assert target.seen[-1].seqs == [1]


def test_dead_letters_turn_over(target, make, tools, letters):
    """A file of dead letters is bounded; what is pushed out is counted."""
    target.default = tools.Answer(400)
    sink = make("batch_records=1&dead_letter_bytes=2000")
    tools.send(sink, make_batch(30))

    sizes = [path.stat().st_size for path in sink.folder.glob("dead-letters-*")]
    assert len(sizes) == 2
    assert max(sizes) <= 2000
    assert sink.counters["dead_lettered"] == 30
    assert sink.counters["dead_letters_overwritten"] == 30 - len(letters())


def test_without_dead_letters_what_is_refused_is_counted(target, make, tools, letters):
    """`dead_letter_bytes=0` keeps none; the records count as dropped."""
    target.default = tools.Answer(400)
    sink = make("dead_letter_bytes=0")
    tools.send(sink, make_batch(3))

    assert sink.counters["dropped"] == 3
    assert letters() == []


def test_an_error_of_our_own_does_not_end_the_delivery(target, make, tools, naps):
    """Whatever goes wrong with a batch is said, and the batch is tried again."""
    sink = make()
    body, errors = sink.target.body, [TypeError("odd"), OSError("disk")]

    def broken(items):
        if errors:
            raise errors.pop(0)
        return body(items)

    sink.target.body = broken
    tools.send(sink, make_batch(3))

    assert target.seqs == [0, 1, 2]
    assert len(naps.seconds) == 2


# Spool


def test_what_is_not_delivered_survives_and_keeps_its_order(target, make, tools):
    """A sink that ends while the target fails leaves its records to the next one."""
    target.default = tools.Answer(503)

    async def first():
        sink = make("grace=0.2&batch_records=10")
        async with tools.opened(sink):
            await sink.write(make_batch(25))
            await target.wait(1)
        assert sink.health().queued_records == 25
        tools.balance(sink)

    async def second():
        sink = make("batch_records=7")  # the batch in hand is the same nevertheless
        async with tools.opened(sink):
            await sink.write(make_batch(5, start=25))
            await tools.until(lambda: sink.counters.get("acked") == 30)
        assert sink.counters["recovered"] == 25
        tools.balance(sink)

    run(first())
    before = len(target.seen)
    target.default = tools.Answer()
    run(second())

    assert [seq for seen in target.seen[before:] for seq in seen.seqs] == list(
        range(30)
    )
    again, once = target.seen[before], target.seen[0]
    assert again.body == once.body
    assert again.headers["idempotency-key"] == once.headers["idempotency-key"]


def test_an_emptied_spool_leaves_no_files(target, make, tools):
    """Nothing but the sink's name stays behind when everything was delivered."""
    sink = make()
    tools.send(sink, make_batch(3))

    assert [path.name for path in sink.folder.iterdir()] == ["url"]


def test_the_spool_is_private(target, make, tools):
    """Whatever the umask, nobody else can read records that wait."""
    target.default = tools.Answer(503)
    sink = make("grace=0")

    async def main():
        async with tools.opened(sink):
            await sink.write(make_batch(1))

    run(main())

    assert sink.folder.stat().st_mode & 0o777 == 0o700
    for path in sink.folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_full_spool_makes_write_wait(target, make, tools):
    """`write` waits while `spool_bytes` are undelivered; then it goes on."""
    gate = asyncio.Event()
    target.default = tools.Answer(503)

    async def nap(seconds):
        await gate.wait()

    async def main():
        sink = make("spool_bytes=8KiB&batch_records=10")
        sink.sleep = nap
        async with tools.opened(sink):
            await sink.write(make_batch(30))
            await target.wait(1)
            second = asyncio.ensure_future(sink.write(make_batch(30, start=30)))
            await tools.until(lambda: sink.counters.get("spool_full") == 1)
            assert not second.done()
            target.default = tools.Answer()
            gate.set()
            await second
            await tools.until(lambda: sink.counters.get("acked") == 60)
        tools.balance(sink)

    run(main())

    assert [seq for seen in target.seen[1:] for seq in seen.seqs] == list(range(60))


def test_without_a_spool_nothing_is_on_disk(target, make, tools, tmp_path, monkeypatch):
    """`spool=off` keeps records in memory, says that it is not durable, counts loss."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    target.default = tools.Answer(503)

    async def main():
        sink = build(
            f"{target.url}/in?batch_age=0&spool=off".replace("=0&", "=0.01&")
        ).sink
        assert not sink.durable
        sink.options = type(sink.options)(
            spool="off", batch_age=0.01, grace=0.1, dead_letter_bytes=0
        )
        sink.clock = lambda: tools.NOW
        async with tools.opened(sink):
            await sink.write(make_batch(7))
            await target.wait(1)
        assert sink.counters["dropped"] == 7
        assert not (tmp_path / "state").exists()

    run(main())


def test_two_sinks_for_one_target_do_not_share_a_spool(target, make, tools):
    """A second process with the same sink has a spool of its own."""

    async def main():
        one, two = make(), make()
        async with tools.opened(one), tools.opened(two):
            await asyncio.gather(
                one.write(make_batch(10)), two.write(make_batch(10, start=10))
            )
            await asyncio.gather(one.flush(), two.flush())
        assert one.counters["acked"] == two.counters["acked"] == 10

    run(main())

    assert sorted(target.seqs) == list(range(20))


# The end


def test_the_end_makes_one_last_attempt(target, make, tools):
    """A pause is cut short by `close`, and what the target then takes is delivered."""
    target.script = [tools.Answer(503)]

    async def main():
        sink = make()
        sink.sleep = lambda _: asyncio.sleep(3600)
        async with tools.opened(sink):
            await sink.write(make_batch(3))
            await tools.until(lambda: sink.health().state is SinkState.RETRYING)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2
        assert sink.counters["acked"] == 3

    run(main())


def test_the_last_attempt_is_one(target, make, tools):
    """A target that still fails at the end is asked once more, and then left alone."""
    target.default = tools.Answer(503)

    async def main():
        sink = make("batch_records=1")
        sink.sleep = lambda _: asyncio.sleep(3600)
        async with tools.opened(sink):
            await sink.write(make_batch(5))
            await tools.until(lambda: sink.health().state is SinkState.RETRYING)
        assert sink.health().queued_records == 5

    run(main())

    assert [seen.seqs for seen in target.seen] == [[0], [0]]


def test_the_end_does_not_wait_longer_than_grace(serve_raw, make, tools):
    """A target that never answers delays the end by no more than `grace`."""

    async def hang(reader, writer):
        await asyncio.sleep(3600)

    server = serve_raw(hang)

    async def main():
        sink = make("grace=0.3", url=server.url)
        async with tools.opened(sink):
            await sink.write(make_batch(3))
            await tools.until(lambda: sink.health().in_flight == 3)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 1.5
        assert sink.health().queued_records == 3
        tools.balance(sink)

    run(main())


def test_a_cancelled_end_loses_nothing(serve_raw, make, tools):
    """Whoever gives up waiting for `close` leaves the records in the spool."""

    async def hang(reader, writer):
        await asyncio.sleep(3600)

    server = serve_raw(hang)

    async def main():
        sink = make("grace=60", url=server.url)
        await sink.open()
        await sink.write(make_batch(3))
        await tools.until(lambda: sink.health().in_flight == 3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.close(), 0.2)
        assert sink.health().queued_records == 3

    run(main())


# Options and secrets


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("batch_record=5", ["batch_record", "batch_records"]),
        ("batch_records=0", ["batch_records"]),
        ("batch_age=soon", ["batch_age", "soon"]),
        ("compress=lzma", ["compress", "gzip"]),
        ("method=GET", ["method", "PUT"]),
        ("format=xml", ["format", "ndjson"]),
        ("status=404:forget", ["status", "dead_letter"]),
        ("auth=digest&token=env:X", ["auth", "bearer"]),
        ("auth=basic", ["token"]),
        ("key_file=/k", ["cert_file"]),
        ("header.Content-Type=x", ["Content-Type"]),
        ("header.A%0d%0aB=x", ["header"]),
        ("header.A=x%0d%0aB:y", ["header"]),
        ("api_key=1", ["api_key"]),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, words):
    """An unknown option or a bad value is an error that names it and what is right."""
    with pytest.raises(ConfigError) as error:
        build(f"http://h/in?{options}")
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("url", ["http://", "http:///x", "http://h:0x/", "http:h/x"])
def test_a_url_without_a_host_is_refused(url):
    """A URL that names no host is an error that says how one looks."""
    with pytest.raises(ConfigError, match="HOST"):
        build(url)


@pytest.mark.parametrize(
    "options",
    [
        "token=s3cr3t-t0ken",
        "header.Authorization=s3cr3t-t0ken",
        "header.DD-API-KEY=s3cr3t-t0ken",
        "query.access_token=s3cr3t-t0ken",
        "hmac=s3cr3t-t0ken",
    ],
)
def test_a_secret_in_the_url_is_refused_and_not_repeated(options):
    """A secret in plain text is an error that says where to put it, not what it is."""
    with pytest.raises(ConfigError, match="env:NAME") as error:
        build(f"http://h/in?{options}")
    assert "s3cr3t" not in str(error.value)


def test_secrets_are_nowhere_to_be_seen(
    target, make, tools, letters, monkeypatch, caplog
):
    """No secret is in the URL, repr, log, health or dead letters, even if echoed."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOKEN", "tok-en-777")
    secrets = ("tok-en-777", "pass-777", "key-777")
    monkeypatch.setenv("KEY", "key-777")

    def judge(seen):
        echo = repr(sorted(seen.headers.items())) + repr(seen.query)
        return tools.Answer(403 if len(target.seen) == 1 else 400, echo.encode())

    target.default = judge
    options = "token=env:TOKEN&query.k=env:KEY&proxy="
    sink = make(options)
    tools.send(sink, make_batch(1))
    user = build(f"http://joe:pass-777@127.0.0.1:1/in?spool={sink.folder}").sink

    assert target.seen[0].headers["authorization"] == "Bearer tok-en-777"
    logged = [
        record.getMessage()
        for record in caplog.records
        if record.name != "aiohttp.access"  # that is the server's
    ]
    texts = [repr(sink), sink.url, *logged, repr(letters()), repr(sink.health())]
    texts += [repr(user), user.url, (sink.folder / "url").read_text()]
    assert "[secret]" in repr(letters())
    for secret in secrets:
        assert all(secret not in text for text in texts)


def test_a_user_in_the_url_becomes_authorization(target, tools, tmp_path):
    """`http://user:password@host` authenticates, and the URL shown is without it."""
    url = target.url.replace("://", "://joe:p%40ss-word@")
    sink = build(f"{url}/in?spool={tmp_path}&batch_age=0.01").sink
    sink.clock = lambda: 1_795_568_460.0
    tools.send(sink, make_batch(1))

    assert target.seen[0].headers["authorization"] == "Basic am9lOnBAc3Mtd29yZA=="
    assert "ss-word" not in sink.url


def test_credentials_are_read_again_when_they_are_refused(
    target, make, tools, tmp_path
):
    """A new token in the file is used without a restart."""
    token = tmp_path / "token"
    token.write_text("old")

    def judge(seen):
        if seen.headers["authorization"] == "Bearer old":
            token.write_text("new")
            return tools.Answer(401)
        return tools.Answer()

    target.default = judge
    tools.send(make(f"token=file:{token}"), make_batch(1))

    assert [s.headers["authorization"] for s in target.seen] == [
        "Bearer old",
        "Bearer new",
    ]


def test_a_missing_secret_suspends_and_says_which(make, tools, target):
    """A variable that is not set holds the sink, visibly; nothing is sent or lost."""

    async def main():
        sink = make("token=env:NOT_SET_AT_ALL&grace=0")
        sink.sleep = lambda _: asyncio.sleep(3600)
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().state is SinkState.SUSPENDED)
            assert "NOT_SET_AT_ALL" in sink.health().last_error
        assert sink.health().queued_records == 1

    run(main())

    assert target.seen == []


def test_the_url_builds_the_same_sink():
    """What `url` says can be given to a command line again."""
    text = (
        "https://h:8443/a/b?batch_records=5&compress=gzip&token=env:T&status=404:ok"
        "&format=array&header.X-Team=a%26b&query.q=1%202"
    )
    sink = build(text).sink

    again = build(sink.url).sink

    assert again.url == sink.url
    assert parse(sink.url).options == parse(again.url).options
    assert again.options == sink.options


def test_tuning_does_not_change_where_records_are_parked():
    """Another batch size finds the same spool; another path another one."""
    one, two = build("http://h/a?batch_records=5").sink, build("http://h/a").sink
    assert one.folder == two.folder
    assert build("http://h/b").sink.folder != one.folder
    assert build("http://h/a?header.X-Tenant=b").sink.folder != one.folder


def test_a_dead_target_never_blocks_by_default():
    """Without a choice of the user's, a network sink never stops the reading."""
    assert build("http://h/").common.policy is not Policy.BLOCK


def test_recall_knows_what_came_before_a_kill(target, make, tools):
    """After a kill the sink tells what it had accepted, delivered or not."""
    target.script = [tools.Answer(), tools.Answer(503)]
    lines = [make_line(number) for number in range(20)]

    async def killed():
        sink = make("batch_records=10")
        sink.sleep = lambda _: asyncio.sleep(3600)
        await sink.open()
        await sink.write(make_batch(20))
        await target.wait(2)
        await tools.until(lambda: sink.counters.get("acked") == 10)
        for spool in sink._delivery.spools:  # as if the process was gone
            os.close(spool._lock)
            spool._lock = -1
        sink._task.cancel()
        await sink._client.close()

    async def successor():
        sink = make("batch_records=10")
        async with tools.opened(sink):
            known = await sink.written_since(key_of(lines[5]))
            await sink.flush()
            assert await sink.written_since(key_of(lines[5])) == known
        return known

    run(killed())
    known = run(successor())

    assert known == {record_id(line) for line in lines[5:]}


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_whatever_is_answered_every_record_is_settled_once(
    target, make, tools, letters, seed
):
    """Random answers, ends and restarts: each record is taken or dead, in order.

    An end can come while a request is on its way. It is sent again then, under the name
    by which the target knows it.
    """
    random = Random(seed)
    named: dict[str, list[int]] = {}

    def judge(seen):
        name = seen.headers["idempotency-key"]
        if name in named:
            assert named[name] == seen.seqs
            return tools.Answer(200)
        status = random.choice([200, 200, 200, 503, 429, 500, 413, 401, 302, 408])
        if any(seq % 97 == 0 for seq in seen.seqs):
            return tools.Answer(400)
        if status == 200:
            named[name] = seen.seqs
        return tools.Answer(status if status != 413 or len(seen.seqs) > 1 else 503)

    target.default = judge
    total = 1000

    async def settled_or_more(sink, requests):
        await tools.until(
            lambda: not sink.health().queued_records or len(target.seen) > requests
        )

    async def once(start, end):
        sink = make(f"batch_records={random.randint(1, 200)}&grace=0.2")
        async with tools.opened(sink):
            while start < end:
                size = min(random.randint(1, 300), end - start)
                await sink.write(make_batch(size, start=start))
                start += size
            while end == total and sink.health().queued_records:
                await settled_or_more(sink, len(target.seen))
        tools.balance(sink)

    # A busy machine takes its time for the thousand requests: each has a deadline.
    for start, end in itertools.pairwise((0, 350, 700, total)):
        asyncio.run(once(start, end))

    taken = [seq for seqs in named.values() for seq in seqs]
    dead = [letter["record"]["seq"] for letter in letters()]
    assert taken == [seq for seq in range(total) if seq % 97]
    assert dead == [seq for seq in range(total) if seq % 97 == 0]
