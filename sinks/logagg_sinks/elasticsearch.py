"""Elasticsearch and OpenSearch: records created through `_bulk`.

Each record is created under its uid, so a batch that is sent again creates nothing
twice: what is there already answers 409, which is a success. The answer is read item
by item: what the cluster is too busy for is sent again, alone; what it will never take
(a mapping conflict) is a dead letter, alone.

A record becomes a document in the shapes of ECS (`_ecs_document`). Values that are
objects would conflict with plain ones of the same name in other records, so they are sent
as their JSON text (`nested=object` sends them as they are).

A document that a data stream's failure store took is not where it belongs: it is counted
as `failure_stored`, and a stream of them suspends the sink like a stream of refusals.
"""

from __future__ import annotations

import enum
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from logagg_sinks._ecs_document import document
from logagg_sinks._sink_options import Size
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.retry import Action, Kind, decide
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.http_client import Response
from logagg_sinks.http.network_sink import NetworkSink
from logagg_sinks.http.probe import Question
from logagg_sinks.http.service import HttpOptions, Service, record_of, uid

__all__ = ["ElasticsearchSink", "OpensearchSink"]

_INDEX = re.compile(r"[a-z0-9.@][a-z0-9._@-]{0,254}", re.ASCII)
_FILTER = (
    "errors,items.*.status,items.*.failure_store,"
    "items.*.error.type,items.*.error.reason"
)


class Nested(enum.Enum):
    """How values that are objects are sent."""

    TEXT = "text"
    OBJECT = "object"


class ElasticsearchOptions(HttpOptions, frozen=True, kw_only=True):
    """The options of Elasticsearch, besides those of every network sink.

    Attributes:
        index: The data stream or index.
        nested: `text` sends objects (and lists of them) as their JSON text, `object`
            as they are. An exception's parts are always fields.
        pipeline: The ingest pipeline.
    """

    index: str = "logs-logagg-default"
    nested: Nested = Nested.TEXT
    pipeline: str = ""
    batch_bytes: Size = 5 * 1024 * 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _INDEX.fullmatch(self.index):
            raise ValueError(
                f"option index={self.index!r}: expected the name of a "
                "data stream or index: lower-case letters, digits, and . _ - @"
            )


class Elasticsearch(Service):
    """A cluster."""

    kind = Kind.ELASTICSEARCH
    default_auth = "apikey"

    def __init__(self, options: ElasticsearchOptions) -> None:
        self.default_path = f"/{options.index}/_bulk"
        self._nested = options.nested is Nested.OBJECT
        self._pipeline = options.pipeline
        self._host = socket.gethostname()

    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """An action and a document, a line each."""
        made = document(record_of(line), self._host, nested=self._nested)
        name = uid(line, self._host).encode()
        data = b'{"create":{"_id":"%b"}}\n%b\n' % (name, orjson.dumps(made))
        return data, b"", len(data)

    def body(self, items: Sequence[Item]) -> bytes:
        """Lines, the last one with its newline."""
        return b"".join([item.data for item in items])

    def headers(self, items: Sequence[Item], name: str) -> dict[str, str]:
        """The type."""
        del items, name
        return {"Content-Type": "application/x-ndjson"}

    def questions(self, path: str) -> Sequence[Question]:
        """Its root, which a key for writing alone may not read."""
        head, _, last = path.rpartition("/")
        above = head.rpartition("/")[0] if last == "_bulk" else ""
        silent = "it knows the secret, which has no right to ask how it is"
        well = {200: "it answers"}
        return [Question("GET", f"{above}/", well=well, unclear={403: silent})]

    def query(self) -> dict[str, str]:
        """Select the needed part of the answer, so that it is small."""
        found = {"filter_path": _FILTER}
        if self._pipeline:
            found["pipeline"] = self._pipeline
        return found

    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """Read the outcome for each record."""
        try:
            errors, items = _items(answer.body)
        except (ValueError, TypeError, KeyError, AttributeError):
            verdict.action = Action.HOLD
            verdict.reason = "the answer is not that of Elasticsearch's _bulk"
            return
        if not items and not errors:
            return
        if len(items) != records:
            # Ids make it safe to send all again, until an answer covers all records.
            verdict.action = Action.RETRY
            verdict.reason = f"the answer has {len(items)} of {records} items"
            return
        for index, item in enumerate(items):
            action = decide(Kind.ITEM, item.status)
            if action in (Action.RETRY, Action.HOLD):
                verdict.again.append(index)
                verdict.hold = verdict.hold or action is Action.HOLD
                if len(verdict.again) == 1 or action is Action.HOLD:
                    verdict.reason = item.text
            elif action is not Action.OK:
                verdict.refused[index] = item.text
            elif item.aside:
                verdict.aside += 1
                verdict.text = item.error or "a document that does not fit the mapping"
        verdict.final = verdict.aside > 0


class Opensearch(Elasticsearch):
    """A cluster of OpenSearch, which has no API keys."""

    default_auth = "basic"


class BulkItem(NamedTuple):
    """The outcome for one document."""

    status: int
    error: str
    aside: bool

    @property
    def text(self) -> str:
        """It in words."""
        return f"item status {self.status}: {self.error}"


def _items(body: bytes) -> tuple[bool, list[BulkItem]]:
    """Whether there are errors, and each item's outcome."""
    answer = orjson.loads(body)
    errors = answer["errors"]
    if type(errors) is not bool:
        raise TypeError("errors is true or false")
    found = []
    for item in answer.get("items", ()):
        (result,) = item.values()
        error = result.get("error") or {}
        if isinstance(error, dict):
            error = ": ".join(
                str(error[key]) for key in ("type", "reason") if key in error
            )
        aside = result.get("failure_store") == "used"
        found.append(BulkItem(int(result["status"]), str(error), aside))
    return errors, found


class ElasticsearchSink(NetworkSink):
    """Create records in Elasticsearch.

    Args:
        target: `http://host:9200`; without a path, `/INDEX/_bulk` is meant.
        headers: Headers for each request.
        query: Parameters for each request.
        options: See `ElasticsearchOptions`.

    Raises:
        ConfigError: An unknown option or a bad value.
    """

    scheme = "elasticsearch"
    options_type = ElasticsearchOptions
    service_type = Elasticsearch


class OpensearchSink(ElasticsearchSink):
    """Create records in OpenSearch."""

    scheme = "opensearch"
    service_type = Opensearch
