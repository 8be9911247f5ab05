"""Elasticsearch and OpenSearch: records created through `_bulk`.

Each record is created under its uid, so a batch that is sent again creates nothing
twice: what is there already answers 409, which is a success. The answer is read item
by item: what the cluster is too busy for is sent again, alone; what it will never take
(a mapping conflict) is a dead letter, alone.

`timestamp` becomes `@timestamp`, which a data stream needs. Values that are objects
would conflict with plain ones of the same name in other records, so they are sent as
their JSON text (`nested=object` sends them as they are).
"""

from __future__ import annotations

import enum
import re
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson

from logagg_sinks._batching import Item
from logagg_sinks._client import Response
from logagg_sinks._network import NetworkSink
from logagg_sinks._options import Size
from logagg_sinks._probe import Question
from logagg_sinks._retry import Action, Kind, decide
from logagg_sinks._target import HttpOptions, Target, Verdict, record_of, uid

__all__ = ["ElasticsearchSink", "OpensearchSink"]

_INDEX = re.compile(r"[a-z0-9.@][a-z0-9._@-]{0,254}", re.ASCII)
_FILTER = "errors,items.*.status,items.*.error.type,items.*.error.reason"


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
                f"option index={self.index!r} is not right; expected the name of a "
                "data stream or index: lower-case letters, digits, and . _ - @"
            )


class Elasticsearch(Target):
    """A cluster."""

    kind = Kind.ELASTICSEARCH
    default_auth = "apikey"

    def __init__(self, options: ElasticsearchOptions) -> None:
        self.default_path = f"/{options.index}/_bulk"
        self._text = options.nested is Nested.TEXT
        self._pipeline = options.pipeline
        self._host = socket.gethostname()

    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """An action and a document, a line each."""
        record = record_of(line)
        document: dict[str, Any] = {"@timestamp": record.pop("timestamp", None)}
        if document["@timestamp"] is None:
            raise ValueError("it has no timestamp")
        for key, value in record.items():
            document[key or "_"] = self._value(key, value)
        document.setdefault("host", self._host)
        name = uid(line, self._host).encode()
        data = b'{"create":{"_id":"%b"}}\n%b\n' % (name, orjson.dumps(document))
        return data, b"", len(data)

    def _value(self, key: str, value: Any) -> Any:
        if not self._text:
            return value
        if key == "exception" and isinstance(value, dict):
            return {part: _plain(value[part]) for part in value}
        return _plain(value)

    def body(self, items: Sequence[Item]) -> bytes:
        """Lines, the last one with its newline."""
        return b"".join([item.data for item in items])

    def headers(self, items: Sequence[Item], name: str) -> dict[str, str]:
        """The type."""
        del items, name
        return {"Content-Type": "application/x-ndjson"}

    def questions(self, path: str) -> Sequence[Question]:
        """What it says of itself, which a key for writing alone may not ask."""
        head, _, last = path.rpartition("/")
        above = head.rpartition("/")[0] if last == "_bulk" else ""
        silent = "it knows the secret, which has no right to ask how it is"
        well = {200: "it answers"}
        return [Question("GET", f"{above}/", well=well, unclear={403: silent})]

    def query(self) -> dict[str, str]:
        """What of the answer is needed, so that it is small."""
        found = {"filter_path": _FILTER}
        if self._pipeline:
            found["pipeline"] = self._pipeline
        return found

    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """Say for each record what became of it."""
        try:
            errors, items = _items(answer.body)
        except (ValueError, TypeError, KeyError, AttributeError):
            verdict.action = Action.HOLD
            verdict.reason = "the answer is not that of Elasticsearch's _bulk"
            return
        if not errors:
            return
        if len(items) != records:
            # Ids make it safe to send all again, until the answer says which it means.
            verdict.action = Action.RETRY
            verdict.reason = f"the answer has {len(items)} of {records} items"
            return
        worst = ""
        for index, (status, reason) in enumerate(items):
            action = decide(Kind.ITEM, status)
            if action is Action.RETRY:
                verdict.again.append(index)
                worst = worst or f"item status {status}: {reason}"
            elif action is not Action.OK:
                verdict.refused[index] = f"item status {status}: {reason}"
        if worst:
            verdict.reason = worst


class Opensearch(Elasticsearch):
    """A cluster of OpenSearch, which has no API keys."""

    default_auth = "basic"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return orjson.dumps(value).decode()
    return value


def _items(body: bytes) -> tuple[bool, list[tuple[int, str]]]:
    """Whether there are errors, and each item's status and reason."""
    answer = orjson.loads(body)
    found = []
    for item in answer.get("items", ()):
        (result,) = item.values()
        error = result.get("error") or {}
        if isinstance(error, dict):
            error = ": ".join(
                str(error[key]) for key in ("type", "reason") if key in error
            )
        found.append((int(result["status"]), str(error)))
    return bool(answer["errors"]), found


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
    options_type: ClassVar[type[HttpOptions]] = ElasticsearchOptions

    def make_target(self) -> Target:
        """The kind of target that this sink sends to."""
        assert isinstance(self.options, ElasticsearchOptions)
        return Elasticsearch(self.options)


class OpensearchSink(ElasticsearchSink):
    """Create records in OpenSearch."""

    scheme = "opensearch"

    def make_target(self) -> Target:
        """The kind of target that this sink sends to."""
        assert isinstance(self.options, ElasticsearchOptions)
        return Opensearch(self.options)
