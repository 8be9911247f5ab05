"""Patched `os.unlink`: the path of a shared Unix socket stays.

A server that listens on a Unix socket takes the path for its own: it removes a socket
that is left there, binds, changes the mode, and removes the path when it ends. Under
`logagg run` the path is the supervisor's, as the socket is, and siblings serve on it:
in a worker, removing it does nothing, as binding it puts the supervisor's socket there.
So the path is never missing, neither for clients nor for a sibling that starts just
then, and nothing has to wait for anything.

Only `os.remove` and `os.unlink` are answered so (`pathlib` and asyncio call these), for
exactly these paths. A server that removes them from another language is repaired by
`Listener.keep_path`, a moment later.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["keep_paths"]


def keep_paths(paths: list[str]) -> None:
    """Let this process, and what it forks, remove anything but these absolute paths."""
    if not paths:
        return
    kept = {os.path.realpath(path) for path in paths}
    names = {os.path.basename(path) for path in paths}
    for name in ("remove", "unlink"):
        replacement = _sparing(getattr(os, name), kept, names)
        setattr(os, name, replacement)
        # `shutil.rmtree` checks there whether it can work safely.
        os.supports_dir_fd.add(replacement)


def _sparing(
    real: Callable[..., None], kept: set[str], names: set[str]
) -> Callable[..., None]:
    """The function, for everything but the kept paths."""

    def sparing(path: Any, *, dir_fd: int | None = None) -> None:
        text = os.fsdecode(path)
        # The name first: it costs next to nothing for all the other files.
        shared = dir_fd is None and os.path.basename(text) in names
        if not shared or os.path.realpath(text) not in kept:
            real(path, dir_fd=dir_fd)

    sparing.__name__ = sparing.__qualname__ = real.__name__
    sparing.__doc__ = real.__doc__
    return sparing
