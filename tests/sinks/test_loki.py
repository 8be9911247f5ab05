"""Loki: what is pushed is what it documents, and a refused push costs no good entry."""

from __future__ import annotations

import asyncio
import re
import socket
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg.errors import ConfigError
from logagg.sinks import build
from logagg.testing import check_sink, make_batch, make_line
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.condition import SinkState

SCHEME = "loki+"


class Loki:
    """Judges pushes as Loki documents it, and stores entries as it does."""

    def __init__(self, tools):
        self.Answer = tools.Answer
        self.streams = {}
        self.poison = lambda _: False

    def __call__(self, seen):
        assert (seen.method, seen.path) == ("POST", "/loki/api/v1/push")
        assert seen.headers["content-type"] == "application/json"
        assert seen.headers.get("content-encoding") in (None, "gzip")
        push = orjson.loads(seen.body)
        assert list(push) == ["streams"]
        bad = False
        for stream in push["streams"]:
            assert set(stream) == {"stream", "values"}
            labels = stream["stream"]
            assert 1 <= len(labels) <= 15
            for name, value in labels.items():
                assert re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name)
                assert isinstance(value, str)
                assert len(value.encode()) <= 2048
            stored = self.streams.setdefault(orjson.dumps(labels), {})
            for time, line, metadata in stream["values"]:
                assert isinstance(time, str)
                assert time.isdecimal()
                assert isinstance(line, str)
                assert len(line.encode()) <= 256 * 1024
                assert len(metadata) <= 128
                assert all(isinstance(value, str) for value in metadata.values())
                if self.poison(line):
                    bad = True
                else:
                    stored.setdefault((int(time), line), metadata)
        return self.Answer(400, b"entry refused") if bad else self.Answer(204)

    @property
    def entries(self):
        """What is stored: (time, line), in the order of time."""
        return sorted(key for stored in self.streams.values() for key in stored)

    @property
    def seqs(self):
        """The numbers of the records that are stored."""
        return [orjson.loads(line)["seq"] for _, line in self.entries]


@pytest.fixture
def loki(target, tools):
    """A Loki."""
    judge = Loki(tools)
    target.default = judge
    return judge


def test_contract_of_a_sink(target, loki, tmp_path):
    """The Loki sink keeps the contract that every sink has."""
    check_sink(
        lambda: build(f"loki+{target.url}/?batch_age=0.05&spool={tmp_path}").sink,
        lambda: [{"seq": seq} for seq in loki.seqs],
    )


def test_streams_and_entries(loki, make, tools):
    """Few labels make streams; what tells processes apart is structured metadata."""
    lines = [make_line(0), make_line(1, level="error"), make_line(2, worker="2")]
    tools.send(make("labels=env%3Dprod,logger&service=shop"), make_batch(lines))

    base = {
        "service_name": "shop",
        "host": socket.gethostname(),
        "env": "prod",
        "logger": "app",
    }
    found = [orjson.loads(labels) for labels in loki.streams]
    assert sorted(found, key=str) == sorted(
        [base | {"level": "info"}, base | {"level": "error"}], key=str
    )
    assert loki.seqs == [0, 1, 2]
    times = [time for time, _ in loki.entries]
    assert times == [1_795_568_400_000_000_000 + n * 1_000_000 for n in range(3)]
    workers = {m["worker"] for stored in loki.streams.values() for m in stored.values()}
    assert workers == {"1", "2"}


def test_the_line_can_be_the_message(loki, make, tools):
    """`line=message` sends the message, and all other fields as metadata."""
    line = make_line(3, message="hello", **{"status.code": 500, "user": {"id": 1}})
    tools.send(make("line=message"), make_batch([line]))

    ((stored),) = loki.streams.values()
    ((_, text),) = stored
    assert text == "hello"
    (metadata,) = stored.values()
    assert metadata["status_code"] == "500"
    assert metadata["user"] == '{"id":1}'
    assert metadata["seq"] == "3"


def test_many_fields_stay_within_the_limits(loki, make, tools):
    """Metadata is bounded in number and bytes, and says that something is missing."""
    line = make_line(1, **{f"k{number}": "x" * 1000 for number in range(300)})
    tools.send(make("line=message"), make_batch([line]))

    ((stored),) = loki.streams.values()
    (metadata,) = stored.values()
    assert metadata["logagg_truncated"] == "true"
    assert sum(len(key) + len(text) for key, text in metadata.items()) < 64 * 1024


@given(
    st.lists(
        st.dictionaries(st.text(max_size=40), st.text() | st.integers(), max_size=9),
        max_size=4,
    ),
    st.sampled_from(("json", "message")),
)
def test_whatever_is_in_a_record_its_push_is_valid(records, line):
    """The judge finds each entry within Loki's shape and limits, under one stream."""
    sink = build(f"loki+http://h?line={line}&labels=team,env=prod").sink
    lines = [
        make_line(number, **{f"x{name}": value for name, value in fields.items()})
        for number, fields in enumerate(records)
    ]
    items = []
    for number, each in enumerate(lines):
        data, group, size = sink.target.encode(each + b"}")
        items.append(Item(number, each, data, group, size))
        assert size >= len(data)
    judge = Loki(SimpleNamespace(Answer=lambda *found: found))
    body = sink.target.body(sink.target.arrange(items, list))
    headers = sink.target.headers(items, "")
    lowered = {name.lower(): value for name, value in headers.items()}
    seen = SimpleNamespace(
        method="POST", path="/loki/api/v1/push", headers=lowered, body=body
    )

    assert judge(seen) == (204,)
    assert len(judge.entries) == len(records)


def test_equal_entries_are_made_different(loki, make, tools, target):
    """Records of one instant with one text are not taken for repetitions, nor moved."""
    lines = [make_line(0, worker=str(number)) for number in range(5)]
    tools.send(make("line=message"), make_batch(lines))
    times = [time for time, _ in loki.entries]
    assert times == [1_795_568_400_000_000_000 + number for number in range(5)]


def test_a_time_does_not_depend_on_the_piece(loki, make, tools, target):
    """Halves, which Loki has in part, have the times of the whole batch."""
    loki.poison = lambda line: line == "bad"
    lines = [make_line(0, worker=str(number)) for number in range(30)]
    lines.insert(11, make_line(0, message="bad"))
    sink = make("line=message")
    tools.send(sink, make_batch(lines))

    assert len(loki.entries) == 30
    assert sink.counters["dead_lettered"] == 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_time_does_not_depend_on_the_batch(loki, make, tools, size):
    """Equal records of one instant are all stored, in however many batches they come."""
    lines = [make_line(0, worker=str(number)) for number in range(9)]
    sink = make(f"line=message&batch_records={size}")
    tools.send(sink, make_batch(lines))

    assert len(loki.entries) == sink.counters["acked"] == 9


def test_a_time_is_the_same_after_a_restart(loki, make, tools, target):
    """What a successor sends again amid a batch has the times of the first attempt."""
    refusing = True

    def judge(seen):
        entries = len(orjson.loads(seen.body)["streams"][0]["values"])
        if entries > 2:
            return tools.Answer(413)
        if len(loki.entries) == 2 and refusing:
            return tools.Answer(503)
        return loki(seen)

    target.default = judge
    lines = [make_line(0, worker=str(number)) for number in range(4)]

    async def main():
        sink = make("line=message&grace=0")
        sink.sleep = lambda _: asyncio.sleep(3600)
        async with tools.opened(sink):
            await sink.write(make_batch(lines))
            await target.wait(3)

    asyncio.run(asyncio.wait_for(main(), 60))
    refusing = False
    tools.send(make("line=message"), make_batch([make_line(1)]))

    times = [time for time, _ in loki.entries if time < 1_795_568_400_000_500_000]
    assert times == [1_795_568_400_000_000_000 + number for number in range(4)]


def test_the_whole_record_needs_no_other_time(loki, make, tools):
    """Lines that differ keep their times: Loki has their order."""
    lines = [make_line(0, worker=str(number)) for number in range(5)]
    tools.send(make(), make_batch(lines))

    assert {time for time, _ in loki.entries} == {1_795_568_400_000_000_000}
    assert len(loki.entries) == 5


def test_two_fields_are_two(loki, make, tools):
    """Names that become the same in Loki do not hide each other."""
    tools.send(make("line=message"), make_batch([make_line(0, **{"a.b": 1, "a_b": 2})]))

    ((metadata,),) = [stored.values() for stored in loki.streams.values()]
    assert (metadata["a_b"], metadata["a_b_"]) == ("1", "2")


def test_a_refused_push_costs_no_good_entry(loki, make, tools, target):
    """What Loki refuses is found; what it has stored is not stored twice."""
    loki.poison = lambda line: '"seq":17,' in line
    sink = make()
    tools.send(sink, make_batch(64))

    assert loki.seqs == [seq for seq in range(64) if seq != 17]
    assert sink.counters["dead_lettered"] == 1
    assert len(target.seen) <= 1 + 2 * 6
    letter = orjson.loads((sink.folder / "dead-letters-0.ndjson").read_bytes())
    assert letter["record"]["seq"] == 17
    assert letter["response"] == "entry refused"


def test_a_retry_has_the_same_times(loki, make, tools, target):
    """A push that is sent again has the same bytes, so Loki can ignore what it has."""
    target.script = [tools.Answer(500)]
    line = make_line(0)
    tools.send(make(), make_batch([line, line, line]))

    assert target.seen[0].body == target.seen[1].body


def test_blocked_ingestion_is_no_success(loki, make, tools, target, naps):
    """260 means that the data was dropped: the sink is suspended and keeps it."""
    target.script = [tools.Answer(260)]
    states = []
    sink = make()

    async def nap(seconds):
        states.append((sink.health().state, sink.counters.get("acked", 0), seconds))

    sink.sleep = nap
    tools.send(sink, make_batch(3))

    assert states == [(SinkState.SUSPENDED, 0, 30)]
    assert loki.seqs == [0, 1, 2]


def test_what_is_older_than_a_week_is_not_pushed(loki, make, tools, target):
    """Loki would refuse it, so it becomes a dead letter without a request."""
    sink = make()
    sink.clock = lambda: tools.NOW + 8 * 86400
    tools.send(sink, make_batch(3))

    assert target.seen == []
    assert sink.counters["dead_lettered"] == 3


def test_the_tenant(loki, make, tools, target):
    """`tenant` is sent as X-Scope-OrgID."""
    tools.send(make("tenant=blue"), make_batch(1))

    assert target.seen[0].headers["x-scope-orgid"] == "blue"


@pytest.mark.parametrize(
    "options",
    [
        "labels=__x%3D1",
        "labels=a-b",
        "labels=" + ",".join(f"l{number}" for number in range(13)),
        "compress=zstd",
        "line=xml",
    ],
)
def test_what_loki_would_refuse_is_refused_at_once(options):
    """A label's name, their number or an encoding that Loki refuses is an error."""
    with pytest.raises(ConfigError):
        build(f"loki+http://h?{options}")
