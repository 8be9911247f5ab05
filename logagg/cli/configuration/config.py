"""Options from a file and the environment.

The structs of the commands are the table: what `logagg run`, `serve`, `tail` … take on
the command line, a file takes under `[run]`, `[serve]`, `[tail]` … and the environment
as variables. Precedence: command line, environment, file, default.

A key is the name of the struct's field (`stop_timeout`); repeatable options take a
list. The keys of `COMMON` stand at the top of the file, for several commands.

A variable is `LOGAGG_` and the key for common keys and for `run` and `serve`
(`LOGAGG_WORKERS`), with the command's name between for the others (`LOGAGG_TAIL_LINES`),
so that a level for workers never filters what a viewer shows.

The file is `logagg.toml`, or `pyproject.toml` with a table `[tool.logagg]`, in the
current directory or above it, up to the root of the repository or the home directory.
A file that was found, not named, must be of this user or root (`found_file`), and be
confirmed before it does more than options and its own directory (`consent`). Paths in a
file are relative to it.

Every error names the file and line (or variable), the key, the value, and what would be
right; of a sink's URL only the address is shown.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from logagg.cli.configuration.confirmed_files import has_changed, is_confirmed
from logagg.cli.configuration.consent import Need, needs
from logagg.cli.configuration.found_file import find, parse
from logagg.errors import ConfigError
from logagg.ipc.paths import is_file
from logagg.options import OptionField, Setting, fields, unknown

__all__ = [
    "COMMON",
    "PROGRAMS",
    "TABLES",
    "Config",
    "applies",
    "attempt",
    "keys",
    "load",
    "make",
    "variable",
]

COMMON: dict[str, tuple[str, ...]] = {
    "sinks": ("run", "serve", "up"),
    "level": ("run", "up"),
    "metrics": ("run", "serve", "up"),
    "web": ("run", "serve"),
    "socket": ("serve", "tail", "stats", "query", "top", "status", "reload"),
    "color": ("tail", "stats", "query", "top"),
}
"""Keys at the top of a file, and the commands that each of them is for."""

TABLES = ("run", "serve", "up", "tail", "stats", "query", "top", "send")
"""The commands that have a table of their own."""

PROGRAMS = "programs"
"""The table of the programs of `logagg up`; see `logagg.cli.programs`."""

QUERIES = "queries"
"""The table of saved queries: names with their SQL."""

_SHORT = ("run", "serve")


@dataclass(frozen=True, slots=True)
class Config:
    """The tables of a file, not yet checked against any command.

    Attributes:
        path: The file; None when there is none.
        data: Its tables, those below `[tool.logagg]` for a pyproject.toml.
        text: Its text, to name lines in errors.
        found: It was found, not named.
        passed_over: Why nearer files are not used.
    """

    path: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    found: bool = False
    passed_over: tuple[str, ...] = ()

    def settings(
        self,
        name: str,
        kind: type[msgspec.Struct],
        environ: Mapping[str, str],
        errors: list[ConfigError] | None = None,
    ) -> dict[str, Setting]:
        """Collect the settings of a command: variables over its table over common keys.

        Args:
            name: The command.
            kind: The struct of its options.
            environ: The environment.
            errors: Takes all errors; without it the first one is raised.

        Raises:
            ConfigError: An unknown key, a table that is none.
        """
        errors = _Raised() if errors is None else errors
        known = keys(kind)
        found = {}
        for path, value in self._entries(name, errors):
            key, table = path[-1], f"[{name}] " if len(path) > 1 else ""
            if key not in known:
                where = f"{self.place(*path)}: {table}".rstrip()
                errors.append(ConfigError(unknown(key, known, what=where)))
                continue
            place = partial(self._before, path, f"{table}{key} = ")
            setting = Setting(known[key], value, place)
            try:
                read = _from_file(known[key], value, str(self.path))
                found[key] = replace(setting, value=read)
            except ConfigError as error:
                errors.append(setting.refuse(error))
        for key, option in known.items():
            text = environ.get(variable(name, key), "")
            if not text:
                continue
            setting = Setting(option, text, partial("{}=".format, variable(name, key)))
            try:
                words = shlex.split(text) if option.many else text
                found[key] = replace(setting, value=words)
            except ValueError as error:  # an open quote
                errors.append(setting.refuse(ConfigError(str(error))))
        return found

    def _entries(
        self, name: str, errors: list[ConfigError]
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        """The keys of a command with their values: common ones, then its table's."""
        for key, value in self.data.items():
            if name in COMMON.get(key, ()):
                yield (key,), value
            elif key not in (known := (*COMMON, *TABLES, PROGRAMS, QUERIES)):
                text = unknown(key, known, what=self.place(key))
                errors.append(ConfigError(text))
        table = self.data.get(name, {}) if name in TABLES else {}
        if isinstance(table, dict):
            for key, value in table.items():
                yield (name, key), value
        else:
            text = f"{self.place(name)}: {name} = {table!r}: expected a table [{name}]"
            errors.append(ConfigError(text))

    def queries(self) -> dict[str, str]:
        """The saved queries, by name.

        Raises:
            ConfigError: They are no table of texts, or a name is none.
        """
        found = self.data.get(QUERIES, {})
        if not isinstance(found, dict):
            where = self.place(QUERIES)
            raise ConfigError(f"{where}: queries: expected a table [queries]")
        for name, sql in found.items():
            where = f"{self.place(QUERIES, name)}: [queries] {name}"
            if not isinstance(sql, str):
                raise ConfigError(f"{where} = {sql!r}: expected the SQL as text")
            if not re.fullmatch(r"[\w-]+", name):
                raise ConfigError(
                    f"{where}: expected letters, digits, _ and - as a name"
                )
        return dict(found)

    def unconfirmed(
        self, name: str, settings: Mapping[str, Setting], environ: Mapping[str, str]
    ) -> list[Need]:
        """List what this file would do without the consent that it needs.

        Args:
            name: The command.
            settings: As `settings` returns them.
            environ: The environment, whose values replace those of the file.

        Raises:
            ConfigError: A sink is no URL.
        """
        if self.path is None or not self.found:
            return []
        own = {
            key: each
            for key, each in settings.items()
            if not environ.get(variable(name, key))
        }
        found = needs(self.path.parent, own)
        return found if found and not is_confirmed(self.path, self.data) else []

    def refuse(self, found: Sequence[Need]) -> ConfigError:
        """The error for a file that has to be confirmed first."""
        assert self.path is not None
        changed = has_changed(self.path, self.data)
        why = "has changed since it was trusted" if changed else "was found, not named"
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return ConfigError(
            f"{self.path} {why}, and would {found[0]}{more}: to allow that once, "
            f"run logagg trust {self.path}; or name the file, --config {self.path}"
        )

    def _before(self, path: tuple[str, ...], text: str) -> str:
        return f"{self.place(*path)}: {text}"

    def place(self, *path: str) -> str:
        """The file, with the line on which a key's value begins.

        That is the first line with which the file, read up to there, has the key.
        """
        if self.path is None or len(self.text) > _MOST_TEXT:
            return str(self.path)
        if self.path.name == "pyproject.toml":
            path = ("tool", "logagg", *path)
        lines, begin = self.text.splitlines(keepends=True), 1
        for number in range(1, len(lines) + 1):
            try:
                data: Any = tomllib.loads("".join(lines[:number]))
            except ValueError:
                continue  # a value of several lines is still open
            for key in path:
                data = data.get(key) if isinstance(data, dict) else None
            if data is not None:
                return f"{self.path}:{begin}"
            begin = number + 1
        return str(self.path)


_MOST_TEXT = 20_000  # characters; a longer file is not searched for a line


class _Raised(list[ConfigError]):
    """A list of errors that raises the first one."""

    def append(self, error: ConfigError) -> None:
        raise error


def applies(name: str) -> bool:
    """Whether a command takes options from a file and the environment."""
    return name in TABLES or any(name in each for each in COMMON.values())


def keys(kind: type[msgspec.Struct]) -> dict[str, OptionField]:
    """The options of a command that may stand in a file: those with a long form."""
    return {
        name: each
        for name, each in fields(kind).items()
        if each.option is not None and not each.option.keyword_only and each.long
    }


def variable(name: str, key: str) -> str:
    """The environment variable of a command's key."""
    if name in _SHORT or name in COMMON.get(key, ()):
        return f"LOGAGG_{key.upper()}"
    return f"LOGAGG_{name.upper()}_{key.upper()}"


def attempt(
    kind: type[msgspec.Struct],
    settings: Mapping[str, Setting],
    errors: list[ConfigError],
) -> Any:
    """Read all settings into a struct of options; None when it cannot be made.

    A struct may have a method `problems` that yields pairs of key and reason, for values
    that contradict each other.

    Args:
        kind: The struct.
        settings: What is set, by key.
        errors: Takes every error.
    """
    values = {}
    for key, setting in settings.items():
        try:
            values[key] = setting.read()
            if key == "sinks" and isinstance(setting.value, list):  # not typed
                _check_sinks(values[key], setting)
        except ConfigError as error:
            errors.append(error)
    try:
        options = kind(**values)
        for key, reason in getattr(options, "problems", tuple)():
            wrong = ConfigError(reason)
            errors.append(settings[key].refuse(wrong) if key in settings else wrong)
    except ConfigError as error:
        errors.append(error)
        return None
    return options


def make(kind: type[msgspec.Struct], settings: Mapping[str, Setting]) -> Any:
    """Read all settings into a struct of options.

    Raises:
        ConfigError: The first thing that is wrong.
    """
    return attempt(kind, settings, _Raised())


def _check_sinks(urls: tuple[str, ...], setting: Setting) -> None:
    from logagg.sinks import build  # loads the sinks: only where a file names some

    for url in urls:
        try:
            build(url)
        except ConfigError as error:
            raise setting.refuse(error) from None


# ---- the file -------------------------------------------------------------------------


def load(named: str | None = None, start: str | None = None) -> Config:
    """Read the file that was named, or the one that is found; none is no error.

    Args:
        named: The file, from `--config` or LOGAGG_CONFIG.
        start: The directory where the search begins; the current one by default.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
    """
    passed_over: tuple[str, ...] = ()
    if named:
        path, text = Path(named), _named_text(Path(named))
    else:
        found, text, passed_over = find(start)
        if found is None:
            return Config(passed_over=passed_over)
        path = found
    try:
        data = parse(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if path.name == "pyproject.toml":
        tool = data.get("tool")
        data = tool.get("logagg", {}) if isinstance(tool, dict) else {}
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: tool.logagg: expected a table [tool.logagg]")
    return Config(Path(os.path.abspath(path)), data, text, not named, passed_over)


def _named_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8
        raise ConfigError(f"{path}: {error}") from None


# ---- values in a file -----------------------------------------------------------------


def _from_file(option: OptionField, value: Any, path: str) -> Any:
    """A value with paths relative to the file, and tables of sinks as URLs.

    Raises:
        ConfigError: It is no sink.
    """
    base = os.path.dirname(path)
    if option.name == "sinks":
        return list(_sink_urls(value, base))
    return _relative_to(value, base) if option.text.path else value


def _sink_urls(value: Any, base: str) -> Iterator[str]:
    """Sinks as written in a file, as URLs: texts, or tables with `url` and options.

    Raises:
        ConfigError: It is neither, or an option's value is none.
    """
    values = [value] if isinstance(value, (str, dict)) else value
    if not isinstance(values, list):
        raise ConfigError("expected a list of URLs or of tables with a url")
    for each in values:
        url, options = each, {}
        if isinstance(each, dict):
            options = {k: _option_text(k, v) for k, v in each.items() if k != "url"}
            url = each.get("url")
        if not isinstance(url, str):
            raise ConfigError('expected a URL, or a table with url = "…" and options')
        if options:
            url += ("&" if "?" in url else "?") + urlencode(options, quote_via=quote)
        yield _absolute_file(url, base)


def _option_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    raise ConfigError(
        f"option {key}: expected text, a number, true, false or a list of texts"
    )


def _absolute_file(url: str, base: str) -> str:
    """The path of a file sink, relative to the file that names it."""
    scheme, colon, rest = url.partition(":")
    if not colon or "/" in scheme:
        scheme, rest = "file", url
    if not is_file(scheme) or rest.startswith("/"):
        return url
    folder = quote(base, safe="/:@+=~,")
    return f"{scheme}:{folder}/{rest}" if rest.partition("?")[0].strip() else url


def _relative_to(value: Any, base: str) -> Any:
    """A path, or several, relative to the file that names them; `-` stays."""
    if isinstance(value, list):
        return [_relative_to(each, base) for each in value]
    if not isinstance(value, str) or value == "-":
        return value
    return os.path.join(base, value)
