"""Lines of other programs: level, time, message, logger, exception and fields of each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg.dialects.foreign import prefixed_lines
from logagg.dialects.foreign.conversion import convert
from logagg.dialects.foreign.time_texts import instant

MOMENT = "2026-11-20T09:15:02.100000000Z"
WHOLE = "2026-11-20T09:15:02.000000000Z"
MS = 1_795_166_102_100


def converted(line: Any) -> dict[str, Any]:
    """The record of a line: a text, or an object that is written as JSON."""
    text = line if isinstance(line, str) else json.dumps(line)
    found = orjson.loads(convert(text.encode()))
    assert isinstance(found, dict)
    return found


LOGURU = {
    "text": "2026-11-20 09:15:02.100 | ERROR | shop.pay:charge:41 - refused\n"
    "Traceback (most recent call last):\n\nValueError: bad card\n",
    "record": {
        "exception": {"type": "ValueError", "value": "bad card", "traceback": True},
        "extra": {"order": 7},
        "function": "charge",
        "level": {"icon": "x", "name": "ERROR", "no": 40},
        "line": 41,
        "message": "refused",
        "name": "shop.pay",
        "process": {"id": 77, "name": "MainProcess"},
        "time": {"repr": "2026-11-20 09:15:02.100000+00:00", "timestamp": MS / 1000},
    },
}

RECORDS = {
    "pino": (
        {"level": 60, "time": MS, "pid": 7, "hostname": "h", "msg": "refused"},
        ("critical", MOMENT, "refused", None, {"pid": 7}),
    ),
    "pino without a host": (
        {"level": 30, "time": MS, "msg": "refused"},
        ("info", MOMENT, "refused", None, {}),
    ),
    "python numbers": (
        {"level": 30, "timestamp": MS / 1000, "message": "refused"},
        ("warning", MOMENT, "refused", None, {}),
    ),
    "slog": (
        {"time": "2026-11-20T10:15:02.1+01:00", "level": "INFO+2", "msg": "refused"},
        ("info", MOMENT, "refused", None, {"level_number": 22}),
    ),
    "slog below debug": (
        {"time": "2026-11-20T10:15:02.1+01:00", "level": "DEBUG-4", "msg": "refused"},
        ("debug", MOMENT, "refused", None, {"level_number": 6}),
    ),
    "slog above error": (
        {"time": "2026-11-20T10:15:02.1+01:00", "level": "ERROR+4", "msg": "refused"},
        ("error", MOMENT, "refused", None, {"level_number": 44}),
    ),
    "loguru": (
        LOGURU,
        ("error", MOMENT, "refused", "shop.pay", {"order": 7, "line": 41, "pid": 77}),
    ),
    "ecs nested": (
        {
            "@timestamp": MOMENT,
            "log": {"level": "ERROR", "logger": "shop", "origin": {"file": {"line": 4}}},
            "message": "refused",
        },
        ("error", MOMENT, "refused", "shop", {"log": {"origin": {"file": {"line": 4}}}}),
    ),
    "journald": (
        {
            "__REALTIME_TIMESTAMP": str(MS * 1000), "PRIORITY": "3", "_PID": "77",
            "SYSLOG_IDENTIFIER": "shop", "MESSAGE": "refused",
        },
        ("error", MOMENT, "refused", "shop", {"_PID": "77"}),
    ),
    "journald bytes": (
        {"__REALTIME_TIMESTAMP": str(MS * 1000), "MESSAGE": [114, 255]},
        ("info", MOMENT, "r\\xff", None, {}),
    ),
    "log4j2": (
        {
            "instant": {"epochSecond": MS // 1000, "nanoOfSecond": 100_000_000},
            "level": "ERROR", "loggerName": "shop", "message": "refused",
        },
        ("error", MOMENT, "refused", "shop", {}),
    ),
    ".NET": (
        {
            "EventId": 0, "LogLevel": "Error", "Category": "Shop", "Message": "refused",
            "Timestamp": "2026-11-20T09:15:02.100Z",
        },
        ("error", MOMENT, "refused", "Shop", {"EventId": 0}),
    ),
    "serilog": (
        {"@t": "2026-11-20T09:15:02.1Z", "@l": "Warning", "@m": "refused", "Order": 7},
        ("warning", MOMENT, "refused", None, {"Order": 7}),
    ),
    "google agent": (
        {
            "message": "refused", "severity": "ERROR",
            "timestamp": {"seconds": MS // 1000, "nanos": 100_000_000},
        },
        ("error", MOMENT, "refused", None, {}),
    ),
    "google entry": (
        {
            "jsonPayload": {"message": "refused", "order": 7}, "severity": "CRITICAL",
            "timestamp": "2026-11-20T09:15:02.1Z", "logName": "projects/x/logs/y",
        },
        ("critical", MOMENT, "refused", None, {"order": 7}),
    ),
    "docker json-file": (
        {
            "log": '{"level":"error","msg":"refused","order":7}\n', "stream": "stdout",
            "time": "2026-11-20T09:15:02.100000000Z",
        },
        ("error", MOMENT, "refused", None, {"order": 7, "stream": "stdout"}),
    ),
    "docker text": (
        {"log": "ERROR:shop:refused\n", "stream": "stderr", "time": MOMENT},
        ("error", MOMENT, "ERROR:shop:refused", None, {"stream": "stderr"}),
    ),
    "rust tracing": (
        {
            "timestamp": "2026-11-20T09:15:02.100000Z", "level": "ERROR",
            "fields": {"message": "refused", "order": 7}, "target": "shop::pay",
        },
        ("error", MOMENT, "refused", "shop::pay", {"order": 7}),
    ),
    "gelf": (
        {
            "version": "1.1", "host": "h", "short_message": "refused", "level": 3,
            "timestamp": MS / 1000, "_order": 7,
        },
        ("error", MOMENT, "refused", None, {"order": 7, "host": "h"}),
    ),
    "mongodb": (
        {"t": {"$date": "2026-11-20T10:15:02.100+01:00"}, "msg": "refused", "id": 7},
        ("info", MOMENT, "refused", None, {"id": 7}),
    ),
    "nginx": (
        {"time_iso8601": "2026-11-20T09:15:02+00:00", "level": "info", "msg": "refused"},
        ("info", WHOLE, "refused", None, {}),
    ),
    "compose": (
        'web-1  | {"level":"error","msg":"refused","order":7}',
        ("error", None, "refused", None, {"order": 7, "service": "web-1"}),
    ),
    "kubectl": (
        '2026-11-20T09:15:02.1Z {"level":"error","msg":"refused","order":7}',
        ("error", MOMENT, "refused", None, {"order": 7}),
    ),
    "cri": (
        '2026-11-20T09:15:02.1Z stdout F {"level":"error","msg":"refused","order":7}',
        ("error", MOMENT, "refused", None, {"order": 7, "stream": "stdout"}),
    ),
    "cri with the record's own time": (
        f'2026-11-20T09:15:09Z stdout F {{"level":"error","msg":"refused","ts":{MS}}}',
        ("error", MOMENT, "refused", None, {"collected_at": "2026-11-20T09:15:09Z"}),
    ),
    "syslog": (
        'Nov 20 09:15:02 host app[77]: {"level":"error","msg":"refused","order":7}',
        ("error", None, "refused", "app", {"order": 7, "host": "host", "pid": 77}),
    ),
    "zap": (
        '2026-11-20T09:15:02.100Z\tERROR\tpay/pay.go:41\trefused\t{"order":7}',
        ("error", MOMENT, "refused", None, {"order": 7, "caller": "pay/pay.go:41"}),
    ),
    "logfmt": (
        'level=error ts=2026-11-20T09:15:02Z msg="re \\"fused\\"" order=7 ok=true',
        ("error", WHOLE, 're "fused"', None, {"order": 7, "ok": True}),
    ),
    "basicConfig": (
        "ERROR:shop.pay:refused",
        ("error", None, "refused", "shop.pay", {}),
    ),
    "text": ("no ERROR was found", ("info", None, "no ERROR was found", None, {})),
    "pairs in a sentence": (
        "set level=3 and go",
        ("info", None, "set level=3 and go", None, {}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_program_is_understood(name: str) -> None:
    """Its parts have logagg's names, and none of its fields is lost."""
    line, (level, moment, message, logger, fields) = RECORDS[name]

    found = converted(line)

    assert found["level"] == level
    assert found.get("timestamp") == moment
    assert found["message"] == message
    assert found.get("logger") == logger
    assert {key: found.get(key) for key in fields} == fields


FRAMES = '  File "/srv/pay.py", line 41, in charge\n'
ERRORS = {
    "structlog": [
        {
            "exc_type": "ValueError", "exc_value": "bad card", "exc_notes": ["a note"],
            "is_cause": False, "frames": [],
        },
        {
            "exc_type": "KeyError", "exc_value": "'x'", "is_cause": True,
            "frames": [{"filename": "/srv/pay.py", "lineno": 41, "name": "charge"}],
        },
    ],
    "ecs": {"type": "ValueError", "message": "bad card", "stack_trace": FRAMES},
    "loguru": None,
    "text": f"Traceback (most recent call last):\n{FRAMES}ValueError: bad card\n",
}  # fmt: skip


@pytest.mark.parametrize("shape", ERRORS)
def test_an_exception_of_another_program_has_type_message_and_stack(shape: str) -> None:
    """In every shape, so that filters and views find them."""
    line = {"level": "error", "message": "m", "exception": ERRORS[shape]}

    error = converted(line if ERRORS[shape] else LOGURU)["exception"]

    assert (error["type"], error["message"]) == ("ValueError", "bad card")
    assert error["stack"].startswith("Traceback (most recent call last):\n")
    assert shape == "loguru" or FRAMES in error["stack"]
    if shape == "structlog":
        assert "direct cause" in error["stack"]
        assert error["stack"].endswith("ValueError: bad card\na note\n")
        assert error["notes"] == ["a note"]


@pytest.mark.parametrize(
    "text",
    [
        "Fri, 20 Nov 2026 09:15:02 GMT", "20/Nov/2026:09:15:02 +0000",
        "2026-11-20 09:15:02 UTC", "20261120T091502Z", "2026/11/20 09:15:02",
        "20261120T101502+0100", "1795166102", "1795166102000", "1795166102000000000",
    ],
)  # fmt: skip
def test_a_time_is_understood_in_every_widespread_form(text: str) -> None:
    """As text, and as text of a number."""
    assert instant(text) == MS // 1000 * 10**9


@pytest.mark.parametrize(
    "value",
    [True, -1, 1e30, "soon", "2026-13-40", "99/Foo/2026:09:15:02", {}, [], None],
)
def test_what_is_no_time_is_none(value: Any) -> None:
    """Nothing is guessed, and nothing is raised."""
    assert instant(value) is None


@pytest.fixture
def _new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_new_york")
def test_a_time_of_logging_is_local() -> None:
    """`asctime`, and the beginning of a line of text; JSON's other times are in UTC."""
    for line in (
        {"asctime": "2026-11-20 04:15:02,100", "message": "m"},
        {"time": "2026-11-20 09:15:02,100", "message": "m"},
        {"asctime": "2026-11-20 09:15:02,100Z", "message": "m"},
        "2026-11-20 04:15:02,100 ERROR shop: m",
        "[2026-11-20 09:15:02,100 +0000] [77] [ERROR] m",
    ):
        assert converted(line)["timestamp"] == MOMENT, line


@given(st.text(max_size=80))
def test_any_text_is_a_record(text: str) -> None:
    """Whatever it looks like: with a level and a message, and never an error."""
    found = prefixed_lines.record_of_text(text)

    assert "level" in found or "message" in found


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "record", "text", "log", "stream", "MESSAGE", "PRIORITY", "fields",
                "target", "jsonPayload", "textPayload", "short_message", "version",
                "host", "instant", "level", "time", "exception", "error",
                "__REALTIME_TIMESTAMP",
            ]
        ),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["level", "time", "name", "message", "type", "exc_type", "seconds"]
                ),
                inner,
                max_size=4,
            ),
            max_leaves=6,
        ),
        max_size=6,
    )
)  # fmt: skip
def test_no_object_that_looks_like_a_known_shape_is_an_error(line: Any) -> None:
    """Its parts may have any type."""
    converted(line)
