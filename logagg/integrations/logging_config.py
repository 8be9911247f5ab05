"""`logagg.logging_config`: complete dictionaries for `dictConfig`, by framework."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from logagg.errors import ConfigError

__all__ = ["logging_config"]

_UVICORN = ("uvicorn", "uvicorn.access")
_LOGGERS: dict[str, tuple[str, ...]] = {
    "aiohttp": (),
    "celery": (),
    "django": ("django.server",),
    "dramatiq": (),
    "fastapi": _UVICORN,
    "flask": (),
    "granian": ("_granian", "granian.access"),
    "gunicorn": ("gunicorn.error", "gunicorn.access"),
    "huey": (),
    "hypercorn": ("hypercorn.error", "hypercorn.access"),
    "rq": (),
    "starlette": _UVICORN,
    "uvicorn": _UVICORN,
    "waitress": (),
}
"""The loggers to which each framework adds handlers of its own; () where all propagate.

Each gets the handler itself and does not propagate, since servers rely on that:
gunicorn's uvicorn workers copy the handlers of `gunicorn.error`, uvicorn switches its
access log off by removing handlers.
"""


def logging_config(
    server: str | None = None,
    *,
    filename: str | os.PathLike[str] | None = None,
    sinks: Sequence[str] | str | None = None,
    level: int | str = "INFO",
    **options: Any,
) -> dict[str, Any]:
    """Make a complete configuration for `logging.config.dictConfig`.

    The root logger and the framework's loggers have one `logagg.Handler` and no other.
    With plain arguments it can be written as JSON, for `uvicorn --log-config`.

    Args:
        server: A web server or framework (`"gunicorn"`, `"uvicorn"`, `"hypercorn"`,
            `"granian"`, `"waitress"`, `"aiohttp"`, `"django"`, `"fastapi"`,
            `"starlette"`, `"flask"`) or a task queue (`"celery"`, `"rq"`,
            `"dramatiq"`, `"huey"`); None for a program without one.
        filename: As for `logagg.Handler`.
        sinks: As for `logagg.Handler`.
        level: Level of all these loggers.
        options: Further arguments of `logagg.Handler` (`maxBytes`, `overflow`, …).

    Raises:
        ConfigError: The server is unknown.
    """
    if server is not None and server not in _LOGGERS:
        known = ", ".join(map(repr, sorted(_LOGGERS)))
        raise ConfigError(f"no logging configuration for {server!r} (known: {known})")
    handler: dict[str, Any] = {"class": "logagg.Handler"}
    if filename is not None:
        handler["filename"] = os.fspath(filename)
    if sinks is not None:
        handler["sinks"] = sinks if isinstance(sinks, str) else list(sinks)
    handler |= options
    names = _LOGGERS[server] if server is not None else ()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"logagg": handler},
        "root": {"handlers": ["logagg"], "level": level},
        "loggers": {
            name: {"handlers": ["logagg"], "level": level, "propagate": False}
            for name in names
        },
    }
