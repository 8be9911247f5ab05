"""Grafana Loki: records pushed as JSON, one stream a set of labels.

Labels are few, so that Loki's streams are: `service_name`, `host` and `level`, and what
`labels` adds. The fields of a process (worker, pid, logger) are structured metadata.
A line is the whole record, so that no two are equal and Loki, which drops a line that
equals another one of the same stream and time, drops none that is not a repetition. With
`line=message` two records may be equal there: the later one is moved by a nanosecond. Its
time follows from the records before it in the spool, however these are cut into batches:
halves, the next batch, and a repetition after a restart have the times of one whole.

Loki refuses what is older than a week (`max_age`, the default here), with one answer for
a whole push after it has stored the rest; so a refused push is sent again in halves, of
which Loki ignores what it has, until what it refuses stands alone.
"""

from __future__ import annotations

import enum
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from logagg.wireformat import key_ns
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.retry import Action, Kind
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.http_client import Response
from logagg_sinks.http.network_sink import NetworkSink
from logagg_sinks.http.probe import Question, beside
from logagg_sinks.http.service import HttpOptions, Service, is_page, record_of

__all__ = ["LokiSink"]

MOST_LABELS = 15
MOST_LABEL_BYTES = 2048
MOST_NAME_BYTES = 1000
MOST_METADATA = 128
MOST_METADATA_BYTES = 32 * 1024  # half of what Loki takes
_LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]", re.ASCII)
_OPERATOR = re.compile(
    r"allow_structured_metadata|missing required labels|label names; limit"
)
_STREAM = re.compile(r"\{.*\}", re.DOTALL)  # its labels, with texts of records
_SEPARATOR = b"\0"  # between time and rest: neither holds one


class Line(enum.Enum):
    """Content of a line in Loki."""

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


class Loki(Service):
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
        metadata = {
            name: _clip(_flat(record[name]), MOST_METADATA_BYTES // 8)
            for name in _METADATA
            if name in record
        }
        if self._message_only:
            text = _flat(record.get("message", ""))
            metadata = _all(record)
        time = str(max(0, key_ns(line)) or 1).encode()
        rest = orjson.dumps([text, metadata])
        group = orjson.dumps(labels, option=orjson.OPT_SORT_KEYS)
        data = time + _SEPARATOR + rest
        return data, group, len(data) + len(group) + 32

    def arrange(
        self, items: list[Item], before: Callable[[], list[Item]]
    ) -> list[Item]:
        """Make times different where stream, time and text are the same."""
        if not self._message_only:
            return items
        taken: dict[tuple[bytes, bytes], set[int]] = {}
        found = []
        sent = before()
        for item in (*sent, *items):
            text, _, rest = item.data.partition(_SEPARATOR)
            used = taken.setdefault((item.group, rest[: _end_of_text(rest)]), set())
            time = int(text)
            while time in used:
                time += 1
            used.add(time)
            found.append(item._replace(data=b"%d%b%b" % (time, _SEPARATOR, rest)))
        return found[len(sent) :]

    def foreign(self, answer: Response) -> str:
        """Loki answers 204, or a proxy before it 200, with no body worth the name."""
        if is_page(answer) or answer.body.strip() not in (b"", b"{}"):
            return "the answer is not that of Loki's push"
        return ""

    def body(self, items: Sequence[Item]) -> bytes:
        """One stream a set of labels, in order."""
        streams: dict[bytes, list[Any]] = {}
        for item in items:
            time, _, rest = item.data.partition(_SEPARATOR)
            value = b'["%b",%b' % (time, rest[1:])
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
        hidden = "it answers, but does not pass the request on to Loki (a gateway?)"
        bad = {503: "Loki is not ready"}
        return [
            Question("GET", door, well={200: "ready"}, unclear={404: hidden}, bad=bad)
        ]

    def verdict(self, answer: Response) -> Verdict:
        """A refusal that is about Loki's limits for a tenant is one of every record."""
        verdict = super().verdict(answer)
        cause = _OPERATOR.search(_STREAM.sub("", verdict.text))
        if verdict.action is Action.BISECT and cause:
            verdict.action = Action.HOLD
            verdict.reason += f": {cause[0]} in Loki's limits for this tenant"
        return verdict

    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """A success is one for every record."""


_TEXT = re.compile(rb'\["(?:[^"\\]|\\.)*"')  # of `[text, metadata]` as orjson writes it


def _end_of_text(rest: bytes) -> int:
    match = _TEXT.match(rest)
    return match.end() if match else len(rest)


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
        found[_free_name(_NOT_IN_A_NAME.sub("_", key) or "_", found)] = text
    return found


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    """A name that no other field became: `a.b` and `a_b` are two."""
    name = name[:MOST_NAME_BYTES]
    while name in taken:
        name += "_"
    return name


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
    options_type = LokiOptions
    service_type = Loki
