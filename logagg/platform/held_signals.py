"""The signals of a consumer: blocked before its start, of no effect after its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["CONSUMER_SIGNALS", "hold_signals", "signals_held", "to_the_end"]

CONSUMER_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def hold_signals() -> Any:
    """Block the signals of a consumer; return the mask of before.

    Until it has its handlers (`Consumer.run`) they would end it as they end any process;
    so they wait.
    """
    return signal.pthread_sigmask(signal.SIG_BLOCK, CONSUMER_SIGNALS)


@contextmanager
def signals_held() -> Iterator[None]:
    """Have a consumer that is started here begin with its signals blocked."""
    before = hold_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def to_the_end(life: Awaitable[int]) -> int:
    """Await a consumer's life in a process that ends with it.

    What signals come later change nothing: all is written, and the status is known.
    """
    status = await life
    hold_signals()
    for signum in CONSUMER_SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(signum)
        signal.signal(signum, signal.SIG_IGN)
    return status
