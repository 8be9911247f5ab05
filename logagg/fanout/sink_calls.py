"""Calls of a sink besides `write`, with time limits and without errors that pass on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from logagg.abc import Sink
from logagg.core.event import Event
from logagg.fanout.counters import SinkCounters, delivery_health
from logagg.platform.terminal_text import complain

__all__ = ["CANCEL_TIMEOUT", "SinkCalls", "open_within"]

OPEN_TIMEOUT = 5.0
"""How long others wait for a target that is being opened (5 s)."""

CANCEL_TIMEOUT = 1.0
FLUSH_TIMEOUT = 1.0
CLOSE_TIMEOUT = 10.0


class SinkCalls:
    """Flushes, reopens and closes one sink. A ConfigError passes on, except at the end.

    Attributes:
        unflushed: Whether the sink has been written to since it was flushed.
    """

    def __init__(self, sink: Sink, counters: SinkCounters) -> None:
        self.unflushed = False
        self._sink = sink
        self._counters = counters

    async def flush(self) -> None:
        """Have the sink deliver what it buffers, within FLUSH_TIMEOUT seconds."""
        self.unflushed = False
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self._sink.flush()
        except TimeoutError:
            pass  # it goes on at the sink's own pace
        except OSError as error:
            self._counters.announce(Event.SINK_ERROR, f"cannot flush: {error}")

    async def reopen(self) -> None:
        """Flush the sink and have it open its target anew."""
        await self.flush()
        try:
            await self._sink.reopen()
        except OSError as error:
            self._counters.failed(error, "cannot reopen")

    async def close(self, grace: float | None) -> None:
        """Flush the sink if need be, and close it within `grace` seconds."""
        timeout = CLOSE_TIMEOUT if grace is None else max(grace, 1.0)
        try:
            if self.unflushed:
                await self.flush()
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            complain(f"sink {self._sink.url} cannot flush: {error}")
        try:
            await asyncio.wait_for(self._sink.close(), timeout)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            reason = str(error) or type(error).__name__
            complain(f"sink {self._sink.url} cannot close: {reason}")
        health = delivery_health(self._sink)
        left = health.get("queued_records", 0)
        if left:
            where = "wait in its spool (logagg spool ls)"
            fate = where if self._sink.durable else "are lost with its memory"
            why = f": {health['last_error']}" if health.get("last_error") else ""
            text = f"sink {self._sink.url}: {left} records are not delivered and {fate}"
            complain(f"{text}{why}")
            details = {"event": Event.UNDELIVERED, "number": left}
            self._counters.record(f"{text}{why}", details)


async def open_within(
    opening: Coroutine[Any, Any, None], *, at_once: bool
) -> asyncio.Task[None]:
    """Open a target; return after OPEN_TIMEOUT seconds at the latest.

    Args:
        opening: Does it.
        at_once: A target that takes longer is an error.

    Returns:
        The task that does it; when it is not done, the caller waits for it.

    Raises what opening it does, and TimeoutError.
    """
    task = asyncio.ensure_future(opening)
    try:
        await asyncio.wait([task], timeout=OPEN_TIMEOUT)
        if at_once and not task.done():
            raise TimeoutError(f"it did not open within {OPEN_TIMEOUT:g} s")
    except BaseException:
        task.cancel()
        raise
    if task.done():
        task.result()
    return task
