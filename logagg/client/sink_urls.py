"""From the arguments of a handler to a transport: sinks as URLs, files checked.

Sinks are neither built nor imported here; the consumer does that and reports what is
wrong with an option. What can be known without the sink's class is checked at once: the
scheme, the level, the file and its directory.

A handler entry of an existing `dictConfig`, or the positional `args` of a `fileConfig`,
should go on working when its class becomes `logagg.Handler`. Arguments of the standard
library's file handlers that the file sink has an option for become that option. Those
that ask for what it does anyway (append, UTF-8, opening late) are taken; any other value
is an error that names logagg's own way.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any, TypedDict, cast

from logagg.client import closing
from logagg.client.transport import Overflow, Transport
from logagg.errors import ConfigError
from logagg.ipc import paths
from logagg.ipc.connection import StderrNotices

__all__ = [
    "SHIPPED_SCHEMES", "FileArguments", "absolute_url", "file_query", "handler_query",
    "named_arguments", "open_transport", "redaction_wanted",
]  # fmt: skip

SHIPPED_SCHEMES = frozenset(
    (
        "elasticsearch", "file", "http", "https", "loki", "nats", "opensearch", "otlp",
        "splunk", "stderr", "stdout", "tls",
    )
)  # fmt: skip
"""The sinks of this distribution; for others the installed entry points are read."""

_ROTATING = ("mode", "maxBytes", "backupCount", "encoding", "delay", "errors")
_TIMED = (
    "when", "interval", "backupCount", "encoding", "delay", "utc", "atTime", "errors",
)  # fmt: skip
_LOSES_LESS = (Overflow.DROP_NEW, Overflow.SPOOL, Overflow.BLOCK)
_notices = StderrNotices()
_WHEN = ("s", "m", "h", "d", "midnight", *(f"w{day}" for day in range(7)))


class FileArguments(TypedDict, total=False):
    """Arguments of the standard library's file handlers, under their names."""

    maxBytes: int | str
    backupCount: int | str
    when: str | None
    interval: int | str
    utc: bool
    atTime: object
    use_gzip: bool
    encoding: str | None
    errors: str | None
    mode: str
    delay: bool


def open_transport(
    filename: str | os.PathLike[str] | None,
    sinks: Sequence[str] | str | None,
    query: str = "",
    *,
    overflow: str,
) -> Transport:
    """The process's transport for a handler's arguments; nothing is started yet.

    Raises:
        ConfigError: As `Handler` does.
    """
    try:
        policy = Overflow(overflow)
    except ValueError:
        known = ", ".join(Overflow)
        raise ConfigError(f"overflow={overflow!r}: choose one of {known}") from None
    urls = _urls(filename, sinks, query)
    socket = os.environ.get("LOGAGG_SOCKET", "")
    if not urls and not socket:
        urls = ["stderr:?format=console"]
    path = socket or paths.socket_path(paths.identity(urls))
    found = _transport_for(path, urls, elect=not socket)
    _choose_overflow(found, policy)
    return found


def _choose_overflow(found: Transport, wanted: Overflow) -> None:
    """Follow a further handler's policy where it loses less; report that they differ.

    All handlers of a transport share one pipe. What one may lose, another may not.
    """
    destination = found.destination
    with found.lock:
        now = destination.overflow
        alone = found.users < 2
        kept = wanted if alone else max(now, wanted, key=_LOSES_LESS.index)
        destination.overflow = kept
    if wanted is not now and not alone:
        other = now if kept is wanted else wanted
        _notices.note(
            f"two handlers of this process share the pipe to {destination.path}, with "
            f"overflow={other} and overflow={kept}: both follow {kept}",
            anyway=True,
        )
        _notices.write()


def redaction_wanted(argument: bool | None) -> bool:
    """Whether secrets are replaced: by argument, by environment, by default."""
    if argument is not None:
        return argument
    setting = os.environ.get("LOGAGG_REDACT", "").lower()
    return setting not in ("no", "0", "false", "off")


def _urls(
    filename: str | os.PathLike[str] | None,
    sinks: Sequence[str] | str | None,
    query: str,
) -> list[str]:
    """The sinks as URLs that mean the same in every directory."""
    if isinstance(sinks, str):
        sinks = [sinks]
    urls = []
    if filename is not None:
        urls.append(_file_url(_writable(os.fspath(filename)), query))
    elif query:
        raise ConfigError("options of a file, such as maxBytes, need a filename")
    urls += [absolute_url(sink) for sink in sinks or ()]
    return urls


def absolute_url(sink: object) -> str:
    """A sink's URL in the form that means the same in every directory.

    Args:
        sink: A URL, the path of a file, or a sink object, which has a URL.

    Raises:
        ConfigError: The scheme or the level is unknown, an option is given twice, or
            it is a file that cannot be written.
    """
    text = str(getattr(sink, "url", sink))
    head, _, query = text.partition("?")
    scheme, colon, target = head.partition(":")
    if not colon or "/" in scheme:
        scheme, target = "file", head
    scheme = scheme.lower()
    _check_scheme(scheme)
    _check_options(scheme, query)
    if not paths.is_file(scheme):
        return text
    if "%" in target:
        from urllib.parse import unquote  # rarely needed

        target = unquote(target)
    return f"{scheme}{_file_url(_writable(target), query).removeprefix('file')}"


def _check_scheme(scheme: str) -> None:
    if not scheme:
        raise ConfigError("a sink is written as SCHEME:TARGET, such as file:app.log")
    base = scheme.partition("+")[0]
    if base in SHIPPED_SCHEMES:
        return
    from importlib.metadata import entry_points  # only of another distribution's sink

    known = {entry.name for entry in entry_points(group="logagg.sinks")}
    if not known.isdisjoint((scheme, base)):
        return
    raise unknown_sink(scheme, known)


def unknown_sink(scheme: str, known: Collection[str]) -> ConfigError:
    """The error for a sink that there is not, with the nearest one."""
    import difflib  # only for this error

    name, plus, way = scheme.partition("+")
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0] + plus + way!r}?" if near else ""
    names = ", ".join(sorted(known))
    return ConfigError(f"unknown sink {scheme!r}{hint} (known: {names})")


def _check_options(scheme: str, query: str) -> None:
    seen = set()
    for option in query.split("&") if query else ():
        name, _, value = option.partition("=")
        if name in seen:
            raise ConfigError(f"sink {scheme}: option {name!r} is given twice")
        seen.add(name)
        if name == "level" and value.isalnum():
            from logagg.core import levels  # rarely needed

            try:
                levels.number_of(value)
            except ConfigError as error:
                raise ConfigError(f"sink {scheme}: option level: {error}") from None


def _file_url(path: str, query: str) -> str:
    quoted = path.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f"file:{quoted}?{query}" if query else f"file:{quoted}"


def _writable(name: Any) -> str:
    """The absolute path of a file.

    Raises:
        ConfigError: It cannot be written; the message contains the reason.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ConfigError(f"filename={name!r}: expected the path of a file")
    path: str = os.path.abspath(name)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"cannot log to {path!r}: the name is not UTF-8") from None
    folder = os.path.dirname(path)
    while "{" in path and not os.path.lexists(folder):
        folder = os.path.dirname(folder)  # the sink makes a template's directories
    if not os.path.isdir(folder):
        raise ConfigError(f"cannot log to {path}: the directory {folder} is missing")
    if os.path.isdir(path):
        raise ConfigError(f"cannot log to {path}: it is a directory")
    place = path if os.path.exists(path) else folder
    if not os.access(place, os.W_OK):
        raise ConfigError(f"cannot log to {path}: no permission to write {place}")
    return path


# ---- arguments of the standard library's file handlers ------------------------------


def handler_query(arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
    """The query of a file sink's URL for the arguments of a handler.

    Raises:
        TypeError: One is given twice.
        ConfigError: As the functions below.
    """
    if arguments:
        for name, value in named_arguments(arguments).items():
            if name in named:
                raise TypeError(f"Handler() got multiple values for argument {name!r}")
            named[name] = value
    return file_query(named)


def named_arguments(positional: tuple[Any, ...]) -> dict[str, Any]:
    """Names for the positional arguments after the file's name.

    They are those of `RotatingFileHandler`, or of `TimedRotatingFileHandler` if the
    first is one of its values of `when`.

    Raises:
        ConfigError: There are too many, or the first is neither a mode nor a `when`.
    """
    first = positional[0]
    is_when = isinstance(first, str) and first.lower() in _WHEN
    names = _TIMED if is_when else _ROTATING
    if not isinstance(first, str) or len(positional) > len(names):
        raise ConfigError(
            f"arguments {positional!r}: expected those of RotatingFileHandler (mode, "
            "maxBytes, backupCount, …) or TimedRotatingFileHandler (when, interval, …)"
        )
    return dict(zip(names, positional, strict=False))


def file_query(arguments: dict[str, Any]) -> str:
    """The query of a file sink's URL for arguments of the standard library's handlers.

    Args:
        arguments: By name; those that are None or the default are allowed.

    Raises:
        ConfigError: A value has no meaning; the message names argument, value, and what
            to write instead.
    """
    _check_fixed(arguments)
    options: dict[str, object] = {}
    options["max_bytes"] = _size("maxBytes", arguments.get("maxBytes", 0))
    options["backups"] = _count("backupCount", arguments.get("backupCount", 0))
    when = arguments.get("when")
    if when is not None:
        if str(when).lower() not in _WHEN:
            raise ConfigError(f"when={when!r}: choose one of {', '.join(_WHEN)}")
        options["when"] = str(when).lower()
        interval = _count("interval", arguments.get("interval", 1))
        options["interval"] = interval if interval != 1 else 0
        options["utc"] = "true" if arguments.get("utc") else ""
        options["at"] = _time_of_day(arguments.get("atTime"))
    if arguments.get("use_gzip"):
        options["compress"] = "gzip"
    return "&".join(f"{name}={value}" for name, value in options.items() if value)


def _check_fixed(arguments: dict[str, Any]) -> None:
    """Check what cannot be chosen: files are appended to, in UTF-8."""
    mode = str(arguments.get("mode") or "a")
    if mode.strip("+bt") != "a":
        raise ConfigError(
            f"mode={mode!r}: a log is appended to, mode 'a'; remove the file before "
            "the program starts to begin a new one"
        )
    encoding = arguments.get("encoding")
    if encoding is not None:
        plain = str(encoding).lower().replace("-", "").replace("_", "")
        if plain not in ("utf8", "utf8sig", "ascii", "usascii", "locale"):
            raise ConfigError(f"encoding={encoding!r}: files are written in UTF-8")


def _size(name: str, value: Any) -> int:
    if isinstance(value, str):
        from logagg.core.units import parse_size  # for a size that is written as text

        try:
            value = parse_size(value)
        except ValueError as error:
            raise ConfigError(f"{name}={value!r}: {error}") from None
    return _count(name, value)


def _count(name: str, value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if value is None:
        return 0
    if not isinstance(value, int | float) or value < 0 or int(value) != value:
        raise ConfigError(f"{name}={value!r}: expected a number from 0 on")
    return int(value)


def _time_of_day(value: Any) -> str:
    if value is None:
        return ""
    from datetime import time  # rarely needed

    if isinstance(value, time):
        return f"{value:%H:%M:%S}"
    return str(value)


def _transport_for(path: str, sinks: list[str], *, elect: bool) -> Transport:
    """The process's transport to an address, made on the first call for it.

    Args:
        path: The socket's path.
        sinks: The sink URLs that this caller requests.
        elect: Whether to start a consumer where none listens.
    """
    closing.close_leaving()
    found = cast("Transport | None", closing.known.get(path))
    if found is None:
        fresh = Transport(path, sinks, elect=elect)
        found = cast("Transport", closing.known.setdefault(path, fresh))
    closing.in_use[path] = found
    found.add_sinks(sinks)
    found.users += 1
    return found
