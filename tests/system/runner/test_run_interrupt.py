"""Ctrl-C with an aiohttp application: under `logagg run`, and in front of a cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # many real processes, some seconds each

APP = """
    import asyncio, os, sys
    from aiohttp import web
    async def answer(request):
        print("began", flush=True)
        await asyncio.sleep(1.0 if request.path == "/slow" else 0.0)
        return web.Response(text=os.environ["LOGAGG_SLOT"])
    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""

PRIMARY = """
    import sys, time
    import logagg
    from aiohttp import web
    async def cluster(app):
        options = {"workers": 2, "sinks": ["file:log.ndjson"], "stop_timeout": 5}
        async with logagg.Cluster(None, **options) as app["cluster"]:
            yield
    async def answer(request):
        print("began", flush=True)
        pid = await request.app["cluster"].run("time:sleep", float(request.path[1:]))
        return web.Response(text="done")
    app = web.Application()
    app.cleanup_ctx.append(cluster)
    app.router.add_get("/{name:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None,
                shutdown_timeout=3)
"""


@pytest.mark.parametrize("policy", ["kernel", "rr"])
def test_ctrl_c_ends_an_aiohttp_application(run: Any, tools: Any, policy: str) -> None:
    """The request under way is answered; the status is the signal's; no traceback."""
    port = tools.free_port()
    run.write("app.py", APP)
    run.start("-w", 2, "--policy", policy, "app.py", port, prefix=("setsid",))
    run.until_ready(2)
    answers: list[str] = []
    client = threading.Thread(
        target=lambda: answers.append(tools.get(port, "/slow", 60))
    )
    before = len(run.records(message="began"))
    client.start()
    tools.until(lambda: len(run.records(message="began")) > before)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does

    assert run.wait() == -signal.SIGINT
    client.join()
    assert answers[0] in "12"
    assert "Traceback" not in run.err
    assert not [r for r in run.records() if r["level"] in ("error", "critical")]
    assert not [r for r in run.records() if "Traceback" in r["message"]]
    assert run.records(event="worker_exit") == []  # as an end with another status makes


@pytest.mark.parametrize("seconds", [1, 60])
def test_ctrl_c_ends_an_aiohttp_application_with_a_cluster(
    run: Any, tools: Any, seconds: int
) -> None:
    """A task is waited for as long as aiohttp waits; then all ends, without traceback."""
    port = tools.free_port()
    run.write("main.py", PRIMARY)
    process = subprocess.Popen(
        [sys.executable, "main.py", str(port)], cwd=run.directory, env=run.env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    run.process = process
    tools.until(lambda: _connects(port))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(f"GET /{seconds} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        os.killpg(process.pid, signal.SIGINT)
        answer = client.recv(1000)

    assert answer.endswith(b"done") == (seconds == 1)
    _, err = process.communicate(timeout=90)
    assert "Traceback" not in err, err
    assert process.returncode == 0
    assert not [r for r in run.records() if "Traceback" in r["message"]]


def test_ctrl_c_at_the_start_ends_a_run(run: Any, tools: Any) -> None:
    """Before it handles signals itself: by the signal, without a word, at any moment."""
    run.write("app.py", "import time; time.sleep(600)")
    run.write(
        "sitecustomize.py",
        """
        import os, pathlib, sys, time
        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name == os.environ["SLOW"]:
                    pathlib.Path("importing").touch()
                    time.sleep(5)
        sys.meta_path.insert(0, Slow())
        """,
    )
    run.env["PYTHONPATH"] = str(run.directory)
    for name in ("logagg.supervisor.cluster", "logagg.supervisor.tasks"):
        run.env["SLOW"] = name
        run.start("-w", 1, "app.py")
        tools.until((run.directory / "importing").exists)
        (run.directory / "importing").unlink()
        run.signal(signal.SIGINT)
        assert run.wait() == -signal.SIGINT
        assert run.err == ""


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
