"""Names of programs that run, for the shell to complete."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from logagg.errors import LogaggError

__all__ = ["complete_running", "starting"]


def complete_running(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The programs that run, and their projects."""
    from logagg.ipc.runs import named_runs  # only when names are completed

    try:
        present = named_runs.running()
    except (LogaggError, OSError):
        return []
    names = {one["name"]: None for each in present for one in each.programs}
    names |= {each.name: None for each in present}
    return starting(names, incomplete)


def starting(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Those of the names that begin so."""
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
