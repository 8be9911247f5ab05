"""`logagg check`: everything is looked at, nothing is changed, nothing secret shown."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import support
from serving import LOGAGG


def check(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `logagg check` in a directory."""
    environment = {**os.environ, "HOME": str(folder), **env}
    return support.finish(
        [*LOGAGG, "check", *words], status=None, cwd=folder, env=environment
    )


def states(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The table: what → state."""
    rows = [line.split() for line in done.stdout.splitlines()]
    return {" ".join(row[1:3]) if row[1] == "sink" else row[1]: row[0] for row in rows}


class Server(ThreadingHTTPServer):
    """Answers every request with `status`, and notes what it was asked."""

    status = 200

    def __init__(self) -> None:
        self.heard: list[str] = []
        super().__init__(("127.0.0.1", 0), Answering)


class Answering(BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def answer(self) -> None:
        """Note it and answer."""
        size = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(size)
        secret = self.headers.get("Authorization", "-")
        self.server.heard.append(f"{self.command} {self.path} {size} {secret}")
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET = do_POST = answer  # noqa: N815 - the names that it looks for

    def log_message(self, *words: object) -> None:
        """Be silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    """An HTTP server that is well."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


@pytest.mark.slow
def test_all_well_is_said_line_by_line(tmp_path: Path, server: Server) -> None:
    """The file, each table, each target; status 0; no file made, no record sent."""
    port = server.server_port
    (tmp_path / "logagg.toml").write_text(
        f'sinks = ["file:logs/app.log", "http://127.0.0.1:{port}/in"]\n'
        "[run]\nworkers = 2\n[tail]\nlines = 5\n"
    )
    done = check(tmp_path)

    assert done.returncode == 0, done.stdout
    assert set(states(done).values()) == {"ok"}
    for part in ("[run]", "[serve]", "[tail]", f"sink http://127.0.0.1:{port}/in"):
        assert part in done.stdout
    assert not (tmp_path / "logs").exists()
    assert server.heard == ["HEAD /in 0 -"]


def test_a_target_is_asked_as_the_sink_would_speak_to_it(
    tmp_path: Path, server: Server
) -> None:
    """Its own door and secret; what it answers stands in the table, by status."""
    url = f"loki+http://127.0.0.1:{server.server_port}"
    (tmp_path / "logagg.toml").write_text(f'sinks = ["{url}?token=env:SECRET"]\n')

    done = check(tmp_path, "--config", "logagg.toml", SECRET="hunter22")
    assert (done.returncode, states(done)[f"sink {url}"]) == (0, "ok")
    assert "GET /ready: 200 OK" in done.stdout
    server.status = 401
    done = check(tmp_path, "--config", "logagg.toml", SECRET="hunter22")
    assert (done.returncode, states(done)[f"sink {url}"]) == (1, "down")
    assert "401 Unauthorized: the secret is refused" in done.stdout
    assert server.heard == ["GET /ready 0 Bearer hunter22"] * 2


def test_without_a_file_all_is_well_too(tmp_path: Path) -> None:
    """Nothing is configured: that is said, and it is no failure."""
    (tmp_path / ".git").mkdir()
    done = check(tmp_path)

    assert done.returncode == 0
    assert "no configuration file" in done.stdout


def test_every_mistake_is_shown_not_just_the_first(tmp_path: Path) -> None:
    """Each table's, with status 2."""
    (tmp_path / "logagg.toml").write_text(
        '[run]\nwrokers = 2\n[tail]\nlevel = "loud"\n[serve]\nsinks = ["fiel:x"]\n'
    )
    done = check(tmp_path)

    assert done.returncode == 2
    for word in ("'workers'", "level = 'loud'", "did you mean 'file'"):
        assert word in done.stdout


def test_a_target_that_does_not_answer_is_down(tmp_path: Path) -> None:
    """Status 1: the configuration is right, the target is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "logagg.toml").write_text(f'sinks = ["http://127.0.0.1:{port}/"]\n')
    done = check(tmp_path)

    assert done.returncode == 1
    assert f"down  sink http://127.0.0.1:{port}/" in done.stdout


@pytest.mark.slow
def test_tls_is_tried(tmp_path: Path, server: Server) -> None:
    """A server without TLS is no target for https."""
    port = server.server_port
    (tmp_path / "logagg.toml").write_text(f'sinks = ["https://127.0.0.1:{port}/"]\n')
    done = check(tmp_path)

    assert done.returncode == 1
    assert "down" in done.stdout


def test_a_directory_that_anybody_may_write_to_is_bad(tmp_path: Path) -> None:
    """Anybody could replace the log there."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "app.log").mkdir()
    (tmp_path / "logagg.toml").write_text(
        'sinks = ["file:open/app.log", "file:app.log"]\n'
    )
    done = check(tmp_path)

    assert done.returncode == 2
    assert "writable by everybody" in done.stdout
    assert "is not a regular file" in done.stdout


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """Neither of the URL nor of a mistake in it."""
    (tmp_path / "logagg.toml").write_text(
        'sinks = ["http://u:hunter2@127.0.0.1:1/p?x=hunter3", '
        '{url = "http://u:hunter4@127.0.0.1:1/q"}]\n'
        '[serve]\nsinks = ["http://u:hunter5@127.0.0.1:1/r"]\n'
    )
    done = check(tmp_path)

    assert done.returncode != 0
    assert "hunter" not in done.stdout + done.stderr


def test_a_variable_that_is_none_of_ours_is_noted(tmp_path: Path) -> None:
    """A misspelt one is no failure, because others may use such names, but seen."""
    done = check(tmp_path, LOGAGG_WROKERS="3")

    assert done.returncode == 0
    assert "did you mean 'LOGAGG_WORKERS'" in done.stdout
    assert check(tmp_path, LOGAGG_WORKERS="fuor").returncode == 2


def test_a_named_file_that_is_not_there_is_bad(tmp_path: Path) -> None:
    """Named by option or variable."""
    assert check(tmp_path, "--config", "gone.toml").returncode == 2
    done = check(tmp_path, LOGAGG_CONFIG="gone.toml")
    assert done.returncode == 2
    assert "cannot read gone.toml" in done.stdout
