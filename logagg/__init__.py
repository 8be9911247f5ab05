"""One ordered log for a Python application that runs in several processes.

    import logging, logagg
    logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")

Names are loaded when they are first used, so that `import logagg` costs next to nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the name that type checkers know; typing is not loaded for it

if TYPE_CHECKING:
    from typing import Any

    from logagg.handler import Handler as Handler
    from logagg.start import start as start
    from logagg.supervisor.cluster import Cluster as Cluster
    from logagg.supervisor.inside import Worker
    from logagg.supervisor.inside import broadcast as broadcast
    from logagg.supervisor.inside import on_shutdown as on_shutdown
    from logagg.supervisor.slots import ReloadFailed as ReloadFailed
    from logagg.supervisor.tasks import TaskFailed as TaskFailed
    from logagg.supervisor.taskwork import task as task

    __version__: str
    is_primary: bool
    worker: Worker | None

__all__ = [
    "Cluster",
    "Handler",
    "ReloadFailed",
    "TaskFailed",
    "__version__",
    "broadcast",
    "is_primary",
    "on_shutdown",
    "start",
    "task",
    "worker",
]

_PLACES = {
    "Cluster": "logagg.supervisor.cluster",
    "Handler": "logagg.handler",
    "ReloadFailed": "logagg.supervisor.slots",
    "TaskFailed": "logagg.supervisor.tasks",
    "broadcast": "logagg.supervisor.inside",
    "on_shutdown": "logagg.supervisor.inside",
    "start": "logagg.start",
    "task": "logagg.supervisor.taskwork",
}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is not None:
        from importlib import import_module

        value = getattr(import_module(place), name)
    elif name in ("worker", "is_primary"):
        # Not kept: a forked child of a worker is none.
        inside = sys.modules.get("logagg.supervisor.inside")
        found = None if inside is None else inside.current()
        return found if name == "worker" else found is None
    elif name == "__version__":
        from importlib.metadata import version

        value = version("logagg-service")
    else:
        raise AttributeError(f"module 'logagg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
