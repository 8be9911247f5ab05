"""The consumer's own records in the stream, and the counters of losses.

Every loss becomes a record (`"logger":"logagg"`, `"event"` names its kind): at once for
a worker that ended, else at most once a second and worker, with the number since the
last one. Events made here: `worker_exit`, `lost` (a hole in a worker's seqs that it did
not count itself), `dropped` (counted by the worker), `damaged` (torn lines, lines that
are not records), `late`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import UNSET

from logagg.consumer.acks import AckTracker
from logagg.consumer.source import Source, stamped_line
from logagg.consumer.worker_source import SourceState, WorkerSource
from logagg.core.event import Event
from logagg.core.line import KEY_END, sort_key
from logagg.core.merge import Merger
from logagg.core.record import CONSUMER, worker_text
from logagg.fanout.counters import print_error
from logagg.filters.secret_values import SECRETS
from logagg.ipc.protocol import HolderPacket
from logagg.platform.terminal_text import complain

__all__ = ["EventLog"]

REPORT_NS = 1_000_000_000
LATE_NS = 10_000_000_000
ALARM_NS = 10_000_000_000
MOST_KINDS = 1000
MOST_PIDS = 10_000
LAST_LINES = 5
FAULTS = 20
FAULT_NS = 1_000_000_000
MAX_COUNT = 2**63 - 1
AFTER_OUTPUT_NS = 5_000_000_000
"""How long an event waits for the end of a process's output (5 s)."""


class EventLog:
    """Makes the consumer's own records and reports what its counters have gained.

    Args:
        now_ns: The common clock.
        wake: Called when a record was made.

    Attributes:
        lines: Wire lines for the next cycle.
        totals: Losses of workers that have ended, by kind.
        faults: Parts of the consumer that ended with an unexpected error: the last
            error of each.
        exits: How many workers have ended.
        alarms: How many warnings this process has logged; `last_alarm` is the last.
    """

    def __init__(self, now_ns: Callable[[], int], wake: Callable[[], None]) -> None:
        self.lines: list[bytes] = []
        self.totals: dict[str, int] = {}
        self.faults: dict[str, str] = {}
        self.exits = 0
        self.alarms = 0
        self.last_alarm = ""
        self._quiet_until: dict[str, int] = {}
        self._now_ns = now_ns
        self._wake = wake
        self._seq = 0
        self._last = 0
        self._reported: dict[str, dict[str, int]] = {}
        self._reported_late = 0
        self._next_report = 0
        self._next_late = 0
        self._last_lines: dict[int, deque[str]] = {}
        self._counted: dict[int, dict[str, int]] = {}
        self._waiting: list[tuple[int, int, dict[str, Any]]] = []
        self._announced: list[tuple[bytes, WorkerSource, int]] = []
        self._next_fault = 0
        self._pids: dict[int, None] = {}  # of workers, those that have ended too

    def event(self, message: str, details: dict[str, Any]) -> None:
        """Put a record into the stream.

        Args:
            message: The text.
            details: Fields; `level` (default "warning") becomes the record's.
        """
        details = dict(details)
        level = str(details.pop("level", "warning"))
        self._add(level, {"message": message, "pid": os.getpid(), **details})

    def _add(self, level: str, fields: dict[str, Any]) -> None:
        self._seq += 1
        self._last = max(self._now_ns(), self._last + 1)
        fields = {"logger": "logagg", **fields}
        self.lines.append(stamped_line(self._last, level, CONSUMER, self._seq, fields))
        self._wake()

    def part_failed(self, name: str, error: BaseException) -> None:
        """Note and report that a part ended with an error that nothing else handles.

        At most FAULTS parts are noted, and one is reported every FAULT_NS.
        """
        text = SECRETS.scrub(f"{type(error).__name__}: {error}")[:500]
        if name in self.faults or len(self.faults) < FAULTS:
            self.faults[name] = text
        now_ns = self._now_ns()
        if now_ns >= self._next_fault:
            self._next_fault = now_ns + FAULT_NS
            print_error(error)
            details = {"event": Event.TASK_FAILED, "level": "error", "part": name}
            self.event(f"{name} has failed: {text}", details)

    def take_warnings(self) -> None:
        """Record the warnings that this process logs from now on; see `AlarmHandler`."""
        loop = asyncio.get_running_loop()

        def alarm(warning: logging.LogRecord, text: str) -> None:
            loop.call_soon_threadsafe(self.alarm, warning, text)

        logging.getLogger().addHandler(AlarmHandler(alarm))

    def alarm(self, warning: logging.LogRecord, text: str) -> None:
        """Count a warning, and record it unless one of its kind was just recorded."""
        self.alarms += 1
        self.last_alarm = text
        now, kind = self._now_ns(), f"{warning.name} {warning.msg}"
        if now < self._quiet_until.get(kind, 0):
            return
        if len(self._quiet_until) > MOST_KINDS:
            self._quiet_until.clear()
        self._quiet_until[kind] = now + ALARM_NS
        level = "error" if warning.levelno >= logging.ERROR else "warning"
        details = {"event": Event.ALARM, "level": level, "source": warning.name}
        self.event(text, details)

    def statistics(self) -> dict[str, Any]:
        """The counters, for status."""
        return {
            "workers_ended": self.exits,
            "ended": dict(self.totals),
            "faults": dict(self.faults),
            "alarms": self.alarms,
            "last_alarm": self.last_alarm,
        }

    def drop_foreign_lines(
        self, merger: Merger, acks: AckTracker, latest_ns: int
    ) -> None:
        """Drop and report lines that are not records; take the future's for present."""
        lines = merger.reject_foreign(latest_ns)
        if merger.has_early:
            acks.limit_marks(sort_key(latest_ns))
        if not lines:
            return
        sample = lines[0][:200].decode("utf-8", "backslashreplace")
        self.event(
            f"{len(lines)} lines that are not records were dropped",
            {"event": Event.DAMAGED, "level": "error", "sample": sample},
        )

    def reloaded(self, error: str, sinks: str) -> None:
        """Report that the configuration was read again, or what is wrong with it."""
        if error:
            complain(f"logagg: not reloaded: {error}")
            message = f"the configuration was not read again: {error}"
            self.event(message, {"event": Event.RELOAD_REFUSED, "level": "error"})
        else:
            message = f"the configuration was read again; sinks: {sinks}"
            self.event(message, {"event": Event.RELOAD, "level": "info"})

    def not_locked(self, problem: str) -> None:
        """Report a file that another consumer may write as well."""
        text = f"another consumer may write a file: {problem}"
        self.event(text, {"event": Event.NO_LOCK})

    def of_holder(self, message: HolderPacket) -> None:
        """Put a holder's record into the stream."""
        record = dict(message.record or {})
        if message.after_pid is not UNSET:
            self.event_after(message.after_pid, record)
        else:
            self.event(str(record.pop("message", "")), record)

    def event_after(self, pid: int, details: dict[str, Any]) -> None:
        """Put a record into the stream after the last output of a process."""
        self._waiting.append((pid, self._now_ns() + AFTER_OUTPUT_NS, details))

    def last_lines_of(self, pid: int) -> deque[str]:
        """The last lines of a process, of both streams, for the record of its death."""
        return self._last_lines.setdefault(pid, deque(maxlen=LAST_LINES))

    def take_announced(self, released_before: bytes) -> list[tuple[WorkerSource, int]]:
        """Workers whose drops were announced in records before a sort key, and how many.

        Once those records are safe the worker must know, so that the next consumer does
        not announce the same drops again.
        """
        found = [each for each in self._announced if each[0] < released_before]
        self._announced = [
            each for each in self._announced if each[0] >= released_before
        ]
        return [(worker, total) for _, worker, total in found]

    def add_to(self, merger: Merger) -> int:
        """Add the lines made since the last call to the stream; return their number."""
        lines = self.take()
        if lines:
            merger.add(lines, drained=True)
        return len(lines)

    def take(self) -> list[bytes]:
        """The lines made since the last call."""
        lines, self.lines = self.lines, []
        return lines

    def report(
        self,
        now_ns: int,
        sources: Iterable[Source],
        workers: Iterable[WorkerSource],
        merger: Merger,
    ) -> None:
        """Report what has changed since the last report; call it every cycle."""
        self._pids.update(dict.fromkeys(worker.pid for worker in workers))
        while len(self._pids) > MOST_PIDS:
            del self._pids[next(iter(self._pids))]
        if self._waiting:
            self._release_waiting(now_ns, {source.pid for source in sources})
        if now_ns < self._next_report:
            return
        self._next_report = now_ns + REPORT_NS
        for worker in workers:
            if worker.state is not SourceState.DEPARTED:
                self._report_losses(worker)
        if merger.late > self._reported_late and now_ns >= self._next_late:
            self._next_late = now_ns + LATE_NS
            number = merger.late - self._reported_late
            self._reported_late = merger.late
            self.event(
                f"{number} records came late: after records with later stamps",
                {"event": Event.LATE, "number": number},
            )

    def _release_waiting(self, now_ns: int, present: set[int]) -> None:
        for each in list(self._waiting):
            pid, deadline_ns, details = each
            if pid in present and now_ns <= deadline_ns:
                continue
            self._waiting.remove(each)
            counts = self._counted.pop(pid, {})
            lines = self._last_lines.pop(pid, None)
            quiet = details.pop("quiet", False)
            if details.get("level") == "debug":  # the end of a worker, in good order
                if not any(counts.get(kind) for kind in _TEXTS):
                    if not quiet:
                        self._add("debug", _shortened(details))
                    continue
                details["level"] = "warning"
            dead = details.get("level", "info") not in ("debug", "info", "warning")
            details |= {n: count for n, count in counts.items() if count or dead}
            if lines and dead:
                details["last_lines"] = list(lines)
            self.event(str(details.get("message", "")), details)

    def _report_losses(self, worker: WorkerSource, *, final: bool = False) -> None:
        now = worker.losses()
        reported = self._reported.setdefault(
            worker.stream, {"dropped": worker.hello.drops_announced}
        )
        if not final:
            # A count of drops may be under way that explains a hole: wait a second.
            before, reported["seen"] = reported.get("seen", 0), now["lost"]
            now["lost"] = min(now["lost"], before)
        for kind, text in _TEXTS.items():
            number = now[kind] - reported.get(kind, 0)
            if number > 0:
                reported[kind] = now[kind]
                self.event(
                    text.format(number=number, worker=worker.name),
                    {
                        "event": kind,
                        "number": number,
                        "of_worker": worker.name,
                        "of_pid": worker.pid,
                    },
                )
                if kind is Event.DROPPED:
                    key = self.lines[-1][:KEY_END]
                    self._announced.append((key, worker, now[kind]))

    def worker_ended(self, worker: WorkerSource, reason: str) -> None:
        """Report how a worker ended, and what it had lost."""
        self._report_losses(worker, final=True)
        self._reported.pop(worker.stream, None)
        self.exits += worker.successor is None
        losses = worker.losses()
        for kind, number in losses.items():
            self.totals[kind] = min(self.totals.get(kind, 0) + number, MAX_COUNT)
        last_seq = worker.sequence.expected - 1
        if worker.successor is not None:  # it is attached by another pipe
            return
        if worker.hello.supervised:  # the supervisor sends its record
            self._counted[worker.pid] = {"last_seq": last_seq, **losses}
            return
        if not losses["records"] and not losses["lost"]:
            return
        level, end = _end_of(worker, child=self._is_child(worker))
        if losses["lost"] or losses["dropped"] or losses["damaged"]:
            level = "warning"
        message = f"worker {worker.name} {end}"
        if level == "debug":
            if not worker.hello.quiet:
                self._report_calm_end(worker, message, losses["records"])
            return
        if not worker.goodbye:
            message += " without goodbye"
        self.event(
            f"{message} ({reason}), {losses['records']} records",
            {
                "event": Event.WORKER_EXIT,
                "level": level,
                "of_worker": worker.name,
                "of_pid": worker.pid,
                "goodbye": worker.goodbye,
                "last_seq": last_seq,
                **losses,
            },
        )

    def _is_child(self, worker: WorkerSource) -> bool:
        """Whether multiprocessing, or a process that logs here, started a worker."""
        name = worker.hello.process
        return worker.hello.parent in self._pids or name not in ("", "MainProcess")

    def _report_calm_end(
        self, worker: WorkerSource, message: str, records: int
    ) -> None:
        """Report an end that nothing is wrong with, in as few bytes as can be."""
        fields: dict[str, Any] = {"message": message, "event": Event.WORKER_EXIT}
        if worker.name != str(worker.pid):
            fields["of_worker"] = worker.name
        self._add("debug", {**fields, "of_pid": worker.pid, "records": records})


def _shortened(details: dict[str, Any]) -> dict[str, Any]:
    """The record of an end that nothing is wrong with, in as few bytes as can be."""
    name = worker_text(details.get("app", ""), details["slot"])
    message = f"worker {name} ended"
    names = [each for each in ("event", "app", "slot", "pid") if each in details]
    return {"message": message} | {name: details[name] for name in names}


class AlarmHandler(logging.Handler):
    """Passes warnings of this process on, and writes them to its stderr.

    Args:
        alarm: Called from any thread with the warning and its text.
    """

    def __init__(self, alarm: Callable[[logging.LogRecord, str], object]) -> None:
        super().__init__(logging.WARNING)
        self._alarm = alarm

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on a warning, without the secrets of sinks. Never raises."""
        with contextlib.suppress(Exception):  # the loop is closed, a broken __str__
            shown = copy.copy(record)
            try:
                text = record.getMessage()
            except Exception:  # noqa: BLE001  # arguments that do not fit
                text = f"{record.msg} {record.args}"
            text = SECRETS.scrub(text)
            shown.msg, shown.args = text, None
            if record.exc_info and record.exc_info[1] is not None:
                error = record.exc_info[1]
                lines = traceback.format_exception(error)
                shown.exc_text = SECRETS.scrub("".join(lines).rstrip())
                text = SECRETS.scrub(f"{text}: {type(error).__name__}: {error}")
            if logging.lastResort is not None:
                logging.lastResort.handle(shown)
            self._alarm(record, text)


def _end_of(worker: WorkerSource, *, child: bool) -> tuple[str, str]:
    """The level of a worker's end that lost nothing, and the end in words.

    SIGTERM is how pools and servers end their children in good order; another process
    does not get it in the course of things.
    """
    if worker.goodbye:
        return "debug", "detached" if worker.stays else "ended"
    if worker.exit_status is None:
        return "info", "ended"
    code = os.waitstatus_to_exitcode(worker.exit_status)
    if code >= 0:
        return ("info", f"ended with status {code}") if code else ("debug", "ended")
    if code == -signal.SIGTERM:
        return "debug" if child else "info", "ended by SIGTERM"
    try:
        return "warning", f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return "warning", f"was killed by signal {-code}"


_TEXTS = {
    Event.DROPPED: "worker {worker} dropped {number} records: nothing could take them",
    Event.LOST: "{number} records of worker {worker} are missing",
    Event.DAMAGED: "{number} lines of worker {worker} were torn or are not records",
}
