"""Control sockets of runs: their names, and the client's side.

One request per connection: a line of JSON, answered by one (`logagg.ipc.runs`).

A socket is named `run-PID-TOKEN.control`. The pid is the supervisor's in its own pid
namespace, so containers that share the directory may have the same one, and two clusters
in one process do; the token keeps them apart. A client shows the pid as the kernel gives
it here.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from logagg.errors import ConfigError, ConsumerGone, WireError
from logagg.ipc.paths import runtime_dir
from logagg.ipc.protocol import decode, encode
from logagg.ipc.runs.run_messages import RunReply, RunRequest, StatusRequest
from logagg.ipc.users import check_listener
from logagg.platform.peers import credentials
from logagg.platform.procfs import is_stopped
from logagg.platform.system import bind_with_mode

__all__ = ["RunAddress", "find", "listen", "request", "run_name", "runs",
           "status"]  # fmt: skip

_MOST_ANSWER_BYTES = 64 << 20


class RunAddress(NamedTuple):
    """A run and its control socket."""

    pid: int
    path: str


def run_name() -> str:
    """A path for the sockets of a run of this process, yet without an ending."""
    return f"{runtime_dir()}/run-{os.getpid()}-{secrets.token_hex(2)}"


def listen() -> tuple[socket.socket, str]:
    """Make the control socket of a run of this process; returns it and its path.

    It listens before it has its name, and takes no other's: a name without a listener
    belongs to a run that was killed.
    """
    while True:
        name = run_name()
        path, fresh = name + ".control", name + ".new"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bind_with_mode(sock, fresh, 0o600)
            sock.listen()
            os.link(fresh, path)
        except FileExistsError:
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock, path
        finally:
            Path(fresh).unlink(missing_ok=True)


def runs() -> list[RunAddress]:
    """This user's runs that answer; removes sockets of killed ones."""
    found = []
    for path in Path(runtime_dir()).glob("run-*.control"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
                check_listener(probe, str(path))
                pid, _, _ = credentials(probe)
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                continue
            except OSError:
                continue
        name = path.name.split("-")[1]
        if pid or name.isdigit():  # 0: it is not visible in this pid namespace
            found.append(RunAddress(pid or int(name), str(path)))
    return sorted(found)


def find(pid: int | None) -> RunAddress:
    """The run that is meant: the given one, or the only one there is.

    Raises:
        ConsumerGone: There is none, or none with this pid.
        ConfigError: There is more than one, and none was named.
    """
    present = runs()
    listed = ", ".join(str(run.pid) for run in present)
    if not present:
        raise ConsumerGone("no run is running (of this user)")
    if pid is None:
        if len(present) > 1:
            raise ConfigError(f"several runs: {listed}; name one with --pid")
        return present[0]
    meant = [run for run in present if run.pid == pid]
    if not meant:
        raise ConsumerGone(f"no run has the pid {pid}; running: {listed}")
    if len(meant) > 1:
        raise ConfigError(
            f"{len(meant)} runs have the pid {pid}: use their own programs"
        )
    return meant[0]


def request(run: RunAddress, message: RunRequest, timeout: float = 10.0) -> RunReply:
    """Send a request to a run and wait for the whole answer, `timeout` seconds at most.

    Raises:
        ConfigError: It is not there, is stopped, or does not answer in time.
    """
    until = time.monotonic() + timeout
    name = f"run {run.pid}"
    if is_stopped(run.pid):
        raise ConfigError(f"{name} is stopped (Ctrl-Z): continue it, as with fg")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(run.path)
            check_listener(connection, run.path)
            connection.sendall(encode(message) + b"\n")
            line = _read_line(connection, until)
        except TimeoutError:
            raise ConfigError(f"{name} did not answer in {timeout:g} s") from None
        except OSError as error:
            raise ConfigError(f"{name} cannot be reached: {error}") from None
    if not line.endswith(b"\n"):
        raise ConfigError(f"{name} ended before it answered")
    try:
        return decode(RunReply, line)
    except WireError as error:
        raise ConfigError(f"{name} sends no answer: {error}") from error


def _read_line(connection: socket.socket, until: float) -> bytes:
    """Read a line; what it is without an end, when there is none. Raises OSError."""
    parts = bytearray()
    while not parts.endswith(b"\n"):
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if len(parts) > _MOST_ANSWER_BYTES:
            raise OSError(f"its answer is longer than {_MOST_ANSWER_BYTES} bytes")
        connection.settimeout(left)
        part = connection.recv(1 << 16)
        if not part:
            break
        parts += part
    return bytes(parts)


def status(run: RunAddress) -> dict[str, Any]:
    """Everything that `logagg status` shows of a run.

    Raises:
        ConfigError: It does not answer within 10 s.
    """
    reply = request(run, StatusRequest())
    if not isinstance(reply.status, dict):
        raise ConfigError(f"run {run.pid} sends no status: {reply.error}")
    return reply.status
