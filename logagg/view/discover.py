"""Which consumer is meant when none is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from logagg.errors import ConfigError, ConsumerGone, LogaggError
from logagg.view import live

_SHAPING = (
    "level",
    "match",
    "fields",
    "drop",
    "sample",
    "collapse",
    "redact",
    "format",
)


def finder(socket_path: str | None) -> Callable[[], str | None]:
    """A function that names the socket to connect to, or None while there is none.

    That is the one given, or `$LOGAGG_SOCKET`; else the one consumer that runs; of
    several the one that writes a file below the current directory.

    Raises:
        ConfigError: (by the function) Several run and none is nearer than the others.
    """
    named = socket_path or os.environ.get("LOGAGG_SOCKET")
    if named:
        return lambda: named

    def find() -> str | None:
        from logagg.address import listening

        found = [str(path) for path in listening()]
        return choose(found, os.getcwd()) if len(found) > 1 else next(iter(found), None)

    return find


def choose(paths: Sequence[str], folder: str) -> str:
    """The consumer of a directory.

    Raises:
        ConfigError: None or several have a file there; the message lists them all.
    """
    states = {path: _state(path) for path in paths}
    near = [
        path
        for path, state in states.items()
        if any(_below(file, folder) for file in files_of(state))
    ]
    if len(near) == 1:
        return near[0]
    listed = "\n".join(f"  --socket {p}  {describe(s)}" for p, s in states.items())
    raise ConfigError(f"{len(paths)} consumers run; name one of them:\n{listed}")


def _state(path: str) -> dict[str, Any]:
    try:
        return live.status(path)
    except LogaggError:
        return {}


def _below(file: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(file), folder]) == folder


def files_of(state: dict[str, Any]) -> list[str]:
    """The files that a consumer writes, by its status."""
    urls = [str(sink.get("url", "")) for sink in state.get("sinks", [])]
    paths = [
        url.removeprefix("file:").partition("?")[0]
        for url in urls
        if url.startswith("file:")
    ]
    return [path for path in paths if os.path.isabs(path)]


def complete_files(find: Callable[[], str | None]) -> list[str]:
    """A file that holds all that the consumer lets through, or [] when there is none."""
    path = find()
    state = _state(path) if path is not None else {}
    whole = [
        sink
        for sink in state.get("sinks", [])
        if not any(f"{name}=" in str(sink.get("url", "")) for name in _SHAPING)
    ]
    return files_of({"sinks": whole})[:1]


def describe(state: dict[str, Any]) -> str:
    """A consumer in a few words."""
    if not state:
        return "(does not answer)"
    sinks = ", ".join(str(sink.get("url", "?")) for sink in state.get("sinks", []))
    return (
        f"pid {state.get('pid', '?')}, {len(state.get('workers', []))} workers, {sinks}"
    )


def file_of_consumer(socket_path: str | None) -> list[str]:
    """The first file that the consumer in question writes.

    Raises:
        ConsumerGone: None runs.
        ConfigError: It writes no file.
    """
    path = finder(socket_path)()
    if path is None:
        raise ConsumerGone("no logagg is running here; name a file: --file PATH")
    found = files_of(live.status(path))
    if not found:
        raise ConfigError(f"the consumer at {path} writes no file; name one: --file")
    return found[:1]
