"""gunicorn's dictionary without gunicorn's loggers: they get the root logger's handlers.

gunicorn adds its own loggers to a `logconfig_dict` that has none. They name handlers
that such a dictionary lacks, and gunicorn would not start. An entry that the program
wrote is left as it is.

The first that is known of all this is that `dictConfig`, which gunicorn has called,
makes a `logagg.Handler`; the loggers come after the handlers.
"""

from __future__ import annotations

import sys
from logging.config import DictConfigurator
from typing import Any

__all__ = ["install"]

_wrapped = False


def install() -> None:
    """Let dictionaries with a `root` alone start gunicorn; call it once it is loaded."""
    global _wrapped
    if _wrapped:
        return
    _wrapped = True
    original = DictConfigurator.configure_logger

    def configure_logger(
        self: Any, name: str, config: Any, incremental: bool = False
    ) -> None:
        original(self, name, _usable(self.config, name, config), incremental)

    DictConfigurator.configure_logger = configure_logger  # type: ignore[method-assign]


def _usable(whole: Any, name: str, entry: Any) -> Any:
    """The entry of a logger, with the root logger's handlers if it is gunicorn's own.

    Without propagation: gunicorn's uvicorn workers share these handlers and do not
    propagate either.
    """
    if not name.startswith("gunicorn."):
        return entry
    defaults = getattr(sys.modules.get("gunicorn.glogging"), "CONFIG_DEFAULTS", {})
    if entry != defaults.get("loggers", {}).get(name):
        return entry
    known = whole.get("handlers", {})
    if all(each in known for each in entry["handlers"]):
        return entry
    handlers = whole.get("root", {}).get("handlers", [])
    return {**entry, "handlers": handlers, "propagate": False}
