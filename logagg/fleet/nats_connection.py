"""The connection to a NATS server with JetStream: servers in turn, secrets, TLS.

It does not reconnect by itself: a connection that was lost is made anew by the next
`open`, with the next server and with secrets and certificates as they are then. So no
call waits for an answer that cannot come any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from logagg.errors import ConfigError
from logagg.filters.secret_values import SECRETS

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

__all__ = ["Access", "NatsAddress", "NatsConnection", "NatsError", "read_address"]

_STREAM = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_CONNECT_TIMEOUT = 5


class NatsError(Exception):
    """A server cannot be reached, or refuses.

    Args:
        reason: Why, without secrets.
        refused: It does so until a person repairs something.
        ambiguous: It may have done what was requested.
    """

    def __init__(
        self, reason: str, *, refused: bool = False, ambiguous: bool = False
    ) -> None:
        super().__init__(reason)
        self.refused = refused
        self.ambiguous = ambiguous


@dataclass(frozen=True, slots=True)
class NatsAddress:
    """Servers of one cluster, and a stream on them.

    Attributes:
        servers: Each as `nats://HOST:PORT` or `tls://HOST:PORT`.
        stream: The stream's name.
    """

    servers: tuple[str, ...]
    stream: str

    @property
    def text(self) -> str:
        """The address as it is written."""
        scheme = self.servers[0].partition(":")[0]
        places = ",".join(each.partition("//")[2] for each in self.servers)
        return f"{scheme}://{places}/{self.stream}"


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Secrets and certificates of a connection.

    Attributes:
        token: Where a token is: `env:NAME` or `file:PATH`.
        user: A user's name.
        password: Where the password is: `env:NAME` or `file:PATH`.
        ca_file: Authorities to trust instead of the system's.
        cert_file: The client's certificate.
        key_file: Its key, when it is not in the same file.
    """

    token: str = ""
    user: str = ""
    password: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def check(self, address: NatsAddress, what: str) -> None:
        """Refuse secrets in plain text, and ones that everybody on the way can read.

        Raises:
            ConfigError: One of both, or half of a pair.
        """
        for name in ("token", "password"):
            place = getattr(self, name)
            if place and not re.match(r"(?:env|file):.", place):
                raise ConfigError(
                    f"{what}: option {name} is a secret, which must not stand in a URL: "
                    "put it into an environment variable or a file and write env:NAME "
                    "or file:PATH"
                )
        if bool(self.user) != bool(self.password):
            raise ConfigError(f"{what}: options user and password need each other")
        if self.user and self.token:
            raise ConfigError(f"{what}: a password and a token; give one")
        if self.key_file and not self.cert_file:
            raise ConfigError(f"{what}: option key_file needs cert_file")
        plain = [each for each in address.servers if not each.startswith("tls:")]
        if (self.token or self.user) and not all(map(_is_loopback, plain)):
            raise ConfigError(
                f"{what}: a secret would go out in plain text, for everybody on the way "
                "to read: use tls:// (nats:// is for this machine itself only)"
            )

    def options(self, *, tls: bool) -> dict[str, Any]:
        """The client's options, with what secrets and certificates are now. Blocks.

        Raises:
            NatsError: One cannot be read.
        """
        found: dict[str, Any] = {}
        if self.token:
            found["token"] = _secret(self.token)
        if self.user:
            found |= {"user": self.user, "password": _secret(self.password)}
        if tls:
            try:
                found["tls"] = ssl.create_default_context(cafile=self.ca_file or None)
                if self.cert_file:
                    pair = (self.cert_file, self.key_file or None)
                    found["tls"].load_cert_chain(*pair)
            except (OSError, ssl.SSLError) as error:
                text = f"a certificate cannot be read: {error}"
                raise NatsError(text, refused=True) from None
        return found


def read_address(scheme: str, target: str, what: str) -> NatsAddress:
    """Read `//HOST[:PORT],…/STREAM` of a URL.

    Raises:
        ConfigError: It is not of that form.
    """
    places, _, stream = target.removeprefix("//").partition("/")
    stream = unquote(stream)
    found = [_SERVER.fullmatch(each) for each in places.split(",")]
    if not all(found) or not _STREAM.fullmatch(stream):
        raise ConfigError(
            f"{what}: expected nats://HOST[:PORT][,HOST…]/STREAM, or tls://…; the "
            "stream's name has letters, digits, - and _"
        )
    servers = (f"{scheme}://{each[1]}:{each[2] or 4222}" for each in found if each)
    return NatsAddress(tuple(servers), stream)


class NatsConnection:
    """One connection at a time to a server of a cluster.

    Args:
        address: The servers.
        access: Secrets and certificates.
        name: What the server shows for it.
    """

    def __init__(self, address: NatsAddress, access: Access, name: str) -> None:
        self._address = address
        self._access = access
        self._name = name
        self._client: Client | None = None
        self._next = 0
        self._complaint = ""  # of the server, outside any answer

    async def open(self) -> JetStreamContext:
        """Connect, if there is no connection.

        Raises:
            NatsError: No server can be reached, or one refuses.
        """
        if self._client is not None and self._client.is_connected:
            return self._client.jetstream()
        await self.close()
        failures: list[NatsError] = []
        servers = self._address.servers
        for _ in servers:
            server = servers[self._next % len(servers)]
            try:
                self._client = await self._connect(server)
                return self._client.jetstream()
            except NatsError as error:
                failures.append(error)
                self._next += 1
        reason = "; ".join(dict.fromkeys(map(str, failures)))
        raise NatsError(reason, refused=all(each.refused for each in failures))

    async def _connect(self, server: str) -> Client:
        client = _new_client()
        tls = server.startswith("tls:")
        options = await asyncio.to_thread(self._access.options, tls=tls)
        self._complaint = ""
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT + 1):
                await client.connect(
                    servers=[server],
                    name=self._name,
                    allow_reconnect=False,
                    connect_timeout=_CONNECT_TIMEOUT,
                    ping_interval=10,
                    error_cb=self._complain,
                    **options,
                )
        except Exception as error:  # noqa: BLE001 - the client raises many kinds
            await _end(client)
            reason = str(error) or type(error).__name__
            if self._complaint and self._complaint not in reason:
                reason = f"{reason} ({self._complaint})"
            refused = "authorization" in reason.lower() or isinstance(
                error, ssl.SSLCertVerificationError
            )
            raise NatsError(
                SECRETS.scrub(f"{server}: {reason}"), refused=refused
            ) from None
        return client

    async def _complain(self, error: Exception) -> None:
        self._complaint = str(error)

    @property
    def complaint(self) -> str:
        """The last error that the server sent outside of an answer, without secrets."""
        return SECRETS.scrub(self._complaint)

    @property
    def max_payload(self) -> int:
        """The most bytes of a message, its headers included."""
        return self._client.max_payload if self._client is not None else 0

    @property
    def version(self) -> str:
        """The version of the server."""
        if self._client is None:
            return ""
        found = self._client.connected_server_version
        return f"{found.major}.{found.minor}.{found.patch}"

    async def close(self) -> None:
        """Release the connection, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            await _end(client)


async def _end(client: Client) -> None:
    """Close a client; its socket, too, which it leaves open where it was refused."""
    with contextlib.suppress(Exception):  # it is lost, or being lost
        async with asyncio.timeout(1.0):
            await client.close()
    transport = getattr(client, "_transport", None)
    if transport is not None:
        transport.close()
        await asyncio.sleep(0)  # the socket is closed by the loop's next round


def _new_client() -> Client:
    try:
        from nats.aio.client import Client  # an extra, and only fleets need it
    except ImportError:
        raise ConfigError(
            "nats:// and tls:// need the package nats-py: "
            "pip install 'logagg-service[nats]'"
        ) from None
    return Client()


def _secret(place: str) -> str:
    kind, _, name = place.partition(":")
    if kind == "env":
        value = os.environ.get(name, "")
    else:
        try:
            with open(name, encoding="utf-8") as file:
                value = file.read(65536)
        except (OSError, UnicodeDecodeError) as error:
            text = f"cannot read the secret in {name}: {error}"
            raise NatsError(text, refused=True) from None
    value = value.strip()
    if not value:
        raise NatsError(f"the secret in {place} is empty or missing", refused=True)
    SECRETS.add(value)
    return value


def _is_loopback(server: str) -> bool:
    host = server.partition("//")[2].rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
