"""Base of the sinks that send HTTP requests: a URL with options, and a client.

Order, loss and the spool: see `logagg_sinks.delivery.spooled_sink`; a batch is a
request. One whose answer was lost is sent again with the same content and name: such
duplicates are recognized by `Idempotency-Key` or by each record's uid.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

import msgspec

from logagg.abc import SinkURL, shown_url
from logagg.errors import ConfigError
from logagg_sinks._compression import require
from logagg_sinks._sink_options import make, query, read
from logagg_sinks.delivery.batch_work import PieceIdentity, Send
from logagg_sinks.delivery.batching import Encode, Item
from logagg_sinks.delivery.loader import Arrange, Runtime
from logagg_sinks.delivery.spooled_sink import SpooledSink
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.credentials import (
    Secrets,
    check_token,
    check_way,
    checked,
    fingerprint,
    is_place,
    without_user,
)
from logagg_sinks.http.http_client import Client, Deadlines, Response, Tls, check_target
from logagg_sinks.http.probe import Question, ask
from logagg_sinks.http.request import Credentials, Exchange, user_agent
from logagg_sinks.http.service import HttpOptions, Service, chosen_actions

__all__ = ["NetworkSink"]

_HEADER, _QUERY = "header.", "query."
_TUNING = frozenset(HttpOptions.__struct_fields__)


class NetworkSink(SpooledSink):
    """Base of the sinks that send HTTP requests.

    Args:
        target: `http://…` or `https://…`.
        headers: Headers of each request. One that carries a secret is `env:NAME` or
            `file:PATH`; others may be, too.
        query: Parameters of each request, likewise.
        options: See the sink's options.

    Raises:
        ConfigError: An unknown option, a bad value, or a secret in plain text.
    """

    options: HttpOptions
    options_type: ClassVar[type[HttpOptions]]
    service_type: ClassVar[type[Service]]

    def __init__(
        self,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.secrets = Secrets()
        base, self._user = without_user(target)
        what = f"sink {self._prefix()}{shown_url(base)}"
        check_target(target, what=what)
        checked(dict(parse_qsl(urlsplit(target).query)), "parameter", what)
        self.options = make(self.options_type, options, what=what)
        self._headers = checked(headers or {}, "header", what)
        self._query = checked(query or {}, "parameter", what)
        self._base = base
        if self.options.proxy:
            check_target(self.options.proxy, what=f"{what}: option proxy")
        for user in (self._user, without_user(self.options.proxy)[1]):
            if user:
                self.secrets.remember(user)
        check_token(self._user, self.options.token, what)
        names = (*self._headers, *self._query, self.options.token and "token")
        check_way(target, self.options.proxy, names, what)
        self.target = self.service_type(self.options)
        self.target.chosen = chosen_actions(self.options.status)
        self._check_compression(what)
        self.durable = self.options.spool != "off"
        self._client: Client | None = None

    def sign(self, body: bytes) -> dict[str, str]:
        """Further headers, from the body as sent."""
        del body
        return {}

    def _check_compression(self, what: str) -> None:
        wanted = self.options.compress
        if wanted is None:
            return
        known = self.target.compressions
        if wanted not in known:
            names = " or ".join(choice.value for choice in known)
            raise ConfigError(
                f"{what}: option compress={wanted.value!r} is nothing that this target "
                f"understands; expected {names}"
            )
        require(wanted, what)

    # URL

    @classmethod
    def _prefix(cls) -> str:
        return "" if cls.scheme in ("http", "https") else f"{cls.scheme}+"

    @classmethod
    def from_url(cls, url: SinkURL) -> Self:
        """Build it from `SCHEME://HOST/PATH?options`."""
        transport = url.scheme.removeprefix(cls._prefix())
        if transport not in ("http", "https"):
            raise ConfigError(
                f"sink {url.shown}: write {cls._prefix()}http:// or "
                f"{cls._prefix()}https://"
            )
        headers: dict[str, str] = {}
        parameters: dict[str, str] = {}
        rest: dict[str, str] = {}
        for key, value in url.options.items():
            if key.startswith(_HEADER):
                headers[key.removeprefix(_HEADER)] = value
            elif key.startswith(_QUERY):
                parameters[key.removeprefix(_QUERY)] = value
            else:
                rest[key] = value
        url = replace(url, options=rest)
        options = read(cls.options_type, url)
        target = f"{transport}:{url.target}"
        return cls(target, headers=headers, query=parameters, **options)

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again, passwords left out."""
        proxy = without_user(self.options.proxy)[0]
        return self._written(query(msgspec.structs.replace(self.options, proxy=proxy)))

    @property
    def identity(self) -> str:
        """The URL without options that only tune: another one is another sink."""
        return self._written(query(self.options, hide=_TUNING))

    def _written(self, options: str) -> str:
        parts = [options] if options else []
        for prefix, values in ((_HEADER, self._headers), (_QUERY, self._query)):
            for name, value in values.items():
                parts.append(f"{prefix}{quote(name)}={quote(value, safe='/:')}")
        text = f"{self._prefix()}{self._base}"
        return f"{text}?{'&'.join(parts)}" if parts else text

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    # The target

    def _connect(self, runtime: Runtime) -> Send:
        self._client = self._new_client()
        exchange = Exchange(
            self.target,
            self._client,
            self._credentials(),
            self.secrets,
            self.options,
            runtime,
        )

        async def send(items: Sequence[Item], piece: PieceIdentity) -> Verdict:
            return await exchange.send(items, piece.name)

        return send

    def _encoding(self) -> tuple[Encode, Arrange]:
        return self.target.encode, self.target.arrange

    async def _disconnect(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _new_client(self, most: float = math.inf) -> Client:
        options = self.options
        files = (options.ca_file, options.cert_file, options.key_file)
        limits = (
            options.connect_timeout,
            options.write_timeout,
            options.answer_timeout,
            options.total_timeout,
        )
        return Client(
            self._destination(),
            tls=Tls(*files, options.server_name),
            deadlines=Deadlines(*(min(limit, most) for limit in limits)),
            proxy=options.proxy,
        )

    async def probe(self, seconds: float) -> tuple[str, str]:
        """Check the target, as the sink would reach it.

        Sends no record and changes nothing, here or there; the sink need not be open.
        Blocks for `seconds` or the sink's own deadlines, whichever is less, per question.

        Returns:
            "ok", "note" (it answers, but not whether it would take records) or "down";
            and what was found, in words without secrets.

        Raises:
            OSError: A secret is not where it should be.
        """
        client = self._new_client(seconds)
        credentials = self._credentials()

        async def send(question: Question) -> Response:
            headers = {"User-Agent": user_agent()}
            if question.method == self.target.method:
                headers |= self.target.headers((), "")
            headers |= await asyncio.to_thread(credentials.headers, question.body)
            query = await asyncio.to_thread(credentials.query)
            return await client.send(
                question.method, question.body, headers, query, path=question.path
            )

        try:
            state, said = await ask(self.target.questions(client.url.path), send)
        finally:
            await client.close()
        return state, self.secrets.scrub(said)

    @property
    def _shown(self) -> str:
        return f"{self._prefix()}{self._base}"

    def _destination(self) -> str:
        """The URL to send to."""
        parts = urlsplit(self._base)
        path = parts.path
        if path in ("", "/"):
            path = self.target.default_path or "/"
        return urlunsplit(parts._replace(path=path))

    def _credentials(self) -> Credentials:
        return Credentials(
            self.secrets,
            headers=self._headers,
            query=self._query,
            token=self.options.token,
            auth=self.options.auth or self.target.default_auth,
            user=self._user,
            sign=self.sign,
        )

    def owner(self) -> str:
        """A hash of its secrets, or empty when it has none."""
        places = (self.options.token, *self._headers.values(), *self._query.values())
        values = [self._user] + [
            self.secrets.read(place) for place in places if is_place(place)
        ]
        return fingerprint(values) if any(values) else ""
