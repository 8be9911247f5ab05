"""Records of google-cloud-logging: its fields under the names that all records have.

A filter on each of its handlers puts what it has found into the record, under names of
its own and once more as JSON. Of these the trace, the labels and the request are kept;
`json_fields`, in which a program gives its fields to these handlers, becomes fields.
"""

from __future__ import annotations

from logging import LogRecord
from typing import Any

from logagg.client import handler
from logagg.client.context_fields import add_field
from logagg.client.sink_urls import redaction_wanted
from logagg.integrations.import_hooks import when_imported

__all__ = ["install"]

_FOUND = (
    "resource", "trace", "span_id", "trace_sampled", "http_request", "source_location",
    "labels", "payload",
)  # fmt: skip
_MARKS = tuple(f"_{name}{end}" for name in _FOUND for end in ("", "_str"))
_REPEATED = ("python_logger",)


def install() -> None:
    """Do so from now on, where the library is used."""
    when_imported(
        "google.cloud.logging_v2.handlers.handlers",
        lambda _: handler.add_context(_with_own_names),
    )


def _with_own_names(record: LogRecord, fields: dict[str, Any]) -> None:
    if "_source_location_str" not in fields:
        return
    found = {name: fields.pop(name, None) for name in _MARKS}
    trace = found["_trace"]
    if trace and fields.get("trace") in (None, trace):
        fields.pop("trace", None)
        fields["trace_id"] = str(trace).rpartition("/")[2]  # projects/P/traces/T
        if found["_span_id"]:
            fields["span_id"] = found["_span_id"]
        if found["_trace_sampled"]:
            fields["trace_sampled"] = True
    if isinstance(found["_labels"], dict):
        labels = {k: v for k, v in found["_labels"].items() if k not in _REPEATED}
        if labels:
            fields["labels"] = labels
    if found["_http_request"]:
        fields["http_request"] = found["_http_request"]
    given = getattr(record, "json_fields", None)
    if isinstance(given, dict):
        fields.pop("json_fields", None)
        for name, value in given.items():
            add_field(fields, name, value, redact=redaction_wanted(None))
