"""A command line as written in a file, split into words or passed to a shell.

Words are split and variables (`$NAME`, `${NAME}`, `${NAME:-default}`) are filled in
here, so a Python program runs as a worker that shares its ports. A line with anything
else of a shell's language (`|`, `&&`, `>`, `*`, `VAR=value` first, quoted `$`) goes to
`sh -c` as it is.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from logagg.errors import ConfigError
from logagg.supervisor.run_options import Program

__all__ = ["program_of"]

_SHELL = re.compile(r"[|&;<>()`*?~\n]|\$[^A-Za-z_{]|'[^']*\$|^\s*[A-Za-z_]\w*=")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::-([^}]*))?\})")
_PYTHON = re.compile(r"python(?:3(?:\.\d+)?)?")


def program_of(
    text: str, environ: Mapping[str, str], directory: str, *, module: bool = False
) -> Program:
    """The program of a command line.

    A `python` that is this one is left off, so that its script or module is a worker.

    Args:
        text: The line.
        environ: Values of variables.
        directory: Where it will run.
        module: Its first word is a module.

    Raises:
        ConfigError: There is no such command; it is empty; a quote is open.
    """
    if _SHELL.search(text) and not module:
        return Program("command", ("sh", "-c", text))
    try:
        words = [_filled(word, environ) for word in shlex.split(text)]
    except ValueError as error:
        raise ConfigError(f"{text!r}: {str(error).lower()}") from None
    if not words:
        raise ConfigError("the command is empty")
    if _is_this_python(words[0]):
        words, module = _without_python(words)
    return Program.of(tuple(words), module=module, directory=directory)


def _filled(word: str, environ: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        plain, braced, default = match.groups()
        return environ.get(plain or braced) or default or ""

    return _VARIABLE.sub(value, word)


def _is_this_python(word: str) -> bool:
    found = shutil.which(word) if _PYTHON.fullmatch(Path(word).name) else None
    try:
        here = Path(sys.executable).parent
        return found is not None and Path(found).parent.samefile(here)
    except OSError:
        return False


def _without_python(words: list[str]) -> tuple[list[str], bool]:
    """The words after a plain `python`; all words where it has options of its own."""
    rest = [word for word in words[1:2] if word != "-u"] + words[2:]
    if rest[:1] == ["-m"] and len(rest) > 1:
        return rest[1:], True
    if rest and not rest[0].startswith("-"):
        return rest, False
    return words, False
