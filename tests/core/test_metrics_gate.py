"""The endpoint of metrics on a host with other users: few connections, none for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import no_free_descriptor

from logagg.consumer import metrics
from logagg.ipc import client_gate
from logagg.platform import endpoints

STATUS: dict[str, Any] = {"sinks": [], "workers": [], "ended": {}}


def run(
    main: Callable[[int], Any], status: Callable[[], dict[str, Any]] = lambda: STATUS
) -> None:
    """Serve, and check that nothing was reported to the loop."""
    reports: list[Any] = []

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reports.append(context)
        )
        listener = endpoints.listen("127.0.0.1:0", "metrics")
        port = listener.getsockname()[1]
        end = await metrics.serve(listener, status)
        await asyncio.wait_for(main(port), 60)
        await asyncio.wait_for(end(), 60)

    asyncio.run(whole())
    assert reports == []


async def is_healthy(port: int) -> bool:
    """Whether a client that asks at once is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return b"200 OK" in answer


def test_idle_connections_keep_no_other_client_out() -> None:
    """Beyond a few the oldest is closed, however many come."""

    async def main(port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        assert await is_healthy(port)
        for reader, _ in idle[:80]:
            assert await reader.read() == b""
        for _, writer in idle:
            writer.close()

    run(main)


def test_an_idle_connection_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends nothing, and one that sends half a request."""
    monkeypatch.setattr(client_gate, "LIFETIME", 0.05)

    async def main(port: int) -> None:
        silent, one = await asyncio.open_connection("127.0.0.1", port)
        half, two = await asyncio.open_connection("127.0.0.1", port)
        two.write(b"GET /health HT")
        for reader in (silent, half):
            with contextlib.suppress(ConnectionError):  # reset, or at its end
                assert await reader.read() == b""
        one.close()
        two.close()

    run(main)


def test_without_free_descriptors_clients_wait_in_the_queue() -> None:
    """Nothing is raised, and they are served later."""

    async def main(port: int) -> None:
        with socket.socket() as client:
            client.setblocking(False)
            with no_free_descriptor():
                await asyncio.get_running_loop().sock_connect(
                    client, ("127.0.0.1", port)
                )
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert await is_healthy(port)

    run(main)


def test_a_connection_is_for_one_request() -> None:
    """More of them in a row, sent at once, get one answer; however they are asked."""

    async def main(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n" * 9
        )
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 1
        writer.close()

    run(main)


def test_a_flood_of_requests_makes_the_numbers_seldom() -> None:
    """The time for them is a small share of all."""
    calls = 0

    def status() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return STATUS

    async def main(port: int) -> None:
        start = time.monotonic()
        for _ in range(60):
            assert await is_healthy(port)
        assert calls <= 1 + (time.monotonic() - start) / (metrics._SHARE * 0.02)

    run(main, status)


def test_so_many_are_accepted_in_a_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others wait in the socket's queue, and are served in their turn."""
    monkeypatch.setattr(client_gate, "ACCEPTS", 5)
    monkeypatch.setattr(client_gate, "ACCEPT_INTERVAL", 0.2)

    async def main(port: int) -> None:
        start = time.monotonic()
        for _ in range(20):
            assert await is_healthy(port)
        assert time.monotonic() - start >= 0.6

    run(main)


def test_what_is_no_request_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """Any user of the host can send it, as often as wanted: none of it is logged."""

    async def main(port: int) -> None:
        for text in (
            b"GARBAGE\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text)
            assert b" 200 " not in await reader.read()
            writer.close()

    run(main)

    assert caplog.text == ""
