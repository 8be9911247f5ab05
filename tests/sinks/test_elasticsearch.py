"""Elasticsearch: documents are created once, and answers are read item by item."""

from __future__ import annotations

import orjson
import pytest

from logagg.sinks import build
from logagg.testing import check_sink, make_batch, make_line
from logagg_sinks._health import State

SCHEME = "elasticsearch+"


class Cluster:
    """Judges `_bulk` requests as documented, creates documents as a cluster does."""

    def __init__(self, tools):
        self.Answer = tools.Answer
        self.documents = {}
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
            assert "@timestamp" in document
            status = self.fate(document)
            if status == 201:
                status = 409 if about["_id"] in self.documents else 201
                self.documents.setdefault(about["_id"], document)
            item = {"status": status}
            if status >= 300:
                item["error"] = {"type": "some_exception", "reason": f"is {status}"}
            items.append({"create": item})
        errors = any(item["create"]["status"] >= 300 for item in items)
        answer = {"errors": errors} | ({"items": items} if errors else {})
        return self.Answer(200, orjson.dumps(answer))

    @property
    def seqs(self):
        """The numbers of the documents, in the order of creation."""
        return [document["seq"] for document in self.documents.values()]


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
    """A record becomes a document of the data stream, objects as their text."""
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
    assert document["user"] == '{"id":7}'
    assert document["tags"] == ["a", "b"]
    assert document["list"] == '[{"a":1}]'
    assert document["exception"] == {
        "type": "E",
        "message": "m",
        "cause": '{"type":"F"}',
    }


def test_objects_as_they_are(cluster, make, tools, target):
    """`nested=object` sends objects as objects; `index` and path are the user's."""
    line = make_line(1, user={"id": 7})
    tools.send(make("nested=object&index=app-1"), make_batch([line]))

    assert target.seen[0].path == "/app-1/_bulk"
    (document,) = cluster.documents.values()
    assert document["user"] == {"id": 7}


def test_items_are_settled_one_by_one(cluster, make, tools, target, naps):
    """Of [201, 409, 429, 400, 503] only 429 and 503 go again, and 400 is put aside."""
    fates = {0: [201], 1: [409], 2: [429, 429, 201], 3: [400], 4: [503, 201]}
    cluster.fate = lambda document: fates[document["seq"]].pop(0)
    sink = make()
    tools.send(sink, make_batch(5))

    sent = [
        [orjson.loads(line)["seq"] for line in seen.body.split(b"\n")[1::2]]
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

    assert states == [(State.SUSPENDED, 30)]
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
        return tools.Answer(400) if b'"seq":5,' in seen.body else cluster(seen)

    target.default = judge
    sink = make()
    tools.send(sink, make_batch(32))

    assert cluster.seqs == [seq for seq in range(32) if seq != 5]
    assert sink.counters["dead_lettered"] == 1
