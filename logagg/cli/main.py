"""The `logagg` command: one group, whose commands load only when they are called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal
from typing import Any

import click

from logagg.cli.usage_errors import in_one_line
from logagg.errors import ExitStatus, LogaggError

__all__ = ["main"]

_COMMANDS = {
    "run": "run:run",
    "up": "programs.up_command:up",
    "boot": "programs.boot_command:boot",
    "ps": "programs.ps_command:ps",
    "logs": "programs.logs_command:logs",
    "reload": "programs.control_commands:reload",
    "restart": "programs.control_commands:restart",
    "scale": "programs.control_commands:scale",
    "stop": "programs.control_commands:stop",
    "status": "status:status",
    "check": "check:check",
    "trust": "trust:trust",
    "spool": "spool:spool",
    "dlq": "spool:dlq",
    "serve": "serve:serve",
    "send": "serve:send",
    "tail": "viewing.view_commands:tail",
    "stats": "viewing.view_commands:stats",
    "query": "viewing.query_command:query",
    "top": "viewing.view_commands:top",
    "web": "viewing.web_command:web",
    "collect": "fleet.collect_command:collect",
    "nats": "fleet.collect_command:nats",
    "help": "help:help_",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module, _, name = _COMMANDS.get(cmd_name, "").partition(":")
        if not module:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(f"logagg.cli.{module}"), name)
        return command

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Read the words of a call up to the command."""
        with in_one_line():
            return super().make_context(*args, **more)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command."""
        if args[:1] == ["run"] and getsignal(SIGINT) is default_int_handler:
            # Until a run has handlers of its own, Ctrl-C ends it as TERM does.
            signal(SIGINT, SIG_DFL)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a `LogaggError` is one line on stderr and its exit status."""
        try:
            with in_one_line():
                return super().invoke(ctx)
        except LogaggError as error:
            from logagg.cli.command import say  # loads the configuration

            say(f"logagg: {error}", err=True)
            ctx.exit(error.exit_status)
        except BrokenPipeError:
            # The reader has gone: write no more, not even when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(ExitStatus.OK)
        finally:
            if getsignal(SIGINT) is SIG_DFL:  # see `resolve_command`
                signal(SIGINT, default_int_handler)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from logagg import __version__  # read from the package's metadata
        from logagg.client.fast import native  # loads the handler

        form = "C" if native.is_used() else "Python"
        click.echo(f"logagg {__version__} (log calls in {form})")
        context.exit()


@click.group(cls=_LazyGroup)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False,
    callback=_show_version, help="Show the version and the form of log calls.",
)  # fmt: skip
def main() -> None:
    """One ordered log for a Python application that runs in several processes.

    `logagg help` shows the manual.
    """
