"""The programs of a project: from `[programs.NAME]` of logagg.toml, or a Procfile.

What a table may have: the options of `logagg run` that concern one program (`RUN_KEYS`),
and the keys of `ProgramKeys`. Paths are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from logagg.cli.configuration import config
from logagg.cli.programs.command_words import program_of
from logagg.cli.programs.procfile import env_beside, read_env_file, read_procfile
from logagg.errors import ConfigError
from logagg.options import FilePath, OptionField, Setting, fields, unknown
from logagg.supervisor.programs.program_spec import ProgramSpec, check_name, in_order
from logagg.supervisor.run_options import RunOptions

__all__ = ["ProjectFile", "find_project", "read_project"]

RUN_KEYS = (
    "workers", "module", "level", "bind", "policy", "sticky", "restart", "on_failure",
    "stop_timeout", "ready_timeout", "unresponsive_timeout", "max_rss", "max_age",
    "max_connections", "max_tasks",
)  # fmt: skip
_FIRST_PORT = 5000
_PORT_STEP = 100


class ProgramKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of a program beside the options of a run.

    Attributes:
        command: The command line.
        after: Programs that must be ready, or one-shot ones that must have ended well.
        env_file: Files of variables, the later ones win; `env` wins over all.
        cwd: The working directory.
    """

    command: str = ""
    after: tuple[str, ...] = ()
    env_file: tuple[FilePath, ...] = ()
    cwd: FilePath = ""


class ProjectFile(msgspec.Struct, frozen=True):
    """The file that names the programs.

    Attributes:
        path: The file.
        tables: It is a logagg.toml or pyproject.toml; else a Procfile.
    """

    path: Path
    tables: bool


def find_project(named: str, loaded: config.Config) -> ProjectFile:
    """The file that names the programs.

    That is the one named; else the configuration, if it has programs; else `Procfile` in
    the current directory.

    Raises:
        ConfigError: There is none.
    """
    if named:
        path = Path(os.path.abspath(named))
        return ProjectFile(path, tables=path.suffix == ".toml")
    if loaded.path is not None and config.PROGRAMS in loaded.data:
        return ProjectFile(loaded.path, tables=True)
    path = Path(os.path.abspath("Procfile"))
    if path.is_file():
        return ProjectFile(path, tables=False)
    where = loaded.path or "no logagg.toml here or above"
    raise ConfigError(
        f"no programs: no Procfile in {os.getcwd()}, and no [programs.NAME] ({where})"
    )


def read_project(
    file: ProjectFile, loaded: config.Config, level: str | None
) -> list[ProgramSpec]:
    """All programs of a file, each after those it comes after.

    Args:
        file: The file.
        loaded: The configuration; the file's own, if it is one.
        level: The level of programs that have none of their own.

    Raises:
        ConfigError: The first thing that is wrong.
    """
    if not file.tables:
        return in_order(_of_procfile(file.path, level))
    if loaded.path != file.path:
        loaded = config.load(str(file.path))
    tables = loaded.data.get(config.PROGRAMS)
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{file.path}: no table [programs.NAME] in it")
    found = []
    for name, table in tables.items():
        place = loaded.place(config.PROGRAMS, name)
        if not isinstance(table, dict):
            text = f"{place}: programs.{name} = {table!r}: expected a table"
            raise ConfigError(f"{text} [programs.{name}]")
        try:
            check_name(name)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
        found.append(_of_table(name, table, loaded, level))
    return in_order(found)


# ---- a table --------------------------------------------------------------------------


def known_keys() -> dict[str, OptionField]:
    """The keys of a program's table but `env`."""
    run = fields(RunOptions)
    return {**fields(ProgramKeys), **{name: run[name] for name in RUN_KEYS}}


def _of_table(
    name: str, table: Mapping[str, Any], loaded: config.Config, level: str | None
) -> ProgramSpec:
    assert loaded.path is not None
    known, base, head = known_keys(), loaded.path.parent, f"[programs.{name}]"
    values: dict[str, Any] = {"workers": 1} | ({"level": level} if level else {})
    for key, value in table.items():
        if key == "env":
            continue
        place = partial(_place, loaded, name, key)
        if key not in known:
            where = f"{loaded.place(config.PROGRAMS, name, key)}: {head}"
            raise ConfigError(unknown(key, (*known, "env"), what=where))
        found = Setting(known[key], value, place)
        if key == "command" and not isinstance(value, str):
            raise found.refuse(ValueError("a command line as text"))
        values[key] = found.read()
    own = {key: values.pop(key) for key in fields(ProgramKeys) if key in values}
    keys = ProgramKeys(**own)
    where = loaded.place(config.PROGRAMS, name)
    try:
        env: dict[str, str] = {}
        for path in keys.env_file:
            env |= read_env_file(base / path)
        env |= _env_of(table.get("env", {}))
        folder = os.path.normpath(base / keys.cwd)
        if not os.path.isdir(folder):
            raise ConfigError(f"cwd = {keys.cwd!r}: no such directory")
        if not keys.command:
            raise ConfigError('needs command = "…"')
        return _spec(name, keys.command, folder, env, values, after=keys.after)
    except ConfigError as error:
        raise ConfigError(f"{where}: {head} {error}") from None


def _place(loaded: config.Config, name: str, key: str) -> str:
    place = loaded.place(config.PROGRAMS, name, key)
    return f"{place}: [programs.{name}] {key} = "


def _env_of(table: Any) -> dict[str, str]:
    """The table `env`, its values as texts.

    Raises:
        ConfigError: It is none, or a value is a list or table.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"env = {table!r}: expected a table of variables")
    found = {}
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ConfigError(f"env: {key} = {value!r}: expected text or a number")
        found[key] = str(value)
    return found


def _spec(
    name: str,
    command: str,
    folder: str,
    env: dict[str, str],
    values: dict[str, Any],
    *,
    after: tuple[str, ...] = (),
) -> ProgramSpec:
    environ, module = {**os.environ, **env}, values.get("module", False)
    program = program_of(command, environ, folder, module=module)
    options = RunOptions(**values, program=program, env=env, app=name, directory=folder)
    return ProgramSpec(options, after)


# ---- a Procfile -----------------------------------------------------------------------


def _of_procfile(path: Path, level: str | None) -> list[ProgramSpec]:
    """The programs of a Procfile, in its directory, with its `.env` and a PORT each."""
    given, found = env_beside(path), []
    for number, line in enumerate(read_procfile(path)):
        port = given.get("PORT") or os.environ.get("PORT") or str(_FIRST_PORT)
        try:
            check_name(line.name)
            if not port.isdecimal():
                raise ConfigError(f"PORT={port!r}: expected a number")
            own = {**given, "PORT": str(int(port) + number * _PORT_STEP)}
            values: dict[str, Any] = {"workers": 1} | (
                {"level": level} if level else {}
            )
            found.append(_spec(line.name, line.command, str(path.parent), own, values))
        except ConfigError as error:
            raise ConfigError(f"{line.place}: {error}") from None
    return found
