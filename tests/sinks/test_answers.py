"""What each answer that a target documents does to the records it is about.

A row has a status, a body and the outcome of a batch of two records:

    delivered      they count as delivered, after one request
    retry          the same again, after a pause
    split          each half in a request of its own, at once
    one dead       one is a dead letter, the other is delivered
    dead           both are dead letters
    one rejected   one is counted as rejected, nothing is sent again
    aside          one is stored where it does not belong, and counted
    hold           the sink is suspended with an alarm; nothing is dropped

The targets' answers are described in: OpenTelemetry's protocol specification, Loki's
push handler and its validation, Elasticsearch's bulk API, Splunk's table of the HTTP
Event Collector's codes.
"""

from __future__ import annotations

import orjson
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)

from logagg.testing import make_batch
from logagg_sinks.delivery.retry import Action
from logagg_sinks.http.http_client import Response
from logagg_sinks.splunk import Splunk, SplunkOptions

SUCCESS = {
    "": (200, b""),
    "otlp+": (200, b""),
    "loki+": (204, b""),
    "elasticsearch+": (200, b'{"errors":false}'),
    "opensearch+": (200, b'{"errors":false}'),
    "splunk+": (200, b'{"text":"Success","code":0}'),
}


def partial(rejected, message=""):
    """An OTLP answer in protobuf."""
    found = ExportLogsPartialSuccess(
        rejected_log_records=rejected, error_message=message
    )
    return ExportLogsServiceResponse(partial_success=found).SerializeToString()


def bulk(*statuses, error="mapper_parsing_exception", **more):
    """An answer of `_bulk` with a status for each document."""
    items = []
    for status in statuses:
        item = {"status": status}
        if status >= 300:
            item["error"] = {"type": error, "reason": "some text"}
        items.append({"create": item})
    items[0]["create"] |= more
    errors = any(status >= 300 for status in statuses)
    return orjson.dumps({"errors": errors, "items": items})


def code(number, **more):
    """An answer of Splunk's collector."""
    return orjson.dumps({"text": "some text", "code": number} | more)


def rows(outcome, *cases):
    """Cases with one outcome; a number alone is a status with an empty body."""
    return [
        (*(each if isinstance(each, tuple) else (each, b"")), outcome) for each in cases
    ]


PASSING = (429, 502, 503, 504)
MISTAKES = (301, 302, 307, 308, 401, 403, 404, 405, 406, 407, 410, 411, 501, 505, 511)

WEBHOOK = [
    *rows("delivered", 200, 201, 202, 204, (200, b'{"rejected":[]}')),
    *rows("one dead", (200, b'{"rejected":[{"index":1,"reason":"no"}]}')),
    *rows("dead", (200, b'{"rejected":[{"index":0},{"index":1}]}')),
    *rows("retry", *PASSING, 408, 409, 425, 500, 507, 520),
    *rows("split", 400, 413, 422, (400, b"request body is too large")),
    *rows("hold", *MISTAKES, 203, 206, 260, 402, 418),
]
OTLP = [
    *rows("delivered", 200, 202, 204, (200, b"{}"), (200, partial(0))),
    *rows("delivered", (200, partial(0, "soon no more"))),  # a warning
    *rows("one rejected", (200, partial(1, "no"))),
    *rows("dead", (200, partial(2, "no"))),
    *rows("retry", *PASSING),
    *rows("dead", 408, 425, 500, 507),  # all others must not be sent again
    *rows("split", 400, 413),
    *rows("hold", *MISTAKES, 409, (200, b"Welcome")),
]
LOKI = [
    *rows("delivered", 204, 200, (200, b"{}")),
    *rows("retry", *PASSING, 408, 500),
    *rows("retry", (429, b"ingestion rate limit exceeded")),
    *rows("retry", (429, b"per stream rate limit exceeded")),
    *rows("retry", (429, b"maximum active stream limit exceeded")),
    *rows("split", 413, (400, b"request body too large: 2 bytes, limit: 1 bytes")),
    *rows("split", (400, b"entry has timestamp too old"), (400, b"too far behind")),
    *rows("split", (400, b"max entry size exceeded"), (400, b"metadata too large")),
    *rows("hold", *MISTAKES, 260),
    *rows("hold", (200, b"ingestion blocked until tomorrow")),
    *rows("hold", (400, b"see limits_config.allow_structured_metadata")),
    *rows("hold", (400, b"missing required labels team for user blue")),
    *rows("hold", (400, b"entry has 12 label names; limit 10")),
    *rows("split", (400, b"stream '{a=\"allow_structured_metadata\"}' is too old")),
]
ELASTICSEARCH = [
    *rows("delivered", (200, b'{"errors":false}'), (200, bulk(201, 201))),
    *rows(
        "delivered", (200, bulk(201, 409, error="version_conflict_engine_exception"))
    ),
    *rows("aside", (200, bulk(201, 201, failure_store="used"))),
    *rows("one dead", (200, bulk(201, 400)), (200, bulk(400, 201))),
    *rows("dead", (200, bulk(400, 400))),
    *rows("retry", (200, bulk(429, 201, error="es_rejected_execution_exception"))),
    *rows("retry", (200, bulk(201, 503, error="unavailable_shards_exception"))),
    *rows("retry", (200, bulk(500, 201)), (200, bulk(201))),
    *rows("hold", (200, bulk(403, 201, error="cluster_block_exception"))),
    *rows("hold", (200, bulk(201, 404, error="index_not_found_exception"))),
    *rows("hold", (200, b"{}"), (200, b'{"errors":1}'), (200, b"[]"), (200, b"")),
    *rows("retry", *PASSING, 408, 500),
    *rows("split", 400, 413),
    *rows("hold", *MISTAKES, 409),
]
SPLUNK = [
    *rows("delivered", (200, code(0)), (200, code(24)), (200, code(25))),
    *rows("hold", (403, code(1)), (401, code(2)), (401, code(3)), (403, code(4))),
    *rows("dead", (400, code(5))),
    *rows("one dead", (400, code(6, **{"invalid-event-number": 0}))),
    *rows("one dead", (400, code(12, **{"invalid-event-number": 1}))),
    *rows("one dead", (400, code(13, **{"invalid-event-number": 0}))),
    *rows("one dead", (400, code(15, **{"invalid-event-number": 1}))),
    *rows("hold", *((400, code(number)) for number in (7, 10, 11, 14, 16, 21, 22))),
    *rows("hold", (400, code(7, **{"invalid-event-number": 0}))),
    *rows("retry", (500, code(8)), (503, code(9)), (503, code(18)), (503, code(19))),
    *rows("retry", (503, code(20)), (503, code(23)), (429, code(26)), (429, code(27))),
    *rows("hold", (200, code(17)), (200, b""), (200, b"{}"), (200, b"ok")),
    *rows("retry", *PASSING, 408, 425, 500),
    *rows("split", 413),
    *rows("hold", *MISTAKES, 409, 422),
]
TARGETS = {
    "": WEBHOOK,
    "otlp+": OTLP,
    "loki+": LOKI,
    "elasticsearch+": ELASTICSEARCH,
    "opensearch+": ELASTICSEARCH,
    "splunk+": SPLUNK,
}
CASES = [(kind, *row) for kind, found in TARGETS.items() for row in found]


def outcome(target, sink, naps, alarms):
    """What became of the two records."""
    count = sink.counters.get
    if "sink_suspended" in alarms:
        assert count("acked") == 2
        return "hold"
    for counter, name in (
        ("rejected_partial", "one rejected"),
        ("failure_stored", "aside"),
    ):
        if count(counter):
            assert (count(counter), count("acked"), len(target.seen)) == (1, 1, 1)
            return name
    if count("dead_lettered") == 2:
        return "dead"
    if count("dead_lettered"):
        assert count("acked") == 1
        return "one dead"
    assert count("acked") == 2
    if len(target.seen) == 1:
        return "delivered"
    return "retry" if naps.seconds else "split"


@pytest.mark.parametrize(("kind", "status", "body", "expected"), CASES)
def test_each_answer_has_its_outcome(
    target, make, tools, naps, kind, status, body, expected
):
    """The records are where the target's description says that they are."""
    headers = {}
    if kind == "otlp+" and status < 300:
        json = body.startswith(b"{")
        headers["Content-Type"] = f"application/{'json' if json else 'x-protobuf'}"
    target.script = [tools.Answer(status, body, headers)]
    target.default = tools.Answer(*SUCCESS[kind])
    alarms = []
    sink = make("compress=none", scheme=kind)
    sink.alarm = lambda event, level, text: alarms.append(str(event))

    tools.send(sink, make_batch(2))

    assert outcome(target, sink, naps, alarms) == expected


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (200, b'{"acks":{"7":true}}', Action.OK),
        (200, b'{"acks":{"7":false}}', Action.RETRY),
        (200, b'{"acks":{"8":true}}', Action.RETRY),
        (200, code(0), Action.HOLD),
        (200, b"<html>", Action.HOLD),
        (400, code(10), Action.HOLD),
        (400, code(11), Action.HOLD),
        (400, code(14), Action.HOLD),
        (401, code(3), Action.HOLD),
        (404, b"", Action.HOLD),
        (429, code(27), Action.RETRY),
        (500, code(8), Action.RETRY),
        (503, code(9), Action.RETRY),
    ],
)
def test_each_answer_about_an_acknowledgement(status, body, action):
    """Only `true` for this very receipt is a confirmation."""
    collector = Splunk(SplunkOptions(ack=True))

    assert collector.confirmation(Response(status, {}, body), "7") is action
