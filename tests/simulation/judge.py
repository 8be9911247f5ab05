"""Compares a simulated log with the calls that made it."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world import Violation

__all__ = ["STDERR", "Ledger", "Sent", "judge"]

STDERR = "stderr.txt"
"""The stderr of all workers: where records go when no sink can be opened."""


@dataclass
class Sent:
    """A log call.

    Attributes:
        name: Stands in its record as `id`.
        worker: The number of its process, and its pid, which others may have later.
        stream: Its thread, or the signal handler's call.
        begun: The step at which it began.
        ended: The step at which it returned; 0: it did not.
    """

    name: str
    worker: int
    pid: int
    stream: int
    begun: int
    ended: int = 0

    @property
    def nested(self) -> bool:
        """Whether a signal handler made it: it may follow the call that it was in."""
        return self.stream < 0


@dataclass
class Ledger:
    """What was logged, and what may be missing from the log.

    Attributes:
        calls: All log calls.
        drops: How many records the workers have counted as dropped.
        excused: Calls whose records two deaths took with them, as the guarantees say.
        left: Calls before a close that was not confirmed: another consumer finds them.
        cut: Workers that died with a part of a line in the pipe and the whole on disk.
        strangers: Processes whose records are of no interest.
        inside: By process and thread, the step at which its call at hand began.
    """

    calls: list[Sent] = field(default_factory=list)
    drops: int = 0
    excused: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)
    inside: dict[tuple[int, int], int] = field(default_factory=dict)

    @contextmanager
    def call(self, worker: int, stream: int, step: int) -> Iterator[None]:
        """Note that a thread is inside a log call, a flush or a close for a while."""
        self.inside[worker, stream] = step
        try:
            yield
        finally:
            del self.inside[worker, stream]

    def begin(self, worker: int, pid: int, stream: int, step: int) -> Sent:
        """Note a call that begins."""
        call = Sent(f"r{len(self.calls)}", worker, pid, stream, step)
        self.calls.append(call)
        return call

    def excuse(self, worker: int, spooled: bytes) -> None:
        """Let records of a process be missing: of all that it has logged by now.

        Not those that are on disk: whoever ends, they are for the next consumer.
        """
        self.excused |= {
            each.name
            for each in self.calls
            if each.worker == worker and b'"%b"' % each.name.encode() not in spooled
        }

    def leave(self, worker: int) -> None:
        """Note that a process has closed without knowing where its records are."""
        self.left |= {each.name for each in self.calls if each.worker == worker}

    def excuse_queued(self, worker: int) -> None:
        """Let what a signal handler logged be missing: an unfinished call has it."""
        steps = [step for (whose, _), step in self.inside.items() if whose == worker]
        self.excused |= {
            each.name
            for each in self.calls
            if each.worker == worker
            and each.nested
            and each.begun >= min(steps or [1 << 62])
        }

    def missing(self, found: Any, worker: int = 0) -> list[str]:
        """Calls that have returned and whose records are not among those found."""
        return [
            each.name
            for each in self.calls
            if each.ended
            and each.name not in found
            and each.name not in self.excused
            and worker in (0, each.worker)
        ]


def judge(ledger: Ledger, folder: Path, *, strict_order: bool) -> None:
    """Compare the log with the calls.

    Args:
        ledger: The calls.
        folder: Has the log file `app.log`, its pieces, and all that waits on disk.
        strict_order: No death or pause explains a record that stands out of order.

    Raises:
        Violation: A record is missing, twice, torn or out of order, or is left on disk.
    """
    place: dict[str, int] = {}
    for number, record in enumerate(_records(folder)):
        name = record.get("id")
        if name is None:
            _judge_event(record, ledger)
        elif name in place:
            raise Violation(f"twice in the log: {name}")
        else:
            place[name] = number
    stderr = (folder / STDERR).read_bytes()
    missing = [
        name for name in ledger.missing(place) if b'"%b"' % name.encode() not in stderr
    ]
    if len(missing) > ledger.drops:
        raise Violation(
            f"missing: {len(missing)} records, of which {ledger.drops} were counted as "
            f"dropped: {missing[:10]}"
        )
    _judge_threads(ledger, place)
    if strict_order:
        _judge_causes(ledger, place)
    left = [each.name for each in folder.rglob("*.spool") if each.is_file()]
    if left:
        raise Violation(f"left on disk: {left}")


def _records(folder: Path) -> list[dict[str, Any]]:
    text = b""
    for piece in sorted(folder.glob("app.log*"), key=_age, reverse=True):
        text += piece.read_bytes()
    records = []
    for line in filter(None, text.split(b"\n")):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise Violation(f"broken line: {line[:200]!r}") from None
    return records


def _age(path: Path) -> int:
    suffix = path.name.rpartition(".")[2]
    return int(suffix) if suffix.isdigit() else 0


def _judge_event(record: dict[str, Any], ledger: Ledger) -> None:
    """A loss may be announced only of calls that never returned, or of drops."""
    if record.get("event") not in ("damaged", "lost"):
        return
    unreturned = collections.Counter(
        str(each.pid) for each in ledger.calls if not each.ended
    )
    worker = record.get("of_worker", "")
    if worker in ledger.strangers or (ledger.strangers and not worker):
        return
    allowed = unreturned[worker] + (worker in ledger.cut)
    if record["event"] == "lost":
        allowed += ledger.drops + len(ledger.excused)
    if int(record.get("number", 1)) > allowed:
        raise Violation(f"announced: {record}")


def _judge_threads(ledger: Ledger, place: dict[str, int]) -> None:
    """Calls of one thread stand in their order, late ones too.

    What a process has left on disk at a close comes when a consumer finds it.
    """
    last: dict[tuple[int, int], Sent] = {}
    for each in ledger.calls:
        if not each.ended or each.name not in place or each.name in ledger.left:
            continue
        before = last.get((each.worker, each.stream))
        if before is not None and place[before.name] > place[each.name]:
            raise Violation(f"order: {each.name} stands before {before.name}")
        last[each.worker, each.stream] = each


def _judge_causes(ledger: Ledger, place: dict[str, int]) -> None:
    """A call that began after another had returned stands after it.

    Also one that is marked as late: only a call that has not returned may come late.
    """
    whole = [
        each
        for each in ledger.calls
        if each.ended and not each.nested and each.name in place
    ]
    newest: Sent | None = None
    for each in sorted(whole, key=lambda call: place[call.name]):
        if newest is not None and each.ended < newest.begun:
            raise Violation(
                f"order: {newest.name} of {newest.worker} stands before {each.name} of "
                f"{each.worker}, which had returned before it began"
            )
        if newest is None or each.begun > newest.begun:
            newest = each
