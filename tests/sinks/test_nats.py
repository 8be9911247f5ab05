"""The sink `nats:` against a real server: each record is in the stream once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from fleet_world import (
    NatsServer,
    add_stream,
    messages_of,
    needs_server,
    until,
    with_client,
)

from logagg.errors import ConfigError
from logagg.fleet.message import decode, headers_of, pack
from logagg.fleet.nats_connection import NatsError
from logagg.sinks import build, parse
from logagg.testing import make_batch
from logagg.wireformat import load_line
from logagg_sinks.nats import nats_sink

pytestmark = needs_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "server")
    yield made
    made.kill()


def sink_of(
    server: NatsServer, folder: Path, more: str = "", stream: str = "LOGS"
) -> Any:
    url = (
        f"{server.url}/{stream}?app=shop&host=web-1&batch_age=10ms&spool={folder}/spool"
    )
    sink = build(url + more).sink
    sink.chance = lambda: 0.02  # short pauses between attempts
    return sink


async def write_all(sink: Any, records: int, size: int = 50) -> None:
    for start in range(0, records, size):
        await sink.write(make_batch(size, start=start))


async def flushed(sink: Any) -> None:
    async def empty() -> bool:
        await sink.flush()
        return sink.health().queued_records == 0

    await until(empty)


def seqs_of(messages: list[Any]) -> list[int]:
    found = [load_line(line + b"}") for each in messages for line in each.lines]
    return [record["seq"] for record in found if record]


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


def test_messages_have_headers_that_number_the_records(
    server: NatsServer, tmp_path: Path
) -> None:
    async def work() -> None:
        await add_stream(server.url)
        sink = sink_of(server, tmp_path, "&batch_records=100")
        await sink.open()
        await write_all(sink, 1000)
        await flushed(sink)
        await sink.close()
        messages = await messages_of(server.url)
        assert seqs_of(messages) == list(range(1000))
        assert {(each.app, each.host) for each in messages} == {("shop", "web-1")}
        assert len({each.spool for each in messages}) == 1
        ends = [0, *(each.following for each in messages)]
        assert [each.first for each in messages] == ends[:-1]
        assert ends[-1] == 1000
        assert max(len(each.lines) for each in messages) <= 100

    run(work())


@pytest.mark.slow
def test_a_server_killed_under_load_loses_nothing_and_repeats_nothing(
    server: NatsServer, tmp_path: Path
) -> None:
    async def work() -> None:
        await add_stream(server.url)
        sink = sink_of(server, tmp_path, "&batch_records=20&ack_timeout=1s")
        await sink.open()
        for round_ in range(4):
            for start in range(0, 1000, 50):
                await sink.write(make_batch(50, start=round_ * 1000 + start))
            await until(lambda: sink.health().queued_records < 800)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await flushed(sink)
        await sink.close()
        assert seqs_of(await messages_of(server.url)) == list(range(4000))

    run(work())


def test_a_lost_acknowledgement_stores_nothing_twice(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same message is sent again, by a successor, too: the stream leaves it out."""

    async def work() -> None:
        await add_stream(server.url)
        sink = sink_of(server, tmp_path, "&batch_records=100&grace=100ms")
        await sink.open()
        real = nats_sink.publish

        async def store_and_lose(*arguments: Any) -> None:
            await real(*arguments)
            raise NatsError("no acknowledgement in time", ambiguous=True)

        monkeypatch.setattr(nats_sink, "publish", store_and_lose)
        await write_all(sink, 300)
        stored = await until(lambda: messages_of(server.url))
        await until(lambda: sink.health().last_error)
        await sink.close()
        assert len(stored) == 1
        left = sink.health().queued_records
        monkeypatch.undo()
        successor = sink_of(server, tmp_path, "&batch_records=250")
        await successor.open()
        await flushed(successor)
        await successor.close()
        assert left == 300
        assert seqs_of(await messages_of(server.url)) == list(range(300))

    run(work())


def test_a_full_stream_is_waited_for(server: NatsServer, tmp_path: Path) -> None:
    async def work() -> None:
        await add_stream(server.url, max_bytes=20_000)
        sink = sink_of(server, tmp_path, "&compress=none&batch_records=50")
        await sink.open()
        await write_all(sink, 500)
        await until(lambda: "10077" in sink.health().last_error)
        before = await messages_of(server.url)
        assert seqs_of(before) == list(range(len(seqs_of(before))))

        async def widen(context: Any) -> None:
            config = (await context.stream_info("LOGS")).config
            await context.update_stream(config.evolve(max_bytes=10_000_000))

        await with_client(server.url, widen)
        await flushed(sink)
        await sink.close()
        assert seqs_of(await messages_of(server.url)) == list(range(500))

    run(work())


@pytest.mark.slow
def test_a_server_that_is_away_at_the_start_is_waited_for(
    server: NatsServer, tmp_path: Path
) -> None:
    async def work() -> None:
        await add_stream(server.url)
        server.kill()
        sink = sink_of(server, tmp_path)
        await sink.open()
        await write_all(sink, 100)
        await until(lambda: sink.health().last_error)
        await asyncio.to_thread(server.start)
        await flushed(sink)
        await sink.close()
        assert seqs_of(await messages_of(server.url)) == list(range(100))

    run(work())


def test_wrong_credentials_suspend_the_sink_until_they_are_right(
    tmp_path: Path,
) -> None:
    """One alarm, no secret in it; the new secret is used without a restart."""
    secret = tmp_path / "secret"
    secret.write_text("wrong-secret")
    server = NatsServer(
        tmp_path / "server", 'authorization { user: "app", password: "right-secret" }'
    )
    alarms: list[tuple[Any, ...]] = []

    async def work() -> None:
        url = f"nats://app:right-secret@127.0.0.1:{server.port}"
        await add_stream(url)
        more = f"&user=app&password=file:{secret}&probe_interval=100ms"
        sink = sink_of(server, tmp_path, more)
        sink.alarm = lambda *event: alarms.append(event)
        assert "secret" not in sink.url.replace(str(secret), "")
        assert (await sink.probe(10.0))[0] == "down"
        await sink.open()
        await write_all(sink, 100)
        await until(lambda: sink.health().state.value == "suspended")
        secret.write_text("right-secret")
        await flushed(sink)
        assert (await sink.probe(10.0))[0] == "note"
        await sink.close()
        assert seqs_of(await messages_of(url)) == list(range(100))

    try:
        run(work())
    finally:
        server.kill()
    names = [event for event, *_ in alarms]
    assert names == ["sink_suspended", "sink_recovered"]
    assert "wrong-secret" not in str(alarms)


def test_a_server_without_streams_keeps_the_records_here(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "server", jetstream=False)

    async def work() -> None:
        sink = sink_of(server, tmp_path, "&grace=100ms")
        assert await sink.probe(10.0) == ("down", "the server has no JetStream")
        await sink.open()
        await write_all(sink, 100)
        await until(lambda: sink.health().last_error)
        assert "JetStream" in sink.health().last_error
        await sink.close()
        assert sink.health().queued_records == 100

    try:
        run(work())
    finally:
        server.kill()


def test_a_stream_of_another_name_is_not_written_to(
    server: NatsServer, tmp_path: Path
) -> None:
    async def work() -> None:
        await add_stream(server.url)
        sink = sink_of(server, tmp_path, "&grace=100ms", stream="OTHER")
        state, text = await sink.probe(10.0)
        assert (state, "there is no stream" in text) == ("down", True)
        await sink.open()
        await write_all(sink, 100)
        await until(lambda: sink.health().state.value == "suspended")
        await sink.close()
        assert await messages_of(server.url) == []

    run(work())


def test_over_tls_the_certificate_is_verified(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    pair = authority.issue_cert("127.0.0.1")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "other.pem")
    tls = f'tls {{ cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem" }}'
    server = NatsServer(tmp_path / "server", tls)

    async def work() -> None:
        place = f"tls://127.0.0.1:{server.port}/LOGS?app=shop&spool={tmp_path}/spool"
        bad = build(f"{place}&ca_file={tmp_path}/other.pem").sink
        state, text = await bad.probe(10.0)
        assert (state, "certificate" in text.lower()) == ("down", True)
        good = build(f"{place}&ca_file={tmp_path}/ca.pem").sink
        state, text = await good.probe(10.0)
        assert (state, "there is no stream" in text) == ("down", True)

    try:
        run(work())
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nats://h/LOGS", "app=NAME"),
        ("nats://h?app=a", "STREAM"),
        ("nats://h:x/LOGS?app=a", "SCHEME://HOST"),
        ("nats://h/LO.GS?app=a", "STREAM"),
        ("nats://h/LOGS?app=a&token=plain", "env:NAME"),
        ("nats://h/LOGS?app=a&token=env:T", "tls://"),
        ("nats://127.0.0.1/LOGS?app=a&user=u", "password"),
        ("nats://h/LOGS?app=a&compress=gzip", "zstd or none"),
        ("nats://h/LOGS?app=a&ack_timeout=0", "ack_timeout"),
    ],
)
def test_a_mistake_is_named(url: str, reason: str, monkeypatch: Any) -> None:
    monkeypatch.delenv("LOGAGG_APP", raising=False)
    with pytest.raises(ConfigError, match=reason):
        build(url)


def test_several_servers_stand_in_one_url() -> None:
    sink = build("nats://a,b:1,c.d:4222/LOGS?app=x").sink
    assert sink.url == "nats://a:4222,b:1,c.d:4222/LOGS?app=x"
    assert build(sink.url).sink.url == sink.url
    assert parse("nats://a,b:1/S?app=x").shown == "nats://a,b:1/S"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Logagg-Spool": None}, "headers"),
        ({"Logagg-Version": "2"}, "version"),
        ({"Logagg-First": "x"}, "Logagg-First"),
        ({"Logagg-Next": "1"}, "2 lines for 1 numbers"),
        ({"Content-Encoding": "br"}, "Content-Encoding"),
        ({"Content-Encoding": "zstd", "body": b"no zstd"}, "damaged"),
        ({"body": b'{"a":1}\n{"b"'}, "within a line"),
        ({"body": b'{"a":1}\n{"b":2}\n'}, "not a record"),
    ],
)
def test_a_message_of_others_is_refused(change: dict[str, Any], reason: str) -> None:
    """With a reason, for the dead letters."""
    body = change.pop("body", make_batch(2).data)
    headers = headers_of("name", "spool", 0, 2, coding="")
    assert decode("logagg.a.h.all", headers, make_batch(2).data)
    headers |= change
    known = {name: value for name, value in headers.items() if value is not None}
    with pytest.raises(ValueError, match=reason):
        decode("logagg.a.h.all", known, body)


def test_a_packed_message_is_the_same() -> None:
    headers = headers_of("name", "spool", 5, 7, coding="zstd")
    found = decode("logagg.a.h.all", headers, pack(make_batch(2).data))
    assert (found.first, found.following) == (5, 7)
    assert b"".join(line + b"}\n" for line in found.lines) == make_batch(2).data


def test_services_with_other_secrets_have_other_spools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A secret decides the account: records of one must not go to another's stream."""
    monkeypatch.setenv("ONE", "token-of-one")
    monkeypatch.setenv("TWO", "token-of-two")
    monkeypatch.setenv("SAME", "token-of-one")

    def folder_of(more: str) -> Path:
        sink: Any = build(f"nats://127.0.0.1/LOGS?app=shop&host=h{more}").sink
        return Path(sink.folder)

    tokens = [folder_of(f"&token=env:{each}") for each in ("ONE", "TWO", "SAME")]
    user = [folder_of(f"&user={each}&password=env:ONE") for each in ("a", "b")]
    assert tokens[0] == tokens[2]
    assert len({folder_of(""), *tokens, *user}) == 5
    assert not any("token-of" in str(each) for each in tokens + user)
