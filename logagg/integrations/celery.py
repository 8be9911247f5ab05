"""Records of Celery: handlers that survive its set-up, and the task's id and name.

Celery's worker (and beat) empties the handlers of the root logger and of its own
loggers, unless `worker_hijack_root_logger` is off, and puts console handlers there; the
loggers of `get_task_logger` do not propagate to the root logger. After its set-up the
`logagg.Handler`s are put back, and those of the root logger also on `celery.task`.
Celery's own handlers and levels stay. A program that configures logging in Celery's
`setup_logging` signal is left alone.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from logagg.client import handler
from logagg.client.handler import Handler
from logagg.integrations.handlers.root_handler import root_senders
from logagg.integrations.import_hooks import when_imported
from logagg.integrations.running_task import task_fields

__all__ = ["install"]

_REPLACED = ("", "celery", "celery.task", "celery.redirected")
_NO_TASK = "???"  # of Celery's TaskFormatter, which writes it into the record
_wrapped = False
_afterwards: list[Callable[[], None]] = []


def install(then: Callable[[], None] | None = None) -> None:
    """Keep the records of Celery from now on; may be called before it is imported.

    Args:
        then: Called after each set-up of logging by Celery.
    """
    if then is not None:
        _afterwards.append(then)
    if not _wrapped:
        when_imported("celery.app.log", _connect)


def _connect(module: ModuleType) -> None:
    global _wrapped
    if _wrapped:
        return
    _wrapped = True
    original = module.Logging.setup_logging_subsystem

    def setup_logging_subsystem(self: Any, *args: Any, **options: Any) -> Any:
        before = {name: _handlers(name) for name in _REPLACED}
        senders = root_senders()
        receivers = original(self, *args, **options)
        if receivers is not None and not receivers:  # Celery itself has set it up
            _put_back(before, senders)
        for call in _afterwards:
            call()
        return receivers

    setup_logging_subsystem.__doc__ = original.__doc__
    module.Logging.setup_logging_subsystem = setup_logging_subsystem
    handler.add_context(_own_fields)
    handler.add_running(_running)


def _handlers(name: str) -> list[logging.Handler]:
    found = logging.getLogger(name).handlers
    return [each for each in found if isinstance(each, Handler)]


def _put_back(
    before: Mapping[str, list[logging.Handler]], senders: list[Handler]
) -> None:
    for name, handlers in before.items():
        for each in handlers:
            logging.getLogger(name).addHandler(
                each
            )  # does nothing for one that is there
    tasks = logging.getLogger("celery.task")
    if not tasks.propagate:
        for each in senders:
            tasks.addHandler(each)


def _own_fields(record: logging.LogRecord, fields: dict[str, Any]) -> None:
    """Take apart what Celery puts into its own records."""
    for name in ("task_id", "task_name"):
        if fields.get(name) == _NO_TASK:
            del fields[name]
    about = record.__dict__.get("data")
    if record.name.startswith("celery.") and isinstance(about, Mapping):
        _take_apart(about, fields)


def _running() -> dict[str, Any] | None:
    """The id, name and retries of the task that runs."""
    task = sys.modules["celery._state"].get_current_task()
    request = task.request if task is not None else None
    if request is None or request.id is None:
        return None
    return task_fields(request.id, task.name, request.retries)


def _take_apart(about: Mapping[str, Any], fields: dict[str, Any]) -> None:
    """Replace Celery's `data` by fields. What else it holds is in message and exception,
    except for the arguments, which Celery does not print either: they may be secrets.
    """
    if not (about.get("id") and about.get("name")):
        return
    fields.pop("data", None)
    fields.setdefault("task_id", about["id"])
    fields.setdefault("task_name", about["name"])
    runtime = about.get("runtime")
    if isinstance(runtime, float):
        fields.setdefault("duration_ms", round(runtime * 1000, 3))
