"""One ordered log for a Python application that runs in several processes.

    import logging, logagg
    logging.basicConfig(handlers=[logagg.Handler("app.log")], level="INFO")

Names are loaded when they are first used, so that `import logagg` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the name that type checkers know; typing is not loaded for it

if TYPE_CHECKING:
    from typing import Any

    from logagg.handler import Handler as Handler
    from logagg.start import start as start

    __version__: str

__all__ = ["Handler", "__version__", "start"]

_PLACES = {"Handler": "logagg.handler", "start": "logagg.start"}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is not None:
        from importlib import import_module

        value = getattr(import_module(place), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("logagg-service")
    else:
        raise AttributeError(f"module 'logagg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
