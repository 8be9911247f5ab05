"""From spool to verdict: make a batch, send it as a request, judge the answer.

State: what compression the target understands, learnt from its answers. Secrets are
read for each request and are taken out of every text that leaves this module.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Mapping, Sequence

from logagg_sinks._compression import BodyCompression, compress_body, weaker
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.loader import Runtime
from logagg_sinks.delivery.retry import Action, Kind, hint
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.credentials import Secrets, is_place
from logagg_sinks.http.http_client import Client, Response, SendError
from logagg_sinks.http.service import HttpOptions, Service

__all__ = ["Credentials", "Exchange", "user_agent"]

_MOST_TEXT = 8192  # characters of an answer that are searched for secrets
_SHOWN_TEXT = 1024
_MOST_REASON = 2 * _SHOWN_TEXT
_MOST_REASONS = 256 * 1024  # characters of an answer's reasons that are searched
_LEFT_OUT = "refused; the answer has more reasons than are shown"
_CONFIRMATIONS = 30  # as many as Vector makes before it takes a batch as lost
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
        if is_place(text):
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
        target: The kind of target.
        client: The connection to it.
        credentials: Headers and parameters of every request.
        secrets: What must not appear in any text.
        options: The sink's options.
        runtime: The sink's thread, counters and clocks.
    """

    def __init__(
        self,
        target: Service,
        client: Client,
        credentials: Credentials,
        secrets: Secrets,
        options: HttpOptions,
        runtime: Runtime,
    ) -> None:
        self._runtime = runtime
        self._target = target
        self._client = client
        self._credentials = credentials
        self._secrets = secrets
        self._options = options
        self._wanted = options.compress or target.compressions[0]
        self.compression = self._wanted
        self._unconfirmed: tuple[str, Verdict] | None = None
        # Where a target documents a compression a 400 is not about that.
        self._proven = self._wanted is target.compressions[0]

    async def send(self, items: Sequence[Item], name: str) -> Verdict:
        """Send records as one request, under a name; judge its outcome."""
        if self._unconfirmed is not None and self._unconfirmed[0] == name:
            return await self._confirm(name, self._unconfirmed[1])
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
            await self._runtime.run(functools.partial(self._scrub, verdict))
            headers = answer.headers
            verdict.asked = hint(
                headers.get("retry-after"),
                date=headers.get("date"),
                now=self._runtime.clock(),
                most=self._options.retry_after_max,
            )
            if verdict.receipt and verdict.action is Action.OK:
                return await self._confirm(name, verdict)
            return verdict

    async def _confirm(self, name: str, verdict: Verdict) -> Verdict:
        """Have a receipt confirmed; without that the batch must be sent again.

        A target that refuses the question has the batch all the same: it is asked again
        after the pause, under the same name, and the batch is not sent again.
        """
        self._unconfirmed = (name, verdict)
        path, body = self._target.question(verdict.receipt, self._client.url.path)
        why = ""
        for _ in range(_CONFIRMATIONS):
            await self._runtime.sleep(self._target.receipt_interval)
            try:
                headers = self._target.headers((), "") | {"User-Agent": user_agent()}
                found, query = await self._authorized(body)
                headers |= found
                query = dict(self._client.url.query) | query
                answer = await self._client.send(
                    "POST", body, headers, query, path=path
                )
            except (SendError, OSError) as error:
                why = self._clean(str(error))
                continue
            action = self._target.confirmation(answer, verdict.receipt)
            if action is Action.OK:
                self._unconfirmed = None
                return verdict
            why = f"not acknowledged yet (status {answer.status})"
            if action is Action.HOLD:
                text = self._clean(self._target.message(answer))[:200]
                why = f"cannot be asked for acknowledgement: status {answer.status}"
                return Verdict(Action.HOLD, f"{why}: {text}" if text else why)
        self._unconfirmed = None
        return Verdict(Action.RETRY, why, ambiguous=True)

    def _retreat(self, verdict: Verdict, coding: str) -> bool:
        """Whether to send again, compressed less, because of an answer."""
        if verdict.action is Action.PLAIN:
            if coding:
                self.compression = weaker(self.compression)
                return True
            verdict.action = Action.HOLD
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
        self, items: Sequence[Item], name: str, compression: BodyCompression
    ) -> tuple[Response, str]:
        body, coding = await self._runtime.run(
            lambda: compress_body(self._target.body(items), compression)
        )
        headers = self._target.headers(items, name)
        if coding:
            headers["Content-Encoding"] = coding
        headers["User-Agent"] = user_agent()
        found, query = await self._authorized(body)
        headers |= found
        self._runtime.count("requests", 1)
        answer = await self._client.send(self._target.method, body, headers, query)
        self._runtime.count("bytes_sent", len(body))
        return answer, coding

    async def _authorized(self, body: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and parameters; a disk that hangs holds up this sink alone."""
        credentials = self._credentials
        found, query = await self._runtime.run(
            lambda: (credentials.headers(body), credentials.query())
        )
        return found, self._target.query() | query

    def _failed(self, failure: SendError) -> Verdict:
        action = Action.HOLD if failure.hold else Action.RETRY
        if failure.too_large and self._target.kind is Kind.OTLP:
            action = Action.DEAD  # OTLP forbids to try this again
        return Verdict(
            action,
            self._clean(str(failure)),
            ambiguous=failure.ambiguous,
            cut_off=failure.cut_off,
        )

    def _scrub(self, verdict: Verdict) -> None:
        """Take secrets out of all texts of an answer, before they are cut."""
        verdict.reason = self._clean(verdict.reason)
        if verdict.action is Action.OK and not (
            verdict.refused or verdict.uncounted or verdict.warning or verdict.aside
        ):
            verdict.text = ""  # of no interest to anybody
        verdict.text = self._clean(verdict.text)[:_SHOWN_TEXT]
        reasons: dict[str, str] = {}
        room = _MOST_REASONS
        for index, reason in verdict.refused.items():
            cut = reason[:_MOST_REASON]
            if cut not in reasons:
                room -= len(cut)
                shown = self._clean(cut)[:_SHOWN_TEXT] if room >= 0 else _LEFT_OUT
                reasons[cut] = shown
            verdict.refused[index] = reasons[cut]

    def _clean(self, text: str) -> str:
        return self._secrets.scrub(text[:_MOST_TEXT])


def user_agent() -> str:
    """`logagg/` and the version."""
    import importlib.metadata  # slow; only a sink that sends needs it

    global _user_agent
    if not _user_agent:
        try:
            version = importlib.metadata.version("logagg-service")
        except importlib.metadata.PackageNotFoundError:
            version = "0"
        _user_agent = f"logagg/{version}"
    return _user_agent


_user_agent = ""
