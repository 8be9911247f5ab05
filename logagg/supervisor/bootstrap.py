"""The first thing that runs in a Python worker: then the program, as if run by python.

Run by its path. It takes its own directory off `sys.path` before anything else, so no
module of the program is shadowed, and leaves behind exactly what `python app.py` has:
`sys.argv`, `sys.path[0]`, a `__main__` with the program's `__file__`, `__spec__` and
loader (so `multiprocessing` finds it), the working directory, and tracebacks that begin
in the program.

What it adds: lines on stdout and stderr carry their time (see `stamped`), the root
logger has a `logagg.Handler`, faulthandler is on and answers a signal with all stacks,
`logagg.worker` exists, ports are shared (see `doors`), and an exception that ends the
program becomes one structured record.
"""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import faulthandler
import logging
import os
import socket
import types
from typing import Any

from logagg.supervisor import stamped
from logagg.supervisor.inside import Worker
from logagg.supervisor.layers import die_with_parent
from logagg.supervisor.start import Start

__all__ = ["main", "stack_signal"]

_TRACE_CHARACTERS = 16_000


def stack_signal() -> int:
    """The signal that makes a worker write all its stacks to stderr."""
    import signal

    return signal.SIGRTMAX - 1


def main() -> None:
    """Become the worker and run the program; returns or raises as the program does."""
    start = Start.take()
    die_with_parent(start.parent)
    faulthandler.enable()
    faulthandler.register(stack_signal(), all_threads=True)
    start.settle(inheritable=False)
    os.environ["LOGAGG_SLOT_PID"] = str(os.getpid())
    stamped.install()
    worker = Worker(start)
    _wire_root(start.level)

    from logagg.supervisor import doors, kept, taskwork

    doors.install(start.doors, worker)
    kept.keep_paths([d.host for d in start.doors if d.family == socket.AF_UNIX])
    taskwork.install(worker)
    worker.tell({"k": "online"})
    try:
        if start.kind == "script":
            _run_script(start.argv)
        elif start.kind == "module":
            _run_module(start.argv)
        taskwork.serve_after_program(only=start.kind == "tasks")
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001  it ends the program; reported
        _report(worker, error)
        raise SystemExit(1) from None


def _wire_root(level: str) -> None:
    """Give the root logger a handler, and let `basicConfig(level=…)` still work.

    `basicConfig` does nothing when the root logger has a handler; a program that only
    wants its level set must get that, also when we were there first.
    """
    from logagg.handler import Handler

    handler = Handler()
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    original = logging.basicConfig

    def basic_config(**options: Any) -> None:
        ours = root.handlers == [handler] and not options.get("force")
        original(**options)
        if ours and options.get("level") is not None:
            root.setLevel(options["level"])

    basic_config.__doc__ = original.__doc__
    logging.basicConfig = basic_config


# ---- running the program ---------------------------------------------------------


def _fresh_main() -> dict[str, Any]:
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = module
    return module.__dict__


def _run_script(argv: list[str]) -> None:
    import runpy
    from importlib.machinery import SourceFileLoader

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
    import runpy

    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    sys.argv = ["-m", *argv[1:]]
    _fresh_main()
    runpy._run_module_as_main(argv[0], alter_argv=True)  # type: ignore[attr-defined]


def _is_zip(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


# ---- an exception that ends the program ------------------------------------------


def _report(worker: Worker, error: BaseException) -> None:
    """Make one record of the exception, unless a sibling made the very same one.

    A program that replaced `sys.excepthook` (an error tracker, say) has its hook called
    as python would.
    """
    import traceback

    trace = error.__traceback__
    while trace is not None and _internal(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    error = error.with_traceback(trace)
    text = "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]
    summary = _summary(error)
    show = True
    try:
        answer, _ = worker.ask(
            {"k": "crash", "summary": summary, "trace": text}, [], timeout=2.0
        )
        show = bool(answer["show"])
    except Exception:  # noqa: BLE001, S110  then the trace is shown once more
        pass
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(type(error), error, trace)
        return
    if show:
        logging.getLogger("logagg").critical(
            "uncaught %s", summary, exc_info=(type(error), error, trace)
        )


def _summary(error: BaseException) -> str:
    """The exception in one line, whatever its text holds."""
    kind = type(error)
    plain = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error).strip().partition("\n")[0].rstrip()
    except Exception:  # noqa: BLE001  a broken __str__ may raise anything
        text = "<unprintable>"
    return f"{name}: {text}"[:1000] if text else name


def _internal(path: str) -> bool:
    return path == __file__ or path.startswith(("<frozen runpy", "<frozen importlib"))


if __name__ == "__main__":
    main()
