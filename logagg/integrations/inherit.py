"""Logging set up in the children of a process, before any code of the application runs.

A spawned child first unpickles a dictionary that its parent made. One more entry in it
sets logging up in the child, so that no initializer is needed, even in pools that
a library makes. multiprocessing makes that dictionary for `spawn` and `forkserver`; its
relatives (loky, multiprocess, billiard) have copies of the function.

Forked children need nothing: they have what the parent has. Interpreters that are
started anew (`subprocess`) find `startup/sitecustomize.py` on their path, which attaches
those that write to the stderr of this process.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from logagg.client.fast import log_calls
from logagg.client.handler import Handler
from logagg.integrations import celery, running_task
from logagg.integrations.handlers.queue_handlers import QueueHandlers
from logagg.integrations.handlers.root_handler import (
    RootHandler,
    RootPlace,
    root_senders,
)
from logagg.integrations.import_hooks import when_imported
from logagg.ipc.paths import SPOOL_NAME

__all__ = [
    "attach",
    "beside",
    "hand_down",
    "hand_down_beside",
    "hand_down_to_interpreters",
    "reaches_log",
]

_BESIDE = "LOGAGG_BESIDE"
_STARTUP = os.path.join(os.path.dirname(__file__), "startup")

_SPAWNERS = (
    "multiprocessing.spawn",
    "multiprocess.spawn",
    "billiard.spawn",
    "loky.backend.spawn",
    "joblib.externals.loky.backend.spawn",
)

ATTACH = "logagg.integrations.inherit:attach"
"""`MODULE:FUNCTION` that a child calls, with the parent's root level."""

_RECEIVE = """\
try:
    import sys
    sys.path += [entry for entry in {path!r} if entry not in sys.path]
    from logagg.integrations.inherit import receive
    receive({state!r})
except Exception:
    pass
"""


def hand_down(attach: str = ATTACH) -> None:
    """Let children that this process spawns from now on inherit the logging setting.

    Args:
        attach: The function that the child calls, as `ATTACH` has it.
    """
    for name in _SPAWNERS:
        when_imported(name, lambda module: _wrap(module, attach))


def hand_down_to_interpreters() -> None:
    """Let Python interpreters that this process starts load `startup`."""
    if os.environ.get("LOGAGG_CHILDREN", "").lower() in ("no", "0", "false", "off"):
        return
    theirs = os.environ.get("PYTHONPATH", "")
    if _STARTUP not in theirs.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_STARTUP, theirs)))


def hand_down_beside() -> Callable[[], None]:
    """As above, for a process whose output is not captured: children print as ever.

    Returns:
        What takes it back, except for a variable that has been changed since.
    """
    names = (_BESIDE, "PYTHONPATH")
    before = {name: os.environ.get(name) for name in names}
    os.environ[_BESIDE] = f"{_stderr_file()}={logging.getLogger().level}"
    hand_down_to_interpreters()
    after = {name: os.environ.get(name) for name in names}

    def take_back() -> None:
        for name in names:
            if os.environ.get(name) == after[name]:
                os.environ.pop(name, None)
                if (former := before[name]) is not None:
                    os.environ[name] = former

    return take_back


def beside() -> int | None:
    """The root logger's level of the process that started this interpreter, if it is one
    of those above and both have one stderr.
    """
    file, _, level = os.environ.get(_BESIDE, "").partition("=")
    return int(level) if level.isdecimal() and file == _stderr_file() else None


def _stderr_file() -> str:
    """The file of descriptor 2; empty if it is closed."""
    try:
        status = os.fstat(2)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def _wrap(module: ModuleType, attach: str) -> None:
    original = module.get_preparation_data
    original = getattr(original, "without_logagg", original)

    def prepared(*args: Any, **options: Any) -> Mapping[str, Any]:
        data: dict[str, Any] = dict(original(*args, **options))
        if os.environ.get("LOGAGG_SOCKET"):
            data["logagg"] = _Inheritance(attach)
        return data

    prepared.without_logagg = original  # type: ignore[attr-defined]
    module.get_preparation_data = prepared  # type: ignore[attr-defined]


class _Inheritance:
    """Unpickling it runs `receive` in the child; it never fails, whatever is missing."""

    def __init__(self, attach: str) -> None:
        self._attach = attach

    def __reduce__(self) -> tuple[Any, ...]:
        names = logging.getLevelNamesMapping()
        state = {
            "address": {
                name: os.environ.get(name, "") for name in ("LOGAGG_SOCKET", SPOOL_NAME)
            },
            "level": logging.getLogger().level,
            "names": {number: name for name, number in names.items()},
            "attach": self._attach,
        }
        path = [os.path.abspath(entry) for entry in sys.path if entry]
        return exec, (_RECEIVE.format(path=path, state=state),)


def receive(state: dict[str, Any]) -> None:
    """In a spawned child: take over the parent's root level, level names, handler."""
    os.environ.update(state["address"])
    for number, name in state["names"].items():
        if logging.getLevelName(number) != name:
            logging.addLevelName(number, name)
    module, _, function = state["attach"].partition(":")
    getattr(import_module(module), function)(state["level"])
    hand_down(state["attach"])


def attach(level: int | str | None = None) -> bool:
    """Attach this process to the consumer of the process that started it.

    For children that logagg cannot reach by itself: a cluster's worker hook, an exec'd
    interpreter of another kind. Keeps a `logagg.Handler` on the root logger, unless there
    is one, however the program sets up logging later. Never raises: a child without a
    consumer logs as it would without logagg.

    Args:
        level: The root logger's level; None leaves it.

    Returns:
        Whether records of the root logger go to a consumer now. False: the environment
        names none (`LOGAGG_SOCKET`).
    """
    root = logging.getLogger()
    if level is not None:
        root.setLevel(level)
    if root_senders():
        return True
    if not os.environ.get("LOGAGG_SOCKET"):
        return False
    log_calls.install()
    celery.install()
    running_task.install()
    try:
        handler = RootHandler()
    except (OSError, ValueError):
        return False
    place = RootPlace(handler, reaches_log, root)
    place.place()
    place.watch()
    QueueHandlers(handler, reaches_log)
    return True


def reaches_log(handler: logging.Handler) -> bool:
    """Whether a handler's records get to the consumer where no output is captured.

    By itself, or as those that a `MemoryHandler` passes on.
    """
    return isinstance(getattr(handler, "target", handler), Handler)
