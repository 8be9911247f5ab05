"""HTTP client: one exchange with a deadline on every phase, or a named failure.

Guarantees: certificates are verified, TLS 1.2 is the least; files of certificates are
read again when they change. No redirect is followed. The body goes out with its length,
never chunked. An answer is read whole before it counts, up to a limit, and uncompressed
on the wire, so that it cannot be a bomb. Each phase has its own deadline: a
target that accepts and never reads, reads and never answers, or answers a byte a
second, is given up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
import aiohttp.abc
import aiohttp.payload
from yarl import URL

from logagg.errors import ConfigError

__all__ = [
    "Client", "Deadlines", "Response", "SendError", "Tls", "check_target", "is_loopback",
]  # fmt: skip

DIAGNOSTIC_BYTES = 64 * 1024
"""How much of an answer that is not parsed is kept."""
PARSED_BYTES = 4 * 1024 * 1024
"""How large an answer may be; the number is the one that OTLP recommends."""
_CHUNK = 64 * 1024

_CONNECTING, _SENDING = "connecting", "sending"
_ASKING = "connecting or waiting for the answer"
_WAITING, _READING = "waiting for the answer", "reading the answer"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each phase may take, in seconds.

    Attributes:
        connect: Name look-up, TCP and TLS, together.
        write: Sending the body.
        answer: From the end of the body to the answer's head.
        total: Everything.
    """

    connect: float = 10.0
    write: float = 30.0
    answer: float = 30.0
    total: float = 60.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for TLS, and the name that the certificate must have.

    Attributes:
        ca_file: Authorities to trust instead of the system's.
        cert_file: The client's certificate.
        key_file: Its key, when it is not in the same file.
        server_name: The name to ask for and verify, when it is not the URL's host.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""

    @property
    def has_files(self) -> bool:
        """Whether there is a file that can change."""
        return bool(self.ca_file or self.cert_file or self.key_file)

    def state(self) -> tuple[object, ...]:
        """Changes when one of the files does."""
        found: list[object] = []
        for path in (self.ca_file, self.cert_file, self.key_file):
            if not path:
                continue
            try:
                status = os.stat(path)
            except OSError as error:
                found.append(error.errno)
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def context(self) -> ssl.SSLContext:
        """Read the files; blocks for the disk. Raises OSError when one is no good."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        return context


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that was read to its end.

    Attributes:
        status: Its status.
        headers: Its headers; look them up in lower case.
        body: Its body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The beginning of the body, for people."""
        return self.body[:DIAGNOSTIC_BYTES].decode("utf-8", "replace")


class SendError(Exception):
    """No answer, or none that can be used.

    Attributes:
        ambiguous: The target may have taken what was sent.
        hold: No retry helps before a person repairs it.
        too_large: The answer was larger than allowed.
        cut_off: The target reset the connection before it answered, as some do when
            a body is too large.
    """

    def __init__(
        self,
        message: str,
        *,
        ambiguous: bool = False,
        hold: bool = False,
        too_large: bool = False,
        cut_off: bool = False,
    ) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous
        self.hold = hold
        self.too_large = too_large
        self.cut_off = cut_off


class _Phase:
    """The deadline of the phase at hand, never later than that of the whole.

    Without a body the connection is not noticed: connecting and waiting for the answer
    are one phase then (not `split`).
    """

    def __init__(self, deadlines: Deadlines, *, split: bool) -> None:
        self._now = asyncio.get_running_loop().time
        self._end = self._now() + deadlines.total
        self.name = _CONNECTING if split else _ASKING
        first = deadlines.connect if split else deadlines.connect + deadlines.answer
        self.timeout = asyncio.timeout_at(self._until(first))

    def _until(self, seconds: float) -> float:
        return min(self._now() + seconds, self._end)

    def enter(self, name: str, seconds: float) -> None:
        """Begin the next phase, unless an early answer has begun the last one."""
        if self.name != _READING:
            self.name = name
            self.timeout.reschedule(self._until(seconds))


class _Body(aiohttp.payload.Payload):
    """A body that marks the phases of its sending, and can be broken off.

    A connection that is only closed would wait for a target that never reads.
    """

    _value: bytes
    _autoclose = True

    def __init__(self, value: bytes, phase: _Phase, deadlines: Deadlines) -> None:
        super().__init__(value)
        self._size = len(value)
        self._phase = phase
        self._deadlines = deadlines
        self.transport: asyncio.Transport | None = None
        self.sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        self.transport = getattr(writer, "transport", None)
        self._phase.enter(_SENDING, self._deadlines.write)
        for at in range(0, len(self._value), _CHUNK):
            await writer.write(self._value[at : at + _CHUNK])
        self.sent = True
        self._phase.enter(_WAITING, self._deadlines.answer)

    def abort(self) -> None:
        """Break the connection off, if there still is one that was written to."""
        if self.transport is not None:
            self.transport.abort()


class Client:
    """Sends requests to one target, one at a time, on a connection that is kept.

    Args:
        url: The target, with its query.
        tls: Files for TLS.
        deadlines: How long each phase may take.
        proxy: A proxy's URL; "" takes the environment's (HTTPS_PROXY, NO_PROXY), but
            not for plain HTTP to this machine itself.
    """

    def __init__(
        self, url: str, *, tls: Tls, deadlines: Deadlines, proxy: str = ""
    ) -> None:
        self.url = URL(url)
        self._tls = tls
        self._deadlines = deadlines
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None
        self._state: tuple[object, ...] | None = None
        self._context: ssl.SSLContext | None = None

    async def send(
        self,
        method: str,
        body: bytes,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        *,
        path: str = "",
    ) -> Response:
        """Make one exchange.

        Args:
            method: The request's method.
            body: Its body.
            headers: Its headers.
            query: Parameters that are added to the URL's own.
            path: Another path at the same target, without the URL's own parameters.

        Raises:
            SendError: There is no answer that can be used.
        """
        session = await self._ready()
        url = self.url.with_path(path) if path else self.url
        if query:
            url = url.update_query(query)
        phase = _Phase(self._deadlines, split=bool(body))
        content = _Body(body, phase, self._deadlines)
        try:
            async with (
                phase.timeout,
                session.request(
                    method,
                    url,
                    data=content,
                    headers=headers,
                    allow_redirects=False,
                    ssl=self._context or True,
                    server_hostname=self._tls.server_name or None,
                    **self._through(url),
                ) as answer,
            ):
                phase.enter(_READING, self._deadlines.total)
                response = await _read(answer)
            if content.sent:
                content.transport = None  # it is kept for the next request
        except TimeoutError:
            raise SendError(
                f"timed out while {phase.name}", ambiguous=phase.name != _CONNECTING
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failure(error, phase.name) from None
        finally:
            content.abort()
        return response

    async def _ready(self) -> aiohttp.ClientSession:
        state: tuple[object, ...] = ()
        if self.url.scheme == "https" and self._tls.has_files:
            state = await asyncio.to_thread(self._tls.state)  # the disk may hang
        if self._session is not None and state == self._state:
            return self._session
        await self.close()
        if self.url.scheme == "https":
            try:
                self._context = await asyncio.to_thread(self._tls.context)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                why = getattr(error, "strerror", None) or error
                raise SendError(
                    f"cannot use the files for TLS: {why}", hold=True
                ) from None
        self._state = state
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=self._context or True),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            skip_auto_headers=("Content-Type",),
        )
        return self._session

    def _through(self, url: URL) -> dict[str, Any]:
        proxy = self._proxy
        if not proxy and not (url.scheme == "http" and is_loopback(url.host)):
            proxies = getproxies_environment()
            proxy = proxies.get(url.scheme) or proxies.get("all") or ""
            if proxy and proxy_bypass(f"{url.host}:{url.port}"):
                proxy = ""
        return {"proxy": proxy} if proxy else {}

    async def close(self) -> None:
        """Close the connection. May be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _read(answer: aiohttp.ClientResponse) -> Response:
    expand = _expander(answer.headers.get("Content-Encoding", ""))
    body = bytearray()
    async for chunk in answer.content.iter_chunked(_CHUNK):
        body += expand(chunk, PARSED_BYTES + 1 - len(body))
        if len(body) > PARSED_BYTES:
            answer.close()
            raise SendError(
                f"the answer (status {answer.status}) is larger than "
                f"{PARSED_BYTES} bytes",
                ambiguous=True,
                hold=True,
                too_large=True,
            )
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Response(answer.status, headers, bytes(body))


def _expander(coding: str) -> Callable[[bytes, int], bytes]:
    """Undo a coding that was not asked for, no further than the answer is read."""
    if coding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return lambda data, _: data
    inflater = zlib.decompressobj(47 if "gzip" in coding.lower() else 15)

    def expand(data: bytes, most: int) -> bytes:
        try:
            return inflater.decompress(data, max(most, 1))
        except zlib.error as error:
            raise ValueError(f"the answer is not {coding}: {error}") from None

    return expand


def _failure(error: Exception, phase: str) -> SendError:
    """Describe an error without the URL, which may hold secrets."""
    ambiguous = phase != _CONNECTING
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = error.certificate_error
        return SendError(f"the target's certificate is refused: {why}", hold=True)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        refused = error.status in (401, 403, 407)
        return SendError(f"the proxy answered {error.status}", hold=refused)
    if isinstance(error, aiohttp.ClientConnectorError):
        why = error.os_error
        return SendError(f"cannot connect: {why.strerror or type(why).__name__}")
    cut_off = phase in (_SENDING, _WAITING)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        what = "connection closed"
    elif isinstance(error, OSError) and error.errno:
        what = os.strerror(error.errno)  # aiohttp's own text names the URL
    else:
        what = type(error).__name__
    return SendError(f"{what} while {phase}", ambiguous=ambiguous, cut_off=cut_off)


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine, reached by no network."""
    if host is None or host.lower().rstrip(".") == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_target(url: str, *, what: str) -> None:
    """Refuse a URL that cannot be a target.

    Raises:
        ConfigError: It has no host, or a port that is none.
    """
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        good = good and "@" not in parts.path  # perhaps the rest of a password
        URL(url)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{what}: expected SCHEME://HOST[:PORT]/PATH; in a password write %2F for /, "
            "%3F for ?, %40 for @, which a path needs, too"
        )
