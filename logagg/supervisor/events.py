"""What the supervisor says about itself, as records in the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from logagg.supervisor.member import Exit, Member

__all__ = ["Reporter"]

Send = Callable[[dict[str, Any]], None]


class Reporter:
    """Makes event records and gives them to whoever carries them to the consumer."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def say(self, level: str, event: str, message: str, **fields: Any) -> None:
        """Make one record."""
        self._send({"level": level, "event": event, "message": message, **fields})

    def exited(self, member: Member, *, what_next: str, again: int) -> None:
        """The death record of a worker; the consumer writes it after its last words."""
        end: Exit | None = member.exit
        assert end is not None
        calm = end.voluntary or end.code == 0
        count = f" (×{again}, trace shown once)" if again > 1 else ""
        fields: dict[str, Any] = {"signal": end.how} if end.signal else {}
        if end.code is not None:
            fields["status"] = end.code
        verb = "ended" if calm else "died"
        self._send(
            {
                "level": "info" if calm else "error",
                "event": "worker_exit",
                "after_pid": member.pid,  # not a field: the consumer waits for it
                "message": (
                    f"worker {member.slot} {verb}: {end.how} (pid {member.pid}), "
                    f"{end.reason}{count}, after {end.uptime:.1f} s{what_next}"
                ),
                "slot": member.slot,
                "pid": member.pid,
                "reason": end.reason,
                "voluntary": end.voluntary,
                "uptime": round(end.uptime, 3),
                "rss_bytes": end.max_rss_bytes,
                **fields,
            }
        )
