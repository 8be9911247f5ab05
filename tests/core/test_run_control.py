"""The client's side of a run's control socket: an answer has an end, in time and bytes."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from logagg.errors import ConfigError
from logagg.ipc.runs import run_control
from logagg.ipc.runs.run_control import RunAddress
from logagg.ipc.runs.run_messages import StatusRequest


@contextmanager
def answered(
    tmp_path: Path, talk: Callable[[socket.socket], None]
) -> Iterator[RunAddress]:
    """A run of which this process is the supervisor, and its answer."""
    path = str(tmp_path / "c")

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            talk(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield RunAddress(os.getpid(), path)
        thread.join(60)
        assert not thread.is_alive()


def test_an_answer_without_end_takes_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error as soon as it is too long."""
    monkeypatch.setattr(run_control, "_MOST_ANSWER_BYTES", 1 << 20)

    def pour(connection: socket.socket) -> None:
        for _ in range(4096):  # 256 MiB
            connection.sendall(bytes(1 << 16))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        answered(tmp_path, pour) as run,
        pytest.raises(ConfigError, match="longer than 1048576 bytes"),
    ):
        run_control.request(run, StatusRequest(), timeout=60)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_an_answer_that_trickles_ends_in_time(tmp_path: Path) -> None:
    """The time is that of the whole answer, not of each byte."""

    def drip(connection: socket.socket) -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            connection.sendall(b" ")
            time.sleep(0.01)  # the pace of the answer

    with (
        answered(tmp_path, drip) as run,
        pytest.raises(ConfigError, match=r"did not answer in 0\.2 s"),
    ):
        run_control.request(run, StatusRequest(), timeout=0.2)


def test_half_an_answer_is_none(tmp_path: Path) -> None:
    """The run was killed while it sent it."""
    with (
        answered(
            tmp_path, lambda connection: connection.sendall(b'{"workers":')
        ) as run,
        pytest.raises(ConfigError, match="ended before it answered"),
    ):
        run_control.request(run, StatusRequest(), timeout=60)
