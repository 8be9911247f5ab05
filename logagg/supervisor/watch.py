"""`--watch`: reload when the program's files change. For development.

A save that does not work (a syntax error, an import that fails) is refused as a broken
release is: its traceback is in the log, the old workers serve on. When there are none,
since the program was broken from the start or crashed meanwhile, the run stays and goes
on trying; the next save is tried at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from logagg.errors import ConfigError
from logagg.sinks import parse
from logagg.supervisor.slots import ReloadFailed

if TYPE_CHECKING:
    from logagg.supervisor.supervisor import Supervisor

__all__ = ["check", "watch"]


def check() -> None:
    """Refuse early when the extra is not installed.

    Raises:
        ConfigError: It says what to install.
    """
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--watch needs watchfiles: pip install 'logagg-service[watch]'"
        ) from None


async def watch(supervisor: Supervisor) -> None:
    """Reload at each change of a Python file below the watched directories.

    Other files, hidden directories, caches and virtual environments are not looked at,
    nor is any file that a sink of this run writes: a log line never causes a reload.
    """
    from watchfiles import Change, PythonFilter, awatch

    logs = [_log_stem(url) for url in supervisor.options.sinks]
    standard = PythonFilter()

    def wanted(change: Change, path: str) -> bool:
        if any(stem and os.path.realpath(path).startswith(stem) for stem in logs):
            return False
        return standard(change, path)

    async for changes in awatch(*supervisor.options.watch, watch_filter=wanted):
        names = sorted({Path(path).name for _, path in changes})
        supervisor.report.say("info", "watch", f"changed: {', '.join(names[:5])}")
        try:
            await supervisor.reload()
        except ReloadFailed:
            pass  # reported; the next change may mend it


def _log_stem(url: str) -> str:
    parsed = parse(url)
    return str(Path(parsed.target).resolve()) if parsed.scheme == "file" else ""
