"""Options from a file and the environment: found, checked, handed to the command line.

Theory of operation
-------------------
The options of the commands *are* the table: what `logagg run`, `serve`, `tail` … take on
the command line, a file takes under `[run]`, `[serve]`, `[tail]` … and the environment
as variables. Nothing is declared twice: keys, types and choices are read from the
commands themselves, and what is found becomes their defaults, so the command modules
know nothing of files. Precedence: command line, environment, file, default.

A key is the option's long name with underscores (`stop_timeout`); an option that may be
repeated has the plural that it has in code (`sinks`) and takes a list. The keys of
`COMMON` stand at the top of the file, for all commands that they mean something to.

A variable is `LOGAGG_` and the key for common keys and for `run` and `serve`
(`LOGAGG_WORKERS`), with the command's name between for the others (`LOGAGG_TAIL_LINES`),
so that a level for workers never filters what a viewer shows.

The file is `logagg.toml`, or `pyproject.toml` with a table `[tool.logagg]`, in the
current directory or above it, up to the root of the repository or the home directory.
One that was found (not named) must belong to this user or root: whoever can write to
`/tmp` must not decide where the logs of others go. Paths in a file are relative to it.

Every error names the file (or variable), the key, the value, and what would be right;
the values of sinks are never shown beyond their address.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click

from logagg.errors import ConfigError
from logagg.options import unknown

__all__ = [
    "COMMON",
    "TABLES",
    "Config",
    "Setting",
    "attach",
    "find",
    "keys",
    "load",
    "reader",
    "variable",
]

COMMON: dict[str, tuple[str, ...]] = {
    "sinks": ("run", "serve"),
    "level": ("run",),
    "metrics": ("run", "serve"),
    "socket": ("serve", "tail", "stats", "top", "status", "reload"),
    "color": ("tail", "stats", "top"),
}
"""Keys at the top of a file, and the commands that each of them is for."""

TABLES = ("run", "serve", "tail", "stats", "top", "send")
"""The commands that have a table of their own."""

_SHORT = ("run", "serve")
_ROOTS = (".git", ".hg", ".svn", ".jj")
_PATHS = ("socket", "watch", "files")
_NAMED = "logagg.config"
_NEVER = ("config", "help", "version", "pid")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value, and where it stands.

    Attributes:
        key: The option's key.
        value: As the command line's parameter takes it.
        where: The file and table, or the variable: what an error begins with.
        base: The directory that paths are relative to; empty: the current one.
    """

    key: str
    value: Any
    where: str
    base: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """A file's settings, read and not yet checked against any command.

    Attributes:
        path: The file; None when there is none.
        data: Its tables.
    """

    path: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def settings(
        self, name: str, command: click.Command, environ: Mapping[str, str]
    ) -> dict[str, Setting]:
        """What holds for a command, by key: its variables over its table over common.

        Raises:
            ConfigError: A key that the command does not have.
        """
        known = keys(command)
        found = {key: each for key, each in self._common() if name in COMMON[key]}
        found |= self._table(name, known)
        for key, option in known.items():
            text = environ.get(variable(name, key), "")
            if text:
                value = _from_text(variable(name, key), text, option)
                found[key] = Setting(key, value, variable(name, key))
        return {key: each for key, each in found.items() if key in known}

    def _common(self) -> Iterator[tuple[str, Setting]]:
        where = str(self.path)
        for key, value in self.data.items():
            if key in COMMON:
                yield key, Setting(key, value, where, self._base)
            elif key not in TABLES:
                raise ConfigError(unknown(key, (*COMMON, *TABLES), what=where))

    def _table(
        self, name: str, known: Mapping[str, click.Option]
    ) -> dict[str, Setting]:
        table = self.data.get(name, {})
        where = f"{self.path}: [{name}]"
        if name not in TABLES:
            return {}
        if not isinstance(table, dict):
            raise ConfigError(
                f"{self.path}: {name} = {table!r}: expected a table [{name}]"
            )
        for key in table:
            if key not in known:
                raise ConfigError(unknown(key, known, what=where))
        return {key: Setting(key, table[key], where, self._base) for key in table}

    @property
    def _base(self) -> str:
        return str(self.path.parent) if self.path is not None else ""

    def values(
        self, name: str, command: click.Command, environ: Mapping[str, str]
    ) -> dict[str, Any]:
        """What holds for a command as its parameters' defaults, checked.

        Raises:
            ConfigError: An unknown key or a bad value.
        """
        from logagg.config_checks import checked

        known = keys(command)
        found = self.settings(name, command, environ)
        return {
            str(known[key].name): checked(name, known[key], each)
            for key, each in found.items()
        }


def keys(command: click.Command) -> dict[str, click.Option]:
    """The options of a command that may stand in a file, by key."""
    found = {}
    for option in command.params:
        if not isinstance(option, click.Option) or option.name in _NEVER:
            continue
        long = [each for each in option.opts if each.startswith("--")]
        if long:
            key = str(option.name) if option.multiple else long[0][2:].replace("-", "_")
            found[key] = option
    return found


def variable(name: str, key: str) -> str:
    """The environment variable of a command's key."""
    if name in _SHORT or name in COMMON.get(key, ()):
        return f"LOGAGG_{key.upper()}"
    return f"LOGAGG_{name.upper()}_{key.upper()}"


def _from_text(name: str, text: str, option: click.Option) -> Any:
    if not option.multiple:
        return text
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{name}={text!r}: {error}") from None


# ---- the file -------------------------------------------------------------------------


def load(named: str | None = None, start: str | None = None) -> Config:
    """Read the file that was named, or the one that is found; none is no error.

    Args:
        named: The file, from `--config` or LOGAGG_CONFIG.
        start: The directory where the search begins; the current one by default.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
    """
    path = Path(named) if named else find(start)
    if path is None:
        return Config()
    data = _read(path)
    if path.name == "pyproject.toml":
        tool = data.get("tool")
        data = tool.get("logagg", {}) if isinstance(tool, dict) else {}
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: tool.logagg: expected a table [tool.logagg]")
    return Config(Path(os.path.abspath(path)), data)


def find(start: str | None = None) -> Path | None:
    """The configuration file of a directory: in it, or above it.

    Raises:
        ConfigError: The nearest one belongs to somebody else.
    """
    try:
        folder = Path(start or os.getcwd()).resolve()
    except OSError:
        return None
    home = Path(os.path.expanduser("~"))
    for place in (folder, *folder.parents):
        for name in ("logagg.toml", "pyproject.toml"):
            path = place / name
            if path.is_file() and (name == "logagg.toml" or _has_table(path)):
                _check_owner(path)
                return path
        if place == home or any((place / root).exists() for root in _ROOTS):
            break
    return None


def _has_table(path: Path) -> bool:
    """Whether a pyproject.toml speaks of us; one that cannot be read does not."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    tool = data.get("tool")
    return isinstance(tool, dict) and "logagg" in tool


def _check_owner(path: Path) -> None:
    owner = path.stat().st_uid
    if owner not in (os.getuid(), 0):
        raise ConfigError(
            f"{path} belongs to uid {owner}: to use it all the same, "
            f"name it: --config {path}"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, no TOML
        raise ConfigError(f"{path}: {error}") from None


# ---- sinks as tables ------------------------------------------------------------------


def sink_url(value: Any, setting: Setting) -> str:
    """A sink as written in a file, as a URL: text, or a table with `url` and options.

    Raises:
        ConfigError: It is neither, or an option's value is none.
    """
    if isinstance(value, str):
        url, options = value, {}
    elif isinstance(value, dict) and isinstance(value.get("url"), str):
        options = {key: _option(key, each, setting) for key, each in value.items()}
        url = options.pop("url")
    else:
        raise ConfigError(
            f"{setting.where}: sinks: expected a URL, or a table with url = "
            '"…" and options'
        )
    if options:
        url += ("&" if "?" in url else "?") + urlencode(options, quote_via=quote)
    return _based(url, setting.base)


def _option(key: str, value: Any, setting: Setting) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    raise ConfigError(
        f"{setting.where}: sinks: option {key}: expected text, a number, true, false "
        "or a list of texts"
    )


def _based(url: str, base: str) -> str:
    """The path of a file sink, relative to the file that names it."""
    scheme, colon, rest = url.partition(":")
    bare = not colon or "/" in scheme
    target = url if bare else rest
    if not base or (not bare and scheme != "file") or target.startswith("/"):
        return url
    folder = quote(base, safe="/:@+=~,")
    return f"file:{folder}/{target}" if target.partition("?")[0].strip() else url


def based(key: str, value: str, setting: Setting) -> str:
    """A path, relative to the file that names it."""
    if key not in _PATHS or not setting.base or value == "-":
        return value
    return os.path.join(setting.base, value)


# ---- the command line -----------------------------------------------------------------


def attach(name: str, command: click.Command) -> click.Command:
    """Give a command `--config`, and the file and the environment as its defaults."""
    if name not in TABLES and not any(name in each for each in COMMON.values()):
        return command
    if any(option.name == "config" for option in command.params):
        return command
    command.params.append(
        click.Option(
            ["--config"],
            envvar="LOGAGG_CONFIG",
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_apply(name),
            help="Options from this file. Default: logagg.toml here or above.",
        )
    )
    return command


def _apply(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def apply(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        del param
        if ctx.parent is None:  # options behind the program of `run`, read once more
            source = ctx.get_parameter_source("config")
            if source is click.core.ParameterSource.COMMANDLINE:
                raise ConfigError("--config must stand before the program")
            return
        if ctx.resilient_parsing:
            return
        ctx.meta[_NAMED] = value
        config = load(value)
        ctx.default_map = {
            **(ctx.default_map or {}),
            **config.values(name, ctx.command, os.environ),
        }

    return apply


def reader(ctx: click.Context, key: str) -> Callable[[], Any] | None:
    """What reads a setting of a command again, for a reload.

    Returns:
        A function that gives the value as it is in the file and the environment now
        (None where it stands in neither), or None when the command line decides.
    """
    option = keys(ctx.command)[key]
    if ctx.get_parameter_source(str(option.name)) is (
        click.core.ParameterSource.COMMANDLINE
    ):
        return None
    named = ctx.meta.get(_NAMED)
    name = str(ctx.info_name)

    def read() -> Any:
        return load(named).values(name, ctx.command, os.environ).get(str(option.name))

    return read
