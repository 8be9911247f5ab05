"""The options of our own sinks: what they share about reading and writing them.

A sink's module has one struct derived from `Options`; `read` makes it from the sink's
URL. The types of the fields (`Size`, `Duration`, …) say how a text is read: see
`logagg.options`, which is there for sinks of third parties as well.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from logagg.options import Duration, Level, Mode, Size, convert, make, query
from logagg.sinks import Common, SinkURL

__all__ = [
    "Duration",
    "Level",
    "Mode",
    "Options",
    "Size",
    "make",
    "query",
    "read",
]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of a sink's options: frozen, keyword only, unknown keys refused.

    A `__post_init__` that raises ValueError refuses a combination; its text is shown to
    the user behind the sink's name.
    """


T = TypeVar("T", bound=Options)


def read(kind: type[T], url: SinkURL) -> T:
    """Make a sink's options from its URL.

    Raises:
        ConfigError: An unknown key (with the nearest known one) or a bad value.
    """
    return convert(
        kind, url.options, what=f"sink {url.shown}", also=Common.__struct_fields__
    )
