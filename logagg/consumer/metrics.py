"""The consumer's counters for Prometheus (`/metrics`) and its health (`/health`).

The numbers are those of `Consumer.status`, which `logagg status --json` shows too. Of
every sink, in records:

    offered + recovered + made = filtered + sampled + collapsed + duplicates
                                 + written + dropped + queued + spooled

The endpoint is off unless requested, listens on loopback unless another host is named,
and only reads: it is served by the consumer's own loop, between cycles; connections are
few and short, each is for one request, and the numbers are as old as it takes to spend
a twentieth of the time on them: no client costs the log anything. The process that
starts the consumer makes the socket (`logagg.platform.endpoints`), so an address in use
is an error at once, and a restarted consumer goes on at the same port. A label never
contains more of a sink's URL than its address.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from time import CLOCK_MONOTONIC, clock_gettime, thread_time
from typing import TYPE_CHECKING, Any

import orjson

from logagg.core.event import Event
from logagg.errors import LogaggError
from logagg.ipc.client_gate import Gate
from logagg.platform import endpoints

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client.core import Metric

__all__ = ["health", "render", "serve", "start"]

log = logging.getLogger("logagg.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHARE = 20
SHUTDOWN_TIMEOUT = 1.0

Row = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The labels of something that is counted, and its counters."""

# By key in the status: the metric's name (a counter's ends in `_total`) and its help.
_CONSUMER = {
    "uptime": ("uptime_seconds", "Seconds since the consumer's start."),
    "records": ("records_total", "Records released in order."),
    "pending": ("pending_records", "Records that wait for their order."),
    "late": ("late_records_total", "Records released after later ones."),
    "lag": ("lag_seconds", "Waiting time of the oldest record in a sink's queue."),
    "refused": ("refused_connections_total", "Connections refused."),
    "viewers": ("viewers", "Viewers connected now."),
    "workers_ended": ("workers_ended_total", "Workers that have ended."),
}
_WORKER = {
    "records": ("worker_records_total", "Records received."),
    "bytes": ("worker_bytes_total", "Bytes read from the worker's pipe."),
    "lost": ("worker_lost_total", "Records that are missing."),
    "dropped": ("worker_dropped_total", "Records that the worker dropped."),
    "damaged": ("worker_damaged_total", "Lines that were not records."),
    "duplicates": ("worker_duplicates_total", "Records received twice."),
    "unacknowledged": ("worker_unacknowledged_records", "Records not yet safe."),
}
_SINK = {
    "offered": ("sink_offered_total", "Records offered to the sink."),
    "recovered": ("sink_recovered_total", "Records spooled by an earlier consumer."),
    "made": ("sink_made_total", "Records that transforms added."),
    "filtered": ("sink_filtered_total", "Records left out by level and match."),
    "sampled": ("sink_sampled_total", "Records left out by sampling."),
    "collapsed": ("sink_collapsed_total", "Records that another one stands for."),
    "redacted": ("sink_redacted_total", "Values redacted."),
    "duplicates": ("sink_duplicates_total", "Records not written a second time."),
    "written": ("sink_written_total", "Records written."),
    "bytes": ("sink_bytes_total", "Bytes of records written."),
    "retries": ("sink_retries_total", "Writes tried again."),
    "queued_records": ("sink_queue_records", "Records waiting in memory."),
    "queued_bytes": ("sink_queue_bytes", "Bytes waiting in memory."),
    "oldest": ("sink_oldest_seconds", "Waiting time of the oldest record."),
    "spool_records": ("sink_spool_records", "Records spooled on disk."),
    "spool_bytes": ("sink_spool_bytes", "Bytes spooled on disk."),
}
_DELIVERY = {
    "queued_records": ("sink_undelivered_records", "Records the target has not taken."),
    "queued_bytes": ("sink_undelivered_bytes", "Bytes the target has not taken."),
    "in_flight": ("sink_in_flight_records", "Records in the current request."),
    "oldest_age": ("sink_undelivered_seconds", "Age of the oldest of them."),
    "until": ("sink_waits_until_seconds", "Time of the next try; 0: now."),
}
_BY_REASON = (
    ("dropped", "sink_dropped_total", "reason", "Records dropped, by reason."),
    ("dropped_levels", "sink_dropped_levels_total", "level", "The same by level."),
    ("counters", "sink_counts_total", "what", "Counters of the sink's own."),
)


class _Collector:
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The metrics of a status."""
        status = self._status
        yield from _table(_CONSUMER, [({}, status)])
        workers: list[Row] = []
        for each in status["workers"]:
            labels = {key: each[key] for key in ("worker", "pid", "process")}
            waiting = each["last_seq"] - each["acknowledged"]
            workers.append((labels, {**each, "unacknowledged": waiting}))
        yield _metric("workers", "Workers attached now.", [({}, len(workers))])
        ended = [({"kind": kind}, number) for kind, number in status["ended"].items()]
        yield _metric("ended_total", "Of workers that have ended, by kind.", ended)
        yield from _table(_WORKER, workers)
        sinks = _labelled(status["sinks"])
        up = [(labels, state_of(sink) in _UP) for labels, sink in sinks]
        yield _metric("sink_up", "1 when the sink takes records, else 0.", up)
        yield from _table(_SINK, sinks)
        for key, name, label, text in _BY_REASON:
            samples = [
                ({**labels, label: reason}, number)
                for labels, sink in sinks
                for reason, number in sink[key].items()
            ]
            yield _metric(name, text, samples)
        deliveries: list[Row] = [(labels, sink["delivery"]) for labels, sink in sinks]
        yield from _table(_DELIVERY, deliveries)


def _table(columns: Mapping[str, tuple[str, str]], rows: list[Row]) -> Iterator[Metric]:
    """One metric per column, with a sample for each row that has it."""
    for key, (name, text) in columns.items():
        samples = [(labels, row[key]) for labels, row in rows if key in row]
        if samples:
            yield _metric(name, text, samples)


def _metric(
    name: str, text: str, samples: Sequence[tuple[Mapping[str, Any], Any]]
) -> Metric:
    from prometheus_client.core import (  # only where metrics are served
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    metric = kind(f"logagg_{name}", text, labels=list(samples[0][0] if samples else ()))
    for labels, value in samples:
        metric.add_metric(list(map(str, labels.values())), float(value))
    return metric


def render(status: Mapping[str, Any]) -> bytes:
    """A consumer's status in the text exposition format."""
    from prometheus_client import (  # only where metrics are served
        CollectorRegistry,
        generate_latest,
    )

    registry = CollectorRegistry()
    registry.register(_Collector(status))
    return generate_latest(registry)


def _labelled(sinks: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The sinks, each with a label of its own that shows no more than its address."""
    seen: Counter[str] = Counter()
    found: list[Row] = []
    for sink in sinks:
        name = re.sub(r"(?<=//)[^/]*@", "", str(sink["url"]).partition("?")[0])
        seen[name] += 1
        shown = name if seen[name] == 1 else f"{name}#{seen[name]}"
        found.append(({"sink": shown}, sink))
    return found


# ---- health ---------------------------------------------------------------------------

_UP = ("opening", "running", "closing", "spooling", "dropping")


def state_of(sink: Mapping[str, Any]) -> str:
    """The state of a sink: of its runner and its delivery whichever is worse."""
    own = str(sink["state"])
    delivery = str(sink["delivery"].get("state", "ok"))
    if sink["error"] and own in _UP:
        own = "retrying"
    return delivery if delivery != "ok" and own in _UP else own


def health(status: Mapping[str, Any]) -> dict[str, Any]:
    """How the service is: `ok`, or `degraded` with what is wrong at which sink."""
    sinks = []
    for labels, sink in _labelled(status["sinks"]):
        delivery = sink["delivery"]
        sinks.append(
            {
                **labels,
                "state": state_of(sink),
                "error": sink["error"],
                "last_error": delivery.get("last_error") or sink["last_error"],
                "until": delivery.get("until") or None,
                "waiting": sink["queued_records"]
                + sink["spool_records"]
                + delivery.get("queued_records", 0),
                "oldest": max(sink["oldest"], delivery.get("oldest_age", 0.0)),
                "dropped": sum(sink["dropped"].values()),
            }
        )
    good = ("opening", "running", "closing")
    well = all(each["state"] in good for each in sinks)
    return {"status": "ok" if well else "degraded", "sinks": sinks}


# ---- the endpoint ---------------------------------------------------------------------


async def start(
    fd: int | None,
    address: str,
    status: Callable[[], dict[str, Any]],
    event: Callable[[str, dict[str, Any]], None],
) -> Callable[[], Awaitable[None]] | None:
    """Serve at a listener that was passed on, or else at an address.

    An address that cannot be had does not end the consumer: it becomes an event.

    Returns:
        A function that ends it; None when nothing is served.
    """
    if fd is not None:
        return await serve(socket.socket(fileno=fd), status)
    try:
        return await serve(endpoints.listen(address, "metrics"), status)
    except LogaggError as error:
        details = {"event": Event.METRICS_ERROR, "level": "error"}
        event(f"no metrics are served here: {error}", details)
        return None


class _Kept:
    """A body, made anew when _SHARE times the processor time that took has passed."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._body = b""
        self._until = 0.0

    def body(self) -> bytes:
        """The body, as of a moment ago at most."""
        if clock_gettime(CLOCK_MONOTONIC) >= self._until:
            start = thread_time()
            try:
                self._body = self._make()
            except Exception:
                log.exception("the numbers cannot be made")
                raise
            finally:
                pause = _SHARE * (thread_time() - start)
                self._until = clock_gettime(CLOCK_MONOTONIC) + pause
        return self._body


async def serve(
    listener: socket.socket, status: Callable[[], dict[str, Any]]
) -> Callable[[], Awaitable[None]]:
    """Serve at a listening socket; the function returned ends that."""
    from aiohttp import web  # only where metrics are served

    numbers = _Kept(lambda: render(status()))
    state = _Kept(lambda: orjson.dumps(health(status())))

    async def metrics(_: web.Request) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE}
        return web.Response(body=numbers.body(), headers=headers)

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(body=state.body(), content_type="application/json")

    async def close(_: web.Request, response: web.StreamResponse) -> None:
        response.force_close()

    app = web.Application()
    app.on_response_prepare.append(close)
    app.add_routes([web.get("/metrics", metrics), web.get("/health", healthy)])
    silent = logging.getLogger("logagg.metrics.clients")
    silent.setLevel(logging.CRITICAL + 1)  # any client may send what is no request
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=silent,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    assert runner.server is not None
    gate = Gate(listener, runner.server)
    name = listener.getsockname()

    async def end() -> None:
        gate.close()
        await runner.cleanup()
        if isinstance(name, str):
            with contextlib.suppress(OSError):
                os.unlink(name)

    return end
