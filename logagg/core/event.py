"""Names of the service's own events: field `event` of records of logger `logagg`. Pure.

Not loaded into workers.
"""

from __future__ import annotations

import enum

from logagg.core.line import LEVEL_START, parse_line

__all__ = ["LOSSES", "Event", "loss_in"]


class Event(enum.StrEnum):
    """The events, by who records them."""

    # the consumer
    LOST = "lost"
    """A gap in a worker's seqs that the worker did not count itself."""
    DROPPED = "dropped"
    """A worker or a sink's queue dropped records."""
    DAMAGED = "damaged"
    """Truncated lines, and lines that are not records."""
    LATE = "late"
    """Records released after records with later timestamps."""
    CLOCK_STEP = "clock_step"
    WORKER_EXIT = "worker_exit"
    METRICS_ERROR = "metrics_error"
    NO_DESCRIPTOR = "no_descriptor"
    """The consumer is at its limit of open files; processes wait to be accepted."""
    TASK_FAILED = "task_failed"
    """A part of the service ended with an error that nothing else handles."""
    NO_LOCK = "no_lock"
    """A file cannot be locked, so another consumer may write it too."""
    RELOAD = "reload"
    RELOAD_REFUSED = "reload_refused"

    # sinks
    SINK_ALARM = "sink_alarm"
    """A sink writes records, but an operator has something to put right."""
    SINK_ERROR = "sink_error"
    SINK_FAILED = "sink_failed"
    """A sink has failed for good; with a required one the service ends."""
    SINK_OPTIONS = "sink_options"
    """A process wants an open sink with other options, which are not used."""
    SINK_RECOVERED = "sink_recovered"
    SINK_SUSPENDED = "sink_suspended"
    """A network sink's target refuses everything until a person repairs it."""
    SINK_SLOW = "sink_slow"
    UNDELIVERED = "undelivered"
    """A sink was closed before it had written all, which is lost, or waits."""
    ALARM = "alarm"
    """A warning that a sink, or a library, has logged in the consumer."""
    SAMPLED = "sampled"
    UNREADABLE = "unreadable"
    """A line left out by redaction because it cannot be searched."""
    TRUNCATED_LINE = "truncated_line"
    """The end of a file that a killed writer left, kept as `raw`."""

    # the collector
    POISON = "poison"
    """A message of the stream cannot be read; it is a dead letter."""
    STREAM_ERROR = "stream_error"
    """The stream cannot be read now."""

    # the supervisor
    BAD_FRAME = "bad_frame"
    CANNOT_START = "cannot_start"
    CONSUMER_RESTART = "consumer_restart"
    HANDLER_FAILED = "handler_failed"
    PROGRAM_END = "program_end"
    PROGRAM_START = "program_start"
    """A program of a project starts: all its workers do."""
    RECYCLE = "recycle"
    RELOADED = "reloaded"
    RELOAD_FAILED = "reload_failed"
    SCALE = "scale"
    START_FAILED = "start_failed"
    STOPPING = "stopping"
    STOP_TIMEOUT = "stop_timeout"
    """A worker did not end in time and was killed."""
    UNRESPONSIVE = "unresponsive"
    UNSUPPORTED_POLICY = "unsupported_policy"
    """A listener cannot be served by the policy that was chosen for it."""
    WATCH = "watch"


LOSSES = frozenset((Event.LOST, Event.DROPPED, Event.DAMAGED))
"""Events that announce lost records."""

_OURS = tuple(
    f'{level}","worker":"consumer","seq":'.encode() for level in ("warning", "error")
)


def loss_in(line: bytes) -> str | None:
    """The message of a finished line that announces lost records, else None."""
    if not line.startswith(_OURS, LEVEL_START):
        return None
    record = parse_line(line)
    event = record.get("event")
    if isinstance(event, str) and event in LOSSES:
        return str(record.get("message"))
    return None
