"""Splunk: events as the collector documents them, refusals and acknowledgements."""

from __future__ import annotations

import asyncio
import socket
from decimal import Decimal
from json import JSONDecoder
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg.sinks import build
from logagg.testing import check_sink, make_batch, make_line
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.condition import SinkState

SCHEME = "splunk+"


def events(body):
    """Concatenated JSON objects, numbers exact."""
    decoder = JSONDecoder(parse_float=Decimal)
    text = body.decode()
    found, at = [], 0
    while at < len(text):
        event, at = decoder.raw_decode(text, at)
        found.append(event)
        while at < len(text) and text[at] in "\r\n ":
            at += 1
    return found


class Collector:
    """Judges requests as documented, and takes events up to a bad one."""

    def __init__(self, tools):
        self.Answer = tools.Answer
        self.events = []
        self.bad = set()
        self.acks = {}
        self.unacknowledged = 0

    def __call__(self, seen):
        assert seen.method == "POST"
        if seen.path == "/services/collector/ack":
            return self.acknowledge(seen)
        assert seen.path == "/services/collector/event"
        for number, event in enumerate(events(seen.body)):
            assert event["event"]
            assert set(event) <= {
                "time",
                "host",
                "source",
                "sourcetype",
                "index",
                "event",
                "fields",
            }
            assert all(isinstance(value, str) for value in event["fields"].values())
            if event["event"]["seq"] in self.bad:
                return self.answer(400, code=6, **{"invalid-event-number": number})
            self.events.append(event)
        extra = {}
        if "x-splunk-request-channel" in seen.headers:
            extra["ackId"] = len(self.acks)
            self.acks[len(self.acks)] = self.unacknowledged
        return self.answer(200, code=0, **extra)

    def acknowledge(self, seen):
        found = {}
        for number in orjson.loads(seen.body)["acks"]:
            self.acks[number] -= 1
            found[str(number)] = self.acks[number] < 0
        return self.answer(200, acks=found)

    def answer(self, status, **body):
        return self.Answer(status, orjson.dumps({"text": "some text"} | body))

    @property
    def seqs(self):
        """The numbers of the events that were taken, in order."""
        return [event["event"]["seq"] for event in self.events]


@given(
    st.lists(
        st.dictionaries(st.text(max_size=40), st.text() | st.integers(), max_size=9),
        max_size=4,
    )
)
def test_whatever_is_in_a_record_its_event_is_valid(records):
    """The collector reads one event a record, with its time, and flat fields of text."""
    sink = build("splunk+http://h?index=main").sink
    lines = [
        make_line(number, **{f"x{name}": value for name, value in fields.items()})
        for number, fields in enumerate(records)
    ]
    items = []
    for number, line in enumerate(lines):
        data, group, size = sink.target.encode(line + b"}")
        items.append(Item(number, line, data, group, size))
    judge = Collector(SimpleNamespace(Answer=lambda *found: found))
    body = sink.target.body(items)
    seen = SimpleNamespace(
        method="POST", path="/services/collector/event", headers={}, body=body
    )

    assert judge(seen)[0] == 200
    assert judge.seqs == list(range(len(records)))
    for number, event in enumerate(judge.events):
        assert event["time"] == Decimal(1795568400) + Decimal(number) / 1000
        assert {f"x{name}" for name in records[number]} <= event["event"].keys()


@pytest.fixture
def collector(target, tools):
    """A collector."""
    judge = Collector(tools)
    target.default = judge
    return judge


def test_contract_of_a_sink(target, collector, tmp_path):
    """The Splunk sink keeps the contract that every sink has."""
    check_sink(
        lambda: build(f"splunk+{target.url}/?batch_age=0.05&spool={tmp_path}").sink,
        lambda: [{"seq": seq} for seq in collector.seqs],
    )


def test_events(collector, make, tools, target, monkeypatch):
    """A record is an event with its exact time, its place, and its uid."""
    monkeypatch.setenv("HEC", "11111111-2222")
    sink = make("token=env:HEC&index=main&source=shop&sourcetype=st")
    tools.send(sink, make_batch([make_line(1, level="error", note="x")]))

    (event,) = collector.events
    assert event["time"] == Decimal("1795568400.001000000")
    assert event["host"] == socket.gethostname()
    assert (event["index"], event["source"], event["sourcetype"]) == (
        "main",
        "shop",
        "st",
    )
    assert event["event"]["note"] == "x"
    assert event["fields"]["level"] == "error"
    assert len(event["fields"]["uid"]) == 32
    assert target.seen[0].headers["authorization"] == "Splunk 11111111-2222"


@pytest.mark.parametrize("bad", [{3}, {0}, {9}, {2, 3, 8}])
def test_a_bad_event_is_taken_out(collector, make, tools, target, bad, naps):
    """Events before a bad one were taken, those behind it go again, it is dead."""
    collector.bad = bad
    sink = make()
    tools.send(sink, make_batch(10))

    assert collector.seqs == [seq for seq in range(10) if seq not in bad]
    assert sink.counters["dead_lettered"] == len(bad)
    assert naps.seconds == []


def test_a_400_without_a_number_is_dead(collector, make, tools, target):
    """A refusal that names no event ends in the dead letters: it cannot be halved."""
    target.script = [tools.Answer(400, b'{"text":"Invalid data format","code":6}')]
    sink = make()
    tools.send(sink, make_batch(3))

    assert sink.counters["dead_lettered"] == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_bad_token_suspends(collector, make, tools, target, status):
    """A token that is refused costs nothing but time."""
    target.script = [tools.Answer(status, b'{"text":"Invalid token","code":4}')]
    states = []
    sink = make()

    async def nap(seconds):
        states.append(sink.health().state)

    sink.sleep = nap
    tools.send(sink, make_batch(2))

    assert states == [SinkState.SUSPENDED]
    assert collector.seqs == [0, 1]


def test_a_busy_collector_is_waited_out(collector, make, tools, target, naps):
    """503 code 9 is waited out, for as long as it asks."""
    busy = tools.Answer(
        503, b'{"text":"Server is busy","code":9}', {"Retry-After": "5"}
    )
    target.script = [busy]
    tools.send(make(), make_batch(2))

    assert naps.seconds == [5.5]
    assert collector.seqs == [0, 1]


def test_acknowledgement(collector, make, tools, target, naps):
    """With `ack=true` a batch counts when the indexers have it, not before."""
    collector.unacknowledged = 2
    sink = make("ack=true&ack_interval=3s")
    tools.send(sink, make_batch(2))

    paths = [seen.path.rpartition("/")[2] for seen in target.seen]
    assert paths == ["event", "ack", "ack", "ack"]
    assert naps.seconds == [3, 3, 3]
    channels = {seen.headers["x-splunk-request-channel"] for seen in target.seen}
    assert len(channels) == 1
    assert sink.counters["acked"] == 2


def test_what_is_never_acknowledged_is_sent_again(collector, make, tools, target):
    """After 30 questions a batch counts as lost and is sent again."""
    collector.unacknowledged = 30
    sink = make("ack=true")

    async def nap(seconds):
        if len(target.seen) == 31:
            collector.unacknowledged = 0

    sink.sleep = nap
    tools.send(sink, make_batch(2))

    assert collector.seqs == [0, 1, 0, 1]
    assert sink.counters["ambiguous_retries"] == 1
    assert sink.counters["acked"] == 2


@pytest.mark.parametrize(
    "path", ["/prefix/services/collector/event", "/services/collector/event/1.0"]
)
def test_acknowledgement_goes_where_the_records_go(
    collector, tools, target, sink_to, monkeypatch, path
):
    """Behind a prefix, and with the token in the query, the question gets there too."""
    monkeypatch.setenv("HEC", "a-token")

    def judge(seen):
        assert seen.query == {"token": "a-token"}
        if seen.path.endswith("/ack"):
            assert seen.path == path.partition("/event")[0] + "/ack"
            return collector.acknowledge(seen)
        assert seen.path == path
        collector.acks[0] = 0
        return collector.answer(200, code=0, ackId=0)

    target.default = judge
    sink = sink_to(f"splunk+{target.url}{path}", "ack=true&query.token=env:HEC")
    tools.send(sink, make_batch(2))

    assert [seen.path.rpartition("/")[2] for seen in target.seen][1:] == ["ack"]
    assert sink.counters["acked"] == 2


def test_a_refused_question_sends_nothing_twice(collector, make, tools, target):
    """The batch is there: only the question is put again, slowly, with an alarm."""
    refusals = [(404, b""), (400, b'{"text":"ACK is disabled","code":14}'), (403, b"")]

    def judge(seen):
        if seen.path.endswith("/ack") and refusals:
            return tools.Answer(*refusals.pop(0))
        return collector(seen)

    target.default = judge
    states = []
    sink = make("ack=true&ack_interval=1s")

    async def nap(seconds):
        if seconds != 1:
            states.append((sink.health().state, seconds))

    sink.sleep = nap
    tools.send(sink, make_batch(2))

    assert collector.seqs == [0, 1]
    assert states == [(SinkState.SUSPENDED, 30)] * 3
    assert sink.counters["acked"] == 2


def test_a_token_without_acknowledgement_suspends(make, tools, target):
    """`ack=true` with a token that has none is said, not waited for."""
    target.default = tools.Answer(200, b'{"text":"Success","code":0}')

    async def main():
        sink = make("ack=true&grace=0")
        sink.sleep = lambda _: asyncio.sleep(3600)
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().state is SinkState.SUSPENDED)
            assert "acknowledgement" in sink.health().last_error

    asyncio.run(asyncio.wait_for(main(), 30))
