"""The face of all sinks: from a URL to a sink object, and the classes to import.

A sink is written as a URL: `file:app.log?max_bytes=50MB`, `stdout:?format=console`,
`loki+http://host:3100/?level=warning`. What stands before the first colon chooses an
entry point of the group `logagg.sinks` (`loki+http` falls back to `loki`, so a plug-in
registers one name for all its transports); the rest is the sink's own business, except
for the options that every sink has (`CommonOptions`), which are taken off here and
obeyed by the consumer.

This module imports no sink until one is asked for by name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, unquote

import msgspec

from logagg.abc import Policy, Sink, SinkURL, shown_url
from logagg.client.sink_urls import unknown_sink
from logagg.core.record import REQUIRED
from logagg.errors import ConfigError
from logagg.ipc.paths import is_file
from logagg.options import Duration, Level, OptionText, Size, from_texts, make, query

if TYPE_CHECKING:
    from logagg_sinks.elasticsearch import ElasticsearchSink, OpensearchSink
    from logagg_sinks.file.file_sink import FileSink
    from logagg_sinks.http.webhook import HttpSink, HttpsSink
    from logagg_sinks.loki import LokiSink
    from logagg_sinks.nats.nats_sink import NatsSink, TlsSink
    from logagg_sinks.otlp import OtlpSink
    from logagg_sinks.splunk import SplunkSink
    from logagg_sinks.stdout import StderrSink, StdoutSink

__all__ = [
    "CommonOptions",
    "ConfiguredSink",
    "ElasticsearchSink",
    "FileSink",
    "HttpSink",
    "HttpsSink",
    "LokiSink",
    "NatsSink",
    "OpensearchSink",
    "OtlpSink",
    "SinkURL",
    "SplunkSink",
    "StderrSink",
    "StdoutSink",
    "TlsSink",
    "build",
    "is_shipped",
    "known",
    "parse",
    "wrap",
]

GROUP = "logagg.sinks"
REQUIRED_GIVE_UP = 60.0

_FACE = {
    "ElasticsearchSink": "logagg_sinks.elasticsearch",
    "FileSink": "logagg_sinks.file.file_sink",
    "HttpSink": "logagg_sinks.http.webhook",
    "HttpsSink": "logagg_sinks.http.webhook",
    "LokiSink": "logagg_sinks.loki",
    "NatsSink": "logagg_sinks.nats.nats_sink",
    "OpensearchSink": "logagg_sinks.elasticsearch",
    "OtlpSink": "logagg_sinks.otlp",
    "SplunkSink": "logagg_sinks.splunk",
    "StderrSink": "logagg_sinks.stdout",
    "StdoutSink": "logagg_sinks.stdout",
    "TlsSink": "logagg_sinks.nats.nats_sink",
}


class CommonOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """The options that every sink has; the consumer obeys them, not the sink.

    Attributes:
        level: Records below this level do not reach the sink.
        match: A filter in the grammar of `logagg tail`, one or several terms separated
            by spaces; a record must satisfy all of them.
        fields: Only these extra fields are kept (the fixed ones always are).
        drop: These fields are left out.
        redact: Names of fields whose values are replaced by `[redacted]`, besides those
            that workers replace; `/…/` is a pattern whose matches in any text are
            replaced; `secrets` stands for the well-known names, for senders that do not
            replace them; `texts` for secrets that are recognized within texts.
        sample: Keep one record in N of those below `warning`; the others are counted.
        collapse: Seconds within which equal records become one with a count; 0 is off.
        queue_records: How many records may wait for this sink.
        queue_bytes: How many bytes of records may wait for this sink.
        policy: What happens to a record that finds the queue full of a sink that does
            not keep pace: `spool`, `drop_old`, `drop_new` or `block`.
        queue_spool_bytes: How much of the queue `spool` may keep on disk; then it drops
            as `drop_old` does.
        give_up: Seconds after which a sink has failed for good when every attempt
            failed; 0 tries for ever, or for a minute where the sink is `required`.
        required: The service ends with an error (status 1) when this sink fails for
            good: its target refused for good, or `give_up` has passed.
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
    queue_spool_bytes: Size = 1024 * 1024 * 1024
    give_up: Duration = 0.0
    required: bool = False

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ValueError("option sample must be 1 (keep all) or more")
        if self.queue_records < 1 or self.queue_bytes < 1:
            raise ValueError("options queue_records and queue_bytes must be positive")
        if self.give_up < 0:
            raise ValueError("option give_up must not be negative")
        needed = sorted(REQUIRED.intersection(self.drop))
        if needed:
            raise ConfigError(f"option drop: every record needs its {needed[0]!r}")

    @property
    def failure_timeout(self) -> float:
        """Seconds of failed attempts after which the sink has failed; 0 is never."""
        return self.give_up or (REQUIRED_GIVE_UP if self.required else 0.0)


_COMMON_KEYS = frozenset(CommonOptions.__struct_fields__)


@dataclass(frozen=True, slots=True)
class ConfiguredSink:
    """A sink, and the options about it that the consumer obeys.

    Attributes:
        sink: The sink itself.
        common: The options that every sink has.
    """

    sink: Sink
    common: CommonOptions

    @property
    def url(self) -> str:
        """A URL that builds the same again, secrets left out."""
        base = self.sink.url
        options = query(self.common)
        if not options:
            return base
        return f"{base}{'&' if '?' in base else '?'}{options}"


def parse(text: str) -> SinkURL:
    """Take a sink URL apart. A bare path (no scheme) means a file.

    Raises:
        ConfigError: Nothing before the colon, or a key given twice.
    """
    head, _, query = text.partition("?")
    scheme, colon, target = head.partition(":")
    if not colon or "/" in scheme:
        scheme, target = "file", head
    if not scheme or (is_file(scheme) and not target.strip()):
        raise ConfigError(
            f"sink {shown_url(text)!r}: expected SCHEME:TARGET, for example file:app.log"
        )
    if not target.startswith("//"):
        target = unquote(target)
    elif shown_url(text).endswith("…"):
        raise ConfigError(
            f"sink {shown_url(text)}: expected SCHEME://HOST[:PORT]/PATH; in a password "
            "write %2F for /, %3F for ?, %40 for @"
        )
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in options:
            raise ConfigError(f"sink {shown_url(text)}: option {key!r} is given twice")
        options[key] = value
    return SinkURL(text, scheme.lower(), target, options)


def _checked_text(text: str) -> str:
    parse(text)
    return text


SinkText = Annotated[str, OptionText(_checked_text, secret=True)]
"""A sink URL as an option of a command; only its form is checked."""


_seen: dict[str, importlib.metadata.EntryPoint] = {}


def known() -> dict[str, importlib.metadata.EntryPoint]:
    """The registered sinks by scheme, plug-ins of third parties included.

    One that was found once stays known: where no descriptor is free, the search comes
    back with nothing, without an error.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise ConfigError(
                f"two packages register the sink {entry.name!r}: "
                f"{other.value} and {entry.value}; remove one"
            )
        found[entry.name] = entry
    _seen.update(found)
    return dict(_seen)


def is_shipped(scheme: str) -> bool:
    """Whether a sink is one of this package; so is an unknown one."""
    entries = known()
    entry = entries.get(scheme) or entries.get(scheme.partition("+")[0])
    return entry is None or entry.value.startswith("logagg_sinks.")


def build(url: SinkURL | str) -> ConfiguredSink:
    """Make the sink that a URL names; nothing is opened yet.

    The options that every sink has (`CommonOptions`) are taken off first; the sink
    sees the others only.

    Raises:
        ConfigError: Unknown scheme, unknown option or bad value; the message names it.
    """
    if isinstance(url, str):
        url = parse(url)
    entries = known()
    entry = entries.get(url.scheme) or entries.get(url.scheme.partition("+")[0])
    if entry is None:
        raise unknown_sink(url.scheme, entries)
    mine = {key: url.options[key] for key in url.options if key in _COMMON_KEYS}
    rest = {key: url.options[key] for key in url.options if key not in mine}
    cls: type[Sink] = entry.load()
    what = f"sink {url.shown}"
    common = make(CommonOptions, from_texts(CommonOptions, mine, what=what), what=what)
    if "policy" not in mine:
        common = msgspec.structs.replace(common, policy=cls.default_policy)
    sink = cls.from_url(
        replace(url, options=rest, common=CommonOptions.__struct_fields__)
    )
    return ConfiguredSink(sink, _checked(common, what))


def wrap(sink: Sink, **common: Any) -> ConfiguredSink:
    """Put the options that every sink has beside a sink object.

    Raises:
        ConfigError: An unknown option, or a value of the wrong type.
    """
    common.setdefault("policy", type(sink).default_policy)
    what = f"sink {type(sink).__name__}"
    options = make(CommonOptions, common, what=what)
    return ConfiguredSink(sink, _checked(options, what))


def _checked(common: CommonOptions, what: str) -> CommonOptions:
    """Refuse a filter or pattern that cannot be understood. Raises ConfigError."""
    if common.match.strip() or common.redact:
        from logagg.filters import matcher, redact  # few sinks load a filter

        try:
            if common.match.strip():
                matcher.compile((common.match,))
            redact.Redaction(common.redact)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from error
    return common


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(importlib.import_module(_FACE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
