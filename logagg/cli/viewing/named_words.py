"""Words of `logagg tail` that are names of programs: `logagg tail web`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence

import msgspec

from logagg.cli.viewing.view_options import TailOptions
from logagg.errors import ConfigError, LogaggError

__all__ = ["is_condition", "named_programs", "quotes_hint"]


def is_condition(word: str) -> bool:
    """Whether a word is a condition, right or wrong."""
    return any(sign in word for sign in "=~<>?")


def named_programs(
    options: TailOptions, words: Sequence[str]
) -> tuple[TailOptions, list[str]]:
    """Names of programs that run as conditions, with the socket of their consumer.

    Words that are conditions, files or no names stay as they are.

    Raises:
        ConfigError: The programs have more than one log.
    """
    from logagg.ipc.runs import named_runs  # only where a word may be a name

    found, sockets = [], set()
    for word in words:
        if is_condition(word) or word == "-" or os.path.exists(word):
            found.append(word)
            continue
        try:
            target = named_runs.find(word)
        except LogaggError:
            found.append(word)  # refused later, with all that it might be
            continue
        sockets.add(target.found.socket)
        if target.program:
            found.append(f"app={target.program}")
    if len(sockets) > 1:
        raise ConfigError("these programs have more than one log; name those of one")
    if sockets and not options.socket:
        options = msgspec.structs.replace(options, socket=sockets.pop())
    return options, found


def quotes_hint(word: str) -> str:
    """A question where a shell seems to have taken a part of a condition.

    `status>=500` without quotes is the word `status`, and its output goes to a file.
    """
    if "&" in word or "|" in word:
        return "did you forget quotes? "
    try:
        to_file = stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):
        return ""
    plain = word.replace(".", "").replace("_", "").isalnum()
    return f"did you forget quotes around '{word}>…'? " if to_file and plain else ""
