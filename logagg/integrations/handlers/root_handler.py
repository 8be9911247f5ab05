"""A handler that stays on the root logger, however the program sets up logging.

`dictConfig`, `fileConfig` and `basicConfig(force=True)` take every handler off the root
logger and close it. The handler of `logagg run`, of `logagg.start` and of their children
goes back on it right after, unless another handler there reaches the same log. For
`basicConfig`, which does nothing where the root logger has a handler, and for
`Logger.hasHandlers` it does not count as one.

What a program takes off by hand (`root.handlers.clear()`) comes back with the next such
call in a worker of `logagg run`, and stays off under `logagg.start`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import get_ident
from types import ModuleType
from typing import Any, ClassVar

from logagg.client.handler import Handler
from logagg.integrations.import_hooks import when_imported

__all__ = ["RootHandler", "RootPlace"]


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
    """The root logger's place for a handler.

    While the program sets up logging, no place puts a handler there:
    `basicConfig(force=True)` does nothing once the root logger has one again.

    Args:
        handler: The handler.
        reaches: Whether another handler's records get to the same log without it.
        yields: A handler that the program has taken off by hand stays off.
    """

    _set_ups: ClassVar[list[int]] = []  # threads in such a call, of whatever place

    def __init__(
        self,
        handler: RootHandler,
        reaches: Callable[[logging.Handler], bool],
        *,
        yields: bool = False,
    ) -> None:
        self._handler = handler
        self._reaches = reaches
        self._yields = yields
        self._placed = False
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._watching = False

    def place(self) -> None:
        """Keep the handler there exactly while no other reaches the log."""
        root = logging.getLogger()
        others = [each for each in root.handlers if each is not self._handler]
        self._placed = not any(self._reaches(each) for each in others)
        # What changes nothing is not done: another one may watch these calls, too.
        if self._placed is (self._handler in root.handlers):
            return
        if self._placed:
            root.addHandler(self._handler)
        else:
            root.removeHandler(self._handler)

    def watch(self) -> None:
        """Call `place` after each set-up of logging from now on."""
        self._watching = True
        self._replace(logging, "basicConfig", self._basic_config)
        self._replace(logging.Logger, "hasHandlers", _without_ours)
        when_imported("logging.config", self._watch_config)

    def watch_handlers(self) -> None:
        """Call `place` also when a handler is put on the root logger or taken off.

        A console handler's filter may add fields; its record is the one to send.
        """
        for name in ("addHandler", "removeHandler"):
            self._replace(logging.Logger, name, self._placing)

    def give_up(self) -> None:
        """Take the handler off, and put back the functions that are still replaced."""
        self._watching = False
        for module, name, original, replacement in reversed(self._replaced):
            if getattr(module, name) is replacement:
                setattr(module, name, original)
        self._replaced.clear()
        logging.getLogger().removeHandler(self._handler)

    def _watch_config(self, module: ModuleType) -> None:
        if self._watching:
            for name in ("dictConfig", "fileConfig"):
                self._replace(module, name, self._then_place)

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        """While the program sets up logging; then the handler is placed."""
        self._set_ups.append(get_ident())
        try:
            yield
        finally:
            self._set_ups.remove(get_ident())
            if self._watching:
                self.place()

    def _keeps(self) -> bool:
        """Whether the handler goes back after the call that begins now."""
        gone = self._placed and self._handler not in logging.getLogger().handlers
        if self._yields and gone:
            self._watching = False
        return self._watching

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
                if self._keeps():
                    logging.getLogger().removeHandler(self._handler)
                original(**options)

        return basic_config

    def _placing(self, original: Any) -> Callable[..., Any]:
        @wraps(original)
        def change(logger: logging.Logger, handler: logging.Handler) -> None:
            original(logger, handler)
            root = logging.getLogger()
            taken_off = self._placed and self._handler not in root.handlers
            by_hand = logger is root and get_ident() not in self._set_ups
            if by_hand and handler is not self._handler and not taken_off:
                self.place()

        return change

    def _then_place(self, original: Any) -> Callable[..., Any]:
        @wraps(original)
        def configured(*args: Any, **options: Any) -> Any:
            with self._set_up():
                self._keeps()
                return original(*args, **options)

        return configured


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
