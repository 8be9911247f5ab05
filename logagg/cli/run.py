"""The command `run`."""

from __future__ import annotations

import sys

import click
import msgspec

from logagg.cli.command import Command, command, given, reader
from logagg.errors import ConfigError, ExitStatus
from logagg.supervisor.run_options import Program, RunOptions

__all__ = ["run"]

_END = "\0"  # cannot be a word of a command line


class _RunCommand(Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options also after a Python script or module.

        For example `logagg run app.py --workers 4 -- --verbose`. The first word that is
        not an option of `run`, and all words after it, belong to the program; `--` ends
        the options in any case.
        """
        rest = super().parse_args(ctx, args)
        words = list(ctx.params["program"])
        script = words[0].endswith((".py", ".pyc", ".pyz")) or ctx.params["module"]
        if words[0] == "--":
            words = words[1:]
        elif script:
            end = words.index("--") if "--" in words else len(words)
            left = self._options_after(ctx, words[1:end])
            words = [words[0], *left, *words[end + 1 :]]
        if not words:
            raise click.MissingParameter(ctx=ctx, param_hint="PROGRAM")
        ctx.params["program"] = tuple(words)
        return rest

    def _options_after(self, ctx: click.Context, words: list[str]) -> list[str]:
        """Add the options among words to the context; return the other words."""
        inner = click.Command("run", params=self.params, context_settings=_INNER)
        found = inner.make_context("run", [*words, _END])
        for name, value in found.params.items():
            if name == "program" or not given(found, name):
                continue
            if name == "config":
                raise ConfigError("--config must stand before the program")
            add = isinstance(value, tuple) and given(ctx, name)
            ctx.params[name] = (*ctx.params[name], *value) if add else value
            ctx.set_parameter_source(name, click.core.ParameterSource.COMMANDLINE)
        return [word for word in found.params["program"] if word != _END]


_INNER = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@command(
    RunOptions,
    click.Argument(["program"], nargs=-1, required=True, type=click.UNPROCESSED),
    cls=_RunCommand,
    context_settings={"allow_interspersed_args": False},
)
def run(options: RunOptions, program: tuple[str, ...]) -> None:
    """Run PROGRAM on all cores: supervised, with one ordered log.

    \b
    PROGRAM is a Python script, a module (-m), or any other command,
    followed by its arguments. Options may also follow a script or module.

    \b
    logagg run app.py --workers 4
    logagg run -w 4 app.py --verbose
    logagg run -w max --bind :8000 -m uvicorn app:app
    logagg run -w 2 --bind :8000 --policy rr uvicorn app:app --port 8000
    logagg run -w 2 --sink file:app.log --sink stdout: -- node server.js

    \b
    Signals: TERM, INT stop (again: kill) · HUP reload · USR1 reopen log files ·
    TTIN, TTOU one worker more, fewer.

    \b
    Exit status: 0 all workers ended with 0 · 1 a worker failed · 2 usage ·
    3 no consumer · 4 a worker had to be killed · 5 records left unwritten ·
    10 the program cannot start · by the signal that stopped it.
    """
    from logagg.supervisor.cluster import (  # asyncio and all of the supervisor
        Cluster,
        end_by_signal,
    )
    from logagg.supervisor.run_signals import hold  # loaded with it

    if options.workers == 0:
        raise ConfigError("workers: 0 would run nothing; give a number or max")
    if options.watch:
        from logagg.supervisor.reloader import check  # only --watch needs it

        check()
    cluster = Cluster(
        msgspec.structs.replace(
            options,
            program=Program.of(program, module=options.module),
            reread=reader(click.get_current_context(), "sinks"),
        )
    )
    hold()  # to the end of the process, but for the run itself
    status = cluster.serve_forever(adopt_orphans=True)
    if cluster.ended_by and cluster.exit_status in (ExitStatus.OK, ExitStatus.FAILED):
        end_by_signal(cluster.ended_by)
    sys.exit(cluster.exit_status if cluster.ended_by else status)
