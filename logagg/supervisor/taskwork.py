"""The worker's side of tasks: a registry of names, and pulling one task at a time.

A worker asks for a task when it has none ("idle"), and gets one; so only idle workers
receive work and a task waits for no busy one. Tasks run in the main thread when the
program has ended (a file that only defines tasks), otherwise in one thread beside it.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from logagg.errors import ConfigError, WireError
from logagg.supervisor.channel import Frame, encode
from logagg.supervisor.inside import Worker

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
_runner: _Runner | None = None


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
            _runner.wanted()
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


class _Runner:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tasks: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._current: int | None = None
        self._started = False
        self.program_is_up = False
        worker.on_task = self._heard
        worker.on_ready = self._up

    def _up(self) -> None:
        self.program_is_up = True
        if _registry:
            self.wanted()

    def wanted(self) -> None:
        """Serve tasks in a thread beside the program, which is up and has some."""
        with self._lock:
            if self._started:
                return
            self._started = True
        threading.Thread(target=self.serve, name="logagg-tasks", daemon=True).start()

    def claim(self) -> bool:
        """Whether the caller's thread may serve, since no other does."""
        with self._lock:
            mine, self._started = not self._started, True
        return mine

    def _heard(self, frame: Frame) -> None:
        if frame["k"] == "task":
            self._tasks.put(frame)
            return
        with self._lock:
            if self._current == frame["task"] and self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(TaskCancelled)
                )

    def serve(self) -> None:
        self._thread = threading.get_ident()
        self._worker.tell({"k": "idle"})
        while True:  # a result says at once that the next task is welcome
            frame = self._tasks.get()
            try:
                answer = self._run(frame)
            except TaskCancelled:
                answer = encode({"k": "result", "task": frame["task"], "cancelled": 1})
            try:
                self._worker._transmit(answer, [])
            except OSError:
                return

    def _run(self, frame: Frame) -> bytes:
        number = frame["task"]
        head = {"k": "result", "task": number}
        with self._lock:
            self._current = number
        try:
            function = _find(frame["name"])
            value = function(*frame["args"], **frame["kwargs"])
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
        except TaskCancelled:
            return encode({**head, "cancelled": 1})
        except BaseException as error:  # noqa: BLE001  it is the caller's to handle
            return encode({**head, **_described(error)})
        finally:
            with self._lock:
                self._current = None
        try:
            return encode({**head, "value": value})
        except WireError as error:
            return encode({**head, **_described(error)})


def _described(error: BaseException) -> Frame:
    try:
        text = str(error)
        text.encode()
    except Exception:  # noqa: BLE001  a broken __str__ may raise anything
        text = "<unprintable>"
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
    _runner = _Runner(worker)


def serve_after_program(*, only: bool) -> None:
    """The program has ended: if it defined tasks, serve them in the main thread.

    Returns at once when there is nothing to serve. `only`: there was no program.
    """
    if _runner is None or not (only or _registry):
        return
    if _runner.claim():
        _runner._worker.ready()
        _runner.serve()
    else:
        threading.Event().wait()
