"""Run by every Python interpreter that a worker or `logagg.start` starts, at first.

It takes itself off the path, runs the `sitecustomize` that it stands in front of, and
waits for the program to import `logging`, or rich's tracebacks: only then is anything of
logagg loaded. It never fails and never prints: an interpreter without logagg, or of
another version, runs as it would. `LOGAGG_CHILDREN=no` in the environment switches it
off.
"""

import os
import sys
from importlib import import_module
from types import ModuleType

_waits = True


def _attach(_: ModuleType) -> None:
    global _waits
    if not _waits:
        return
    _waits = False
    try:
        from logagg.integrations import console_records  # not before `logging`

        level = os.environ.get("LOGAGG_LEVEL") or "INFO"
        console_records.install_interpreter(int(level) if level.isdecimal() else level)
    except Exception:  # noqa: BLE001, S110 - the program runs as without logagg
        pass


def _run_the_next() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import_module("sitecustomize")
    except ImportError:
        if ours is not None:
            sys.modules["sitecustomize"] = ours


_run_the_next()
_wanted = os.environ.get("LOGAGG_CHILDREN", "").lower() not in (
    "no",
    "0",
    "false",
    "off",
)
if _wanted and os.environ.get("LOGAGG_SOCKET"):
    try:
        from logagg.integrations.import_hooks import when_imported
    except Exception:  # noqa: BLE001, S110 - see above
        pass
    else:
        for _name in ("logging", "rich.traceback"):
            when_imported(_name, _attach)
