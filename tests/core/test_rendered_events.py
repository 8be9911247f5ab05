"""Events that formatters and structlog rendered give the fields that they were made of."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest

from logagg.dialects.rendered_events import event_fields, parse_event


def made(**extra: Any) -> logging.LogRecord:
    """A record of logger `shop`, level error, with extra fields and an exception."""
    try:
        raise ValueError("bad card")
    except ValueError:
        info = sys.exc_info()
    return logging.getLogger("shop").makeRecord(
        "shop", 40, "/srv/pay.py", 41, "order %d", (5,), info, "charge", extra
    )


def formatters() -> dict[str, logging.Formatter]:
    """Formatters that teams use, as they are set up in their documentation."""
    ecs = pytest.importorskip("ecs_logging")
    json = pytest.importorskip("pythonjsonlogger.json")
    json_log = pytest.importorskip("json_log_formatter")  # Datadog's manual has it
    structlog = pytest.importorskip("structlog")
    formatter = structlog.stdlib.ProcessorFormatter
    return {
        "python-json-logger": json.JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s"
        ),
        "python-json-logger, renamed": json.JsonFormatter(
            "{asctime}{levelname}{message}",
            style="{",
            rename_fields={"levelname": "severity", "asctime": "ts"},
        ),
        "json-log-formatter": json_log.JSONFormatter(),
        "ecs-logging": ecs.StdlibFormatter(),
        "structlog": formatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.stdlib.ExtraAdder(),
            ],
            processors=[
                formatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        ),
    }


@pytest.mark.parametrize("name", formatters())
def test_a_formatters_json_gives_the_message_and_the_callers_fields(name: str) -> None:
    """Nothing of the formatter's own, nothing that the record says anyway."""
    record = made(order=42, password="hunter2")

    event = parse_event(formatters()[name].format(record))

    assert event is not None
    message, fields, _ = event_fields(event, record)
    assert message == "order 5"
    assert fields == {"order": 42, "password": "hunter2"}


def test_fields_that_the_formatter_adds_are_kept() -> None:
    """A static field is the user's; so is one that only looks like a time or a level."""
    record = made()
    event = {
        "event": "m", "service": "shop", "time": 5, "status": 404, "level": "gold",
        "name": "Ann", "timestamp": record.created, "_logger": 1, "_name": "shop",
    }  # fmt: skip

    _, fields, _ = event_fields(event, record)

    assert fields == {
        "service": "shop", "time": 5, "status": 404, "level": "gold", "name": "Ann",
    }  # fmt: skip


def test_the_keys_of_clouds_are_not_fields() -> None:
    """google-cloud-logging's structured output, but for the trace that it names."""
    record = made(order=7)
    service = "logging.googleapis.com/"
    event = {
        "message": "m", "severity": "ERROR", f"{service}labels": {"python_logger": "shop"},
        f"{service}trace": "projects/p/traces/t1", f"{service}spanId": "s1",
        f"{service}trace_sampled": False, f"{service}sourceLocation": {"line": 41},
        "httpRequest": {}, "region": "north",
    }  # fmt: skip

    assert event_fields(event, record)[:2] == (
        "m", {"trace_id": "t1", "span_id": "s1", "region": "north"},
    )  # fmt: skip


def test_the_place_of_the_call_has_one_set_of_names() -> None:
    """A formatter that is asked for them renders attributes of the record."""
    record = made()
    event = {
        "message": "m", "pathname": "/srv/pay.py", "filename": "pay.py", "lineno": 41,
        "funcName": "charge", "module": "pay", "stack_info": None, "levelno": 40,
    }  # fmt: skip

    _, fields, _ = event_fields(event, record)
    assert fields == {"file": "/srv/pay.py", "line": 41, "function": "charge"}
    _, fields, _ = event_fields({"message": "m", "filename": "pay.py"}, record)
    assert fields == {"file": "pay.py"}
    _, fields, _ = event_fields({"message": "m", "module": "theirs"}, record)
    assert fields == {"module": "theirs"}


def test_an_exception_that_structlog_has_rendered_is_the_records() -> None:
    """As text by `format_exc_info`, or taken apart by `dict_tracebacks`."""
    structlog = pytest.importorskip("structlog")
    record = made()
    renderers = (
        structlog.processors.format_exc_info,
        structlog.processors.dict_tracebacks,
    )
    for render in renderers:
        event = render(None, "error", {"event": "m", "exc_info": record.exc_info})
        bare = logging.makeLogRecord({**record.__dict__, "exc_info": None})

        _, fields, exception = event_fields(event, bare)

        assert fields == {}
        assert exception is not None
        assert (exception["type"], exception["message"]) == ("ValueError", "bad card")
        assert "Traceback (most recent call last):" in exception["stack"]
        assert exception["stack"].endswith("ValueError: bad card")


@pytest.mark.parametrize("text", ["", "plain", "[1]", "{broken", None, 5, '"x"'])
def test_other_texts_are_no_events(text: object) -> None:
    """A text that is no JSON object is a message as it stands."""
    assert parse_event(text) is None


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("renderer", ["ConsoleRenderer", "KeyValueRenderer", "Logfmt"])
def test_an_event_that_a_formatter_renders_as_text_is_taken_apart(
    log: Any, shared: Any, renderer: str, foreign: bool
) -> None:
    """Its fields are fields, redacted, with what the processors have added."""
    structlog = pytest.importorskip("structlog")
    formatter = structlog.stdlib.ProcessorFormatter
    last = {
        "ConsoleRenderer": structlog.dev.ConsoleRenderer(colors=False),
        "KeyValueRenderer": structlog.processors.KeyValueRenderer(),
        "Logfmt": structlog.processors.LogfmtRenderer(),
    }[renderer]
    processors = [
        formatter.remove_processors_meta,
        lambda _, __, event: {**event, "added": True},
        last,
    ]
    before = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()]
    logger, handler = log
    handler.setFormatter(formatter(foreign_pre_chain=before, processors=processors))
    fields = {"order": 42, "password": "hunter2"}
    if foreign:
        logger.warning("paid", extra=fields)
    else:
        logger = structlog.wrap_logger(
            logger,
            processors=[*before, formatter.wrap_for_formatter],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        logger.warning("paid", **fields)
    (record,) = [shared.record()]
    assert (record["level"], record["message"]) == ("warning", "paid")
    assert (record["order"], record["password"]) == (42, "[redacted]")
    assert record["added"] is True
    assert "hunter2" not in str(record)
    assert not {"_logger", "_name", "_record", "event"} & set(record)


@pytest.mark.parametrize("redact", [True, False])
def test_a_formatter_that_names_a_secret_is_not_given_it(
    log: Any, shared: Any, redact: bool
) -> None:
    """Nor one within a field; the record of other handlers has it still."""
    logger, handler = log
    handler._redact = redact
    handler.setFormatter(
        logging.Formatter("%(message)s by %(user)s, %(password)s, %(order)s")
    )
    user = {"name": "ann", "token": "t0psecret"}
    record = logger.makeRecord(
        "shop", 30, "", 0, "paid", (), None,
        extra={"user": user, "password": "hunter2", "order": 7},
    )  # fmt: skip
    logger.handle(record)
    (found,) = [shared.record()]
    assert ("hunter2" in found["message"]) is not redact
    assert ("t0psecret" in str(found)) is not redact
    assert "by {'name': 'ann', 'token'" in found["message"]
    assert found["message"].endswith(", 7")
    assert (record.password, user["token"]) == ("hunter2", "t0psecret")


def test_a_formatter_is_given_no_secret_of_a_dictionary_as_message(
    log: Any, shared: Any
) -> None:
    """Its text is the formatter's, without the value; the dictionary is as it was."""
    logger, handler = log
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    message = {"event": "paid", "of": {"token": "hunter2"}, "order": 7}
    logger.warning(message)
    found = shared.record()
    assert found["message"].startswith("WARNING {'event': 'paid'")
    assert "hunter2" not in str(found)
    assert message["of"] == {"token": "hunter2"}
