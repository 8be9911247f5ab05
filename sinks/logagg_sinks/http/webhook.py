"""The webhook: records as NDJSON or a JSON array, POSTed to any HTTP server.

A receiver answers 200, 201, 202 or 204 when it has taken a batch. It may refuse single
records of a batch it took by answering `{"rejected": [{"index": 3, "reason": "…"}]}`.
`Idempotency-Key` names a batch: it is the same when a batch is sent again, because an
answer was lost.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Sequence
from typing import ClassVar

import orjson

from logagg_sinks._compression import BodyCompression
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.retry import Kind
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.credentials import check
from logagg_sinks.http.http_client import Response
from logagg_sinks.http.network_sink import NetworkSink
from logagg_sinks.http.probe import Question
from logagg_sinks.http.service import HttpOptions, Service

__all__ = ["HttpSink", "HttpsSink"]


class WebhookFormat(enum.Enum):
    """How a batch looks."""

    NDJSON = "ndjson"
    ARRAY = "array"
    STREAM = "stream"


_TYPES = {
    WebhookFormat.NDJSON: "application/x-ndjson",
    WebhookFormat.ARRAY: "application/json",
    WebhookFormat.STREAM: "application/stream+json",
}


class WebhookOptions(HttpOptions, frozen=True, kw_only=True):
    """The options of a webhook, besides those of every network sink.

    Attributes:
        format: `ndjson` (application/x-ndjson), `array` (application/json), or
            `stream` (NDJSON as application/stream+json).
        method: POST, PUT or PATCH.
        hmac: Where a key is (`env:NAME` or `file:PATH`); each request then has
            `X-Logagg-Signature: sha256=HEX`, the HMAC of the body as sent.
    """

    format: WebhookFormat = WebhookFormat.NDJSON
    method: str = "POST"
    hmac: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("POST", "PUT", "PATCH"):
            raise ValueError(
                f"option method={self.method!r}: expected POST, PUT or PATCH"
            )
        if self.hmac:
            check(self.hmac, what="option hmac")


class Webhook(Service):
    """Any server that takes JSON."""

    kind = Kind.WEBHOOK
    compressions: ClassVar[tuple[BodyCompression, ...]] = (
        BodyCompression.NONE,
        BodyCompression.GZIP,
        BodyCompression.ZSTD,
    )

    def __init__(self, options: WebhookOptions) -> None:
        self._format = options.format
        self.method = options.method

    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """A record is sent as it is, once it is known to be one."""
        if line[:1] != b"{":
            raise ValueError("it is not a JSON object")
        orjson.loads(line)
        return line, b"", len(line) + 1

    def body(self, items: Sequence[Item]) -> bytes:
        """Lines, each with its newline; or an array."""
        if self._format is WebhookFormat.ARRAY:
            return b"[" + b",".join([item.data for item in items]) + b"]"
        return b"\n".join([item.data for item in items]) + b"\n"

    def headers(self, items: Sequence[Item], name: str) -> dict[str, str]:
        """Type, key and count."""
        return {
            "Content-Type": _TYPES[self._format],
            "Idempotency-Key": name,
            "X-Logagg-Records": str(len(items)),
        }

    def questions(self, path: str) -> Sequence[Question]:
        """HEAD: anything else might be taken for a delivery."""
        del path
        there = f"it is there; whether it takes {self.method} cannot be asked"
        well = dict.fromkeys((200, 201, 202, 204), "it answers")
        unclear = {404: "nothing is at this path, or nothing for HEAD", 501: there}
        return [Question("HEAD", well=well | {405: there}, unclear=unclear)]

    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """Read `rejected`, when the answer has it."""
        if not answer.body.lstrip().startswith(b"{"):
            return
        try:
            rejected = orjson.loads(answer.body).get("rejected")
        except orjson.JSONDecodeError:
            return
        for entry in rejected if isinstance(rejected, list) else ():
            index = entry.get("index") if isinstance(entry, dict) else None
            if type(index) is int and 0 <= index < records:
                verdict.refused[index] = str(entry.get("reason") or "rejected")


class HttpSink(NetworkSink):
    """Send records to a webhook.

    Args:
        target: The URL, `http://host/path`.
        headers: Headers for each request; see `header.NAME` in the options.
        query: Parameters for each request.
        options: See `WebhookOptions`.

    Raises:
        ConfigError: An unknown option or a bad value.
    """

    scheme = "http"
    options_type = WebhookOptions
    service_type = Webhook

    def sign(self, body: bytes) -> dict[str, str]:
        """The signature of a body as sent."""
        assert isinstance(self.options, WebhookOptions)
        if not self.options.hmac:
            return {}
        key = self.secrets.read(self.options.hmac).encode()
        digest = hmac.new(key, body, hashlib.sha256).hexdigest()
        return {"X-Logagg-Signature": f"sha256={digest}"}


class HttpsSink(HttpSink):
    """Send records to a webhook over TLS."""

    scheme = "https"
