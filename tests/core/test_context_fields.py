"""Spans of OpenTelemetry and the fields of a process, whichever way records come."""

import json
import logging
import os
import re
from pathlib import Path

import orjson
import pytest

import logagg.structlog
from logagg.client import context_fields
from logagg.client.context_fields import instrumented_name, process_fields
from logagg.core.record import with_span_names
from logagg.dialects.printed import printed_fields

trace = pytest.importorskip("opentelemetry.trace")

TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SPAN = trace.NonRecordingSpan(trace.SpanContext(TRACE_ID, SPAN_ID, is_remote=False))
SPAN_NAMES = ("trace_id", "span_id")
EXPECTED = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def span_of(record):
    """A record's two identifiers."""
    return record.get("trace_id"), record.get("span_id")


def test_the_active_span_is_on_records_of_logging(log, shared):
    """The application uses OpenTelemetry's API and nothing else of it."""
    logger, _ = log
    logger.info("outside")
    with trace.use_span(SPAN):
        logger.info("inside")
        logger.info("own", extra={"trace_id": "mine"})

    outside, inside, own = shared.records()
    assert span_of(outside) == (None, None)
    assert span_of(inside) == EXPECTED
    assert own["trace_id"] == "mine"
    assert "trace_id_" not in own


def test_the_active_span_is_on_records_of_structlog(shared):
    """The short way of an ordinary event, and the long one."""
    import structlog

    logagg.structlog.configure(level="info")
    try:
        logger = structlog.get_logger("shop")
        with trace.use_span(SPAN):
            logger.info("quick", order=7)
            logger.info("slow %s", "way", level_number=7)
    finally:
        structlog.reset_defaults()

    assert [span_of(each) for each in shared.records()] == [EXPECTED] * 2


def test_attributes_of_the_instrumentation_have_the_names_of_the_api(log, shared):
    """Its record factory puts them on each record, with "0" outside of a span."""
    logger, _ = log
    attributes = {
        "otelTraceID": EXPECTED[0],
        "otelSpanID": EXPECTED[1],
        "otelTraceSampled": True,
        "otelServiceName": "shop",
    }
    logger.info("inside", extra=attributes)
    with trace.use_span(SPAN):
        logger.info("both", extra=attributes)
    absent = {
        "otelTraceID": "0",
        "otelSpanID": "0",
        "otelTraceSampled": False,
        "otelServiceName": "",
    }
    logger.info("outside", extra=absent)

    inside, both, outside = shared.records()
    for each in (inside, both):
        assert span_of(each) == EXPECTED
        assert (each["trace_sampled"], each["service_name"]) == (True, "shop")
    names = {"trace_id", "span_id", "trace_sampled", "service_name"}
    assert not names & set(outside)
    assert not [n for each in (inside, both, outside) for n in each if "otel" in n]


@pytest.fixture
def in_a_task(monkeypatch):
    """A task runs in this process, as a queue's integration states it."""
    monkeypatch.setattr(logagg.Handler, "_contextual", True)
    fields = {"task_id": "t-1", "task_name": "shop.job", "task_retries": 2}
    monkeypatch.setattr(context_fields, "running", [lambda: fields, lambda: None])
    monkeypatch.setattr(logagg.structlog, "running", context_fields.running)
    return fields


def test_what_runs_now_is_on_records_of_logging_and_structlog(log, shared, in_a_task):
    """The short way of structlog and the long one; a field of the caller's wins."""
    import structlog

    logagg.structlog.configure(level="info")
    try:
        logger = structlog.get_logger("shop")
        logger.info("quick", order=7)
        logger.info("slow %s", "way", level_number=7)
        log[0].info("of logging")
        log[0].info("own", extra={"task_id": "mine"})
    finally:
        structlog.reset_defaults()

    *others, own = shared.records()
    assert [{n: e.get(n) for n in in_a_task} for e in others] == [in_a_task] * 3
    assert own["task_id"] == "mine"
    assert "task_id_" not in own


@pytest.mark.parametrize("value", [0, b"0", [], object()])
def test_any_value_may_have_a_name_of_the_instrumentation(value):
    """It is renamed, and encoded as any other."""
    assert instrumented_name("otelTraceID", value) == "trace_id"
    assert instrumented_name("otelOther", value) == "otelOther"


def test_a_formatter_that_names_an_absent_span_hides_no_other(log, shared):
    """It renders null where the instrumentation has put nothing on the record."""
    formatter = pytest.importorskip("pythonjsonlogger.json").JsonFormatter
    logger, handler = log
    handler.setFormatter(formatter("%(message)s %(otelTraceID)s %(otelSpanID)s"))
    logger.info("outside")
    with trace.use_span(SPAN):
        logger.info("inside")

    outside, inside = shared.records()
    assert not {"trace_id", "span_id"} & set(outside)
    assert span_of(inside) == EXPECTED


@pytest.mark.parametrize(
    "names",
    [
        ("otelTraceID", "otelSpanID"),
        ("trace.id", "span.id"),
        ("traceId", "spanId"),
        ("TraceId", "SpanId"),
        ("traceID", "spanID"),
        ("trace_id", "span_id"),
    ],
)
def test_a_span_in_printed_json_has_the_names_of_the_api(names):
    """Whatever other programs, and formatters, call it."""
    for values in (EXPECTED, tuple(each.upper() for each in EXPECTED)):
        event = {"message": "m", "order": 7, **dict(zip(names, values, strict=True))}
        _, fields = printed_fields(json.dumps(event))
        expected = EXPECTED if names[0] != "trace_id" else values
        assert span_of(fields) == expected
        assert set(fields) == {"message", "order", "trace_id", "span_id"}


def test_a_span_that_is_nested_in_printed_json_has_the_names_of_the_api():
    """As ECS has it; Google Cloud names its project before the trace."""
    ecs = {"message": "m", "trace": {"id": EXPECTED[0]}, "span": {"id": EXPECTED[1]}}
    service = "logging.googleapis.com/"
    google = {
        "message": "m",
        f"{service}trace": f"projects/p/traces/{EXPECTED[0]}",
        f"{service}spanId": EXPECTED[1],
    }
    for event in (ecs, google):
        _, fields = printed_fields(json.dumps(event))
        assert fields == {
            "message": "m",
            **dict(zip(SPAN_NAMES, EXPECTED, strict=True)),
        }


@pytest.mark.parametrize(
    "fields",
    [
        {"traceId": "1", "spanId": 2},
        {"trace.id": "0" * 32, "span.id": "x" * 16},
        {"dd.trace_id": "1", "trace": {"id": EXPECTED[0], "more": 1}},
        {"trace_id": "mine", "traceId": EXPECTED[0]},
    ],
)
def test_what_is_no_span_of_opentelemetrys_keeps_its_name(fields):
    """Numbers of other tracers, and a field that has the name already."""
    assert with_span_names(fields) == fields


@pytest.fixture
def environment(monkeypatch):
    """No variable that gives fields, but those that the test sets."""
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI_", "SLURM_", "MPI_", "LOCAL_RANK")) or (
            name in ("RANK", "WORLD_SIZE", "LOGAGG_HOST", "LOGAGG_APP")
        ):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {}),
        (
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8"},
            {"rank": 3, "local_rank": 1, "world_size": 8},
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
            {"rank": 0, "world_size": 2},
        ),
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "0"}, {"rank": 5, "local_rank": 0}),
        ({"RANK": "1", "SLURM_PROCID": "5"}, {"rank": 1}),
        ({"RANK": "first", "WORLD_SIZE": ""}, {}),
        ({"LOGAGG_HOST": "h-1", "LOGAGG_APP": "shop"}, {"host": "h-1", "app": "shop"}),
    ],
)
def test_the_environment_gives_the_fields_of_a_process(
    environment, variables, expected
):
    """Numbers as numbers; the first family of variables that is set."""
    for name, value in variables.items():
        environment.setenv(name, value)

    assert process_fields() == expected


def documented() -> list[tuple[str, str]]:
    """Each variable of the table in the manual, with its field."""
    page = Path(logagg.__file__).parent.joinpath("docs", "handler.md").read_text()
    rows = re.findall(
        r"^\| `(rank|local_rank|world_size)` \| (.*) \|$", page, re.MULTILINE
    )
    found = [
        (field, each) for field, text in rows for each in re.findall("`(.*?)`", text)
    ]
    assert len(found) == 12
    return found


@pytest.mark.parametrize(("field", "variable"), documented())
def test_each_variable_of_the_manual_gives_its_field(environment, field, variable):
    """Of torchrun, Open MPI, MPICH and SLURM, each by itself, and alone on a record."""
    environment.setenv(variable, "5")

    assert process_fields() == {field: 5}


def test_the_fields_of_a_process_are_on_each_record(environment, shared, tmp_path):
    """The first included; a field of the caller's wins."""
    import support

    code = support.PREAMBLE + (
        "import os; from multiprocessing import get_context\n"
        "def train(rank):\n"
        "    os.environ['RANK'] = str(rank)\n"
        "    logging.info('child')\n"
        "logging.basicConfig(handlers=[logagg.Handler(sys.argv[1])], level='INFO')\n"
        "logging.info('one'); logging.info('two', extra={'app': 'mine'})\n"
        "child = get_context('fork').Process(target=train, args=(4,))\n"
        "child.start(); child.join()\n"
    )
    environment.delenv("LOGAGG_SOCKET")
    environment.setenv("LOGAGG_APP", "shop")
    path = tmp_path / "app.log"
    support.python(code, path)
    support.settled()

    found = support.records(path)
    assert [each["app"] for each in found] == ["shop", "mine", "shop"]
    assert [each.get("rank") for each in found] == [None, None, 4]


def test_a_process_without_spans_and_fields_has_none(log, shared):
    """A record is what its caller gave."""
    logger, _ = log
    logger.log(logging.INFO, "x")
    (line,) = [each for each in shared.lines() if b'"logger":"logagg"' not in each]
    names = list(orjson.loads(line))
    assert names[4:] == ["logger", "message", "pid", "process", "thread", "received"]
