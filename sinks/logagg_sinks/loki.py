"""Grafana Loki: records pushed as JSON, one stream a set of labels.

Labels are few, so that Loki's streams are: `service_name`, `host` and `level`, and what
`labels` adds. What tells processes apart (worker, pid, logger) is structured metadata.
A line is the whole record, so that no two are equal and Loki, which drops equal ones of
the same time, drops none that is not a repetition; equal times within a batch are made
different by a nanosecond, because Loki may exchange them otherwise.

Loki refuses what is older than a week (`max_age`, the default here) and says so for a
whole push after it has stored the rest; so a refused push is sent again in halves, of
which Loki ignores what it has, until what it refuses stands alone.
"""

from __future__ import annotations

import enum
import re
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson

from logagg import wire
from logagg_sinks._batching import Item
from logagg_sinks._client import Response
from logagg_sinks._network import NetworkSink
from logagg_sinks._probe import Question, beside
from logagg_sinks._retry import Kind
from logagg_sinks._target import HttpOptions, Target, Verdict, record_of

__all__ = ["LokiSink"]

MOST_LABELS = 15
MOST_LABEL_BYTES = 2048
MOST_METADATA = 128
MOST_METADATA_BYTES = 32 * 1024  # half of what Loki takes
_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]", re.ASCII)
_SEPARATOR = b"\0"  # between time and rest: neither holds one


class Line(enum.Enum):
    """What a line in Loki is."""

    JSON = "json"
    MESSAGE = "message"


class LokiOptions(HttpOptions, frozen=True, kw_only=True):
    """The options of Loki, besides those of every network sink.

    Attributes:
        labels: Labels, as `name=value` (`env=prod`), or as the name of a field of the
            record (`logger`) whose value becomes the label's.
        service: The label `service_name`.
        line: `json`, the whole record; or `message`, its message, with all other fields
            as structured metadata.
        tenant: The tenant (`X-Scope-OrgID`).
    """

    labels: tuple[str, ...] = ()
    service: str = "logagg"
    line: Line = Line.JSON
    tenant: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.labels:
            name = text.partition("=")[0]
            if not _LABEL.fullmatch(name):
                raise ValueError(
                    f"option labels has {name!r}, which cannot be a label's name; it "
                    "has letters, digits and _, and begins with neither a digit nor __"
                )
        if not self.tenant.isprintable():
            raise ValueError("option tenant has characters that no header can have")
        if len({text.partition("=")[0] for text in self.labels} | _BASE) > MOST_LABELS:
            raise ValueError(f"option labels: Loki takes {MOST_LABELS} at most")


_BASE = frozenset({"service_name", "host", "level"})
_METADATA = ("worker", "pid", "logger", "trace_id", "span_id")
_NOT_METADATA = frozenset({"timestamp", "message", "level", "received"})


class Loki(Target):
    """Loki, or what understands its push."""

    kind = Kind.LOKI
    default_path = "/loki/api/v1/push"

    def __init__(self, options: LokiOptions) -> None:
        self._labels = {
            "service_name": options.service,
            "host": socket.gethostname(),
            "level": "",
        }
        self._fields = ["level"]
        for text in options.labels:
            name, equals, value = text.partition("=")
            if equals:
                self._labels[name] = value
            else:
                self._labels[name] = ""
                self._fields.append(name)
        self._message_only = options.line is Line.MESSAGE
        self._tenant = options.tenant

    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """Time and the rest of an entry; its group is its stream."""
        record = record_of(line)
        labels = dict(self._labels)
        for name in self._fields:
            labels[name] = _clip(_flat(record.get(name)), MOST_LABEL_BYTES)
        labels = {name: value for name, value in labels.items() if value}
        text = line.decode()
        metadata = {name: _flat(record[name]) for name in _METADATA if name in record}
        if self._message_only:
            text = _flat(record.get("message", ""))
            metadata = _all(record)
        time = str(max(0, wire.key_ns(line)) or 1).encode()
        rest = orjson.dumps([text, metadata])
        group = orjson.dumps(labels, option=orjson.OPT_SORT_KEYS)
        data = time + _SEPARATOR + rest
        return data, group, len(data) + len(group) + 32

    def body(self, items: Sequence[Item]) -> bytes:
        """One stream a set of labels, times within each strictly different."""
        streams: dict[bytes, list[Any]] = {}
        taken: dict[bytes, set[int]] = {}
        for item in items:
            text, _, rest = item.data.partition(_SEPARATOR)
            time = int(text)
            used = taken.setdefault(item.group, set())
            while time in used:
                time += 1
            used.add(time)
            value = b'["%d",%b' % (time, rest[1:])
            streams.setdefault(item.group, []).append(orjson.Fragment(value))
        found = [
            {"stream": orjson.Fragment(labels), "values": values}
            for labels, values in streams.items()
        ]
        return orjson.dumps({"streams": found})

    def headers(self, items: Sequence[Item], name: str) -> dict[str, str]:
        """Type and tenant."""
        del items, name
        found = {"Content-Type": "application/json"}
        if self._tenant:
            found["X-Scope-OrgID"] = self._tenant
        return found

    def questions(self, path: str) -> Sequence[Question]:
        """Whether it is ready; a gateway before it may not pass that on."""
        door = beside(path, self.default_path, "/ready")
        hidden = "it answers, but does not let us ask Loki (a gateway?)"
        bad = {503: "Loki is not ready"}
        return [
            Question("GET", door, well={200: "ready"}, unclear={404: hidden}, bad=bad)
        ]

    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """A success is one for every record."""


def _all(record: dict[str, Any]) -> dict[str, str]:
    """All fields as structured metadata, as many as Loki takes."""
    found: dict[str, str] = {}
    size = 0
    for key, value in record.items():
        if key in _NOT_METADATA:
            continue
        text = _clip(_flat(value), MOST_METADATA_BYTES // 4)
        size += len(key.encode()) + len(text.encode())
        if len(found) >= MOST_METADATA - 1 or size > MOST_METADATA_BYTES:
            found["logagg_truncated"] = "true"
            break
        found[_NOT_IN_A_NAME.sub("_", key) or "_"] = text
    return found


def _flat(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()


def _clip(text: str, most: int) -> str:
    if len(text) * 4 <= most:
        return text
    return text.encode()[:most].decode("utf-8", "ignore")


class LokiSink(NetworkSink):
    """Push records to Loki.

    Args:
        target: `http://host:3100`; without a path, `/loki/api/v1/push` is meant.
        headers: Headers for each request.
        query: Parameters for each request.
        options: See `LokiOptions`.

    Raises:
        ConfigError: An unknown option or a bad value.
    """

    scheme = "loki"
    options_type: ClassVar[type[HttpOptions]] = LokiOptions

    def make_target(self) -> Target:
        """The kind of target that this sink sends to."""
        assert isinstance(self.options, LokiOptions)
        return Loki(self.options)
