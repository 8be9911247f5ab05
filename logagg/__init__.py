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

    from logagg.client.handler import Handler as Handler
    from logagg.errors import ReloadFailed as ReloadFailed
    from logagg.errors import TaskFailed as TaskFailed
    from logagg.integrations.inherit import attach as attach
    from logagg.integrations.installation import install as install
    from logagg.integrations.installation import uninstall as uninstall
    from logagg.integrations.logging_config import logging_config as logging_config
    from logagg.integrations.parent import start as start
    from logagg.supervisor.child.task_runner import task as task
    from logagg.supervisor.child.worker import Worker
    from logagg.supervisor.child.worker import broadcast as broadcast
    from logagg.supervisor.child.worker import on_shutdown as on_shutdown
    from logagg.supervisor.cluster import Cluster as Cluster

    __version__: str
    is_primary: bool
    worker: Worker | None

__all__ = [
    "Cluster",
    "Handler",
    "ReloadFailed",
    "TaskFailed",
    "__version__",
    "attach",
    "broadcast",
    "install",
    "is_primary",
    "logging_config",
    "on_shutdown",
    "start",
    "task",
    "uninstall",
    "worker",
]

_PLACES = {
    "attach": "logagg.integrations.inherit",
    "Cluster": "logagg.supervisor.cluster",
    "Handler": "logagg.client.fast.native",
    "ReloadFailed": "logagg.errors",
    "TaskFailed": "logagg.errors",
    "broadcast": "logagg.supervisor.child.worker",
    "install": "logagg.integrations.installation",
    "logging_config": "logagg.integrations.logging_config",
    "on_shutdown": "logagg.supervisor.child.worker",
    "start": "logagg.integrations.parent",
    "task": "logagg.supervisor.child.task_runner",
    "uninstall": "logagg.integrations.installation",
}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is not None:
        from importlib import import_module  # only for a name that is used

        value = getattr(import_module(place), name)
    elif name in ("worker", "is_primary"):
        # Not kept: a forked child of a worker is none.
        inside = sys.modules.get("logagg.supervisor.child.worker")
        found = None if inside is None else inside.current()
        return found if name == "worker" else found is None
    elif name == "__version__":
        from importlib.metadata import version  # slow, and rarely wanted

        value = version("logagg-service")
    else:
        raise AttributeError(f"module 'logagg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
