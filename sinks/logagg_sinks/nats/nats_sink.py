"""Sink `nats:`, `tls:`: batches of records as messages of a NATS JetStream stream.

Loss and order: as `logagg_sinks.delivery.spooled_sink` has it. A message counts as
delivered when the stream has acknowledged it. One whose acknowledgement did not come is
sent again, unchanged, until it does: the stream leaves the repetition out within its
duplicate window, and the collector does by the record numbers at any time
(`logagg.fleet.message`).

A stream that is full, a leader that is being elected, servers that are away: the records
wait in the spool. A refused secret, or a stream of another name, suspends the sink with
one alarm; it is tried again each `probe_interval`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from logagg.abc import SinkURL
from logagg.errors import ConfigError
from logagg.fleet.jetstream import check_stream, publish
from logagg.fleet.message import headers_of, pack, subject_of, subject_part
from logagg.fleet.nats_connection import Access, NatsConnection, NatsError, read_address
from logagg_sinks._sink_options import Duration, Size, make, query, read
from logagg_sinks.delivery.batch_work import PieceIdentity, Send
from logagg_sinks.delivery.batching import Encode, Item
from logagg_sinks.delivery.delivery_options import SpoolOptions
from logagg_sinks.delivery.loader import Arrange, Runtime
from logagg_sinks.delivery.retry import Action
from logagg_sinks.delivery.spooled_sink import SpooledSink
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.credentials import Secrets, fingerprint

__all__ = ["NatsSink", "TlsSink"]

_HEADER_ROOM = 4096


class NatsOptions(SpoolOptions, frozen=True, kw_only=True):
    """The options of the sink, besides those of delivery and the spool.

    Attributes:
        app: The application's name, a part of the subject; without it, LOGAGG_APP.
        host: This host's name, a part of the subject; without it, LOGAGG_HOST, or the
            machine's name to its first dot.
        compress: `zstd` or `none`.
        ack_timeout: Seconds to wait for the stream's acknowledgement.
        token: Where a token is: `env:NAME` or `file:PATH`.
        user: A user's name.
        password: Where the password is: `env:NAME` or `file:PATH`.
        ca_file: Authorities to trust instead of the system's.
        cert_file: The client's certificate.
        key_file: Its key, when it is not in the same file.
    """

    app: str = ""
    host: str = ""
    batch_bytes: Size = 512 * 1024
    batch_age: Duration = 0.25
    retry_max: Duration = 5.0
    compress: str = "zstd"
    ack_timeout: Duration = 5.0
    token: str = ""
    user: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compress not in ("zstd", "none"):
            raise ValueError("option compress is zstd or none")
        if self.ack_timeout <= 0:
            raise ValueError("option ack_timeout must be more than 0")


_IDENTITY = frozenset(("app", "host"))
_TUNING = frozenset(NatsOptions.__struct_fields__) - _IDENTITY


class NatsSink(SpooledSink):
    """Messages of a stream, over plain TCP.

    Args:
        target: `//HOST[:PORT][,HOST…]/STREAM`.
        options: See `NatsOptions`.

    Raises:
        ConfigError: An unknown option, a bad value, or no name of the application.
    """

    scheme = "nats"
    options: NatsOptions
    _transport: ClassVar[str] = "nats"

    def __init__(self, target: str, **options: Any) -> None:
        super().__init__()
        what = f"sink {self._transport}:{target}"
        self.options = make(NatsOptions, options, what=what)
        self._address = read_address(self._transport, target, what)
        self._access = Access(
            token=self.options.token,
            user=self.options.user,
            password=self.options.password,
            ca_file=self.options.ca_file,
            cert_file=self.options.cert_file,
            key_file=self.options.key_file,
        )
        self._access.check(self._address, what)
        app = self.options.app or os.environ.get("LOGAGG_APP", "")
        if not app:
            raise ConfigError(f"{what}: option app=NAME is missing (or set LOGAGG_APP)")
        host = self.options.host or os.environ.get("LOGAGG_HOST", "")
        self._host = subject_part(host or socket.gethostname().partition(".")[0])
        self._app = subject_part(app)
        if self.options.compress == "zstd":
            pack(b"")
        self.durable = self.options.spool != "off"
        self._connection = self._new_connection()

    def _new_connection(self) -> NatsConnection:
        return NatsConnection(
            self._address, self._access, f"logagg {self._app} {self._host}"
        )

    @classmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build it from `nats://HOST/STREAM?options`."""
        return cls(url.target, **read(NatsOptions, url))

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again."""
        return self._written(query(self.options))

    @property
    def identity(self) -> str:
        """The URL without options that only tune, its names as they are sent."""
        return f"{self._address.text}?app={self._app}&host={self._host}"

    def _written(self, options: str) -> str:
        return f"{self._address.text}?{options}" if options else self._address.text

    @property
    def _shown(self) -> str:
        return self._address.text

    def owner(self) -> str:
        """The names in the subject, and a hash of its secrets where it has some.

        Spools of other ones are not its own: a secret decides the account, and an
        account has streams of its own.
        """
        names = f"{self._app}.{self._host}"
        places = [each for each in (self._access.token, self._access.password) if each]
        if not places:
            return names
        secrets = map(Secrets().read, places)
        return f"{names}.{fingerprint([self._access.user, *secrets])}"

    def _encoding(self) -> tuple[Encode, Arrange]:
        return _encoded, _as_they_are

    def _connect(self, runtime: Runtime) -> Send:
        self._connection = self._new_connection()

        async def send(items: Sequence[Item], piece: PieceIdentity) -> Verdict:
            body = b"".join([item.data for item in items])
            try:
                return await self._publish(runtime, body, piece)
            except NatsError as error:
                await self._connection.close()
                action = Action.HOLD if error.refused else Action.RETRY
                return Verdict(action, str(error), ambiguous=error.ambiguous)

        return send

    async def _publish(
        self, runtime: Runtime, body: bytes, piece: PieceIdentity
    ) -> Verdict:
        coding = "" if self.options.compress == "none" else self.options.compress
        if coding:
            body = await runtime.run(lambda: pack(body))
        stream = await self._connection.open()
        if len(body) + _HEADER_ROOM > self._connection.max_payload:
            return Verdict(Action.SPLIT, "it is larger than a message may be")
        headers = headers_of(
            piece.name, piece.log, piece.first, piece.following, coding=coding
        )
        await publish(
            self._connection,
            stream,
            subject_of(self._app, self._host),
            body,
            headers | {"Nats-Expected-Stream": self._address.stream},
            self.options.ack_timeout,
        )
        return Verdict(Action.OK)

    async def _disconnect(self) -> None:
        await self._connection.close()

    async def probe(self, seconds: float) -> tuple[str, str]:
        """Check the stream, as the sink would reach it, without sending anything.

        Returns:
            "ok", "note" (it takes records, but a setting of it can lose some) or "down";
            and what was found.
        """
        connection = self._new_connection()
        try:
            async with asyncio.timeout(seconds):
                return await check_stream(connection, self._address.stream)
        except TimeoutError:
            return "down", f"no answer within {seconds:g} s"
        except NatsError as error:
            return "down", str(error)
        finally:
            await connection.close()


class TlsSink(NatsSink):
    """Messages of a stream, over TLS."""

    scheme = "tls"
    _transport = "tls"


def _encoded(line: bytes) -> tuple[bytes, bytes, int]:
    return line + b"\n", b"", len(line) + 1


def _as_they_are(items: list[Item], _: Callable[[], list[Item]]) -> list[Item]:
    return items
