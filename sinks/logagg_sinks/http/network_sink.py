"""Base of all network sinks: a URL with options, a spool, and a loop that delivers.

Order: as in the stream; one request at a time. Loss: none by the sink. `write` returns
when the records are in the spool on disk, which survives the death of the process (so
the sink is `durable`); with `spool=off` they are in memory only and it is not. Each
record then is either taken by the target, or a dead letter with a reason, or still in
the spool. A request whose answer was lost is sent again with the same content and
name: such duplicates are recognized by `Idempotency-Key` or by each record's uid.

`write` waits while the spool is full, `flush` until everything is delivered or an
attempt has failed, `close` for at most `grace`.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

import msgspec

from logagg.abc import Batch, Sink, SinkURL, shown_url
from logagg.errors import ConfigError, SinkUnavailable
from logagg.spool_directory import name_of, sink_root
from logagg_sinks._compression import require
from logagg_sinks._executor import SerialExecutor
from logagg_sinks._sink_options import make, query, read
from logagg_sinks.delivery.batch_work import BatchWork
from logagg_sinks.delivery.condition import Health, SinkCondition, SinkState
from logagg_sinks.delivery.dead_letters import Letters
from logagg_sinks.delivery.delivery_loop import Delivery
from logagg_sinks.delivery.loader import Loader, Runtime
from logagg_sinks.delivery.spools import Spools
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

T = TypeVar("T")

_HEADER, _QUERY = "header.", "query."
_TUNING = frozenset(HttpOptions.__struct_fields__)


class NetworkSink(Sink):
    """Base of the sinks that send HTTP requests.

    Args:
        target: `http://…` or `https://…`.
        headers: Headers of each request. One that carries a secret is `env:NAME` or
            `file:PATH`; others may be, too.
        query: Parameters of each request, likewise.
        options: See the sink's options.

    Raises:
        ConfigError: An unknown option, a bad value, or a secret in plain text.

    Attributes:
        clock: Seconds since the epoch.
        sleep: Waits between attempts.
        chance: A random number from 0 to 1, for the back-off.
    """

    durable = True
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
        self.clock: Callable[[], float] = time.time
        self.sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
        self.chance: Callable[[], float] = random.random
        self._executor: SerialExecutor | None = None
        self._client: Client | None = None
        self._delivery: Delivery | None = None
        self._task: asyncio.Task[None] | None = None
        self._letters: Letters | None = None
        self._spools: Spools | None = None
        self._left: Health | None = None

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
        self._client = self._new_client()
        runtime = Runtime(self._run, self.count, self._now, self.sleep, self.chance)
        condition = SinkCondition(self._shown, self.alarm)
        target = self.target
        loader = Loader(target.encode, target.arrange, options, runtime)
        exchange = Exchange(
            target, self._client, self._credentials(), self.secrets, options, runtime
        )

        def work(changed: Callable[[], None]) -> BatchWork:
            return BatchWork(
                condition=condition,
                loader=loader,
                send=exchange.send,
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

    def _now(self) -> float:
        return self.clock()

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

    def owner(self) -> str:
        """A hash of its secrets, or empty when it has none."""
        places = (self.options.token, *self._headers.values(), *self._query.values())
        values = [self._user] + [
            self.secrets.read(place) for place in places if is_place(place)
        ]
        return fingerprint(values) if any(values) else ""

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
        delivery, client, executor = self._delivery, self._client, self._executor
        if task is None or delivery is None or client is None or executor is None:
            return
        delivery.finish()
        try:
            await asyncio.wait([task], timeout=self.options.grace)
        finally:
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
                await client.close()
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
