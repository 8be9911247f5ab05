"""`logagg up`: all programs of a project, in the foreground or the background."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, NoReturn

import click
import msgspec

from logagg.cli.command import command, say
from logagg.cli.configuration import config
from logagg.cli.programs import background
from logagg.cli.programs.configured_names import complete_configured
from logagg.cli.programs.control_commands import FOREVER
from logagg.cli.programs.program_tables import find_project, read_project
from logagg.cli.programs.ps_command import measured, project_parts
from logagg.cli.status import show
from logagg.errors import ConfigError, ExitStatus
from logagg.ipc.runs import named_runs, run_control
from logagg.ipc.runs.named_runs import RunState
from logagg.ipc.runs.run_messages import UpRequest
from logagg.options import FilePath, Option, OptionText, fields
from logagg.sinks import SinkText
from logagg.supervisor.programs.program_spec import (
    ProgramSpec,
    select,
    with_formation,
)
from logagg.supervisor.programs.project_plan import ProjectPlan
from logagg.supervisor.run_options import DEFAULT_SINKS, Address, RunOptions

__all__ = ["UpOptions", "up"]


def _formation(text: str) -> dict[str, int]:
    found = {}
    for part in text.split(","):
        name, _, count = part.strip().partition("=")
        if not (name and count.isascii() and count.isdecimal()) or len(count) > 6:
            raise ValueError("NAME=N, as in web=4,jobs=2")
        found[name] = int(count)
    return found


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg up`."""

    file: Annotated[
        FilePath,
        Option(
            "The Procfile or logagg.toml with the programs.",
            "-f",
            asks="start the programs of {}",
        ),
    ] = ""
    formation: Annotated[
        dict[str, int],
        OptionText(_formation, metavar="NAME=N,…"),
        Option("Workers by program; 0: not started.", "-m"),
    ] = msgspec.field(default_factory=dict)
    sinks: Annotated[
        tuple[SinkText, ...],
        Option("Where records go; repeatable.", metavar="URL", long="--sink"),
    ] = DEFAULT_SINKS
    level: Annotated[
        str | None,
        fields(RunOptions)["level"].text,
        Option("Level of the root loggers.", "", "LEVEL", default="info"),
    ] = None
    metrics: Annotated[
        Address, Option("Serve metrics at [HOST]:PORT or unix:PATH.", "", "ADDRESS")
    ] = ""
    detach: Annotated[bool, Option("In the background; see ps, logs, stop.", "-d")] = (
        False
    )


@command(
    UpOptions,
    click.Argument(
        ["programs"],
        nargs=-1,
        metavar="[NAME]...",
        shell_complete=complete_configured,
    ),
)
def up(options: UpOptions, programs: tuple[str, ...]) -> None:
    """Run the programs of a Procfile or of [programs.NAME] in logagg.toml.

    All of them, or those of the NAMEs and what they come after: supervised by one
    process, with one ordered log. Ctrl-C stops all, in the reverse order. When the
    project runs already, what is missing is started and what has changed is reloaded.

    \b
    logagg up                      all programs, in the foreground
    logagg up -d                   in the background
    logagg up web                  web, and the programs that it comes after
    logagg up -m web=4,jobs=2      so many workers of each
    logagg up -f Procfile.dev --sink stdout:?format=console --sink file:app.log

    \b
    Exit status: the highest of the programs' (see logagg run --help), or by the
    signal that stopped it.
    """
    named = click.get_current_context().params.get("config")
    plan = _plan(options, programs, named)
    present = named_runs.project(plan.file)
    if present is not None:
        _join(present, programs, options.formation)
    elif options.detach:
        _detach(plan, options, programs, named)
    else:
        _run(plan)


def _run(plan: ProjectPlan) -> NoReturn:
    from logagg.supervisor.cluster import end_by_signal  # asyncio, the supervisor
    from logagg.supervisor.programs.project_requests import serve_project  # with it
    from logagg.supervisor.run_signals import hold  # loaded with it

    hold()  # to the end of the process, but for the project itself
    status, signum = asyncio.run(serve_project(plan))
    if signum and status in (ExitStatus.OK, ExitStatus.FAILED):
        end_by_signal(signum)
    sys.exit(status)


def _join(
    present: RunState, programs: Sequence[str], formation: Mapping[str, int]
) -> None:
    """Have a project that runs start what is missing and reload what has changed.

    Raises:
        ConfigError: It refuses, and everything is as it was.
    """
    request = UpRequest(programs=list(programs), formation=dict(formation))
    reply = run_control.request(present.run, request, timeout=FOREVER)
    if reply.error:
        raise ConfigError(reply.error)
    say(f"project {present.name} runs already (pid {present.run.pid}):")
    for name, text in (reply.notes or {}).items():
        say(f"  {name} {text}")
    say("its log: logagg logs")


def _detach(
    plan: ProjectPlan, options: UpOptions, programs: Sequence[str], named: str | None
) -> None:
    """Start the project in the background and show it.

    Raises:
        StartFailed: It failed at once.
    """
    words = ["--file", plan.file]
    words += ["--config", named] if named else []
    sinks = options.sinks
    if sinks == DEFAULT_SINKS:
        sinks = (background.default_sink(plan.file),)
    for sink in sinks:
        words += ["--sink", sink]
    if options.formation:
        counts = ",".join(f"{k}={v}" for k, v in options.formation.items())
        words += ["--formation", counts]
    words += ["--level", options.level] if options.level else []
    words += ["--metrics", options.metrics] if options.metrics else []
    found = background.begin(plan.file, [*words, *programs])
    if found is None:
        say("all programs have ended; their log: logagg logs")
        return
    rows = [program for _, program in measured([found])]
    show(*project_parts(found, rows))
    if any(row["state"] == "failed" for row in rows):
        sys.exit(ExitStatus.CANNOT_START)


def _plan(
    options: UpOptions, programs: Sequence[str], named: str | None
) -> ProjectPlan:
    """The project of a call.

    Raises:
        ConfigError: No programs are configured, or not rightly.
    """
    file = find_project(options.file, config.load(named))

    def read(names: Sequence[str], formation: Mapping[str, int]) -> list[ProgramSpec]:
        specs = read_project(file, config.load(named), options.level)
        return with_formation(select(specs, names), {**options.formation, **formation})

    found = read(programs, {})
    if not found:
        raise ConfigError("formation: every program has 0 workers; nothing would run")
    return ProjectPlan(
        name=file.path.parent.name or "root",
        file=str(file.path),
        programs=found,
        sinks=options.sinks,
        metrics=options.metrics,
        read=read,
    )
