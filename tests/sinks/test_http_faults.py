"""A network sink against servers that hang, break, lie, or change certificates."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
import warnings

import pytest
import trustme

from logagg.testing import make_batch, make_line
from logagg_sinks.delivery.condition import SinkState

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def run(coroutine):
    """Run a test's coroutine with a deadline."""
    return asyncio.run(asyncio.wait_for(coroutine, 50))


@pytest.fixture
def make(sink_to):
    """Makes a sink to a URL that does not try long at its end."""
    return lambda url, options="": sink_to(url, f"grace=0.2&{options}")


async def read_request(reader):
    """Read one request with its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return await reader.readexactly(length)


# Hanging, at every phase


async def never_reads(reader, writer):
    await asyncio.sleep(3600)


async def never_answers(reader, writer):
    await read_request(reader)
    await reader.read()


async def trickles_the_head(reader, writer):
    await read_request(reader)
    for at in range(len(OK)):
        writer.write(OK[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0.1)


async def trickles_the_body(reader, writer):
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


DEADLINES = "connect_timeout=0.4&write_timeout=0.4&answer_timeout=0.4&total_timeout=1"


@pytest.mark.parametrize(
    ("talk", "message", "most"),
    [
        (never_reads, "timed out while sending", 15_000_000),
        (never_reads, "timed out while waiting for the answer", 100),
        (never_answers, "timed out while waiting for the answer", 100),
        (trickles_the_head, "timed out while waiting for the answer", 100),
        (trickles_the_body, "timed out while reading the answer", 100),
    ],
)
def test_a_target_that_hangs_is_left(serve_raw, make, tools, talk, message, most):
    """Whatever phase a target hangs in, its deadline ends it and the records stay."""
    server = serve_raw(talk)

    async def main():
        sink = make(server.url, DEADLINES + "&batch_bytes=16MB&record_bytes=16MB")
        async with tools.opened(sink):
            began = time.monotonic()
            await sink.write(make_batch([make_line(0, message="x" * most)]))
            await tools.until(lambda: sink.health().last_error != "")
            assert 0.3 < time.monotonic() - began < 2.5
            assert sink.health().last_error == message
        assert sink.health().queued_records == 1
        assert sink.counters["ambiguous_retries"] >= 1

    run(main())


def test_a_stalled_handshake_is_left(serve_raw, make, tools):
    """A server that accepts and never speaks TLS is left at the connect deadline."""
    server = serve_raw(never_reads)

    async def main():
        sink = make(server.url.replace("http", "https"), DEADLINES)
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().last_error != "")
            assert sink.health().last_error == "timed out while connecting"
        assert "ambiguous_retries" not in sink.counters

    run(main())


@pytest.mark.slow
def test_hanging_a_hundred_times_leaks_nothing(serve_raw, make, tools):
    """A hundred hangs leave neither descriptors nor threads nor tasks behind."""
    import threading

    server = serve_raw(never_answers)

    async def main():
        sink = make(server.url, "answer_timeout=0.01")
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.counters.get("requests", 0) > 5)
            descriptors = len(os.listdir("/proc/self/fd"))
            threads, tasks = threading.active_count(), len(asyncio.all_tasks())
            await tools.until(lambda: sink.counters["requests"] > 105)
            assert len(os.listdir("/proc/self/fd")) <= descriptors + 6
            assert threading.active_count() <= threads
            assert len(asyncio.all_tasks()) <= tasks + 3

    run(main())


# Broken connections


def answers_once(*broken):
    """A server whose first connections break as told; later ones are answered."""
    turns = list(broken)

    async def talk(reader, writer):
        if turns:
            await turns.pop(0)(reader, writer)
            return
        while True:
            await read_request(reader)
            writer.write(OK)

    return talk


async def resets_before_reading(reader, writer):
    writer.transport.abort()


async def closes_after_reading(reader, writer):
    await read_request(reader)


async def closes_within_the_head(reader, writer):
    await read_request(reader)
    writer.write(OK[:9])
    await writer.drain()


async def closes_within_the_body(reader, writer):
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await writer.drain()


async def speaks_no_http(reader, writer):
    await read_request(reader)
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    "fault",
    [
        closes_after_reading,
        closes_within_the_head,
        closes_within_the_body,
        speaks_no_http,
    ],
)
def test_an_answer_that_breaks_off_is_no_success(serve_raw, make, tools, fault):
    """Only a whole answer counts; what was ambiguous is sent again and counted."""
    server = serve_raw(answers_once(fault))
    sink = make(server.url)

    tools.send(sink, make_batch(3))

    assert sink.counters["requests"] == 2
    assert sink.counters["ambiguous_retries"] == 1
    assert server.connections == 2


def test_a_reset_is_waited_out(serve_raw, make, tools, naps):
    """A connection that is reset at once is tried again after a pause."""
    server = serve_raw(answers_once(*[resets_before_reading] * 3))
    sink = make(server.url)

    tools.send(sink, make_batch(3))

    assert naps.seconds[:3] == [1, 2, 4]


def test_nobody_there_is_waited_out(serve, make, tools, naps):
    """A refused connection is tried again, is not ambiguous, and stops no start-up."""
    server = serve()
    url = server.url
    server.close()
    sink = make(url)

    async def main():
        async with tools.opened(sink):
            await sink.write(make_batch(3))
            await tools.until(lambda: len(naps.seconds) >= 3)
            assert sink.health().state is SinkState.RETRYING
            assert "onnect" in sink.health().last_error
        assert sink.health().queued_records == 3
        assert "ambiguous_retries" not in sink.counters

    run(main())


def test_a_name_that_nobody_knows_is_waited_out(make, tools, naps):
    """A host that cannot be found is trouble that may pass."""

    async def main():
        sink = make("http://no-such-host.invalid/")
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: len(naps.seconds) >= 1)
            assert sink.health().state is SinkState.RETRYING
        assert sink.health().queued_records == 1

    run(main())


async def refuses_large_bodies(reader, writer):
    """Closes without reading what is longer than 100 kB, as some servers do."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        if length > 100_000:
            return
        await reader.readexactly(length)
        writer.write(OK)


def test_a_server_that_hangs_up_on_large_bodies(serve_raw, make, tools):
    """Connections closed again and again while sending count as: too large."""
    server = serve_raw(refuses_large_bodies)
    lines = [make_line(number, message="x" * 30_000) for number in range(300)]
    sink = make(server.url, "batch_bytes=16MB")

    tools.send(sink, make_batch(lines))


def test_the_size_of_requests_recovers_after_resets(serve_raw, make, tools):
    """What was learnt from resets is unlearnt, step by step, when more is taken again."""
    limit, sizes = 100_000, []

    async def resets(reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(
                head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            )
            if length > limit:
                return
            await reader.readexactly(length)
            sizes.append(length)
            writer.write(OK)

    server = serve_raw(resets)
    lines = [make_line(number, message="x" * 10_000) for number in range(1200)]
    sink = make(server.url, "batch_bytes=600kB")

    async def main():
        nonlocal limit
        async with tools.opened(sink):
            await sink.write(make_batch(lines[:60]))
            await tools.until(lambda: not sink.health().queued_records)
            assert max(sizes) <= limit
            limit = 10_000_000
            await sink.write(make_batch(lines[60:]))
            await tools.until(lambda: not sink.health().queued_records)

    run(main())

    assert sink.counters["acked"] == 1200
    assert max(sizes) > 500_000
    growing = [size for size in sizes if size > 100_000]
    assert growing[0] < 200_000


def test_a_huge_answer_is_an_error(serve, make, tools):
    """An answer beyond the limit is not read on; nothing is lost."""
    server = serve()
    server.default = tools.Answer(200, b"x" * 5_000_000)

    async def main():
        sink = make(server.url)
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().state is SinkState.SUSPENDED)
            assert "larger than" in sink.health().last_error
        assert sink.health().queued_records == 1

    run(main())


def test_a_slow_target_costs_no_memory_and_no_order(serve, make, tools):
    """While a target is slow, records wait on disk; all arrive, in order."""
    server = serve()

    def slow(seen):
        time.sleep(0.02)
        return tools.Answer()

    server.default = slow
    sink = make(server.url, "batch_records=500")

    async def main():
        async with tools.opened(sink):
            began = time.monotonic()
            for start in range(0, 10_000, 100):
                await sink.write(make_batch(100, start=start))
            assert time.monotonic() - began < 5
            await tools.until(lambda: sink.counters.get("acked") == 10_000)

    run(main())

    assert server.seqs == list(range(10_000))


# TLS


@pytest.fixture
def ca():
    """An authority of our own."""
    return trustme.CA()


def server_context(ca, *names, client_ca=None):
    """What a server with a certificate for these names needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    if client_ca is not None:
        client_ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_own_authority(serve, make, tools, ca, tmp_path):
    """`ca_file` is trusted, and the body arrives."""
    server = serve(server_context(ca, "127.0.0.1"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    sink = make(server.url, f"ca_file={tmp_path / 'ca.pem'}")

    tools.send(sink, make_batch(3))

    assert server.seqs == [0, 1, 2]


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_wrong_certificate_suspends(serve, make, tools, ca, tmp_path, wrong):
    """An unknown authority or another name holds the sink; nothing is sent."""
    other = trustme.CA()
    name = "other.example" if wrong == "name" else "127.0.0.1"
    server = serve(server_context(ca, name))
    (other if wrong == "authority" else ca).cert_pem.write_to_path(
        str(tmp_path / "ca.pem")
    )

    async def main():
        sink = make(server.url, f"ca_file={tmp_path / 'ca.pem'}")
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().state is SinkState.SUSPENDED)
            assert "certificate" in sink.health().last_error
        assert sink.health().queued_records == 1

    run(main())

    assert server.seen == []


def test_another_name_can_be_asked_for(serve, make, tools, ca, tmp_path):
    """`server_name` is the name that is asked for and verified."""
    server = serve(server_context(ca, "logs.example"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    sink = make(server.url, f"ca_file={tmp_path / 'ca.pem'}&server_name=logs.example")

    tools.send(sink, make_batch(1))

    assert server.seqs == [0]


def test_a_client_certificate(serve, make, tools, ca, tmp_path):
    """`cert_file` and `key_file` are shown to a server that asks."""
    server = serve(server_context(ca, "127.0.0.1", client_ca=ca))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    mine = ca.issue_cert("worker.example")
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    names = ("ca", "cert", "key")
    files = "&".join(f"{name}_file={tmp_path / name}.pem" for name in names)
    sink = make(server.url, files)

    tools.send(sink, make_batch(1))

    assert server.seqs == [0]


def test_changed_files_are_read_again(serve, make, tools, ca, tmp_path):
    """A new authority in the same file is used without a restart."""
    other = trustme.CA()
    server = serve(server_context(ca, "127.0.0.1"))
    path = tmp_path / "ca.pem"
    other.cert_pem.write_to_path(str(path))
    sink = make(server.url, f"ca_file={path}")

    async def nap(seconds):
        ca.cert_pem.write_to_path(str(path))

    sink.sleep = nap

    tools.send(sink, make_batch(1))

    assert server.seqs == [0]


def test_a_missing_certificate_suspends(make, tools, tmp_path):
    """A file that is not there holds the sink and is named as the reason."""

    async def main():
        sink = make("https://127.0.0.1:9/", f"ca_file={tmp_path / 'none.pem'}")
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().state is SinkState.SUSPENDED)
            assert "No such file" in sink.health().last_error

    run(main())


def test_old_tls_is_refused(serve, make, tools, ca, tmp_path):
    """A server that speaks nothing newer than TLS 1.1 is not spoken to."""
    context = server_context(ca, "127.0.0.1")
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    server = serve(context)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def main():
        sink = make(server.url, f"ca_file={tmp_path / 'ca.pem'}")
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().last_error != "")
        assert sink.health().queued_records == 1

    run(main())

    assert server.seen == []


# Proxies


def proxy_to(port, seen, status=b"200 Connection established"):
    """A proxy that notes what it is asked for."""

    async def talk(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        if head.startswith(b"CONNECT "):
            good = status.startswith(b"200")
            length = b"" if good else b"Content-Length: 0\r\n"
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + length + b"\r\n")
            await writer.drain()
            if not good:
                return
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
        if not head.startswith(b"CONNECT "):
            upstream.write(head.replace(b"http://127.0.0.1:%d" % port, b"", 1))

        async def pump(source, sink):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer))

    return talk


def test_plain_requests_through_a_proxy(serve, serve_raw, make, tools):
    """`proxy` is asked for the whole URL."""
    server = serve()
    seen = []
    proxy = serve_raw(proxy_to(server.port, seen))
    sink = make(server.url, f"proxy={proxy.url}")

    tools.send(sink, make_batch(1))

    assert server.seqs == [0]
    assert seen[0].startswith(b"POST " + server.url.encode())


def test_tls_through_a_proxy_of_the_environment(
    serve, serve_raw, make, tools, ca, tmp_path, monkeypatch
):
    """HTTPS_PROXY is obeyed with a tunnel and sees no secret; NO_PROXY passes it by."""
    server = serve(server_context(ca, "127.0.0.1"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    seen = []
    proxy = serve_raw(proxy_to(server.port, seen))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("TOKEN", "se-cr-et")
    options = f"ca_file={tmp_path / 'ca.pem'}&token=env:TOKEN"

    async def main(start):
        sink = make(server.url, options)
        async with tools.opened(sink):
            await sink.write(make_batch(1, start=start))
            await sink.flush()

    run(main(0))
    assert [head.split(b" ")[0] for head in seen] == [b"CONNECT"]
    assert b"se-cr-et" not in b"".join(seen)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run(main(1))
    assert len(seen) == 1
    assert server.seqs == [0, 1]


def test_a_proxy_that_wants_a_password_suspends(
    serve, serve_raw, make, tools, ca, tmp_path
):
    """407 from a proxy holds the sink as it would from a target."""
    server = serve(server_context(ca, "127.0.0.1"))
    proxy = serve_raw(proxy_to(server.port, [], b"407 Proxy Authentication Required"))

    async def main():
        sink = make(server.url, f"proxy={proxy.url}")
        async with tools.opened(sink):
            await sink.write(make_batch(1))
            await tools.until(lambda: sink.health().state is SinkState.SUSPENDED)
            assert "407" in sink.health().last_error
        assert sink.health().queued_records == 1

    run(main())
