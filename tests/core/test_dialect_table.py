"""The table of dialects: where level, time, message, logger, exception, fields stand.

Each row is a line as that program writes it, and what the record of it has to be.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logagg.dialects.foreign.conversion import convert
from logagg.dialects.foreign.service_records import SERVICE_SHAPES
from logagg.dialects.foreign.text_forms import record_of_form

TENTH = "2026-11-20T09:15:02.100000000Z"
WHOLE = "2026-11-20T09:15:02.000000000Z"

Row = tuple[
    str, str, str | None, str, str | None, tuple[str, str] | None, dict[str, Any]
]

TABLE: dict[str, Row] = {
    # line, level, time, message, logger, type and message of the exception, fields
    "pino": (
        r'{"level":50,"time":1795166102100,"pid":77,"hostname":"h","name":"shop","msg":"card refused","err":{"type":"CardError","message":"bad card","stack":"CardError: bad card\n    at pay (/srv/pay.js:41:9)"},"order":7}',
        "error",
        TENTH,
        "card refused",
        "shop",
        ("CardError", "bad card"),
        {"order": 7},
    ),
    "bunyan": (
        r'{"name":"shop","hostname":"h","pid":77,"level":50,"err":{"message":"bad card","name":"CardError","stack":"CardError: bad card\n    at pay (/srv/pay.js:41:9)"},"order":7,"msg":"card refused","time":"2026-11-20T09:15:02.100Z","v":0}',
        "error",
        TENTH,
        "card refused",
        "shop",
        ("CardError", "bad card"),
        {"order": 7},
    ),
    "winston": (
        r'{"level":"error","message":"card refused","timestamp":"2026-11-20T09:15:02.100Z","label":"shop","stack":"CardError: bad card\n    at pay (/srv/pay.js:41:9)","order":7}',
        "error",
        TENTH,
        "card refused",
        None,
        ("CardError", "bad card"),
        {"order": 7},
    ),
    "winston npm": (
        '{"level":"silly","message":"card refused","timestamp":"2026-11-20T09:15:02.100Z"}',
        "trace",
        TENTH,
        "card refused",
        None,
        None,
        {},
    ),
    "slog json": (
        '{"time":"2026-11-20T09:15:02.1Z","level":"ERROR","source":{"function":"main.pay","file":"/srv/pay.go","line":41},"msg":"card refused","order":7}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "slog text": (
        'time=2026-11-20T09:15:02.100Z level=ERROR msg="card refused" order=7',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "zap": (
        r'{"level":"error","ts":1795166102.1,"logger":"shop","caller":"shop/pay.go:41","msg":"card refused","order":7,"error":"bad card","stacktrace":"main.pay\n\t/srv/pay.go:41"}',
        "error",
        TENTH,
        "card refused",
        "shop",
        ("", "bad card"),
        {"order": 7},
    ),
    "zap prod iso": (
        '{"level":"dpanic","ts":"2026-11-20T09:15:02.100Z","msg":"card refused"}',
        "critical",
        TENTH,
        "card refused",
        None,
        None,
        {},
    ),
    "zap console": (
        '2026-11-20T09:15:02.100Z\tERROR\tshop\tshop/pay.go:41\tcard refused\t{"order":7}',
        "error",
        TENTH,
        "card refused",
        "shop",
        None,
        {"order": 7},
    ),
    "zap iso8601 offset": (
        '2026-11-20T09:15:02.100+0000\tERROR\tcard refused\t{"order":7}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "zerolog": (
        '{"level":"error","error":"bad card","order":7,"time":"2026-11-20T09:15:02Z","message":"card refused"}',
        "error",
        WHOLE,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "zerolog console": (
        '2026-11-20T09:15:02Z ERR card refused error="bad card" order=7',
        "error",
        WHOLE,
        'card refused error="bad card" order=7',
        None,
        None,
        {},
    ),
    "logrus json": (
        '{"error":"bad card","level":"warning","msg":"card refused","order":7,"time":"2026-11-20T09:15:02Z"}',
        "warning",
        WHOLE,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "logrus text": (
        'time="2026-11-20T09:15:02Z" level=error msg="card refused" order=7',
        "error",
        WHOLE,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "log4j2 legacy": (
        r'{"instant":{"epochSecond":1795166102,"nanoOfSecond":100000000},"thread":"main","level":"ERROR","loggerName":"shop.pay","message":"card refused","thrown":{"commonElementCount":0,"message":"bad card","name":"shop.CardError","extendedStackTrace":"shop.CardError: bad card\n\tat shop.Pay.pay(Pay.java:41)"},"contextMap":{"order":"7"}}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        ("shop.CardError", "bad card"),
        {"order": "7"},
    ),
    "log4j2 timeMillis": (
        '{"timeMillis":1795166102100,"thread":"main","level":"FATAL","loggerName":"shop.pay","message":"card refused"}',
        "critical",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {"thread": "main"},
    ),
    "logback logstash": (
        r'{"@timestamp":"2026-11-20T09:15:02.1Z","@version":"1","message":"card refused","logger_name":"shop.pay","thread_name":"main","level":"ERROR","level_value":40000,"stack_trace":"shop.CardError: bad card\n\tat shop.Pay.pay(Pay.java:41)","order":7}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        ("shop.CardError", "bad card"),
        {"order": 7},
    ),
    "logback json": (
        '{"timestamp":1795166102100,"level":"ERROR","threadName":"main","loggerName":"shop.pay","mdc":{"order":"7"},"message":"card refused","throwable":{"className":"shop.CardError","message":"bad card","stepArray":[{"className":"shop.Pay","methodName":"pay","fileName":"Pay.java","lineNumber":41}]}}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        ("shop.CardError", "bad card"),
        {"order": "7"},
    ),
    "clef": (
        r'{"@t":"2026-11-20T09:15:02.1Z","@mt":"card {Card} refused","@l":"Error","@x":"Shop.CardException: bad card\n   at Shop.Pay.Charge() in Pay.cs:line 41","Card":"x","SourceContext":"Shop.Pay","order":7}',
        "error",
        TENTH,
        "card x refused",
        "Shop.Pay",
        ("Shop.CardException", "bad card"),
        {"order": 7},
    ),
    "clef info": (
        '{"@t":"2026-11-20T09:15:02.1Z","@m":"card refused"}',
        "info",
        TENTH,
        "card refused",
        None,
        None,
        {},
    ),
    "serilog json": (
        r'{"Timestamp":"2026-11-20T09:15:02.1Z","Level":"Error","MessageTemplate":"card {Card} refused","RenderedMessage":"card x refused","Exception":"Shop.CardException: bad card\n   at Shop.Pay.Charge()","Properties":{"Card":"x","SourceContext":"Shop.Pay","order":7}}',
        "error",
        TENTH,
        "card x refused",
        "Shop.Pay",
        ("Shop.CardException", "bad card"),
        {"order": 7},
    ),
    "dotnet console": (
        r'{"EventId":7,"LogLevel":"Critical","Category":"Shop.Pay","Message":"card refused","Exception":"Shop.CardException: bad card\n   at Shop.Pay.Charge()","State":{"order":7},"Timestamp":"2026-11-20T09:15:02.100Z"}',
        "critical",
        TENTH,
        "card refused",
        "Shop.Pay",
        ("Shop.CardException", "bad card"),
        {"order": 7},
    ),
    "tracing": (
        '{"timestamp":"2026-11-20T09:15:02.100Z","level":"ERROR","fields":{"message":"card refused","order":7},"target":"shop::pay","span":{"name":"charge"}}',
        "error",
        TENTH,
        "card refused",
        "shop::pay",
        None,
        {"order": 7},
    ),
    "ecs": (
        r'{"@timestamp":"2026-11-20T09:15:02.1Z","log.level":"ERROR","log.logger":"shop.pay","message":"card refused","error.type":"CardError","error.message":"bad card","error.stack_trace":"CardError: bad card\n\tat pay","order":7}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        ("CardError", "bad card"),
        {"order": 7},
    ),
    "ecs nested": (
        r'{"@timestamp":"2026-11-20T09:15:02.1Z","log":{"level":"error","logger":"shop.pay"},"message":"card refused","error":{"type":"CardError","message":"bad card","stack_trace":"x\ny"},"order":7}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        ("CardError", "bad card"),
        {"order": 7},
    ),
    "gelf": (
        r'{"version":"1.1","host":"h","short_message":"card refused","full_message":"card refused\nmore","timestamp":1795166102.1,"level":3,"_order":7,"_logger":"shop.pay"}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {"order": 7},
    ),
    "otlp": (
        '{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},"scopeLogs":[{"scope":{"name":"shop.pay"},"logRecords":[{"timeUnixNano":"1795166102100000000","severityNumber":17,"severityText":"ERROR","body":{"stringValue":"card refused"},"attributes":[{"key":"order","value":{"intValue":"7"}}],"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174"}]}]}]}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {"order": 7},
    ),
    "otlp record": (
        '{"timeUnixNano":"1795166102100000000","severityNumber":17,"body":{"stringValue":"card refused"},"attributes":[{"key":"order","value":{"intValue":"7"}}]}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "google": (
        '{"insertId":"a","jsonPayload":{"message":"card refused","order":7},"severity":"ERROR","timestamp":"2026-11-20T09:15:02.1Z","logName":"projects/p/logs/shop"}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "google warning word": (
        '{"severity":"NOTICE","message":"card refused","time":"2026-11-20T09:15:02.1Z"}',
        "notice",
        TENTH,
        "card refused",
        None,
        None,
        {},
    ),
    "cloudwatch": (
        '{"timestamp":1795166102100,"message":"card refused","ingestionTime":1795166103000,"eventId":"1"}',
        "info",
        TENTH,
        "card refused",
        None,
        None,
        {},
    ),
    "cloudwatch inner": (
        r'{"timestamp":1795166102100,"message":"{\"level\":\"ERROR\",\"message\":\"card refused\",\"order\":7}","ingestionTime":1795166103000,"logStreamName":"s"}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "lambda json": (
        r'{"timestamp":"2026-11-20T09:15:02Z","level":"ERROR","message":"card refused","logger":"shop","requestId":"r","errorType":"CardError","errorMessage":"bad card","stackTrace":["  File \"/var/task/pay.py\", line 41, in charge\n"]}',
        "error",
        WHOLE,
        "card refused",
        "shop",
        ("CardError", "bad card"),
        {},
    ),
    "lambda text": (
        "[ERROR]\t2026-11-20T09:15:02.100Z\t8f5e-1\tcard refused",
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"request_id": "8f5e-1"},
    ),
    "lambda node": (
        "2026-11-20T09:15:02.100Z\t8f5e1c2a-0000-4000-8000-000000000001\tERROR\tcard refused",
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"request_id": "8f5e1c2a-0000-4000-8000-000000000001"},
    ),
    "powertools": (
        r'{"level":"ERROR","location":"charge:41","message":"card refused","timestamp":"2026-11-20 09:15:02,100+0000","service":"shop","order":7,"exception":"Traceback (most recent call last):\n  File \"pay.py\", line 41\nValueError: bad card","exception_name":"ValueError"}',
        "error",
        TENTH,
        "card refused",
        None,
        ("ValueError", "bad card"),
        {"order": 7},
    ),
    "json-logger": (
        r'{"asctime":"2026-11-20 09:15:02,100","levelname":"ERROR","name":"shop.pay","message":"card refused","exc_info":"Traceback (most recent call last):\n  File \"pay.py\", line 41, in charge\nValueError: bad card","order":7}',
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        ("ValueError", "bad card"),
        {"order": 7},
    ),
    "postgres json": (
        '{"timestamp":"2026-11-20 09:15:02.100 UTC","user":"u","dbname":"d","pid":77,"session_id":"x","error_severity":"ERROR","message":"card refused","statement":"select 1","backend_type":"client backend"}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"user": "u", "pid": 77},
    ),
    "postgres text": (
        "2026-11-20 09:15:02.100 UTC [77] ERROR:  card refused",
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"pid": 77},
    ),
    "postgres text log": (
        "2026-11-20 09:15:02.100 UTC [77] LOG:  card refused",
        "info",
        TENTH,
        "card refused",
        None,
        None,
        {"pid": 77},
    ),
    "postgres user": (
        "2026-11-20 09:15:02.100 UTC [77] u@d FATAL:  card refused",
        "critical",
        TENTH,
        "card refused",
        None,
        None,
        {"pid": 77, "user": "u"},
    ),
    "mysql text": (
        "2026-11-20T09:15:02.100000Z 8 [ERROR] [MY-000001] [Server] card refused",
        "error",
        TENTH,
        "card refused",
        "Server",
        None,
        {"thread": "8", "code": "MY-000001"},
    ),
    "mysql json": (
        '{"prio":1,"err_code":1,"source_line":41,"source_file":"x.cc","function":"f","msg":"card refused","time":"2026-11-20T09:15:02.100000Z","ts":1795166102100,"err_symbol":"E","SQL_state":"HY000","subsystem":"Server","buffered":1,"label":"Error"}',
        "error",
        TENTH,
        "card refused",
        "Server",
        None,
        {"function": "f"},
    ),
    "mongodb": (
        '{"t":{"$date":"2026-11-20T09:15:02.100+00:00"},"s":"E","c":"NETWORK","id":7,"ctx":"conn1","msg":"card refused","attr":{"order":7}}',
        "error",
        TENTH,
        "card refused",
        "NETWORK",
        None,
        {"order": 7},
    ),
    "nginx json": (
        '{"time_iso8601":"2026-11-20T09:15:02+00:00","remote_addr":"10.0.0.1","request":"GET /pay HTTP/1.1","status":"500"}',
        "info",
        WHOLE,
        "GET /pay HTTP/1.1 500",
        None,
        None,
        {"status": "500"},
    ),
    "nginx error": (
        "2026/11/20 09:15:02 [error] 77#77: *7 card refused, client: 10.0.0.1",
        "error",
        WHOLE,
        "card refused, client: 10.0.0.1",
        None,
        None,
        {"pid": 77, "connection": 7},
    ),
    "nginx access": (
        '10.0.0.1 - - [20/Nov/2026:09:15:02 +0000] "GET /pay HTTP/1.1" 500 7 "-" "curl/8"',
        "info",
        WHOLE,
        '10.0.0.1 - - [20/Nov/2026:09:15:02 +0000] "GET /pay HTTP/1.1" 500 7 "-" "curl/8"',
        None,
        None,
        {"path": "/pay", "status": 500},
    ),
    "caddy": (
        '{"level":"error","ts":1795166102.1,"logger":"http.log.error","msg":"card refused","request":{"method":"GET","uri":"/pay"},"status":500}',
        "error",
        TENTH,
        "card refused",
        "http.log.error",
        None,
        {"status": 500},
    ),
    "traefik": (
        '{"ClientAddr":"10.0.0.1:5","DownstreamStatus":500,"RequestMethod":"GET","RequestPath":"/pay","StartUTC":"2026-11-20T09:15:02.1Z","level":"info","msg":"","time":"2026-11-20T09:15:02Z"}',
        "info",
        WHOLE,
        "GET /pay 500",
        None,
        None,
        {},
    ),
    "envoy json": (
        '{"start_time":"2026-11-20T09:15:02.100Z","method":"GET","path":"/pay","response_code":500}',
        "info",
        TENTH,
        "GET /pay 500",
        None,
        None,
        {"path": "/pay"},
    ),
    "envoy text": (
        "[2026-11-20 09:15:02.100][77][error][main] [source/server/server.cc:41] card refused",
        "error",
        TENTH,
        "[source/server/server.cc:41] card refused",
        "main",
        None,
        {"thread": "77"},
    ),
    "docker": (
        r'{"log":"{\"level\":\"error\",\"msg\":\"card refused\",\"order\":7}\n","stream":"stderr","time":"2026-11-20T09:15:02.100000000Z"}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "cri": (
        '2026-11-20T09:15:02.100000000Z stderr F {"level":"error","msg":"card refused","order":7}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "compose": (
        'web-1  | {"level":"error","ts":"2026-11-20T09:15:02.1Z","msg":"card refused","order":7}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "kubectl": (
        '2026-11-20T09:15:02.1Z {"level":"error","msg":"card refused","order":7}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "kubectl text": (
        '2026-11-20T09:15:02.1Z level=error msg="card refused" order=7',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "kubectl prefix": (
        '[pod/web-5d/app] {"level":"error","ts":"2026-11-20T09:15:02.1Z","msg":"card refused","order":7}',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "syslog3164": (
        "<11>Nov 20 09:15:02 h shop[77]: card refused",
        "error",
        None,
        "card refused",
        "shop",
        None,
        {"host": "h", "pid": 77},
    ),
    "syslog5424": (
        '<11>1 2026-11-20T09:15:02.100Z h shop 77 pay [a@1 order="7"] card refused',
        "error",
        TENTH,
        "card refused",
        "shop",
        None,
        {"order": "7"},
    ),
    "logfmt": (
        'level=error ts=2026-11-20T09:15:02.1Z msg="card refused" order=7',
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"order": 7},
    ),
    "py basic": (
        "ERROR:shop.pay:card refused",
        "error",
        None,
        "card refused",
        "shop.pay",
        None,
        {},
    ),
    "py asctime": (
        "2026-11-20 09:15:02,100 ERROR shop.pay: card refused",
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {},
    ),
    "py asctime dash": (
        "2026-11-20 09:15:02,100 - shop.pay - ERROR - card refused",
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {},
    ),
    "django": (
        '[20/Nov/2026 09:15:02] "GET /pay HTTP/1.1" 500 7',
        "info",
        WHOLE,
        '"GET /pay HTTP/1.1" 500 7',
        None,
        None,
        {"status": 500},
    ),
    "django verbose": (
        "ERROR 2026-11-20 09:15:02,100 views 77 139 card refused",
        "error",
        TENTH,
        "card refused",
        "views",
        None,
        {"pid": 77, "thread": "139"},
    ),
    "uvicorn": (
        "ERROR:    card refused",
        "error",
        None,
        "card refused",
        None,
        None,
        {},
    ),
    "gunicorn": (
        "[2026-11-20 09:15:02 +0000] [77] [ERROR] card refused",
        "error",
        WHOLE,
        "card refused",
        None,
        None,
        {"pid": 77},
    ),
    "celery": (
        "[2026-11-20 09:15:02,100: ERROR/MainProcess] card refused",
        "error",
        TENTH,
        "card refused",
        None,
        None,
        {"process": "MainProcess"},
    ),
    "java logback": (
        "09:15:02.100 [main] ERROR shop.pay -- card refused",
        "error",
        None,
        "09:15:02.100 [main] ERROR shop.pay -- card refused",
        None,
        None,
        {},
    ),
    "spring": (
        "2026-11-20T09:15:02.100Z ERROR 77 --- [shop] [main] shop.pay : card refused",
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {"pid": 77},
    ),
    "java": (
        "2026-11-20 09:15:02,100 [main] ERROR shop.pay - card refused",
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {"thread": "main"},
    ),
    "go log": (
        "2026/11/20 09:15:02 card refused",
        "info",
        WHOLE,
        "2026/11/20 09:15:02 card refused",
        None,
        None,
        {},
    ),
    "klog": (
        "E1120 09:15:02.100000      77 pay.go:41] card refused",
        "error",
        None,
        "card refused",
        None,
        None,
        {"pid": 77, "caller": "pay.go:41"},
    ),
    "loguru text": (
        "2026-11-20 09:15:02.100 | ERROR    | shop.pay:charge:41 - card refused",
        "error",
        TENTH,
        "card refused",
        "shop.pay",
        None,
        {"function": "charge"},
    ),
    "apache error": (
        "[Fri Nov 20 09:15:02.100000 2026] [core:error] [pid 77:tid 8] [client 10.0.0.1:5] card refused",
        "error",
        TENTH,
        "[client 10.0.0.1:5] card refused",
        "core",
        None,
        {"pid": 77},
    ),
    "redis": (
        "77:M 20 Nov 2026 09:15:02.100 # card refused",
        "warning",
        TENTH,
        "card refused",
        None,
        None,
        {"pid": 77},
    ),
}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC here: loggers of text write local time."""
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("name", TABLE)
def test_a_dialect_is_understood(name: str) -> None:
    """Each part stands under logagg's name, and only there."""
    line, level, moment, message, logger, error, fields = TABLE[name]

    found = orjson.loads(convert(line.encode()))

    assert found["level"] == level
    assert found.get("timestamp") == moment
    assert found.get("message") == message
    assert found.get("logger") == logger
    exception = found.get("exception")
    assert (exception and (exception["type"], exception["message"])) == error
    assert {key: found.get(key) for key in fields} == fields


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row[5] is not None])
def test_an_exception_has_its_stack(name: str) -> None:
    """The frames are in its text."""
    found = orjson.loads(convert(TABLE[name][0].encode()))
    stack = found["exception"]["stack"]
    assert "41" in stack or "Charge" in stack or "pay" in stack or "\n" in stack


def test_several_records_of_an_export_are_not_made_one() -> None:
    """The line stays as it is: none of them is chosen, none is lost."""
    record = {"timeUnixNano": "1", "body": {"stringValue": "a"}}
    line = orjson.dumps(
        {"resourceLogs": [{"scopeLogs": [{"logRecords": [record, record]}]}]}
    )
    found = orjson.loads(convert(line))
    assert len(found["resourceLogs"][0]["scopeLogs"][0]["logRecords"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20 09:15:02,100 ERROR Failed to pay: card refused",
        "ERROR: card refused",
        "2026-13-40 09:15:02,100 - shop.pay - ERROR - card refused",
        "[1] [2] [3] card refused",
        "a 10.0.0.1 of 5",
    ],
)
def test_what_has_no_form_keeps_its_text(text: str) -> None:
    """A word before a colon is a logger's name only where the form makes it certain."""
    assert orjson.loads(convert(text.encode()))["message"] == text


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *SERVICE_SHAPES, "message", "msg", "t", "c", "label", "subsystem", "State",
                "errorMessage", "error.message", "error", "stackTrace", "Timestamp",
                "Properties", "body", "severityNumber", "attributes", "method", "path",
            ]
        ),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "key", "value", "values", "intValue", "arrayValue", "name",
                        "kvlistValue", "scopeLogs", "logRecords", "className", "scope",
                    ]
                ),
                inner,
                max_size=3,
            ),
            max_leaves=8,
        ),
        max_size=6,
    )
)  # fmt: skip
def test_no_object_with_such_names_is_an_error(line: Any) -> None:
    """Its parts may have any type."""
    orjson.loads(convert(json.dumps(line).encode()))


@given(st.sampled_from(sorted(row[0] for row in TABLE.values())), st.data())
def test_no_part_of_a_line_is_an_error(line: str, data: st.DataObject) -> None:
    """Lines that are cut, or whose characters were changed."""
    begin = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(begin, len(line)))
    text = line[:begin] + data.draw(st.text(max_size=3)) + line[end:]
    record_of_form(text)
    orjson.loads(convert(text.encode("utf-8", "replace")))
