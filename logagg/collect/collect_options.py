"""Options of `logagg collect`: those of the command, and those of the source's URL."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from logagg.errors import ConfigError
from logagg.fleet.nats_connection import Access, NatsAddress, read_address
from logagg.options import Count, Duration, Option, Size, from_texts, make
from logagg.sinks import SinkText, parse

__all__ = ["CollectOptions", "SourceOptions", "read_source"]

SCHEMES = frozenset(("nats", "tls"))
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class CollectOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `logagg collect`."""

    sinks: Annotated[
        tuple[SinkText, ...],
        Option("Where records go; repeatable.", "", "URL", long="--sink"),
    ] = ("stdout:?format=console",)


class SourceOptions(Access, frozen=True, kw_only=True):
    """The options of a source `nats://…`, besides those of its connection.

    Attributes:
        name: Names the collector: one at a time has a name, others stand by.
        filter: Subjects to read; none: all of the stream.
        wait: How long a host that sends nothing holds the others back.
        delay: The least age of a record when it is written.
        max_held: How many bytes wait in memory for their place.
        fetch: How many messages are requested at once.
        lease: How long a standby waits for a sign of life of the collector.
    """

    name: str = "collector"
    filter: tuple[str, ...] = ()
    wait: Duration = 10.0
    delay: Duration = 1.0
    max_held: Size = 256 * 1024 * 1024
    fetch: Count = 32
    lease: Duration = 10.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("option name has letters, digits, - and _ only")
        for name in ("wait", "delay"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name} must not be negative")
        if self.max_held < 1 or self.fetch < 1:
            raise ValueError("options max_held and fetch must be positive")
        if self.lease < 2:
            raise ValueError("option lease must be 2s or more")


def read_source(text: str) -> tuple[NatsAddress, SourceOptions]:
    """Read the URL of a source.

    Raises:
        ConfigError: It is not one, or an option is wrong.
    """
    try:
        url = parse(text)
    except ConfigError as error:
        raise ConfigError(str(error).replace("sink", "source", 1)) from None
    what = f"source {url.shown}"
    if url.scheme not in SCHEMES:
        raise ConfigError(f"{what}: expected nats://HOST[:PORT][,HOST…]/STREAM")
    address = read_address(url.scheme, url.target, what)
    texts = from_texts(SourceOptions, url.options, what=what)
    options = make(SourceOptions, texts, what=what)
    options.check(address, what)
    return address, options
