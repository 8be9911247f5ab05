"""Kinds of targets: encoding, requests, answers; and the options common to all.

A `Service` is pure: it encodes one record, joins encoded records to a body, and reads an
answer. Batches, retries, the spool and deadlines belong to `delivery`.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, ClassVar

from logagg.wireformat import load_line
from logagg_sinks._compression import BodyCompression
from logagg_sinks._sink_options import Duration
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.delivery_options import SpoolOptions
from logagg_sinks.delivery.retry import Action, Kind, decide
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.http_client import Response
from logagg_sinks.http.probe import Question

__all__ = ["HttpOptions", "Service", "chosen_actions", "uid"]


class HttpOptions(SpoolOptions, frozen=True, kw_only=True):
    """The options of every HTTP sink, besides those of delivery and the spool. Those of
    the target itself are `header.NAME=VALUE` and `query.NAME=VALUE`.

    Attributes:
        compress: How bodies are compressed; those below 1 KiB never are. Without it,
            what every target of the kind understands.
        token: Where the secret for `Authorization` is: `env:NAME` or `file:PATH`.
        auth: What the secret is: `bearer`, `basic` (it is `user:password`), `apikey`,
            `splunk`, or `raw` (the whole header). Without it, what the target likes.
        ca_file: Authorities to trust instead of the system's.
        cert_file: The client's certificate.
        key_file: Its key, when it is not in the same file.
        server_name: The name to verify, when it is not the URL's host.
        proxy: A proxy's URL; without it, HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
        connect_timeout: Seconds for name look-up, TCP and TLS.
        write_timeout: Seconds for sending a body.
        answer_timeout: Seconds from then to the head of the answer.
        total_timeout: Seconds for the whole exchange.
        retry_after_max: The longest pause that the target may ask for, in seconds.
        status: What a status means, where that differs: `500:retry,404:dead_letter`;
            ok, retry, split, bisect, dead_letter or hold.
    """

    compress: BodyCompression | None = None
    token: str = ""
    auth: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    proxy: str = ""
    connect_timeout: Duration = 10.0
    write_timeout: Duration = 30.0
    answer_timeout: Duration = 30.0
    total_timeout: Duration = 60.0
    retry_after_max: Duration = 300.0
    status: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"option {name} must be more than 0")
        if self.auth and self.auth not in AUTHS:
            known = ", ".join(AUTHS)
            raise ValueError(f"option auth is not one of {known}")
        if self.auth and not self.token:
            raise ValueError("option auth needs token=env:NAME or token=file:PATH")
        if self.key_file and not self.cert_file:
            raise ValueError("option key_file needs cert_file")
        chosen_actions(self.status)


AUTHS = ("bearer", "basic", "apikey", "splunk", "raw")
_POSITIVE = (
    "connect_timeout",
    "write_timeout",
    "answer_timeout",
    "total_timeout",
    "retry_after_max",
)


def chosen_actions(texts: Sequence[str]) -> dict[int, Action]:
    """Read the option `status`. Raises ValueError when it makes no sense."""
    found = {}
    allowed = [action.value for action in Action if action is not Action.PLAIN]
    for text in texts:
        match = re.fullmatch(r"([1-5]\d\d):(\w+)", text, re.ASCII)
        if match is None or match[2] not in allowed:
            raise ValueError(
                f"option status={text!r}: expected STATUS:ACTION with "
                f"one of {', '.join(allowed)}"
            )
        found[int(match[1])] = Action(match[2])
    return found


class Service(abc.ABC):
    """A kind of target.

    Attributes:
        kind: Its column in the table of statuses.
        default_auth: How its secrets go into `Authorization`.
        compressions: What it understands, the default first.
    """

    kind: ClassVar[Kind]
    default_auth: ClassVar[str] = "bearer"
    default_path = ""
    method = "POST"
    compressions: ClassVar[tuple[BodyCompression, ...]] = (
        BodyCompression.GZIP,
        BodyCompression.NONE,
    )

    chosen: Mapping[int, Action] = {}

    @abc.abstractmethod
    def __init__(self, options: Any) -> None:
        """Read the options of its kind; see `NetworkSink.options_type`."""

    @abc.abstractmethod
    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """Encode one record: (data, group, size), see `Item`.

        Raises:
            ValueError: It is not a record.
        """

    def arrange(
        self, items: list[Item], before: Callable[[], list[Item]]
    ) -> list[Item]:
        """Make the records of a batch differ, where the target needs that.

        Called once for a batch, so a record is the same in every piece of it.

        Args:
            items: The records of the batch.
            before: Encodes those just before it in the spool, of about the same instant.
        """
        del before
        return items

    @abc.abstractmethod
    def body(self, items: Sequence[Item]) -> bytes:
        """Join encoded records; the same records always give the same bytes."""

    @abc.abstractmethod
    def headers(self, items: Sequence[Item], name: str) -> dict[str, str]:
        """The headers of a request for these records, `name` being the batch's."""

    def query(self) -> dict[str, str]:
        """Parameters that every request has."""
        return {}

    @abc.abstractmethod
    def questions(self, path: str) -> Sequence[Question]:
        """Requests that check the target and change nothing there.

        Args:
            path: Where records go to.
        """

    def judge(self, answer: Response, records: int) -> Verdict:
        """Judge an answer to a batch of so many records."""
        verdict = self.verdict(answer)
        if verdict.action is Action.OK:
            why = "" if answer.status in self.chosen else self.foreign(answer)
            if why:
                verdict.action = Action.HOLD
                verdict.reason = f"status {answer.status}, but {why}"
            else:
                self.inspect(answer, records, verdict)
        return verdict

    def foreign(self, answer: Response) -> str:
        """Why a success is not the target's own answer; empty when it may be.

        A proxy, a captive portal or a login page answers 200, too.
        """
        if is_page(answer):
            return "a web page answered, not the target"
        return ""

    def verdict(self, answer: Response) -> Verdict:
        """Judge the status alone."""
        text = self.message(answer)
        action = decide(self.kind, answer.status, text, self.chosen)
        return Verdict(action, f"status {answer.status}", answer.status, text[:8192])

    def message(self, answer: Response) -> str:
        """The text of an answer, for people."""
        return answer.text

    receipt_interval = 10.0
    """Seconds between two requests for a receipt."""

    def question(self, receipt: str, path: str) -> tuple[str, bytes]:
        """Path and body of the request that confirms a receipt.

        Args:
            receipt: The receipt.
            path: Where records go to.
        """
        raise NotImplementedError

    def confirmation(self, answer: Response, receipt: str) -> Action:
        """Judge the answer to it: OK, RETRY (not yet), or HOLD (never, as it is)."""
        raise NotImplementedError

    @abc.abstractmethod
    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """Read partial refusals from the body of a success."""


def is_page(answer: Response) -> bool:
    """Whether an answer is a web page."""
    kind = answer.headers.get("content-type", "").lower()
    return kind.startswith("text/html") or answer.body.lstrip()[:1] == b"<"


def record_of(line: bytes) -> dict[str, Any]:
    """Parse a record. Raises ValueError when it is none."""
    record = load_line(line)
    if record is None:
        raise ValueError("it is not a JSON object")
    return record


_RECEIVED = b',"received":"'


def uid(line: bytes, host: str) -> str:
    """A record's name: the same whenever and by whichever consumer it is sent.

    It covers the whole record except for when it was received, so that a record that a
    worker handed to two consumers (the first one died) has one name.
    """
    at = line.rfind(_RECEIVED)
    digest = blake2b(line[:at] if at > 0 else line, digest_size=16)
    digest.update(host.encode())
    return digest.hexdigest()
