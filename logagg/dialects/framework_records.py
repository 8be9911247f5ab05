"""Records in which a framework has put fields and exceptions into the text. Pure.

Access logs of web servers get fields (`logagg.dialects.access_logs`). A traceback that
stands in the message becomes the record's exception. What a `QueueHandler` has formatted
becomes what it was.
"""

from __future__ import annotations

from copy import copy
from logging import LogRecord

from logagg.dialects import python_warnings
from logagg.dialects.access_logs import with_access_fields
from logagg.dialects.queued_records import before_queue

__all__ = ["parsed"]

_TRACEBACK = "\nTraceback (most recent call last):\n"
_RQ_FIELDS = {"job_id": "task_id", "func": "task_name"}
_ARGUMENTS = ("arguments", "kwargs")
"""rq adds the arguments of a failed job, which may be secrets."""


def parsed(record: LogRecord, address: str) -> LogRecord | None:
    """A copy of a framework's record with its parts apart, or the record itself.

    Never raises. None: it was sent to the address before it was queued.
    """
    if record.args is None:
        found = before_queue(record, address)
        if found is None:
            return None
        record = found
    if record.name == "rq.worker":
        return _with_exception(_of_rq(record))
    if record.name == python_warnings.LOGGER:
        return python_warnings.with_warning_fields(record)
    if record.name == "_granian.utils":
        return _with_exception(record)
    return with_access_fields(record)


def _with_exception(record: LogRecord) -> LogRecord:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - the handler reports what is wrong with it
        return record
    message, header, _ = text.partition(_TRACEBACK)
    if not header or record.exc_info:
        return record
    made = copy(record)
    made.msg = message
    made.args = ()
    made.exc_text = text[len(message) :].strip()
    return made


def _of_rq(record: LogRecord) -> LogRecord:
    if "job_id" not in record.__dict__:
        return record
    made = copy(record)
    fields = made.__dict__
    for name in _ARGUMENTS:
        fields.pop(name, None)
    for name, own in _RQ_FIELDS.items():
        if name in fields:
            fields[own] = fields.pop(name)
    return made
