"""The commands `reload`, `restart`, `scale` and `stop`, of runs and of programs."""

from __future__ import annotations

import sys
from typing import Annotated

import click
import msgspec

from logagg.cli.command import command, say
from logagg.cli.completion import complete_running
from logagg.errors import ConfigError, ExitStatus
from logagg.ipc import consumer_client
from logagg.ipc.runs import named_runs, run_control
from logagg.ipc.runs.named_runs import Target
from logagg.ipc.runs.run_messages import (
    ReloadRequest,
    RestartRequest,
    RunReply,
    RunRequest,
    ScaleRequest,
    StopRequest,
)
from logagg.options import FilePath, Option
from logagg.platform.processes import process_handle

__all__ = ["FOREVER", "reload", "restart", "scale", "stop"]

FOREVER = 24 * 3600.0  # seconds: as long as workers take to become ready, to end


class PidOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg scale` and `logagg restart`."""

    pid: Annotated[
        int | None, Option("The supervisor, when several run.", "", "PID")
    ] = None


class ReloadOptions(PidOptions, frozen=True, kw_only=True):
    """Options of `logagg reload`."""

    socket: Annotated[FilePath, Option("The consumer, of `logagg serve`.")] = ""


class StopOptions(PidOptions, frozen=True, kw_only=True):
    """Options of `logagg stop`."""

    wait: Annotated[bool, Option("Wait until it has ended.")] = True


def _names(*, required: bool = False) -> click.Argument:
    return click.Argument(
        ["names"],
        nargs=-1,
        required=required,
        metavar="[NAME]..." if not required else "NAME...",
        shell_complete=complete_running,
    )


def _targets(names: tuple[str, ...], pid: int | None) -> list[Target]:
    return [named_runs.find(name, pid) for name in names or ("",)]


def _ask(target: Target, message: RunRequest) -> RunReply:
    """Send a request; a refusal of the run is this command's error.

    Raises:
        ConfigError: It refused.
    """
    reply = run_control.request(target.found.run, message, timeout=FOREVER)
    if reply.trace:
        say(reply.trace.rstrip(), err=True)
    if reply.error:
        raise ConfigError(reply.error)
    return reply


@command(ReloadOptions, _names())
def reload(options: ReloadOptions, names: tuple[str, ...]) -> None:
    """Replace all workers one by one, or read the sinks of `serve` again.

    Of a run; of the programs with these names. Each fresh worker is ready before an old
    one stops. A release that does not become ready is refused: the old workers stay, the
    traceback is shown, exit status 1.

    For `logagg serve`, new sinks are opened, and removed ones close after they have
    written what is queued. A configuration with a mistake is refused as a whole.
    """
    from logagg.cli.serve import reloadable  # only this way

    path = options.socket
    if not (path or names) and options.pid is None and not run_control.runs():
        path = reloadable() or ""
    if path:
        consumer_client.reload(path)
        say("configuration read again")
        return
    count = 0
    for target in _targets(names, options.pid):
        request = ReloadRequest(program=target.program)
        reply = run_control.request(target.found.run, request, timeout=FOREVER)
        if reply.error:
            if reply.trace:
                say(reply.trace.rstrip(), err=True)
            say(f"logagg: {reply.error}", err=True)
            sys.exit(ExitStatus.FAILED)
        count += int(reply.replaced or 0)
    say(f"{count} workers replaced")


@command(PidOptions, _names(required=True))
def restart(options: PidOptions, names: tuple[str, ...]) -> None:
    """End programs of a project and start them, as they are configured now.

    One that has ended or failed is started. `reload` replaces workers without a pause.
    """
    for target in _targets(names, options.pid):
        if not target.program:
            text = f"{target.found.name} is not one program of a project"
            raise ConfigError(f"restart: {text}; replace its workers: logagg reload")
        _ask(target, RestartRequest(program=target.program))
        say(f"{target.program} restarted")


class _WorkerCount(click.ParamType):  # type: ignore[type-arg]
    name = "workers"

    def convert(self, value: str, _param: object, _ctx: object) -> tuple[str, int]:
        """Read a number of workers, perhaps with a program."""
        name, equals, count = value.rpartition("=")
        if not (count.isascii() and count.isdecimal() and len(count) < 7):
            raise ConfigError(
                f"scale {value!r}: expected a number of workers, 0 or more, or NAME=N"
            )
        if equals and not name:
            raise ConfigError(f"scale {value!r}: expected NAME=N, as in web=4")
        return name, int(count)


@command(
    PidOptions,
    click.Argument(
        ["workers"],
        nargs=-1,
        required=True,
        type=_WorkerCount(),
        metavar="WORKERS | NAME=N...",
        shell_complete=complete_running,
    ),
    context_settings={"ignore_unknown_options": True},
)
def scale(options: PidOptions, workers: tuple[tuple[str, int], ...]) -> None:
    """Change the number of workers; returns when surplus ones have ended.

    With 0 the run goes on without a worker, until it is scaled again or stopped.
    """
    for name, count in workers:
        target = named_runs.find(name, options.pid)
        reply = _ask(target, ScaleRequest(count, program=target.program))
        say(f"{name}: {reply.workers} workers" if name else f"{reply.workers} workers")


@command(StopOptions, _names())
def stop(options: StopOptions, names: tuple[str, ...]) -> None:
    """Stop a run, a project, or programs of it: workers end, all records are written."""
    for target in _targets(names, options.pid):
        if target.program:
            _ask(target, StopRequest(program=target.program))
            say(f"{target.program} stopped")
            continue
        process = process_handle(target.found.run.pid)
        _ask(target, StopRequest())
        if options.wait:
            process.wait()
