"""The face of all sinks: from a URL to a sink object, and the classes to import.

A sink is written as a URL: `file:app.log?max_bytes=50MB`, `stdout:?format=console`,
`loki+http://host:3100/?level=warning`. What stands before the first colon chooses an
entry point of the group `logagg.sinks` (`loki+http` falls back to `loki`, so a plug-in
registers one name for all its transports); the rest is the sink's own business, except
for the options that every sink has (`Common`), which are taken off here and obeyed by
the consumer.

This module imports no sink until one is asked for by name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import msgspec

from logagg.abc import Policy, Sink
from logagg.errors import ConfigError
from logagg.options import Duration, Level, Size, convert, make, query

if TYPE_CHECKING:
    from logagg.shaping import Shaper
    from logagg_sinks.elasticsearch import ElasticsearchSink, OpensearchSink
    from logagg_sinks.file import FileSink
    from logagg_sinks.http import HttpSink, HttpsSink
    from logagg_sinks.loki import LokiSink
    from logagg_sinks.otlp import OtlpSink
    from logagg_sinks.splunk import SplunkSink
    from logagg_sinks.stdout import StderrSink, StdoutSink

__all__ = [
    "Built",
    "Common",
    "ElasticsearchSink",
    "FileSink",
    "HttpSink",
    "HttpsSink",
    "LokiSink",
    "OpensearchSink",
    "OtlpSink",
    "SinkURL",
    "SplunkSink",
    "StderrSink",
    "StdoutSink",
    "build",
    "known",
    "parse",
    "wrap",
]

GROUP = "logagg.sinks"

_FACE = {
    "ElasticsearchSink": "logagg_sinks.elasticsearch",
    "FileSink": "logagg_sinks.file",
    "HttpSink": "logagg_sinks.http",
    "HttpsSink": "logagg_sinks.http",
    "LokiSink": "logagg_sinks.loki",
    "OpensearchSink": "logagg_sinks.elasticsearch",
    "OtlpSink": "logagg_sinks.otlp",
    "SplunkSink": "logagg_sinks.splunk",
    "StderrSink": "logagg_sinks.stdout",
    "StdoutSink": "logagg_sinks.stdout",
}


class Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options that every sink has; the consumer obeys them, not the sink.

    Attributes:
        level: Records below this level do not reach the sink.
        match: A filter in the grammar of `logagg tail`, one or several terms separated
            by spaces; a record must satisfy all of them.
        fields: Only these extra fields are kept (the fixed ones always are).
        drop: These fields are left out.
        redact: Names of fields whose values are replaced by `[redacted]`, besides those
            that workers replace; `/…/` is a pattern whose matches in any text are
            replaced; `secrets` stands for the well-known names, for senders that do
            not replace them.
        sample: Keep one record in N of those below `warning`; the others are counted.
        collapse: Seconds within which equal records become one with a count; 0 is off.
        queue_records: How many records may wait for this sink.
        queue_bytes: How many bytes of records may wait for this sink.
        policy: What happens to a record that finds the queue full of a sink that does
            not keep pace: `spool`, `drop_old`, `drop_new` or `block`.
        park_bytes: How much `spool` may park on disk; then it drops as `drop_old` does.
        required: The service ends with an error when this sink fails for good.
    """

    level: Level = 0
    match: str = ""
    fields: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    sample: int = 1
    collapse: Duration = 0.0
    queue_records: int = 20_000
    queue_bytes: Size = 64 * 1024 * 1024
    policy: Policy = Policy.SPOOL
    park_bytes: Size = 1024 * 1024 * 1024
    required: bool = False

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ValueError("option sample must be 1 (keep all) or more")
        if self.queue_records < 1 or self.queue_bytes < 1:
            raise ValueError("options queue_records and queue_bytes must be positive")


_COMMON_KEYS = frozenset(Common.__struct_fields__)


@dataclass(frozen=True, slots=True)
class Built:
    """A sink, and the options about it that the consumer obeys.

    Attributes:
        sink: The sink itself.
        common: The options that every sink has.
    """

    sink: Sink
    common: Common

    def shaper(self) -> Shaper:
        """What selects and shapes records for the sink; it keeps state of its own."""
        from logagg.shaping import Shaper

        return Shaper(self.common)

    @property
    def url(self) -> str:
        """A URL that builds the same again, secrets left out."""
        base = self.sink.url
        options = query(self.common)
        if not options:
            return base
        return f"{base}{'&' if '?' in base else '?'}{options}"


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

    @property
    def shown(self) -> str:
        """The URL as far as it may be logged: without user, password and query."""
        return _shown(self.text)


def _shown(text: str) -> str:
    head = text.partition("?")[0]
    return re.sub(r"(?<=//)[^/]*@", "", head)


def parse(text: str) -> SinkURL:
    """Take a sink URL apart. A bare path (no scheme) means a file.

    Raises:
        ConfigError: Nothing before the colon, or a key given twice.
    """
    head, _, query = text.partition("?")
    scheme, colon, target = head.partition(":")
    if not colon or "/" in scheme:
        scheme, target = "file", head
    if not scheme or (scheme == "file" and not target.strip()):
        raise ConfigError(
            f"sink {_shown(text)!r}: expected SCHEME:TARGET, for example file:app.log"
        )
    if not target.startswith("//"):
        target = unquote(target)
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in options:
            raise ConfigError(f"sink {_shown(text)}: option {key!r} is given twice")
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


def build(url: SinkURL | str) -> Built:
    """Make the sink that a URL names; nothing is opened yet.

    The options that every sink has (`Common`) are taken off first; the sink sees the
    others only.

    Raises:
        ConfigError: Unknown scheme, unknown option or bad value; the message names it.
    """
    if isinstance(url, str):
        url = parse(url)
    entries = known()
    entry = entries.get(url.scheme) or entries.get(url.scheme.partition("+")[0])
    if entry is None:
        near = difflib.get_close_matches(url.scheme, entries, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        names = ", ".join(sorted(entries))
        raise ConfigError(f"unknown sink {url.scheme!r}{hint} (known: {names})")
    mine = {key: url.options[key] for key in url.options if key in _COMMON_KEYS}
    rest = {key: url.options[key] for key in url.options if key not in mine}
    cls: type[Sink] = entry.load()
    common = convert(Common, mine, what=f"sink {url.shown}")
    if "policy" not in mine:
        common = msgspec.structs.replace(common, policy=cls.default_policy)
    sink = cls.from_url(SinkURL(url.text, url.scheme, url.target, rest))
    return _checked(Built(sink, common), f"sink {url.shown}")


def wrap(sink: Sink, **common: Any) -> Built:
    """Put the options that every sink has beside a sink object.

    Raises:
        ConfigError: An unknown option, or a value of the wrong type.
    """
    common.setdefault("policy", type(sink).default_policy)
    what = f"sink {type(sink).__name__}"
    return _checked(Built(sink, make(Common, common, what=what)), what)


def _checked(built: Built, what: str) -> Built:
    """Find out now whether the filter and the patterns can be understood."""
    try:
        built.shaper()
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    return built


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(importlib.import_module(_FACE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
