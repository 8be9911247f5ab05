"""Sticky sessions: a client stays with its worker, and nobody pays for a silent one."""

from __future__ import annotations

import collections
import os
import signal
import socket
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each


def _post(port: int, key: str, identity: str, *, pieces: bool = False) -> str:
    """POST 5 KB on a connection of its own; the answering slot."""
    query, header = "", ""
    if key == "cookie":
        header = f"Cookie: other=1; sid={identity}; last=2\r\n"
    elif key == "header":
        header = f"X-Client: {identity}\r\n"
    elif key == "query":
        query = f"?a=1&room={identity}"
    head = f"POST /{query} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 5000\r\n"
    data = (head + "Connection: close\r\n\r\n").encode() + b"b" * 5000
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if pieces:
            for index in range(0, 60, 7):
                sock.sendall(data[index : index + 7])
                time.sleep(0.005)  # so that the head really comes in pieces
            data = data[63:]
        sock.sendall(data)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    slot, _, size = answer.rpartition(b"\r\n\r\n")[2].decode().split()
    assert size == "5000", answer
    return slot


@pytest.mark.parametrize(
    ("key", "option"),
    [("cookie", "cookie:sid"), ("header", "header:x-client"), ("query", "query:room")],
)
def test_each_client_stays_with_one_worker(
    run: Any, tools: Any, key: str, option: str
) -> None:
    """6 ids × 6 POSTs with bodies, heads in pieces too; a dead worker's ids move, alone."""
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    bind = ["--bind", f"127.0.0.1:{port}", "--sticky", option, "--max-rss", "2GB"]
    run.start("-w", 4, *bind, "-m", "uvicorn", "web:app", "--port", port)
    run.until_ready(4)
    ids = [f"id{n}" for n in range(6)]

    seen = {i: {_post(port, key, i, pieces=n == 0) for n in range(6)} for i in ids}

    assert all(len(slots) == 1 for slots in seen.values()), seen
    homes = {i: slots.pop() for i, slots in seen.items()}
    assert len(set(homes.values())) > 1
    victim = int(homes["id0"])
    pid = run.workers()[victim]
    silent = socket.create_connection(("127.0.0.1", port))
    os.kill(pid, signal.SIGSTOP)  # alive but deaf, then gone: nothing may hang on it
    os.kill(pid, signal.SIGKILL)
    run.until_record(event="worker_exit", slot=victim)
    began = time.monotonic()
    moved = {i: _post(port, key, i) for i in ids}
    assert time.monotonic() - began < 5
    for i in ids:
        if homes[i] != str(victim):
            assert moved[i] == homes[i]
    run.until_ready(4)
    assert {i: _post(port, key, i) for i in ids} == homes  # the slot has its ids back
    silent.close()
    assert run.stop() == -signal.SIGTERM


def test_sticky_by_address_keeps_all_of_one_address_together(
    run: Any, tools: Any
) -> None:
    """`--sticky ip`: one address, one worker; another may have another."""
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    bind = ["--bind", f"0.0.0.0:{port}", "--sticky", "ip"]
    run.start(
        "-w", 4, *bind, "-m", "uvicorn", "web:app", "--host", "0.0.0.0", "--port", port
    )
    run.until_ready(4)

    homes = {}
    for address in [f"127.0.0.{n}" for n in range(1, 9)]:
        slots = set()
        for _ in range(4):
            with socket.create_connection(
                ("127.0.0.1", port), source_address=(address, 0)
            ) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                data = b""
                while chunk := sock.recv(65536):
                    data += chunk
            slots.add(data.rpartition(b"\r\n\r\n")[2].split()[0])
        assert len(slots) == 1
        homes[address] = slots.pop()

    assert len(set(homes.values())) > 1
    assert run.stop() == -signal.SIGTERM


def test_sticky_by_the_address_that_a_proxy_states(run: Any, tools: Any) -> None:
    """Before TLS too: nothing after the header is waited for; without one, the peer's."""
    port = tools.free_port()
    run.write(
        "app.py",
        """
        import asyncio, os, sys
        async def answer(reader, writer):
            await reader.read(1)
            writer.write(os.environ["LOGAGG_SLOT"].encode())
            writer.close()
        async def main():
            server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
            await server.serve_forever()
        asyncio.run(main())
        """,
    )
    bind = ["--bind", f"127.0.0.1:{port}", "--sticky", "proxy"]
    run.start("-w", 4, *bind, "app.py", port)
    run.until_ready(4)

    def slot(header: bytes) -> str:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(header)  # and no request at all: its head is not needed
            return sock.recv(100).decode()

    began = time.monotonic()
    homes = {}
    for n in range(1, 9):
        one = f"PROXY TCP4 10.0.0.{n} 10.0.0.99 5{n} 80\r\n".encode()
        other = one.replace(b" 80", b" 81")
        two = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0" + bytes([n]) + bytes(8)
        assert slot(one) == slot(other)
        assert slot(two) == slot(two)
        homes[n] = slot(one), slot(two)
    assert len(set(homes.values())) > 2
    assert len({slot(b"x" * n) for n in range(1, 9)}) == 1
    assert time.monotonic() - began < 40  # a second for each, if it waited
    assert run.stop() == -signal.SIGTERM


def test_a_silent_client_is_given_away_after_the_deadline(run: Any, tools: Any) -> None:
    """Who sends nothing takes its turn after about a second, and is served then."""
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    bind = ["--bind", f"127.0.0.1:{port}", "--sticky", "cookie:sid"]
    run.start("-w", 2, *bind, "-m", "uvicorn", "web:app", "--port", port)
    run.until_ready(2)

    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    began = time.monotonic()
    assert {_post(port, "cookie", "a") for _ in range(4)} <= {"1", "2"}
    assert time.monotonic() - began < 1.0
    tools.until(
        lambda: sum(s["connections"] for s in run.status()["slots"]) >= 24, what="turns"
    )
    for sock in silent:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        sock.close()
    assert run.stop() == -signal.SIGTERM


def test_a_callback_chooses(run: Any, tools: Any) -> None:
    """`Cluster(choose=…)` sees the open slots and the head, and names the slot."""
    port = tools.free_port()
    run.write("web.py", tools.ASGI)
    run.env["PYTHONPATH"] = str(run.directory)
    run.write(
        "main.py",
        f"""
        import logagg
        def choose(slots, connection):
            path = connection.head.split(b" ")[1]
            return int(path[1:]) if path[1:].isdigit() else None
        logagg.Cluster(
            ["uvicorn", "web:app", "--port", "{port}"], workers=3, choose=choose,
            bind="127.0.0.1:{port}", sinks=["file:log.ndjson"],
        ).serve_forever()
        """,
    )
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "main.py"], cwd=run.directory, env=run.env
    )
    run.process = process  # type: ignore[assignment]

    def answers() -> bool:
        try:
            return tools.get(port) != ""
        except OSError:
            return False

    tools.until(answers)
    run.until_ready(3)
    got = [tools.get(port, f"/{n}").split()[0] for n in (1, 2, 3, 2, 3, 1, 1)]
    assert got == ["1", "2", "3", "2", "3", "1", "1"]
    spread = collections.Counter(tools.get(port, "/x").split()[0] for _ in range(9))
    assert set(spread.values()) == {3}
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM or process.returncode == 0
