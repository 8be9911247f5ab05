"""OTLP/HTTP logs: to an OpenTelemetry collector, and to whatever else speaks OTLP.

A resource is a process (`service.name`, `host.name`, `process.pid`), a scope is a
logger. Each record has `log.record.uid`: OTLP allows that a record comes twice when an
answer was lost, and by it that is recognized. Records that the target refuses within a
batch it took (partial success) are counted as `rejected_partial`: OTLP does not
name them, and forbids to send the batch again. A request that is refused as malformed
(400) is sent in halves, which are other requests, until the bad record is alone.
"""

from __future__ import annotations

import enum
import itertools
import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson

from logagg_sinks import _protobuf as pb
from logagg_sinks._compression import BodyCompression
from logagg_sinks._otlp_encode import (
    entry,
    log_json,
    log_protobuf,
    pair_json,
    pair_protobuf,
)
from logagg_sinks._sink_options import Size
from logagg_sinks.delivery.batching import Item
from logagg_sinks.delivery.retry import Kind
from logagg_sinks.delivery.verdict import Verdict
from logagg_sinks.http.http_client import Response
from logagg_sinks.http.network_sink import NetworkSink
from logagg_sinks.http.probe import Question
from logagg_sinks.http.service import HttpOptions, Service

__all__ = ["OtlpSink"]

_SCOPE_BYTES = 32  # what a group adds besides its names: keys and lengths


class Encoding(enum.Enum):
    """How a request is written."""

    PROTOBUF = "protobuf"
    JSON = "json"


class OtlpOptions(HttpOptions, frozen=True, kw_only=True):
    """The options of OTLP, besides those of every network sink.

    Attributes:
        encoding: `protobuf`, which every receiver understands, or `json`.
        service: The resource's `service.name`; without it OTEL_SERVICE_NAME, else
            `unknown_service:python`.
    """

    encoding: Encoding = Encoding.PROTOBUF
    service: str = ""
    batch_bytes: Size = 4 * 1024 * 1024


class Otlp(Service):
    """A receiver of OTLP/HTTP."""

    kind = Kind.OTLP
    default_path = "/v1/logs"
    compressions: ClassVar[tuple[BodyCompression, ...]] = (
        BodyCompression.GZIP,
        BodyCompression.NONE,
        BodyCompression.ZSTD,
    )

    def __init__(self, options: OtlpOptions) -> None:
        self._json = options.encoding is Encoding.JSON
        self._service = (
            options.service
            or os.environ.get("OTEL_SERVICE_NAME")
            or "unknown_service:python"
        )
        self._host = socket.gethostname()

    def encode(self, line: bytes) -> tuple[bytes, bytes, int]:
        """A LogRecord; its group is its process and its logger."""
        log = entry(line, self._host)
        data = log_json(log) if self._json else log_protobuf(log)
        group = orjson.dumps([log.resource.decode(), log.scope])
        overhead = _SCOPE_BYTES + 2 * len(group) + 4 * len(self._host) + 512
        return data, group, len(data) + overhead

    def _resource(self, group: str) -> dict[str, Any]:
        pid, process = orjson.loads(group)
        found: dict[str, Any] = {
            "service.name": self._service,
            "host.name": self._host,
        }
        if pid is not None:
            found["process.pid"] = pid
        if process is not None:
            found["logagg.process"] = process
        return found

    def body(self, items: Sequence[Item]) -> bytes:
        """An ExportLogsServiceRequest. Runs of a group are kept together, in order."""
        resources: dict[str, dict[str, list[bytes]]] = {}
        for group, run in itertools.groupby(items, key=lambda item: item.group):
            resource, scope = orjson.loads(group)
            scopes = resources.setdefault(resource, {})
            scopes.setdefault(scope, []).extend(item.data for item in run)
        return (self._body_json if self._json else self._body_protobuf)(resources)

    def _body_protobuf(self, resources: dict[str, dict[str, list[bytes]]]) -> bytes:
        parts = []
        for resource, scopes in resources.items():
            attributes = [
                pair_protobuf(1, key, value)
                for key, value in self._resource(resource).items()
            ]
            content = [pb.length(1, b"".join(attributes))]
            for scope, logs in scopes.items():
                named = pb.length(1, pb.text(1, scope))
                content.append(pb.length(2, named + b"".join(logs)))
            parts.append(pb.length(1, b"".join(content)))
        return b"".join(parts)

    def _body_json(self, resources: dict[str, dict[str, list[bytes]]]) -> bytes:
        found = []
        for resource, scopes in resources.items():
            attributes = [
                pair_json(key, value) for key, value in self._resource(resource).items()
            ]
            found.append(
                {
                    "resource": {"attributes": attributes},
                    "scopeLogs": [
                        {
                            "scope": {"name": scope},
                            "logRecords": [orjson.Fragment(log) for log in logs],
                        }
                        for scope, logs in scopes.items()
                    ],
                }
            )
        return orjson.dumps({"resourceLogs": found})

    def headers(self, items: Sequence[Item], name: str) -> dict[str, str]:
        """The type."""
        del items, name
        kind = "application/json" if self._json else "application/x-protobuf"
        return {"Content-Type": kind}

    def message(self, answer: Response) -> str:
        """The message of a google.rpc.Status, when the answer is one."""
        if answer.status < 300 or _is_json(answer):
            return answer.text
        if not answer.headers.get("content-type", "").startswith(
            "application/x-protobuf"
        ):
            return answer.text
        try:
            for field, value in pb.fields(answer.body):
                if field == 2 and isinstance(value, bytes):
                    return value.decode("utf-8", "replace")
        except ValueError:
            pass
        return answer.text

    def questions(self, path: str) -> Sequence[Question]:
        """A request without records, which is a whole one."""
        well = dict.fromkeys(range(200, 300), "it takes a request without records")
        odd = "it reads requests, and takes none without records"
        body = self._body_json({}) if self._json else b""
        unclear = {422: odd}
        return [Question("POST", path, body, well=well, unclear=unclear)]

    def foreign(self, answer: Response) -> str:
        """Only an empty body or an ExportLogsServiceResponse is a success."""
        kind = answer.headers.get("content-type", "").lower()
        if kind.startswith("text/") and answer.body.strip() not in (b"", b"{}"):
            return f"{kind.partition(';')[0]} answered, not an OTLP receiver"
        try:
            _partial(answer)
        except (ValueError, TypeError, AttributeError):
            return "the answer is not that of an OTLP receiver"
        return ""

    def inspect(self, answer: Response, records: int, verdict: Verdict) -> None:
        """Read `partial_success`; an empty answer is a full success."""
        try:
            rejected, message = _partial(answer)
        except (ValueError, TypeError, AttributeError):
            return  # the user chose to take this status for a success
        verdict.final = rejected > 0  # what was refused must not be sent again
        if rejected >= records:
            verdict.refused = dict.fromkeys(range(records), message or "rejected")
        else:
            verdict.uncounted = max(0, rejected)
        if message:
            verdict.text = message
            verdict.warning = not rejected


def _is_json(answer: Response) -> bool:
    return answer.headers.get("content-type", "").startswith("application/json")


def _partial(answer: Response) -> tuple[int, str]:
    """How many records were refused, and the message about it.

    Raises:
        ValueError, TypeError, AttributeError: It is not an ExportLogsServiceResponse.
    """
    body = answer.body.strip()
    if body in (b"", b"{}"):
        return 0, ""
    if _is_json(answer):
        reply = orjson.loads(answer.body)
        if reply.keys() - {"partialSuccess", "partial_success"}:
            raise ValueError("it has other fields")
        partial = reply.get("partialSuccess") or {}
        return int(partial.get("rejectedLogRecords") or 0), str(
            partial.get("errorMessage") or ""
        )
    rejected, message = 0, ""
    for field, value in pb.fields(answer.body):
        if field != 1:
            continue  # of a later version
        if not isinstance(value, bytes):
            raise TypeError("partial_success is a message")
        for inner, part in pb.fields(value):
            if inner == 1 and isinstance(part, int):
                rejected = part if part < 1 << 63 else part - (1 << 64)  # an int64
            elif inner == 2 and isinstance(part, bytes):
                message = part.decode("utf-8", "replace")
    return rejected, message


class OtlpSink(NetworkSink):
    """Send records by OTLP/HTTP.

    Args:
        target: `http://host:4318`; without a path, `/v1/logs` is meant.
        headers: Headers for each request.
        query: Parameters for each request.
        options: See `OtlpOptions`.

    Raises:
        ConfigError: An unknown option or a bad value.
    """

    scheme = "otlp"
    options_type = OtlpOptions
    service_type = Otlp
