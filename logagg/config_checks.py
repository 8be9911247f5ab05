"""Check a setting's value before the command sees it, so that the error names its place.

Types and choices are click's; what a command would find out only later (a number of
workers, an address, a sink) is asked of the same functions that the command asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from logagg.config import Setting, based, sink_url
from logagg.errors import ConfigError

__all__ = ["checked"]


def checked(name: str, option: click.Option, setting: Setting) -> Any:
    """A setting's value as its parameter takes it.

    Raises:
        ConfigError: It names where the value stands, the key, the value, what is right.
    """
    if option.name == "sinks":
        return _sinks(setting)
    value = setting.value
    if option.multiple:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list):
            raise _wrong(setting, "expected a list")
        value = [_plain(option, each, setting) for each in value]
    else:
        value = _plain(option, value, setting)
    context = click.Context(click.Command(name), info_name=name)
    try:
        typed = option.type_cast_value(context, value)
    except click.BadParameter as error:
        raise _wrong(setting, error.message.rstrip(".")) from None
    _ask_command(name, option, typed, setting)
    return value


def _plain(option: click.Option, value: Any, setting: Setting) -> Any:
    """One TOML value as the command line has it: text, except for true and false."""
    if option.is_flag:
        if isinstance(value, (bool, str)):
            return value
        raise _wrong(setting, "expected true or false")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _wrong(setting, "expected text or a number")
    return based(setting.key, str(value), setting)


def _sinks(setting: Setting) -> list[str]:
    from logagg.sinks import build

    value = setting.value
    values = [value] if isinstance(value, (str, dict)) else value
    if not isinstance(values, list):
        raise ConfigError(
            f"{setting.where}: sinks: expected a list of URLs or of tables with a url"
        )
    urls = [sink_url(each, setting) for each in values]
    for url in urls:
        try:
            build(url)
        except ConfigError as error:
            raise ConfigError(f"{setting.where}: sinks: {error}") from None
    return urls


def _wrong(setting: Setting, why: str) -> ConfigError:
    if setting.where.startswith("LOGAGG_"):
        return ConfigError(f"{setting.where}={setting.value!r}: {why}")
    return ConfigError(f"{setting.where}: {setting.key} = {setting.value!r}: {why}")


def _ask_command(name: str, option: click.Option, value: Any, setting: Setting) -> None:
    """Have the command's own code look at a value that click takes as it is."""
    if option.name == "metrics":
        from logagg.metrics import parse

        ask: Callable[[], Any] = lambda: parse(value)  # noqa: E731
    elif name == "run":
        ask = lambda: _ask_run(str(option.name), value)  # noqa: E731
    elif name in ("tail", "stats", "top"):
        ask = lambda: _ask_viewer(str(option.name), value)  # noqa: E731
    else:
        return
    try:
        ask()
    except ConfigError as error:
        text = str(error)
        raise _wrong(
            setting, text.partition(f"{setting.value!r}: ")[2] or text
        ) from None


def _ask_run(name: str, value: Any) -> None:
    from logagg.supervisor.cluster import run_options

    if name not in ("watch", "module"):
        run_options(None, **{name: value})


def _ask_viewer(name: str, value: Any) -> None:
    from logagg.view import match, patterns
    from logagg.view.times import parse_duration, parse_instant

    if name in ("level", "worker", "logger", "grep", "exclude"):
        match.from_message({name: list(value) if isinstance(value, tuple) else value})
    elif name in ("since", "until"):
        parse_instant(value, 0)
    elif name in ("gaps", "timeout", "interval"):
        parse_duration(value)
    elif name == "until_match":
        patterns.build(value)
    elif name == "lines" and value != "all" and not value.isdecimal():
        raise ConfigError("expected a number, or all")
