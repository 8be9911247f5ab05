"""The face of all sinks: from a URL to a sink object, and the classes to import.

A sink is written as a URL: `file:app.log?max_bytes=50MB`, `stdout:?format=console`,
`loki+http://host:3100/?level=warning`. What stands before the first colon chooses an
entry point of the group `logagg.sinks` (`loki+http` falls back to `loki`, so a plug-in
registers one name for all its transports); the rest is the sink's own business, except
for the options that every sink has (`COMMON`), which are taken off here and obeyed by
the consumer.

This module imports no sink until one is asked for by name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from logagg.abc import Sink
from logagg.errors import ConfigError

if TYPE_CHECKING:
    from logagg_sinks.file import FileSink
    from logagg_sinks.stdout import StderrSink, StdoutSink

__all__ = ["FileSink", "SinkURL", "StderrSink", "StdoutSink", "build", "known", "parse"]

GROUP = "logagg.sinks"

_FACE = {
    "FileSink": "logagg_sinks.file",
    "StdoutSink": "logagg_sinks.stdout",
    "StderrSink": "logagg_sinks.stdout",
}


@dataclass(frozen=True, slots=True)
class SinkURL:
    """A sink URL taken apart.

    Attributes:
        text: The URL as the user wrote it (may hold secrets: never log it).
        scheme: What stands before the first colon, lower case.
        target: What stands between the scheme's colon and the first `?`; percent
            escapes are still in it for `//` URLs and resolved for plain paths.
        options: The query part, decoded, in order; a repeated key is refused.
    """

    text: str
    scheme: str
    target: str
    options: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> SinkURL:
    """Take a sink URL apart. A bare path (no scheme) means a file.

    Raises:
        ConfigError: Nothing before the colon, or a key given twice.
    """
    head, _, query = text.partition("?")
    scheme, colon, target = head.partition(":")
    if not colon or "/" in scheme:
        scheme, target = "file", head
    if not scheme or not target.strip() and scheme == "file":
        raise ConfigError(
            f"sink {text!r}: expected SCHEME:TARGET, for example file:app.log"
        )
    if not target.startswith("//"):
        target = unquote(target)
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in options:
            raise ConfigError(f"sink {text!r}: option {key!r} is given twice")
        options[key] = value
    return SinkURL(text, scheme.lower(), target, options)


def known() -> dict[str, importlib.metadata.EntryPoint]:
    """The registered sinks by scheme, plug-ins of third parties included."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise ConfigError(
                f"two packages register the sink {entry.name!r}: "
                f"{other.value} and {entry.value}; remove one"
            )
        found[entry.name] = entry
    return found


def build(url: SinkURL) -> Sink:
    """Make the sink that a URL names; nothing is opened yet.

    Raises:
        ConfigError: Unknown scheme, unknown option or bad value; the message names it.
    """
    entries = known()
    entry = entries.get(url.scheme) or entries.get(url.scheme.partition("+")[0])
    if entry is None:
        names = ", ".join(sorted(entries))
        raise ConfigError(f"unknown sink {url.scheme!r}; known: {names}")
    cls: type[Sink] = entry.load()
    return cls.from_url(url)


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(importlib.import_module(_FACE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
