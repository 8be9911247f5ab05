"""Options written as text: from a URL's query to a typed, frozen struct and back. Pure.

The options of a sink are one `msgspec.Struct`; its fields are the only list of them.
The types tell how a text is read:

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        max_bytes: Size = 0                    # 50MB, 64KiB, plain bytes
        max_age: Duration = 0.0                # 1h30m, 10s, 250ms, plain seconds
        compress: Compression | None = None    # an enum: by its values
        topics: tuple[str, ...] = ()           # comma-separated
        utc: bool = False                      # true/false, yes/no, on/off, 1/0

`convert` reads, `query` writes what differs from the defaults; reading what was written
gives an equal struct. Every error names the key, the value, and what would be right.
"""

from __future__ import annotations

import difflib
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, TypeVar, Union
from urllib.parse import quote

import msgspec

from logagg.errors import ConfigError
from logagg.view import levels

__all__ = [
    "Duration",
    "Level",
    "Mode",
    "Size",
    "convert",
    "duration",
    "duration_text",
    "level",
    "query",
    "size",
    "size_text",
]

T = TypeVar("T", bound=msgspec.Struct)

_SIZES: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE_NAMES = ("TB", "TiB", "GB", "GiB", "MB", "MiB", "kB", "KiB")
_DURATIONS: dict[str, float] = {
    "ms": 0.001,
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
    "w": 604800,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_SAFE = "/:,{}@!$'()*;~[]|<>=^"  # readable in a query, and read back as they are
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_BOOLS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def size(text: str) -> int:
    """Read a size in bytes: `50MB` (powers of 1000), `64KiB` (powers of 1024), `4096`.

    Raises:
        ValueError: It is not a size; the message says how to write one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    unit = _SIZES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("a size such as 50MB, 64KiB or a number of bytes")
    if "." not in match[1]:
        return int(match[1]) * unit
    return round(float(match[1]) * unit)


def size_text(value: int) -> str:
    """Write a size in the largest unit that it is a whole number of."""
    for name in _SIZE_NAMES:
        unit = _SIZES[name.lower()]
        if value >= unit and value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)


def duration(text: str) -> float:
    """Read a duration in seconds: `1h30m`, `10s`, `250ms`, `7d`, or plain seconds.

    Raises:
        ValueError: It is not a duration; the message says how to write one.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    total, end = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            break
        total += float(match[1]) * _DURATIONS[match[2]]
        end = match.end()
    if not text or end != len(text):
        raise ValueError("a duration such as 10s, 1h30m, 7d or a number of seconds")
    return total


def duration_text(value: float) -> str:
    """Write a duration: the largest units first when it is whole seconds."""
    if value != int(value) or value <= 0:
        return f"{Decimal(repr(value)):f}" if value else "0"
    rest, parts = int(value), []
    for unit in ("d", "h", "m", "s"):
        number, rest = divmod(rest, int(_DURATIONS[unit]))
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts)


def level(text: str) -> int:
    """Read a level: a name of `logging` in any case, or its number.

    Raises:
        ValueError: It is neither; the message lists the names.
    """
    try:
        return int(levels.number_of(text))
    except ConfigError:
        raise ValueError("debug, info, warning, error, critical or a number") from None


def _level_text(value: int) -> str:
    names = {number: name for name, number in levels.STANDARD.items()}
    return names.get(value, str(value))


def _mode(text: str) -> int:
    if not re.fullmatch(r"0?o?[0-7]{3}", text):
        raise ValueError("an octal file mode such as 0640")
    return int(text[-3:], 8)


class _Text:
    """How a type is read from text and written to it."""

    __slots__ = ("read", "write")

    def __init__(
        self, read: Callable[[str], Any], write: Callable[[Any], str] = str
    ) -> None:
        self.read = read
        self.write = write


Size = Annotated[int, _Text(size, size_text)]
"""A number of bytes, written as `50MB`, `64KiB` or plain digits."""

Duration = Annotated[float, _Text(duration, duration_text)]
"""Seconds, written as `1h30m`, `10s`, `250ms` or a plain number."""

Level = Annotated[int, _Text(level, _level_text)]
"""A level's number, written as a name of `logging` or as a number."""

Mode = Annotated[int, _Text(_mode, lambda value: f"{value:04o}")]
"""Permission bits of a file, written in octal."""


def _boolean(text: str) -> bool:
    try:
        return _BOOLS[text.strip().lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip(), re.ASCII):
        raise ValueError("a whole number")
    return int(text)


def _real(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a number")
    return number


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, text.split(",")) if part)


_PLAIN: dict[Any, _Text] = {
    str: _Text(str),
    bool: _Text(_boolean, lambda value: "true" if value else "false"),
    int: _Text(_integer),
    float: _Text(_real, repr),
    tuple[str, ...]: _Text(_list, ",".join),
}


def _enumeration(kind: type[enum.Enum]) -> _Text:
    known = {str(member.value): member for member in kind}

    def read(text: str) -> enum.Enum:
        try:
            return known[text.strip().lower()]
        except KeyError:
            *rest, last = known
            raise ValueError(f"{', '.join(rest)} or {last}") from None

    return _Text(read, lambda value: str(value.value))


def _text_of(hint: Any) -> _Text:
    if typing.get_origin(hint) is Annotated:
        for extra in typing.get_args(hint)[1:]:
            if isinstance(extra, _Text):
                return extra
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        return _text_of(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enumeration(hint)
    return _PLAIN[hint]


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, _Text]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: _text_of(hints[name]) for name in kind.__struct_fields__}


def names(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """The keys that a struct of options knows."""
    return kind.__struct_fields__


def convert(
    kind: type[T], values: Mapping[str, str], *, what: str, also: Iterable[str] = ()
) -> T:
    """Make a struct of options from texts.

    Args:
        kind: A struct whose fields are the options.
        values: The options as written.
        what: What they belong to, for messages ("sink file").
        also: Keys that are known elsewhere, for near misses only.

    Raises:
        ConfigError: An unknown key, a bad value, or a value that the struct's own
            `__post_init__` refuses with a ValueError.
    """
    fields = _fields(kind)
    found: dict[str, Any] = {}
    for key, text in values.items():
        if key not in fields:
            raise ConfigError(unknown(key, (*fields, *also), what=what))
        try:
            found[key] = fields[key].read(text)
        except ValueError as error:
            raise ConfigError(
                f"{what}: option {key}={text!r} is not right; expected {error}"
            ) from None
    return make(kind, found, what=what)


def make(kind: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Make a struct of options from Python values, checked against its types.

    Raises:
        ConfigError: An unknown key, a value of the wrong type, or one refused.
    """
    for key in values:
        if key not in kind.__struct_fields__:
            raise ConfigError(unknown(key, kind.__struct_fields__, what=what))
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{what}: {error}") from None


def unknown(key: str, known: Iterable[str], *, what: str) -> str:
    """The message for an unknown key: the near miss and all that are known."""
    known = sorted(set(known))
    near = difflib.get_close_matches(key.replace("-", "_").lower(), known, 1, 0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what}: unknown option {key!r}{hint} (known: {', '.join(known)})"


def query(options: msgspec.Struct, hide: Iterable[str] = ()) -> str:
    """Write what differs from the defaults as a URL's query, without the `?`.

    Args:
        options: The options.
        hide: Keys that are left out, for secrets.
    """
    hidden = frozenset(hide)
    parts = []
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if value is None or value == field.default or field.name in hidden:
            continue
        text = _fields(type(options))[field.name].write(value)
        parts.append(f"{field.name}={quote(text, safe=_SAFE)}")
    return "&".join(parts)
