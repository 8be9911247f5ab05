"""The task that runs, on each record: of rq, dramatiq and huey; and the greenlet.

rq itself knows which task runs. Of the others the method with which a worker runs one
task is wrapped, and notes it in a context variable. That holds in processes, threads,
greenlets and in the coroutines of a task.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from types import ModuleType
from typing import Any

from logagg.client import handler
from logagg.integrations.import_hooks import when_imported

__all__ = ["install", "task_fields"]

Fields = dict[str, Any]

_running: ContextVar[Fields | None] = ContextVar("logagg_task", default=None)
_installed = False


def install() -> None:
    """Add these fields from now on; may be called before the libraries are imported."""
    global _installed
    if _installed:
        return
    _installed = True
    for module, (kind, method, describe) in _QUEUES.items():
        when_imported(module, partial(_wrap, kind, method, describe))
    when_imported("rq.job", lambda _: handler.add_running(_of_rq))
    when_imported("gevent", lambda _: handler.add_running(_greenlet))


def task_fields(
    identifier: object, name: object, retries: int = 0, left: int | None = 0
) -> Fields:
    """The fields of a task, under the names that the tasks of all queues have.

    Args:
        identifier: The queue's own.
        name: The task's name, as the queue has it.
        retries: How often it has been retried; 0 is left out.
        left: How often it may still be retried, of a queue that counts these; 0 or None
            is left out.
    """
    fields: Fields = {"task_id": identifier, "task_name": name}
    if retries:
        fields["task_retries"] = retries
    if left:
        fields["task_retries_left"] = left
    return fields


def _of_rq() -> Fields | None:
    job = sys.modules["rq.job"].get_current_job()
    if job is None:
        return None
    return task_fields(job.id, job.func_name, left=job.retries_left)


def _of_dramatiq(_: Any, message: Any, *__: Any) -> Fields:
    retries = message.options.get("retries", 0)
    return task_fields(message.message_id, message.actor_name, retries)


def _of_huey(_: Any, task: Any, *__: Any) -> Fields:
    return task_fields(task.id, task.name, left=task.retries)


_QUEUES: dict[str, tuple[str, str, Callable[..., Fields]]] = {
    "dramatiq.worker": ("WorkerThread", "process_message", _of_dramatiq),
    "huey.api": ("Huey", "execute", _of_huey),
}
"""By module: the class and the method that run one task, and what describes it."""


def _wrap(
    kind: str, method: str, describe: Callable[..., Fields], module: ModuleType
) -> None:
    original = getattr(getattr(module, kind), method)

    @wraps(original)
    def run(*args: Any, **options: Any) -> Any:
        try:
            fields = describe(*args, **options)
        except Exception:  # noqa: BLE001 - the queue reports a task that is broken
            fields = None
        token = _running.set(fields)
        try:
            return original(*args, **options)
        finally:
            _running.reset(token)

    setattr(getattr(module, kind), method, run)
    handler.add_running(_running.get)


def _greenlet() -> Fields | None:
    """gevent's name of a greenlet. The main one has none, and the hub logs nothing."""
    name = getattr(sys.modules["gevent"].getcurrent(), "name", None)
    return {"greenlet": name} if name else None
