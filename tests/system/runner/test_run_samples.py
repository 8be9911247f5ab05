"""The cluster samples run and do what they say."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each

SAMPLES = Path(__file__).parents[3] / "samples" / "cluster"


def _python(run: Any, name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SAMPLES / name)],
        cwd=run.directory, env=run.env, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_messages(run: Any) -> None:
    """READY from each worker, SHUTDOWN to each, then an end with status 0."""
    out = _python(run, "messages.py")
    assert out.count("'type': 'READY'") == 2
    assert out.count("shutting down") == 2


def test_task_queue(run: Any) -> None:
    """All results, and the task whose worker died ran again."""
    out = _python(run, "task_queue.py")
    assert f"results {[sum(n * n for n in range(m * 10_000)) for m in range(8)]}" in out
    assert "fragile survived" in out


def test_passing_sockets(run: Any) -> None:
    """Each client is served by the worker that the primary chose."""
    out = _python(run, "passing_sockets.py")
    got = [line for line in out.splitlines() if line.startswith("client got")]
    assert got == [f"client got hello from worker {n}" for n in (1, 2, 1, 2)]


def test_crash_recovery(run: Any) -> None:
    """The death is told with its reason, the slot comes back."""
    out = _python(run, "crash_recovery.py")
    assert "worker 1 died (status 3): crashed" in out
    assert "worker 1 is back" in out


def test_log_aggregation(run: Any) -> None:
    """4 × 100 items and 4 printed lines in one file."""
    run.start("-w", 4, str(SAMPLES / "log_aggregation.py"))
    assert run.wait() == 0
    for slot in "1234":
        numbers = [r["number"] for r in run.records(logger="producer", worker=slot)]
        assert numbers == list(range(100))
    assert len(run.records(message="printed lines are records, too")) == 4


def test_http_cluster(run: Any, tools: Any) -> None:
    """All workers answer on one port; TERM ends all of it."""
    port = tools.free_port()
    run.process = subprocess.Popen(
        [sys.executable, str(SAMPLES / "http_cluster.py"), str(port)],
        cwd=run.directory, env=run.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    run.until_ready(len(os.sched_getaffinity(0)))
    assert "handled by worker" in tools.get(port)
    run.signal(signal.SIGTERM)
    assert run.wait() in (0, 128 + signal.SIGTERM)


@pytest.mark.parametrize(
    "words",
    [
        ["uvicorn", "asgi:app", "--app-dir", str(SAMPLES), "--port", "PORT"],
        ["hypercorn", f"{SAMPLES}/asgi:app", "-w", "0", "--bind", "127.0.0.1:PORT"],
        ["gunicorn", "--chdir", str(SAMPLES), "wsgi:app", "--bind", "127.0.0.1:PORT"],
    ],
    ids=["uvicorn", "hypercorn", "gunicorn"],
)
def test_unmodified_web_apps(run: Any, tools: Any, words: list[str]) -> None:
    """The apps answer, and what they log is in the one log with their slot."""
    port = tools.free_port()
    run.start("-w", 2, "--policy", "rr", *[w.replace("PORT", str(port)) for w in words])
    run.until_ready(2)
    assert len({tools.get(port, f"/{n}") for n in range(4)}) == 2
    assert run.stop() == -signal.SIGTERM
    records = run.records(logger="web")
    assert sorted(r["path"] for r in records) == ["/0", "/1", "/2", "/3"]
    assert {r["worker"].partition(".")[0] for r in records} == {"1", "2"}


def test_chat_reaches_every_client_once(run: Any, tools: Any) -> None:
    """12 clients on 4 workers by room; each message reaches each of them once."""
    port = tools.free_port()
    source = (SAMPLES / "chat.py").read_text().replace("port=8080", f"port={port}")
    (run.directory / "chat.py").write_text(source)
    bind = ["--bind", f"127.0.0.1:{port}", "--sticky", "query:room"]
    run.start("-w", 4, *bind, "chat.py")
    run.until_ready(4)

    async def talk() -> tuple[dict[str, set[int]], list[list[str]]]:
        homes: dict[str, set[int]] = {}
        async with aiohttp.ClientSession() as session:
            sockets = []
            for number in range(12):
                room = f"room{number % 6}"
                url = f"ws://127.0.0.1:{port}/chat?room={room}"
                socket = await session.ws_connect(url)
                homes.setdefault(room, set()).add(
                    (await socket.receive_json())["worker"]
                )
                sockets.append(socket)
            for number, socket in enumerate(sockets):
                await socket.send_str(f"m{number}")
            heard = []
            for socket in sockets:
                texts = [
                    (await socket.receive_json(timeout=10))["text"] for _ in sockets
                ]
                heard.append(texts)
            for socket in sockets:
                with pytest.raises(asyncio.TimeoutError):
                    await socket.receive_json(timeout=0.05)
            for socket in sockets:
                await socket.close()
        return homes, heard

    homes, heard = asyncio.run(talk())

    assert all(len(workers) == 1 for workers in homes.values())
    assert len({next(iter(workers)) for workers in homes.values()}) > 1
    assert all(sorted(texts) == sorted(f"m{n}" for n in range(12)) for texts in heard)
    assert all(texts == heard[0] for texts in heard)  # one order for all
    assert run.stop() == -signal.SIGTERM
