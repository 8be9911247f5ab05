"""Uncaught exceptions, each as one record: main thread, threads, `__del__`, callbacks.

Python prints them line by line; a thread's traceback gets mixed with what other threads
print, and none has a level or fields. With `install` an uncaught exception is one record
of logger `logagg`, level critical (it ends the program) or error. A hook that the
program, or an error tracker, has set is called as before; one that it sets later
replaces this one, and usually calls it. asyncio reports its own through `logging`.
"""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any

__all__ = ["install", "is_default", "summary", "uninstall"]

_log = logging.getLogger("logagg")
_before: dict[str, Any] = {}

Info = tuple[type[BaseException], BaseException, TracebackType | None]


def install() -> None:
    """Log uncaught exceptions from now on. Calling it twice does nothing more."""
    if _before:
        return
    _before.update(
        main=sys.excepthook,
        thread=threading.excepthook,
        unraisable=sys.unraisablehook,
    )
    sys.excepthook = _main
    threading.excepthook = _thread
    sys.unraisablehook = _unraisable


def uninstall() -> None:
    """Put the hooks back that `install` found, unless another has been set since."""
    if not _before:
        return
    if sys.excepthook is _main:
        sys.excepthook = _before["main"]
    if threading.excepthook is _thread:
        threading.excepthook = _before["thread"]
    if sys.unraisablehook is _unraisable:
        sys.unraisablehook = _before["unraisable"]
    _before.clear()


def is_default(hook: object) -> bool:
    """Whether a hook is Python's or logagg's: the program has set none.

    Args:
        hook: `sys.excepthook` or `threading.excepthook`.
    """
    if hook is _main:
        hook = _before.get("main")
    if hook is _thread:
        hook = _before.get("thread")
    return hook is sys.__excepthook__ or hook is threading.__excepthook__


def _main(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    before = _before.get("main", sys.__excepthook__)
    if before is not sys.__excepthook__ or not issubclass(kind, Exception):
        before(kind, error, trace)
    else:
        _write(logging.CRITICAL, "uncaught", (kind, error, trace))


def _thread(arguments: Any) -> None:
    before = _before.get("thread", threading.__excepthook__)
    if before is not threading.__excepthook__ or arguments.exc_value is None:
        before(arguments)
    elif arguments.exc_type is not SystemExit:
        info = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        _write(logging.ERROR, "uncaught in a thread:", info)


def _unraisable(arguments: Any) -> None:
    before = _before.get("unraisable", sys.__unraisablehook__)
    if before is not sys.__unraisablehook__ or arguments.exc_value is None:
        before(arguments)
    else:
        info = (arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        where = arguments.err_msg or "exception ignored"
        _write(logging.ERROR, f"{where} in {_name_of(arguments.object)}:", info)


def _write(level: int, what: str, info: Info) -> None:
    _log.log(level, "%s %s", what, summary(info[1]), exc_info=info)


def _name_of(subject: object) -> str:
    try:
        return repr(subject)[:200]
    except Exception:  # noqa: BLE001 - it may be half destroyed
        return f"<{type(subject).__name__}>"


def summary(error: BaseException) -> str:
    """The exception in one line of at most 1,000 characters, whatever its text holds."""
    kind = type(error)
    plain = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error).strip().partition("\n")[0].rstrip()
    except Exception:  # noqa: BLE001 - a broken __str__ may raise anything
        text = "<unprintable>"
    return f"{name}: {text}"[:1000] if text else name
