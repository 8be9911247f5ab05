"""A click command whose options are the fields of a struct.

A value may stand on the command line, in a file, or in the environment. Click only
splits the command line; the values of all three are read by `logagg.options`, so the
same mistake gives the same one-line error.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click
import msgspec
import orjson
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from logagg.cli.configuration import config
from logagg.errors import ConfigError
from logagg.options import OptionField, Setting, fields

__all__ = ["CONFIG", "Command", "command", "say", "say_json"]

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

CONFIG = click.Option(
    ["--config"],
    envvar="LOGAGG_CONFIG",
    metavar="FILE",
    help="Options from this file.  [default: logagg.toml here or above]",
)
"""The option that names the configuration file."""


class Command(click.Command):
    """A command of `logagg`: a struct of options and a function that takes one.

    Attributes:
        kind: The struct.
    """

    def __init__(
        self,
        kind: type[msgspec.Struct],
        function: Callable[..., Any],
        params: tuple[click.Parameter, ...] = (),
        complete: Mapping[str, Complete] | None = None,
        **more: Any,
    ) -> None:
        name = function.__name__.strip("_").removeprefix("dlq_")
        self.kind = kind
        self._function = function
        options = [
            _option(field, (complete or {}).get(field.name))
            for field in fields(kind).values()
            if field.option is not None and not field.option.keyword_only
        ]
        if config.applies(name):
            options.append(CONFIG)
        super().__init__(
            name,
            params=[*params, *options],
            help=inspect.cleandoc(function.__doc__ or ""),
            **more,
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Read all options and call the function with them.

        Raises:
            ConfigError: The first option that is wrong.
        """
        own = [f.name for f in fields(self.kind).values() if f.option is not None]
        others = {k: v for k, v in ctx.params.items() if k not in own}
        if config.applies(str(self.name)):
            others.pop("config")
        options = config.make(self.kind, self.settings(ctx))
        return ctx.invoke(self._function, options, **others)

    def settings(self, ctx: click.Context) -> dict[str, Setting]:
        """The settings of this call, by key.

        Raises:
            ConfigError: The configuration cannot be read or has an unknown key.
        """
        name, found = str(self.name), {}
        if config.applies(name):
            loaded = config.load(ctx.params.get("config"))
            for note in loaded.passed_over:
                say(f"logagg: {note}", err=True)
            found = _allowed(loaded, name, self.kind, partial(given, ctx))
        return found | {
            key: Setting(field, ctx.params[key], partial(_written, field))
            for key, field in fields(self.kind).items()
            if field.option is not None and given(ctx, key)
        }


def _allowed(
    loaded: config.Config,
    name: str,
    kind: type[msgspec.Struct],
    is_given: Callable[[str], bool],
) -> dict[str, Setting]:
    """The settings of a file and the environment, if the file has the consent it needs.

    Args:
        loaded: The file.
        name: The command.
        kind: The struct of its options.
        is_given: Whether a key stands on the command line, and the file's is not used.

    Raises:
        ConfigError: They are not right, or the consent is missing.
    """
    found = loaded.settings(name, kind, os.environ)
    used = {key: each for key, each in found.items() if not is_given(key)}
    needs = loaded.unconfirmed(name, used, os.environ)
    if needs:
        raise loaded.refuse(needs)
    return found


def _written(field: OptionField) -> str:
    assert field.option is not None
    return f"{field.long or field.option.short} "


def given(ctx: click.Context, name: str) -> bool:
    """Whether an option stands on the command line itself."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def command(
    kind: type[msgspec.Struct],
    *params: click.Parameter,
    cls: type[Command] = Command,
    **more: Any,
) -> Callable[[Callable[..., Any]], Command]:
    """Make a function, called with a struct of options and arguments, a command."""
    return lambda function: cls(kind, function, params, **more)


def _option(field: OptionField, complete: Complete | None) -> click.Option:
    """The option of the command line that a field is."""
    option = field.option
    assert option is not None
    names = [field.name, *filter(None, (option.short, field.long))]
    default = f"[default: {field.default_text}]" if field.default_text else ""
    text = "  ".join(filter(None, (option.help, default)))
    if field.flag:
        if field.default is True:
            off = field.long.replace("--", "--no-", 1)
            names = [field.name, f"{field.long}/{off}"]
            if option.short:
                names.append(f"{option.short}/ ")
        return click.Option(names, is_flag=True, default=None, help=text)
    return click.Option(
        names,
        multiple=field.many,
        metavar=field.metavar,
        help=text,
        shell_complete=complete,
    )


def reader(ctx: click.Context, key: str) -> Callable[[], Any] | None:
    """Make a function that reads one setting of a command again, for a reload.

    Returns:
        A function that returns the value as the file and the environment have it now
        (None when neither has it), or None when the command line decides. Where it was
        set and is not any more, it raises ConfigError: a file that was emptied or
        removed by mistake must not replace what is in force by the default.
    """
    assert isinstance(ctx.command, Command)
    if given(ctx, key):
        return None
    kind, name, named = ctx.command.kind, str(ctx.command.name), ctx.params["config"]
    before = ctx.command.settings(ctx).get(key)
    was_set = before is not None and bool(before.value)

    def read() -> Any:
        nonlocal was_set
        loaded = config.load(named)
        settings = _allowed(loaded, name, kind, partial(given, ctx))
        value = getattr(config.make(kind, settings), key) if key in settings else None
        if was_set and not value:
            place = loaded.path or "the configuration"
            raise ConfigError(f"{place} names no {key}; those in force stay")
        was_set = bool(value)
        return value

    return read


def say(text: str, *, err: bool = False) -> None:
    """Print lines of text in which nothing can act on the terminal.

    Names of processes, paths, errors and URLs come from others: all control characters
    but tab and newline are escaped. Each command prints by this, `say_json` or `show`
    of `logagg.cli.status`; only viewers have `logagg.view.terminal`.
    """
    from logagg.render.markup import visible  # some commands print nothing

    click.echo(visible(text), err=err)


def say_json(value: Any) -> None:
    """Print a value as a line of JSON, on a terminal in escapes that mean the same."""
    from logagg.render.markup import json_visible  # see `say`

    text = orjson.dumps(value).decode()
    click.echo(json_visible(text) if sys.stdout.isatty() else text)
