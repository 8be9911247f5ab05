"""Warnings (`warnings.warn`) that would be printed on captured output, as records."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from logagg.dialects import python_warnings

__all__ = ["install"]

_PRINTS = "_showwarnmsg_impl"
"""The function that prints a warning in the end. A program that sets
`warnings.showwarning`, or catches warnings, has its way before it is called.
"""


def install(
    name_of: Callable[[object], str], handle: Callable[[logging.LogRecord], object]
) -> None:
    """Make each warning that would be printed one record of `py.warnings` from now on.

    Args:
        name_of: The name of a stream that is captured; empty: it is not.
        handle: Sends a record.
    """
    original = getattr(warnings, _PRINTS, None)
    if original is None:  # of another Python: they are printed, and captured
        return

    def show(warning: Any) -> None:
        if warning.file is None and name_of(sys.stderr):
            handle(_record(warning))
        else:
            original(warning)

    setattr(warnings, _PRINTS, show)


def _record(warning: Any) -> logging.LogRecord:
    message, fields = python_warnings.warning_fields(
        warning.category.__name__,
        str(warning.message),
        str(warning.filename),
        warning.lineno,
    )
    return logging.makeLogRecord(
        {
            "name": python_warnings.LOGGER,
            "levelname": "WARNING",
            "levelno": logging.WARNING,
            "msg": message,
            **fields,
        }
    )
