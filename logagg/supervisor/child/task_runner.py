"""The worker's side of tasks: a registry of names, and pulling one task at a time.

A worker requests its first task with "idle"; each answer requests the next. So only
idle workers receive work, and no task waits for a busy one. Tasks run in the main thread
when the program has ended (a file that only defines tasks), otherwise in one thread
beside it.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from logagg.errors import ConfigError
from logagg.supervisor.child.worker import Worker
from logagg.supervisor.messaging.frames import Frame, encode_value
from logagg.supervisor.messaging.peer import error_text

__all__ = ["TaskInfo", "install", "serve_after_program", "task", "task_info"]

F = TypeVar("F", bound=Callable[..., Any])
_TRACE_CHARACTERS = 16_000


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """How a task is known and treated.

    Attributes:
        name: The name that submitter and worker agree on.
        retries: How often it runs again after its worker died; not after it raised.
        timeout: Seconds that one run may take; None: any time.
    """

    name: str
    retries: int = 0
    timeout: float | None = None


_registry: dict[str, Callable[..., Any]] = {}
_runner: TaskRunner | None = None


class TaskCancelled(BaseException):
    """Raised inside a running task when its caller gave up on it."""


def task(
    name: str | None = None, *, retries: int = 0, timeout: float | None = None
) -> Callable[[F], F]:
    """Register a function as a task, as a decorator: `@logagg.task()`.

    The function stays as it was and can be called directly. Arguments and result
    travel as JSON. Coroutine functions are run to their end on a loop of their own.

    Args:
        name: How submitter and worker call it; by default its `__qualname__`.
        retries: How often it runs again when its *worker dies*; it must then be safe to
            run twice. An exception that it raises is an answer and is not retried.
        timeout: Seconds that one run may take; then it fails with `TimeoutError` and
            the run is cancelled. None: any time.

    Raises:
        ConfigError: The name is taken by another function.
    """

    def register(function: F) -> F:
        info = TaskInfo(name or function.__qualname__, retries, timeout)
        known = _registry.get(info.name)
        if known is not None and known.__code__ is not function.__code__:
            raise ConfigError(f"two tasks are named {info.name!r}; give one a name=")
        _registry[info.name] = function
        function.__logagg_task__ = info  # type: ignore[attr-defined]
        if _runner is not None and _runner.program_is_up:
            _runner.serve_beside()
        return function

    if callable(name):
        raise ConfigError("write @logagg.task() with parentheses")
    return register


def task_info(function: Callable[..., Any] | str) -> TaskInfo:
    """How a function, or a task's name, is submitted.

    Raises:
        ConfigError: A function that workers could not find by name.
    """
    if isinstance(function, str):
        return TaskInfo(function)
    info = getattr(function, "__logagg_task__", None)
    if isinstance(info, TaskInfo):
        return info
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "<")
    if module in (None, "__main__") or "<" in name or inspect.ismethod(function):
        raise ConfigError(
            f"{function!r} cannot be found by workers: decorate it with @logagg.task() "
            "in the file that the workers run, or put it at the top of a module"
        )
    return TaskInfo(f"{module}:{name}")


def _find(name: str) -> Callable[..., Any]:
    function = _registry.get(name)
    if function is not None:
        return function
    module, colon, path = name.partition(":")
    if not colon:
        known = ", ".join(sorted(_registry)) or "none"
        raise LookupError(f"no task is named {name!r} in this worker; known: {known}")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


class TaskRunner:
    """Runs one task after the other; on one thread, from `serve` on."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.program_is_up = False
        self._tasks: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the thread, the current task, _started
        self._thread: int | None = None
        self._current: int | None = None
        self._started = False
        worker.on_task = self._handle
        worker.on_ready = self._program_up

    def _program_up(self) -> None:
        self.program_is_up = True
        if _registry:
            self.serve_beside()

    def serve_beside(self) -> None:
        """Serve tasks in a thread beside the program."""
        if self.claim():
            threading.Thread(
                target=self.serve, name="logagg-tasks", daemon=True
            ).start()

    def claim(self) -> bool:
        """Whether the caller's thread may serve, since no other does."""
        with self._lock:
            mine, self._started = not self._started, True
        return mine

    def _handle(self, frame: Frame) -> None:
        if frame["k"] == "task":
            self._tasks.put(frame)
            return
        with self._lock:
            if self._current == frame["q"] and self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(TaskCancelled)
                )

    def serve(self) -> None:
        """Run tasks for as long as the process lives."""
        self._thread = threading.get_ident()
        self.worker.peer.send({"k": "idle"})
        while True:
            task = self._tasks.get()
            try:
                answer = self._run(task)
            except TaskCancelled:  # raised after the task's own end
                answer = {"cancelled": True}
            self.worker.peer.answer(task, answer)

    def _run(self, frame: Frame) -> Frame:
        """Run a task; the content of the answer: its value, error or cancellation."""
        task = frame["b"]
        with self._lock:
            self._current = frame["q"]
        try:
            value = _find(task["name"])(*task["args"], **task["kwargs"])
            if inspect.iscoroutine(value):
                import asyncio  # only coroutine functions pay for it

                value = asyncio.run(value)
            return {"b": encode_value(value)}
        except TaskCancelled:
            return {"cancelled": True}
        except BaseException as error:  # noqa: BLE001  it is the caller's to handle
            return _described(error)
        finally:
            with self._lock:
                self._current = None


def _described(error: BaseException) -> Frame:
    text = error_text(error)
    trace = error.__traceback__
    if trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(error.with_traceback(trace))
        full = "".join(lines).encode("utf-8", "backslashreplace").decode()
    except Exception:  # noqa: BLE001
        full = text
    return {
        "type": type(error).__qualname__,
        "message": text[:4000],
        "trace": full[-_TRACE_CHARACTERS:],
    }


def install(worker: Worker) -> None:
    """Make this process able to serve tasks."""
    global _runner
    _runner = TaskRunner(worker)


def serve_after_program(*, only: bool) -> None:
    """Serve the tasks that the ended program defined, in the main thread.

    Returns at once when there is nothing to serve.

    Args:
        only: There was no program: serve functions of importable modules.
    """
    if _runner is None or not (only or _registry):
        return
    if _runner.claim():
        _runner.worker.ready()
        _runner.serve()
    else:
        threading.Event().wait()
