"""The state of a collector, and its lease: one value of a bucket on the same servers.

The collector writes its state again at least each second, as the successor of the
revision that it wrote last; where another one has written in between, it fails.
Another one takes over when the revision has stayed the same for the time of the lease,
in the same way: of two, one wins. No clocks are compared.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from typing import Any

import msgspec

from logagg.fleet.jetstream import failure
from logagg.fleet.message import pack, unpack
from logagg.fleet.nats_connection import NatsConnection

__all__ = ["CollectorState", "Lease", "LeaseLostError"]

BUCKET = "logagg-collect"
_POLL = 0.5


class CollectorState(msgspec.Struct):
    """The state of a collector.

    Attributes:
        owner: Who has written it; empty after an orderly end.
        floor: All messages of the stream up to this one are written.
        numbers: By spool, the record number that is next after them.
        created: When the stream was made, as its server has it.
    """

    owner: str = ""
    floor: int = 0
    numbers: dict[str, int] = {}
    created: str = ""


class LeaseLostError(Exception):
    """Another collector has taken over."""


class Lease:
    """The lease of a name.

    Args:
        connection: The connection to the servers.
        name: The name; one collector at a time has it.
        seconds: How long another collector waits for a sign of life.

    Attributes:
        owner: Names this collector.
    """

    def __init__(self, connection: NatsConnection, name: str, seconds: float) -> None:
        self.owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:8]}"
        self._connection = connection
        self._name = name
        self._replicas = 1
        self._seconds = seconds
        self._revision = 0
        self._written = 0.0  # when the last write that succeeded began

    @property
    def held(self) -> bool:
        """Whether no other collector can have taken over yet."""
        return time.monotonic() < self._written + 0.8 * self._seconds

    async def acquire(self, replicas: int) -> CollectorState:
        """Wait for the lease; return the state of the one before.

        Args:
            replicas: Of the bucket, if it is to be made.

        Raises:
            NatsError: There is no connection.
        """
        self._replicas = replicas
        seen, since = -1, 0.0
        while True:
            state, revision = await self._read()
            now = time.monotonic()
            if revision != seen:
                seen, since = revision, now
            if not state.owner or now >= since + self._seconds:
                self._revision = revision
                try:
                    await self.save(state)
                except LeaseLostError:
                    continue
                return state
            await asyncio.sleep(_POLL)

    async def save(self, state: CollectorState) -> None:
        """Write the state, and so renew the lease.

        Raises:
            LeaseLostError: Another collector has it.
            NatsError: There is no connection; it may be written or not.
        """
        began = time.monotonic()
        state.owner = self.owner
        await self._write(state)
        self._written = began

    async def release(self, state: CollectorState) -> None:
        """Write the state, and let another collector have the lease at once."""
        state.owner = ""
        await self._write(state)

    async def close(self) -> None:
        """Release the connection; the next call makes another one."""
        await self._connection.close()

    async def _write(self, state: CollectorState) -> None:
        value = pack(msgspec.json.encode(state))
        bucket = await self._bucket()
        try:
            self._revision = await bucket.update(self._name, value, last=self._revision)
        except Exception as error:  # noqa: BLE001 - the client raises many kinds
            found = failure(error, self._connection)
            if "wrong last sequence" not in str(found).lower():
                raise found from None
            before, revision = await self._read()
            if before.owner != self.owner:
                raise LeaseLostError(f"{before.owner} has taken over") from None
            self._revision = revision  # of a write whose answer was lost
            await self._write(state)

    async def _read(self) -> tuple[CollectorState, int]:
        from nats.js import errors  # an extra, loaded by the connection

        bucket = await self._bucket()
        try:
            entry = await bucket.get(self._name)
        except errors.KeyNotFoundError:
            return CollectorState(), 0
        except Exception as error:  # noqa: BLE001 - the client raises many kinds
            raise failure(error, self._connection) from None
        value = unpack(entry.value)
        return msgspec.json.decode(value, type=CollectorState), entry.revision

    async def _bucket(self) -> Any:
        from nats.js import errors  # an extra, loaded by the connection

        context = await self._connection.open()
        try:
            try:
                return await context.key_value(BUCKET)
            except errors.BucketNotFoundError:
                replicas = self._replicas
                return await context.create_key_value(bucket=BUCKET, replicas=replicas)
        except Exception as error:  # noqa: BLE001 - the client raises many kinds
            raise failure(error, self._connection) from None
