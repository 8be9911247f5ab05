"""Usage errors in one line: the mistake, the nearest name, the way to the help.

Click's own are three lines of which the last has the error. All errors of a user have
one form, on stderr, with exit status 2: `logagg: no option '--levl' of tail; did you mean
'--level'?`.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from typing import IO, Any

import click

from logagg.cli.command import say

__all__ = ["in_one_line"]

_SYNONYMS = {
    "list": "ps", "ls": "ps", "jlist": "ps", "log": "logs", "follow": "tail",
    "cat": "tail",
    "start": "up", "launch": "up", "down": "stop", "kill": "stop", "delete": "stop",
    "monit": "top", "monitor": "top", "describe": "status", "info": "status",
    "show": "status", "validate": "check", "config": "check", "test": "check",
    "ui": "web", "dashboard": "web", "count": "stats", "daemon": "serve", "man": "help",
    "docs": "help", "version": "--version", "exec": "run", "deploy": "reload",
}  # fmt: skip
"""Names of the same things in other tools, with the command here."""


class _OneLine(click.UsageError):
    """A usage error that shows itself in one line."""

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002
        """Print it on stderr."""
        say(f"logagg: {self.message}", err=True)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Raise usage errors of click as errors of one line; a call for help is none."""
    try:
        yield
    except _OneLine:
        raise
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # not of every version
            raise
        raise _OneLine(_text(error), error.ctx) from None


def _text(error: click.UsageError) -> str:
    name = error.ctx.command_path.partition(" ")[2] if error.ctx else ""
    see = f"see {' '.join(filter(None, ('logagg', name)))} --help"
    if isinstance(error, click.NoSuchOption):
        owner = f" of {name}" if name else ""
        near = _near(error.option_name, _options(error.ctx))
        return f"no option {error.option_name!r}{owner}; {near or see}"
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name} needs a value" + (f"; {see}" if name else "")
    if isinstance(error, click.MissingParameter):
        param = error.param
        own = (param.metavar or (param.name or "").upper()) if param else ""
        return f"{name}: {own or error.param_hint} is missing; {see}"
    message = error.message
    command = re.match(r"No such command '(.*?)'", message, re.DOTALL)
    if command is not None:
        place = f" of {name}" if name else ""
        return f"no command {command[1]!r}{place}; {_command(error, command[1]) or see}"
    extra = re.match(r"Got unexpected extra arguments? \((.*)\)", message, re.DOTALL)
    if extra is not None:
        return f"{name} takes no more arguments, but has {extra[1]!r}; {see}"
    return f"{message[:1].lower()}{message[1:].rstrip('.')}; {see}"


def _options(ctx: click.Context | None) -> list[str]:
    params = ctx.command.get_params(ctx) if ctx else []
    return [form for param in params for form in (*param.opts, *param.secondary_opts)]


def _command(error: click.UsageError, name: str) -> str:
    """The command that may be meant, in words; "" for none."""
    ctx = error.ctx
    group = ctx.command if ctx else None
    if ctx is None or not isinstance(group, click.Group):
        return ""
    if ctx.parent is None and name in _SYNONYMS:
        return f"did you mean {_SYNONYMS[name]!r}?"
    return _near(name, group.list_commands(ctx))


def _near(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, 1)
    return f"did you mean {found[0]!r}?" if found else ""
