"""LOGAGG_METRICS counts for a consumer that a handler starts, too."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support

WAITING = (
    support.BASIC
    + """\
log.info("ready")
sys.stdin.read()
"""
)


@contextmanager
def program(path: Path, folder: Path, metrics: str) -> Iterator[None]:
    """A program that has logged a record and waits, with its consumer."""
    environment = {**os.environ, "LOGAGG_METRICS": metrics}
    with support.running(
        WAITING, path, cwd=folder, env=environment, stdin=-1
    ) as process:
        support.wait_until(support.have(path, 1), what="its record")
        yield
        process.communicate("", timeout=90)
        assert process.returncode == 0


@pytest.mark.slow
def test_a_handlers_consumer_serves_metrics_at_a_port(tmp_path: Path) -> None:
    """The variable in the environment of the program is enough."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with program(tmp_path / "app.log", tmp_path, f":{port}"):
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"app.log" in answer.read()
    support.settled()


@pytest.mark.slow
def test_a_relative_unix_socket_is_in_the_programs_directory(tmp_path: Path) -> None:
    """It is there, private, while the consumer lives, and gone behind it."""
    with program(tmp_path / "app.log", tmp_path, "unix:m.sock"):
        assert (tmp_path / "m.sock").stat().st_mode & 0o777 == 0o600
    support.settled()
    assert not (tmp_path / "m.sock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("taken", [True, False])
def test_metrics_that_cannot_be_served_cost_no_record(
    tmp_path: Path, *, taken: bool
) -> None:
    """A port in use or a bad address: one record says so, and logging goes on."""
    path = tmp_path / "app.log"
    with socket.create_server(("127.0.0.1", 0)) as server:
        metrics = f":{server.getsockname()[1]}" if taken else "nonsense"
        with program(path, tmp_path, metrics):
            pass
        support.settled()

    (told,) = support.events("metrics_error", path)
    assert metrics in told["message"]
    assert [each["message"] for each in support.records(path)] == ["ready"]
