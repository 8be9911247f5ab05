"""Fields that a record has from its caller and from its surroundings: a span, a place in
a job of many.

Names are OpenTelemetry's where it has one. A field of the caller's with the same name
is kept in its place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from logging import LogRecord
from typing import Any

from logagg.core.encode import safe_text
from logagg.core.record import ADDED, RESERVED
from logagg.core.secrets import PLACEHOLDER, is_secret

__all__ = [
    "MODEL",
    "STANDARD_NAMES",
    "TAKEN",
    "TRACE",
    "add_field",
    "add_surroundings",
    "given_names",
    "instrumented_name",
    "is_merged",
    "process_fields",
    "running",
    "set_own",
    "unreserved",
]

# Of the class itself: a factory of the application's may add attributes of its own.
MODEL = tuple(vars(LogRecord("", 0, "", 0, "", (), None)))
"""Attributes that every record has, in their order."""

STANDARD_NAMES = frozenset(MODEL) | ADDED
TAKEN = STANDARD_NAMES | RESERVED
MAX_NAMES = 10_000

unreserved: set[str] = set()
"""Names of extras that never clash and are no secrets."""

TRACE = "opentelemetry.trace"
"""The module of OpenTelemetry's API; where it is not loaded there are no spans."""

running: list[Callable[[], dict[str, Any] | None]] = []
"""Functions that return the fields of what runs now, such as a task of a queue."""

_TEXTS = {"host": "LOGAGG_HOST", "app": "LOGAGG_APP"}
_NUMBERS = {
    "rank": ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"),
    "local_rank": (
        "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID",
    ),
    "world_size": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"),
}  # fmt: skip
"""By field, variables of torchrun, Open MPI, MPICH and SLURM; the first that is set."""

_INSTRUMENTED = {
    "otelTraceID": "trace_id",
    "otelSpanID": "span_id",
    "otelTraceSampled": "trace_sampled",
    "otelServiceName": "service_name",
}
_NONE = ("", "0", "unknown_service", False)


def given_names() -> dict[str, str]:
    """The names of host and application that the environment gives."""
    found = {field: os.environ.get(name, "") for field, name in _TEXTS.items()}
    return {field: text for field, text in found.items() if text}


def process_fields() -> dict[str, str | int]:
    """The fields that the environment gives to all records of the process."""
    get = os.environ.get
    found: dict[str, str | int] = {**given_names()}
    for field, variables in _NUMBERS.items():
        for variable in variables:
            number = get(variable, "")
            if number.isdecimal() and len(number) < 10:
                found[field] = int(number)
                break
    return found


def add_surroundings(
    fields: dict[str, Any], process: dict[str, str | int] | None
) -> None:
    """Add what runs now, the active span of OpenTelemetry, and fields of the process.

    Args:
        fields: The record's.
        process: What `process_fields` returned; None: it is called now.
    """
    for fields_now in running:
        for name, value in (fields_now() or {}).items():
            fields.setdefault(name, value)
    current = getattr(sys.modules.get(TRACE), "get_current_span", None)
    if current is not None and "trace_id" not in fields:
        context = current().get_span_context()
        if context.is_valid:
            fields["trace_id"] = f"{context.trace_id:032x}"
            fields["span_id"] = f"{context.span_id:016x}"
    if process is None:
        process = process_fields()
    for name, value in process.items():
        if name not in fields:
            fields[name] = value


def add_field(
    fields: dict[str, Any], name: Any, value: object, *, redact: bool = True
) -> None:
    """Add a field of the caller's, replaced if its name is a secret's.

    A clashing name gets underscores; none is dropped. Those of OpenTelemetry's
    instrumentation get the names that its API's have.
    """
    if type(name) is not str:
        name = safe_text(name)
    elif name[:4] == "otel":
        name = instrumented_name(name, value)
        if name is None:
            return
    if is_secret(name):
        value = PLACEHOLDER if redact else value
    elif name.rstrip("_") not in TAKEN and len(unreserved) < MAX_NAMES:
        unreserved.add(name)
    # structlog has found the stack by itself, as `stack_info=True` does.
    own = name == "stack" and type(value) is str and value.startswith("Stack (most ")
    while (name in TAKEN and not own) or name in fields:
        name += "_"
    fields[name] = value


def set_own(fields: dict[str, Any], name: str, value: object) -> None:
    """Set a field of the record's own; another value of that name gets an underscore."""
    if name in fields and fields[name] is not value:
        add_field(fields, f"{name}_", fields.pop(name), redact=False)
    fields[name] = value


def instrumented_name(name: str, value: object) -> str | None:
    """The name for an attribute of OpenTelemetry's `LoggingInstrumentor`.

    Returns:
        The name itself for any other attribute; None for a value that states that there
        is no span or no service.
    """
    renamed = _INSTRUMENTED.get(name)
    if renamed is None:
        return name
    absent = value is None or (isinstance(value, str | bool) and value in _NONE)
    return None if absent else renamed


def is_merged(kept: object, value: object) -> bool:
    """Whether the application has put a context variable into the record already."""
    return (
        kept is value
        or kept is PLACEHOLDER
        or (type(kept) is type(value) and type(kept) in (str, int) and kept == value)
    )
