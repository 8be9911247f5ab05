"""Base of the sinks that deliver in the background, from a spool of their own.

Order: as in the stream; one batch at a time. Loss: none by the sink. `write` returns
when the records are in the spool on disk, which survives the death of the process (so
the sink is `durable`); with `spool=off` they are in memory only and it is not. Each
record then is either taken by the target, or a dead letter with a reason, or still in
the spool. A batch whose answer was lost is sent again with the same content and the same
`PieceIdentity`, also by a later process.

`write` waits while the spool is full, `flush` until everything is delivered or an
attempt has failed, `close` for at most `grace`.
"""

from __future__ import annotations

import abc
import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from logagg.abc import Batch, Sink
from logagg.errors import SinkUnavailable
from logagg.spool_directory import name_of, sink_root
from logagg_sinks._executor import SerialExecutor
from logagg_sinks.delivery.batch_work import BatchWork, Send
from logagg_sinks.delivery.batching import Encode
from logagg_sinks.delivery.condition import Health, SinkCondition, SinkState
from logagg_sinks.delivery.dead_letters import Letters
from logagg_sinks.delivery.delivery_loop import Delivery
from logagg_sinks.delivery.delivery_options import SpoolOptions
from logagg_sinks.delivery.loader import Arrange, Loader, Runtime
from logagg_sinks.delivery.spools import Spools

__all__ = ["SpooledSink"]

T = TypeVar("T")


class SpooledSink(Sink):
    """A sink with a spool, and a task that empties it into the target.

    Attributes:
        options: The sink's options.
        clock: Seconds since the epoch.
        sleep: Waits between attempts.
        chance: A random number from 0 to 1, for the back-off.
    """

    durable = True
    options: SpoolOptions

    def __init__(self) -> None:
        super().__init__()
        self.clock: Callable[[], float] = time.time
        self.sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
        self.chance: Callable[[], float] = random.random
        self._executor: SerialExecutor | None = None
        self._delivery: Delivery | None = None
        self._task: asyncio.Task[None] | None = None
        self._letters: Letters | None = None
        self._spools: Spools | None = None
        self._left: Health | None = None

    # What a kind of target adds

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """The URL without options that only tune: another one is another sink."""

    @property
    @abc.abstractmethod
    def _shown(self) -> str:
        """The target, as it may be shown."""

    @abc.abstractmethod
    def _encoding(self) -> tuple[Encode, Arrange]:
        """How a record is encoded, and how those of a batch are made to differ."""

    @abc.abstractmethod
    def _connect(self, runtime: Runtime) -> Send:
        """Make the client, without I/O, and return what sends a piece."""

    @abc.abstractmethod
    async def _disconnect(self) -> None:
        """Release the client."""

    # Life

    async def open(self) -> None:
        """Open the spool and begin to deliver; the target is not asked for anything.

        Raises:
            ConfigError: The spool's directory is not safe to use.
            SinkUnavailable: It cannot be opened now.
        """
        if self._task is not None:
            return
        self._executor = SerialExecutor(f"logagg-{self.scheme}")
        try:
            self._spools = spools = await self._run(self._open_spools)
        except OSError as error:
            self._executor.shutdown(wait=False)
            self._executor = None
            raise SinkUnavailable(
                f"sink {self._shown}: cannot open its spool: {error.strerror or error}"
            ) from error
        options = self.options
        runtime = Runtime(self._run, self.count, self._now, self.sleep, self.chance)
        condition = SinkCondition(self._shown, self.alarm)
        loader = Loader(*self._encoding(), options, runtime)
        send = self._connect(runtime)

        def work(changed: Callable[[], None]) -> BatchWork:
            return BatchWork(
                condition=condition,
                loader=loader,
                send=send,
                options=options,
                letters=self._letters,
                runtime=runtime,
                changed=changed,
            )

        self._delivery = Delivery(
            name=self._shown,
            condition=condition,
            loader=loader,
            work=work,
            options=options,
            spools=spools.found,
            inboxes=spools.inboxes,
            runtime=runtime,
        )
        self._task = asyncio.create_task(self._delivery.run(), name=self._shown)

    def _now(self) -> float:
        return self.clock()

    @property
    def folder(self) -> Path:
        """Where its spools and dead letters are. Raises OSError, see `owner`."""
        if self.options.spool not in ("", "off"):
            return Path(self.options.spool)
        owner = self.owner()
        separator = "&" if "?" in self.identity else "?"
        identity = (
            f"{self.identity}{separator}owner={owner}" if owner else self.identity
        )
        return sink_root() / name_of(identity)

    def spool_in(self, folder: Path) -> None:
        """Use this directory instead of the one in the options; before `open`."""
        self.options = msgspec.structs.replace(self.options, spool=str(folder))

    def _open_spools(self) -> Spools:
        options = self.options
        folder = self.folder if self.durable or options.dead_letter_bytes else None
        in_memory = not self.durable
        spools = Spools(folder, self.url, options.spool_bytes, in_memory=in_memory)
        if options.dead_letter_bytes:
            self._letters = spools.letters(
                options.dead_letter_bytes, self._shown, self._now, self.count
            )
        if spools.torn:
            self.count("torn", spools.torn)
        return spools

    async def _run(self, call: Callable[[], T]) -> T:
        if self._executor is None:
            raise SinkUnavailable(f"sink {self._shown} is not open")
        return await asyncio.wrap_future(self._executor.submit(call))

    def _opened(self) -> Delivery:
        if self._delivery is None:
            raise SinkUnavailable(f"sink {self._shown} is not open")
        return self._delivery

    async def write(self, batch: Batch) -> None:
        """Put the batch into the spool; it waits there for its turn.

        Raises:
            SinkUnavailable: The spool cannot be written (disk full); nothing of the
                batch is in it.
        """
        delivery = self._opened()
        if not len(batch):
            return
        try:
            await delivery.accept(batch.data, len(batch))
        except SinkUnavailable:
            raise
        except OSError as error:
            raise SinkUnavailable(
                f"sink {self._shown}: cannot write its spool: {error.strerror or error}"
            ) from error

    async def flush(self) -> None:
        """Send batches that are not full; wait until everything is delivered.

        It returns early when an attempt fails: what is left then stays in the spool.
        """
        await self._opened().flush()

    async def written_since(self, since: bytes) -> frozenset[bytes]:
        """Identify the records stamped at or after a sort key that came into the spool.

        After the consumer was killed: everything that is not delivered, and nearly
        everything that was delivered last.
        """
        spools = list(self._opened().spools)
        return await self._run(
            lambda: frozenset().union(*(spool.record_ids(since) for spool in spools))
        )

    async def reopen(self) -> None:
        """Try again now, with certificates and secrets as they are now."""
        self._opened().retry_now()

    async def close(self) -> None:
        """Make last attempts within `grace`, and let go. May be called twice.

        The rest stays in the spool for the next process; with
        `spool=off` it is lost, and counted as `dropped`.
        """
        task, self._task = self._task, None
        delivery, executor = self._delivery, self._executor
        if task is None or delivery is None or executor is None:
            return
        delivery.finish()
        try:
            await asyncio.wait([task], timeout=self.options.grace)
        finally:
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
                await self._disconnect()
                await self._run(lambda: None)  # after what is noted as final
            finally:
                self._release(delivery, executor)

    def _release(self, delivery: Delivery, executor: SerialExecutor) -> None:
        own = delivery.spools[-1]
        if own.folder is None and own.records:
            self.count("dropped", own.records)
        self._left = delivery.health()
        if self._spools is not None:
            executor.submit(self._spools.close)
            if not self.options.spool:
                executor.submit(self._spools.tidy)
        self._delivery = None
        executor.shutdown(wait=True)
        self._executor = None

    def health(self) -> Health:
        """The sink's condition; after `close`, the last one."""
        if self._delivery is not None:
            return self._delivery.health()
        return self._left or Health(SinkState.OK, 0.0, "", 0, 0, 0, 0.0)
