"""A Procfile and its `.env`, as honcho and foreman read them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from logagg.errors import ConfigError

__all__ = ["ProcfileLine", "read_env_file", "read_procfile"]

_LINE = re.compile(r"([^:\s]+)\s*:\s*(.*)")
_ASSIGNMENT = re.compile(
    r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL
)


class ProcfileLine(NamedTuple):
    """One program of a Procfile.

    Attributes:
        place: The file and the line, for errors.
        name: The program.
        command: Its command line.
    """

    place: str
    name: str
    command: str


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_procfile(path: Path) -> Iterator[ProcfileLine]:
    """The programs of a Procfile, in its order.

    Raises:
        ConfigError: It cannot be read; a line is none; a name stands twice.
    """
    seen: set[str] = set()
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        place = f"{path}:{number}"
        match = _LINE.fullmatch(text)
        if match is None or not match[2]:
            raise ConfigError(f"{place}: {text!r}: expected NAME: COMMAND")
        if match[1] in seen:
            raise ConfigError(f"{place}: program {match[1]!r} stands twice")
        seen.add(match[1])
        yield ProcfileLine(place, match[1], match[2])
    if not seen:
        raise ConfigError(f"{path}: no program in it; expected lines NAME: COMMAND")


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of lines `NAME=value`; quotes as in a shell.

    Raises:
        ConfigError: It cannot be read, or a line is none.
    """
    found = {}
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(text)
        try:
            found[match[1]] = _value(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            name = match[1] if match else text.split("=")[0][:40]
            raise ConfigError(f"{path}:{number}: {name}: expected NAME=value") from None
    return found


def _value(text: str) -> str:
    if text[:1] not in ("'", '"'):
        return re.sub(r"\s#.*", "", text).strip()
    (value,) = shlex.split(text, comments=True)
    return value


def env_beside(path: Path) -> dict[str, str]:
    """The variables of the `.env` in a file's directory, if there is one."""
    env = path.with_name(".env")
    return read_env_file(env) if os.path.isfile(env) else {}
