"""Names of configured programs, for the shell to complete."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from logagg.cli.completion import starting
from logagg.cli.configuration import config
from logagg.errors import LogaggError

__all__ = ["complete_configured"]


def complete_configured(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The programs of the file that `logagg up` would use."""
    from logagg.cli.programs import program_tables  # loads the supervisor's options

    try:
        loaded = config.load(ctx.params.get("config"))
        file = program_tables.find_project(ctx.params.get("file") or "", loaded)
        specs = program_tables.read_project(file, loaded, None)
    except (LogaggError, OSError):
        return []
    return starting([each.name for each in specs], incomplete)
