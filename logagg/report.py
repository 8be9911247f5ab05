"""What the consumer says of itself: records of its own in the stream, and counters.

Every loss becomes a record (`"logger":"logagg"`, `"event"` says of which kind), at once
for a worker that ended, else at most once a second and worker, with the number since
the last one. Events: `worker_exit`, `lost` (a hole in a worker's seqs that it did not
count itself), `dropped` (counted by the worker), `damaged` (torn lines, lines that are
no records), `late`, `clock_step`, `sink_error`, and those that the supervisor sends.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from logagg.captured import Stream
from logagg.intake import Worker, stamped_line
from logagg.leftovers import Leftovers
from logagg.order import Merger
from logagg.wire import KEY_END

__all__ = ["Reporter"]

Source = Worker | Stream | Leftovers

REPORT_NS = 1_000_000_000
LATE_NS = 10_000_000_000


class Reporter:
    """Makes the consumer's own records and watches the counters.

    Attributes:
        lines: Wire lines that wait for the next cycle.
        totals: Losses of workers that have ended, by kind.
        exits: How many workers have ended.
    """

    def __init__(self, now_ns: Callable[[], int], wake: Callable[[], None]) -> None:
        self.lines: list[bytes] = []
        self.totals: dict[str, int] = {}
        self.exits = 0
        self._now_ns = now_ns
        self._wake = wake
        self._seq = 0
        self._last = 0
        self._told: dict[str, dict[str, int]] = {}
        self._told_late = 0
        self._look_at = 0
        self._late_at = 0
        self._words: dict[int, deque[str]] = {}
        self._counted: dict[int, dict[str, int]] = {}
        self._waiting: list[tuple[int, int, dict[str, Any]]] = []
        self._unsafe: list[tuple[bytes, Worker, int]] = []

    def event(self, message: str, details: dict[str, Any]) -> None:
        """Put a record of our own into the stream.

        Args:
            message: The text.
            details: Fields; `level` (default "warning") becomes the record's.
        """
        self._seq += 1
        self._last = max(self._now_ns(), self._last + 1)
        details = dict(details)
        level = str(details.pop("level", "warning"))
        fields = {"logger": "logagg", "message": message, "pid": os.getpid(), **details}
        self.lines.append(
            stamped_line(self._last, level, "consumer", self._seq, fields)
        )
        self._wake()

    def event_after(self, pid: int, details: dict[str, Any], deadline_ns: int) -> None:
        """An event that stands behind the last words of a process."""
        self._waiting.append((pid, deadline_ns, details))

    def listen(self, stream: Stream) -> None:
        """Keep a worker's last lines, of both streams, for the notice of its death."""
        stream.last_lines = self._words.setdefault(stream.pid, stream.last_lines)

    def told(self, horizon: bytes) -> list[tuple[Worker, int]]:
        """Whose drops were told of in records before a sort key, and how many in all.

        Once those records are safe the worker must hear of it, so that the consumer
        after us does not tell of the same drops again.
        """
        found = [each for each in self._unsafe if each[0] < horizon]
        self._unsafe = [each for each in self._unsafe if each[0] >= horizon]
        return [(worker, total) for _, worker, total in found]

    def take(self) -> list[bytes]:
        """The lines made since the last call."""
        lines, self.lines = self.lines, []
        return lines

    def look(self, now_ns: int, sources: Collection[Source], merger: Merger) -> None:
        """Tell what has changed since the last look; call it every cycle."""
        if self._waiting:
            self._let_go(now_ns, {source.pid for source in sources})
        if now_ns < self._look_at:
            return
        self._look_at = now_ns + REPORT_NS
        for source in sources:
            if isinstance(source, Worker):
                self._tell_losses(source)
        if merger.late > self._told_late and now_ns >= self._late_at:
            self._late_at = now_ns + LATE_NS
            number = merger.late - self._told_late
            self._told_late = merger.late
            self.event(
                f"{number} records came late: behind records with later stamps",
                {"event": "late", "number": number},
            )

    def _let_go(self, now_ns: int, present: set[int]) -> None:
        for each in list(self._waiting):
            pid, deadline_ns, details = each
            if pid not in present or now_ns > deadline_ns:
                self._waiting.remove(each)
                details |= self._counted.pop(pid, {})
                words = self._words.pop(pid, None)
                if words and details.get("level", "info") not in ("debug", "info"):
                    details["last_lines"] = list(words)
                self.event(str(details.get("message", "")), details)

    def _tell_losses(self, worker: Worker, *, final: bool = False) -> None:
        now = worker.losses()
        told = self._told.setdefault(worker.stream, {"dropped": worker.told_dropped})
        if not final:
            # A hole may be explained yet, by a count of drops that is under way.
            before, told["seen"] = told.get("seen", 0), now["lost"]
            now["lost"] = min(now["lost"], before)
        for kind, text in _TEXTS.items():
            number = now[kind] - told.get(kind, 0)
            if number > 0:
                told[kind] = now[kind]
                self.event(
                    text.format(number=number, worker=worker.name),
                    {
                        "event": kind,
                        "number": number,
                        "of_worker": worker.name,
                        "of_pid": worker.pid,
                    },
                )
                if kind == "dropped":
                    key = self.lines[-1][:KEY_END]
                    self._unsafe.append((key, worker, now[kind]))

    def ended(self, worker: Worker, why: str) -> None:
        """Tell how a worker ended, and what it had lost."""
        self._tell_losses(worker, final=True)
        self._told.pop(worker.stream, None)
        self.exits += 1
        losses = worker.losses()
        for kind, number in losses.items():
            self.totals[kind] = self.totals.get(kind, 0) + number
        last_seq = worker.sequence.expected - 1
        if worker.supervised:  # its one record comes from the supervisor, who knows why
            self._counted[worker.pid] = {"last_seq": last_seq, **losses}
            return
        if not losses["records"] and not losses["lost"]:
            return
        how = "ended" if worker.goodbye else f"ended without goodbye ({why})"
        self.event(
            f"worker {worker.name} {how}, {losses['records']} records",
            {
                "event": "worker_exit",
                "level": "debug" if worker.goodbye else "info",
                "of_worker": worker.name,
                "of_pid": worker.pid,
                "goodbye": worker.goodbye,
                "last_seq": last_seq,
                **losses,
            },
        )


_TEXTS = {
    "dropped": "worker {worker} dropped {number} records: nothing could take them",
    "lost": "{number} records of worker {worker} never came",
    "damaged": "{number} lines of worker {worker} were torn or no records",
}
