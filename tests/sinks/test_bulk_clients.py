"""`_bulk` as the official clients of Elasticsearch and OpenSearch speak and read it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from logagg.sinks import build
from logagg.testing import make_batch
from logagg_sinks.http.http_client import Response

STATUSES = (200, 201, 400, 403, 404, 409, 413, 429, 500, 501, 502, 503, 504, 100, 301)
ANSWER = orjson.dumps(
    {
        "took": 1,
        "errors": True,
        "items": [
            {"create": {"_index": "i", "_id": str(number), "status": status}}
            for number, status in enumerate(STATUSES)
        ],
    }
)


def client_of(kind: str, url: str) -> tuple[Any, Any]:
    """A client, and its helper for `_bulk`."""
    if kind == "elasticsearch+":
        elasticsearch = pytest.importorskip("elasticsearch")
        helpers = pytest.importorskip("elasticsearch.helpers")
        return elasticsearch.Elasticsearch(url), helpers.streaming_bulk
    opensearch = pytest.importorskip("opensearchpy")
    return opensearch.OpenSearch([url]), opensearch.helpers.streaming_bulk


@pytest.mark.parametrize("kind", ["elasticsearch+", "opensearch+"])
def test_requests_and_answers_are_those_of_the_official_client(
    target, make, tools, kind
) -> None:
    """The same documents make the same request; each item's status means the same.

    But for a conflict, which shows that an earlier attempt has created the document.
    """
    sink = make("compress=none", scheme=kind)
    created = orjson.dumps({"errors": False})
    target.default = tools.Answer(200, created, {"Content-Type": "application/json"})
    tools.send(sink, make_batch(len(STATUSES)))
    (ours,) = target.seen
    lines = [orjson.loads(line) for line in ours.body.splitlines()]
    actions = [
        {"_op_type": "create", "_id": action["create"]["_id"], "_source": document}
        for action, document in zip(lines[::2], lines[1::2], strict=True)
    ]

    headers = {
        "Content-Type": "application/json", "X-Elastic-Product": "Elasticsearch",
    }  # fmt: skip
    target.default = tools.Answer(200, ANSWER, headers)
    client, bulk = client_of(kind, target.url)
    try:
        found = bulk(
            client, actions, index="logs-logagg-default", raise_on_error=False,
            raise_on_exception=False, max_retries=0,
        )  # fmt: skip
        good = [ok for ok, _ in found]
    finally:
        client.close()

    theirs = target.seen[-1]
    assert theirs.path == ours.path  # PUT and POST are the same
    assert [orjson.loads(line) for line in theirs.body.splitlines()] == lines
    assert theirs.body.endswith(b"\n") == ours.body.endswith(b"\n")
    service = build(f"{kind}https://h").sink.target
    verdict = service.judge(Response(200, {}, ANSWER), len(STATUSES))
    bad = {*verdict.refused, *verdict.again}
    mine = [number not in bad for number in range(len(STATUSES))]
    assert mine == [
        ok or status == 409 for ok, status in zip(good, STATUSES, strict=True)
    ]
