"""Event handlers by name, called with as many arguments as each can take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from logagg.errors import ConfigError

__all__ = ["EventHandlers", "positional_parameters"]

Handler = Callable[..., Any]


class EventHandlers:
    """The functions registered with `on`; not thread-safe beyond what dicts give."""

    def __init__(self, events: tuple[str, ...]) -> None:
        self._events = events
        self._by_event: dict[str, list[tuple[Handler, int]]] = {}

    def add(self, event: str, function: Handler) -> None:
        """Register a function for an event.

        Raises:
            ConfigError: There is no such event.
        """
        if event not in self._events:
            known = ", ".join(self._events)
            raise ConfigError(f"unknown event {event!r}; known: {known}")
        entry = (function, positional_parameters(function))
        self._by_event.setdefault(event, []).append(entry)

    def remove(self, event: str, function: Handler) -> None:
        """Forget a function; nothing happens when it is not registered."""
        entries = self._by_event.get(event, [])
        self._by_event[event] = [entry for entry in entries if entry[0] != function]

    def get(self, event: str, *arguments: Any) -> list[Callable[[], Any]]:
        """The calls to make for an event, surplus arguments left out."""
        return [
            _call(function, arguments[:count])
            for function, count in self._by_event.get(event, ())
        ]

    def __contains__(self, event: str) -> bool:
        return bool(self._by_event.get(event))


def _call(function: Handler, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: function(*arguments)


def positional_parameters(function: Handler) -> int:
    """How many positional arguments a function takes at most; 99 for any number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 99
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 99
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in plain for p in parameters)
