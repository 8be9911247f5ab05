"""Options as fields of a struct, for sinks and commands alike. Pure.

The options of a sink or a command are one `msgspec.Struct`; its fields are the only list
of them. Each field's type defines how its text is read and written:

    class Options(msgspec.Struct, frozen=True, kw_only=True):
        max_bytes: Size = 0                    # 50MB, 64KiB, plain bytes
        max_age: Duration = 0.0                # 1h30m, 10s, 250ms, plain seconds
        compress: Compression | None = None    # an enum: by its values
        topics: tuple[str, ...] = ()           # comma-separated
        utc: bool = False                      # true/false, yes/no, on/off, 1/0

A sink's options come from a URL's query: `from_texts` reads them for the sink's
constructor, which makes the struct with `make`; `query` writes what differs from the
defaults. Reading what was written gives an equal struct.

A command's options come from the command line, the environment, a file or the keywords
of a call. Their fields also have an `Option` with the help text and the short form:

    stop_timeout: Annotated[Duration, Option("Time from TERM to KILL.")] = 30.0

`Setting` is one such value together with the place where it was found. Every error
names the place, the key, the value and the expected form.
"""

from __future__ import annotations

import difflib
import enum
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union
from urllib.parse import quote

import msgspec

from logagg.core import levels, units
from logagg.errors import ConfigError

__all__ = [
    "Duration",
    "Level",
    "Mode",
    "Size",
    "from_texts",
    "level",
    "make",
    "query",
]

T = TypeVar("T", bound=msgspec.Struct)

_SAFE = "/:,{}@!$'()*;~[]|<>=^"  # readable in a query, and read back as they are
_BOOLS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


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


@dataclass(frozen=True, slots=True)
class OptionText:
    """How one value of a type is read from text and written to it.

    Attributes:
        read: Returns the value; raises ValueError with what was expected, or ConfigError
            with the whole reason.
        write: Returns a text that `read` takes.
        metavar: The placeholder of a value in help texts.
        path: The value is a path, which a file gives relative to itself.
        secret: The text may hold a password: no message shows it.
    """

    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    metavar: str = "TEXT"
    path: bool = False
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """The user's side of a field: how it is written on the command line, and its help.

    Attributes:
        help: One sentence.
        short: The one-letter form (`-w`).
        metavar: The placeholder of its value; that of its type when empty.
        long: The long form; derived from the field's name when None, "" for none.
        default: The default in words, where the field's own is not clear enough.
        keyword_only: A keyword of a call, not an option of the command line.
        asks: Text with {} for the value: a file needs consent for that (`consent`).
    """

    help: str
    short: str = ""
    metavar: str = ""
    long: str | None = None
    default: str = ""
    keyword_only: bool = False
    asks: str = ""


Size = Annotated[int, OptionText(units.parse_size, units.size_text, metavar="SIZE")]
"""A number of bytes, written as `50MB`, `64KiB` or plain digits."""

Duration = Annotated[
    float, OptionText(units.parse_duration, units.duration_text, "TIME")
]
"""Seconds, written as `1h30m`, `10s`, `250ms` or a plain number."""

Level = Annotated[int, OptionText(level, _level_text, metavar="LEVEL")]
"""A level's number, written as a name of `logging` or as a number."""

Mode = Annotated[int, OptionText(_mode, lambda value: f"{value:04o}", metavar="MODE")]
"""Permission bits of a file, written in octal."""

FilePath = Annotated[str, OptionText(str, path=True, metavar="PATH")]
"""The path of a file or directory."""


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


def _whole(text: str) -> int:
    number = _integer(text)
    if number < 0:
        raise ValueError("a whole number, 0 or more")
    return number


Count = Annotated[int, OptionText(_whole, metavar="N")]
"""A whole number, 0 or more."""


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, text.split(",")) if part)


_PLAIN: dict[Any, OptionText] = {
    str: OptionText(str),
    bool: OptionText(_boolean, lambda value: "true" if value else "false"),
    int: OptionText(_integer, metavar="N"),
    float: OptionText(_real, repr, metavar="N"),
}


def _enumeration(kind: type[enum.Enum]) -> OptionText:
    known = {str(member.value): member for member in kind}

    def read(text: str) -> enum.Enum:
        try:
            return known[text.strip().lower()]
        except KeyError:
            *rest, last = known
            raise ValueError(f"{', '.join(rest)} or {last}") from None

    return OptionText(read, lambda value: str(value.value), metavar="|".join(known))


def _text_of(hint: Any) -> OptionText:
    if typing.get_origin(hint) is Annotated:
        for extra in typing.get_args(hint)[1:]:
            if isinstance(extra, OptionText):
                return extra
        return _text_of(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _text_of(_without_none(hint))
    if typing.get_origin(hint) is tuple:
        return _text_of(typing.get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enumeration(hint)
    return _PLAIN.get(hint, _PLAIN[str])


def _without_none(hint: Any) -> Any:
    (only,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return only


def _bare(hint: Any) -> Any:
    """A type without its annotations and without None."""
    if typing.get_origin(hint) is Annotated:
        return _bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _bare(_without_none(hint))
    return hint


@dataclass(frozen=True, slots=True)
class OptionField:
    """A field of a struct of options.

    Attributes:
        name: Its key.
        text: How one value is read and written.
        kind: The field's type without its annotations.
        default: Its default; `msgspec.NODEFAULT` when a function makes it.
        option: Help and short form; None for a field that no user sets.
    """

    name: str
    text: OptionText
    kind: Any
    default: Any
    option: Option | None

    @property
    def many(self) -> bool:
        """Whether it holds several values."""
        return typing.get_origin(self.kind) is tuple

    @property
    def flag(self) -> bool:
        """Whether it is true or false."""
        return self.kind is bool

    @property
    def long(self) -> str:
        """The option's long form on the command line, or ""."""
        assert self.option is not None
        if self.option.long is not None:
            return self.option.long
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """The placeholder of its value; "" for a flag."""
        assert self.option is not None
        return "" if self.flag else self.option.metavar or self.text.metavar

    @property
    def default_text(self) -> str:
        """The default in words; "" when there is none worth a word."""
        assert self.option is not None
        if self.option.default or self.default in (None, "", (), False):
            return self.option.default
        if self.default is msgspec.NODEFAULT or self.flag:
            return ""
        return self.write(self.default)

    def read(self, value: Any) -> Any:
        """Read a value as written in a file, a variable, or a keyword of a call.

        Raises:
            ValueError: The message is what was expected, or, for a ConfigError, the
                whole reason.
        """
        if not self.many:
            return self._one(value)
        if isinstance(value, (str, os.PathLike)):
            value = (value,)
        if not isinstance(value, (list, tuple)):
            raise ValueError("a list")
        return tuple(self._one(each) for each in value)

    def _one(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            value = value.value
        if self.flag and isinstance(value, bool):
            return value
        plain = (str,) if self.flag else (str, int, float, os.PathLike)
        if not isinstance(value, plain) or isinstance(value, bool):
            raise ValueError("true or false" if self.flag else "text or a number")
        try:
            return self.text.read(str(value))
        except ConfigError as error:
            reason = str(error).partition(f"{str(value)!r}: ")[2] or str(error)
            raise ConfigError(reason) from None

    def write(self, value: Any) -> str:
        """Write a value as text, several of them with commas."""
        if self.many:
            return ",".join(map(self.text.write, value))
        return self.text.write(value)


@functools.cache
def fields(kind: type[msgspec.Struct]) -> dict[str, OptionField]:
    """The fields of a struct of options, by name and in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for each in msgspec.structs.fields(kind):
        hint = hints[each.name]
        extras = getattr(hint, "__metadata__", ())
        option = next((e for e in extras if isinstance(e, Option)), None)
        found[each.name] = OptionField(
            each.name, _text_of(hint), _bare(hint), each.default, option
        )
    return found


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for an option, not read yet, and the place where it was found.

    Attributes:
        field: The option.
        value: As found: text, or what TOML or a caller gave.
        place: Returns what an error begins with, up to the value: `--level `,
            `LOGAGG_LEVEL=`, `/app/logagg.toml:3: [run] level = `.
    """

    field: OptionField
    value: Any
    place: Callable[[], str]

    def read(self) -> Any:
        """Read the value.

        Raises:
            ConfigError: It is not right; the message is whole.
        """
        try:
            return self.field.read(self.value)
        except ValueError as error:
            raise self.refuse(error) from None

    def refuse(self, error: ValueError) -> ConfigError:
        """The error for a value that is not right."""
        reason = str(error)
        if not isinstance(error, ConfigError):
            reason = f"expected {reason}"
        if self.field.text.secret:
            return ConfigError(f"{self.place().rstrip(' =')}: {reason}")
        value = self.value
        if isinstance(value, tuple) and len(value) == 1:
            (value,) = value  # an option that is given once on the command line
        return ConfigError(f"{self.place()}{value!r}: {reason}")


def from_texts(
    kind: type[msgspec.Struct],
    values: Mapping[str, str],
    *,
    what: str,
    also: Iterable[str] = (),
) -> dict[str, Any]:
    """Read options from texts, each by the type of its field.

    Args:
        kind: A struct whose fields are the options.
        values: The options as written.
        what: Their owner, for messages ("sink file").
        also: Keys that are known elsewhere, for near misses only.

    Raises:
        ConfigError: An unknown key, or a text that its type does not allow.
    """
    known = fields(kind)
    found: dict[str, Any] = {}
    for key, text in values.items():
        if key not in known:
            raise ConfigError(unknown(key, (*known, *also), what=what))
        field = known[key]
        try:
            found[key] = field.read(_list(text) if field.many else text)
        except ValueError as error:
            reason = error if isinstance(error, ConfigError) else f"expected {error}"
            raise ConfigError(f"{what}: option {key}={text!r}: {reason}") from None
    return found


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
    """Write the values that differ from the defaults as a URL's query, without the `?`.

    Args:
        options: The options.
        hide: Keys that are left out, for secrets.
    """
    hidden = frozenset(hide)
    parts = []
    for name, field in fields(type(options)).items():
        value = getattr(options, name)
        if value is None or value == field.default or name in hidden:
            continue
        parts.append(f"{name}={quote(field.write(value), safe=_SAFE)}")
    return "&".join(parts)
