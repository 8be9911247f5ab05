"""Fields that a record has from its surroundings: a span, a place in a job of many.

Names are OpenTelemetry's where it has one. A field of the caller's with the same name
is kept in its place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from logagg.core.secrets import PLACEHOLDER

__all__ = [
    "TRACE",
    "add_surroundings",
    "given_names",
    "instrumented_name",
    "is_merged",
    "process_fields",
    "running",
]

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
