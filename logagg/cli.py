"""The `logagg` command: one group, whose commands load only when they are called."""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from logagg.config import attach
from logagg.errors import LogaggError

__all__ = ["main"]

_COMMANDS = {
    "run": "logagg.supervisor.commands",
    "reload": "logagg.supervisor.commands",
    "scale": "logagg.supervisor.commands",
    "stop": "logagg.supervisor.commands",
    "check": "logagg.check",
    "spool": "logagg.spool_cli",
    "dlq": "logagg.spool_cli",
    "serve": "logagg.service",
    "send": "logagg.service",
    "status": "logagg.service",
    "tail": "logagg.view.commands",
    "stats": "logagg.view.commands",
    "top": "logagg.view.commands",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        command: Any = getattr(import_module(place), cmd_name)
        return attach(cmd_name, command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for a slip of the fingers name the one that was meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near or near[0] in error.message:
                raise
            text = f"{error.message} Did you mean {near[0]!r}?"
            raise click.UsageError(text, ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error that we raise on purpose is one line and a status."""
        try:
            return super().invoke(ctx)
        except LogaggError as error:
            click.echo(f"logagg: {error}", err=True)
            ctx.exit(error.exit_status)
        except BrokenPipeError:
            # The reader has gone: no more words, not even at the interpreter's end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)


@click.group(cls=_Lazy)
@click.version_option(package_name="logagg-service", prog_name="logagg")
def main() -> None:
    """One ordered log for a Python application that runs in several processes."""
