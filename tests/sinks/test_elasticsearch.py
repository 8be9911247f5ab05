"""Elasticsearch: documents are created once, and answers are read item by item."""

from __future__ import annotations

import asyncio
import logging
import re

import orjson
import pytest

from logagg.sinks import build
from logagg.testing import check_sink, make_batch, make_line
from logagg_sinks.delivery.condition import SinkState

SCHEME = "elasticsearch+"


# Types of ECS 8.17 (elastic.co/docs/reference/ecs), of the fields that a record can have.
KEYWORDS = (
    "client.address", "destination.address", "ecs.version", "error.type",
    "error.stack_trace", "event.action", "host.name", "log.level", "log.logger",
    "log.origin.file.name", "log.origin.function", "process.name",
    "process.thread.name", "server.address", "service.name", "source.address",
    "span.id", "trace.id", "url.original", "user.name", "error.message", "message",
)  # fmt: skip
NUMBERS = ("log.origin.file.line", "process.pid")
DATES = ("@timestamp", "event.created")
OBJECTS = {
    "agent", "client", "cloud", "container", "data_stream", "destination", "dns", "ecs",
    "email", "error", "event", "faas", "file", "group", "host", "http", "labels", "log",
    "network", "observer", "organization", "package", "process", "related", "rule",
    "server", "service", "source", "span", "threat", "tls", "trace", "transaction",
    "url", "user", "user_agent", "vulnerability",
}  # fmt: skip


def leaves(value, path=""):
    """The fields of a document by their whole names."""
    if isinstance(value, dict):
        found = {}
        for name, part in value.items():
            found |= leaves(part, f"{path}.{name}" if path else name)
        return found
    return {path: value}


# Of Elasticsearch's own template for logs-*-*, `ecs@mappings`: what `ignore_malformed`
# of `logs@settings` does not let pass. A `flattened` field takes an object only; of a
# keyword without `ignore_above` an index takes 32,766 bytes.
FLATTENED = re.compile(r".*(structured_data|exports|imports)")
UNBOUNDED = re.compile(
    r".*\.(title|executable|name|working_directory|full_name)|.*file\.(target_)?path"
    r"|.*os\.full|email\.subject|vulnerability\.description|user_agent\.original"
)


def is_refused(name, value):
    """Whether a field makes the index of a data stream refuse its document."""
    texts = value if isinstance(value, list) else [value]
    immense = any(
        isinstance(text, str) and len(text.encode()) > 32766 for text in texts
    )
    is_odd_label = name.startswith("labels.") and not isinstance(value, str)
    unfit = UNBOUNDED.fullmatch(name) and immense
    return FLATTENED.fullmatch(name) or unfit or is_odd_label


def misfit(document):
    """Why an index of logs with the mappings of ECS refuses a document, or nothing."""
    for name, value in document.items():
        if name.startswith("_"):
            return f"[{name}] is a metadata field"
        if name in OBJECTS and not isinstance(value, dict):
            return f"object mapping [{name}] found a concrete value"
    fields = leaves(document)
    for name in fields:
        if not all(part.strip() for part in name.split(".")):
            return f"[{name}] cannot be an object's name"
    for names, kind in ((KEYWORDS, str), (NUMBERS, int), (DATES, str)):
        for name in names:
            if name in fields and type(fields[name]) is not kind:
                return f"failed to parse [{name}]"
    if "@timestamp" not in fields or "host.name" not in fields:
        return "logsdb sorts by host.name and @timestamp"
    for name, value in fields.items():
        if is_refused(name, value):
            return f"failed to parse field [{name}], or immense term"
    return f"limit of {len(fields)} fields" if len(fields) > 1000 else ""


class Cluster:
    """Judges `_bulk` requests as documented, creates documents as a cluster does."""

    def __init__(self, tools):
        self.Answer = tools.Answer
        self.documents = {}
        self.aside = []
        self.to_failure_store = lambda _: False
        self.fate = lambda _: 201

    def __call__(self, seen):
        assert seen.method == "POST"
        assert seen.path.endswith("/_bulk")
        assert seen.headers["content-type"] == "application/x-ndjson"
        assert "filter_path" in seen.query
        assert seen.body.endswith(b"\n")
        lines = seen.body[:-1].split(b"\n")
        assert len(lines) % 2 == 0
        items = []
        for action, source in zip(lines[::2], lines[1::2], strict=True):
            ((kind, about),) = orjson.loads(action).items()
            document = orjson.loads(source)
            assert kind == "create"
            assert len(about["_id"]) <= 512
            items.append({"create": self.create(about["_id"], document)})
        errors = any(item["create"]["status"] >= 300 for item in items)
        return self.Answer(200, orjson.dumps({"errors": errors, "items": items}))

    def create(self, identifier, document):
        """Create a document; what does not fit the mapping is refused, or put aside."""
        status = self.fate(document)
        why = "" if status == 201 else f"is {status}"
        if self.to_failure_store(document):
            self.aside.append(document)
            return {"status": 201, "failure_store": "used"}
        if status == 201 and (why := misfit(document)):
            status = 400
        if status == 201:
            status = 409 if identifier in self.documents else 201
            self.documents.setdefault(identifier, document)
        item = {"status": status}
        if status >= 300:
            item["error"] = {"type": "some_exception", "reason": why}
        return item

    @property
    def seqs(self):
        """The numbers of the documents, in the order of creation."""
        return [document["logagg"]["seq"] for document in self.documents.values()]


@pytest.fixture
def cluster(target, tools):
    """A cluster."""
    judge = Cluster(tools)
    target.default = judge
    return judge


def test_contract_of_a_sink(target, cluster, tmp_path):
    """The Elasticsearch sink keeps the contract that every sink has."""
    url = f"elasticsearch+{target.url}/?batch_age=0.05&spool={tmp_path}"
    check_sink(
        lambda: build(url).sink,
        lambda: [{"seq": seq} for seq in cluster.seqs],
    )


def test_documents(cluster, make, tools, target):
    """A record is a document of the data stream in ECS, objects as their text."""
    line = make_line(
        1,
        user={"id": 7},
        tags=["a", "b"],
        list=[{"a": 1}],
        exception={"type": "E", "message": "m", "cause": {"type": "F"}},
    )
    tools.send(make("pipeline=p1"), make_batch([line]))

    assert target.seen[0].path == "/logs-logagg-default/_bulk"
    assert target.seen[0].query["pipeline"] == "p1"
    (document,) = cluster.documents.values()
    assert document["@timestamp"] == "2026-11-25T01:00:00.001000000Z"
    assert document["message"] == "hello"
    assert "timestamp" not in document
    assert document["labels"]["user"] == '{"id":7}'
    assert document["tags"] == ["a", "b"]
    assert document["list"] == '[{"a":1}]'
    assert document["error"] == {"type": "E", "message": "m"}
    assert document["logagg"]["exception"] == '{"cause":{"type":"F"}}'


def test_objects_as_they_are(cluster, make, tools, target):
    """`nested=object` sends objects as objects; `index` and path are the user's."""
    line = make_line(1, user={"id": 7})
    tools.send(make("nested=object&index=app-1"), make_batch([line]))

    assert target.seen[0].path == "/app-1/_bulk"
    (document,) = cluster.documents.values()
    assert document["user"] == {"id": 7}


HOSTILE = {
    "host": "h1",
    "user": "ann",
    "log": "text",
    "process": {"a": 1},
    "event": 7,
    "error": "boom",
    "client": "10.0.0.1",
    "labels": {"a": 1, "b.c": [1]},
    "tags": {"not": "tags"},
    "data_stream": "x",
    "_id": "1",
    "_source": "2",
    "@timestamp": "yesterday",
    "a..b": 1,
    ".a": 2,
    "a.": 3,
    " ": 4,
    "": 5,
    "a": 1,
    "a.b": 2,
    "a_b": 3,
    "http.request.method": "GET",
    "http.request": 8,
    "message.x": 1,
    "trace_id": 5,
    "ecs": {"version": 1},
    "logagg": 9,
    "x" * 400: 1,
    "imports": 12,
    "file.exports": "none",
    "structured_data": "a b",
    "server": "s" * 40_000,
    "process.title": "\u00e9" * 20_000,
    "name": "n" * 40_000,
    "file": {"imports": 3, "name": "f" * 40_000},
    "deep": {"exports": 4, "more": {"name": "d" * 40_000}},
}


@pytest.mark.parametrize("options", ["", "nested=object"])
def test_no_field_of_a_caller_makes_a_document_unfit(cluster, make, tools, options):
    """Whatever a field is called, the record is created, and the value is in it."""
    lines = [make_line(0, **HOSTILE)]
    lines += [
        make_line(number, **{name: HOSTILE[name]})
        for number, name in enumerate(HOSTILE, 1)
        if name != "trace_id"
    ]
    lines.append(make_line(900, **{f"k{number}": number for number in range(3000)}))
    sink = make(options)
    tools.send(sink, make_batch(lines))

    assert len(cluster.documents) == len(lines)
    assert "dead_lettered" not in sink.counters
    first = next(iter(cluster.documents.values()))
    assert first["host"] == {"name": "h1"}
    assert first["user"] == {"name": "ann"}
    assert first["@timestamp"] == "2026-11-25T01:00:00.000000000Z"
    values = set(map(str, leaves(first).values()))
    for value in HOSTILE.values():
        if not isinstance(value, dict):
            assert str(value) in values


def test_the_shapes_are_those_of_ecs_logging(cluster, make, tools):
    """Elastic's own formatter puts the same things in the same places."""
    ecs_logging = pytest.importorskip("ecs_logging")
    record = logging.LogRecord("app.db", 30, "/a/b.py", 12, "hello", (), None, "work")
    record.process, record.processName, record.threadName = 4711, "Main", "T1"
    theirs = leaves(orjson.loads(ecs_logging.StdlibFormatter().format(record)))
    line = make_line(
        1, level="warning", logger="app.db", file="b.py", line=12, function="work"
    )
    line = line.replace(b'"MainProcess"', b'"Main"').replace(b'"MainThread"', b'"T1"')
    tools.send(make(), make_batch([line]))

    mine = leaves(next(iter(cluster.documents.values())))
    shared = theirs.keys() - {"@timestamp", "ecs.version", "log.original"}
    shared -= {"process.thread.id"}
    assert len(shared) >= 8
    assert {name: mine[name] for name in shared} == {
        name: theirs[name] for name in shared
    }


def test_the_failure_store_is_no_success(cluster, make, tools):
    """What a failure store took is counted as that; a stream of it suspends the sink."""
    cluster.to_failure_store = lambda document: document["logagg"]["seq"] > 0
    alarms, states = [], []
    sink = make()
    sink.alarm = lambda event, level, text: alarms.append((str(event), level))

    async def nap(seconds):
        states.append((sink.health().state, seconds))

    sink.sleep = nap
    tools.send(sink, make_batch(5))
    assert sink.counters["failure_stored"] == len(cluster.aside) == 4
    assert sink.counters["acked"] == 1
    assert states == []

    sink = make()
    sink.alarm = lambda event, level, text: alarms.append((str(event), level))
    sink.sleep = nap

    async def scenario():
        async with tools.opened(sink):
            await sink.write(make_batch(25, start=5))
            await tools.until(lambda: states, "the suspension")

    asyncio.run(scenario())
    assert sink.counters["failure_stored"] == 25
    assert states == [(SinkState.SUSPENDED, 30)]
    assert ("sink_suspended", "error") in alarms


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_item_that_an_operator_must_repair_is_held(cluster, make, tools, status):
    """A missing index or right is no fault of a document: it waits, and is created."""
    fates = [status, 201]
    cluster.fate = lambda document: fates.pop(0) if fates else 201
    states = []
    sink = make()

    async def nap(seconds):
        states.append((sink.health().state, seconds))

    sink.sleep = nap
    tools.send(sink, make_batch(2))

    assert sorted(cluster.seqs) == [0, 1]
    assert states == [(SinkState.SUSPENDED, 30)]


def test_items_are_settled_one_by_one(cluster, make, tools, target, naps):
    """Of [201, 409, 429, 400, 503] only 429 and 503 go again, and 400 is put aside."""
    fates = {0: [201], 1: [409], 2: [429, 429, 201], 3: [400], 4: [503, 201]}
    cluster.fate = lambda document: fates[document["logagg"]["seq"]].pop(0)
    sink = make()
    tools.send(sink, make_batch(5))

    sent = [
        [orjson.loads(line)["logagg"]["seq"] for line in seen.body.split(b"\n")[1::2]]
        for seen in target.seen
    ]
    assert sent == [[0, 1, 2, 3, 4], [2, 4], [2]]
    assert naps.seconds == [1, 2]
    assert sink.counters["acked"] == 4
    assert sink.counters["dead_lettered"] == 1
    letter = orjson.loads((sink.folder / "dead-letters-0.ndjson").read_bytes())
    assert letter["record"]["seq"] == 3
    assert letter["reason"] == "item status 400: some_exception: is 400"


def test_a_lost_answer_creates_nothing_twice(cluster, make, tools, target):
    """A batch that is sent again after it was taken is recognized by its ids."""

    def take_and_fail(seen):
        cluster(seen)
        return tools.Answer(504)

    target.script = [take_and_fail]
    sink = make()
    tools.send(sink, make_batch(5))

    assert cluster.seqs == list(range(5))
    assert sink.counters["acked"] == 5


def test_a_record_has_one_id_whenever_it_was_received(make):
    """A record that came through two consumers has one id; another one has another."""
    encode = make().target.encode
    line = make_line(1)
    first = encode(line + b',"received":"2026-11-25T01:00:01.000000000Z"}')[0]
    second = encode(line + b',"received":"2026-11-25T01:00:09.000000000Z"}')[0]
    other = encode(make_line(2) + b',"received":"2026-11-25T01:00:01.000000000Z"}')[0]

    names = [data.split(b"\n")[0] for data in (first, second, other)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    "body", [b"", b"<html>hello</html>", b'{"ok":true}', b"[]", b'{"errors":"?"}']
)
def test_an_answer_of_somebody_else_is_no_success(make, tools, target, body, naps):
    """A 200 that is not `_bulk`'s holds the sink, or is asked for again."""
    target.script = [tools.Answer(200, body)]
    target.default = tools.Answer(200, b'{"errors":false}')
    sink = make()
    tools.send(sink, make_batch(2))

    assert len(target.seen) == 2
    assert len(naps.seconds) == 1


def test_an_answer_with_items_missing_is_asked_for_again(cluster, make, tools, target):
    """When the items do not match the records, all are sent again: ids make it safe."""
    text = b'{"errors":true,"items":[{"create":{"status":201}}]}'
    target.script = [tools.Answer(200, text)]
    sink = make()
    tools.send(sink, make_batch(5))

    assert cluster.seqs == list(range(5))
    assert sink.counters["acked"] == 5


def test_a_blocked_index_suspends(cluster, make, tools, target):
    """403 (a full disk makes indices read-only) is waited out slowly."""
    target.script = [tools.Answer(403, b"cluster_block_exception")]
    states = []
    sink = make()

    async def nap(seconds):
        states.append((sink.health().state, seconds))

    sink.sleep = nap
    tools.send(sink, make_batch(2))

    assert states == [(SinkState.SUSPENDED, 30)]
    assert cluster.seqs == [0, 1]


@pytest.mark.parametrize(
    ("scheme", "sent"),
    [("elasticsearch", "ApiKey a:bc-def"), ("opensearch", "Basic YTpiYy1kZWY=")],
)
def test_authorization(cluster, make, tools, target, monkeypatch, scheme, sent):
    """Elasticsearch gets an API key, OpenSearch user and password, by default."""
    monkeypatch.setenv("SECRET", "a:bc-def")
    tools.send(make("token=env:SECRET", scheme=f"{scheme}+"), make_batch(1))

    assert target.seen[0].headers["authorization"] == sent


def test_a_request_that_is_refused_whole_is_halved(cluster, make, tools, target):
    """A 400 for the whole request costs only the record that caused it."""

    def judge(seen):
        return tools.Answer(400) if b'"seq":5}' in seen.body else cluster(seen)

    target.default = judge
    sink = make()
    tools.send(sink, make_batch(32))

    assert cluster.seqs == [seq for seq in range(32) if seq != 5]
    assert sink.counters["dead_lettered"] == 1
