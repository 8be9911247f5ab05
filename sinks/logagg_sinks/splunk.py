"""Splunk's HTTP Event Collector: records as events.

An event's time is the record's, to the nanosecond; `fields` has the record's uid, by
which one that came twice (an answer was lost) is recognized, not by the collector.
A record that the collector refuses is a dead letter, alone: what stood before it in the
batch was taken, what came after it is sent again.

With `ack=true` a batch counts when the indexers confirm that they have it, not when the
collector has read it; the token must have acknowledgement switched on.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from logagg.wireformat import key_ns
from logagg_sinks._sink_options import Duration
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.retry import Action, Kind
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.http_client import Response
from logagg_sinks.http.network_sink import NetworkSink
from logagg_sinks.http.probe import Question, beside
from logagg_sinks.http.service import HttpOptions, Service, record_of, uid

__all__ = ["SplunkSink"]

_COLLECTOR = "/services/collector"
_CONFIGURATION = frozenset(
    {
        1,  # the token is disabled
        2,  # no token
        3,  # not the form of an authorization
        4,  # an unknown token
        7,  # not an index of the token
        10,  # the token needs a channel, which `ack=true` sends
        11,  # not the form of a channel
        14,  # acknowledgement is switched off
        16,  # no token in a query is taken
        21,  # an unknown token (in a query)
        22,  # a token that is disabled (in a query)
    }
)
"""Codes that no record is to blame for: an operator must repair something."""


_TAKEN = frozenset({0, 24, 25})
"""Codes of a success: 24 and 25 add that a queue of the collector is nearly full."""


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


class Splunk(Service):
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
        seconds, nanoseconds = divmod(key_ns(line), 1_000_000_000)
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
        """Read the collector's code, which decides where the status does not.

        A refused event is taken out; those before it were taken.
        """
        verdict = self.verdict(answer)
        reply = _reply(answer)
        code = reply.get("code")
        code = code if type(code) is int else None
        if verdict.action is Action.OK and answer.status not in self.chosen:
            if code in _TAKEN:
                self.inspect(answer, records, verdict)
            else:
                verdict.action = Action.HOLD
                verdict.reason += ", but it is not the answer of a collector"
        elif answer.status == 400 and verdict.action is Action.DEAD:
            number = reply.get("invalid-event-number")
            if code in _CONFIGURATION:
                verdict.action = Action.HOLD
                verdict.reason += f": {reply.get('text', '')} (code {code})"
            elif type(number) is int and 0 <= number < records:
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
        if type(receipt) is not int:
            verdict.action = Action.HOLD
            verdict.reason = "the token has no acknowledgement: switch it on or ack off"
        else:
            verdict.receipt = str(receipt)

    def question(self, receipt: str, path: str) -> tuple[str, bytes]:
        """Path and body of the question whether a batch is indexed."""
        head, collector, _ = path.rpartition(_COLLECTOR)
        door = f"{head}{collector or _COLLECTOR}/ack"
        return door, b'{"acks":[%b]}' % receipt.encode()

    def confirmation(self, answer: Response, receipt: str) -> Action:
        """Judge the answer to it."""
        acks = _reply(answer).get("acks")
        if answer.status == 200 and isinstance(acks, dict):
            return Action.OK if acks.get(receipt) is True else Action.RETRY
        action = self.verdict(answer).action
        return Action.RETRY if action is Action.RETRY else Action.HOLD


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
    options_type = SplunkOptions
    service_type = Splunk
