"""Workers and sinks over the last hour, and the losses, for the page.

The status of the consumer, and of the run that has started it, is asked for every
INTERVAL; the numbers are kept for an hour. Losses and deaths are read from the records
that announce them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from logagg.core.event import LOSSES, Event
from logagg.core.line import parse_line
from logagg.errors import LogaggError
from logagg.ipc import consumer_client
from logagg.ipc.runs import run_control
from logagg.ipc.runs.run_control import RunAddress
from logagg.platform.procfs import cpu_seconds, rss_bytes
from logagg.view.page.page_filter import Counts

__all__ = ["Machinery"]

INTERVAL = 2.0
HOUR = 3600.0
MOST_POINTS = 240
_MOST_LOSSES = 500
_MOST_WORDS = 4_000
_OWN = b"consumer"
_BAD = (b"error", b"critical")

# offered + recovered + made = all of these
_WORDS = {"queued_records": "queued", "spool_records": "spooled"}
_IN = ("offered", "recovered", "made")
_OUT = (
    "filtered", "sampled", "collapsed", "duplicates", "written", "dropped",
    "queued_records", "spool_records",
)  # fmt: skip


class _Sample(msgspec.Struct):
    """Counters at one time, of each worker and each sink."""

    at: float
    workers: dict[str, tuple[float, ...]]
    sinks: dict[str, tuple[float, ...]]


class Loss(msgspec.Struct):
    """A record that announces lost records."""

    timestamp: str
    event: str
    message: str
    number: int
    worker: str = ""
    sink: str = ""


class Machinery:
    """The state of the service as a viewer sees it.

    Attributes:
        status: The consumer's last status; {} while none answers.
        run: The status of the run that it belongs to; {} without one.
        losses: The records of losses, oldest first.
    """

    def __init__(self, find: Callable[[], str | None]) -> None:
        self._find = find
        self._samples: deque[_Sample] = deque()
        self._errors: dict[str, int] = {}
        self._seen: dict[str, str] = {}
        self._deaths: dict[str, dict[str, Any]] = {}
        self._address: RunAddress | None = None
        self.status: dict[str, Any] = {}
        self.run: dict[str, Any] = {}
        self.losses: deque[Loss] = deque(maxlen=_MOST_LOSSES)
        self._lost = 0

    # --- from the stream ---

    def take(self, lines: list[bytes], counts: Counts) -> None:
        """Read what the stream shows of workers and losses."""
        own = False
        for (second, level, worker), number in counts.items():
            name = worker.decode("utf-8", "replace")
            if level in _BAD:
                self._errors[name] = self._errors.get(name, 0) + number
            text = second.decode("utf-8", "replace")
            self._seen[name] = max(self._seen.get(name, ""), text)
            own |= worker == _OWN and level != b"debug"
        if own:
            for line in lines:
                if b'"worker":"consumer"' in line[:200] and b'"event":"' in line:
                    self._take_event(parse_line(line))

    def _take_event(self, record: Mapping[str, Any]) -> None:
        event = record.get("event")
        if event == Event.WORKER_EXIT and record.get("level") != "info":
            name = str(record.get("slot", record.get("of_worker", "")))
            words = record.get("last_lines") or ""
            if isinstance(words, list):
                words = "\n".join(map(str, words))
            self._deaths[name] = {
                "timestamp": str(record.get("timestamp", "")),
                "message": str(record.get("message", ""))[:_MOST_WORDS],
                "words": str(words)[-_MOST_WORDS:],
            }
        if event not in LOSSES:
            return
        dropped = record.get("dropped")
        number = record.get("number")
        if isinstance(dropped, Mapping):
            number = sum(n for n in dropped.values() if isinstance(n, int))
        number = number if isinstance(number, int) else 1
        self._lost += number
        loss = Loss(
            str(record.get("timestamp", "")),
            str(event),
            str(record.get("message", ""))[:_MOST_WORDS],
            number,
            str(record.get("of_worker", "")),
            str(record.get("sink", "")),
        )
        self.losses.append(loss)

    @property
    def lost(self) -> int:
        """Records that are lost: announced in the stream, or counted by the consumer."""
        counted = sum(
            each.get(key, 0)
            for each in self.status.get("workers", [])
            for key in ("lost", "dropped", "damaged")
        )
        counted += sum(
            sum(each.get("dropped", {}).values())
            for each in self.status.get("sinks", [])
        )
        return max(self._lost, int(counted))

    # --- from the consumer ---

    async def watch(self) -> None:
        """Ask for the status again and again."""
        while True:
            status, run, address = await asyncio.to_thread(self._ask)
            self.status, self.run, self._address = status, run, address
            self._keep()
            await asyncio.sleep(INTERVAL)

    def _ask(self) -> tuple[dict[str, Any], dict[str, Any], RunAddress | None]:
        try:
            path = self._find()
            status = consumer_client.status(path) if path else {}
        except (LogaggError, OSError):
            return {}, {}, None
        if not status:
            return {}, {}, None
        try:
            for address in run_control.runs():
                run = run_control.status(address)
                if run["consumer"]["socket"] == status["socket"]:
                    return status, run, address
        except (LogaggError, OSError, KeyError):
            pass
        return status, {}, None

    @property
    def address(self) -> RunAddress | None:
        """The control socket of the run, when there is one."""
        return self._address

    def _keep(self) -> None:
        if not self.status:
            return
        workers: dict[str, tuple[float, ...]] = {}
        for each in self.status["workers"]:
            name, pid = str(each["worker"]), int(each["pid"])
            workers[name] = (
                float(each["records"]), float(self._errors.get(name, 0)),
                float(rss_bytes(pid)), cpu_seconds(pid),
            )  # fmt: skip
        sinks: dict[str, tuple[float, ...]] = {
            str(each["url"]): (
                float(each["written"]), float(_waiting(each)),
                float(each["retries"]), float(each["spool_bytes"]),
                float(max(each["oldest"], each["delivery"].get("oldest_age", 0.0))),
            )
            for each in self.status["sinks"]
        }  # fmt: skip
        now = time.time()
        self._samples.append(_Sample(now, workers, sinks))
        while self._samples[0].at < now - HOUR:
            self._samples.popleft()

    # --- for the page ---

    def report(self) -> dict[str, Any]:
        """Everything that the tab shows."""
        status = self.status
        step = max(len(self._samples) // MOST_POINTS, 1)
        picked = list(self._samples)[::-step][::-1] if self._samples else []
        return {
            "consumer": {
                key: status.get(key)
                for key in (
                    "run", "pid", "socket", "uptime", "records", "pending", "late",
                    "viewers", "refused", "workers_ended", "alarms", "last_alarm",
                )
            } if status else None,
            "program": self.run.get("program", ""),
            "run_pid": self.run.get("pid"),
            "times": [round(each.at, 1) for each in picked],
            "workers": self._workers(picked),
            "sinks": self._sinks(picked),
            "losses": [asdict(each) for each in self.losses],
            "lost": self.lost,
        }  # fmt: skip

    def _workers(self, picked: list[_Sample]) -> list[dict[str, Any]]:
        slots = {str(slot["slot"]): slot for slot in self.run.get("slots", [])}
        alive = {str(w["worker"]): w for w in self.status.get("workers", [])}
        rows = []
        for name in sorted({*slots, *alive}, key=_natural):
            slot, worker = slots.get(name, {}), alive.get(name, {})
            ended = "ended" if not worker else "attached"
            rows.append(
                {
                    "worker": name,
                    "slot": slot.get("slot"),
                    "pid": slot.get("pid", worker.get("pid")),
                    "state": slot.get("state", ended),
                    "process": worker.get("process", ""),
                    "restarts": slot.get("restarts"),
                    "records": worker.get("records", 0),
                    "lost": sum(
                        worker.get(k, 0) for k in ("lost", "dropped", "damaged")
                    ),
                    "last_seen": self._seen.get(name, ""),
                    "last_exit": slot.get("last_exit"),
                    "death": self._deaths.get(name),
                    "rates": _rates(picked, "workers", name, 0, 1.0),
                    "errors": _rates(picked, "workers", name, 1, 60.0),
                    "rss": _values(picked, "workers", name, 2),
                    "cpu": _rates(picked, "workers", name, 3, 100.0),
                }
            )
        return rows

    def _sinks(self, picked: list[_Sample]) -> list[dict[str, Any]]:
        rows = []
        for each in self.status.get("sinks", []):
            name = str(each["url"])
            came = {key: _number(each[key]) for key in _IN}
            went = {_WORDS.get(key, key): _number(each[key]) for key in _OUT}
            rows.append(
                {
                    "sink": name.partition("?")[0],
                    "state": each["state"],
                    "error": each["error"] or each["delivery"].get("last_error", ""),
                    "retries": each["retries"],
                    "spool_bytes": each["spool_bytes"],
                    "waiting": _waiting(each),
                    "in": came,
                    "out": went,
                    "holds": sum(came.values()) == sum(went.values()),
                    "rates": _rates(picked, "sinks", name, 0, 1.0),
                    "queue": _values(picked, "sinks", name, 1),
                    "spool": _values(picked, "sinks", name, 3),
                    "lag": _values(picked, "sinks", name, 4),
                }
            )
        return rows


def _number(value: Any) -> int:
    return sum(value.values()) if isinstance(value, Mapping) else int(value)


def _waiting(sink: Mapping[str, Any]) -> int:
    delivery = sink["delivery"].get("queued_records", 0)
    return int(sink["queued_records"] + sink["spool_records"] + delivery)


def _natural(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() else 1 << 30, name)


def _values(
    samples: list[_Sample], kind: str, name: str, index: int
) -> list[float | None]:
    """One counter at each sample; None where the thing was not there."""
    found = []
    for sample in samples:
        row = getattr(sample, kind).get(name)
        found.append(None if row is None else row[index])
    return found


def _rates(
    samples: list[_Sample], kind: str, name: str, index: int, factor: float
) -> list[float | None]:
    """How fast a counter has grown before each sample, times a factor."""
    values = _values(samples, kind, name, index)
    rates: list[float | None] = [None] * min(len(values), 1)
    for number in range(1, len(values)):
        before, now = values[number - 1], values[number]
        seconds = samples[number].at - samples[number - 1].at
        if now is None or before is None or seconds <= 0:
            rates.append(None)
            continue
        grown = now if now < before else now - before  # a new process counts from 0
        rates.append(round(grown / seconds * factor, 3))
    return rates
