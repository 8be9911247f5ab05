"""The text that a formatter of the application makes of a record, without its secrets.

structlog's `ProcessorFormatter` gives its last processor the event; where that makes
text that is no JSON (for a console, `key=value`), the event itself is taken, with all
that the processors before it have done to it.

Any other formatter may name a secret (`%(password)s`): it is given a record in which the
values of secrets are replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from copy import copy
from logging import Formatter, Handler, LogRecord
from typing import Any

from logagg.core.secrets import PLACEHOLDER, is_secret, scrubbed

__all__ = ["formatted"]

_STRUCTLOG = "structlog.stdlib"


def formatted(
    handler: Handler, record: LogRecord, own: Collection[str], *, redact: bool
) -> tuple[Any, Mapping[Any, Any] | None]:
    """Format a record, without its exception and stack.

    Args:
        handler: Its formatter is used.
        own: Names of attributes that every record has.
        redact: Whether secrets are replaced.

    Returns:
        The text; and the event, if the formatter has rendered one into a text that is
        no JSON.

    Raises:
        Exception: The formatter's.
    """
    bare = copy(record)
    bare.exc_info = None
    bare.exc_text = None
    bare.stack_info = None
    formatter = handler.formatter
    if formatter is not None and _renders(handler, formatter):
        return _rendered(formatter, bare)
    if redact:
        attributes = bare.__dict__
        for name in attributes.keys() - own:
            attributes[name] = _without_secrets(name, attributes[name])
        bare.msg = _without_secrets("", bare.msg)  # it may be a dictionary
    return handler.format(bare), None


def _without_secrets(name: str, value: Any) -> Any:
    if is_secret(name):
        return PLACEHOLDER
    return scrubbed(value) if type(value) in (dict, list) else value


def _renders(handler: Handler, formatter: Formatter) -> bool:
    """Whether a formatter is structlog's, and the handler calls it as ever."""
    kind = getattr(sys.modules.get(_STRUCTLOG), "ProcessorFormatter", None)
    return (
        kind is not None
        and isinstance(formatter, kind)
        and type(handler).format is Handler.format
    )


def _rendered(
    formatter: Any, record: LogRecord
) -> tuple[Any, Mapping[Any, Any] | None]:
    kept: list[Mapping[Any, Any]] = []
    *earlier, last = formatter.processors

    def render(logger: Any, name: str, event: Any) -> Any:
        if isinstance(event, Mapping):
            kept.append(dict(event))  # renderers take things out
        return last(logger, name, event)

    mine = copy(formatter)
    mine.processors = (*earlier, render)
    text = mine.format(record)
    is_json = type(text) is str and text[:1] == "{"
    return text, kept[0] if kept and not is_json else None
