"""Functions of `logagg.dialects`, each imported when it is first called for, and once.

Most processes need none of them. One that does may need it for every record, where an
import statement costs as much as all the rest of a message's way.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logagg.dialects.formatter_texts import formatted
    from logagg.dialects.framework_records import parsed
    from logagg.dialects.loguru_messages import log_record, with_origin
    from logagg.dialects.rendered_events import (
        event_fields,
        parse_event,
        scrubbed_json,
    )
    from logagg.dialects.structlog_texts import remove_marks, rendered_event
    from logagg.dialects.traceback_text import exception_of

__all__ = [
    "event_fields",
    "exception_of",
    "formatted",
    "log_record",
    "parse_event",
    "parsed",
    "remove_marks",
    "rendered_event",
    "scrubbed_json",
    "with_origin",
]

_MODULES = {
    "event_fields": "rendered_events",
    "exception_of": "traceback_text",
    "formatted": "formatter_texts",
    "log_record": "loguru_messages",
    "parse_event": "rendered_events",
    "parsed": "framework_records",
    "remove_marks": "structlog_texts",
    "rendered_event": "structlog_texts",
    "scrubbed_json": "rendered_events",
    "with_origin": "loguru_messages",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"logagg.dialects.{_MODULES[name]}"), name)
    globals()[name] = found  # from now on it is found without this function
    return found
