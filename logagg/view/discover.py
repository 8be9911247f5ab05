"""The consumer to view when none is named, and the files that it writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from logagg.errors import ConfigError, ConsumerGone, LogaggError
from logagg.ipc import consumer_client
from logagg.ipc.paths import listening

# Options of a sink with which its file is not the whole stream.
_PARTIAL = (
    "level", "match", "fields", "drop", "sample", "collapse", "redact", "format",
)  # fmt: skip


def finder(socket_path: str | None) -> Callable[[], str | None]:
    """Make a function that returns the socket to connect to, or None for none.

    That is the one given, or `$LOGAGG_SOCKET`; else that of the only consumer; of
    several the one that writes a file below the current directory.

    Raises:
        ConfigError: (by the function) Not exactly one of several does.
    """
    named = socket_path or os.environ.get("LOGAGG_SOCKET")
    if named:
        return lambda: named

    def find() -> str | None:
        found = [str(path) for path in listening()]
        return choose(found, os.getcwd()) if len(found) > 1 else next(iter(found), None)

    return find


def choose(paths: Sequence[str], folder: str) -> str:
    """Choose the consumer that writes a file below a directory.

    Raises:
        ConfigError: None or several do; the message lists all.
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
        return consumer_client.status(path)
    except LogaggError:
        return {}


def _below(file: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(file), folder]) == folder


def files_of(state: dict[str, Any]) -> list[str]:
    """The files that a consumer writes, from its status."""
    urls = [str(sink.get("url", "")) for sink in state.get("sinks", [])]
    paths = [
        url.removeprefix("file:").partition("?")[0]
        for url in urls
        if url.startswith("file:")
    ]
    return [path for path in paths if os.path.isabs(path)]


def complete_files(find: Callable[[], str | None]) -> list[str]:
    """A file with the consumer's whole stream, or [] when it writes none."""
    path = find()
    state = _state(path) if path is not None else {}
    whole = [
        sink
        for sink in state.get("sinks", [])
        if not any(f"{name}=" in str(sink.get("url", "")) for name in _PARTIAL)
    ]
    return files_of({"sinks": whole})[:1]


def describe(state: dict[str, Any]) -> str:
    """One line about a consumer."""
    if not state:
        return "(does not answer)"
    sinks = ", ".join(str(sink.get("url", "?")) for sink in state.get("sinks", []))
    return (
        f"pid {state.get('pid', '?')}, {len(state.get('workers', []))} workers, {sinks}"
    )


def file_of_consumer(socket_path: str | None) -> list[str]:
    """The first file that the consumer writes.

    Raises:
        ConsumerGone: There is no consumer.
        ConfigError: It writes no file.
    """
    path = finder(socket_path)()
    if path is None:
        raise ConsumerGone("no logagg is running here; name a file: --file PATH")
    found = files_of(consumer_client.status(path))
    if not found:
        raise ConfigError(f"the consumer at {path} writes no file; name one: --file")
    return found[:1]
