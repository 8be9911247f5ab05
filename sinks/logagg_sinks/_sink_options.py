"""Options of the shipped sinks: the common part of reading and writing them.

A sink's module has one struct derived from `Options`; `read` gets its fields from the
sink's URL. The types of the fields (`Size`, `Duration`, …) define how a text is read: see
`logagg.options`, which is there for sinks of third parties as well.
"""

from __future__ import annotations

from typing import Any

import msgspec

from logagg.abc import SinkURL
from logagg.options import Duration, Level, Mode, Size, from_texts, make, query
from logagg.text import Template

__all__ = [
    "Duration",
    "Level",
    "Mode",
    "Options",
    "Size",
    "check_template",
    "make",
    "query",
    "read",
]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of a sink's options: frozen, keyword only, unknown keys refused.

    A `__post_init__` that raises ValueError refuses a combination; its text is shown to
    the user after the sink's name.
    """


def check_template(template: str, *, used: bool) -> None:
    """Refuse an option `template` that is malformed, or not `used` by the format.

    Raises:
        ValueError: It is; the text is for the user.
    """
    if template != Template.DEFAULT and not used:
        raise ValueError("option template needs format=text")
    try:
        Template(template)
    except ValueError as error:
        raise ValueError(f"option template={template!r}: expected {error}") from None


def read(kind: type[Options], url: SinkURL) -> dict[str, Any]:
    """Read the options of a sink's URL, for its constructor.

    Raises:
        ConfigError: An unknown key (with the nearest known one) or a bad value.
    """
    return from_texts(kind, url.options, what=f"sink {url.shown}", also=url.common)
