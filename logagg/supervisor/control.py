"""The control socket of a run, for `logagg status|reload|scale|stop`.

One request a connection: a JSON object on a line, answered by one. The socket stands in
the private runtime directory (0700, owner checked), has mode 0600, and peers of another
user are refused by their credentials. Requests are answered on the supervisor's loop,
which waits for no worker, so `status` works whatever is wedged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from logagg.abc import shown_url
from logagg.errors import ConfigError, LogaggError, ReloadFailed
from logagg.ipc.protocol import encode, printable
from logagg.ipc.runs import run_control
from logagg.ipc.runs.run_messages import (
    ReloadRequest,
    RestartRequest,
    RunReply,
    RunRequest,
    ScaleRequest,
    StatusRequest,
    StopRequest,
    decode_run_request,
)
from logagg.platform.peers import credentials
from logagg.platform.procfs import rss_bytes
from logagg.supervisor.slots.slot import Slot
from logagg.supervisor.supervisor import Supervisor

__all__ = ["RunControlServer", "RunRequests", "status"]

_LINE_BYTES = 1024 * 1024


class RunControlServer:
    """The server's side.

    Args:
        answer: Does what a request is for; its LogaggErrors go to the client.
    """

    def __init__(self, answer: Callable[[RunRequest], Awaitable[RunReply]]) -> None:
        self._do = answer
        self._path = ""
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Begin to answer."""
        sock, self._path = run_control.listen()
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
            _, uid, _ = credentials(writer.get_extra_info("socket"))
            if uid not in (os.getuid(), 0):
                return
            line = await asyncio.wait_for(reader.readline(), 5.0)
            writer.write(encode(await self._answer(line)) + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # a line that is too long, or a peer that went away
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> RunReply:
        try:
            return await self._do(decode_run_request(line))
        except ReloadFailed as error:
            return RunReply(printable(error), printable(error.trace))
        except LogaggError as error:
            return RunReply(printable(error))


class RunRequests:
    """Does what is asked of one run.

    Attributes:
        app: Its name in a project; a request that names another program is refused.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._run = supervisor
        self.app = supervisor.options.app

    async def answer(self, request: RunRequest) -> RunReply:
        """Do what a request is for.

        Raises:
            LogaggError: It cannot be done.
        """
        run, program = self._run, getattr(request, "program", "")
        if program != self.app and not isinstance(request, StatusRequest):
            raise ConfigError(f"this run has no program {program!r}")
        match request:
            case StatusRequest():
                return RunReply(status=status(run))
            case ReloadRequest():
                return RunReply(replaced=await run.reload())
            case ScaleRequest(workers):
                await run.scale(workers)
                return RunReply(workers=len(run.slots.by_number))
            case RestartRequest(number):
                return RunReply(replaced=await self._restart(number))
            case StopRequest():
                run.stop("logagg stop")
                return RunReply(stopping=True)
            case _:
                raise ConfigError("this is a run, not a project of programs")

    async def _restart(self, number: int) -> int:
        slot = self._run.slots.by_number.get(number)
        if slot is None:
            raise LogaggError(f"there is no slot {number}")
        return int(await self._run.slots.replace(slot, "asked to restart"))


def _slot_row(run: Supervisor, slot: Slot) -> dict[str, Any]:
    worker, end, now = slot.worker, slot.last_exit, run.loop.time()
    row = {
        "slot": slot.number,
        "restarts": slot.restarts,
        "last_exit": None if end is None else f"{end.how}, {end.reason}",
    }
    if worker is None:
        return {**row, "state": "waiting", "starts_in": round(slot.starts_at - now, 1)}
    handed = sum(each.acknowledged(worker.id) for each in run.listeners.round_robins())
    return {
        **row,
        "state": worker.state,
        "pid": worker.pid,
        "id": worker.id,
        "uptime": round(worker.uptime, 1),
        "rss_bytes": rss_bytes(worker.pid),
        "connections": handed or worker.connections,
        "tasks": worker.tasks_done,
        "unacknowledged_messages": worker.peer.unacknowledged,
        "silent": round(max(now - worker.last_pong, 0.0), 1),
    }


def status(run: Supervisor) -> dict[str, Any]:
    """A run's state, for `logagg status`."""
    slots = sorted(run.slots.by_number.values(), key=lambda slot: slot.number)
    listeners = [
        {
            "address": str(each.address),
            "policy": "kernel" if each.sharing else each.policy.value,
            **(each.round_robin.connections() if each.round_robin else {}),
        }
        for each in run.listeners.all
    ]
    return {
        "pid": os.getpid(),
        "program": printable(run.options.program),
        "uptime": round(time.time() - run.started, 1),
        "directory": printable(run.options.directory or os.getcwd()),
        "reloads": run.reloads,
        "slots": [_slot_row(run, slot) for slot in slots],
        "listeners": listeners,
        "tasks": run.tasks.progress(),
        "consumer": {
            "pid": run.logs.pid,
            "restarts": run.logs.restarts,
            "socket": run.logs.path,
            "sinks": [printable(shown_url(sink)) for sink in run.options.sinks],
        },
    }
