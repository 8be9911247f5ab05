"""`--watch`: reload when the program's files change. For development.

A save that fails (a syntax error, an import) is refused as a broken release is: its
traceback is in the log, the old workers serve on. When there are none, since the program
was broken from the start or crashed meanwhile, the run stays and retries; the next save
is tried at once.
"""

from __future__ import annotations

import os
from pathlib import Path

from logagg.core.event import Event
from logagg.errors import ConfigError, ReloadFailed
from logagg.ipc.paths import is_file
from logagg.sinks import parse
from logagg.supervisor.supervisor import Supervisor

__all__ = ["check", "watch"]


def check() -> None:
    """Refuse early when the extra is not installed.

    Raises:
        ConfigError: It names the package to install.
    """
    try:
        import watchfiles  # noqa: F401  # an extra
    except ImportError:
        raise ConfigError(
            "--watch needs watchfiles: pip install 'logagg-service[watch]'"
        ) from None


async def watch(supervisor: Supervisor) -> None:
    """Reload at each change of a Python file below the watched directories.

    Other files, hidden directories, caches and virtual environments are not watched,
    nor is any file that a sink of this run writes: a log line never causes a reload.
    """
    from watchfiles import Change, PythonFilter, awatch  # an extra

    logs = [_log_stem(url) for url in supervisor.options.sinks]
    standard = PythonFilter()

    def wanted(change: Change, path: str) -> bool:
        if any(stem and os.path.realpath(path).startswith(stem) for stem in logs):
            return False
        return standard(change, path)

    async for changes in awatch(*supervisor.options.watch, watch_filter=wanted):
        names = sorted({Path(path).name for _, path in changes})
        supervisor.events.record(
            "info", Event.WATCH, f"changed: {', '.join(names[:5])}"
        )
        try:
            await supervisor.reload()
        except ReloadFailed:
            pass  # recorded; the next change may repair it


def _log_stem(url: str) -> str:
    parsed = parse(url)
    return str(Path(parsed.target).resolve()) if is_file(parsed.scheme) else ""
