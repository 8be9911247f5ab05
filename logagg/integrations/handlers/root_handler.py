"""A handler that gets the records of all loggers, however the program sets up logging.

`dictConfig`, `fileConfig` and `basicConfig(force=True)` take every handler off the root
logger and close it. The handler of `logagg run`, of `logagg.start` and of their children
is there again right after, unless another handler of the root logger reaches the same
log.

Under `logagg.start` it stands on the root logger. `basicConfig`, which does nothing where
the root logger has a handler, does not count it, and once the program has taken it off
by hand (`root.handlers.clear()`) it stays off.

Under `logagg run` it stands above the root logger, on a parent that this one otherwise
lacks: records get there, and the root logger's handlers are those of the program and no
others. So a program that sets up logging only if there is none (`if not root.handlers`)
does. A root logger whose `propagate` is off passes nothing on, and has it itself.

`Logger.hasHandlers` counts it in neither place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import get_ident
from types import ModuleType
from typing import Any

from logagg.client.handler import Handler
from logagg.integrations.import_hooks import when_imported

__all__ = ["RootHandler", "RootPlace", "above_root", "root_senders"]


class RootHandler(Handler):
    """A process's own handler. `dictConfig` closes every handler that it finds; this
    one stays attached, since the process goes on. The transport closes at exit.
    """

    flushOnClose = False  # noqa: N815 - the name that logging.shutdown reads

    def close(self) -> None:
        """Do nothing: the process has not ended."""

    def end(self) -> None:
        """Close: nothing more comes by this handler."""
        super().close()


class RootPlace:
    """The place of a handler that gets the records of all loggers.

    Args:
        handler: The handler.
        reaches: Whether another handler's records get to the same log without it.
        at: The logger that has it: the root logger, or `above_root()`.
    """

    def __init__(
        self,
        handler: RootHandler,
        reaches: Callable[[logging.Handler], bool],
        at: logging.Logger,
    ) -> None:
        self._handler = handler
        self._reaches = reaches
        self._at = at
        self._placed = False
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._watching = False
        self._set_ups: list[int] = []  # threads that set up logging now

    def place(self) -> None:
        """Keep the handler there exactly while no other reaches the log."""
        root = logging.getLogger()
        others = [each for each in root.handlers if each is not self._handler]
        self._placed = not any(self._reaches(each) for each in others)
        at = self._at if root.propagate else root  # it passes nothing on
        for logger in (self._at, root):
            wanted = self._placed and logger is at
            # What changes nothing is not done: another one may watch these calls, too.
            if wanted and self._handler not in logger.handlers:
                logger.addHandler(self._handler)
            elif not wanted and self._handler in logger.handlers:
                logger.removeHandler(self._handler)

    def watch(self) -> None:
        """Call `place` after each set-up of logging from now on."""
        self._watching = True
        self._replace(logging, "basicConfig", self._basic_config)
        self._replace(logging.Logger, "hasHandlers", _without_ours)
        when_imported("logging.config", self._watch_config)

    def watch_handlers(self) -> None:
        """Call `place` also when a handler is put on the root logger or taken off, by
        whatever means, or when this logger's `propagate` is set.

        A console handler's filter may add fields; its record is the one to send.
        """
        for name in ("addHandler", "removeHandler"):
            self._replace(logging.Logger, name, self._placing)
        self._replace(logging.RootLogger, "__setattr__", self._setting)

    def give_up(self) -> None:
        """Take the handler off, and put back the functions that are still replaced."""
        self._watching = False
        for module, name, original, replacement in reversed(self._replaced):
            if getattr(module, name) is replacement:
                setattr(module, name, original)
        self._replaced.clear()
        self._at.removeHandler(self._handler)

    def _watch_config(self, module: ModuleType) -> None:
        if self._watching:
            for name in ("dictConfig", "fileConfig"):
                self._replace(module, name, self._then_place)

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        """While the program sets up logging; then the handler is placed."""
        root = logging.getLogger()
        taken_off = self._placed and self._handler not in root.handlers
        if self._at is root and taken_off:
            self._watching = False
        self._set_ups.append(get_ident())
        try:
            yield
        finally:
            self._set_ups.remove(get_ident())
            if self._watching:
                self.place()

    def _replace(
        self, module: Any, name: str, make: Callable[[Any], Callable[..., Any]]
    ) -> None:
        original = getattr(module, name)
        replacement = make(original)
        setattr(module, name, replacement)
        self._replaced.append((module, name, original, replacement))

    def _basic_config(self, original: Any) -> Callable[..., Any]:
        @wraps(original)
        def basic_config(**options: Any) -> None:
            with self._set_up():
                if self._watching:
                    logging.getLogger().removeHandler(self._handler)
                original(**options)

        return basic_config

    def _placing(self, original: Any) -> Callable[..., Any]:
        @wraps(original)
        def change(logger: logging.Logger, handler: logging.Handler) -> None:
            original(logger, handler)
            by_hand = logger is logging.getLogger() and get_ident() not in self._set_ups
            if by_hand and handler is not self._handler:
                self.place()

        return change

    def _setting(self, original: Any) -> Callable[..., Any]:
        def set_attribute(logger: logging.Logger, name: str, value: object) -> None:
            original(logger, name, value)
            if name in ("handlers", "propagate"):
                self.place()

        return set_attribute

    def _then_place(self, original: Any) -> Callable[..., Any]:
        @wraps(original)
        def configured(*args: Any, **options: Any) -> Any:
            with self._set_up():
                return original(*args, **options)

        return configured


def above_root() -> logging.Logger:
    """The parent of the root logger, made where it has none.

    It has no level, so it changes none.
    """
    root = logging.getLogger()
    if root.parent is None:
        root.parent = logging.Logger("root")  # noqa: LOG001 - no program finds it
    return root.parent


def root_senders() -> list[Handler]:
    """The `logagg.Handler`s that get the records of all loggers."""
    root = logging.getLogger()
    above = root.parent.handlers if root.parent is not None else []
    return [each for each in (*root.handlers, *above) if isinstance(each, Handler)]


def _without_ours(original: Any) -> Callable[..., Any]:
    @wraps(original)
    def has_handlers(self: logging.Logger) -> Any:
        logger: logging.Logger | None = self
        while logger is not None:
            if not all(isinstance(each, RootHandler) for each in logger.handlers):
                return original(self)
            logger = logger.parent if logger.propagate else None
        return False

    return has_handlers
