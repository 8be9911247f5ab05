"""The configuration file of a directory: found by searching, read with care.

A file that was found, not named, was perhaps written by a stranger: a directory above
may be everybody's, and a repository was cloned. So it is used only if it is a regular
file of this user or root that no other user can write; whose it is, is asked of the file
that was opened, not of its name. What it may do then: `confirmed_files`.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from logagg.errors import ConfigError

__all__ = ["FoundFile", "NotUsed", "find", "parse"]

MOST_BYTES = 1 << 20
_NAMES = ("logagg.toml", "pyproject.toml")
_ROOTS = (".git", ".hg", ".svn", ".jj")
_DEEP = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}"""
)
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class FoundFile(NamedTuple):
    """The nearest file that can be used.

    Attributes:
        path: The file; None where there is none.
        text: Its text.
        passed_over: Why others, nearer ones, are not used.
    """

    path: Path | None
    text: str
    passed_over: tuple[str, ...]


class NotUsed(Exception):
    """A file is not used; the text has the reason."""


def find(start: str | None = None) -> FoundFile:
    """Read the configuration file of a directory: the one in it, or the next above.

    Raises:
        ConfigError: It cannot be read, is too long, or is not UTF-8.
    """
    passed_over: list[str] = []
    try:
        folder = Path(start or os.getcwd()).resolve()
    except OSError:
        return FoundFile(None, "", ())
    home = Path(os.path.expanduser("~"))
    for place in (folder, *folder.parents):
        for name in _NAMES:
            path = place / name
            try:
                text = _read(path)
                if name == "logagg.toml" or _has_table(text):
                    return FoundFile(path, text, tuple(passed_over))
            except FileNotFoundError:
                continue
            except NotUsed as error:
                if name == "logagg.toml":
                    passed_over.append(f"{path} is not used: {error}")
            except (OSError, ValueError) as error:
                if name == "logagg.toml":
                    why = getattr(error, "strerror", None) or error
                    raise ConfigError(f"cannot read {path}: {why}") from None
        if place == home or any((place / root).exists() for root in _ROOTS):
            break
    return FoundFile(None, "", tuple(passed_over))


def _read(path: Path) -> str:
    """The text of a file that may be used.

    Raises:
        NotUsed: It may not.
        OSError, ValueError: It cannot be read.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except IsADirectoryError as error:
        raise FileNotFoundError from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise FileNotFoundError
        _check(path, status, os.lstat(path).st_uid)
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES} bytes")
    return data.decode("utf-8")


def _check(path: Path, status: os.stat_result, link_owner: int) -> None:
    """Refuse a file that another user has made or can change. Raises NotUsed."""
    named = f"to use it all the same, name it: --config {path}"
    if not stat.S_ISREG(status.st_mode):
        raise NotUsed("it is not a regular file")
    for owner in (status.st_uid, link_owner):
        if owner not in (os.geteuid(), 0):
            raise NotUsed(f"it belongs to uid {owner}; {named}")
    shared = status.st_mode & stat.S_IWGRP and status.st_gid not in (os.getegid(), 0)
    if status.st_mode & stat.S_IWOTH or shared:
        raise NotUsed(f"other users can write it: chmod go-w {path}; or {named}")


def _has_table(text: str) -> bool:
    """Whether a pyproject.toml has `[tool.logagg]`; False when it is no TOML."""
    try:
        tool = parse(text).get("tool")
    except ValueError:
        return False
    return isinstance(tool, dict) and "logagg" in tool


def parse(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError, also where it is nested too deep."""
    if _DEEP.search(text):  # `tomllib` takes minutes for a key of 10,000 parts
        raise ValueError("it is nested too deep")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
