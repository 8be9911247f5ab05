"""The one table of levels, names and numbers, and selections by level. Pure.

The names are those of `logging` in lower case, and spellings of other programs. A
custom level is known by its number only: its records have a field `level_number`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from logagg.errors import ConfigError

STANDARD = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

NUMBERS = {
    "trace": 5,
    **STANDARD,
    "information": 20,
    "notice": 25,
    "warn": 30,
    "err": 40,
    "exception": 40,
    "crit": 50,
    "fatal": 50,
    "alert": 50,
    "emergency": 50,
    "panic": 50,
}

_DECORATION = re.compile(r"\x1b\[[0-9;:]*m|[\s\[\]()<>|:]")

Test = Callable[[str | None, float | None], bool]


def number_of(text: str) -> float:
    """The number of a level given by name, unique first letters, or number.

    Raises:
        ConfigError: No such level; the message names the nearest.
    """
    name = text.strip().lower()
    if re.fullmatch(r"\d{1,9}", name):
        return int(name)
    if name in NUMBERS:
        return NUMBERS[name]
    starts = [known for known in STANDARD if name and known.startswith(name)]
    if len(starts) == 1:
        return STANDARD[starts[0]]
    import difflib  # workers load this module and rarely mistype a level

    near = difflib.get_close_matches(name, NUMBERS, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"unknown level {text!r}{hint} (debug, info, warning, error, critical, "
        "or a number)"
    )


def decorated(name: str, number: int) -> str | None:
    """The standard level of a name with colours, brackets or spaces around it, if any.

    Programs give levels such names (`logging.addLevelName`), and formatters of theirs
    write them into the record that other handlers get.
    """
    bare = _DECORATION.sub("", name).lower()
    return bare if STANDARD.get(bare) == number else None


def number_in(record: Mapping[str, Any]) -> float | None:
    """The level's number of a record, or None when it has none."""
    name = record.get("level")
    if isinstance(name, str):
        known = NUMBERS.get(name.lower())
        if known is not None:
            return known
    elif isinstance(name, (int, float)) and not isinstance(name, bool):
        return name
    number = record.get("level_number")
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        return number
    return None


def selection(text: str) -> Test:
    """Compile `--level`: `warning` and above, `debug..info`, or `error,critical`.

    Raises:
        ConfigError: A name in it is unknown, or a range is upside down.
    """
    if ".." in text:
        first, _, last = text.partition("..")
        low = number_of(first) if first.strip() else float("-inf")
        high = number_of(last) if last.strip() else float("inf")
        if low > high:
            raise ConfigError(f"level {text!r}: write the lower level first")
        return lambda _, number: number is not None and low <= number <= high
    if "," in text:
        chosen = frozenset(number_of(part) for part in text.split(","))
        return lambda _, number: number in chosen
    least = number_of(text)
    return lambda _, number: number is not None and number >= least
