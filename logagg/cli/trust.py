"""The command `logagg trust`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import click
import msgspec

from logagg.cli.check import kind_of
from logagg.cli.command import command, say
from logagg.cli.configuration import confirmed_files
from logagg.cli.configuration.config import COMMON, TABLES, Config, load
from logagg.cli.configuration.consent import Need, needs
from logagg.errors import ConfigError, ExitStatus
from logagg.options import Option
from logagg.render.markup import inline

__all__ = ["trust"]


class TrustOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg trust`."""

    yes: Annotated[bool, Option("Do not ask.")] = False
    forget: Annotated[bool, Option("Take it back.")] = False


@command(TrustOptions, click.Argument(["file"], required=False))
def trust(options: TrustOptions, file: str | None) -> None:
    """Allow the configuration FILE, as it is now, what it would do outside of itself.

    FILE is the one that is found here or above. Shows which secrets it sends where, and
    what it writes outside of its directory, and asks. Until then no command uses it. A
    file that is named (--config) needs no consent; one that changes needs it again.

    Exit status: 0 it is trusted, or needs no consent · 1 declined · 2 usage.
    """
    loaded = load(file)
    path = loaded.path
    if path is None:
        raise ConfigError("no configuration file here or above; logagg trust FILE")
    shown = inline(str(path))
    if options.forget:
        _forget(path, shown)
        return
    found = _needs(loaded)
    if not found:
        say(f"{shown} sends no secret and writes nowhere else: no need to ask")
        return
    say(f"{shown} would")
    for need in found:
        say(f"  {need}")
    if not options.yes and not _agreed():
        say("nothing was changed")
        sys.exit(ExitStatus.FAILED)
    try:
        confirmed_files.confirm(path, loaded.data)
    except OSError as error:
        raise ConfigError(f"cannot note that: {error}") from None
    say("trusted as it is now")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("this asks on a terminal; in a script use --yes")
    return click.confirm("Trust it as it is now?", default=False)


def _forget(path: Path, shown: str) -> None:
    try:
        found = confirmed_files.forget(path)
    except OSError as error:
        raise ConfigError(f"cannot take it back: {error}") from None
    say(f"{shown} is not trusted" + ("" if found else ", and was not before"))


def _needs(loaded: Config) -> list[Need]:
    """List what any command would need. Raises ConfigError: something is wrong in it."""
    assert loaded.path is not None
    found: dict[Need, None] = {}
    for name in {*TABLES, *(each for names in COMMON.values() for each in names)}:
        settings = loaded.settings(name, kind_of(name), {})
        found |= dict.fromkeys(needs(loaded.path.parent, settings))
    return sorted(found)
