"""Waiting on an event loop until one of many pipes is readable."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from logagg.platform.system import LINUX

if TYPE_CHECKING:
    import asyncio

__all__ = ["PipeWatch", "pipe_watch"]


class PipeWatch(Protocol):
    """Watches pipes from `begin` to `end`; in between nothing is registered."""

    def begin(
        self,
        loop: asyncio.AbstractEventLoop,
        pipes: Iterable[int],
        woken: Callable[[], object],
    ) -> None:
        """Call `woken` as soon as one of the pipes is readable."""

    def end(self, loop: asyncio.AbstractEventLoop, pipes: Iterable[int]) -> None:
        """Watch the same pipes no more."""


class _Epoll:
    """One descriptor for all, which is cheaper than a reader for each."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def begin(
        self,
        loop: asyncio.AbstractEventLoop,
        pipes: Iterable[int],
        woken: Callable[[], object],
    ) -> None:
        for pipe in pipes:
            self._epoll.register(pipe, select.EPOLLIN)
        loop.add_reader(self._epoll, woken)

    def end(self, loop: asyncio.AbstractEventLoop, pipes: Iterable[int]) -> None:
        loop.remove_reader(self._epoll)
        for pipe in pipes:
            self._epoll.unregister(pipe)


class _Readers:
    def begin(
        self,
        loop: asyncio.AbstractEventLoop,
        pipes: Iterable[int],
        woken: Callable[[], object],
    ) -> None:
        for pipe in pipes:
            loop.add_reader(pipe, woken)

    def end(self, loop: asyncio.AbstractEventLoop, pipes: Iterable[int]) -> None:
        for pipe in pipes:
            loop.remove_reader(pipe)


def pipe_watch() -> PipeWatch:
    """A new one; it holds a descriptor at most."""
    return _Epoll() if LINUX else _Readers()
