"""A run's status as text for people. Pure."""

from __future__ import annotations

from typing import Any

__all__ = ["table"]

_COLUMNS = (
    "SLOT",
    "PID",
    "STATE",
    "UP",
    "RESTARTS",
    "RSS",
    "CONNS",
    "TASKS",
    "LAST EXIT",
)


def table(status: dict[str, Any]) -> str:
    """Lay out what `control.status` gives."""
    up, reloads = _duration(status["uptime"]), status["reloads"]
    lines = [f"run {status['pid']}: {status['program']}  up {up}, {reloads} reloads"]
    rows = [_COLUMNS]
    for slot in status["slots"]:
        state = slot["state"]
        if state == "waiting":
            state = f"waiting {slot['starts_in']} s"
        rows.append(
            (
                str(slot["slot"]),
                str(slot.get("pid", "-")),
                state,
                _duration(slot["uptime"]) if "uptime" in slot else "-",
                str(slot["restarts"]),
                f"{slot['rss_bytes'] >> 20} MiB" if "rss_bytes" in slot else "-",
                str(slot.get("connections", "-")),
                str(slot.get("tasks", "-")),
                slot["last_exit"] or "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    for each in status["listeners"]:
        waiting = f", {each['waiting']} waiting" if each.get("waiting") else ""
        lines.append(f"listens on {each['address']} (policy {each['policy']}{waiting})")
    tasks = status["tasks"]
    if any(tasks.values()):
        lines.append("tasks: " + ", ".join(f"{n} {k}" for k, n in tasks.items()))
    consumer = status["consumer"]
    sinks = ", ".join(consumer["sinks"])
    lines.append(
        f"consumer {consumer['pid']} ({consumer['restarts']} restarts) → {sinks}"
    )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{seconds:.0f}s"
