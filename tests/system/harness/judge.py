"""The judge: reads what is left of a run and says whether the promises were kept."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from harness.producer import checksum


@dataclass(frozen=True, slots=True)
class Sent:
    """What a producer's ledger says.

    Attributes:
        worker: Its name.
        pid: Its pid.
        attempted: How many calls it began.
        returned: How many calls had returned: those are promised.
        longest: Seconds of its longest call.
        slow: How many calls took more than 1 ms.
        finished: Whether it ended in good order.
        first: The number of its first call.
    """

    worker: str
    pid: int
    attempted: int
    returned: int
    longest: float
    slow: int
    finished: bool
    first: int = 0


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        sent: The ledgers by worker.
        delivered: How many different records came.
        missing: Promised records that are neither delivered nor spooled, by worker.
        spooled: Records that stand only in the spool.
        dropped: Records that were counted as dropped or lost by the service, by worker.
        duplicates: Records that came again.
        misordered: Places where a worker's numbers do not rise.
        altered: Records whose payload is not what was sent.
        strangers: Records that nobody sent.
        torn: Files that end within a line.
        broken: Lines that do not parse.
        late: Records marked as late.
        events: The service's own records.
    """

    sent: dict[str, Sent]
    delivered: int = 0
    missing: dict[str, list[int]] = field(default_factory=dict)
    spooled: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    duplicates: list[tuple[str, int]] = field(default_factory=list)
    misordered: list[tuple[str, int, int]] = field(default_factory=list)
    altered: list[tuple[str, int]] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    broken: list[bytes] = field(default_factory=list)
    late: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def uncounted(self) -> dict[str, int]:
        """By worker, by how much losses and their count differ."""
        wrong = {}
        for worker in self.sent:
            missing = len(self.missing.get(worker, ()))
            counted = self.dropped.get(worker, 0)
            if missing != counted:
                wrong[worker] = missing - counted
        return wrong

    @property
    def longest(self) -> float:
        """Seconds of the longest call of all."""
        return max((each.longest for each in self.sent.values()), default=0.0)

    def require(
        self,
        *,
        complete: bool = True,
        duplicates: int = 0,
        ordered: bool = True,
        torn: int = 0,
        spooled: int | None = 0,
        longest: float | None = None,
    ) -> Verdict:
        """Fail with everything that is wrong.

        Args:
            complete: Nothing may be missing; else what is missing must be counted.
            duplicates: So many records may have come twice.
            ordered: Each worker's numbers rise strictly.
            torn: So many files may end in a torn line.
            spooled: So many records may still be in the spool; None: any number.
            longest: No call may have taken more seconds than this.
        """
        wrong = []
        if complete and self.missing:
            wrong.append(f"missing: {self._shown()}; counted as lost: {self.dropped}")
        elif self.uncounted:
            wrong.append(
                f"losses that are not counted right: {self.uncounted} "
                f"(missing {self._shown()}, counted {self.dropped})"
            )
        if len(self.duplicates) > duplicates:
            wrong.append(f"{len(self.duplicates)} duplicates: {self.duplicates[:5]}")
        if ordered and self.misordered:
            wrong.append(f"{len(self.misordered)} misordered: {self.misordered[:5]}")
        if self.altered:
            wrong.append(f"{len(self.altered)} altered: {self.altered[:5]}")
        if self.strangers:
            wrong.append(f"{len(self.strangers)} strangers: {self.strangers[:3]}")
        if len(self.torn) > torn:
            wrong.append(f"torn: {self.torn}")
        if self.broken:
            wrong.append(f"{len(self.broken)} broken lines: {self.broken[0][:200]!r}")
        if spooled is not None and self.spooled > spooled:
            wrong.append(f"{self.spooled} records are still in the spool")
        if longest is not None and self.longest > longest:
            wrong.append(f"a call took {self.longest:.3f} s, allowed are {longest} s")
        assert not wrong, "\n".join(wrong)
        return self

    def _shown(self) -> dict[str, str]:
        """Per worker what is missing: how many, the first numbers, the last, of how many."""
        return {
            worker: f"{len(n)}: {n[:5]}..{n[-1]} of {self.sent[worker].returned}"
            for worker, n in self.missing.items()
        }


def judge(
    files: Iterable[Path],
    sent: Iterable[Sent],
    *,
    runs: Collection[str] = ("r",),
    spool: Iterable[Path] = (),
) -> Verdict:
    """Read files and spool segments and compare them with the ledgers.

    Args:
        files: The log files, from the oldest on.
        sent: The ledgers.
        runs: Only records of these runs count; their workers' names must differ.
        spool: Spool segments that are left; the same records may stand in a file.
    """
    verdict = Verdict({each.worker: each for each in sent})
    seen: dict[str, set[int]] = collections.defaultdict(set)
    last: dict[str, int] = {}
    for path in files:
        for record in _parsed(path, verdict):
            if record.get("logger") == "logagg" and "event" in record:
                verdict.events.append(record)
                continue
            if record.get("run") not in runs:
                continue
            _note(record, verdict, seen, last)
    parked: dict[str, set[int]] = collections.defaultdict(set)
    for path in spool:
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = orjson.loads(line + b"}")
            if record.get("run") in runs:
                parked[record["w"]].add(record["n"])
    for worker, ledger in verdict.sent.items():
        promised = set(range(ledger.first, ledger.returned))
        verdict.spooled += len(parked[worker] - seen[worker])
        missing = promised - seen[worker] - parked[worker]
        if missing:
            verdict.missing[worker] = sorted(missing)
        verdict.delivered += len(seen[worker])
    _count_losses(verdict)
    return verdict


def _parsed(path: Path, verdict: Verdict) -> Iterable[dict[str, Any]]:
    data = path.read_bytes()
    lines = data.split(b"\n")
    if lines.pop():
        verdict.torn.append(str(path))
    for line in lines:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            verdict.broken.append(line)
            continue
        if isinstance(record, dict):
            yield record
        else:
            verdict.broken.append(line)


def _note(
    record: dict[str, Any],
    verdict: Verdict,
    seen: dict[str, set[int]],
    last: dict[str, int],
) -> None:
    worker, n = record.get("w"), record.get("n")
    ledger = verdict.sent.get(worker) if isinstance(worker, str) else None
    if ledger is None or type(n) is not int or n >= max(ledger.attempted, 1):
        verdict.strangers.append(str(record)[:200])
        return
    if record.get("sum") != checksum(record["run"], worker, n, record["message"]):
        verdict.altered.append((worker, n))
    verdict.late += record.get("late") is True
    if n in seen[worker]:
        verdict.duplicates.append((worker, n))
    elif n <= last.get(worker, -1):
        verdict.misordered.append((worker, last[worker], n))
    seen[worker].add(n)
    last[worker] = max(last.get(worker, -1), n)


def _count_losses(verdict: Verdict) -> None:
    """What the service itself says that it has lost, by worker."""
    by_pid = {ledger.pid: worker for worker, ledger in verdict.sent.items()}
    for event in verdict.events:
        worker = by_pid.get(event.get("of_pid", 0))
        if worker is not None and event["event"] in ("dropped", "lost"):
            found = verdict.dropped.get(worker, 0)
            verdict.dropped[worker] = found + int(event["number"])
