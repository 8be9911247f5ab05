"""Starting workers within the system's limits of descriptors, processes and memory."""

from __future__ import annotations

import errno
import os
import random

from logagg.core.record import worker_text
from logagg.errors import StartFailed
from logagg.supervisor.child.launch_spec import LaunchSpec
from logagg.supervisor.process.open_files import (
    allow_open_files,
    limit_open_files,
    open_files,
)
from logagg.supervisor.process.worker_process import WorkerOwner, WorkerProcess
from logagg.supervisor.run_options import RunOptions
from logagg.supervisor.sockets.bind_address import PortPolicy
from logagg.supervisor.sockets.listeners import Listeners

__all__ = ["WorkerLauncher", "no_room"]


class WorkerLauncher:
    """Makes the workers of a run.

    Args:
        address: The variables with the consumer's address, for the workers.
        owner: Gets the events of each worker.
        own_process: Raise this process's limit of open files; workers get the old one.
    """

    def __init__(
        self,
        options: RunOptions,
        listeners: Listeners,
        address: dict[str, str],
        owner: WorkerOwner,
        *,
        own_process: bool,
    ) -> None:
        self._options = options
        self._listeners = listeners
        self._address = address
        self._owner = owner
        self._open_files = allow_open_files() if own_process else 0
        self._last_id = 0

    def change(self, options: RunOptions) -> None:
        """Start workers by other options from now on."""
        self._options = options

    def launch(self, slot: int) -> WorkerProcess:
        """Start a worker process for a slot.

        Raises:
            StartFailed: The system has no room for it; nothing is left of the try.
        """
        self._last_id += 1
        identifier = self._last_id
        try:
            worker = self._start(slot, identifier)
        except OSError as error:
            for balancer in self._listeners.round_robins():
                balancer.remove(identifier)
            name = worker_text(self._options.app, slot)
            raise StartFailed(
                f"worker {name} cannot be started: {no_room(error)}"
            ) from error
        if self._options.max_age:
            worker.max_age = self._options.max_age * random.uniform(0.9, 1.1)  # noqa: S311
        worker.max_tasks = _about(self._options.max_tasks)
        return worker

    def _start(self, slot: int, identifier: int) -> WorkerProcess:
        options = self._options
        spec = LaunchSpec(
            parent=os.getpid(),
            slot=slot,
            id=identifier,
            channel=-1,
            kind=options.program.kind,
            argv=list(options.program.argv),
            level=options.level,
            policy=options.policy.value,
            listeners=self._listeners.shared_with(identifier, slot),
            max_connections=_about(options.max_connections),
            open_files=self._open_files,
            app=options.app,
            directory=options.directory,
        )
        env = {
            **options.env,
            **self._address,
            "LOGAGG_SLOT": str(slot),
            "LOGAGG_WORKER_ID": str(identifier),
            "LOGAGG_LEVEL": options.level,
        }
        if options.app:
            env["LOGAGG_APP"] = options.app
            env["LOGAGG_WORKER"] = worker_text(options.app, slot)
        if options.policy is PortPolicy.RR and "UVICORN_LOOP" not in os.environ:
            env["UVICORN_LOOP"] = "asyncio"  # uvloop cannot be handed connections
        return WorkerProcess(spec, env=env, owner=self._owner)

    def close(self) -> None:
        """Restore this process's limit of open files."""
        if self._open_files:
            limit_open_files(self._open_files)


def no_room(error: OSError) -> str:
    """The system's refusal in words, with the limit to raise."""
    limit, most = open_files()
    command = "ulimit -Hn" if limit == most else "ulimit -n"
    hint = {
        errno.EMFILE: f" (the limit is {limit}: {command})",
        errno.ENFILE: " (in the whole system: sysctl fs.file-max)",
        errno.EAGAIN: " (the limit of processes: ulimit -u, or the container's)",
        errno.ENOMEM: " (memory)",
    }
    return f"{error.strerror}{hint.get(error.errno or 0, '')}"


def _about(count: int) -> int:
    """The number ±10 %, so that workers do not reach it together; exact below 10."""
    return count + random.randint(-(count // 10), count // 10)  # noqa: S311
