"""Real runs for tests: `logagg run` as a process, its log as records, its end checked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LOGAGG = [sys.executable, "-c", "from logagg.cli.main import main; main()"]

ASGI = """
    import os
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] == "/slow":
            import asyncio
            print("slow begins", flush=True)
            await asyncio.sleep(3)
        slot = os.environ["LOGAGG_SLOT"]
        text = f"{slot} {os.getpid()} {len(body)}".encode()
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"content-length", str(len(text)).encode())]})
        await send({"type": "http.response.body", "body": text})
"""
"""An app for uvicorn and the like: it answers its slot, its pid, the body's length."""


def until(condition: Callable[[], Any], timeout: float = 90.0, what: str = "") -> Any:
    """Wait until the condition gives something true, and return that."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        time.sleep(0.02)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def get(port: int, path: str = "/", timeout: float = 5.0, headers: str = "") -> str:
    """One HTTP request on a connection of its own; the body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
        )
        sock.sendall(request.encode())
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.split(b" ")[1:2] == [b"200"], data
    return body.decode()


class Run:
    """A `logagg run` in a directory of its own."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self.directory = directory
        self.log = directory / "log.ndjson"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("LOGAGG_")},
            "LOGAGG_PORTABLE": os.environ.get("LOGAGG_PORTABLE", ""),
            "LOGAGG_PURE": os.environ.get("LOGAGG_PURE", ""),
            "XDG_RUNTIME_DIR": str(runtime),
            "XDG_STATE_HOME": str(directory / "state"),
        }
        self.process: subprocess.Popen[str] | None = None

    def write(self, name: str, text: str) -> Path:
        """Write a program into the directory."""
        path = self.directory / name
        path.write_text(textwrap.dedent(text))
        return path

    def start(
        self,
        *words: str | int,
        sink: bool = True,
        prefix: tuple[str, ...] = (),
        verb: str = "run",
    ) -> Run:
        """Start `logagg run` (or `up`) with the words, its log in a file."""
        sinks = ["--sink", f"file:{self.log}"] if sink else []
        self.process = subprocess.Popen(
            [*prefix, *LOGAGG, verb, *sinks, *map(str, words)],
            cwd=self.directory,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def command(
        self, *words: str | int, timeout: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        """Run another `logagg` command to its end."""
        return subprocess.run(
            [*LOGAGG, *map(str, words)],
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """The run's status, through its control socket."""
        code = (
            "import json, sys; from logagg.ipc.runs.run_control import find, status;"
            "print(json.dumps(status(find(int(sys.argv[1])))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.pid)],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return json.loads(done.stdout) if done.returncode == 0 else {"slots": []}

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        assert self.process is not None
        return self.process.pid

    def records(self, **wanted: Any) -> list[dict[str, Any]]:
        """The records whose fields have these values; every line must parse."""
        if not self.log.exists():
            return []
        whole, _, _ = self.log.read_bytes().rpartition(b"\n")
        found = [json.loads(line) for line in whole.splitlines()]
        return [r for r in found if all(r.get(k) == v for k, v in wanted.items())]

    def messages(self, **wanted: Any) -> list[str]:
        """The messages of records."""
        return [record["message"] for record in self.records(**wanted)]

    def until_record(self, timeout: float = 90.0, **wanted: Any) -> dict[str, Any]:
        """Wait for a record with these field values."""
        found = until(lambda: self.records(**wanted), timeout, f"record {wanted}")
        return dict(found[0])

    def until_ready(self, count: int, timeout: float = 90.0) -> dict[str, Any]:
        """Wait until so many workers are ready."""

        def ready() -> dict[str, Any] | None:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"ended early: {self.messages()[-12:]}")
            status = self.status()
            states = [slot["state"] for slot in status["slots"]]
            return status if states == ["ready"] * count else None

        return dict(until(ready, timeout, f"{count} ready workers"))

    def workers(self) -> dict[int, int]:
        """The workers' pids by slot."""
        return {s["slot"]: s["pid"] for s in self.status()["slots"] if "pid" in s}

    def signal(self, signum: int) -> None:
        """Send the supervisor a signal."""
        os.kill(self.pid, signum)

    def wait(self, timeout: float = 90.0) -> int:
        """Wait for the end; the status, negative for a signal."""
        assert self.process is not None
        self.out, self.err = self.process.communicate(timeout=timeout)
        return self.process.returncode

    def stop(self, timeout: float = 90.0) -> int:
        """TERM, and wait."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)


class Load:
    """A steady load: clients that ask one request after the other, each answer counted."""

    def __init__(self, port: int, clients: int = 3) -> None:
        self.port = port
        self.good: list[str] = []
        self.bad: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.good.append(get(self.port, timeout=20))
            except (OSError, AssertionError) as error:
                self.bad.append(repr(error))

    def stop(self) -> None:
        """End the clients, each after its answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that is ended after the test, whatever happened in it."""
    runtime = Path(tempfile.mkdtemp(prefix="lr", dir="/tmp"))
    made = Run(tmp_path, runtime)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()
    until(lambda: not _left(runtime), what="processes left behind by the run")
    shutil.rmtree(runtime, ignore_errors=True)


def _left(runtime: Path) -> list[int]:
    """Processes that still have the run's environment."""
    found = []
    mark = f"XDG_RUNTIME_DIR={runtime}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            ours = mark in (entry / "environ").read_bytes().split(b"\0")
            if ours and alive(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture
def tools() -> Any:
    """The plain functions of this file."""
    import types

    return types.SimpleNamespace(
        until=until,
        free_port=free_port,
        get=get,
        alive=alive,
        logagg=LOGAGG,
        Load=Load,
        ASGI=ASGI,
    )
