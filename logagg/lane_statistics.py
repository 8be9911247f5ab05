"""What a lane says of itself: its counters, its state, its sink's own state. Pure.

In records, at any moment: offered + recovered + made = filtered + sampled + collapsed
+ duplicates + written + dropped + queued + parked (`spool_records`).
"""

from __future__ import annotations

import inspect
from time import CLOCK_MONOTONIC, clock_gettime
from typing import TYPE_CHECKING, Any

from logagg.abc import Sink

if TYPE_CHECKING:
    from logagg.lane import Lane

__all__ = ["delivery", "statistics"]


def statistics(lane: Lane) -> dict[str, Any]:
    """Counters for status and metrics."""
    now = clock_gettime(CLOCK_MONOTONIC)
    shaped = lane.shaper.counters
    return {
        "url": lane.name,
        "durable": lane.sink.durable,
        "policy": lane.policy.value,
        "state": _state(lane),
        "offered": lane.offered,
        "made": lane.made,
        "recovered": lane.spill.recovered,
        **{key: shaped.get(key, 0) for key in ("filtered", "sampled", "collapsed")},
        "redacted": shaped.get("redacted", 0),
        "duplicates": lane.duplicates,
        "written": lane.written,
        "bytes": lane.bytes_written,
        "dropped": dict(lane.troubles.dropped),
        "dropped_levels": dict(lane.troubles.dropped_levels),
        "queued_records": lane.queued_records,
        "queued_bytes": lane.queued_bytes,
        "spool_records": lane.spill.records,
        "spool_bytes": lane.spill.size_bytes,
        "oldest": _oldest(lane, now),
        "retries": lane.retries,
        "error": lane.troubles.error,
        "last_error": lane.troubles.last_error,
        "counters": dict(lane.sink.counters),
        "delivery": delivery(lane.sink),
    }


def _state(lane: Lane) -> str:
    if lane._closing:
        return "closing"
    if lane.troubles.error:
        return "failing"
    return "behind" if lane._overrun or lane.spill.records else "ok"


def _oldest(lane: Lane, now: float) -> float:
    """How long, in seconds, the first record has waited."""
    since = [lane._spilled_at] if lane.spill.records else []
    if lane._writing is not None:
        since.append(lane._writing.since)
    if lane._queue:
        since.append(lane._queue.first.since)
    return now - min(since, default=now)


def delivery(sink: Sink) -> dict[str, Any]:
    """What a sink that delivers in the background says of itself: its `health()`."""
    health = getattr(sink, "health", None)
    if health is None or inspect.iscoroutinefunction(health):
        return {}
    said = health()
    fields = getattr(said, "__dataclass_fields__", ())
    found = {name: getattr(said, name) for name in fields}
    return {name: getattr(value, "value", value) for name, value in found.items()}
