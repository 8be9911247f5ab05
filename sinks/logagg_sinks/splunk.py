"""Splunk's HTTP Event Collector: records as events.

An event's time is the record's, to the nanosecond; `fields` has the record's uid, by
which one that came twice (an answer was lost) can be told: the collector itself cannot.
A record that the collector refuses is a dead letter, alone: what stood before it in the
batch was taken, what stood behind it is sent again.

With `ack=true` a batch counts when the indexers say that they have it, not when the
collector has read it; the token must have acknowledgement switched on.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson

from logagg import wire
from logagg_sinks._batching import Item
from logagg_sinks._client import Response
from logagg_sinks._network import NetworkSink
from logagg_sinks._options import Duration
from logagg_sinks._probe import Question, beside
from logagg_sinks._retry import Action, Kind
from logagg_sinks._target import HttpOptions, Target, Verdict, record_of, uid

__all__ = ["SplunkSink"]


class SplunkOptions(HttpOptions, frozen=True, kw_only=True):
    """The options of Splunk, besides those of every network sink.

    Attributes:
        index: The index; without it, the token's.
        source: The events' source.
        sourcetype: Their source type.
        ack: Wait for the indexers' acknowledgement.
        ack_interval: Seconds between two questions for it; after 30 the batch is sent
            again.
    """

    index: str = ""
    source: str = "logagg"
    sourcetype: str = "_json"
    ack: bool = False
    ack_interval: Duration = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ack_interval <= 0:
            raise ValueError("option ack_interval must be more than 0")


class Splunk(Target):
    """An HTTP Event Collector."""

    kind = Kind.SPLUNK
    default_path = "/services/collector/event"
    default_auth = "splunk"

    def __init__(self, options: SplunkOptions) -> None:
        self._host = socket.gethostname()
        self._ack = options.ack
        self.receipt_interval = options.ack_interval
        self._channel = str(uuid.uuid4())
        about = {"host": self._host, "source": options.source}
        about["sourcetype"] = options.sourcetype
        if options.index:
            about["index"] = options.index
        self._about = orjson.dumps(about)[1:-1]

    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """An event."""
        record = record_of(line)
        seconds, nanoseconds = divmod(wire.key_ns(line), 1_000_000_000)
        fields = {"uid": uid(line, self._host)}
        for key in ("level", "worker", "logger"):
            if isinstance(record.get(key), str) and record[key]:
                fields[key] = record[key]
        data = b'{"time":%d.%09d,%b,"event":%b,"fields":%b}' % (
            seconds,
            nanoseconds,
            self._about,
            line,
            orjson.dumps(fields),
        )
        return data, b"", len(data) + 1

    def body(self, items: Sequence[Item]) -> bytes:
        """Events, one after the other."""
        return b"\n".join([item.data for item in items])

    def headers(self, items: Sequence[Item], name: str) -> dict[str, str]:
        """Type and, for acknowledgement, channel."""
        del items, name
        found = {"Content-Type": "application/json"}
        if self._ack:
            found["X-Splunk-Request-Channel"] = self._channel
        return found

    def judge(self, answer: Response, records: int) -> Verdict:
        """A refused event is taken out; those before it were taken."""
        verdict = self.verdict(answer)
        reply = _reply(answer)
        if verdict.action is Action.OK:
            self.inspect(answer, records, verdict)
        elif answer.status == 400 and verdict.action is Action.DEAD:
            number = reply.get("invalid-event-number")
            if type(number) is int and 0 <= number < records:
                verdict.action = Action.OK
                verdict.refused = {number: f"status 400: {reply.get('text', '')}"}
                verdict.again = list(range(number + 1, records))
                verdict.at_once = True
        return verdict

    def questions(self, path: str) -> Sequence[Question]:
        """Its health; then an empty delivery, which is refused but shows the token."""
        health = beside(path, "/event", "/health")
        if health == "/health":
            health = "/services/collector/health"
        full = {503: "its queues are full"}
        empty = {400: "the token is known", 200: "the token is known"}
        return [
            Question("GET", health, well={200: "healthy"}, bad=full),
            Question("POST", path, well=empty),
        ]

    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """Take the receipt, when there is to be one."""
        del records
        if not self._ack:
            return
        receipt = _reply(answer).get("ackId")
        if receipt is None:
            verdict.action = Action.HOLD
            verdict.reason = "the token has no acknowledgement: switch it on or ack off"
        else:
            verdict.receipt = str(receipt)

    def question(self, receipt: str) -> tuple[str, bytes]:
        """Path and body of the question whether a batch is indexed."""
        return "/services/collector/ack", b'{"acks":[%b]}' % receipt.encode()

    def confirmed(self, answer: Response, receipt: str) -> bool:
        """Whether an answer says that it is."""
        acks = _reply(answer).get("acks")
        return isinstance(acks, dict) and acks.get(receipt) is True


def _reply(answer: Response) -> dict[str, Any]:
    try:
        reply = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return {}
    return reply if isinstance(reply, dict) else {}


class SplunkSink(NetworkSink):
    """Send records to Splunk's HTTP Event Collector.

    Args:
        target: `https://host:8088`; without a path, `/services/collector/event` is
            meant.
        headers: Headers for each request.
        query: Parameters for each request.
        options: See `SplunkOptions`.

    Raises:
        ConfigError: An unknown option or a bad value.
    """

    scheme = "splunk"
    options_type: ClassVar[type[HttpOptions]] = SplunkOptions

    def make_target(self) -> Target:
        """The kind of target that this sink sends to."""
        assert isinstance(self.options, SplunkOptions)
        return Splunk(self.options)
