"""What all network sinks are: a URL with options, a spool, and a loop that delivers.

Order: as in the stream; one request at a time. Loss: none by the sink. `write` returns
when the records are in the spool on disk, which survives the death of the process (so
the sink is `durable`); with `spool=off` they are in memory only and it is not. Each
record then is either taken by the target, or a dead letter with a reason, or still in
the spool. A request whose answer was lost is sent again with the same content and
name: such duplicates can be told by `Idempotency-Key` or by each record's uid.

Blocking: `write` waits while the spool is full, `flush` until everything is delivered
or an attempt has failed, `close` for at most `grace`.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import msgspec

from logagg.abc import Batch, Sink
from logagg.errors import ConfigError, SinkUnavailable
from logagg.sinks import SinkURL
from logagg_sinks._client import Client, Deadlines, Response, Tls, check_target
from logagg_sinks._compress import Compression, zstd_or_refuse
from logagg_sinks._deadletter import DeadLetters
from logagg_sinks._delivery import Delivery
from logagg_sinks._exchange import Credentials, Exchange, user_agent
from logagg_sinks._health import Health, State
from logagg_sinks._lane import Lane
from logagg_sinks._ledger import Letters
from logagg_sinks._options import make, query, read
from logagg_sinks._parked import DEAD_LETTERS, claim, inboxes, name_of, root
from logagg_sinks._probe import Question, ask
from logagg_sinks._secret import Secrets, check, looks_secret
from logagg_sinks._spool import DiskSpool, MemorySpool, Spool
from logagg_sinks._target import HttpOptions, Target, chosen_actions

__all__ = ["NetworkSink"]

T = TypeVar("T")

_HEADER, _QUERY = "header.", "query."
_OURS = frozenset(
    {
        "content-length",
        "content-encoding",
        "content-type",
        "transfer-encoding",
        "host",
        "connection",
        "user-agent",
    }
)
_TUNING = frozenset(HttpOptions.__struct_fields__)


class NetworkSink(Sink):
    """The base of the sinks that speak HTTP.

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
    options_type: ClassVar[type[HttpOptions]] = HttpOptions

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
        base, self._user = _without_user(target)
        what = f"sink {self._prefix()}{base}"
        check_target(target, what=what)
        self.options = make(self.options_type, options, what=what)
        self._headers = _checked(headers or {}, "header", what)
        self._query = _checked(query or {}, "parameter", what)
        self._base = base
        if self._user:
            self.secrets.remember(self._user)
        if self._user and self.options.token:
            raise ConfigError(f"{what}: a password in the URL and a token; give one")
        if self.options.token:
            check(self.options.token, what=f"{what}: option token")
        self._secrets_of_proxy()
        self.target = self.make_target()
        self.target.chosen = chosen_actions(self.options.status)
        self._check_compression(what)
        self.durable = self.options.spool != "off"
        self.clock: Callable[[], float] = time.time
        self.sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
        self.chance: Callable[[], float] = random.random
        self._lane: Lane | None = None
        self._client: Client | None = None
        self._delivery: Delivery | None = None
        self._task: asyncio.Task[None] | None = None
        self._letters: Letters | None = None

    def make_target(self) -> Target:
        """The kind of target that this sink sends to."""
        raise NotImplementedError

    def sign(self, body: bytes) -> dict[str, str]:
        """Further headers, from the body as sent."""
        del body
        return {}

    def _secrets_of_proxy(self) -> None:
        user = _without_user(self.options.proxy)[1]
        if user:
            self.secrets.remember(user)

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
        if wanted is Compression.ZSTD:
            zstd_or_refuse(what)

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
        url = SinkURL(url.text, url.scheme, url.target, rest)
        options = msgspec.structs.asdict(read(cls.options_type, url))
        target = f"{transport}:{url.target}"
        return cls(target, headers=headers, query=parameters, **options)

    @property
    def url(self) -> str:
        """The sink as a URL that builds the same one again, passwords left out."""
        options = self.options
        if options.proxy:
            options = msgspec.structs.replace(
                options, proxy=_without_user(options.proxy)[0]
            )
        return self._written(query(options))

    @property
    def identity(self) -> str:
        """What makes it this sink, and not another to the same host: no tuning."""
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
        self._lane = Lane(f"logagg-{self.scheme}")
        try:
            spools = await self._run(self._open_spools)
        except OSError as error:
            self._lane.shutdown(wait=False)
            self._lane = None
            raise SinkUnavailable(
                f"sink {self._shown}: cannot open its spool: {error.strerror or error}"
            ) from error
        options = self.options
        self._client = self._new_client()
        exchange = Exchange(
            self.target,
            self._client,
            self._credentials(),
            self.secrets,
            options,
            run=self._run,
            clock=self._now,
            sleep=self.sleep,
            count=self.count,
        )
        self._delivery = Delivery(
            name=self._shown,
            target=self.target,
            exchange=exchange,
            options=options,
            spools=spools,
            letters=self._letters,
            inboxes=self._inboxes,
            run=self._run,
            count=self.count,
            clock=self._now,
            sleep=self.sleep,
            chance=self.chance,
        )
        self._task = asyncio.create_task(self._delivery.run(), name=self._shown)

    def _new_client(self, most: float = math.inf) -> Client:
        options = self.options
        return Client(
            self._destination(),
            tls=Tls(
                options.ca_file,
                options.cert_file,
                options.key_file,
                options.server_name,
            ),
            deadlines=Deadlines(
                min(options.connect_timeout, most),
                min(options.write_timeout, most),
                min(options.answer_timeout, most),
                min(options.total_timeout, most),
            ),
            proxy=options.proxy,
        )

    async def probe(self, patience: float) -> tuple[str, str]:
        """Ask the target how it is, as the sink would speak to it.

        Sends no record and changes nothing, here or there; the sink need not be open.
        Blocks for `patience` seconds at most for each question, or for what the sink's
        own deadlines say when that is less.

        Returns:
            "ok", "note" (it answers, but not whether it would take records) or "down";
            and what was found, in words without secrets.

        Raises:
            OSError: A secret is not where it should be.
        """
        client = self._new_client(patience)
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
        """Where its spools and dead letters are."""
        if self.options.spool not in ("", "off"):
            return Path(self.options.spool)
        return root() / name_of(self.identity)

    def park_in(self, folder: Path) -> None:
        """Use this directory, whatever the options say; before `open`."""
        self.options = msgspec.structs.replace(self.options, spool=str(folder))

    def _open_spools(self) -> list[Spool]:
        options = self.options
        if options.spool == "off" and not options.dead_letter_bytes:
            return [MemorySpool(options.spool_bytes)]
        own, others = claim(self.folder, self.url, options.spool_bytes)
        if options.dead_letter_bytes:
            path = self.folder / f"{DEAD_LETTERS}{own.folder.name}.ndjson"
            self._letters = Letters(
                DeadLetters(path, options.dead_letter_bytes),
                self._shown,
                self._now,
                self.count,
            )
        torn = sum(spool.torn for spool in (own, *others))
        if torn:
            self.count("torn", torn)
        if options.spool == "off":
            self._placeholder = own  # holds the name of the dead letters
            return [*others, MemorySpool(options.spool_bytes)]
        return [*others, own]

    _placeholder: DiskSpool | None = None

    def _inboxes(self) -> list[DiskSpool]:
        return inboxes(self.folder)

    async def _run(self, call: Callable[[], T]) -> T:
        if self._lane is None:
            raise SinkUnavailable(f"sink {self._shown} is not open")
        return await asyncio.wrap_future(self._lane.submit(call))

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
        """Send what waits for company; wait until everything is delivered.

        It returns early when an attempt fails: what is left then stays in the spool.
        """
        await self._opened().flush()

    async def recall(self, since: bytes) -> frozenset[bytes]:
        """Which records stamped at or after a sort key came into the spool already.

        After the consumer was killed: everything that is not delivered, and nearly
        everything that was delivered last.
        """
        spools = [one for one in self._opened().spools if isinstance(one, DiskSpool)]
        return await self._run(
            lambda: frozenset().union(*(spool.recall(since) for spool in spools))
        )

    async def reopen(self) -> None:
        """Try again now, with certificates and secrets as they are now."""
        self._opened().hurry()

    async def close(self) -> None:
        """Make last attempts within `grace`, and let go. May be called twice.

        What is not delivered then stays in the spool for the next process; with
        `spool=off` it is lost, and counted as `dropped`.
        """
        task, self._task = self._task, None
        delivery, client, lane = self._delivery, self._client, self._lane
        if task is None or delivery is None or client is None or lane is None:
            return
        delivery.finish()
        try:
            await asyncio.wait([task], timeout=self.options.grace)
        finally:
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
                await client.close()
            finally:
                self._let_go(delivery, lane)

    def _let_go(self, delivery: Delivery, lane: Lane) -> None:
        own = delivery.spools[-1]
        if isinstance(own, MemorySpool) and own.records:
            self.count("dropped", own.records)
        self._left = delivery.health()
        for spool in delivery.spools:
            lane.submit(spool.close)
        if self._placeholder is not None:
            lane.submit(self._placeholder.close)
        self._delivery = None
        lane.shutdown(wait=True)
        self._lane = None

    _left: Health | None = None

    def health(self) -> Health:
        """How the sink is; after `close`, how it was then."""
        if self._delivery is not None:
            return self._delivery.health()
        return self._left or Health(State.OK, 0.0, "", 0, 0, 0, 0.0)


def _without_user(url: str) -> tuple[str, str]:
    """The URL without user and password, and these."""
    head, slashes, rest = url.partition("//")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    if not slashes or not at:
        return url, ""
    return f"{head}//{host}{slash}{path}", unquote(user)


def _checked(values: Mapping[str, str], kind: str, what: str) -> dict[str, str]:
    """Refuse what cannot be sent, and secrets in plain text."""
    for name, value in values.items():
        shown = f"{what}: {kind} {name!r}"
        if not name or not (name + value).isprintable() or not name.isascii():
            raise ConfigError(
                f"{shown} cannot be sent: it has characters that none has"
            )
        if kind == "header" and name.lower() in _OURS:
            raise ConfigError(f"{shown} is set by the sink itself; leave it out")
        if looks_secret(name):
            check(value, what=shown)
    return dict(values)
