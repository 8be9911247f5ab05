"""Start of a Python worker: prepares the process, then runs the program as python does.

Run by its path. It takes its own directory off `sys.path` before anything else, so no
module of the program is shadowed, and leaves exactly what `python app.py` has:
`sys.argv`, `sys.path[0]`, a `__main__` with the program's `__file__`, `__spec__` and
loader (so `multiprocessing` finds it), the working directory, and tracebacks that begin
in the program.

It adds: the time of each line on stdout and stderr (`timestamped_stdio`), a
`logagg.Handler` of the root logger (`console_records`), faulthandler, which also answers
a signal with all stacks, `logagg.worker`, shared ports (`patch_socket`), and one record
for an exception that ends the program. What the program prints or logs of its stack
begins in the program, too.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import faulthandler
import logging
import os
import runpy
import socket
import traceback
import types
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from itertools import takewhile
from typing import Any

from logagg.integrations import console_records, excepthooks
from logagg.integrations.printing import program_hooks, timestamped_stdio
from logagg.platform.processes import die_with_parent, stack_signal
from logagg.supervisor.child import (
    patch_socket,
    patch_unlink,
    task_runner,
)
from logagg.supervisor.child.launch_spec import LaunchSpec
from logagg.supervisor.child.worker import Worker

__all__ = ["main"]

_TRACE_CHARACTERS = 16_000


def main() -> None:
    """Become the worker and run the program; returns or raises as the program does."""
    spec = LaunchSpec.take()
    die_with_parent(spec.parent)
    faulthandler.enable()
    faulthandler.register(stack_signal(), all_threads=True)
    spec.place_descriptors(inheritable=False)
    os.environ["LOGAGG_SLOT_PID"] = str(os.getpid())
    timestamped_stdio.install_worker()
    traceback.walk_stack = _walking(traceback.walk_stack)
    worker = Worker(spec)
    console_records.install_worker(spec.level)

    patch_socket.install(spec.listeners, worker)
    shared_paths = [d.host for d in spec.listeners if d.family == socket.AF_UNIX]
    patch_unlink.keep_paths(shared_paths)
    task_runner.install(worker)
    worker.peer.send({"k": "online"})
    try:
        if spec.kind == "script":
            _run_script(spec.argv)
        elif spec.kind == "module":
            _run_module(spec.argv)
        task_runner.serve_after_program(only=spec.kind == "tasks")
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  it ends the program; reported
        _report(worker, error)
        raise SystemExit(1) from None


# ---- running the program ---------------------------------------------------------


def _fresh_main() -> dict[str, Any]:
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = module
    return module.__dict__


def _run_script(argv: list[str]) -> None:
    path = argv[0]
    sys.argv = argv
    if os.path.isdir(path) or _is_zip(path):
        sys.path.insert(0, path)
        _fresh_main()
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    file = os.path.abspath(path)
    loader = SourceFileLoader("__main__", file)
    names = _fresh_main()
    names.update(__file__=file, __loader__=loader, __cached__=None)
    if path.endswith(".pyc"):
        code = runpy._get_code_from_file(path)  # type: ignore[attr-defined]
        code = code[0] if isinstance(code, tuple) else code
    else:
        code = loader.source_to_code(loader.get_data(file), file)
    exec(code, names)  # noqa: S102  running the user's program is the task


def _run_module(argv: list[str]) -> None:
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    sys.argv = ["-m", *argv[1:]]
    _fresh_main()
    runpy._run_module_as_main(argv[0], alter_argv=True)  # type: ignore[attr-defined]


def _walking(original: Any) -> Any:
    """Let stacks (`stack_info=True`, `traceback.print_stack`) end before this module.

    By an iterator in C: the original counts frames to find where it was called.
    """

    def walk_stack(f: types.FrameType | None) -> Iterator[tuple[types.FrameType, int]]:
        return takewhile(_is_programs, original(f))

    return walk_stack


def _is_programs(place: tuple[types.FrameType, int]) -> bool:
    return place[0].f_code.co_filename != __file__


def _is_zip(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


# ---- an exception that ends the program ------------------------------------------


def _report(worker: Worker, error: BaseException) -> None:
    """Make one record of the exception, unless a sibling made the very same one.

    A program that replaced `sys.excepthook` (an error tracker does) has its hook called
    as python would; what it prints of the exception is left out.
    """
    trace = error.__traceback__
    while trace is not None and _internal(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    error = error.with_traceback(trace)
    text = "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]
    summary = excepthooks.summary(error)
    show = True
    try:
        answer, _ = worker.ask(
            {"k": "crash", "summary": summary, "trace": text}, timeout=2.0
        )
        show = bool(answer["show"])
    except Exception:  # noqa: BLE001, S110  then the trace is shown once more
        pass
    if not excepthooks.is_default(sys.excepthook):
        with program_hooks.reporting(error, "uncaught", logging.CRITICAL, wanted=show):
            sys.excepthook(type(error), error, trace)
        return
    if show:
        logging.getLogger("logagg").critical(
            "uncaught %s", summary, exc_info=(type(error), error, trace)
        )


def _internal(path: str) -> bool:
    return path == __file__ or path.startswith(("<frozen runpy", "<frozen importlib"))


if __name__ == "__main__":
    main()
