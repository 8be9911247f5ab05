"""Access logs of web servers give the same fields, whichever server wrote them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from logagg.dialects.access_logs import access_fields, with_access_fields
from logagg.dialects.printed import printed_fields

COMMON = {"method": "GET", "path": "/x", "query": "a=1", "status": 200}
ATOMS = {
    "h": "10.0.0.1", "m": "GET", "U": "/x", "q": "a=1", "s": "200", "B": 2, "D": 1500,
}  # fmt: skip


def record(name: str, message: str, *arguments: Any, **extra: Any) -> logging.LogRecord:
    """A record as a server logs it."""
    return logging.getLogger(name).makeRecord(
        name, 20, "server.py", 1, message, arguments, None, extra=extra
    )


RECORDS = [
    (
        record(
            "uvicorn.access",
            '%s - "%s %s HTTP/%s" %d',
            "10.0.0.1:5000", "GET", "/x?a=1", "1.1", 200,
        ),
        COMMON | {"client": "10.0.0.1:5000"},
    ),
    (
        record("gunicorn.access", "%(h)s", ATOMS),
        COMMON | {"client": "10.0.0.1", "bytes": 2, "duration_ms": 1.5},
    ),
    (
        record("hypercorn.access", "%(h)s", {**ATOMS, "B": "-", "h": "-"}),
        COMMON | {"duration_ms": 1.5},
    ),
    (
        record(
            "gunicorn.access",
            "%(h)s",
            {
                **ATOMS, "U": None, "q": None, "s": "500",
                "r": "GET /x?a=1 HTTP/1.1",
            },
        ),
        COMMON | {"status": 500, "client": "10.0.0.1", "bytes": 2, "duration_ms": 1.5},
    ),
    (
        record(
            "granian.access",
            "[%(time)s]",
            {
                "addr": "10.0.0.1", "time": "now", "dt_ms": 1.23456, "status": 200,
                "path": "/x", "query_string": "a=1", "method": "GET",
            },
        ),
        COMMON | {"client": "10.0.0.1", "duration_ms": 1.235},
    ),
    (
        record(
            "aiohttp.access",
            "text",
            first_request_line="GET /x?a=1 HTTP/1.1",
            response_status=200,
            response_size=2,
            remote_address="10.0.0.1",
            request_time_micro=1500,
        ),
        COMMON | {"client": "10.0.0.1", "bytes": 2, "duration_ms": 1.5},
    ),
    (
        record("django.server", '"%s" %s %s', "GET /x?a=1 HTTP/1.1", "200", "2"),
        COMMON | {"bytes": 2},
    ),
    (
        record(
            "werkzeug",
            '10.0.0.1 - - [29/Nov/2026 10:00:00] "%s" %s %s\n',
            "\x1b[33mGET /x?a=1 HTTP/1.1\x1b[0m", "200", "-",
        ),
        COMMON | {"client": "10.0.0.1"},
    ),
    (
        record(
            "tornado.access", "%d %s %.2fms", 200, "GET /x?a=1 (10.0.0.1)", 1.5004
        ),
        COMMON | {"client": "10.0.0.1", "duration_ms": 1.5},
    ),
    (
        record(
            "waitress.access",
            '10.0.0.1 - - [29/Nov/2026:10:00:00 +0000] "GET /x?a=1 HTTP/1.1" 200 2',
        ),
        COMMON | {"client": "10.0.0.1", "bytes": 2},
    ),
    (
        record("wsgi", '10.0.0.1 - - [x] "GET /x?a=1 HTTP/1.1" 200 2 "-" "curl"'),
        COMMON | {"client": "10.0.0.1", "bytes": 2},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("logged", "fields"), RECORDS, ids=lambda p: getattr(p, "name", "")
)
def test_every_server_gives_the_same_fields(
    logged: Any, fields: dict[str, Any]
) -> None:
    """What a server does not log is left out; the names are the same."""
    assert access_fields(logged) == fields


@pytest.mark.parametrize(
    "logged",
    [
        record("uvicorn.access", "a text of the user's own"),
        record("gunicorn.access", "%s", "x"),
        record("granian.access", "%(x)s", {"x": 1}),
        record("aiohttp.access", "no extras"),
        record("django.server", "Watching for file changes"),
        record("tornado.access", "%s", "odd"),
        record("werkzeug", "Running on http://127.0.0.1"),
        record("shop", '10.0.0.1 - - [x] "GET / HTTP/1.1" 200 2'),
    ],
    ids=lambda logged: logged.name,
)
def test_what_is_no_access_line_has_no_fields(logged: logging.LogRecord) -> None:
    """Other loggers, formats of a user's own and other versions keep their text."""
    assert access_fields(logged) == {}


def test_the_text_for_a_terminal_is_no_field() -> None:
    """uvicorn adds its message once more, with colours."""
    logged = record("uvicorn.error", "Started", color_message="\x1b[36mStarted")

    found = with_access_fields(logged)

    assert "color_message" not in vars(found)
    assert found.getMessage() == "Started"
    assert "color_message" in vars(logged)


def test_a_servers_banner_has_no_escapes() -> None:
    """werkzeug colours its texts, terminal or not; other loggers' texts are theirs."""
    logged = record("werkzeug", "\x1b[31mWARNING: %s\x1b[0m", "a server")
    assert with_access_fields(logged).getMessage() == "WARNING: a server"
    assert "\x1b" in logged.msg
    other = record("shop", "\x1b[31mred\x1b[0m")
    assert with_access_fields(other) is other


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            '127.0.0.1 - - [01/Dec/2026 03:51:41] "GET /x?a=1 HTTP/1.1" 200 -',
            COMMON | {"client": "127.0.0.1"},
        ),
        (
            '::1 - ann [01/Dec/2026:03:51:41 +0000] "GET /x?a=1 HTTP/1.1" 200 12 "-" "c"',
            COMMON | {"client": "::1", "bytes": 12},
        ),
        ("127.0.0.1 - - [01/Dec/2026 03:51:41] code 404, message File not found", {}),
        ('a - - [x] "GET / HTTP/1.1" 200 2', {}),
        ('say - - "GET / HTTP/1.1" 200 2', {}),
        ('a - - [01/Dec/2026 03:51:41] "GET / HTTP/1.1" 2000', {}),
    ],
)
def test_an_access_line_that_a_server_prints(text: str, fields: dict[str, Any]) -> None:
    """By its form, whatever the stream; anything else stays text."""
    level, found = printed_fields(text)
    assert found == {"message": text, **fields}
    assert level == ("info" if fields else None)
