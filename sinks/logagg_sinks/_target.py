"""What is particular about a kind of target, and the options that all of them have.

A `Target` is pure: it encodes one record, joins encoded records to a body, and reads an
answer. Everything else (batches, retries, spool, deadlines) is `_delivery`'s business.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

import orjson

from logagg_sinks._batching import Item
from logagg_sinks._client import Response
from logagg_sinks._compress import Compression
from logagg_sinks._options import Duration, Options, Size
from logagg_sinks._probe import Question
from logagg_sinks._retry import Action, Kind, decide

__all__ = ["HttpOptions", "Target", "Verdict", "chosen_actions", "uid"]


class HttpOptions(Options, frozen=True, kw_only=True):
    """The options of every network sink. Those of the target itself are
    `header.NAME=VALUE` and `query.NAME=VALUE`.

    Attributes:
        batch_records: A request holds at most so many records.
        batch_bytes: A request's body has at most so many bytes, before compression.
        batch_age: A record waits at most this long, in seconds, for others.
        record_bytes: A longer record has its longest texts cut; what was cut is said
            in their place.
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
        retry_max: The longest pause between attempts, in seconds, unless the target
            asks for more.
        retry_after_max: The longest pause that the target may ask for, in seconds.
        attempts: A batch that failed so often is dead; 0 tries for as long as
            `max_age` allows.
        max_age: A record older than this, in seconds, is not sent any more but becomes
            a dead letter; 0 sends any.
        probe_interval: The pause, in seconds, while the target refuses us altogether
            (wrong token, wrong certificate, wrong path).
        status: What a status means, where that differs: `500:retry,404:dead_letter`;
            ok, retry, split, bisect, dead_letter or hold.
        spool: The directory for undelivered records; `off` keeps them in memory, where
            they die with the process. Without it, one in the user's state directory.
        spool_bytes: How much may be undelivered; what comes then waits in the sink's
            queue, whose `policy` decides.
        dead_letter_bytes: The size at which a file of dead letters is turned over; 0
            keeps none.
        grace: Seconds that the end may take for last attempts.
    """

    batch_records: int = 1000
    batch_bytes: Size = 1024 * 1024
    batch_age: Duration = 1.0
    record_bytes: Size = 256 * 1024
    compress: Compression | None = None
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
    retry_max: Duration = 30.0
    retry_after_max: Duration = 300.0
    attempts: int = 0
    max_age: Duration = 7 * 86400.0
    probe_interval: Duration = 30.0
    status: tuple[str, ...] = ()
    spool: str = ""
    spool_bytes: Size = 1024 * 1024 * 1024
    dead_letter_bytes: Size = 100 * 1000 * 1000
    grace: Duration = 5.0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"option {name} must be more than 0")
        for name in ("attempts", "max_age", "dead_letter_bytes", "grace"):
            if getattr(self, name) < 0:
                raise ValueError(f"option {name} must not be negative")
        if self.record_bytes < 1024:
            raise ValueError("option record_bytes must be 1KiB or more")
        if self.auth and self.auth not in AUTHS:
            known = ", ".join(AUTHS)
            raise ValueError(f"option auth={self.auth!r} is not one of {known}")
        if self.auth and not self.token:
            raise ValueError("option auth needs token=env:NAME or token=file:PATH")
        if self.key_file and not self.cert_file:
            raise ValueError("option key_file needs cert_file")
        chosen_actions(self.status)


AUTHS = ("bearer", "basic", "apikey", "splunk", "raw")
_POSITIVE = (
    "batch_records",
    "batch_bytes",
    "batch_age",
    "connect_timeout",
    "write_timeout",
    "answer_timeout",
    "total_timeout",
    "retry_max",
    "retry_after_max",
    "probe_interval",
    "spool_bytes",
)


def chosen_actions(texts: Sequence[str]) -> dict[int, Action]:
    """Read the option `status`. Raises ValueError when it makes no sense."""
    found = {}
    allowed = [action.value for action in Action if action is not Action.PLAIN]
    for text in texts:
        match = re.fullmatch(r"([1-5]\d\d):(\w+)", text, re.ASCII)
        if match is None or match[2] not in allowed:
            raise ValueError(
                f"option status={text!r} is not right; expected STATUS:ACTION with "
                f"one of {', '.join(allowed)}"
            )
        found[int(match[1])] = Action(match[2])
    return found


@dataclass(slots=True)
class Verdict:
    """What became of a request.

    Attributes:
        action: What to do; with OK, what follows says about which records else.
        reason: In words, for logs and dead letters.
        status: The status, 0 without an answer.
        text: The beginning of the answer's body.
        asked: Seconds that the target asked to wait.
        refused: Records that will never be taken: index to reason.
        again: Records to send again: their indices.
        uncounted: How many more were refused, nobody knows which.
        warning: It was taken, and `text` is worth a warning.
        ambiguous: The target may have taken it although it did not say so.
        cut_off: The connection was reset before there was an answer.
        at_once: `again` is sent without a pause.
        receipt: What to ask the target about, before it counts.
        attempts: How often the records were sent.
    """

    action: Action
    reason: str = ""
    status: int = 0
    text: str = ""
    asked: float | None = None
    refused: dict[int, str] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    uncounted: int = 0
    warning: bool = False
    ambiguous: bool = False
    cut_off: bool = False
    at_once: bool = False
    receipt: str = ""
    attempts: int = 0


class Target(abc.ABC):
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
    compressions: ClassVar[tuple[Compression, ...]] = (
        Compression.GZIP,
        Compression.NONE,
    )

    chosen: Mapping[int, Action] = {}

    @abc.abstractmethod
    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """Encode one record: (data, group, size), see `Item`.

        Raises:
            ValueError: It is not a record.
        """

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
        """How to ask the target how it is without changing anything there.

        Args:
            path: Where records go to.
        """

    def judge(self, answer: Response, records: int) -> Verdict:
        """Say what an answer means for a batch of so many records."""
        verdict = self.verdict(answer)
        if verdict.action is Action.OK:
            self.inspect(answer, records, verdict)
        return verdict

    def verdict(self, answer: Response) -> Verdict:
        """What the status means."""
        text = self.message(answer)
        action = decide(self.kind, answer.status, text, self.chosen)
        return Verdict(action, f"status {answer.status}", answer.status, text[:1024])

    def message(self, answer: Response) -> str:
        """What the answer says, for people."""
        return answer.text

    receipt_interval = 10.0
    """Seconds between two questions for a receipt."""

    def question(self, receipt: str) -> tuple[str, bytes]:
        """Path and body of the question what became of a receipt."""
        raise NotImplementedError

    def confirmed(self, answer: Response, receipt: str) -> bool:
        """Whether an answer says that it is all right."""
        raise NotImplementedError

    @abc.abstractmethod
    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """Look for partial refusals in the body of a success."""


def record_of(line: bytes) -> dict[str, Any]:
    """Parse a record. Raises ValueError when it is none."""
    record = orjson.loads(line)
    if not isinstance(record, dict):
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
