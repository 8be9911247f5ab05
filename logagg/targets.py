"""The sinks that are wanted: each target opened once, whoever asks for it.

Two kinds of askers: the consumer's own configuration, which a reload replaces as a
whole or not at all, and processes (workers, holders), whose sinks stay until the end.
A sink is known by its target, so two spellings of one file are one lane. When nothing
that was asked for can be had, records go to the asker's stderr: nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from logagg import address
from logagg.errors import LogaggError
from logagg.fanout import Fanout
from logagg.sinks import Built, build, parse

__all__ = ["Targets"]

SINK_PATIENCE = 5.0
STREAM_SINKS = ("stdout", "stderr")


class _Plan:
    """A sink that somebody wants.

    Attributes:
        url: As it was written.
        key: The name of its lane: the same for the same target.
        stream: The descriptor that it writes to, if it is a stream's sink.
    """

    def __init__(self, url: str, fds: list[int]) -> None:
        self.url = url
        self.key = url
        self.stream: int | None = None
        self._parsed = parse(url)
        if self._parsed.scheme in STREAM_SINKS and len(fds) == 2:
            self.stream = fds[self._parsed.scheme == "stderr"]
            status = os.fstat(self.stream)
            self.key = f"{url} {status.st_dev} {status.st_ino} {status.st_rdev}"
        elif self._parsed.scheme == "file":
            self.key = f"file {address.file_identity(self._parsed.target)}"

    def built(self) -> Built:
        """The sink itself."""
        built = build(self._parsed)
        if self.stream is not None:
            built.sink.fd = self.stream  # type: ignore[attr-defined]
        return built


def _target(key: str) -> str:
    """What of a lane's key tells where it writes to."""
    url, space, stream = key.partition(" ")
    if space:
        return stream
    return url.partition("?")[0]


class Targets:
    """Opens sinks into a fanout.

    Args:
        fanout: Where their lanes are.
        captures: Says of a descriptor whether what is written to it comes back to us.
    """

    def __init__(self, fanout: Fanout, captures: Callable[[int], bool]) -> None:
        self._fanout = fanout
        self._captures = captures
        self._kept_streams: set[int] = set()
        self._wanted: dict[str, str] = {}
        self._asked: set[str] = set()
        self._have_sinks = asyncio.Event()
        self._opening = asyncio.Lock()

    async def want(
        self,
        tell: Callable[[dict[str, Any]], bool],
        urls: list[str],
        fds: list[int],
        *,
        own: bool = False,
    ) -> None:
        """Open the sinks that someone wants, each once; tell of trouble."""
        for url in urls:
            error = await self.add(url, fds, wanted=own)
            if error:
                tell({"error": error})
        if not self._fanout.lanes and not urls:
            # Whoever brings the sinks (`logagg run`) comes later, or again.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._have_sinks.wait(), SINK_PATIENCE)
        if not self._fanout.lanes:
            # What was asked for cannot be had: nothing is lost, it goes to stderr.
            await self.add("stderr:?format=json", fds)
        for descriptor in fds:
            if descriptor not in self._kept_streams:
                os.close(descriptor)
        tell({"welcome": 1})

    async def add(self, url: str, fds: list[int], *, wanted: bool = False) -> str:
        """Open a sink unless it is there; return what is wrong with it, or nothing.

        Args:
            url: The sink.
            fds: The asker's stdout and stderr, for sinks that write there.
            wanted: It is one of the consumer's own configuration.
        """
        async with self._opening:
            try:
                plan = _Plan(url, fds)
                if plan.stream is not None and self._captures(plan.stream):
                    # What is written there comes back to us as records, for ever.
                    return ""
                if wanted:
                    self._wanted[plan.key] = url
                else:
                    self._asked.add(plan.key)
                if plan.key not in self._fanout.lanes:
                    await self._fanout.add(plan.key, plan.built())
                    self._keep(plan)
                    self._have_sinks.set()
            except (LogaggError, OSError) as error:
                return f"sink refused: {error}"
        return ""

    def _keep(self, plan: _Plan) -> None:
        if plan.stream is not None:
            self._kept_streams.add(plan.stream)

    async def reconfigure(self, urls: list[str]) -> str:
        """Have these sinks and no others of our own; return what is wrong, or nothing.

        All or nothing: with one that cannot be had, everything stays as it was. New
        ones are opened before old ones go; one with the same target as an old one
        follows it; those that did not change are only opened anew. What processes have
        asked for stays in any case.
        """
        async with self._opening:
            opened: list[str] = []
            try:
                plans = {
                    plan.key: plan for plan in (_Plan(url, [1, 2]) for url in urls)
                }
                built = {key: plan.built() for key, plan in plans.items()}
                gone = {
                    key: _target(key)
                    for key, url in self._wanted.items()
                    if key not in self._asked
                    and (key not in plans or plans[key].url != url)
                }
                follows = {
                    key: old
                    for key in plans
                    for old, target in gone.items()
                    if target == _target(key)
                }
                for key in plans:
                    if key not in self._fanout.lanes and key not in follows:
                        await self._fanout.add(key, built[key])
                        opened.append(key)
            except (LogaggError, OSError) as error:
                for key in opened:
                    self._fanout.remove(key)
                return f"sink refused: {error}"
            self._fanout.reopen()
            for key, old in follows.items():
                if old in self._fanout.lanes:
                    self._fanout.replace(old, key, built[key])
            for key in gone:
                if key in self._fanout.lanes and key not in plans:
                    self._fanout.remove(key)
            for plan in plans.values():
                self._keep(plan)
            self._wanted = {key: plan.url for key, plan in plans.items()}
        return ""
