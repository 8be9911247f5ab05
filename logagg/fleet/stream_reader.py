"""Reader of a stream: its messages in order from a sequence on, each once, without acks.

The server keeps no state for it that could be lost: its consumer there is one of a
moment, made anew after the last message that came, whenever something is not as
expected (the connection ended, the leader changed, a message was lost on its way).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from logagg.fleet.jetstream import failure
from logagg.fleet.nats_connection import NatsConnection

if TYPE_CHECKING:
    from nats.js import JetStreamContext

__all__ = ["StoredMessage", "StreamReader"]

_INACTIVE = 60.0
_IDLE_CALLS = 20


class StoredMessage(NamedTuple):
    """A message as the stream has it.

    Attributes:
        number: Its sequence in the stream.
        subject: Its subject.
        headers: Its headers.
        data: Its body.
        stored_ns: When the stream stored it.
    """

    number: int
    subject: str
    headers: dict[str, str] | None
    data: bytes
    stored_ns: int


class StreamReader:
    """Reads a stream.

    Args:
        connection: The connection to its servers.
        stream: Its name.
        subjects: The subjects to read; none: all.

    Attributes:
        after: The sequence of the last message that came.
        pending: How many messages wait in the stream; -1 while that is not known.
        now_ns: The time of the stream: when the last message was stored, and on with
            the clock while none waits.
    """

    def __init__(
        self, connection: NatsConnection, stream: str, subjects: tuple[str, ...]
    ) -> None:
        self.after = 0
        self.pending = -1
        self.now_ns = 0
        self._connection = connection
        self._stream = stream
        self._subjects = subjects
        self._subscription: Any = None
        self._delivered = 0  # by the server's consumer at hand
        self._idle_calls = 0  # in a row
        self._clock = time.monotonic_ns()

    async def fetch(self, most: int, seconds: float) -> list[StoredMessage]:
        """Read the next messages; none when none comes in time.

        Raises:
            NatsError: There is no connection; the next call goes on where it ended.
        """
        context = await self._connection.open()
        try:
            if self._subscription is None:
                self._subscription = await self._subscribe(context)
            try:
                messages = await self._subscription.fetch(most, timeout=seconds)
            except TimeoutError:
                await self._idle()
                return []
        except Exception as error:  # noqa: BLE001 - the client raises many kinds
            await self.close()
            raise failure(error, self._connection) from None
        self._idle_calls = 0
        found: list[StoredMessage] = []
        for message in messages:
            meta = message.metadata
            self._delivered += 1
            if meta.sequence.consumer != self._delivered:
                await self.close()  # one was lost on its way: again from there
                break
            stored = int(meta.timestamp.timestamp() * 1e9)
            number = meta.sequence.stream
            headers = message.headers
            found.append(
                StoredMessage(number, message.subject, headers, message.data, stored)
            )
            self.after, self.pending = number, meta.num_pending
            self.now_ns = max(self.now_ns, stored)
        self._clock = time.monotonic_ns()
        return found

    async def _idle(self) -> None:
        """Nothing came in time: the time of the stream goes on.

        Once in a while the server is asked whether its consumer is still there.
        """
        self._idle_calls += 1
        if self._idle_calls % _IDLE_CALLS == 0:
            await self._subscription.consumer_info()
        now = time.monotonic_ns()
        self.pending = 0
        passed = now - self._clock
        self.now_ns = self.now_ns + passed if self.now_ns else time.time_ns()
        self._clock = now

    async def _subscribe(self, context: JetStreamContext) -> Any:
        from nats.js import api  # an extra, loaded by the connection

        self._delivered = 0
        config = api.ConsumerConfig(
            ack_policy=api.AckPolicy.NONE,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.after + 1,
            filter_subjects=list(self._subjects) or None,
            inactive_threshold=_INACTIVE,
            mem_storage=True,
            num_replicas=1,
        )
        return await context.pull_subscribe("", stream=self._stream, config=config)

    async def close(self) -> None:
        """Release the connection; `fetch` makes another one."""
        self._subscription = None
        self.pending = -1
        self._clock = time.monotonic_ns()
        await self._connection.close()
