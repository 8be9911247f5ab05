"""`logagg.install` and `logagg.uninstall`, which alone change anything global.

A `logagg.Handler` alone changes nothing in `logging` or `sys`. `logagg run` and
`logagg.start` call `install`; a program of its own may.
"""

from __future__ import annotations

from logagg.client.fast import log_calls
from logagg.integrations import excepthooks as hooks

__all__ = ["install", "uninstall"]


def install(*, excepthooks: bool = False) -> bool:
    """Make log calls of this process faster, and on request log uncaught exceptions.

    Replaces logging's record factory by one that makes the same records in half the
    time, unless the application has set a factory of its own. May be called twice.

    Args:
        excepthooks: Also log an uncaught exception of the main thread, of any other
            thread, and of a destructor, as one record with its traceback, instead of
            printing it. Hooks that the application has set stay.

    Returns:
        Whether records are made faster now. False: the application has a record factory
        of its own, which stays.
    """
    if excepthooks:
        hooks.install()
    return log_calls.install()


def uninstall() -> None:
    """Put back what `install` replaced, unless it has been replaced since."""
    hooks.uninstall()
    log_calls.uninstall()
