"""From a batch to a verdict: build the request, send it, say what the answer means.

State: what compression the target understands, learnt from its answers. Secrets are
read for each request and are taken out of every text that leaves this module.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from logagg_sinks._batching import Item
from logagg_sinks._client import Client, Response, SendError
from logagg_sinks._compress import Compression, compress, weaker
from logagg_sinks._retry import Action, Kind, hint
from logagg_sinks._secret import Secrets
from logagg_sinks._target import HttpOptions, Target, Verdict

__all__ = ["Credentials", "Exchange", "Run", "user_agent"]

T = TypeVar("T")


class Run(Protocol):
    """Runs a call that blocks, on the sink's own thread."""

    def __call__(self, call: Callable[[], T]) -> Awaitable[T]:
        """Run it there and wait for its result."""


_QUESTIONS = 30  # Vector asks as often before it takes a batch as lost
_SCHEMES = {"bearer": "Bearer", "apikey": "ApiKey", "splunk": "Splunk"}


class Credentials:
    """The headers and parameters of every request, with their secrets.

    Args:
        headers: Headers; a value `env:NAME` or `file:PATH` is read when needed.
        query: Parameters, likewise.
        token: Where the secret for `Authorization` is, or "".
        auth: How it goes in there.
        user: `user:password` from the URL, or "".
        sign: Makes further headers from the body as sent.
    """

    def __init__(
        self,
        secrets: Secrets,
        *,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        token: str = "",
        auth: str = "bearer",
        user: str = "",
        sign: Callable[[bytes], dict[str, str]] = lambda _: {},
    ) -> None:
        self._secrets = secrets
        self._headers = headers
        self._query = query
        self._token = token
        self._auth = auth
        self._user = user
        self._sign = sign

    def headers(self, body: bytes) -> dict[str, str]:
        """Headers for a body. Raises OSError when a secret cannot be read."""
        found = {name: self._value(text) for name, text in self._headers.items()}
        if self._token:
            found["Authorization"] = self._authorization(
                self._secrets.read(self._token), self._auth
            )
        elif self._user:
            found["Authorization"] = self._authorization(self._user, "basic")
        return found | self._sign(body)

    def query(self) -> dict[str, str]:
        """Parameters. Raises OSError when a secret cannot be read."""
        return {name: self._value(text) for name, text in self._query.items()}

    def _value(self, text: str) -> str:
        if text.partition(":")[0] in ("env", "file"):
            return self._secrets.read(text)
        return text

    def _authorization(self, secret: str, auth: str) -> str:
        if auth == "raw":
            return secret
        if auth == "basic":
            return f"Basic {base64.b64encode(secret.encode()).decode()}"
        return f"{_SCHEMES[auth]} {secret}"


class Exchange:
    """Sends batches to a target, one at a time.

    Args:
        target: What is particular about it.
        client: The connection to it.
        credentials: Headers and parameters of every request.
        secrets: What must not appear in any text.
        options: The sink's options.
        run: Runs what blocks.
        clock: Seconds since the epoch.
        sleep: Waits so many seconds.
        count: Adds to a counter.
    """

    def __init__(
        self,
        target: Target,
        client: Client,
        credentials: Credentials,
        secrets: Secrets,
        options: HttpOptions,
        *,
        run: Run,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[Any]],
        count: Callable[[str, int], None],
    ) -> None:
        self._sleep = sleep
        self._target = target
        self._client = client
        self._credentials = credentials
        self._secrets = secrets
        self._options = options
        self._run = run
        self._clock = clock
        self._count = count
        self._wanted = options.compress or target.compressions[0]
        self.compression = self._wanted
        # Where a target documents a compression a 400 is not about that.
        self._proven = self._wanted is target.compressions[0]

    async def send(self, items: Sequence[Item], name: str) -> Verdict:
        """Send records as one request, under a name; say what became of them."""
        while True:
            used = self.compression
            try:
                answer, coding = await self._once(items, name, used)
            except SendError as failure:
                return self._failed(failure)
            except OSError as error:  # a secret is not where it should be
                return Verdict(Action.HOLD, self._clean(str(error)))
            verdict = self._target.judge(answer, len(items))
            if self._retreat(verdict, coding):
                continue
            verdict.reason = self._clean(verdict.reason)
            verdict.text = self._clean(verdict.text)
            headers = answer.headers
            verdict.asked = hint(
                headers.get("retry-after"),
                date=headers.get("date"),
                now=self._clock(),
                most=self._options.retry_after_max,
            )
            if verdict.receipt and verdict.action is Action.OK:
                await self._confirm(verdict)
            return verdict

    async def _confirm(self, verdict: Verdict) -> None:
        """Ask about a receipt until the target says yes; else it must be sent again."""
        path, body = self._target.question(verdict.receipt)
        for _ in range(_QUESTIONS):
            await self._sleep(self._target.receipt_interval)
            try:
                headers = self._target.headers((), "") | {"User-Agent": user_agent()}
                headers |= self._credentials.headers(body)
                answer = await self._client.send("POST", body, headers, {}, path=path)
            except (SendError, OSError) as error:
                verdict.reason = self._clean(str(error))
                continue
            if self._target.confirmed(answer, verdict.receipt):
                return
            verdict.reason = f"not acknowledged yet (status {answer.status})"
        verdict.action = Action.RETRY
        verdict.ambiguous = True

    def _retreat(self, verdict: Verdict, coding: str) -> bool:
        """Whether to send again, compressed less, because of an answer."""
        if verdict.action is Action.PLAIN:
            if coding:
                self.compression = weaker(self.compression)
                return True
            verdict.action = Action.DEAD
            return False
        if self._proven:
            return False
        if verdict.status == 400 and coding:  # perhaps it cannot read it
            self.compression = weaker(self.compression)
            return True
        if verdict.status == 400:  # it was not that
            self.compression = self._wanted
            self._proven = True
        elif verdict.action is Action.OK:
            self._proven = True
        return False

    async def _once(
        self, items: Sequence[Item], name: str, compression: Compression
    ) -> tuple[Response, str]:
        body, coding = await self._run(
            lambda: compress(self._target.body(items), compression)
        )
        headers = self._target.headers(items, name)
        if coding:
            headers["Content-Encoding"] = coding
        headers["User-Agent"] = user_agent()
        headers |= self._credentials.headers(body)
        query = self._target.query() | self._credentials.query()
        self._count("requests", 1)
        answer = await self._client.send(self._target.method, body, headers, query)
        self._count("bytes_sent", len(body))
        return answer, coding

    def _failed(self, failure: SendError) -> Verdict:
        action = Action.HOLD if failure.hold else Action.RETRY
        if failure.too_large and self._target.kind is Kind.OTLP:
            action = Action.DEAD  # OTLP says that this may not be tried again
        return Verdict(
            action,
            self._clean(str(failure)),
            ambiguous=failure.ambiguous,
            cut_off=failure.cut_off,
        )

    def _clean(self, text: str) -> str:
        return self._secrets.scrub(text)


def user_agent() -> str:
    """`logagg/` and the version."""
    import importlib.metadata

    global _user_agent
    if not _user_agent:
        try:
            version = importlib.metadata.version("logagg-service")
        except importlib.metadata.PackageNotFoundError:
            version = "0"
        _user_agent = f"logagg/{version}"
    return _user_agent


_user_agent = ""
