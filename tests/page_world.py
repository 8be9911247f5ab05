"""What the tests of the page share: `logagg web`, a worker that logs on request, pages.

The server and the workers are real processes; the browser is Debian's chromium.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--js-flags=--expose-gc", "--enable-precise-memory-info",
]  # fmt: skip
MAIN = [sys.executable, "-c", "from logagg.cli.main import main; main()"]
TEN_O_CLOCK = 1_795_600_800  # 2026-11-25T10:00:00Z
PATIENCE = float(
    os.environ.get("PAGE_PATIENCE", "60")
)  # seconds for what is to come: the machine may be busy

# A worker that logs what its standard input asks for: a line of JSON with the level, the
# message, the number of records and extra fields. It answers when that is done.
WORKER = """
import json, logging, sys, logagg
logging.basicConfig(handlers=[logagg.Handler(sys.argv[1] if sys.argv[1] != "-" else None)], level="DEBUG")
def deep():
    return json.loads("{bad")
for line in sys.stdin:
    ask = json.loads(line)
    log = logging.getLogger(ask.get("logger", "app"))
    level = getattr(logging, ask.get("level", "info").upper())
    for number in range(ask.get("count", 1)):
        error = None
        if ask.get("fail") == "chain":
            try:
                try:
                    deep()
                except ValueError as cause:
                    raise RuntimeError("cannot parse") from cause
            except RuntimeError as found:
                error = found
        elif ask.get("fail") == "group":
            try:
                raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])
            except ExceptionGroup as found:
                error = found
        extra = {"n": number, **ask.get("extra", {})}
        log.log(level, ask.get("message", "message"), exc_info=error, extra=extra)
    for handler in logging.getLogger().handlers:
        handler.flush()
    print("done", flush=True)
"""


class Worker:
    """A process that logs to a file's consumer on request."""

    def __init__(
        self,
        target: str | Path,
        *,
        env: dict[str, str] | None = None,
        named: bool = True,
    ) -> None:
        program = Path(target).with_suffix(".worker.py")
        program.write_text(WORKER)
        self.process = subprocess.Popen(
            [sys.executable, str(program), str(target) if named else "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def log(self, message: str = "message", **ask: Any) -> None:
        """Log records, and wait until the consumer has written them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"message": message, **ask}) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def close(self) -> None:
        """End it in good order."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE)


@contextmanager
def worker(target: str | Path, **options: Any) -> Iterator[Worker]:
    """A worker, which ends with the block."""
    made = Worker(target, **options)
    try:
        yield made
    finally:
        made.close()


class Web:
    """A running `logagg web`.

    Attributes:
        link: The link that it printed.
        token: Its token.
    """

    def __init__(self, *options: object, cwd: Path | None = None) -> None:
        command = [*MAIN, "web", *map(str, options)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd
        )
        self.link = self._first_line()
        self.token = re.search(r"token=([^)\s]+)", self.link)[1]  # type: ignore[index]
        found = re.search(r"://([^/]+)/", self.link)
        self.address = found[1] if found else ""

    def _first_line(self) -> str:
        out, err = self.process.stdout, self.process.stderr
        assert out is not None
        assert err is not None
        if not select.select([out], [], [], PATIENCE)[0]:
            self.process.kill()
            raise AssertionError(f"no link was printed: {err.read()!r}")
        line = out.readline().decode().strip()
        assert line, err.read().decode()
        return line

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.address.rpartition(":")[2])

    def page(self, fragment: str = "", **query: Any) -> str:
        """A link with the token and more of a query."""
        more = "&" + urlencode(query) if query else ""
        return f"{self.link}{more}{'#' + fragment if fragment else ''}"

    def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        known: bool = True,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Make a request as a browser that has the cookie; status, headers, body."""
        sent = dict(headers or {})
        if known:
            sent.setdefault("Cookie", f"logagg-{self.port}={self.token}")
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=PATIENCE
        )
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = {key.lower(): value for key, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **query: Any) -> Any:
        """The JSON that a path answers."""
        text = f"{path}?{urlencode(query, quote_via=quote)}" if query else path
        return json.loads(self.ask(text)[2])

    def close(self) -> None:
        """End it as Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        _, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, errors.decode()
        assert errors == b"", errors.decode()


@contextmanager
def web(*options: object, **more: Any) -> Iterator[Web]:
    """A server, which ends with the block."""
    made = Web(*options, **more)
    try:
        yield made
    except BaseException:
        made.process.kill()
        made.process.communicate()
        raise
    made.close()


class Events:
    """A raw listener of server-sent events."""

    def __init__(self, server: Web, path: str, last: str = "") -> None:
        headers = {"Cookie": f"logagg-{server.port}={server.token}"}
        if last:
            headers["Last-Event-ID"] = last
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=PATIENCE
        )
        self._connection.request("GET", path, headers=headers)
        self._answer = self._connection.getresponse()
        self.status = self._answer.status
        self.last = last

    def next(self) -> tuple[str, list[str]]:
        """The next event: its name and its lines of data."""
        name, data = "", []
        while True:
            line = self._answer.readline()
            assert line, "the stream has ended"
            text = line.decode("utf-8", "replace").rstrip("\n")
            if text.startswith("event: "):
                name = text[7:]
            elif text.startswith("data: "):
                data.append(text[6:])
            elif text.startswith("id: "):
                self.last = text[4:]
            elif not text and name:
                return name, data

    def until(self, done: Callable[[list[str]], Any]) -> list[str]:
        """All records of batches until something holds for them."""
        found: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while not done(found):
            assert time.monotonic() < deadline, found[-3:]
            name, data = self.next()
            if name == "batch":
                found += [line.partition(" ")[2] for line in data[1:]]
        return found

    def close(self) -> None:
        """Leave."""
        self._answer.close()
        self._connection.close()


def line(
    second: float,
    level: str = "info",
    worker_name: str = "1",
    seq: int = 1,
    **more: Any,
) -> bytes:
    """A finished line of 2026-11-25, so many seconds after 10:00:00 UTC."""
    whole = int(second)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(TEN_O_CLOCK + whole))
    record = {
        "timestamp": f"{clock}.{round((second - whole) * 1e9):09d}Z",
        "level": level, "worker": worker_name, "seq": seq, "logger": "app",
        "message": f"record {seq}", "pid": 4242, "process": "MainProcess",
        "thread": "MainThread", **more,
    }  # fmt: skip
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def wait_for(page: Any, script: str, what: str = "") -> Any:
    """Wait until a script in a page is true; its value.

    Not by playwright's own function, which evaluates text in the page: its policy forbids.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        value = page.evaluate(script)
        if value:
            return value
        if time.monotonic() > deadline:
            shown = page.evaluate("document.body.innerText.slice(0, 1500)")
            raise AssertionError(f"{what or script} did not come: {shown}")
        page.wait_for_timeout(30)
