"""Processes of `past_search`: one always waits, so that a search begins at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator

import msgspec

from logagg.platform.processes import process_handle
from logagg.view.page.past_search import SearchRequest

__all__ = ["SearchPool"]

MOST_SEARCHES = 4
_CHUNK_BYTES = 1 << 16
_MODULE = "logagg.view.page.past_search"


class SearchPool:
    """The searches of one server: at most MOST_SEARCHES at a time, others wait."""

    def __init__(self) -> None:
        self._spare: asyncio.Task[Process] | None = None
        self._room = asyncio.Semaphore(MOST_SEARCHES)

    def start(self) -> None:
        """Start the process that waits."""
        self._spare = asyncio.ensure_future(_start())

    async def run(self, request: SearchRequest) -> AsyncGenerator[bytes, None]:
        """The answer, in pieces. Leaving the iteration ends the search."""
        async with self._room:
            spare, self._spare = self._spare, None
            process = await (spare or _start())
            if process.returncode is not None:
                process = await _start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(msgspec.json.encode(request) + b"\n")
                await process.stdin.drain()
                self.start()
                while data := await process.stdout.read(_CHUNK_BYTES):
                    yield data
            finally:
                await _end(process)

    async def close(self) -> None:
        """End the process that waits."""
        if self._spare is not None:
            await _end(await self._spare)


async def _start() -> Process:
    # -P: nothing in the current directory is loaded. Its session is its own, so that a
    # Ctrl-C in the terminal reaches the server alone.
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", _MODULE,
        stdin=PIPE, stdout=PIPE, start_new_session=True,
    )  # fmt: skip


async def _end(process: Process) -> None:
    """End a process with its helpers, and release its pipes."""
    assert process.stdin is not None
    assert process.stdout is not None
    # Not `Process.kill`, which takes the status of one that has ended from asyncio.
    if process.returncode is None:
        with contextlib.suppress(OSError):
            process_handle(process.pid).close()  # raises when it has gone
            os.killpg(process.pid, signal.SIGKILL)
    process.stdin.close()
    while await process.stdout.read(_CHUNK_BYTES):
        pass
    await process.wait()
