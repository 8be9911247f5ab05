"""The text that a formatter of the application makes of a record, without its secrets.

structlog's `ProcessorFormatter` gives its last processor the event; where that makes
text that is no JSON (for a console, `key=value`), the event itself is taken, with all
that the processors before it have done to it.

Any other formatter may name a secret (`%(password)s`): it is given a record in which the
values of secrets are replaced.

Where a record goes on in place of a text (`as_formatted`), what a formatter of the
program's own kind has done to the message holds: it may have masked a part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from copy import copy
from logging import Formatter, Handler, LogRecord, PercentStyle
from typing import Any

from logagg.core.secrets import PLACEHOLDER, is_secret, scrubbed
from logagg.dialects.plain_text import without_colours
from logagg.dialects.rendered_events import event_fields, parse_event, scrubbed_json
from logagg.dialects.structlog_texts import RenderedBytes, RenderedText

__all__ = ["as_formatted", "formatted"]

_STRUCTLOG = "structlog.stdlib"
_MESSAGE = "%(message)s"
_ATTRIBUTES = frozenset(vars(LogRecord("", 0, "", 0, "", (), None)))
_KNOWN = frozenset(("logging", "celery", "colorlog", "django", "structlog", "uvicorn"))
"""Packages whose formatters change no message, or are read otherwise."""


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
    bare = _bare(record)
    formatter = handler.formatter
    if formatter is not None and _renders(handler, formatter):
        text, event = _rendered(formatter, bare)
        is_json = type(text) is str and text[:1] == "{"
        return text, None if is_json else event
    if redact:
        attributes = bare.__dict__
        for name in attributes.keys() - own:
            attributes[name] = _without_secrets(name, attributes[name])
        _scrub_message(bare)
    return handler.format(bare), None


def as_formatted(handler: Handler, record: LogRecord) -> LogRecord:
    """The record with the message and the fields that a handler's formatter makes of it.

    Args:
        handler: A handler of the program's, which would write a text.

    Returns:
        The record itself, if its message stands in the text. Otherwise a copy with the
        text, without what a format puts around a message, as its message. A copy, too,
        for a text that is JSON and has further fields, and with structlog's formatter,
        whose processors may have changed any field.
    """
    formatter = handler.formatter
    if formatter is not None and _renders(handler, formatter):
        return _as_processed(record, formatter)
    if formatter is None or not _of_own_kind(type(formatter)):
        return record
    try:
        mine: Any = copy(formatter)
        mine._style, mine._fmt = PercentStyle(_MESSAGE), _MESSAGE
        text: object = mine.format(_bare(record))
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - a formatter can raise anything
        return record
    if not isinstance(text, str):
        return record
    further: dict[Any, Any] = {}
    fields_only = isinstance(record.msg, Mapping)
    if (event := parse_event(text.strip())) is not None:
        text, further, _ = event_fields(event, record)
        known = vars(record).keys() | (record.msg if fields_only else ())
        further = {each: further[each] for each in further if each not in known}
    if not isinstance(text, str) or fields_only:
        text = message
    changed = bool(text) and message.strip() not in without_colours(text)
    if not changed and not further:
        return record
    made = copy(record)
    made.__dict__.update(further)
    if changed:
        made.msg, made.args = without_colours(text), ()
    return made


def _as_processed(record: LogRecord, formatter: Formatter) -> LogRecord:
    """The record with the event that the processors of structlog's formatter leave."""
    if record.args is None or isinstance(record.msg, RenderedText | RenderedBytes):
        return record  # it comes from a queue, or has its event with it
    try:
        _, event = _rendered(formatter, _bare(record))
    except Exception:  # noqa: BLE001 - a processor can raise anything
        return record
    if event is None:
        return record
    made = copy(record)
    made.msg, made.args = dict(event), ()
    for name in event:
        if name not in _ATTRIBUTES:
            made.__dict__.pop(name, None)  # the event's value is in its place
    return made


def _of_own_kind(kind: type[Formatter]) -> bool:
    """Whether a class of formatters makes the text in a way of its own."""
    overridden = (
        kind.format is not Formatter.format
        or kind.formatMessage is not Formatter.formatMessage
    )
    return overridden and kind.__module__.partition(".")[0] not in _KNOWN


def _bare(record: LogRecord) -> LogRecord:
    """A copy without exception and stack."""
    bare = copy(record)
    bare.exc_info = None
    bare.exc_text = None
    bare.stack_info = None
    return bare


def _without_secrets(name: str, value: Any) -> Any:
    if is_secret(name):
        return PLACEHOLDER
    return scrubbed(value) if type(value) in (dict, list) else value


def _scrub_message(record: LogRecord) -> None:
    """Replace the secrets of a message that is a dictionary, or a text of JSON."""
    record.msg = _without_secrets("", record.msg)
    text = "" if isinstance(record.msg, Mapping) else record.getMessage()
    if text[:1] in ("{", "[") and (clean := scrubbed_json(text)) is not text:
        record.msg, record.args = clean, ()


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
    """The text that structlog's formatter makes, and the event that it is made of."""
    kept: list[Mapping[Any, Any]] = []
    *earlier, last = formatter.processors

    def render(logger: Any, name: str, event: Any) -> Any:
        if isinstance(event, Mapping):
            kept.append(dict(event))  # renderers take things out
        return last(logger, name, event)

    mine = copy(formatter)
    mine.processors = (*earlier, render)
    text = mine.format(record)
    return text, kept[0] if kept else None
