"""The sinks of a consumer: each target opened once, however many processes want it.

Sinks are wanted by the consumer's own configuration, which a reload replaces as a whole
or not at all, and by processes (workers, holders of a connection), whose sinks stay
until the end. A sink is known by its target, so two spellings of one file are one
sink. When no sink that a process asked for can be opened, records go to the stderr of
that process: nothing is lost. A sink's options are those of the first that wanted it;
others are not used, and reported once to the process that gave them and in a record.

A file that another consumer of the host owns (`logagg.ownership`) is refused to a
configuration. For a process its records wait until the owner has ended; but one that
found this consumer by the name of that file is sent to the owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from logagg.abc import shown_url
from logagg.core.event import Event
from logagg.errors import ConfigError, LogaggError, TargetOwned
from logagg.fanout.fanout import Fanout
from logagg.fanout.runner_state import FIRST_RETRY, may_pass
from logagg.ipc import paths
from logagg.sinks import ConfiguredSink, build, known, parse

__all__ = ["SINK_WAITS", "SinkRegistry", "SinkRequest"]

SINK_TIMEOUT = 5.0
SINK_WAITS = "sink waits"
MOST_COMPARED = 1000  # URLs whose options are compared with an open sink's once only


class SinkRequest:
    """One wanted sink.

    Attributes:
        url: As it was written.
        key: The name of its target: the same for every spelling.
        target: The part of the key that names the place it writes to.
        stream: The descriptor that it writes to, if its URL names a standard stream.
    """

    def __init__(self, url: str, fds: Sequence[int] = ()) -> None:
        self.url = url
        self.key = url
        self.target = url.partition("?")[0]
        self.stream: int | None = None
        self._parsed = parse(url)
        scheme, target = self._parsed.scheme, self._parsed.target
        place = paths.stream_of(scheme)
        if place is not None and len(fds) == 2:
            self.stream = fds[place]
            status = os.fstat(self.stream)
            self.target = f"{status.st_dev} {status.st_ino} {status.st_rdev}"
            self.key = f"{url} {self.target}"
        elif target and not target.startswith("//"):  # a path: one writer, one spelling
            self.target = self.key = f"{scheme} {paths.file_identity(target)}"

    def build(self) -> ConfiguredSink:
        """Make the sink. Raises ConfigError."""
        return build(replace(self._parsed, descriptor=self.stream))


class SinkRegistry:
    """Opens sinks into a fanout.

    Args:
        fanout: Where their runners are.
        captures: Whether what is written to a descriptor is read by this consumer.
    """

    def __init__(self, fanout: Fanout, captures: Callable[[int], bool]) -> None:
        self._fanout = fanout
        self._captures = captures
        self._open_streams: set[int] = set()
        self._configured: dict[str, SinkRequest] = {}
        self._asked: set[str] = set()
        self._compared: set[str] = set()
        self._have_sinks = asyncio.Event()
        self._openings: dict[str, asyncio.Future[None]] = {}
        self._reloading = asyncio.Lock()
        with contextlib.suppress(ConfigError):  # an opening reports it
            known()  # now: without a free descriptor the search finds nothing

    async def want(
        self,
        refused: Callable[[str], object],
        urls: list[str],
        fds: list[int],
        *,
        own: bool = False,
        waits: bool = False,
        guest: bool = False,
    ) -> None:
        """Open the sinks that a process wants, each once; call `refused` for failures.

        Args:
            refused: Called with the reason.
            urls: The sinks.
            fds: The stdout and stderr of the process; closed unless a sink needs them.
            own: They are the consumer's own configuration.
            waits: See `add`.
            guest: It is another user's process, for which none is opened; what it wants
                and is not open is refused.
        """
        if guest:
            for descriptor in fds:
                os.close(descriptor)
            fds = []
            await self._refuse_closed(refused, urls)
            urls = []
        try:
            work = (self.add(url, fds, wanted=own, waits=waits) for url in urls)
            for error in filter(None, await asyncio.gather(*work)):
                refused(error)
            if not self._fanout.runners and not urls:
                # The process that brings the sinks (`logagg run`) comes later, or again.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._have_sinks.wait(), SINK_TIMEOUT)
            if not self._fanout.runners:
                await self.add("stderr:?format=json", fds)
        finally:
            for descriptor in fds:
                if descriptor not in self._open_streams:
                    os.close(descriptor)

    async def _refuse_closed(
        self, refused: Callable[[str], object], urls: list[str]
    ) -> None:
        """Refuse sinks that are not open, after a wait for those that open them."""
        if urls and not self._fanout.runners:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._have_sinks.wait(), SINK_TIMEOUT)
        for url in urls:
            try:
                key = SinkRequest(url).key
            except LogaggError as error:
                refused(str(error))
                continue
            if key not in self._fanout.runners:
                refused(f"sink {shown_url(url)}: not open here, nor for others")

    async def owner(self, urls: list[str], address: str) -> str:
        """Open the file that has this identifier; the socket of its owner instead.

        That is the first of a process's sinks, by which it found this consumer. Empty:
        it is open, or cannot be opened, or its owner takes no records.
        """
        path = paths.first_file(urls)
        if not path or paths.file_identity(path) != address:
            return ""
        with contextlib.suppress(Exception):  # `want` reports it
            requests = map(SinkRequest, urls)
            request = next(each for each in requests if each.key.endswith(address))
            try:
                if request.key not in self._fanout.runners:
                    await self._open(request)
            except TargetOwned as error:
                return error.socket
        return ""

    async def add(
        self, url: str, fds: list[int], *, wanted: bool = False, waits: bool = False
    ) -> str:
        """Open a sink unless it is there; return what is wrong with it, or nothing.

        Args:
            url: The sink.
            fds: The stdout and stderr of the process, for sinks that write there.
            wanted: It is one of the consumer's own configuration.
            waits: If another consumer owns its file, records wait until that has ended.
        """
        try:
            request = SinkRequest(url, fds)
            if request.stream is not None and self._captures(request.stream):
                # Its output would come back as records, for ever.
                return ""
            if wanted:
                self._configured[request.key] = request
            else:
                self._asked.add(request.key)
            is_open = request.key in self._fanout.runners
            is_first = not is_open and request.key not in self._openings
            if not is_open:
                await self._open(request)
            if not is_first:
                return self._other_options(request)
        except TargetOwned as error:
            if waits:
                await self._open(request, waits=True)
            return f"{SINK_WAITS if waits else 'sink refused'}: {error}"
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            return _refusal(error)
        return ""

    async def _open(
        self,
        request: SinkRequest,
        built: ConfiguredSink | None = None,
        *,
        at_once: bool = False,
        waits: bool = False,
    ) -> None:
        """Open a sink; those who want the same one meanwhile wait for the same attempt.

        With `at_once` the stream comes to it only after `_begin`. No other sink waits
        for it. Raises anything.
        """
        key = request.key
        opening = self._openings.get(key)
        if opening is None and key not in self._fanout.opened:
            work = self._add(request, built, at_once=at_once, waits=waits)
            opening = self._openings[key] = asyncio.ensure_future(work)
            opening.add_done_callback(lambda _: self._openings.pop(key))
        if opening is not None:
            await asyncio.shield(opening)
        if not at_once:
            self._begin(request)

    async def _add(
        self, request: SinkRequest, built: ConfiguredSink | None, **how: bool
    ) -> None:
        while built is None:
            try:
                built = request.build()
            except OSError as error:  # its module cannot be read now
                if not may_pass(error):
                    raise
                await asyncio.sleep(FIRST_RETRY)
        await self._fanout.add(request.key, built, **how)

    def _begin(self, request: SinkRequest) -> None:
        """Let the stream come to a sink that is open."""
        self._fanout.begin(request.key)
        self._keep_stream(request)
        self._have_sinks.set()

    def _other_options(self, request: SinkRequest) -> str:
        """Report a URL's options that its open sink does not have; return the report."""
        if "?" not in request.url or request.url in self._compared:
            return ""
        if len(self._compared) < MOST_COMPARED:
            self._compared.add(request.url)
        runner = self._fanout.runners[request.key]
        name = runner.name
        target, _, used = ConfiguredSink(runner.sink, runner.common).url.partition("?")
        wanted = request.build().url.partition("?")[2].split("&")
        unused = "&".join(each for each in wanted if each not in used.split("&"))
        if not unused:
            return ""
        message = (
            f"sink {target} is open already: {unused} is not used, "
            f"its options are {used or 'the defaults'}"
        )
        self._fanout.alarm(message, {"event": Event.SINK_OPTIONS, "sink": name})
        return message

    def _keep_stream(self, request: SinkRequest) -> None:
        if request.stream is not None:
            self._open_streams.add(request.stream)

    async def reconfigure(self, urls: list[str]) -> str:
        """Have these sinks and no others by configuration; return the error, or nothing.

        All or nothing: with one that cannot be opened, everything stays as it was. New
        ones are opened before old ones go, and all change places between two batches;
        one with the same target as an old one follows it; those that did not change are
        only flushed and opened anew. What processes have asked for stays in any case.
        """
        async with self._reloading:
            try:
                requests = [SinkRequest(url, [1, 2]) for url in urls]
                wanted = {request.key: request for request in requests}
                gone = self._no_longer_wanted(wanted)
                changed = {
                    key: request.build()
                    for key, request in wanted.items()
                    if key not in self._fanout.runners or key in gone
                }
                follows = self._successions(gone, wanted, changed)
                await self._open_all(
                    {wanted[k]: b for k, b in changed.items() if k not in follows}
                )
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
                return _refusal(error)
            self._fanout.reopen()
            for key in changed:
                self._begin(wanted[key])
            for key, old in follows.items():
                self._fanout.replace(old, key, changed[key])
            for key in gone:
                if key in self._fanout.runners and key not in wanted:
                    self._fanout.remove(key)
            for request in requests:
                self._keep_stream(request)
            self._configured = wanted
        return ""

    async def _open_all(self, sinks: dict[SinkRequest, ConfiguredSink]) -> None:
        """Open all of these, or none. Raises the first error."""
        work = (self._open(each, built, at_once=True) for each, built in sinks.items())
        found = await asyncio.gather(*work, return_exceptions=True)
        errors = [each for each in found if each is not None]
        if errors:
            for request, error in zip(sinks, found, strict=True):
                if error is None and request.key not in self._asked:
                    self._fanout.begin(request.key)
                    self._fanout.remove(request.key)
            raise errors[0]

    def _no_longer_wanted(
        self, wanted: dict[str, SinkRequest]
    ) -> dict[str, SinkRequest]:
        """Sinks of the old configuration that the new one lacks or has changed."""
        return {
            key: request
            for key, request in self._configured.items()
            if key not in self._asked
            and (key not in wanted or wanted[key].url != request.url)
        }

    def _successions(
        self,
        gone: dict[str, SinkRequest],
        wanted: dict[str, SinkRequest],
        changed: Iterable[str],
    ) -> dict[str, str]:
        """Which changed sink follows which old one to the same target."""
        old = {
            request.target: key
            for key, request in gone.items()
            if key in self._fanout.runners
        }
        found = {}
        for key in sorted(changed, key=lambda each: each not in gone):
            before = old.pop(wanted[key].target, None)
            if before is not None:
                found[key] = before
        return found


def _refusal(error: Exception) -> str:
    kind = "" if isinstance(error, (LogaggError, OSError)) else type(error).__name__
    return f"sink refused: {kind}{': ' if kind and str(error) else ''}{error}"
