"""The control socket of a run: what `logagg status|reload|scale|stop` talk to.

One request a connection: a JSON object on a line, answered by one. The socket stands in
the private runtime directory (0700, owner checked), has mode 0600, and peers of another
user are refused by their credentials. Requests are answered on the supervisor's loop,
which waits for no worker, so `status` works whatever is wedged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logagg.address import peer, runtime_dir
from logagg.errors import ConfigError, LogaggError
from logagg.supervisor.member import rss_bytes
from logagg.supervisor.slots import ReloadFailed

if TYPE_CHECKING:
    from logagg.supervisor.supervisor import Supervisor

__all__ = ["Control", "ask", "find", "runs"]

_LINE_BYTES = 1024 * 1024


def _path(pid: int) -> str:
    return os.path.join(runtime_dir(), f"run-{pid}.control")


class Control:
    """The server's side."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._run = supervisor
        self._path = _path(os.getpid())
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Begin to answer."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(self._path)
        os.chmod(self._path, 0o600)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=sock, limit=_LINE_BYTES
        )

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            _, uid, _ = peer(writer.get_extra_info("socket"))
            if uid not in (os.getuid(), 0):
                return
            question = json.loads(await asyncio.wait_for(reader.readline(), 5.0))
            answer = await self._answer(question)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, TypeError, KeyError, TimeoutError):
            pass  # a peer that does not speak the protocol, or went away
        finally:
            writer.close()

    async def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        verb = question["do"]
        try:
            if verb == "status":
                return status(self._run)
            if verb == "reload":
                return {"replaced": await self._run.reload()}
            if verb == "scale":
                await self._run.scale(int(question["workers"]))
                return {"workers": len(self._run.slots.by_number)}
            if verb == "stop":
                self._run.stop("logagg stop")
                return {"stopping": True}
        except ReloadFailed as error:
            return {"error": str(error), "trace": error.trace}
        except LogaggError as error:
            return {"error": str(error)}
        return {"error": f"unknown request {verb!r}"}


def status(run: Supervisor) -> dict[str, Any]:
    """Everything that `logagg status` shows of a run."""
    now = run.loop.time()
    handovers = run.listeners.handovers()
    slots = []
    for number, slot in sorted(run.slots.by_number.items()):
        member, end = slot.worker, slot.last_exit
        row: dict[str, Any] = {"slot": number, "restarts": slot.restarts}
        row["last_exit"] = None if end is None else f"{end.how}, {end.reason}"
        if member is None:
            row.update(state="waiting", starts_in=round(slot.starts_at - now, 1))
        else:
            handed = sum(each.acknowledged(member.id) for each in handovers)
            row.update(
                state=member.state,
                pid=member.pid,
                id=member.id,
                uptime=round(member.uptime, 1),
                rss_bytes=rss_bytes(member.pid),
                connections=handed or member.connections,
                tasks=member.tasks_done,
                unacknowledged_messages=len(member.outbox),
                silent=round(max(now - member.last_pong, 0.0), 1),
            )
        slots.append(row)
    listeners = [
        {
            "address": str(each.address),
            "policy": each.policy.value,
            **(each.handover.connections() if each.handover else {}),
        }
        for each in run.listeners.all
    ]
    return {
        "pid": os.getpid(),
        "program": str(run.options.program),
        "uptime": round(time.time() - run.started, 1),
        "directory": os.getcwd(),
        "reloads": run.reloads,
        "slots": slots,
        "listeners": listeners,
        "tasks": run.tasks.progress(),
        "consumer": {
            "pid": run.logs.pid,
            "restarts": run.logs.restarts,
            "socket": run.logs.path,
            "sinks": list(run.options.sinks),
        },
    }


# ---- the client's side -----------------------------------------------------------


def runs() -> list[int]:
    """The supervisors of this user that answer, by pid."""
    found = []
    for path in Path(runtime_dir()).glob("run-*.control"):
        pid = path.name.removeprefix("run-").removesuffix(".control")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # its supervisor was killed
                continue
            except OSError:
                continue
        if pid.isdigit():
            found.append(int(pid))
    return sorted(found)


def find(pid: int | None) -> int:
    """The run that is meant: the given one, or the only one there is.

    Raises:
        ConfigError: There is none, or more than one and none was named.
    """
    present = runs()
    if pid is not None:
        if pid not in present:
            raise ConfigError(
                f"no logagg run with pid {pid}; running: {present or '-'}"
            )
        return pid
    if not present:
        raise ConfigError("no logagg run is running (for this user)")
    if len(present) > 1:
        listed = ", ".join(map(str, present))
        raise ConfigError(f"several runs: {listed}; name one with --pid")
    return present[0]


def ask(pid: int, question: dict[str, Any], timeout: float = 10.0) -> dict[str, Any]:
    """Ask a run and wait for the answer.

    Raises:
        ConfigError: It is not there, or does not answer within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(_path(pid))
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as file:
                line = file.readline()
        except TimeoutError:
            raise ConfigError(f"run {pid} did not answer in {timeout:g} s") from None
        except OSError as error:
            raise ConfigError(f"run {pid} cannot be reached: {error}") from None
    if not line:
        raise ConfigError(f"run {pid} ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    return answer
