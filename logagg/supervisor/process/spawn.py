"""Starting the process of a worker: its environment, its pipes, a handle of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from logagg.platform.processes import ProcessHandle, process_handle
from logagg.platform.system import set_pipe_bytes
from logagg.supervisor.child import bootstrap, exec_command
from logagg.supervisor.child.launch_spec import ENVIRONMENT, LaunchSpec

__all__ = ["Pipes", "spawn"]

PIPE_BYTES = 1024 * 1024
_INTERNAL = (
    ENVIRONMENT,
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
)


@dataclass(frozen=True, slots=True)
class Pipes:
    """The read ends of a worker's stdout and stderr; owned by the one that gets them."""

    stdout: int
    stderr: int


def spawn(
    spec: LaunchSpec, env: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], Pipes, ProcessHandle]:
    """Start the process: by exec, in a session of its own, with a pipe per stream.

    Returns:
        The process, its pipes, and a handle of it.

    Raises:
        OSError: No descriptor, process or memory is free; then nothing is left of it.
    """
    program = exec_command if spec.kind == "command" else bootstrap
    assert program.__file__ is not None
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _INTERNAL and not name.startswith("LOGAGG_FD_")
    }
    environment.update(env)
    environment["PYTHONUNBUFFERED"] = "1"
    environment[ENVIRONMENT] = spec.to_json()
    fds = [listener.fd for listener in spec.listeners if listener.fd >= 0]
    if spec.channel >= 0:
        fds.append(spec.channel)
    with ExitStack() as finally_, ExitStack() as on_error:
        out_read, out_write = _pipe(on_error, finally_)
        err_read, err_write = _pipe(on_error, finally_)
        process = subprocess.Popen(
            [sys.executable, program.__file__],
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            pass_fds=fds,
            start_new_session=True,
            env=environment,
            cwd=spec.directory or None,
        )
        on_error.callback(process.wait)
        on_error.callback(process.kill)
        handle = process_handle(process.pid)
        on_error.pop_all()
    return process, Pipes(out_read, err_read), handle


def _pipe(read_ends: ExitStack, write_ends: ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    read_ends.callback(os.close, read)
    write_ends.callback(os.close, write)
    set_pipe_bytes(write, PIPE_BYTES)
    return read, write
