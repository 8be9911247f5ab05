"""Records of the supervisor's own in the stream: events, and the ends of workers."""

from __future__ import annotations

import hashlib
import logging
import signal
from collections.abc import Callable
from typing import Any

from logagg.core import levels
from logagg.core.event import Event
from logagg.supervisor.process.worker_process import Exit, WorkerProcess
from logagg.supervisor.sockets.handoff_channel import HandoffChannel
from logagg.supervisor.sockets.round_robin import SILENCE, RoundRobin

__all__ = ["CrashCounter", "SupervisorEvents"]

FORGET = 60.0
ORDERLY = (0, 128 + signal.SIGTERM)
"""Exit statuses of a worker that ends as it is asked to."""

Send = Callable[[dict[str, Any]], None]


class SupervisorEvents:
    """Makes event records; `send` brings them to the consumer.

    Args:
        level: The run's. Where that is above DEBUG, what is in order makes no record.
        app: The program's name in a project of several.
    """

    def __init__(self, send: Send, level: str, app: str = "") -> None:
        self._send_record = send
        self._app = {"app": app} if app else {}
        self._quiet = levels.number_of(level) > logging.DEBUG

    def _send(self, record: dict[str, Any]) -> None:
        self._send_record({**record, **self._app})

    def record(self, level: str, event: str, message: str, **fields: Any) -> None:
        """Send one record, unless it is a debug record in a quiet run."""
        if level != "debug" or not self._quiet:
            self._send({"level": level, "event": event, "message": message, **fields})

    def record_exit(
        self, worker: WorkerProcess, following: str = "", *, again: int = 1
    ) -> None:
        """Send the record of a worker's end, to be written after its last output.

        An end in good order is a debug record. The consumer shortens it, leaves it out
        of a quiet run, and raises its level if records of the worker are lost.

        Args:
            following: What happens next, appended to the message.
            again: How many workers crashed in the same way lately.
        """
        end: Exit | None = worker.exit
        assert end is not None
        calm = end.voluntary or end.code == 0
        level = "debug" if _is_orderly(end) else "info" if calm else "error"
        count = f" (×{again}, trace shown once)" if again > 1 else ""
        fields: dict[str, Any] = {"signal": end.how} if end.signal else {}
        if end.code is not None:
            fields["status"] = end.code
        verb = "ended" if calm else "died"
        self._send(
            {
                "level": level,
                "event": Event.WORKER_EXIT,
                "after_pid": worker.pid,  # not a field: the consumer waits for it
                "quiet": self._quiet,  # nor this one
                "message": (
                    f"worker {worker.name} {verb}: {end.how} (pid {worker.pid}), "
                    f"{end.reason}{count}, after {end.uptime:.1f} s{following}"
                ),
                "slot": worker.slot,
                "pid": worker.pid,
                "reason": end.reason,
                "voluntary": end.voluntary,
                "uptime": round(end.uptime, 3),
                "rss_bytes": end.max_rss_bytes,
                **fields,
            }
        )

    def record_untaken(self, round_robin: RoundRobin, channel: HandoffChannel) -> None:
        """Name a worker that has listened and taken no connection for long."""
        self.record(
            "warning",
            Event.UNSUPPORTED_POLICY,
            f"slot {channel.slot} listens on {round_robin.address} and has not taken a "
            f"connection for {SILENCE:g} s: it is busy, or it accepts in C and cannot be "
            "handed connections; then use policy kernel",
            slot=channel.slot,
        )


def _is_orderly(end: Exit) -> bool:
    """Whether a worker ended by itself, or by the TERM of a stop, and well."""
    asked = end.signal == signal.SIGTERM or end.code in ORDERLY
    return end.code == 0 or (end.voluntary and asked)


class CrashCounter:
    """Counts equal tracebacks, so that the crash of many workers is shown once. Pure."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[int, float]] = {}

    def count(self, trace: str, now: float) -> int:
        """Count a traceback; how often it came within `FORGET` seconds, now included."""
        digest = hashlib.blake2b(trace.encode("utf-8", "replace")).digest()
        seen, last = self._seen.get(digest, (0, now))
        if now - last > FORGET:
            seen = 0
        self._seen[digest] = (seen + 1, now)
        if len(self._seen) > 1000:
            self._seen = {k: v for k, v in self._seen.items() if now - v[1] <= FORGET}
        return seen + 1
