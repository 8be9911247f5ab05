"""Parsers that are fuzzed: functions that take any bytes, and raise only for a fault.

url      a sink, as the command line and the environment name it
toml     a configuration file
head     the head of a connection's request, by which a sticky worker is chosen
answer   a target's answer to a request of a sink
text     a text in which secrets are recognized
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logagg.cli.check import kind_of
from logagg.cli.configuration import config, consent
from logagg.cli.configuration.found_file import parse as parse_toml
from logagg.errors import LogaggError
from logagg.filters.secret_texts import hide
from logagg.options import Setting, fields
from logagg.sinks import build, parse
from logagg.supervisor.sockets.head_peeker import proxied_client, request_of
from logagg.supervisor.sockets.sticky import Sticky
from logagg_sinks.http.http_client import Response

PARSER_SEEDS: dict[str, list[bytes]] = {
    "url": [
        b"file:app.log?max_bytes=50MB&backups=10&compress=gzip&redact=/[0-9]{16}/,secrets",
        b"stdout:?format=text&template={timestamp} {level} {message}&color=never",
        b"https://u:p%40w@[::1]:8443/in?token=env:T&header.X-A=b&query.q=file:/x&status=500:retry",
        b"loki+http://127.0.0.1:3100?labels=env=prod,logger&match=status>=500 a.b~x|y",
        b"otlp+https://h:4318/v1/logs?service=s&encoding=json&sample=10&collapse=5s",
        b"elasticsearch+https://h:9200?index=logs-a-b&nested=text&fields=a,b&drop=c",
        b"splunk+https://h:8088?ack=true&give_up=1m&required=true&queue_bytes=1MiB",
    ],
    "toml": [
        (b'sinks = ["file:app.log", {url = "https://h/in", token = "env:T", level = "error"}]\n'
        b'level = "info"\nmetrics = ":9464"\n[run]\nworkers = 4\nbind = [":8000"]\n'
        b'max_rss = "500MB"\n[tail]\nlines = 50\n[serve]\nonce = true\n'),
        b'[[sinks]]\nurl = "file:x"\nbackups = 3\n[send]\nlevel = "debug"\n[top]\ninterval = 1.5\n',
        b"a = 1979-05-27T07:32:00Z\nb = [[1, 2.5e3], {c = inf, d = nan}]\n'q r'.\"s\" = '''x\ny'''\n",
    ],
    "head": [
        b"GET /a?user=b%20c&x=1 HTTP/1.1\r\nHost: h\r\nCookie: sid=1; user=2\r\nX-User: 3\r\n\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1234 80\r\nGET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + bytes(range(12)) + b"GET / HTTP/1.1\r\n\r\n",
    ],
    "answer": [
        (b'{"errors":true,"items":[{"create":{"status":429,"error":{"type":"x","reason":"y"}}},'
        b'{"create":{"status":201}},{"create":{"status":400,"error":{"type":"z"}}}]}'),
        b'{"text":"Invalid data format","code":6,"invalid-event-number":1,"ackId":7}',
        b'{"text":"x","code":{},"invalid-event-number":1}', b'{"acks":{"7":true}}', b'{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"m"}}',
        b"\x0a\x06\x08\x02\x12\x02no", b"entry for stream '{a=\"b\"}' has timestamp too old",
        b"<html>login</html>", b"",
    ],
    "text": [
        b"postgres://u:secret@h/db Authorization: Bearer abc123 password='x y' eyJhbGciOi.eyJzdWI.x",
        b"-----BEGIN RSA PRIVATE KEY-----\nx\n-----END RSA PRIVATE KEY----- --token=1 {\"api_key\": \"v\"}",
    ],
}  # fmt: skip

KINDS = ("", "loki+", "otlp+", "elasticsearch+", "opensearch+", "splunk+")
STATUSES = (200, 201, 204, 207, 302, 400, 401, 404, 413, 415, 429, 500, 503)
HEADERS = (
    {},
    {"content-type": "application/json", "retry-after": "5"},
    {"content-type": "text/html", "retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"},
    {"content-type": "application/x-protobuf", "date": "x", "retry-after": "-1e999"},
)


def fuzz_url(data: bytes) -> None:
    """Taken apart, asked for its secrets, built; its shown form has no password."""
    text = data.decode("utf-8", "replace")
    try:
        url = parse(text)
        setting = Setting(fields(kind_of("run"))["sinks"], [text], str)
        consent.needs(Path("/x"), {"sinks": setting})
        assert url.shown is not None
        built = build(url)
    except LogaggError:
        return
    assert parse(built.url)


def fuzz_toml(data: bytes) -> None:
    """Read as a file; each command's options are made of it, or errors."""
    try:
        found = parse_toml(data.decode("utf-8"))
    except ValueError:
        return
    loaded = config.Config(Path("/x/logagg.toml"), found, "", True)
    for name in config.TABLES:
        errors: list[Any] = []
        settings = loaded.settings(name, kind_of(name), {}, errors)
        config.attempt(kind_of(name), settings, errors)
        assert all(isinstance(each, LogaggError) for each in errors)
        try:
            loaded.unconfirmed(name, settings, {})
        except LogaggError:
            continue


def fuzz_head(data: bytes) -> None:
    """The key of a client, by every kind of stickiness."""
    assert isinstance(request_of(data), bytes)
    assert isinstance(proxied_client(data), bytes | None)
    for kind in ("query:user", "cookie:user", "header:X-User"):
        assert isinstance(Sticky.parse(kind).key(request_of(data)), bytes | None)


@functools.cache
def service(kind: str) -> Any:
    """A kind of target."""
    return build(f"{kind}https://h").sink.target


def fuzz_answer(data: bytes) -> None:
    """A target's answer to three records: a verdict about these and no other."""
    number = sum(data[:3])
    status = STATUSES[number % len(STATUSES)]
    answer = Response(status, HEADERS[number % len(HEADERS)], data)
    for kind in KINDS:
        verdict = service(kind).judge(answer, 3)
        assert all(0 <= index < 3 for index in verdict.refused)
    assert service("splunk+").confirmation(answer, "7")


def fuzz_text(data: bytes) -> None:
    """Secrets in a text."""
    text, count = hide(data.decode("utf-8", "replace"))
    assert count >= 0
    assert isinstance(text, str)


PARSERS: dict[str, Callable[[bytes], None]] = {
    "url": fuzz_url,
    "toml": fuzz_toml,
    "head": fuzz_head,
    "answer": fuzz_answer,
    "text": fuzz_text,
}
