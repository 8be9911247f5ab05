"""The hot paths in C, where they were built: `emit` the log call, `merge` the lines.

Process: `emit` in every worker; `merge` in the consumer.
Hot path: yes, all of it.
May import: the standard library; `logagg.client.fast.native` gives `emit` what it needs,
and `blocks` here is the Python form of `merge` and the choice between the two.
Never: anything that the Python code does not do; a call or a line that it finds unusual.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

__all__ = ["load"]


def load(name: str) -> ModuleType | None:
    """A module in C; None where none was built, or with `LOGAGG_PURE=1`."""
    if os.environ.get("LOGAGG_PURE") == "1":
        return None
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError:
        return None
