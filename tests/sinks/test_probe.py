"""How a network sink asks its target how it is: nothing is sent, the truth is said."""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest
import trustme

KINDS = ["", "otlp+", "loki+", "elasticsearch+", "opensearch+", "splunk+"]


def probe(sink, patience=5.0):
    """Ask the target."""
    return asyncio.run(asyncio.wait_for(sink.probe(patience), 30))


def asked(target):
    """What came: method, path, body."""
    return [(seen.method, seen.path, seen.body) for seen in target.seen]


@pytest.mark.parametrize(
    ("scheme", "path", "requests"),
    [
        ("", "/in", [("HEAD", "/in", b"")]),
        ("otlp+", "", [("POST", "/v1/logs", b"")]),
        ("loki+", "", [("GET", "/ready", b"")]),
        ("loki+", "/a/loki/api/v1/push", [("GET", "/a/ready", b"")]),
        ("elasticsearch+", "", [("GET", "/", b"")]),
        ("opensearch+", "/es/logs/_bulk", [("GET", "/es/", b"")]),
        (
            "splunk+",
            "",
            [
                ("GET", "/services/collector/health", b""),
                ("POST", "/services/collector/event", b""),
            ],
        ),
    ],
)
def test_each_target_is_asked_by_its_own_door(
    target, sink_to, tmp_path, scheme, path, requests
):
    """What changes nothing there is asked, no record is sent, no spool is made."""
    sink = sink_to(f"{scheme}{target.url}{path}")
    state, said = probe(sink)

    assert (state, "200 OK" in said) == ("ok", True)
    assert asked(target) == requests
    assert not (tmp_path / "s").exists()


def test_otlp_in_json_is_asked_in_json(target, sink_to):
    """An empty request is a request in the encoding that records will have."""
    assert probe(sink_to(f"otlp+{target.url}", "encoding=json"))[0] == "ok"

    (seen,) = target.seen
    assert seen.headers["content-type"] == "application/json"
    assert seen.body == b'{"resourceLogs":[]}'


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("status", [301, 401, 407, 500, 503])
def test_what_would_refuse_records_is_down(target, sink_to, tools, scheme, status):
    """A status that no target gives when it is well is said, with what it means."""
    target.default = tools.Answer(status, b"because of this")
    state, said = probe(sink_to(f"{scheme}{target.url}"))

    assert state == "down"
    assert f"{status} " in said
    assert scheme == "" or "because of this" in said


@pytest.mark.parametrize(
    ("scheme", "status", "words"),
    [
        ("", 404, "nothing is at this path"),
        ("loki+", 404, "gateway"),
        ("elasticsearch+", 403, "no right to ask"),
        ("otlp+", 422, "none without records"),
    ],
)
def test_what_stays_open_is_said_to_be_open(
    target, sink_to, tools, scheme, status, words
):
    """An answer that does not tell whether records would be taken is no failure."""
    target.default = tools.Answer(status)
    state, said = probe(sink_to(f"{scheme}{target.url}"))

    assert state == "note"
    assert words in said


def test_a_webhook_that_knows_no_head_is_there(target, sink_to, tools):
    """405 to HEAD is what a webhook for POST alone answers."""
    target.default = tools.Answer(405)

    assert probe(sink_to(target.url))[0] == "ok"


@pytest.mark.parametrize(
    ("status", "state"), [(400, "ok"), (401, "down"), (403, "down"), (404, "down")]
)
def test_a_splunk_token_is_tried(target, sink_to, tools, status, state):
    """An empty delivery is refused as empty (400) only when the token is known."""
    target.script = [tools.Answer(200, b'{"text":"HEC is healthy","code":17}')]
    target.default = tools.Answer(status, b'{"text":"it is so","code":5}')

    assert probe(sink_to(f"splunk+{target.url}"))[0] == state


def test_secrets_headers_and_parameters_go_along(target, sink_to, tools, monkeypatch):
    """The target is asked as it will be sent to; a secret it echoes is not shown."""
    monkeypatch.setenv("SECRET", "hunter22")
    options = "token=env:SECRET&header.X-Scope-OrgID=shop&query.key=env:SECRET"
    target.default = lambda seen: tools.Answer(
        401, f"no to {seen.headers['authorization']}".encode()
    )
    state, said = probe(sink_to(f"loki+{target.url}", options))

    (seen,) = target.seen
    assert seen.headers["authorization"] == "Bearer hunter22"
    assert seen.headers["x-scope-orgid"] == "shop"
    assert seen.query == {"key": "hunter22"}
    assert state == "down"
    assert "hunter22" not in said
    assert "no to Bearer [secret]" in said


def test_a_secret_that_is_not_there_is_named(target, sink_to):
    """Before anything is asked."""
    with pytest.raises(OSError, match="NO_SUCH_VARIABLE is not set"):
        probe(sink_to(target.url, "token=env:NO_SUCH_VARIABLE"))
    assert target.seen == []


def test_certificates_are_the_sinks_own(serve, sink_to, tmp_path):
    """A server that only the sink's `ca_file` vouches for is well with it alone."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = serve(context)

    state, said = probe(sink_to(f"loki+{server.url}"))
    assert state == "down"
    assert "certificate" in said
    own = f"ca_file={tmp_path / 'ca.pem'}"
    assert probe(sink_to(f"loki+{server.url}", own))[0] == "ok"


async def _never_answers(reader, writer):
    await reader.read()


@pytest.mark.parametrize("scheme", KINDS)
def test_the_shorter_deadline_counts(serve_raw, sink_to, scheme):
    """A target that never answers is left when the sink's own deadline is over."""
    server = serve_raw(_never_answers)
    url = f"{scheme}{server.url}"
    began = time.monotonic()

    state, said = probe(sink_to(url, "total_timeout=0.05"))
    assert (state, "timed out" in said) == ("down", True)
    state, said = probe(sink_to(url), patience=0.05)
    assert (state, "timed out" in said) == ("down", True)
    assert time.monotonic() - began < 5
