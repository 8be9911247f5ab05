"""Secrets of network sinks: read from where they are, sent, and never shown."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import os
import re
import threading
from urllib.parse import quote, quote_plus

import orjson
import pytest

from logagg.abc import SECRETS
from logagg.errors import ConfigError, LogaggError
from logagg.fanout.fanout import owner_of
from logagg.filters.secret_values import SecretValues
from logagg.sinks import HttpSink, build, parse
from logagg.testing import make_batch
from logagg_sinks.delivery.condition import SinkState

PATH = "/in"


PLAIN = "s3cr3t/+=pw?Value-77"
ECHOES = [
    lambda secret: secret,
    lambda secret: f"token {secret[:12]} is invalid",
    lambda secret: f"…{secret[-12:]} is invalid",
    lambda secret: quote(secret, safe=""),
    lambda secret: quote_plus(secret).lower(),
    lambda secret: "".join(f"%{byte:02x}" for byte in secret.encode()),
    lambda secret: quote(quote(secret, safe=""), safe=""),
    lambda secret: json.dumps({"a": secret}).replace("/", "\\/"),
    lambda secret: "".join(f"\\u{ord(letter):04x}" for letter in secret),
    lambda secret: html.escape(secret).replace("/", "&#x2F;"),
    lambda secret: base64.b64encode(secret.encode()).decode(),
    lambda secret: base64.urlsafe_b64encode(f"user:{secret}".encode()).decode(),
    lambda secret: base64.b64encode(f"x{secret}y".encode()).decode(),
    lambda secret: secret.encode().hex(),
    lambda secret: "x" * (1024 - 9) + secret,
    lambda secret: "x" * (8192 - 9) + secret,
]


@pytest.mark.parametrize("number", range(len(ECHOES)))
def test_an_echo_of_a_secret_is_hidden(
    target, make, tools, letters, monkeypatch, caplog, number
):
    """Whole, cut or encoded, in an answer, an item's reason or a refusal: never shown."""
    monkeypatch.setenv("TOKEN", PLAIN)
    echo = ECHOES[number](PLAIN)
    reason = orjson.dumps({"rejected": [{"index": 0, "reason": echo}]})
    target.script = [tools.Answer(403, echo.encode()), tools.Answer(200, reason)]
    target.script.append(tools.Answer(400, echo.encode()))
    alarms = []
    sink = make("token=env:TOKEN&batch_records=1")
    sink.alarm = lambda event, level, text: alarms.append(text)
    tools.send(sink, make_batch(2))

    assert len(letters()) == 2
    texts = repr((letters(), sink.health(), alarms, caplog.messages))
    pieces = [echo[at : at + 12] for at in range(len(echo) - 11)]
    shown = [piece for piece in pieces if piece in texts and "x" * 4 not in piece]
    assert [piece for piece in shown if piece not in "token  is invalid…{a: }"] == []


def test_a_secret_in_a_pipe_stops_no_other_task(make, tools, tmp_path):
    """A file that cannot be read at once suspends the sink, and nothing else."""
    pipe = tmp_path / "token"
    os.mkfifo(pipe)
    sink = make(f"token=file:{pipe}")

    def rescue():  # of a loop that waits for the pipe
        with open(pipe, "w") as file:
            file.write("late-token")

    async def main():
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().state is SinkState.SUSPENDED)
            assert "it is not a regular file" in sink.health().last_error

    watch = threading.Timer(10, rescue)
    watch.daemon = True
    watch.start()
    asyncio.run(asyncio.wait_for(main(), 60))
    watch.cancel()


def test_of_many_reasons_some_are_searched(target, make, tools, letters):
    """An answer full of different texts does not cost its sink minutes of searching."""
    SECRETS.add("some-secret-of-this-test")
    reasons = [f"{number}:{'%2525252541' * 300}" for number in range(1000)]
    rejected = [{"index": at, "reason": text} for at, text in enumerate(reasons)]
    target.script = [tools.Answer(200, orjson.dumps({"rejected": rejected}))]
    sink = make("batch_records=2000")
    tools.send(sink, make_batch(1001))

    found = [letter["reason"] for letter in letters()]
    assert len(found) == 1000
    assert found[:100] == [text[:1024] for text in reasons[:100]]
    assert {text for text in found if "%" not in text} == {
        "refused; the answer has more reasons than are shown"
    }


JWT = (
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)
DUMPS = {
    "hex with colons": lambda secret: secret.encode().hex(":"),
    "hex with blanks": lambda secret: secret.encode().hex(" "),
    "hex of C": lambda secret: ", ".join(map("0x{:02x}".format, secret.encode())),
    "octal": lambda secret: "".join(map("\\{:03o}".format, secret.encode())),
    "quoted printable": lambda secret: "".join(map("={:02X}".format, secret.encode())),
    "base32": lambda secret: base64.b32encode(secret.encode()).decode(),
    "lower": str.lower,
    "upper": str.upper,
    "UTF-16": lambda secret: secret.encode("utf-16-le").decode("latin-1"),
    "lines": lambda secret: "\r\n".join(secret[at : at + 6] for at in range(0, 99, 6)),
    "html, padded": lambda secret: "".join(f"&#{ord(each):07d};" for each in secret),
    "html, open": lambda secret: "".join(f"&#x{ord(each):X}" for each in secret),
    "rust": lambda secret: "".join(f"\\u{{{ord(each):x}}}" for each in secret),
    "python": lambda secret: "".join(f"\\U{ord(each):08x}" for each in secret),
    "ecma": lambda secret: "".join(f"%u{ord(each):04x}" for each in secret),
    "percent, five times": lambda secret: "".join(
        f"%25252525{byte:02x}" for byte in secret.encode()
    ),
    "base64 of percent": lambda secret: base64.b64encode(
        quote(secret, safe="").encode()
    ).decode(),
    "base64 in lines": lambda secret: base64.encodebytes(
        b"x" * 50 + secret.encode() + b"y" * 90
    ).decode(),
}


@pytest.mark.parametrize("secret", [PLAIN, JWT], ids=["plain", "jwt"])
@pytest.mark.parametrize("way", DUMPS)
def test_a_dump_of_a_secret_is_hidden(way, secret):
    """In whatever form a program shows bytes and texts: no half of it stays."""
    values = SecretValues()
    values.add(secret)
    echo = DUMPS[way](secret)

    shown = values.scrub(f"token: {echo} is bad")

    assert shown.startswith("token: ")
    assert shown.endswith(" is bad")
    assert "[secret]" in shown
    rest = shown[7:-7].replace("[secret]", "")
    assert len(re.sub(r"eHh4|eXl5|\s", "", rest)) <= len(echo) // 8


def test_a_secret_of_the_start_stays_known_whatever_is_rotated():
    """Thousands of tokens come and go: the first is hidden still, in bounded memory."""
    values = SecretValues()
    values.add("correct-horse-battery")
    for number in range(200):
        values.add(JWT[:40] + f"{number:08d}" * 100)

    assert values.scrub("a correct-horse-battery!") == "a [secret]!"
    assert values.scrub(f"{199:08d}" * 100) == "[secret]"
    assert sum(map(len, values._runs.values())) < 400_000


def test_other_texts_are_left_as_they_are():
    """What shares nothing with a secret is not touched, however it is written."""
    values = SecretValues()
    values.add("correct-horse-battery")
    text = 'the %41 "\\u0041" &amp; horses, 100 % of dGVzdA=='
    assert values.scrub(text) == text
    assert values.scrub("a correct-horse-battery!") == "a [secret]!"


@pytest.mark.parametrize(
    "name",
    [
        "query.sig", "query.pwd", "query.code", "query.access_key", "query.jwt",
        "query.apiKey", "query.SharedAccessSignature", "header.X-Access",
        "header.X-Api-Key", "header.X-Session-Id", "header.DD-API-KEY",
        "header.X-Sas", "header.Cookie", "header.Proxy-Authorization",
    ],
)  # fmt: skip
def test_a_secret_is_accepted_by_reference_only(name):
    """Wherever the name says that it is one; the value is not repeated."""
    with pytest.raises(ConfigError) as error:
        build(f"http://127.0.0.1/in?{name}=abc-777")
    assert "abc-777" not in str(error.value)
    build(f"http://127.0.0.1/in?{name}=env:NAME")


@pytest.mark.parametrize("kind", ["http", "splunk+https", "file"])
@pytest.mark.parametrize(
    "password", ["a/b-777", "a?b-777", "12/b-777", "a?b=c-777", "a#b-777"]
)
def test_a_password_with_separators_is_never_printed(kind, password):
    """It must be escaped; the error that demands it shows no part of it."""
    url = f"{kind}://joe:{password}@host/in?batch_records=5"
    try:
        shown = build(url).url
    except LogaggError as error:
        shown = str(error)
    assert "777" not in shown
    assert "777" not in parse_shown(url)


def parse_shown(url):
    """The URL as errors show it."""
    try:
        return parse(url).shown
    except ConfigError as error:
        return str(error)


def test_a_secret_in_the_target_or_the_proxy_is_refused():
    """Also through the Python interface."""
    for target, options in (
        ("http://h/?token=abc-777", {}),
        ("http://h/", {"proxy": "http://u:abc/777@p:1"}),
        ("http://u:abc/777@h/", {}),
    ):
        with pytest.raises(ConfigError) as error:
            HttpSink(target, **options)
        assert "777" not in str(error.value)


def test_services_with_other_secrets_have_other_spools(
    target, make, tools, monkeypatch
):
    """Records that wait are sent with the secret that they were accepted with, or not."""
    target.default = tools.Answer(503)
    monkeypatch.setenv("ONE", "token-of-one")
    monkeypatch.setenv("TWO", "token-of-two")

    def sink_of(name):
        url = f"{target.url}/in?batch_age=0.01&grace=0&max_age=0&token=env:{name}"
        return build(url).sink

    async def leave():
        async with tools.opened(sink_of("ONE")) as sink:
            await sink.write(make_batch(3))
            await tools.until(lambda: bool(sink.health().last_error))

    asyncio.run(leave())
    target.default = tools.Answer()
    target.seen.clear()
    two, renamed = sink_of("TWO"), sink_of("TWO")
    tools.send(two, make_batch(1, start=10))
    assert target.seqs == [10]
    assert two.folder != sink_of("ONE").folder == sink_of("ONE").folder
    assert "token-of" not in str(two.folder)
    monkeypatch.setenv("TWO", "token-of-one")  # the same owner by another name

    async def take():
        async with tools.opened(renamed) as sink:
            await tools.until(lambda: sink.counters.get("acked") == 3)

    asyncio.run(take())
    assert target.seen[-1].headers["authorization"] == "Bearer token-of-one"
    assert target.seqs == [10, 0, 1, 2]
    assert owner_of(sink_of("ONE")) == owner_of(sink_of("TWO")) != ""


@pytest.mark.parametrize(
    "target",
    [
        "http://logs.example/in?token=env:T",
        "loki+http://10.1.2.3:3100?token=file:/t",
        "http://u:p@logs.example/",
        "http://logs.example/?header.X-Api-Key=env:T",
        "http://logs.example/?query.sig=env:T",
        "http://localhost.evil.example/?token=env:T",
        "http://127.0.0.1.evil.example/?token=env:T",
        "http://127.0.0.1/?token=env:T&proxy=http://p:3128",
    ],
)
def test_no_secret_goes_out_over_plain_http(target):
    """Not by a token, a password, a header or a parameter; not through a proxy."""
    with pytest.raises(ConfigError, match="over plain http"):
        build(target)


@pytest.mark.parametrize(
    "target",
    [
        "https://logs.example/in?token=env:T",
        "http://127.0.0.1:9/in?token=env:T",
        "http://[::1]:9/in?token=env:T",
        "http://localhost/in?token=env:T",
        "http://logs.example/in?header.X-Team=env:T",
        "http://logs.example/in?hmac=env:T",
        "http://127.0.0.1/in?token=env:T&proxy=http://127.0.0.1:3128",
    ],
)
def test_secrets_go_out_over_https_and_to_this_machine(target):
    """And what is no secret goes anywhere; a signature does not give its key away."""
    assert build(target).sink


def test_a_proxy_of_the_environment_gets_no_token_for_this_machine(
    target, make, tools, monkeypatch
):
    """Plain HTTP to a loopback address goes there, whatever HTTP_PROXY names."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("T", "a-token-of-mine")

    sink = build(f"{target.url}/in?batch_age=0.01&token=env:T").sink
    tools.send(sink, make_batch(1))

    assert target.seen[-1].headers["authorization"] == "Bearer a-token-of-mine"
