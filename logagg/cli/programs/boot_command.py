"""`logagg boot`: have systemd start a project with the machine."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import msgspec

from logagg.cli.command import command, say
from logagg.cli.configuration import config
from logagg.cli.programs import background
from logagg.cli.programs.configured_names import complete_configured
from logagg.cli.programs.program_tables import find_project, read_project
from logagg.cli.programs.systemd_unit import Unit, has_systemd, systemctl, unit_text
from logagg.errors import ConfigError
from logagg.options import FilePath, Option
from logagg.supervisor.programs.program_spec import ProgramSpec, select

__all__ = ["boot"]

_SINK_SECONDS = 30.0
"""For the sinks to write all, after the programs have ended."""


class BootOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg boot`."""

    file: Annotated[
        FilePath, Option("The Procfile or logagg.toml with the programs.", "-f")
    ] = ""
    user: Annotated[
        bool, Option("A unit of your own systemd; always so unless you are root.")
    ] = False
    print: Annotated[bool, Option("Print the unit, and do nothing else.")] = False
    remove: Annotated[bool, Option("Disable the unit and delete it.")] = False


@command(
    BootOptions,
    click.Argument(
        ["programs"], nargs=-1, metavar="[NAME]...", shell_complete=complete_configured
    ),
)
def boot(options: BootOptions, programs: tuple[str, ...]) -> None:
    """Have systemd start the project with the machine: writes and enables a unit.

    The unit runs what `logagg up` would run here, with the same NAMEs. Where there is no
    systemd, or with --print, the unit is printed. It does not start the project now.

    \b
    logagg boot              for this project
    logagg boot --remove     no more
    """
    file = find_project(options.file, config.load())
    user = options.user or os.getuid() != 0
    unit = Unit.of(file.path.parent.name or "root", user=user)
    if options.remove:
        _remove(unit)
        return
    specs = select(read_project(file, config.load(), None), programs)
    text = _text(str(file.path), programs, specs, user=user)
    if options.print or not has_systemd():
        if not options.print:
            say(f"logagg: no systemd here; the unit {unit.name} would be:", err=True)
        say(text.rstrip())
        return
    if unit.path.exists() and str(file.path) not in unit.path.read_text("utf-8"):
        raise ConfigError(f"{unit.path} is of another project: logagg boot --print")
    try:
        unit.path.parent.mkdir(parents=True, exist_ok=True)
        unit.path.write_text(text, "utf-8")
    except OSError as error:
        hint = "" if user else "; with --user it is one of your own"
        raise ConfigError(f"{unit.path}: {error.strerror}{hint}") from None
    systemctl(unit, "daemon-reload")
    systemctl(unit, "enable", unit.name)
    say(f"{unit.path} is enabled: the project starts with the machine")
    if user:
        say("before you log in only with: loginctl enable-linger")
    begin = f"systemctl {'--user ' if user else ''}start {unit.name}"
    say(f"to start it now: logagg stop (if it runs), then {begin}")


def _remove(unit: Unit) -> None:
    """Disable a unit and delete its file.

    Raises:
        ConfigError: There is none, or it cannot be deleted.
    """
    if not unit.path.exists():
        raise ConfigError(f"no unit {unit.path}; written by: logagg boot")
    systemctl(unit, "disable", unit.name)
    try:
        unit.path.unlink()
    except OSError as error:
        raise ConfigError(f"{unit.path}: {error.strerror}") from None
    systemctl(unit, "daemon-reload")
    say(f"{unit.path} is removed")


def _text(
    path: str, programs: tuple[str, ...], specs: list[ProgramSpec], *, user: bool
) -> str:
    loaded = config.load()
    table = loaded.data.get("up", {})
    words = [sys.executable, "-m", "logagg", "up", "--file", path]
    if "sinks" not in loaded.data and "sinks" not in table:
        words += ["--sink", background.default_sink(path)]
    names = ("PATH", "XDG_STATE_HOME", "XDG_RUNTIME_DIR" if not user else "")
    kept = {name: os.environ[name] for name in names if os.environ.get(name)}
    seconds = sum(each.options.stop_timeout for each in specs) + _SINK_SECONDS
    return unit_text(
        f"Programs of {os.path.dirname(path)}",
        os.path.dirname(path),
        [*words, *programs],
        kept,
        seconds,
        user=user,
    )
