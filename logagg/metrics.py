"""The consumer's counters for Prometheus (`/metrics`) and its health (`/health`).

`render` is pure: it makes the text exposition format (version 0.0.4) of what
`Consumer.status` says, so the numbers are those of `logagg status --json`. Of every
sink, in records:

    offered + recovered + made = filtered + sampled + collapsed + duplicates
                                 + written + dropped + queued + parked

The endpoint is off unless asked for, listens on loopback unless another host is named,
and only reads: it is served by the consumer's own loop, between cycles. Whoever starts
the consumer makes the socket (`listen`), so an address in use is an error at once, and a
restarted consumer goes on at the same port. A label never holds more of a sink's URL
than its address.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from logagg.errors import ConfigError, LogaggError

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["health", "listen", "parse", "render", "serve", "start"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BACKLOG = 16

_CONSUMER = (
    ("uptime", "uptime_seconds", "gauge", "How long the consumer has run."),
    ("records", "records_total", "counter", "Records released in order."),
    ("pending", "pending_records", "gauge", "Records that wait for their order."),
    ("late", "late_records_total", "counter", "Records behind later ones."),
    ("lag", "lag_seconds", "gauge", "How long the record longest with a sink waits."),
    ("refused", "refused_connections_total", "counter", "Connections hung up on."),
    ("viewers", "viewers", "gauge", "Viewers that are connected."),
    ("workers_ended", "workers_ended_total", "counter", "Workers that have ended."),
)
_WORKER = (
    ("records", "worker_records_total", "counter", "Records taken in."),
    ("bytes", "worker_bytes_total", "counter", "Bytes read from the worker's pipe."),
    ("lost", "worker_lost_total", "counter", "Records that never came."),
    ("dropped", "worker_dropped_total", "counter", "Records the worker dropped."),
    ("damaged", "worker_damaged_total", "counter", "Lines that were no records."),
    ("duplicates", "worker_duplicates_total", "counter", "Records that came twice."),
    ("unacknowledged", "worker_unacknowledged_records", "gauge", "Not yet safe."),
)
_SINK = (
    ("offered", "sink_offered_total", "counter", "Records that came for the sink."),
    ("recovered", "sink_recovered_total", "counter", "Parked by an earlier consumer."),
    ("made", "sink_made_total", "counter", "Records that shaping added."),
    ("filtered", "sink_filtered_total", "counter", "Left out by level and match."),
    ("sampled", "sink_sampled_total", "counter", "Left out by sampling."),
    ("collapsed", "sink_collapsed_total", "counter", "Stood for by another record."),
    ("redacted", "sink_redacted_total", "counter", "Values redacted."),
    ("duplicates", "sink_duplicates_total", "counter", "Not written a second time."),
    ("written", "sink_written_total", "counter", "Records written."),
    ("bytes", "sink_bytes_total", "counter", "Bytes of records written."),
    ("retries", "sink_retries_total", "counter", "Writes tried again."),
    ("queued_records", "sink_queue_records", "gauge", "Records waiting in memory."),
    ("queued_bytes", "sink_queue_bytes", "gauge", "Bytes waiting in memory."),
    ("oldest", "sink_oldest_seconds", "gauge", "How long the first one has waited."),
    ("spool_records", "sink_spool_records", "gauge", "Records parked on disk."),
    ("spool_bytes", "sink_spool_bytes", "gauge", "Bytes parked on disk."),
)
_DELIVERY = (
    ("queued_records", "sink_undelivered_records", "gauge", "Not taken by the target."),
    ("queued_bytes", "sink_undelivered_bytes", "gauge", "The same in bytes."),
    ("in_flight", "sink_in_flight_records", "gauge", "In the request at hand."),
    ("oldest_age", "sink_undelivered_seconds", "gauge", "Age of the first of them."),
    ("until", "sink_waits_until_seconds", "gauge", "When it is tried again; 0: now."),
)

Columns = tuple[tuple[str, str, str, str], ...]


class _Text:
    """The exposition: families of samples, each with its head once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(
        self,
        name: str,
        kind: str,
        text: str,
        samples: Iterable[tuple[Mapping[str, Any], Any]],
    ) -> None:
        """Add a metric with all its samples: labels and value each."""
        self.lines += [f"# HELP logagg_{name} {text}", f"# TYPE logagg_{name} {kind}"]
        for labels, value in samples:
            inner = ",".join(f'{key}="{_quoted(labels[key])}"' for key in labels)
            shown = f"{{{inner}}}" if inner else ""
            self.lines.append(f"logagg_{name}{shown} {value!r}")

    def table(
        self,
        columns: Columns,
        rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    ) -> None:
        """Add a metric a column, with a sample a row that has it."""
        for key, name, kind, text in columns:
            samples = [(labels, row[key]) for labels, row in rows if key in row]
            if samples:
                self.family(name, kind, text, samples)


def _quoted(value: object) -> str:
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return text.replace("\n", "\\n")


def render(status: Mapping[str, Any]) -> str:
    """The text exposition of a consumer's status. Pure."""
    text = _Text()
    text.table(_CONSUMER, [({}, status)])
    workers = status["workers"]
    text.family("workers", "gauge", "Workers attached now.", [({}, len(workers))])
    ended = [({"kind": kind}, number) for kind, number in status["ended"].items()]
    text.family("ended_total", "counter", "Of workers that have ended, by kind.", ended)
    rows = []
    for each in workers:
        labels = {key: each[key] for key in ("worker", "pid", "process")}
        waiting = each["last_seq"] - each["acknowledged"]
        rows.append((labels, {**each, "unacknowledged": waiting}))
    text.table(_WORKER, rows)
    _sinks(text, _labelled(status["sinks"]))
    return "\n".join([*text.lines, ""])


def _sinks(
    text: _Text, sinks: list[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    up = [(labels, int(state_of(sink) in _UP)) for labels, sink in sinks]
    text.family("sink_up", "gauge", "1 when the sink takes records, else 0.", up)
    text.table(_SINK, sinks)
    for key, name, label, what in (
        ("dropped", "sink_dropped_total", "reason", "Records dropped, by reason."),
        ("dropped_levels", "sink_dropped_levels_total", "level", "The same by level."),
        ("counters", "sink_counts_total", "what", "What the sink itself counts."),
    ):
        samples = [
            ({**labels, label: reason}, number)
            for labels, sink in sinks
            for reason, number in sink[key].items()
        ]
        text.family(name, "counter", what, samples)
    text.table(_DELIVERY, [(labels, sink["delivery"]) for labels, sink in sinks])


def _labelled(
    sinks: Iterable[Mapping[str, Any]],
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The sinks, each with a label of its own that shows no more than its address."""
    seen: Counter[str] = Counter()
    found: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    for sink in sinks:
        name = re.sub(r"(?<=//)[^/]*@", "", str(sink["url"]).partition("?")[0])
        seen[name] += 1
        shown = name if seen[name] == 1 else f"{name}#{seen[name]}"
        found.append(({"sink": shown}, sink))
    return found


# ---- health ---------------------------------------------------------------------------

_UP = ("ok", "closing", "behind")


def state_of(sink: Mapping[str, Any]) -> str:
    """How a sink is: of its lane and its delivery whichever is worse off."""
    own = str(sink["state"])
    behind = str(sink["delivery"].get("state", "ok"))
    return behind if behind != "ok" and own in _UP else own


def health(status: Mapping[str, Any]) -> dict[str, Any]:
    """How the service is: `ok`, or `degraded` with what is wrong at which sink."""
    sinks = []
    for labels, sink in _labelled(status["sinks"]):
        said = sink["delivery"]
        sinks.append(
            {
                **labels,
                "state": state_of(sink),
                "error": sink["error"],
                "last_error": said.get("last_error") or sink["last_error"],
                "until": said.get("until") or None,
                "waiting": sink["queued_records"]
                + sink["spool_records"]
                + said.get("queued_records", 0),
                "oldest": max(sink["oldest"], said.get("oldest_age", 0.0)),
                "dropped": sum(sink["dropped"].values()),
            }
        )
    well = all(each["state"] in ("ok", "closing") for each in sinks)
    return {"status": "ok" if well else "degraded", "sinks": sinks}


# ---- the endpoint ---------------------------------------------------------------------


def listen(address: str) -> socket.socket:
    """Make the listening socket of an endpoint.

    Args:
        address: `:9464`, `HOST:PORT` or `unix:PATH`; without a host, loopback.

    Raises:
        ConfigError: It is none of these, or cannot be listened at.
    """
    place = parse(address)
    if isinstance(place, str):
        return _listen_unix(place)
    host, port = place
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=BACKLOG,
        )
    except OSError as error:
        raise ConfigError(f"metrics {address!r}: {error.strerror or error}") from error


def parse(address: str) -> str | tuple[str, int]:
    """An endpoint's path, or its host and port.

    Raises:
        ConfigError: It is neither.
    """
    scheme, _, path = address.partition(":")
    if scheme == "unix" and path:
        return path
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(
            f"metrics {address!r}: expected :PORT, HOST:PORT or unix:PATH"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


def _listen_unix(path: str) -> socket.socket:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"metrics unix:{path}: {error.strerror or error}") from error
    return listener


async def start(
    fd: int | None,
    address: str,
    status: Callable[[], dict[str, Any]],
    tell: Callable[[str, dict[str, Any]], None],
) -> Callable[[], Awaitable[None]] | None:
    """Answer at a listener that was passed on, or else at an address.

    That an address cannot be had is no reason not to log: it is told in the stream.

    Returns:
        What ends it; None when nothing is served.
    """
    if fd is not None:
        return await serve(socket.socket(fileno=fd), status)
    try:
        return await serve(listen(address), status)
    except LogaggError as error:
        details = {"event": "metrics_error", "level": "error"}
        tell(f"no metrics are served here: {error}", details)
        return None


async def serve(
    listener: socket.socket, status: Callable[[], dict[str, Any]]
) -> Callable[[], Awaitable[None]]:
    """Answer at a listening socket; what is returned ends that."""
    from aiohttp import web

    async def metrics(_: web.Request) -> web.Response:
        body = render(status()).encode()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def healthy(_: web.Request) -> web.Response:
        body = orjson.dumps(health(status()))
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/health", healthy)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    name = listener.getsockname()

    async def end() -> None:
        await runner.cleanup()
        if isinstance(name, str):
            with contextlib.suppress(OSError):
                os.unlink(name)

    return end
