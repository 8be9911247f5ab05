"""OTLP: what is sent is what the official package reads, and its rules are kept."""

from __future__ import annotations

import math
import socket

import orjson
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from logagg.sinks import build
from logagg.testing import check_sink, make_batch, make_line
from logagg_sinks import _protobuf as pb
from logagg_sinks._otlp_encode import severity
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.retry import Action
from logagg_sinks.http.http_client import Response
from logagg_sinks.otlp import OtlpSink

SCHEME = "otlp+"
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def read(body):
    """A request as the official package reads it; unknown fields are an error."""
    request = ExportLogsServiceRequest()
    request.ParseFromString(body)
    assert request.SerializeToString() != b"" or body == b""
    return request


def value(any_value):
    """An AnyValue as a Python value."""
    kind = any_value.WhichOneof("value")
    if kind is None:
        return None
    found = getattr(any_value, kind)
    if kind == "array_value":
        return [value(part) for part in found.values]
    if kind == "kvlist_value":
        return {pair.key: value(pair.value) for pair in found.values}
    return found


def attributes(message):
    """Attributes as a dictionary; a name that comes twice is an error."""
    keys = [pair.key for pair in message.attributes]
    assert len(keys) == len(set(keys))
    assert "" not in keys
    return {pair.key: value(pair.value) for pair in message.attributes}


def logs(request):
    """All log records of a request, in order."""
    return [
        log
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for log in scope.log_records
    ]


def encode(*lines, **options):
    """The body for these lines, and the target that made it."""
    target = OtlpSink("http://h", **options).target
    items = []
    for end, line in enumerate(lines, 1):
        data, group, size = target.encode(line)
        items.append(Item(end, line, data, group, size))
    body = target.body(items)
    assert len(body) <= sum(item.size for item in items)
    return body


def finished(line):
    """A line as it stands in the spool."""
    return line + b',"received":"2026-11-25T01:00:01.500000000Z"}'


def test_contract_of_a_sink(target, tmp_path):
    """The OTLP sink keeps the contract that every sink has."""

    def arrived():
        return [
            {"seq": attributes(log)["logagg.seq"]}
            for seen in target.seen
            for log in logs(read(seen.body))
        ]

    check_sink(
        lambda: build(f"otlp+{target.url}/?batch_age=0.05&spool={tmp_path}").sink,
        arrived,
    )


def test_a_request(target, make, tools):
    """A batch is POSTed to /v1/logs as protobuf, compressed with gzip."""
    tools.send(make(), make_batch(50))

    (seen,) = target.seen
    assert (seen.method, seen.path) == ("POST", "/v1/logs")
    assert seen.headers["content-type"] == "application/x-protobuf"
    assert seen.headers["content-encoding"] == "gzip"
    assert [attributes(log)["logagg.seq"] for log in logs(read(seen.body))] == [
        *range(50)
    ]


def test_a_record_field_by_field():
    """Everything that a record has is where OTLP wants it, and nothing is lost."""
    line = make_line(
        5,
        level="warning",
        logger="app.db",
        message="slow",
        status=503,
        ratio=0.5,
        ok=True,
        nothing=None,
        tags=["a", 1],
        user={"id": 7},
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        exception={"type": "E", "message": "m", "stack": "s", "notes": ["n"]},
    )
    request = read(encode(finished(line), service="shop"))

    (resource,) = request.resource_logs
    assert attributes(resource.resource) == {
        "service.name": "shop",
        "host.name": socket.gethostname(),
        "process.pid": 4711,
        "logagg.process": "MainProcess",
    }
    (scope,) = resource.scope_logs
    assert scope.scope.name == "app.db"
    (log,) = scope.log_records
    assert log.time_unix_nano == 1_795_568_400_005_000_000
    assert log.observed_time_unix_nano == 1_795_568_401_500_000_000
    assert (log.severity_number, log.severity_text) == (13, "warning")
    assert log.body.string_value == "slow"
    assert log.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert log.span_id.hex() == "b7ad6b7169203331"
    found = attributes(log)
    assert len(found.pop("log.record.uid")) == 32
    assert found == {
        "logagg.worker": "1",
        "logagg.seq": 5,
        "thread.name": "MainThread",
        "status": 503,
        "ratio": 0.5,
        "ok": True,
        "nothing": None,
        "tags": ["a", 1],
        "user": {"id": 7},
        "exception.type": "E",
        "exception.message": "m",
        "exception.stacktrace": "s",
        "exception.notes": ["n"],
    }


@pytest.mark.parametrize("bad", ["0" * 32, "xyz", 5, "0AF7651916CD43DD8448EB211C80319"])
def test_an_identifier_that_is_none_stays_an_attribute(bad):
    """A trace id that OTLP would refuse is kept as it is, among the attributes."""
    (log,) = logs(read(encode(finished(make_line(trace_id=bad)))))

    assert log.trace_id == b""
    assert attributes(log)["trace_id"] == bad


@pytest.mark.parametrize(
    ("level", "number", "expected"),
    [
        ("debug", None, 5),
        ("info", None, 9),
        ("warning", None, 13),
        ("error", None, 17),
        ("critical", None, 21),
        ("verbose", 15, 7),
        ("notice", 25, 11),
        ("trace", 5, 1),
        ("fatal2", 1000, 24),
        ("none", None, 0),
        ("bad", math.nan, 0),
    ],
)
def test_levels_have_numbers(level, number, expected):
    """Standard levels have OTLP's numbers; others lie between them."""
    assert severity(level, number) == expected


def test_processes_and_loggers_are_grouped():
    """A resource a process, a scope a logger; the order within each is kept."""
    lines = []
    for number in range(12):
        line = make_line(number, logger=f"l{number % 2}")
        pid = b'"pid":%d' % (number % 3)
        lines.append(finished(line.replace(b'"pid":4711', pid)))
    request = read(encode(*lines))

    assert len(request.resource_logs) == 3
    for resource in request.resource_logs:
        assert len(resource.scope_logs) == 2
        for scope in resource.scope_logs:
            seqs = [attributes(log)["logagg.seq"] for log in scope.log_records]
            assert seqs == sorted(seqs)
            assert len(seqs) == 2


def test_too_many_attributes_are_counted():
    """Beyond 128 attributes the rest is dropped and the number is said."""
    extra = {f"k{number}": number for number in range(300)}
    (log,) = logs(read(encode(finished(make_line(**extra)))))

    assert len(log.attributes) == 128
    assert log.dropped_attributes_count == 300 + 4 - 128


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4
        )
    ),
    max_leaves=12,
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


def expected(found):
    """What OTLP can hold of a value: numbers beyond 64 bits are texts."""
    if isinstance(found, bool) or not isinstance(found, int | list | dict):
        return found
    if isinstance(found, list):
        return [expected(part) for part in found]
    if isinstance(found, dict):
        return {key: expected(part) for key, part in found.items()}
    return found if found < 2**63 else str(found)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES.map(lambda name: f"x{name}"), JSON, max_size=5), JSON)
def test_both_encodings_are_read_back_by_the_official_package(extra, message):
    """Any record, as protobuf and as JSON, is read back by the official package."""
    record = orjson.loads(finished(make_line()))
    line = orjson.dumps(record | {"message": message} | extra)

    binary = read(encode(line))
    text = ExportLogsServiceRequest()
    json = orjson.loads(encode(line, encoding="json"))
    for resource in json["resourceLogs"]:
        assert "resource" in resource
    json_format.Parse(orjson.dumps(json), text)

    (log,) = logs(binary)
    assert value(log.body) == expected(message)
    found = attributes(log)
    assert {key: found[key] for key in extra} == expected(extra)
    assert binary == text


def test_identifiers_are_hexadecimal_in_json():
    """OTLP's JSON has ids in hex and 64-bit numbers as texts."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    line = finished(make_line(trace_id=trace, big=2**62))
    json = orjson.loads(encode(line, encoding="json"))

    (log,) = json["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert log["traceId"] == trace
    assert log["timeUnixNano"] == "1795568400000000000"
    assert log["severityNumber"] == 9
    big = next(pair for pair in log["attributes"] if pair["key"] == "big")
    assert big["value"] == {"intValue": str(2**62)}


@given(st.integers(-(2**63), 2**64 - 1), st.integers(1, 2**29 - 1), st.binary())
def test_fields_are_read_as_they_were_written(number, field, data):
    """Numbers and bytes of any size and sign come back."""
    message = pb.varint(field, number) + pb.length(field, data)

    assert list(pb.fields(message)) == [(field, number % 2**64), (field, data)]


@given(st.binary())
def test_any_bytes_are_a_message_or_refused(data):
    """What a broken target answers is read or refused with ValueError."""
    try:
        list(pb.fields(data))
    except ValueError:
        pass


def partial(rejected, message=""):
    """An answer with a partial success."""
    return ExportLogsServiceResponse(
        partial_success=ExportLogsPartialSuccess(
            rejected_log_records=rejected, error_message=message
        )
    ).SerializeToString()


@pytest.mark.parametrize("json", [False, True])
def test_a_partial_success_is_counted_and_not_repeated(
    target, make, tools, json, caplog
):
    """What was refused within a batch is counted; the batch is never sent again."""
    body, headers = partial(3, "no room"), PROTOBUF
    if json:
        body = b'{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"no room"}}'
        headers = {"Content-Type": "application/json"}
    target.script = [tools.Answer(200, body, headers)]
    sink = make("encoding=json" if json else "")
    tools.send(sink, make_batch(10))

    assert len(target.seen) == 1
    assert sink.counters["rejected_partial"] == 3
    assert sink.counters["acked"] == 7
    assert "no room" in caplog.text


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (204, b""),
        (200, partial(0)),
        (200, partial(0, "slow")),
        (202, b"{}"),
    ],
)
def test_full_successes(target, make, tools, status, body):
    """Empty answers and empty partial successes are successes."""
    target.script = [tools.Answer(status, body, PROTOBUF)]
    sink = make()
    tools.send(sink, make_batch(3))

    assert sink.counters["acked"] == 3
    assert len(target.seen) == 1


@pytest.mark.parametrize("status", [408, 425, 500, 507])
def test_what_may_not_be_retried_is_not(target, make, tools, status):
    """A status that OTLP does not list as retryable ends in the dead letters."""
    target.script = [tools.Answer(status)]
    sink = make()
    tools.send(sink, make_batch(3))

    assert len(target.seen) == 1
    assert sink.counters["dead_lettered"] == 3


def test_the_message_of_an_error_is_kept(target, make, tools):
    """A google.rpc.Status is read: its message stands in the dead letter."""
    status = pb.varint(1, 3) + pb.text(2, "bad thing")
    target.script = [tools.Answer(400, status, PROTOBUF)]
    sink = make()
    tools.send(sink, make_batch(1))

    letter = orjson.loads((sink.folder / "dead-letters-0.ndjson").read_bytes())
    assert letter["response"] == "bad thing"


def test_too_large_is_halved(target, make, tools):
    """A collector that answers 400 "request body too large" gets smaller requests."""

    def judge(seen):
        large = len(logs(read(seen.body))) > 30
        return tools.Answer(400, b"http: request body too large") if large else OK

    OK = tools.Answer()  # noqa: N806
    target.default = judge
    sink = make()
    tools.send(sink, make_batch(100))

    assert sink.counters["acked"] == 100


def test_a_body_stays_within_its_limit(target, make, tools):
    """No request is larger than `batch_bytes`, groups included."""
    tools.send(make("batch_bytes=64KiB"), make_batch(2000))

    assert max(len(seen.body) for seen in target.seen) <= 64 * 1024
    seqs = [
        attributes(log)["logagg.seq"] for s in target.seen for log in logs(read(s.body))
    ]
    assert seqs == list(range(2000))


@pytest.mark.parametrize(
    ("kind", "body", "action"),
    [
        ("text/plain", b"(a", Action.HOLD),  # field 5, a number, as it happens
        ("text/html; charset=utf-8", b"(a", Action.HOLD),
        ("text/plain", b"", Action.OK),
        ("", b"(a", Action.OK),
        ("application/x-protobuf", b"(a", Action.OK),
    ],
)
def test_a_text_that_could_be_a_message_is_no_success(kind, body, action):
    """What a proxy or a login page answers is known by its type."""
    service = build("otlp+https://h").sink.target
    verdict = service.judge(Response(200, {"content-type": kind}, body), 2)
    assert verdict.action is action


def test_a_negative_number_of_refused_records_is_none():
    """As the official package writes it; it would make dead letters of all."""
    partial = ExportLogsPartialSuccess(rejected_log_records=-1)
    body = ExportLogsServiceResponse(partial_success=partial).SerializeToString()
    service = build("otlp+https://h").sink.target
    headers = {"content-type": "application/x-protobuf"}
    verdict = service.judge(Response(200, headers, body), 2)
    assert (verdict.action, verdict.refused, verdict.uncounted) == (Action.OK, {}, 0)
